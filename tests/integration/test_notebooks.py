"""The notebooks run, each in a kernel of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from cohorts import ROOT
from nbclient import NotebookClient

#: Seconds for one cell; a whole notebook takes less than that on two cores that are busy otherwise.
LIMIT_S = 300

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")


def run(name: str, folder: Path) -> list[Any]:
    """Run a notebook in a folder; its cells of code, with their outputs."""
    book = nbformat.read(ROOT / "examples" / "notebooks" / name, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "store the notebook without outputs"
    client = NotebookClient(
        book, timeout=LIMIT_S, startup_timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_words_trains_plots_predicts_and_reports(tmp_path: Path) -> None:
    cells = run("words.ipynb", tmp_path)
    table, shown = html_of(cells[1])
    assert "epoch 20 of 20" in table  # the live table, as it was at last
    assert "<th>test top-1 %</th>" in table
    assert "pairs" in shown
    assert "finished" in shown
    assert "image/png" in cells[2].outputs[-1]["data"]
    assert "naturaleza" in html_of(cells[3])[-1]
    assert "model: object:reader" in cells[4].outputs[0]["text"]
    assert html_of(cells[5])[-1].startswith("<iframe")


def test_ensembles_draws_and_orders_the_soft_targets(tmp_path: Path) -> None:
    cells = run("ensembles.ipynb", tmp_path)
    assert "image/png" in cells[1].outputs[-1]["data"]
    losses = dict(line.split() for line in cells[2].outputs[0]["text"].splitlines())
    assert float(losses["min_logit"]) < float(losses["linear"]) < float(losses["naive"])
    assert losses["naive"] == losses["large"]
    assert 0 < int(cells[3].outputs[0]["text"].split("%")[0]) < 100


def html_of(cell: Any) -> list[str]:
    """The outputs of a cell that are HTML."""
    return [each["data"]["text/html"] for each in cell.outputs if "text/html" in each.get("data", {})]
