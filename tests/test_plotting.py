from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from skillstack_helpers.lab import plotting

TASKS = ["imdb", "agnews", "qqp"]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def numbers(ax):
    return [text.get_text() for text in ax.texts]


def title(ax):
    return ax.get_title("left")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ------------------------------------------------------------------ heat maps


def test_accuracy_matrix_shows_percent_above_chance_and_what_was_lost_since():
    acc = [[0.5, np.nan, np.nan], [0.25, 1.0, np.nan], [0, 0.9, 0.7]]
    acc = pd.DataFrame(acc, index=TASKS, columns=TASKS)
    chance = pd.Series([0.5, 0.25, 0.5], TASKS)
    one, lost = plotting.accuracy_matrix(acc, chance).axes
    assert numbers(one) == ["50", "25", "100", "0", "90", "70"]
    assert numbers(lost) == ["-25", "-50", "-10"]  # the diagonal is where it was learned
    far = one.images[0].get_array()
    assert far[0][0] == 0 and far[1][1] == 100 and far[2][2] == pytest.approx(40)
    assert [t.get_text() for t in one.get_yticklabels()] == TASKS
    assert "%" in title(one) and one.get_xlabel() and one.get_ylabel()


def test_a_long_stream_has_its_panels_one_above_the_other():
    acc = pd.DataFrame(np.tril(np.ones((12, 12))))
    one, lost = plotting.accuracy_matrix(acc).axes
    assert one.get_position().y0 > lost.get_position().y1
    assert one.figure.get_size_inches()[0] <= plotting.WIDEST


def test_confusion_shows_the_share_of_the_row_and_leaves_nothing_empty():
    counts = pd.DataFrame([[9, 1, 0], [0, 10, 0], [2, 3, 5]], index=TASKS, columns=TASKS)
    ax = plotting.confusion(counts)
    assert numbers(ax) == ["90", "10", "100", "20", "30", "50"]
    assert ax.images[0].get_array()[0].tolist() == [90, 10, 0]
    ax = plotting.confusion(counts, xlabel="answer", ylabel="label", title="What was answered")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("answer", "label")
    assert title(ax) == "What was answered"


def test_grid_shows_percent_or_signed_differences():
    table = pd.DataFrame({"normal": [0.9, 0.8], "rewritten": [0.5, 0.25]}, index=["a", "b"])
    ax = plotting.grid(table, "a title")
    assert numbers(ax) == ["90.0", "50.0", "80.0", "25.0"] and title(ax) == "a title"
    table = pd.DataFrame({"x": [0.01, -0.2]}, index=["a", "b"])
    ax = plotting.grid(table, "a title", unit="points", span=20)
    assert numbers(ax) == ["+1.0", "-20.0"]
    assert [text.get_color() for text in ax.texts] == ["black", "white"]
    assert ax.figure.axes[-1].get_ylabel() == "points"


def test_task_grid_has_a_mean_column_and_a_line_for_chance():
    table = pd.DataFrame({"imdb": [0.75, 0.5], "agnews": [0.25, 1.0]}, index=["a", "b"])
    ax = plotting.task_grid(table, pd.Series({"imdb": 0.5, "agnews": 0.25}), "a title")
    assert numbers(ax) == ["75.0", "25.0", "50.0", "50.0", "100.0", "75.0", "50.0", "25.0", "37.5"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "chance"]
    far = ax.images[0].get_array()  # of the way from chance to 100 %
    assert far.tolist() == [[50, 0, 25], [0, 100, 50], [0, 0, 0]]


def test_layer_figure_starts_at_zero_unless_there_are_negative_values():
    norms = pd.DataFrame({"query": [0.5, 1.0], "value": [0.2, 0.4]})
    ax = plotting.layer_figure(norms, "What imdb moved")
    assert ax.images[0].get_clim() == (0, 1) and numbers(ax) == []
    assert (title(ax), ax.get_ylabel()) == ("What imdb moved", "layer")
    cosines = plotting.layer_figure(norms - 0.5, "Two frames", label="cosine")
    assert cosines.images[0].get_clim() == (-0.5, 0.5)  # white is zero


# ------------------------------------------------------------------ bars, dots, lines


def test_task_bars_have_the_heights_of_the_table():
    table = pd.DataFrame(
        {"latest adapter": [0.4, 0.5, 0.6], "saved frames": [0.8, 0.9, 0.6],
         "chance": [0.5, 0.25, 0.5]},
        index=TASKS,
    )  # fmt: skip
    ax = plotting.task_bars(table)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([40, 50, 60, 80, 90, 60])
    assert numbers(ax) == ["80", "90", "60"]
    assert set(legend(ax)) == {"latest adapter", "saved frames", "chance"}


def test_beside_published_has_a_panel_for_lower_and_one_for_higher():
    index = [("measured here", "minilm", "42"), ("published", "Llama-3.2-1B", "42")]
    index = pd.MultiIndex.from_tuples(index, names=["who", "model", "seed"])
    table = pd.DataFrame({"a (%)": [80, 85.0], "b (%)": [70.0, np.nan], "depth": [2, 3]}, index)
    better = {"Lower is better": ["b (%)", "not measured"], "Higher is better": ["a (%)"]}
    lower, higher = plotting.beside_published(table, better).axes
    assert lower.lines[0].get_xdata().tolist() == [70] and title(lower) == "Lower is better"
    assert higher.lines[0].get_xdata().tolist() == [80]
    assert legend(lower) == ["measured here: minilm, seed 42", "published: Llama-3.2-1B, seed 42"]
    assert [t.get_text() for t in lower.get_yticklabels()] == ["b (%)"]


def test_dots_are_percent_in_the_order_of_the_table_with_their_intervals():
    table = pd.DataFrame({"told the task": [0.5, np.nan], "routed": [0.25, 1.0]}, index=["a", "b"])
    ax = plotting.dots(table, "accuracy (%)", low=table - 0.1, high=table + 0.1)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"] and ax.yaxis_inverted()
    assert ax.lines[0].get_xdata()[0] == 50
    ends = ax.collections[1].get_segments()[0][:, 0]
    assert ends == pytest.approx([15, 35])
    assert legend(ax) == ["told the task", "routed"]
    assert ax.lines[0].get_ydata()[0] != ax.lines[1].get_ydata()[0]  # nothing hides the other


def test_pairs_have_filled_hollow_and_half_filled_marks_with_intervals_apart():
    table = {"told": [50.0, 60.0], "routed": [45.0, np.nan], "mixed": [47.0, 62.0]}
    table = pd.DataFrame(table, index=["EWC", "replay"])
    ax = plotting.pairs(table, "%", "a title", table - 2, table + 2, (48.0, "mixed stack"))
    assert legend(ax) == ["mixed stack", "told", "routed", "mixed"] and title(ax) == "a title"
    assert ax.lines[0].get_xdata()[0] == 48
    marks = [line for line in ax.lines[1:] if len(line.get_xdata()) and line.get_color() != "white"]
    told, routed, mixed = marks[::2]  # of EWC
    fills = [mark.get_fillstyle() for mark in (told, routed, mixed)]
    assert fills == ["full", "none", "bottom"]
    assert [mark.get_xdata()[0] for mark in (told, routed, mixed)] == [50, 45, 47]
    places = [mark.get_ydata()[0] for mark in (told, routed, mixed)]
    assert places == sorted(set(places))  # y grows downwards, and no mark hides another
    assert ax.collections[1].get_segments()[0][:, 0].tolist() == [43, 47]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["EWC", "replay"] and ax.yaxis_inverted()


def test_a_legend_below_has_every_name_once():
    axes = plotting.panels(1, 2, 8, 3)
    axes[0].plot([1], label="a")
    axes[1].plot([1], label="a")
    axes[1].plot([2], label="b")
    plotting.legend_below(axes)
    (below,) = axes[0].figure.legends
    assert [text.get_text() for text in below.get_texts()] == ["a", "b"]


def test_curves_have_a_line_each_and_the_ticks_of_the_table():
    cost = pd.DataFrame({"router": ["a", "a", "b"], "frames": [2, 4, 2], "s": [1, 2, 3]})
    ax = plotting.curves(cost, "frames", "s", "frames", "seconds", xscale="log")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "4"]
    assert legend(ax) == ["a", "b"] and ax.lines[0].get_ydata().tolist() == [1, 2]
    assert not ax.collections
    band = cost.assign(low=cost["s"] - 1, high=cost["s"] + 1)
    assert len(plotting.curves(band, "frames", "s", "frames", "seconds").collections) == 2


def test_training_curve_shows_every_step_and_a_running_mean():
    ax = plotting.training_curve([4.0, 2.0] * 10, "Training of imdb")
    steps, smooth = ax.lines
    assert steps.get_xdata().tolist() == list(range(1, 21))
    assert smooth.get_ydata()[1:].tolist() == [3.0] * 19
    assert (ax.get_xlabel(), title(ax)) == ("training step", "Training of imdb")


@pytest.mark.parametrize("n", [5, 9, 13, 40])
def test_a_table_with_more_columns_than_colours_or_markers_is_drawn_whole(n):
    names = [f"method {k}" for k in range(n)]
    wide = pd.DataFrame([np.linspace(0, 1, n)] * 2, columns=names)
    ax = plotting.dots(wide, "accuracy (%)")
    assert legend(ax) == names and len(ax.lines) == n
    long = wide.melt(var_name="method", ignore_index=False).reset_index()
    ax = plotting.curves(long, "index", "value", "x", "y", by="method")
    assert legend(ax) == names == [line.get_label() for line in ax.lines]
    assert len(plotting.task_bars(wide).patches) == 2 * n
    index = [("published", name, "42") for name in names]
    table = wide.T.set_axis(pd.MultiIndex.from_tuples(index)).set_axis(["a", "b"], axis=1)
    assert len(plotting.beside_published(table, {"x": ["a", "b"]}).axes[0].lines) == n


# ------------------------------------------------------------------ the chain


def chain(n, dropped=()):
    names = [f"task {k}" for k in range(n)]
    table = pd.DataFrame({"accuracy (%)": "70.0", "intact": "yes"}, index=names)
    table["parent"] = [*names[1:], ""]
    table.loc[list(dropped), "intact"] = "dropped"
    return table


def test_chain_figure_colours_the_walk_and_leaves_dropped_frames_out():
    steps = ["passed", "answers", "not reached", "not reached"]
    walked = pd.DataFrame(
        {"step": steps, "score": [-1, 0.5, 2, 0]}, index=[f"task {k}" for k in range(4)]
    )
    ax = plotting.chain_figure(chain(4, dropped=["task 3"]), walked)
    assert numbers(ax) == ["task 0\n-1.00", "task 1\n+0.50", "task 2\n+2.00"]
    colors = [matplotlib.colors.to_hex(t.get_bbox_patch().get_facecolor()) for t in ax.texts]
    assert colors == ["#e8e8e8", "#009e73", "#ffffff"] and len(ax.lines) == 2
    assert numbers(plotting.chain_figure(chain(2))) == ["task 0\n70.0 %", "task 1\n70.0 %"]


def test_a_long_chain_goes_on_in_the_next_line():
    ax = plotting.chain_figure(chain(8))
    places = [text.get_position() for text in ax.texts]
    assert places[5:] == [(5, 0), (0, -1), (1, -1)] and len(ax.lines) == 7


def test_a_tree_has_a_line_for_each_branch_and_every_frame_is_joined_to_its_parent():
    table = chain(6, dropped=["task 4"])
    table.loc["task 0", "parent"] = "task 2"
    table.loc["task 1", "parent"] = "task 4"  # which is passed by: the root
    ax = plotting.chain_figure(table)
    drawn = [text.get_text().split("\n")[0] for text in ax.texts]
    assert drawn == ["task 0", "task 2", "task 3", "task 5", "task 1"]
    places = [text.get_position() for text in ax.texts]
    assert places == [(0, 0), (1, 0), (2, 0), (3, 0), (0, -1)]
    ends = {tuple(map(tuple, line.get_xydata()[[0, -1]])) for line in ax.lines}
    pairs = [("task 0", "task 2"), ("task 2", "task 3"), ("task 3", "task 5"), ("task 1", "task 5")]
    at = dict(zip(drawn, places, strict=True))
    assert ends == {(at[child], at[parent]) for child, parent in pairs}


# ------------------------------------------------------------------ marks and names


def test_the_best_of_a_column_is_bold_among_the_rows_given():
    table = pd.DataFrame({"a": [50.0, 70.02, 70.0], "b": [30.0, np.nan, 10.0]}, index=list("xyz"))
    below = pd.DataFrame({"a": [99.0], "b": [99.0]}, index=["published"])
    ax = plotting.grid(pd.concat([table, below]) / 100, "t")
    plotting.bold_best(ax, table)
    bold = [t.get_position() for t in ax.texts if t.get_fontweight() == "bold"]
    assert sorted(bold) == [(0, 1), (0, 2), (1, 0)]  # equal as shown, so both are


def test_names_at_the_ends_of_lines_keep_apart_and_stay_inside():
    ends = {"hybrid_svm": 99, "hybrid_embed": 99.5, "centroid": 100, "arrow": 1}
    lines = [(router, x, x * y) for router, y in ends.items() for x in (1, 2)]
    table = pd.DataFrame(lines, columns=["router", "x", "y"])
    ax = plotting.curves(table, "x", "y", "x", "y", legend=False)
    plotting.end_labels(ax, apart=0.1)
    places = {text.get_text(): text.xyann[1] for text in ax.texts}
    assert list(places) == sorted(ends, key=ends.get)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(places.values()))
    assert max(places.values()) <= 1 and places["arrow"] < 0.1


# ------------------------------------------------------------------ texts that users typed

TYPED = r"it cost $5 and \frac$ then 7_a"  # an even number of them makes a formula


def test_typed_text_is_never_read_as_a_formula():
    table = pd.DataFrame([[1, 2], [3, 4]], index=[TYPED, "b"], columns=["a", TYPED])
    drawn = [
        plotting.chain_figure(chain(2).rename({"task 0": TYPED}), title=TYPED),
        plotting.confusion(table, title=TYPED),
        plotting.confusion(table, plt.subplots()[1], title=TYPED),
        plotting.layer_figure(table, TYPED),
        plotting.training_curve([1.0, 2.0], TYPED, plt.subplots()[1]),
    ]
    by_notebook = plotting.task_bars(pd.DataFrame({"a": [0.5]}, index=["x"]))
    by_notebook.set_title(TYPED, loc="left")
    for ax in [*drawn, by_notebook]:
        assert title(ax) == TYPED and not ax._left_title.get_parse_math()
        ax.figure.savefig("/dev/null", format="png")  # a formula with an error in it would raise


def test_a_formula_would_have_raised():
    """What the test above guards against, so that it cannot pass for nothing."""
    ax = plt.subplots()[1]
    ax.set_title(TYPED)
    with pytest.raises(ValueError):
        ax.figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize("names", [1, 4, 5, 6])
def test_a_title_stands_above_all_rows_of_its_legend(names):
    (ax,) = plotting.panels(1, 1, plotting.WIDEST, 4)
    for name in range(names):
        ax.plot([0, 1], label=f"line {name}")
    plotting.headed(ax, "A title", 2)
    ax.figure.canvas.draw()
    above = ax._left_title.get_window_extent()
    assert above.y0 >= ax.get_legend().get_window_extent().y1 - 1  # pixels
    assert above.y1 <= ax.figure.bbox.y1
