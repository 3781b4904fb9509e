"""results/REPRODUCED.md by hand."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
from report import claims
from report.claims import Claim, gap, outcome, said

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab.runs import load_runs


@pytest.mark.parametrize(
    ("values", "least", "verdict"),
    [
        (np.arange(1.0, 11.0), 0.0, "reproduced"),
        (np.arange(1.0, 11.0), 5.5, "open"),
        (np.arange(1.0, 11.0), 9.0, "not reproduced"),
        (np.array([5.0, 5.1, 5.2]), 4.0, "reproduced"),
        (np.array([5.0, 5.1, 5.2]), 5.0, "open"),
        (np.array([5.0, 6.0]), 0.0, "open"),  # two values carry no interval
        (np.array([5.0]), 0.0, "open"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(values, least, verdict):
    assert outcome(values, least).verdict == verdict


def test_few_values_have_students_interval():
    found = outcome(np.array([1.0, 2.0, 3.0]), 0.0)
    assert found.mean == 2.0 and found.sees == pytest.approx(2.8 / 3**0.5)
    ends = 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5  # Student's t with 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-4)


ROWS = pd.DataFrame(
    [(1, "a", "x", 0.5), (1, "b", "x", 0.7), (1, "", "x", 0.1), (1, "a", "y", 0.4),
     (1, "b", "y", 0.9), (2, "a", "x", 0.6), (2, "", "z", 0.3)],
    columns=["seed", "eval_task", "method", "value"],
).assign(preset="p")  # fmt: skip


def test_gaps_are_paired_by_seed_and_task():
    found = gap(ROWS, ({"method": "x"}, {"method": "y"}))
    assert found.to_dict() == pytest.approx({(1, "p", "a"): 10.0, (1, "p", "b"): -20.0})
    assert gap(ROWS, ({"method": "z"}, None)).to_dict() == {(2, "p", ""): 30.0}
    streams = pd.concat([ROWS, ROWS.assign(preset="q", value=ROWS["value"] / 2)])
    apart = gap(streams, ({"method": "y", "preset": "p"}, {"method": "y", "preset": "q"}))
    assert apart.to_dict() == pytest.approx({(1, "", "a"): 20.0, (1, "", "b"): 45.0})
    with pytest.raises(SkillStackError, match="two numbers for one seed and task"):
        gap(pd.concat([ROWS, ROWS]), ({"method": "x"}, None))


def test_a_claim_of_which_one_side_was_not_run_is_not_measured():
    runs = load_runs()
    runs = runs[~(runs["model"].eq("gemma3-270m") & runs["method"].eq("joint"))]
    table, _ = claims.table(runs)
    lacks = table.index.str.startswith("hard8, a larger language model:")
    verdicts = table.loc[lacks, "verdict"].set_axis(["forgets", "EWC", "joint"])
    assert verdicts["joint"] == "not measured" and "not measured" not in verdicts[:2].tolist()
    assert "4 were not measured" in claims.figure(runs).answer  # three of methods not built here


def test_published_numbers_are_read_and_not_typed():
    ewc, latest = ({"method": m, "metric": "accuracy"} for m in ("ewc", "latest"))
    assert said(Claim("", "hard8_ewc", (ewc, latest), None)) == "+5.6 (57.9 against 52.3)"
    drop = {"metric": "latest_drop"}
    assert said(Claim("", "hard8_table", (drop, None), None)) == "23.6 to 35.2"
    with pytest.raises(SkillStackError, match="nothing published in 'hard9'"):
        said(Claim("", "hard9", (drop, None), None))


def test_every_claim_stands_on_the_page_and_every_verdict_has_its_runs():
    table, used = claims.table(load_runs())
    assert list(table.index) == [claim.says for claim in claims.CLAIMS]
    measured = table["verdict"].ne("not measured")
    assert table.loc[measured, "here (pp)"].str.match(r"[+-]\d").all()
    assert table.loc[~measured, "why"].ne("").all()
    assert table.loc[table["verdict"].eq("not reproduced"), "why"].ne("").all()
    assert used and all((ROOT / "results" / "runs" / run).is_dir() for run in used)
