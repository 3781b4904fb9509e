"""Figures: each function takes a table, returns an `Axes` and computes no metric.

``ax``: the axes to draw into; None makes a figure. Texts are drawn as they are: a ``$`` in a title
or a label starts no formula.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

# Okabe and Ito's colours, distinguishable with any colour vision; black text stays readable.
COLORS = {
    "latest adapter": "#D55E00",
    "saved frame": "#0072B2",
    "routed stack": "#009E73",
    "chance": "#999999",
}
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#000000")
MARKERS = "osD^vP*XdH<>"
PER_LINE = 10  # frames in a line of the drawn chain
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False, "fontsize": 8}


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    figure = plt.figure(figsize=(width, height), layout="constrained")
    with plt.rc_context({"text.parse_math": False}):
        return figure.subplots()


def styles(names: Iterable[str]) -> list[dict]:
    """Label, marker and colour of each name, as keyword arguments of ``plot``. A name in `COLORS`
    keeps its own colour; where there are more names than colours or markers, they come again."""
    names = list(names)
    own = {COLORS.get(name) for name in names}
    free, markers = cycle([color for color in PALETTE if color not in own]), cycle(MARKERS)
    colors = [COLORS.get(name) or next(free) for name in names]
    return [
        {"label": name, "marker": next(markers), "color": color}
        for name, color in zip(names, colors, strict=True)
    ]


def heatmap(
    table: pd.DataFrame,
    title: str,
    label: str,
    ax: Axes | None = None,
    *,
    numbers: pd.DataFrame | None = None,
    form: str = "{:.1f}",
    limits: tuple[float | None, float | None] = (0, 100),
    cmap: str = "viridis",
    cell: tuple[float, float] = (0.62, 0.5),
) -> Axes:
    """A table as colours. label: of the colour bar; numbers: what to write into the cells, NaN for
    nothing; limits: values at both ends of the colours, None: the table's; cell: width, height in
    inches."""
    rows, columns = table.shape
    ax = _axes(ax, 2.8 + cell[0] * columns, 1.6 + cell[1] * rows)
    image = ax.imshow(table, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (i, j), value in np.ndenumerate(np.empty((0, 0)) if numbers is None else numbers):
        if not np.isnan(value):
            shade = image.cmap(image.norm(table.iat[i, j]))[:3]
            color = "white" if np.dot(shade, (0.299, 0.587, 0.114)) < 0.48 else "black"  # luminance
            ax.text(j, i, form.format(value), ha="center", va="center", color=color, size=8)
    ax.set_xticks(range(columns), table.columns, rotation=40, ha="right", parse_math=False)
    ax.set_yticks(range(rows), table.index, parse_math=False)
    ax.set_title(title, parse_math=False)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def accuracy_matrix(matrix: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """acc[i, j] (fractions; rows trained through, columns evaluated on) in percent."""
    percent, title = 100 * matrix, "Accuracy of the latest adapter (%)"
    ax = heatmap(percent, title, "accuracy (%)", ax, numbers=percent, form="{:.0f}")
    ax.set_xlabel("evaluated on (with that task's own head)")
    ax.set_ylabel("latest adapter, trained through")
    return ax


def confusion(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    xlabel: str = "frame picked by the router",
    ylabel: str = "task of the text",
    title: str = "Where the router sends each task's texts (count)",
) -> Axes:
    """Counts: rows what is true, columns what was picked; the colour is the share of the row."""
    share = 100 * table.div(table.sum(axis=1).clip(lower=1), axis=0)
    how = {"numbers": table.where(table > 0), "form": "{:.0f}", "cmap": "Blues"}
    ax = heatmap(share, title, "share of the row (%)", ax, **how)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def grid(table: pd.DataFrame, title: str, ax=None, unit="%", span: float | None = None) -> Axes:
    """Fractions times 100: rows methods, columns conditions. span: differences in `unit`, drawn
    from -span to span: white at 0, gains blue, losses red."""
    percent, how = 100 * table, {}
    if span is not None:
        how = {"form": "{:+.1f}", "limits": (-span, span), "cmap": "RdBu"}
    return heatmap(percent, title, unit, ax, numbers=percent, cell=(1.05, 0.36), **how)


def layer_figure(table: pd.DataFrame, title: str, label="norm of B A", ax=None) -> Axes:
    """A number for each layer (rows) and module (columns), e.g. `views.layer_norms`."""
    limits = (min(0, table.min(axis=None)), None)
    ax = heatmap(table, title, label, ax, limits=limits, cell=(1.1, 0.3))
    ax.set_ylabel("layer")
    return ax


def task_bars(
    table: pd.DataFrame, ax: Axes | None = None, xlabel: str = "task, in the order of the stream"
) -> Axes:
    """Grouped bars: index tasks, one column a method, fractions; a ``chance`` column is drawn as
    a mark on each group."""
    bars = table.drop(columns="chance", errors="ignore")
    ax = _axes(ax, 2.5 + 0.85 * len(table), 3.8)
    width, places = 0.8 / max(1, bars.shape[1]), range(len(table))
    for k, style in enumerate(styles(bars)):
        at = [i - 0.4 + (k + 0.5) * width for i in places]
        ax.bar(at, 100 * bars[style["label"]], width, label=style["label"], color=style["color"])
    if "chance" in table:
        ends = [i - 0.45 for i in places], [i + 0.45 for i in places]
        how = {"color": "black", "linestyles": "dotted", "label": "chance"}
        ax.hlines(100 * table["chance"], *ends, **how)
    ax.set_xticks(places, table.index, rotation=30, ha="right")
    ax.set(ylim=(0, 100), ylabel="accuracy (%)", xlabel=xlabel)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=table.shape[1], frameon=False)
    return ax


def beside_published(table: pd.DataFrame, columns: list[str], ax: Axes | None = None) -> Axes:
    """Dots: one line a column of the published table, one mark a run (index who, model, seed)."""
    ax = _axes(ax, 7.5, 1.2 + 0.55 * len(columns))
    names = [f"{who}: {model}, seed {seed}" for who, model, seed in table.index]
    for k, style in enumerate(styles(names)):
        ours = table.index[k][0] == "measured here"
        style |= {"color": COLORS["saved frame" if ours else "chance"]}
        style |= {"markersize": 9 if ours else 6, "zorder": 3 if ours else 2}
        places = [i + 0.5 * (k + 0.5) / len(table) - 0.25 for i in range(len(columns))]
        ax.plot(table[columns].iloc[k], places, linestyle="none", **style)
    ax.set_yticks(range(len(columns)), columns)
    ax.set_ylim(len(columns) - 0.5, -0.5)
    ax.set_xlim(min(-2, table[columns].min(axis=None) - 2), 100)
    ax.set_xlabel("percent, or percentage points")
    ax.grid(axis="x", alpha=0.3)
    ax.legend(**BESIDE)
    return ax


def dots(table: pd.DataFrame, xlabel: str, ax: Axes | None = None) -> Axes:
    """A line an index entry, a mark a column: fractions, drawn as percent."""
    ax = _axes(ax, 7.5, 1.4 + 0.34 * len(table))
    lines, percent = range(len(table)), 100 * table
    ax.hlines(lines, percent.min(axis=1), percent.max(axis=1), color="#BBBBBB", zorder=1)
    for style in styles(table):
        ax.scatter(percent[style["label"]], lines, zorder=2, **style)
    ax.set_yticks(lines, table.index)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(**BESIDE)
    return ax


def curves(
    table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, ax=None, by="router", **scale
) -> Axes:
    """One line for each value of column `by`, columns `x` against `y`; scale: ``xscale`` and
    ``yscale`` of the axes."""
    ax = _axes(ax, 7.4, 4.2)
    for style in styles(table[by].unique()):
        rows = table[table[by] == style["label"]]
        ax.plot(rows[x], rows[y], **style)
    ax.set(xlabel=xlabel, ylabel=ylabel, **scale)
    if scale.get("xscale") == "log":
        ticks = sorted(table[x].unique())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(**BESIDE)
    return ax


def training_curve(losses: Sequence[float], title: str, ax: Axes | None = None) -> Axes:
    """The loss of every step, and its running mean over a tenth of the training."""
    ax = _axes(ax, 5.2, 3)
    losses = pd.Series(losses, dtype=float)
    smooth = losses.rolling(max(1, len(losses) // 10), min_periods=1).mean()
    ax.plot(losses.index + 1, losses, color="#BBBBBB", lw=1, label="step")
    ax.plot(losses.index + 1, smooth, color=COLORS["saved frame"], label="running mean")
    ax.set(xlabel="training step", ylabel="loss")
    ax.set_title(title, parse_math=False)
    ax.legend(frameon=False)
    return ax


def chain_figure(
    table: pd.DataFrame,
    walked: pd.DataFrame | None = None,
    ax: Axes | None = None,
    *,
    title: str = "latest frame  →  its parents  →  root",
) -> Axes:
    """The frames of `views.chain_table` that were not dropped, latest to root, `PER_LINE` a line.

    walked: `views.walk_table`; the frames that the router passed are grey, the one that answers is
    green.
    """
    chain = table.loc[table["intact"].ne("dropped"), "accuracy (%)"]
    columns, lines = min(len(chain), PER_LINE), -(-len(chain) // PER_LINE)
    ax = _axes(ax, 1.6 + 1.35 * columns, 0.5 + 0.8 * lines)
    steps = {} if walked is None else walked["step"].str.removesuffix(" (fallback)")
    places = [(i % PER_LINE, -(i // PER_LINE)) for i in range(len(chain))]
    for (name, accuracy), place in zip(chain.items(), places, strict=True):
        color = {"answers": "#009E73", "passed": "#E8E8E8"}.get(steps.get(name), "white")
        how = {"bbox": {"boxstyle": "round", "facecolor": color}, "fontsize": 8, "zorder": 3}
        words = name if len(name) <= 15 else f"{name[:13]}…"
        words += f"\n{accuracy} %" if accuracy else ""
        ax.text(*place, words, ha="center", va="center", parse_math=False, **how)
    for (x, y), (to_x, to_y) in pairwise(places):
        middle = (y + to_y) / 2  # a line's end goes round to the next line's beginning
        ax.plot([x, x, to_x, to_x], [y, middle, middle, to_y], "#888888", lw=1, zorder=1)
    ax.set(xlim=(-0.7, columns - 0.3), ylim=(0.4 - lines, 0.6))
    ax.set_title(title, fontsize=9, parse_math=False)
    ax.axis("off")
    return ax
