"""Figures: each function takes a DataFrame, returns an `Axes` and computes no metric."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

# Okabe and Ito's colours, distinguishable with any colour vision; black text stays readable.
COLORS = {
    "latest adapter": "#D55E00",
    "saved frame": "#0072B2",
    "routed stack": "#009E73",
    "chance": "#999999",
}


MARKERS = "osD^vP*XdH<>" * 9


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def accuracy_matrix(matrix: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heat map of acc[i, j] (fractions; rows trained through, columns evaluated on)."""
    n = len(matrix)
    ax = _axes(ax, 2.8 + 0.62 * n, 1.6 + 0.5 * n)
    image = ax.imshow(100 * matrix, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    _annotate(ax, 100 * matrix, "{:.0f}", dark_below=60)
    ax.set_xlabel("evaluated on (with that task's own head)")
    ax.set_ylabel("latest adapter, trained through")
    ax.set_title("Accuracy of the latest adapter (%)")
    ax.figure.colorbar(image, ax=ax, label="accuracy (%)")
    return ax


def confusion(matrix: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Heat map of routing counts: rows the text's own task, columns the frame picked."""
    n = len(matrix)
    ax = _axes(ax, 2.8 + 0.62 * n, 1.6 + 0.5 * n)
    share = 100 * matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    image = ax.imshow(share, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    _annotate(ax, matrix.where(matrix > 0), "{:.0f}", dark_below=60, shade=share)
    ax.set_xlabel("frame picked by the router")
    ax.set_ylabel("task of the text")
    ax.set_title("Where the router sends each task's texts (count)")
    ax.figure.colorbar(image, ax=ax, label="share of the task's texts (%)")
    return ax


def _annotate(ax, table, form, dark_below, shade=None) -> None:
    shade = table if shade is None else shade
    for i in range(table.shape[0]):
        for j in range(table.shape[1]):
            value = table.iat[i, j]
            if pd.notna(value):
                color = "white" if shade.iat[i, j] < dark_below else "black"
                ax.text(j, i, form.format(value), ha="center", va="center", color=color, size=8)
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=40, ha="right")
    ax.set_yticks(range(table.shape[0]), table.index)


def task_bars(
    table: pd.DataFrame, ax: Axes | None = None, xlabel: str = "task, in the order of the stream"
) -> Axes:
    """Grouped bars: index tasks, one column a method, fractions; a ``chance`` column is drawn as
    a mark on each group."""
    bars = table.drop(columns="chance", errors="ignore")
    ax = _axes(ax, 2.5 + 0.85 * len(table), 3.8)
    width = 0.8 / max(1, bars.shape[1])
    for k, method in enumerate(bars):
        at = [i - 0.4 + (k + 0.5) * width for i in range(len(bars))]
        ax.bar(at, 100 * bars[method], width, label=method, color=COLORS.get(method))
    if "chance" in table:
        at = range(len(table))
        ax.hlines(
            100 * table["chance"],
            [i - 0.45 for i in at],
            [i + 0.45 for i in at],
            color="black",
            linestyles="dotted",
            label="chance",
        )
    ax.set_xticks(range(len(table)), table.index, rotation=30, ha="right")
    ax.set_ylim(0, 100)
    ax.set_ylabel("accuracy (%)")
    ax.set_xlabel(xlabel)
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=bars.shape[1] + 1, frameon=False
    )
    return ax


def beside_published(table: pd.DataFrame, columns: list[str], ax: Axes | None = None) -> Axes:
    """Dots: one line a column of the published table, one mark a run (index who, model, seed)."""
    ax = _axes(ax, 7.5, 1.2 + 0.55 * len(columns))
    markers = iter(MARKERS)
    for k, ((who, model, seed), row) in enumerate(table[columns].iterrows()):
        ours = who == "measured here"
        ax.plot(
            row,
            [i + 0.5 * (k + 0.5) / len(table) - 0.25 for i in range(len(columns))],
            linestyle="none",
            marker=next(markers),
            markersize=9 if ours else 6,
            color=COLORS["saved frame"] if ours else COLORS["chance"],
            label=f"{who}: {model}, seed {seed}",
            zorder=3 if ours else 2,
        )
    ax.set_yticks(range(len(columns)), columns)
    ax.set_ylim(len(columns) - 0.5, -0.5)
    ax.set_xlim(min(-2, table[columns].min().min() - 2), 100)
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel("percent, or percentage points")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return ax


def dots(table: pd.DataFrame, xlabel: str, ax: Axes | None = None) -> Axes:
    """A line an index entry, a mark a column: fractions, drawn as percent."""
    ax = _axes(ax, 7.5, 1.4 + 0.34 * len(table))
    lines = range(len(table))
    ax.hlines(lines, 100 * table.min(axis=1), 100 * table.max(axis=1), color="#BBBBBB", zorder=1)
    for marker, column, color in zip(MARKERS, table, COLORS.values(), strict=False):
        ax.scatter(100 * table[column], lines, marker=marker, color=color, label=column, zorder=2)
    ax.set_yticks(lines, table.index)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def grid(
    table: pd.DataFrame,
    title: str,
    ax: Axes | None = None,
    unit: str = "%",
    span: float | None = None,
) -> Axes:
    """Heat map of a table of fractions times 100: rows methods, columns conditions."""
    ax = _axes(ax, 3.4 + 1.05 * table.shape[1], 1.5 + 0.36 * len(table))
    if span is None:
        image = ax.imshow(100 * table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        _annotate(ax, 100 * table, "{:.1f}", dark_below=60)
    else:  # differences: white at 0, gains blue, losses red
        image = ax.imshow(100 * table, cmap="RdBu", vmin=-span, vmax=span, aspect="auto")
        shade = -(100 * table).abs()  # white text on the strong colours at both ends
        _annotate(ax, 100 * table, "{:+.1f}", dark_below=-0.6 * span, shade=shade)
    ax.set_title(title)
    ax.figure.colorbar(image, ax=ax, label=unit)
    return ax


def pareto(table: pd.DataFrame, xlabel: str, ylabel: str, ax: Axes | None = None) -> Axes:
    """Cost against gain, one point a row; `table`: cost, gain, front (bool), kind. Points on the
    front are labelled with their row's name."""
    ax = _axes(ax, 9.5, 5.5)
    front = table[table["front"]].sort_values("cost")
    ax.step(front["cost"], front["gain"], where="post", color="black", lw=1, label="Pareto front")
    kinds = list(dict.fromkeys(table["kind"]))
    colors = plt.get_cmap("tab10").colors
    for marker, color, kind in zip(MARKERS, colors, kinds, strict=False):
        part = table[table["kind"] == kind]
        ax.scatter(part["cost"], part["gain"], marker=marker, color=color, label=kind, zorder=3)
    for name, row in front.iterrows():
        place = {"xytext": (6, 6), "textcoords": "offset points", "fontsize": 8}
        ax.annotate(name, (row["cost"], row["gain"]), **place)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(x=0.12, y=0.08)
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def reliability(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Reliability curves: columns router, confidence, accuracy (fractions), one row a bin."""
    ax = _axes(ax, 6.4, 4.6)
    ax.plot([0, 100], [0, 100], color="black", linestyle="dotted", label="perfectly calibrated")
    for marker, (router, rows) in zip(MARKERS, table.groupby("router", sort=False), strict=False):
        rows = rows.dropna()
        ax.plot(100 * rows["confidence"], 100 * rows["accuracy"], marker=marker, label=router)
    ax.set_xlabel("confidence of the router (%)")
    ax.set_ylabel("right frame (%)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return ax


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
    by: str = "router",
    **scale,
) -> Axes:
    """One line a value of column `by`, against columns `x` and `y`; scale: ``xscale``, ``yscale``
    of the axes."""
    ax = _axes(ax, 7.4, 4.2)
    for marker, (name, rows) in zip(MARKERS, table.groupby(by, sort=False), strict=False):
        ax.plot(rows[x], rows[y], marker=marker, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, **scale)
    if scale.get("xscale") == "log":
        ticks = sorted(table[x].unique())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return ax


def confusion_cost(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Stacked bars of the most frequent confusions: columns pair, right, wrong (counts)."""
    ax = _axes(ax, 7.4, 1.3 + 0.3 * len(table))
    ax.barh(table["pair"], table["wrong"], color="#D55E00", label="the answer was lost")
    ax.barh(
        table["pair"],
        table["right"],
        left=table["wrong"],
        color="#009E73",
        label="answered rightly all the same",
    )
    ax.invert_yaxis()
    ax.set_xlabel("texts sent to another frame (count)")
    ax.legend(frameon=False, loc="lower right")
    return ax
