"""Tables and figures of smaller stacks, by hand and from the committed runs."""

import itertools
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.runs import COLUMNS, placed, read_run

sys.path.insert(0, str(ROOT / "results"))
from report import compression


@pytest.fixture(scope="module")
def mixed8():
    (folder,) = placed("results/runs").glob("06_compression-mixed8-minilm-compression-s42-*")
    return read_run(folder)


@pytest.fixture(scope="module")
def hard5():
    (folder,) = placed("results/runs").glob("06_compression-hard5-minilm-compression-s42-*")
    return read_run(folder)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


UNITS = {"frames": "frames", "adapters": "adapters"}
UNITS |= {"total_bytes": "bytes", "adapter_bytes": "bytes"}


def compression_rows():
    """The full stack, one anchor and the rule, two tasks, two seeds."""
    rows = []
    whole = {"frames": (8, 4), "total_bytes": (200, 100), "adapter_bytes": (160, 80)}
    whole |= {"adapters": (8, 4), "routed": (0.75, 0.76)}
    tasks = {"imdb": (0.7, 0.9), "agnews": (0.8, 0.62)}
    for seed, up in ((42, 0.0), (123, 0.02)):
        same = dict.fromkeys(COLUMNS, "") | {"model": "minilm", "preset": "mixed8", "n": 1}
        same |= {"seed": seed, "run_id": f"r{seed}", "method": "compression", "unit": "fraction"}
        for k, split in enumerate(("full", "published anchor", "rule: online")):
            values = {metric: pair[min(k, 1)] for metric, pair in whole.items()}
            values["routed"] += up * k
            found = [("", metric, value) for metric, value in values.items()]
            found += [(task, "routed", pair[min(k, 1)]) for task, pair in tasks.items()]
            for task, metric, value in found:
                columns = {"metric": metric, "unit": UNITS.get(metric, "fraction")}
                rows.append(same | columns | {"split": split, "eval_task": task, "value": value})
        for metric, value in (("loss", 0.1), ("task_loss", 0.4), ("loss_by_id", 0.05)):
            columns = {"split": "anchor without qqp", "metric": metric, "value": value + up}
            rows.append(same | columns)
    return pd.DataFrame(rows, columns=COLUMNS)


# ------------------------------------------------------------------ tables by hand


def test_compression_table_by_hand():
    table = compression.compression_table(compression_rows())
    assert table.index.names == ["who", "way", "seed"]
    ours = table.loc["measured here", "one anchor, published"]
    assert ours.loc["42"].tolist() == ["8", "4", "75.0", "76.0", "+1.0", "-50.0"]
    assert ours.loc["mean"].tolist() == [""] * 4 + ["+2.0 [+1.0, +3.0]", ""]
    theirs = table.loc["published", "one anchor, published"]
    assert theirs.loc["123"].tolist() == ["8", "4", "80.8", "82.2", "+1.5", "-50.0"]
    assert list(dict.fromkeys(table.loc["measured here"].index.get_level_values("way"))) == [
        "one anchor, published",
        "rule, online",
    ]
    assert table.columns.name == "mean [range of 2 seeds]"


def test_boundary_table_by_hand():
    table = compression.boundary_table(compression_rows())
    (row,) = table.to_dict("records")
    assert row["published: all tasks"] == "0.4, 2.0"
    assert row["published: its own task"] == "18.8, 27.3"
    assert row["all tasks"] == "11.0 [10.0, 12.0]"
    assert row["its own task"] == "41.0 [40.0, 42.0]"
    assert table.columns.name.startswith("points lost")
    without = compression_rows()
    without = without[~without["split"].str.startswith("anchor")]
    assert not len(compression.boundary_table(without))


def test_shrink_tables_by_hand():
    shrunk = compression.shrink_table(compression_rows())
    anchor = shrunk.loc["published anchor"]
    assert anchor["bytes"] == 0.5 and anchor["change"] == pytest.approx(0.02)
    assert [anchor["low"], anchor["high"]] == pytest.approx([0.01, 0.03])
    assert anchor["worst"] == pytest.approx(-0.18) and anchor["seeds"] == 2
    assert list(shrunk.index) == ["full", "published anchor", "rule: online"]
    cells = compression.shrink_cells(shrunk)
    assert cells.loc["published anchor", "bytes on disk (%)"] == "50.0"
    assert cells.loc["published anchor", "change (pp)"] == "+2.0 [+1.0, +3.0]"
    assert cells.loc["published anchor", "worst task (pp)"] == "-18.0"
    assert cells.columns.name == "mean [range of 2 seeds]"
    one = compression_rows()
    one = compression.shrink_cells(compression.shrink_table(one[one["seed"].eq(42)]))
    assert one.loc["published anchor", "change (pp)"] == "+1.0" and one.columns.name is None


@pytest.mark.parametrize("make", ["compression_table", "boundary_table", "shrink_table"])
@pytest.mark.parametrize(
    "column, mine, other",
    [("model", "minilm", "Llama-3.2-1B"), ("budget", "n_eval 16", "n_eval 64")],
)
def test_tables_refuse_two_models_and_two_budgets(make, column, mine, other):
    numbers = compression_rows().assign(budget="lr None, n_eval 16")
    second = numbers.assign(run_id=numbers["run_id"] + "b", value=0.0)
    second[column] = numbers[column].str.replace(mine, other)
    getattr(compression, make)(numbers)
    with pytest.raises(SkillStackError, match=f"one {column}, got {mine} and {other}$"):
        getattr(compression, make)(pd.concat([numbers, second]))


def decisions():
    rows = [
        {"rule": "online", "kind": "keep", "frames": "imdb", "reason": "no other has these labels"},
        {"rule": "online", "kind": "reuse", "frames": "imdb", "by": "sst2", "accepted": True},
        {"rule": "at the end", "kind": "keep", "frames": "yelp", "by": "imdb", "accepted": False},
        {"rule": "at the end", "kind": "merge", "frames": "imdb, sst2", "by": "svd"},
    ]
    rows[1] |= {"tasks": 2.0, "loss_pp": 0.1, "upper_pp": 0.98}
    rows[2] |= {"tasks": 3.0, "loss_pp": 5.25, "upper_pp": 6.8}
    rows[3] |= {"tasks": 3.0, "loss_pp": -0.4, "upper_pp": 0.63}
    return pd.DataFrame(rows)


def test_decisions_are_words_and_whole_numbers():
    table = compression.decided(decisions())
    assert table["change"].tolist() == [
        "imdb alone",
        "imdb answered by sst2",
        "yelp answered by imdb",
        "imdb and sst2 merged",
    ]
    assert table["verdict"].tolist() == [
        "kept: no other has these labels",
        "made",
        "refused",
        "made",
    ]
    assert table["tasks so far"].tolist() == ["", "2", "3", "3"]
    assert table["at most (pp)"].tolist() == ["", "1.0", "6.8", "0.6"]
    assert compression.tried(decisions())["frames"].tolist() == ["imdb", "yelp", "imdb, sst2"]
    bare = decisions()[["rule", "kind", "frames", "reason"]]  # nothing was tried
    assert not len(compression.tried(bare))
    assert set(compression.decided(bare)["at most (pp)"]) == {""}


# ------------------------------------------------------------------ the front


def test_the_pareto_front_by_hand():
    cost, gain = pd.Series([1.0, 2.0, 2.0, 3.0, 1.0]), pd.Series([5.0, 5.0, 7.0, 6.0, 5.0])
    assert compression.pareto(cost, gain).tolist() == [True, False, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9))
def test_what_is_on_the_front_is_beaten_by_none_and_all_else_is(points):
    cost, gain = np.array(points).T
    front = compression.pareto(pd.Series(cost), pd.Series(gain))
    for i, (c, g) in enumerate(points):
        beaten = any(
            (a <= c and b >= g) and (a < c or b > g) for j, (a, b) in enumerate(points) if j != i
        )
        assert front[i] == (not beaten)


# ------------------------------------------------------------------ figures


def texts(figure):
    figure.canvas.draw()
    found = figure.findobj(matplotlib.text.Text)
    return [t for t in found if t.get_visible() and t.get_text().strip()]


def readable(drawn):
    """The figure of a `Drawn`, with a title and no small or cut letters."""
    figure = getattr(drawn.figure, "figure", drawn.figure)
    assert min(text.get_fontsize() for text in texts(figure)) >= plotting.SMALL
    assert figure.get_size_inches()[0] <= plotting.WIDEST
    assert any(ax.get_title("left") for ax in figure.axes)
    assert drawn.alt and drawn.look
    return figure


def test_size_names_every_way_and_no_name_covers_another(mixed8):
    drawn = compression.size(mixed8)
    figure = readable(drawn)
    above, below = figure.axes
    figure.canvas.draw()
    names = [line for note in above.texts for line in note.get_text().split("\n")]
    rows = [tick.get_text() for tick in below.get_yticklabels()]
    table = compression.shrink_table(mixed8.alike())
    best = rows[0]  # of the ways of about the same size the best is in both panels
    assert sorted([*names, *rows]) == sorted([*map(compression.name, table.index), best])
    boxes = [note.get_window_extent() for note in above.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    rule = table.loc["rule: at the end"]
    assert f"leaves {rule['frames']:.0f} of 8 frames" in drawn.answer
    assert f"{100 * rule['change']:+.1f} [{100 * rule['low']:+.1f}" in drawn.answer
    least = compression.name(table["bytes"].idxmin())
    assert f"smallest stack of all is ‘{least}’" in drawn.answer
    assert sorted(drawn.seeds) == [7, 42, 123]


def test_size_without_a_family_names_equal_ways_together(hard5):
    drawn = compression.size(hard5)
    (ax,) = readable(drawn).axes
    assert "full stack\nrule, online\nrule, at the end" in [t.get_text() for t in ax.texts]
    assert "lowest and highest seed" not in drawn.look  # it is one
    assert "leaves 5 of 5 frames and 100 % of the bytes" in drawn.answer


def test_size_by_hand():
    """The published anchor is as small as the rule and worse."""
    run = type("Run", (), {"alike": lambda self: compression_rows().assign(budget="")})()
    drawn = compression.size(run)
    assert "‘rule, online’ (50 % of the bytes, +3.0 [+1.0, +5.0] points)" in drawn.answer
    (ax,) = drawn.figure.axes
    line = ax.lines[0].get_xydata()
    np.testing.assert_allclose(line, [[50.0, 3.0]])  # it beats the full stack too


def test_change_is_the_mean_over_seeds(mixed8):
    drawn = compression.change(mixed8)
    ax = readable(drawn).axes[0]
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    columns = [tick.get_text() for tick in ax.get_xticklabels()]
    metrics = mixed8.alike()
    metrics = metrics[metrics["metric"].eq("routed") & metrics["eval_task"].eq("yelp")]
    value = metrics.groupby("split")["value"].mean()
    drawn_value = ax.images[0].get_array()[rows.index("merge, TIES"), columns.index("yelp")]
    assert drawn_value == pytest.approx(100 * (value["merge: ties"] - value["full"]))
    assert ax.images[0].get_clim()[0] == -ax.images[0].get_clim()[1]
    means = ax.images[0].get_array()[:, columns.index("mean")]
    assert drawn.answer.startswith(f"{(means > -1e-6).sum()} of {len(rows)} ways")


def test_boundary_stands_beside_the_published_losses(mixed8):
    drawn = compression.boundary(mixed8)
    own, mean = readable(drawn).axes
    assert [t.get_text() for t in own.get_yticklabels()] == [
        "sst2 (anchor)",
        "qqp",
        "boolq",
        "agnews",
    ]
    assert own.get_xlim() == mean.get_xlim()
    lines = {line.get_label(): line.get_xdata() for line in own.lines}
    assert lines["published"][1] == pytest.approx((18.8 + 27.3) / 2)
    names = lines["by label name"]
    assert f"{min(names):.0f} to {max(names):.0f} points on its own task, 5 to 45" in drawn.answer


def test_family_is_a_mean_over_seeds_with_one_row_a_frame(mixed8):
    drawn = compression.family(mixed8)
    one, other = readable(drawn).axes
    names = [tick.get_text() for tick in one.get_yticklabels()]
    folders = placed("results/runs").glob("06_compression-mixed8-*")
    tables = [pd.read_csv(folder / "transfer.csv", index_col=0) for folder in folders]
    expected = 100 * sum(table.loc["imdb", "yelp"] for table in tables) / len(tables)
    assert one.images[0].get_array()[0, names.index("yelp")] == pytest.approx(expected)
    np.testing.assert_allclose(other.images[0].get_array().sum(axis=1), 100)
    best = 100 * (sum(tables) / len(tables)).mean(axis=1)
    assert f"the frame {best.idxmax()} is best ({best.max():.0f} %" in drawn.answer


def test_rule_shows_made_and_refused_changes_and_the_bound(mixed8):
    drawn = compression.rule(mixed8)
    online, end = readable(drawn).axes
    words = [tick.get_text() for tick in online.get_yticklabels()]
    tried = compression.tried(mixed8.read("decisions.csv"))
    tried = tried[tried["rule"].eq("online")]
    assert len(words) == len(tried) + 1
    assert "imdb answered by sst2: loss 0.1, at most 1.0" in words
    made = tried["kind"].ne("keep").sum()
    assert f"Online, {made} changes are made and {len(tried) - made} refused" in drawn.answer
    bars = {c.get_label(): [bar.get_width() for bar in c] for c in online.containers}
    assert bars["refused"] == pytest.approx(tried.loc[tried["kind"].eq("keep"), "loss_pp"].tolist())
    change = 100 * (mixed8.value("routed", split="rule: online", router="hybrid_chain")
                    - mixed8.value("routed", split="full", router="hybrid_chain"))  # fmt: skip
    assert bars["all changes made, on evaluation rows"] == pytest.approx([-change])
    assert f"the accuracy changes by {change:+.1f}" in drawn.answer
    assert "bound: 1" in end.get_legend_handles_labels()[1]


def test_told_says_what_was_not_touched_or_that_nothing_changed(mixed8, hard5):
    (same,) = compression.told(mixed8)
    assert same.endswith("frames that the rule left alone have the same logits, to the last bit.")
    assert compression.told(hard5)[-1] == (
        "The rule changed nothing: no other frame has these labels."
    )
