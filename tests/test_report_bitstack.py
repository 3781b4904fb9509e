"""Tables and figures of BitStack, by hand and from the committed runs."""

import re
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import ROOT
from test_report_baselines import method_rows, run_of

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.runs import load_runs, placed, read_run

sys.path.insert(0, str(ROOT / "results"))
from report import base, bitstack

LOST = "points lost"


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def bitstack_rows(preset="bitstack5"):
    tables = []
    drops = {"baseline": 0.2, "bitstack_0.10": 0.1, "bitstack_0.20": 0.14, "ewc": 0.01}
    for method, drop in (drops | {"frames": 0.0}).items():
        for seed, up in ((1, 0.0), (2, 0.02 * (drop > 0.05))):
            values = {("final_drop", "", ""): drop + up, ("acc", "", ""): 0.6 - drop}
            values |= {("learned", "", ""): 0.6, ("first_task", "", ""): 0.7}
            for task, value in (("imdb", 0.7 - drop), ("agnews", 0.8)):
                values[("accuracy", "agnews", task)] = value
            table = method_rows(method, values, seed, preset)
            size = {"frames": 1e6, "ewc": 2e6, "baseline": 8e6}.get(method, 9e6)
            size = method_rows(method, {("stored_bytes", "", ""): size}, seed, preset)
            table = pd.concat([table, size.assign(unit="bytes")])
            if "bitstack" in method:
                locked = {("locked_pct", "imdb", ""): 3.0, ("locked_pct", "yahoo", ""): 6.0}
                locked = method_rows(method, locked, seed, preset).assign(unit="%")
                table = pd.concat([table, locked])
            tables.append(table)
    return pd.concat(tables)


# ------------------------------------------------------------------ by hand


def test_bitstack_table_by_hand():
    table = bitstack.bitstack_table(bitstack_rows())
    assert table.loc[("measured here", "baseline"), LOST] == "21.0 [20.0, 22.0]"
    ours = table.loc["measured here", "bitstack_0.10"]
    assert ours["locked (%)"] == "6.0 [6.0, 6.0]"  # the last task's
    assert table.loc[("published: gpt2", "baseline"), LOST] == "14.5"
    assert table.loc[("published: gpt2", "bitstack_0.12"), "first task at the end (%)"] == "73.2"
    assert not table.isna().any().any()


def test_the_curve_has_means_ends_and_the_published_points():
    curve = bitstack.curve(bitstack_rows())
    lost = curve[curve["metric"].eq("final_drop")].set_index(["method", "sparsity"])
    ours = lost.loc["BitStack", 0.1][["percent", "low", "high"]]
    assert ours.tolist() == pytest.approx([11, 10, 12])
    assert list(lost.loc["BitStack"].index) == [0.0, 0.1, 0.2]  # 0 is full fine-tuning
    published = lost.loc["published"]
    assert published["percent"].to_dict() == {0.0: 14.5, 0.1: 5.5, 0.12: 3.8}
    assert published["low"].isna().all()
    assert set(curve["metric"]) == set(bitstack.PANELS)
    assert not (bitstack.curve(bitstack_rows("two_task"))["method"] == "published").any()


@pytest.mark.parametrize("make", [bitstack.bitstack_table, bitstack.curve])
@pytest.mark.parametrize("column", ["model", "budget", "run"])
def test_two_models_two_budgets_and_two_runs_of_a_seed_are_never_averaged(make, column):
    numbers = bitstack_rows().assign(budget="n_eval 16")
    second = numbers.assign(run_id=numbers["run_id"] + "b", value=0.0)
    other = {"model": {"model": "gpt2"}, "budget": {"budget": "n_eval 64"}, "run": {}}
    words = {"model": "minilm and gpt2", "budget": "n_eval 16 and n_eval 64"}
    with pytest.raises(SkillStackError, match=words.get(column, "one run of a seed, got")):
        make(pd.concat([numbers, second.assign(**other[column])]))


def test_the_sparsity_figure_has_frames_and_ewc_as_lines_and_axes_from_zero():
    drawn = bitstack.sparsity(run_of(bitstack_rows(), "bitstack5"))
    assert drawn.answer == (
        "Full fine-tuning loses 21.0 points on earlier tasks, BitStack 11.0 (sparsity 0.1) to "
        "15.0 (0.2), EWC on a LoRA 1.0 and the saved frames 0.0."
    )
    lost, learned, end = drawn.figure.axes
    names = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert names == ["BitStack", "published", "saved frames", "EWC", "chance"]
    assert learned.get_ylim() == end.get_ylim() == (0, 100) and lost.get_ylim()[0] <= 0
    dashed = [line.get_label() for line in lost.lines if line.get_linestyle() == "--"]
    assert dashed == ["published"] and "GPT-2" in drawn.look
    flat = {line.get_label(): line.get_ydata()[0] for line in end.lines}
    assert flat["saved frames"] == pytest.approx(60) and flat["EWC"] == pytest.approx(59)


def test_without_published_runs_the_figure_says_nothing_of_them():
    drawn = bitstack.sparsity(run_of(bitstack_rows("two_task")))
    names = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert "published" not in names and "Published" not in drawn.look


def test_the_tasks_figure_has_a_mean_column_and_chance():
    drawn = bitstack.tasks(run_of(bitstack_rows("two_task")))
    assert drawn.answer == (
        "At the end the first task, imdb, is between 56.0 and 60.0 % with BitStack, 69.0 % with "
        "EWC and 70.0 % with the saved frames; chance is 50 %."
    )
    ax = drawn.figure
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert rows[0] == "full fine-tuning" and rows[-1] == "chance" and "BitStack 0.10" in rows
    assert [t.get_text() for t in ax.texts[:3]] == ["50.0", "80.0", "65.0"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["imdb", "agnews", "mean"]


def test_the_sizes_are_said_in_megabytes():
    words = bitstack.size(run_of(bitstack_rows()))
    assert "saved frames 1.0 MB, EWC 2.0 MB, BitStack with its model 9.0 MB (1.0 of them" in words


# ------------------------------------------------------------------ from the committed runs


@pytest.mark.parametrize("name", bitstack.TABLES)
def test_tables_of_the_committed_runs_have_at_most_eight_columns(name):
    entry = bitstack.TABLES[name]
    found = load_runs(notebook=entry.notebook, preset=entry.preset, model=entry.model)
    ours = entry.make(found).loc["measured here"]
    assert 1 + ours.shape[1] <= 8
    frames = found[base.meant(found, {"method": "frames", "metric": "acc"})]["value"]
    assert ours.loc["frames", "at the end (%)"].startswith(f"{100 * frames.mean():.1f}")


@pytest.mark.parametrize("name", bitstack.FIGURES)
def test_figures_of_the_committed_runs_have_titles_and_their_numbers(name):
    entry = bitstack.FIGURES[name]
    pattern = f"05_bitstack-{entry.preset}-{entry.model}-{entry.method}-s42-*"
    (folder,) = placed("results/runs").glob(pattern)
    drawn = entry.draw(read_run(folder))
    figure = getattr(drawn.figure, "figure", drawn.figure)
    assert figure.get_size_inches()[0] <= plotting.WIDEST
    assert any(ax.get_title("left") for ax in figure.axes) and len(drawn.seeds) == 3
    assert re.search(r"\d\.\d", drawn.answer) and not re.search(r"\d", drawn.alt)
