"""Figures of notebook 09 by hand; their tables are in test_report_generation.py."""

import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import ROOT, rows

from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.tasks import PRESETS, TASKS

sys.path.insert(0, str(ROOT / "results"))
from report import generalization

SEEN = ["imdb", "agnews", "qqp"]  # two labels, four labels, two others
UNSEEN = ["movies", "tweets"]
GROUPS = {"seen": SEEN, "unseen": UNSEEN, "all": [*SEEN, *UNSEEN]}
VALUES = {
    "latest adapter": 0.3,
    "routed stack": 0.6,
    "mixed stack": 0.7,
    "mixed, labels told": 0.75,
}
VALUES |= {"best single frame": 0.5, "oracle": 0.8}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def run_of(monkeypatch):
    """A run of two seeds on tasks of the stack and, if wanted, on unseen ones."""
    monkeypatch.setitem(PRESETS, "mixed8", tuple(SEEN))

    def made(unseen=True, **files):
        groups = GROUPS if unseen else {"seen": SEEN, "all": SEEN}
        tables = []
        for seed, up in ((42, 0.0), (7, 0.1)):
            for split, value in VALUES.items():
                value += up * (split == "routed stack")
                on = {"seed": seed, "run_id": f"r{seed}", "preset": "mixed8", "split": split}
                tables += [rows("g", "accuracy", [value], eval_task=t, **on) for t in groups["all"]]
                for group in groups:  # the best single frame is ahead where it was not trained
                    ahead = 0.4 * (group == "unseen" and split == "best single frame")
                    tables.append(rows("g", f"mean_{group}", [value + ahead], **on))
        metrics = pd.concat(tables)
        mine = metrics[metrics["seed"].eq(42)]

        def value_of(metric, **where):
            found = mine[mine["metric"].eq(metric) & mine["split"].eq(where["split"])]
            return found["value"].item() if len(found) else float("nan")

        config = RunConfig(preset="mixed8")
        labels = {name: task.label_names for name, task in TASKS.items()}
        one = {
            "labels": labels,
            "alike": lambda: metrics,
            "config": config,
            "value": value_of,
            "metrics": mine,
        }
        one["read"] = lambda name, _: files[name[:-4]][0]
        one["read_alike"] = lambda name, _: list(zip((42, 7), files[name[:-4]], strict=True))
        return SimpleNamespace(**one)

    return made


def table(values, index=SEEN):
    return pd.DataFrame(values, index=index, columns=[*SEEN, *UNSEEN][: len(values[0])])


def test_answers_are_grouped_and_say_who_is_ahead_in_how_many_seeds(run_of):
    drawn = generalization.answers(run_of())
    assert drawn.answer == (
        "On tasks of the stack, the routed stack answers 65.0 % correctly, mixed 70.0 % (the "
        "labels told 75.0 %), the latest adapter 30.0 % and the best single frame 50.0 %. On tasks "
        "never trained on, the routed stack answers 65.0 % correctly, mixed 70.0 % (the labels "
        "told 75.0 %), the latest adapter 30.0 % and the best single frame 90.0 %. The "
        "routed stack is ahead of the latest adapter in 2 and 2 of 2 seeds, of the best single "
        "frame in 2 and 0."
    )
    ax = drawn.figure
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == [*SEEN, "mean", *UNSEEN, "mean"]
    assert {text.get_text() for text in ax.texts} == set(generalization.GROUPS.values())
    legend = {text.get_text() for text in ax.get_legend().get_texts()}
    assert legend == {*generalization.WAYS.values(), "chance"}
    marks = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert marks["routed stack"] == pytest.approx([65] * 7)
    assert marks["best single frame"][-1] == pytest.approx(90)
    ends = [s[:, 0] for c in ax.collections for s in c.get_segments() if len(s) == 2]
    assert sum(pair == pytest.approx([60, 70]) for pair in ends) == 7  # of the routed stack
    assert [pair[0] for pair in ends if pair[0] == pair[1] == 25]  # chance of agnews
    assert "Lines" in drawn.look and set(drawn.seeds) == {42, 7}
    (rule,) = [line for line in ax.lines if line.get_label().startswith("_child")]
    assert list(rule.get_ydata()) == [3.5, 3.5]


def test_without_unseen_tasks_there_is_one_group_and_no_rule(run_of):
    grid = table([[0.8, 0, 0], [0, 0.7, 0], [0, 0, 0.6]])
    run = run_of(unseen=False, transfer=[grid, grid], routes=[grid, grid])
    drawn = generalization.answers(run)
    assert "never trained on" not in drawn.answer
    assert not [line for line in drawn.figure.lines if line.get_label().startswith("_child")]
    assert "unseen" not in generalization.transfer(run).answer
    assert "never trained on" not in generalization.routes(run).answer
    assert "no task" in generalization.words_missing(run)


def test_the_grid_is_blank_where_a_frame_has_no_word_and_marks_the_best(run_of):
    one = table([[0.8, 0, 0, 0.7, 0.9], [0, 0.7, 0, 0, 0], [0.3, 0, 0.6, 0, 0]])
    other = table([[0.6, 0, 0, 0.7, 0.9], [0, 0.7, 0, 0, 0], [0.6, 0, 0.6, 0, 0]])
    drawn = generalization.transfer(run_of(transfer=[one, other]))
    seen, unseen = drawn.figure.axes
    assert [t.get_text() for t in seen.texts] == ["70", "70", "45", "60"]
    assert [t.get_text() for t in unseen.texts] == ["70", "90"]
    assert [t.get_text() for t in seen.texts if t.get_fontweight() == "bold"] == ["70", "70", "60"]
    assert len(seen.patches) == 3 and not unseen.patches  # a box for each task's own frame
    assert drawn.answer == (
        "On 0 of 3 tasks of the stack another frame than their own is the best. 1 of 3 frames have "
        "a word for the answers of the unseen tasks; the best one there is imdb with 80.0 %, mean "
        "over tasks."
    )
    assert seen.get_title("left") == "Tasks of the stack: correct (%)"
    ahead = one.assign(imdb=[0.5, 0, 0.9])
    drawn = generalization.transfer(run_of(transfer=[ahead, ahead]))
    assert drawn.answer.startswith(
        "On 1 of 3 tasks of the stack another frame than their own is the best (qqp on imdb)."
    )


def test_texts_sent_to_frames_without_the_words_are_counted(run_of):
    order = [*SEEN, *UNSEEN]
    share = [[1, 0, 0], [0.1, 0.9, 0], [0, 0.2, 0.8], [0.5, 0.5, 0], [0.7, 0.1, 0.2]]
    share = pd.DataFrame(share, index=order, columns=SEEN, dtype=float)
    run = run_of(routes=[share, share])
    drawn = generalization.routes(run)
    assert drawn.answer == (
        "The right frame is picked for 90.0 % of the texts of tasks of the stack, mean over tasks. "
        "Of tasks never trained on, 40.0 % of the texts go to a frame that has no word for the "
        "answer, most on movies (50.0 %, above all to agnews)."
    )
    ax = drawn.figure
    assert [t.get_text() for t in ax.texts[:3]] == ["100", "10", "90"]  # nothing where it is 0
    assert list(ax.lines[0].get_ydata()) == [2.5, 2.5]
    words = generalization.words_missing(run)
    assert "gives away 20.0 points" in words and "40.0 % of the texts" in words
