"""One bar for one long step."""

from functools import partial

import nbformat
import papermill
import pytest

from skillstack_helpers import progress as module
from skillstack_helpers.progress import progress, silent

CELLS = [
    """
import time
from skillstack_helpers.progress import progress
for letter in progress("abc", "letters", "letter"):
    for _ in progress(range(4), f"step of {letter}"):
        time.sleep(0.12)
""",
    """
for k in progress(range(3), "interrupted"):
    time.sleep(0.7)
    if k == 2:
        break
""",
    """
for _ in progress(range(3), "after it"):
    time.sleep(0.5)
""",
]


@pytest.fixture
def at_once(monkeypatch):
    """Bars, which the other tests switch off, and without their delay."""
    monkeypatch.setattr(module, "tqdm", partial(module.tqdm, disable=False, mininterval=0))
    monkeypatch.setattr(module, "DELAY", 0)


def test_inner_loops_speak_in_the_bar_of_the_outer_one(at_once, capsys):
    for item in progress(["imdb", "yelp"], "stream", "task"):
        list(progress(range(3), f"train {item}"))
    lines = capsys.readouterr().err.split("\r")
    assert all(line.startswith("stream") for line in lines if line.strip())
    assert "2/2" in lines[-1]


def test_a_single_item_leaves_the_bar_to_what_runs_inside(at_once, capsys):
    for _ in progress(["imdb"], "stream"):
        list(progress(range(3), "train imdb"))
    assert "train imdb: 100%" in capsys.readouterr().err


def test_short_steps_silent_ones_and_unknown_lengths(capsys):
    assert list(progress(range(3), "short")) == [0, 1, 2]
    with silent():
        assert list(progress(iter("ab"), "no length")) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_an_error_inside_leaves_no_bar_behind(at_once, capsys):
    with pytest.raises(KeyError), silent():
        raise KeyError
    for _ in progress(range(2), "next"):
        pass
    assert "next" in capsys.readouterr().err


def test_a_saved_notebook_keeps_one_line_a_step_without_widgets(tmp_path, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": ""}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    ran = papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb",
                                     progress_bar=False)  # fmt: skip
    shown = [[o["data"]["text/plain"] for o in cell.outputs] for cell in ran.cells]
    assert [len(outputs) for outputs in shown] == [1, 1, 1]  # nothing nested, nothing on red ground
    assert shown[0][0].startswith("letters: 100%|█") and "3/3" in shown[0][0]
    assert shown[1][0].startswith("interrupted:  67%") and shown[2][0].startswith("after it: 100%")
    assert not any("widgets" in cell.metadata for cell in ran.cells)
