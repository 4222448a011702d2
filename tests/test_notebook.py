"""The notebook runs from its first cell to its last, and says what the quickstart page says."""

from pathlib import Path

import pytest

from tests.pages import DOCS, ROOT, blocks, read

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_the_notebook_holds_the_quickstart() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    page = [block.text.strip() for block in blocks(read(DOCS / "quickstart.md"))]
    assert [source for source in cells if source in page] == page
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert (tmp_path / "my_run/publish/README.md").is_file()
