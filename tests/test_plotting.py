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


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ------------------------------------------------------------------ heat maps


def test_accuracy_matrix_shows_percent_and_leaves_gaps_empty():
    acc = [[0.5, np.nan, np.nan], [0.25, 1.0, np.nan], [0, 0.9, 0.7]]
    ax = plotting.accuracy_matrix(pd.DataFrame(acc, index=TASKS, columns=TASKS))
    assert numbers(ax) == ["50", "25", "100", "0", "90", "70"]
    assert [t.get_text() for t in ax.get_yticklabels()] == TASKS
    assert "%" in ax.get_title() and ax.get_xlabel() and ax.get_ylabel()


def test_confusion_shows_counts_on_the_share_of_the_row():
    counts = pd.DataFrame([[9, 1, 0], [0, 10, 0], [2, 3, 5]], index=TASKS, columns=TASKS)
    ax = plotting.confusion(counts)
    assert numbers(ax) == ["9", "1", "10", "2", "3", "5"]
    assert ax.images[0].get_array()[0].tolist() == [90, 10, 0]
    ax = plotting.confusion(counts, xlabel="answer", ylabel="label", title="What was answered")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("answer", "label")
    assert ax.get_title() == "What was answered"


def test_grid_shows_percent_or_signed_differences():
    table = pd.DataFrame({"normal": [0.9, 0.8], "rewritten": [0.5, 0.25]}, index=["a", "b"])
    ax = plotting.grid(table, "a title")
    assert numbers(ax) == ["90.0", "50.0", "80.0", "25.0"] and ax.get_title() == "a title"
    table = pd.DataFrame({"x": [0.01, -0.2]}, index=["a", "b"])
    ax = plotting.grid(table, "a title", unit="points", span=20)
    assert numbers(ax) == ["+1.0", "-20.0"]
    assert [text.get_color() for text in ax.texts] == ["black", "white"]
    assert ax.figure.axes[-1].get_ylabel() == "points"


def test_layer_figure_starts_at_zero_unless_there_are_negative_values():
    norms = pd.DataFrame({"query": [0.5, 1.0], "value": [0.2, 0.4]})
    ax = plotting.layer_figure(norms, "What imdb moved")
    assert ax.images[0].get_clim() == (0, 1) and numbers(ax) == []
    assert (ax.get_title(), ax.get_ylabel()) == ("What imdb moved", "layer")
    cosines = plotting.layer_figure(norms - 0.5, "Two frames", label="cosine")
    assert cosines.images[0].get_clim() == (-0.3, 0.5)


# ------------------------------------------------------------------ bars, dots, lines


def test_task_bars_have_the_heights_of_the_table():
    table = pd.DataFrame(
        {"latest adapter": [0.4, 0.5, 0.6], "saved frame": [0.8, 0.9, 0.6],
         "chance": [0.5, 0.25, 0.5]},
        index=TASKS,
    )  # fmt: skip
    ax = plotting.task_bars(table)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([40, 50, 60, 80, 90, 60])
    assert set(legend(ax)) == {"latest adapter", "saved frame", "chance"}


def test_beside_published_draws_into_given_axes():
    index = [("measured here", "minilm", "42"), ("published", "Llama-3.2-1B", "42")]
    index = pd.MultiIndex.from_tuples(index, names=["who", "model", "seed"])
    table = pd.DataFrame({"a (%)": [80, 85.0], "b (%)": [70.0, np.nan], "depth": [2, 3]}, index)
    ax = plt.subplots()[1]
    assert plotting.beside_published(table, ["a (%)", "b (%)"], ax=ax) is ax
    assert ax.lines[0].get_xdata().tolist() == [80, 70]
    assert legend(ax) == ["measured here: minilm, seed 42", "published: Llama-3.2-1B, seed 42"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a (%)", "b (%)"]


def test_dots_are_percent_in_the_order_of_the_table():
    table = pd.DataFrame({"task given": [0.5, np.nan], "routed": [0.25, 1.0]}, index=["a", "b"])
    ax = plotting.dots(table, "accuracy (%)")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"] and ax.yaxis_inverted()
    assert ax.collections[1].get_offsets()[0].tolist() == [50, 0]
    assert legend(ax) == ["task given", "routed"]


def test_curves_have_a_line_each_and_the_ticks_of_the_table():
    cost = pd.DataFrame({"router": ["a", "a", "b"], "frames": [2, 4, 2], "s": [1, 2, 3]})
    ax = plotting.curves(cost, "frames", "s", "frames", "seconds", xscale="log")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "4"]
    assert legend(ax) == ["a", "b"] and ax.lines[0].get_ydata().tolist() == [1, 2]


def test_training_curve_shows_every_step_and_a_running_mean():
    ax = plotting.training_curve([4.0, 2.0] * 10, "Training of imdb")
    steps, smooth = ax.lines
    assert steps.get_xdata().tolist() == list(range(1, 21))
    assert smooth.get_ydata()[1:].tolist() == [3.0] * 19
    assert (ax.get_xlabel(), ax.get_title()) == ("training step", "Training of imdb")


@pytest.mark.parametrize("n", [5, 9, 13, 40])
def test_a_table_with_more_columns_than_colours_or_markers_is_drawn_whole(n):
    names = [f"method {k}" for k in range(n)]
    wide = pd.DataFrame([np.linspace(0, 1, n)] * 2, columns=names)
    ax = plotting.dots(wide, "accuracy (%)")
    assert legend(ax) == names and len(ax.collections) == n + 1  # and the lines between them
    long = wide.melt(var_name="method", ignore_index=False).reset_index()
    ax = plotting.curves(long, "index", "value", "x", "y", by="method")
    assert legend(ax) == names == [line.get_label() for line in ax.lines]
    assert len(plotting.task_bars(wide).patches) == 2 * n
    index = [("published", name, "42") for name in names]
    table = wide.T.set_axis(pd.MultiIndex.from_tuples(index)).set_axis(["a", "b"], axis=1)
    assert len(plotting.beside_published(table, ["a", "b"]).lines) == n


def test_a_method_keeps_its_colour_and_shares_it_with_no_other():
    names = ["oracle", "routed stack", "best single frame", "latest adapter"]
    colors = {style["label"]: style["color"] for style in plotting.styles(names)}
    assert colors["routed stack"] == plotting.COLORS["routed stack"]
    assert len(set(colors.values())) == 4


# ------------------------------------------------------------------ the chain


def chain(n, dropped=()):
    names = [f"task {k}" for k in range(n)]
    table = pd.DataFrame({"accuracy (%)": "70.0", "intact": "yes"}, index=names)
    table.loc[list(dropped), "intact"] = "dropped"
    return table


def test_chain_figure_colours_the_walk_and_leaves_dropped_frames_out():
    steps = ["passed", "answers (fallback)", "not reached", "passed"]
    walked = pd.DataFrame({"step": steps}, index=[f"task {k}" for k in range(4)])
    ax = plotting.chain_figure(chain(4, dropped=["task 3"]), walked)
    assert numbers(ax) == [f"task {k}\n70.0 %" for k in range(3)]
    colors = [matplotlib.colors.to_hex(t.get_bbox_patch().get_facecolor()) for t in ax.texts]
    assert colors == ["#e8e8e8", "#009e73", "#ffffff"] and len(ax.lines) == 2


def test_a_long_chain_goes_on_in_the_next_line():
    ax = plotting.chain_figure(chain(12))
    places = [text.get_position() for text in ax.texts]
    assert places[9:] == [(9, 0), (0, -1), (1, -1)] and len(ax.lines) == 11


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
    by_notebook.set_title(TYPED)
    for ax in [*drawn, by_notebook]:
        assert ax.get_title() == TYPED and not ax.title.get_parse_math()
        ax.figure.savefig("/dev/null", format="png")  # a formula with an error in it would raise


def test_a_formula_would_have_raised():
    """What the test above guards against, so that it cannot pass for nothing."""
    ax = plt.subplots()[1]
    ax.set_title(TYPED)
    with pytest.raises(ValueError):
        ax.figure.savefig("/dev/null", format="png")
