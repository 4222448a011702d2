"""The libraries that the page carries are the released files, with their licences."""

import hashlib
from pathlib import Path

from sae_lens_bipolar.explorer import site

VENDOR = site.HERE / "vendor"


def listed() -> dict[str, str]:
    lines = (VENDOR / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def test_every_file_is_the_one_that_was_released() -> None:
    files = {path.name for path in VENDOR.iterdir()} - {"SHA256SUMS", "VERSIONS"}
    assert files == set(listed())
    for name, digest in listed().items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_every_library_names_its_version_and_has_its_licence() -> None:
    versions = (VENDOR / "VERSIONS").read_text(encoding="ascii").splitlines()
    scripts = {line.split()[0]: line.split()[1] for line in versions}
    assert set(scripts) == {path.name for path in VENDOR.glob("*.js")}
    for library in scripts.values():
        assert len((VENDOR / f"{library}.LICENSE").read_text(encoding="utf-8")) > 500


def test_the_page_loads_every_script_once_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    site.write_page(tmp_path, "a </title><script>alert(1)</script>")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    written = tmp_path / "static"
    scripts = {path.relative_to(written).as_posix() for path in written.rglob("*.js")}
    assert {f"vendor/{path.name}" for path in VENDOR.glob("*.js")} < scripts
    assert set(site.SCRIPTS) == scripts
    assert all(page.count(f'src="static/{script}"') == 1 for script in scripts)
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert "<script>alert" not in page
    for path in (site.HERE / "static").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (path.name, word)
