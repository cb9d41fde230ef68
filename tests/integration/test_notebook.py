"""examples/notebook.ipynb runs in a kernel of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from cohorts import ROOT
from nbclient import NotebookClient

#: Seconds for one cell; the whole notebook takes less than that on two cores that are busy otherwise.
LIMIT_S = 300


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_trains_plots_predicts_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    book = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "store the notebook without outputs"
    client = NotebookClient(
        book, timeout=LIMIT_S, startup_timeout=LIMIT_S, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    table, run = html_of(cells[1])
    assert "epoch 20 of 20" in table  # the live table, as it was at last
    assert "<th>test top-1 %</th>" in table
    assert "pairs" in run
    assert "finished" in run
    assert "image/png" in cells[2].outputs[-1]["data"]
    assert "naturaleza" in html_of(cells[3])[-1]
    assert "model: object:reader" in cells[4].outputs[0]["text"]
    assert html_of(cells[5])[-1].startswith("<iframe")


def html_of(cell: Any) -> list[str]:
    """The outputs of a cell that are HTML."""
    return [each["data"]["text/html"] for each in cell.outputs if "text/html" in each.get("data", {})]
