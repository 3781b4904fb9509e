"""Figures and tables of notebook 10 by hand."""

import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
from report import reuse


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def run_of(**tables):
    """A run of two seeds; the second one's numbers are those of the first."""
    metrics = tables.pop("metrics", pd.DataFrame(columns=["metric", "split", "value"]))

    def value(metric, **where):
        found = metrics[metrics["metric"].eq(metric) & metrics["split"].eq(where["split"])]
        return found["value"].iloc[0] if len(found) else float("nan")

    return SimpleNamespace(
        read_alike=lambda name: [(42, tables[name[:-4]]), (7, tables[name[:-4]])],
        metrics=metrics,
        value=value,
        method="loop",
        alike=lambda: metrics.assign(method="loop"),
    )


SLIDE = pd.DataFrame(
    {"size": [2, 16], "n": [10, 80], "confidence": [0.6, 0.1], "reused": [1.0, 0.0],
     "false_novel": [0.02, 0.01], "detected": [0.8, np.nan]}
    | {f"{rule}_{which}": [at, {"fixed": 0.9, "adapted": at, "detected": np.nan}[which]]
       for rule, at in (("softmax", 0.05), ("entropy", 0.06), ("margin", 0.1))
       for which in ("fixed", "adapted", "detected")}
)  # fmt: skip
LEFT = pd.DataFrame(
    [("p-value", "a", False, 0.9, 0.3, 0.02, 0.4), ("energy", "a", False, 0.8, 0.4, 0.05, 0.3),
     ("p-value", "b", True, 0.5, 0.9, 0.02, 0.1), ("energy", "b", True, 0.6, 0.8, 0.05, 0.2)],
    columns=["score", "task", "near", "auroc", "fpr95", "false_novel", "detected"],
)  # fmt: skip


def test_the_slide_says_where_reuse_ends():
    drawn = reuse.slide(run_of(slide=SLIDE))
    assert drawn.answer == (
        "The published confidence falls from 60 % with 2 tasks to 10 % with 16; beyond 2 no text "
        "passes 40 %. The p-value calls at most 2.0 % of known texts novel."
    )
    left, right = drawn.figure.axes
    most = next(line for line in left.lines if line.get_label() == "most it could ever be")
    assert most.get_ydata() == pytest.approx([88.08, 33.0], abs=0.01)
    assert {line.get_label() for line in right.lines} == {
        "known texts called novel", "α = 0.05, asked for",
    }  # fmt: skip
    never = reuse.slide(run_of(slide=SLIDE.assign(reused=0.0)))
    assert "; no text passes 40 %." in never.answer and set(never.seeds) == {42, 7}


def test_scores_are_ordered_and_near_tasks_told_apart():
    drawn = reuse.left_out(run_of(left_out=LEFT))
    assert drawn.answer == (
        "On single texts of far tasks p-value tells best (90 % AUROC; of near ones 50 %, which is "
        "no better than guessing)."
    )
    names = [tick.get_text() for tick in drawn.figure.get_yticklabels()]
    assert names == ["p-value", "energy"]
    table = reuse.scores_table(run_of(left_out=LEFT))
    assert table.loc["p-value"].to_list() == ["90.0", "30.0", "40.0", "50.0", "90.0", "10.0", "2.0"]


def test_groups_are_drawn_by_test():
    rows = [
        ("a", n, test, 0.04, 1.0 if n == 16 and test == "together" else 0.1, False)
        for test in ("together", "Simes")
        for n in (1, 16)
    ]
    columns = ["task", "texts", "test", "false_novel", "detected", "near"]
    drawn = reuse.groups(run_of(groups=pd.DataFrame(rows, columns=columns)))
    assert drawn.answer == (
        "16 texts of a far task together are called novel in 100.0 % of draws, of a known one in "
        "4.0 %."
    )
    assert [ax.get_title("left") for ax in drawn.figure.axes] == ["together", "Simes"]


def test_thresholds_that_stay_break():
    drawn = reuse.thresholds(run_of(slide=SLIDE))
    assert drawn.answer == (
        "Kept as set with 2 tasks, a threshold on the largest softmax calls 90 % of known texts "
        "novel with 16 tasks; set anew, 5.0 %. With 2 tasks the margin then finds 10 % of the "
        "texts of unknown tasks, the p-value 80 %."
    )
    kept, _, found = drawn.figure.axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in kept.lines}
    asked = ends.pop("α, what was asked for")
    assert asked == 5 and ends == pytest.approx(
        dict.fromkeys(reuse.RULES.values(), 90) | {"p-value": 1}
    )
    assert {len(line.get_ydata()) for line in found.lines} == {1}  # NaN is no point


def test_drift_is_weighted_by_texts_and_drawn_with_its_price():
    rows = [("gate", 3, 10, 0.1, 0.0, 0.8), ("gate", 4, 30, 0.3, 0.1, 0.7),
            ("gate, root first", 3, 10, 0.0, 0.0, 0.5),
            ("gate, root first", 4, 30, 0.1, 0.0, 0.4),
            ("trunk", 4, 10, 0.5, 0.1, 0.9)]  # fmt: skip
    columns = ["router", "tasks", "n", "moved", "moved_right", "right"]
    run = run_of(drift=pd.DataFrame(rows, columns=columns))
    assert reuse.drift_table(run).loc["gate"].to_list() == ["25.00", "7.50"]
    drawn = reuse.price(run)
    assert drawn.answer == (
        "With the oldest frame first 7.5 % of the texts move when a task is added, and 40.0 % end "
        "at their own frame; of the same router without that rule 25.0 and 70.0 %, of trunk 50.0 "
        "and 90.0 %."
    )


def test_a_bandit_is_drawn_beside_those_who_are_told():
    blocks = pd.DataFrame({"block": [0, 1], "texts": [64, 128], "right": [0.4, 0.6]})
    rows = [("right_answers", way, share) for way, share in  # of two seeds
            (("bandit", 0.6), ("bandit", 0.8), ("gate", 0.8), ("told", 0.9),
             ("any", 0.3))]  # fmt: skip
    metrics = pd.DataFrame(rows, columns=["metric", "split", "value"])
    drawn = reuse.bandit(run_of(bandit=blocks, metrics=metrics))
    assert drawn.answer == (
        "After 128 texts, each answered and marked right or wrong, a bandit sends texts to frames "
        "that answer 70.0 % rightly; the gate, which read whose texts they are, 80.0 %, and told "
        "the task 90.0 %."
    )
    heights = [line.get_ydata()[0] for line in drawn.figure.lines]
    assert heights == pytest.approx([40, 70, 80, 90, 30])


def test_out_of_scope_is_a_sentence_where_there_is_some():
    assert reuse.of_scope(run_of()) == ""
    rows = [("oos_recall", "relative Mahalanobis", 0.1), ("oos_recall", "p-value", 0.3),
            ("oos_recall", "energy", 0.4)]  # fmt: skip
    run = run_of(metrics=pd.DataFrame(rows, columns=["metric", "split", "value"]))
    assert reuse.of_scope(run) == (
        "Of texts out of scope, 40.0 % are noticed where 95 % of the texts in scope pass (energy); "
        "by the p-value 30.0 %."
    )


def test_loops_are_compared_with_the_oracle():
    rows = [("a", 0.7, 0.1, 10, 1, 2e6, "far", "loop"), ("b", 0.5, 0.1, 10, 1, 2e6, "far", "loop"),
            ("a", 0.8, 0.0, 10, 2, 4e6, "far", "oracle"),
            ("b", 0.6, 0.0, 10, 2, 4e6, "far", "oracle")]  # fmt: skip
    columns = ["task", "accuracy", "unanswered", "n", "frames", "bytes", "stream", "policy"]
    run = run_of(loops=pd.DataFrame(rows, columns=columns))
    table = reuse.loops_table(run)
    assert table.loc[("far", "the loop")].to_list() == ["60.0", "10.0", "1.0", "2.0", "10.0"]
    assert table.loc[("far", "oracle"), "regret (pp)"] == "0.0"
    drawn = reuse.loops(run)
    assert drawn.answer == (
        "The loop, by stream: far: 1.0 of 2 frames, 10.0 points behind the oracle."
    )
    (ax,) = drawn.figure.axes
    marks = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines}
    assert marks["the loop"] == (1, pytest.approx(60)) and marks["oracle"][0] == 2


def test_steps_stand_beside_the_published_ones():
    row = {"run_id": "r", "seed": 1, "model": "minilm", "preset": "adaptive3", "eval_task": "",
           "unit": "fraction", "budget": ""}  # fmt: skip
    values = [("ewc_replay", "acc", 0.7), ("ewc_replay", "bwt", -0.02), ("novelty", "acc", 0.1)]
    ours = [row | {"method": m, "metric": k, "value": v} for m, k, v in values]
    table = reuse.steps_table(pd.DataFrame(ours))
    assert table.loc[("measured here", "ewc_replay")].to_list() == ["70.0", "-2.0"]
    assert table.loc[("published: Gemma-2B", "ewc_replay")].to_list() == ["79.3", "4.0"]
    assert table.loc[("published: Gemma-2B", "independent")].to_list() == ["78.0", "0.0"]
    assert len(table) == 3


def test_texts_out_of_scope_stand_beside_tasks_left_out():
    row = {"run_id": "r", "seed": 1, "model": "minilm", "preset": "clinc10", "budget": "",
           "unit": "fraction", "eval_task": ""}  # fmt: skip
    values = [("p-value", "oos_recall", 0.3), ("p-value", "auroc", 0.8), ("a", "auroc", 0.1),
              ("p-value", "false_novel", 0.02)]  # fmt: skip
    rows = [row | {"split": s, "metric": m, "value": v} for s, m, v in values]
    table = reuse.scope_table(pd.DataFrame(rows))
    ours, theirs = table.iloc[0], table.iloc[1]
    assert ours.name == ("measured here", "p-value") and len(table) == 2
    assert ours.to_list() == ["30.0", "", "80.0", "2.0"] and theirs.to_list()[1] == "94.2"
