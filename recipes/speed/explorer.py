"""Time the explorer: its folder and its page at 100,000 latents, and the build of a real one.

    python -m recipes.speed.explorer --output runs/speed_explorer
    python -m recipes.speed.explorer --output runs/speed_explorer --sae runs/demo:abstopk

The folder holds random latents: every one fires on both sides and has all of its contexts, which is
the most a folder can hold; its words follow Zipf's law. A Chromium opens it from disk, five times
each with an empty cache:

- first paint: from the start of the navigation to the browser's first-contentful-paint;
- first rows: from the same start to the first rows of the table, with which the page can be used;
- search: from the press of Enter to the rows of latents that fire on a word;
- a latent's page: from the change of the address to its contexts.

With `--sae`, the build of that SAE's explorer on its own model: seconds and memory beyond the
forward passes and the model, on the threads that torch has. The machine may have other work, so
processor time stands beside the wall clock's.

`results/explorer.json` holds the numbers and `report/explorer.csv` what is asked of them; a second
run into the same directory replaces both, but keeps a build's numbers if it times none.
"""

import os
import platform
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from recipes.common.arguments import Parser, command, parse
from recipes.speed.synthetic_explorer import Sizes, write_synthetic
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.evaluation.placement import activations, placement
from sae_lens_bipolar.explorer import ExplorerConfig, build
from sae_lens_bipolar.explorer.build import corpus
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.files.redaction import without_secrets
from sae_lens_bipolar.inputs.models import load_model
from sae_lens_bipolar.runs.sources import find_saes

MEBIBYTE = 1 << 20
BUDGETS = {
    "folder_mb": 150.0,
    "first_paint_seconds": 2.0,
    "search_seconds": 0.1,
    "latent_page_seconds": 0.3,
    "build_seconds_beyond_forward": 180.0,
    "build_mib_over_model": 2048.0,
}
_COLUMNS = ("quantity", "measured", "at_most", "holds")
_READY = "document.querySelectorAll('tr[data-latent]').length > 20"

_PAINTED = """new Promise((done) => {
  const look = () => {
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    if (paint) done(paint.startTime / 1000);
    else setTimeout(look, 1);
  };
  look();
})"""
# Notes the second, from the start of the navigation, at which the first rows are there.
_WATCH = f"""(() => {{
  const look = (done) => {{
    if ({_READY}) done(performance.now() / 1000);
    else setTimeout(look, 1, done);
  }};
  window.readyAt = new Promise(look);
}})()"""


def parser() -> Parser:
    """The options."""
    made = command("speed.explorer", __doc__)
    made.add_argument("--output", type=Path, required=True, help="run directory")
    made.add_argument("--latents", type=int, default=100_000, help="of the synthetic folder")
    made.add_argument("--repeats", type=int, default=5, help="times that the page is opened")
    made.add_argument("--sae", help="RUN:NAME or checkpoint whose explorer is built, timed")
    made.add_argument("--tokens", type=int, default=192_000, help="of its text")
    made.add_argument("--no-browser", action="store_true", help="only the folder's size")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print.

    Raises:
        ConfigError: if the output is not ours, or there is no SAE at `--sae`.
    """
    options = parse(parser(), arguments)
    claim_output(options.output)
    file = options.output / "results/explorer.json"
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    if options.sae:  # first: the peak of memory is the process's
        found["build"] = time_build(options.sae, options.tokens, options.output / "build")
        write_json(file, found)
    folder = options.output / "site"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    write_synthetic(folder, Sizes(latents=options.latents))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found["synthetic"] = {
        "latents": options.latents,
        "folder_mb": size / 1e6,
        "written_in_seconds": time.perf_counter() - start,
    }
    if not options.no_browser:
        found["synthetic"] |= time_page(folder, options.latents, options.repeats)
    found["budgets"] = BUDGETS
    write_json(file, found)
    write_text(options.output / CONFIG_FILE, yaml.safe_dump(_settings(options)))
    write_json(options.output / ENVIRONMENT_FILE, _environment(options.command))
    rows = [*_rows(found)]
    table = "".join(",".join(map(str, row)) + "\n" for row in (_COLUMNS, *rows))
    write_text(options.output / "report/explorer.csv", table)
    for name, value, most, holds in rows:
        print(f"{name:32} {value:10.3f}  at most {most:g}: {'yes' if holds else 'NO'}")


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    """What is asked of the numbers: name, measured, at most, whether it holds."""
    measured = found.get("build", {}) | found["synthetic"]
    for name, most in found["budgets"].items():
        if name in measured:
            yield name, round(measured[name], 4), most, measured[name] <= most


def time_page(folder: Path, latents: int, repeats: int) -> dict[str, Any]:
    """Medians of the three times over `repeats` fresh browsers' pages.

    Raises:
        ConfigError: if playwright or a Chromium is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise ConfigError("the page is timed with playwright: pip install playwright") from error
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    names = ("first_paint", "first_rows", "search", "latent_page")
    times: dict[str, list[float]] = {name: [] for name in names}
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            raise ConfigError(f"no Chromium: {str(error).splitlines()[0]}") from error
        version = browser.version
        for number in range(repeats):
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.add_init_script(_WATCH)
            page.goto((folder.resolve() / "index.html").as_uri(), wait_until="commit")
            times["first_rows"].append(page.evaluate("window.readyAt"))
            times["first_paint"].append(page.evaluate(_PAINTED))
            page.fill("#search", f" word{number}")
            page.wait_for_timeout(1_000)  # what is suggested while typing is not what is timed
            done = "document.querySelector('.note .token') && " + _READY
            press = "document.querySelector('form.search').requestSubmit()"
            times["search"].append(_since(page, press, done))
            latent = (7919 * (number + 1)) % latents
            go = f"location.hash = '#latent/synthetic/{latent}'"
            shown = f"document.querySelector('h1')?.textContent.includes('{latent}') && "
            shown += "document.querySelectorAll('.context').length > 3"
            times["latent_page"].append(_since(page, go, shown))
            page.close()
        browser.close()
    medians = {f"{key}_seconds": statistics.median(row) for key, row in times.items()}
    load = os.getloadavg()[0]  # of the last minute, the page's own included
    return {**medians, "all_seconds": times, "load_average": load, "chromium": version}


def _since(page: Any, action: str, done: str) -> float:
    """Seconds from an action until a condition holds, asked every millisecond."""
    return page.evaluate(
        f"""() => new Promise((resolve) => {{
          const start = performance.now();
          {action};
          const look = () => {{
            if ({done}) resolve((performance.now() - start) / 1000);
            else setTimeout(look, 1);
          }};
          look();
        }})"""
    )


def time_build(given: str, tokens: int, output: Path) -> dict[str, Any]:
    """Build an SAE's explorer, and run the same text through the model alone."""
    run, _, name = given.rpartition(":")
    sources = [one for one in find_saes([run or given]) if not run or one.run_name == name]
    if len(sources) != 1:
        raise ConfigError(f"--sae={given} names {len(sources)} SAEs: give one, as RUN:NAME")
    shutil.rmtree(output, ignore_errors=True)
    sae = sources[0].load()
    model = load_model(str(sae.cfg.metadata.model_name))
    config = ExplorerConfig(tokens=tokens)
    rows = corpus(model, config)
    hook = placement(sae).hook_name
    activations(model, rows[:8], hook)  # what a first pass allocates belongs to the model
    before = _peak_mib()
    wall, processor = _timed(lambda: build(sources, model, config, output, rows))
    peak = _peak_mib() - before
    step = 16

    def forward() -> None:
        for start in range(0, len(rows), step):
            activations(model, rows[start : start + step], hook)

    with torch.no_grad():
        forward_wall, forward_processor = _timed(forward)
    return {
        "sae": name or sources[0].run_name,
        "d_sae": sae.cfg.d_sae,
        "tokens": rows.numel(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],  # of the last minute
        "build_seconds": wall,
        "build_processor_seconds": processor,
        "forward_seconds": forward_wall,
        "forward_processor_seconds": forward_processor,
        "build_seconds_beyond_forward": wall - forward_wall,
        "build_processor_seconds_beyond_forward": processor - forward_processor,
        "build_mib_over_model": peak,
        "folder_mb": sum(p.stat().st_size for p in output.rglob("*") if p.is_file()) / 1e6,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _settings(options: Any) -> dict[str, Any]:
    names = ("latents", "repeats", "tokens", "no_browser")
    sae = None if options.sae is None else without_secrets(options.sae.rpartition("/")[-1])
    return {"sae": sae, **{name: getattr(options, name) for name in names}}


def _environment(line: str) -> dict[str, Any]:
    packages = {"torch": torch.__version__, "numpy": np.__version__}
    return {"command": line, "python": platform.python_version(), "packages": packages}


if __name__ == "__main__":
    main()
