import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers import plotting, results

TASKS = ["imdb", "agnews", "qqp"]


def numbers(ax):
    return [text.get_text() for text in ax.texts]


def test_accuracy_matrix_shows_percent_and_leaves_gaps_empty():
    acc = [[0.5, np.nan, np.nan], [0.25, 1.0, np.nan], [0, 0.9, 0.7]]
    ax = plotting.accuracy_matrix(pd.DataFrame(acc, index=TASKS, columns=TASKS))
    assert numbers(ax) == ["50", "25", "100", "0", "90", "70"]
    assert [t.get_text() for t in ax.get_yticklabels()] == TASKS
    assert "%" in ax.get_title() and ax.get_xlabel() and ax.get_ylabel()


def test_confusion_shows_counts():
    counts = pd.DataFrame([[9, 1, 0], [0, 10, 0], [2, 3, 5]], index=TASKS, columns=TASKS)
    assert numbers(plotting.confusion(counts)) == ["9", "1", "10", "2", "3", "5"]


def test_task_bars_have_the_heights_of_the_table():
    table = pd.DataFrame(
        {"latest adapter": [0.4, 0.5, 0.6], "saved frame": [0.8, 0.9, 0.6],
         "chance": [0.5, 0.25, 0.5]},
        index=TASKS,
    )  # fmt: skip
    ax = plotting.task_bars(table)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([40, 50, 60, 80, 90, 60])
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    assert labels == {"latest adapter", "saved frame", "chance"}


def test_beside_published_draws_into_given_axes():
    import matplotlib.pyplot as plt

    table = results.beside_published(pd.DataFrame(columns=results.COLUMNS), "hard8")
    ax = plt.subplots()[1]
    columns = [c for c in table if "depth" not in c]
    assert plotting.beside_published(table, columns, ax=ax) is ax
    assert len(ax.lines) == len(table) == 4


def test_router_figures_say_what_they_show():
    table = pd.DataFrame({"normal": [0.9, 0.8], "rewritten": [0.5, 0.25]}, index=["a", "b"])
    ax = plotting.grid(table, "a title")
    assert numbers(ax) == ["90.0", "50.0", "80.0", "25.0"] and ax.get_title() == "a title"
    bins = pd.DataFrame(
        {"router": ["a"] * 3, "confidence": [0.2, np.nan, 0.9], "accuracy": [0.1, np.nan, 0.8]}
    )
    ax = plotting.reliability(bins)
    assert ax.lines[1].get_xdata() == pytest.approx([20, 90])  # an empty bin is no point
    cost = pd.DataFrame({"router": ["a", "a", "b"], "frames": [2, 4, 2], "s": [1, 2, 3]})
    ax = plotting.curves(cost, "frames", "s", "frames", "seconds", xscale="log")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "4"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    strays = pd.DataFrame({"pair": ["x → y"], "right": [3], "wrong": [2]})
    ax = plotting.confusion_cost(strays)
    assert [bar.get_width() for bar in ax.patches] == [2, 3]


def test_differences_and_the_pareto_front():
    table = pd.DataFrame({"x": [0.01, -0.2]}, index=["a", "b"])
    ax = plotting.grid(table, "a title", span=20)
    assert numbers(ax) == ["+1.0", "-20.0"]
    assert [text.get_color() for text in ax.texts] == ["black", "white"]
    points = pd.DataFrame(
        {"cost": [50, 100, 120], "gain": [80, 82, 81], "front": [True, True, False],
         "kind": ["drop", "full", "basis"]},
        index=["one anchor", "full", "basis of rank 8"],
    )  # fmt: skip
    ax = plotting.pareto(points, "bytes (%)", "accuracy (%)")
    assert sorted(numbers(ax)) == ["full", "one anchor"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["Pareto front", "drop", "full", "basis"]
    assert ax.lines[0].get_xdata().tolist() == [50, 100]


def test_dots_are_percent_in_the_order_of_the_table():
    table = pd.DataFrame({"told": [0.5, np.nan], "routed": [0.25, 1.0]}, index=["a", "b"])
    ax = plotting.dots(table, "accuracy (%)")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"] and ax.yaxis_inverted()
    assert ax.collections[1].get_offsets()[0].tolist() == [50, 0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["told", "routed"]
