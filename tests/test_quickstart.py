"""examples/quickstart.ipynb runs from its first cell to its last, and is kept without what it printed."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
SMALL = "epochs, train_images = 2, 64"  # in place of the cell that is tagged so


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert settings.source.startswith("epochs, train_images = ")
    settings.source = SMALL
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/markdown"} <= shown
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("'probability': ") == 6
    assert (tmp_path / "quickstart" / "exported" / "model.safetensors").exists()
