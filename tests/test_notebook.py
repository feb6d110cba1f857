"""The notebook of the examples: it runs from its first cell to its last, and shows what it printed when it last did."""

from __future__ import annotations

import copy
import re

import nbformat
import pytest
from nbclient import NotebookClient

from carla_policy_tools.paths import PROJECT

NOTEBOOK = PROJECT / "examples" / "from_artifact_to_drive.ipynb"
PATIENCE_S = 240


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: nbformat.NotebookNode) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def test_notebook_was_run_whole_and_in_order(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2


def test_notebook_shows_nothing_of_who_ran_it(notebook: nbformat.NotebookNode) -> None:
    assert not re.search(r"/home/|/root|/tmp/|@(?!here)\w", printed(notebook))
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_notebook_runs_and_tells_the_same(notebook: nbformat.NotebookNode) -> None:
    again = copy.deepcopy(notebook)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(again, timeout=PATIENCE_S, kernel_name="python3", resources=where).execute()
    text = printed(again)
    assert "same bits: True" in text
    assert "last step: policy - all finite: True" in text
    assert re.search(r"fallback: (late|circuit_open)", text)
    assert "error: v0.1.0 is not promoted" in text
    assert "promoted: v0.3.0; a rollback would go to v0.2.0" in text
    assert text.count("ended with status 0") == 2
