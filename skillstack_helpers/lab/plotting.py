"""Figures: each function takes a table, returns an `Axes` (or a `Figure` of several) and computes
no metric.

``ax``: the axes to draw into; None makes a figure. Texts are drawn as they are: a ``$`` in a title
or a label starts no formula. No figure is wider than `WIDEST` and no text smaller than 9 points, so
that a page shows them as they are. One sequential colour map, one diverging; the colours of methods
and routers are those of `names.STYLES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .names import BLUE, GREEN, GREY, RED, style

WIDEST = 8.5  # inches
SMALL, TITLE = 9, 11  # points
SEQUENTIAL, DIVERGING = "Blues", "RdBu"  # white at zero; losses red, gains blue
PER_LINE = 6  # frames in a line of the drawn chain
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False, "fontsize": SMALL}
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False, "fontsize": SMALL}
EDGE = {"markeredgecolor": "#333333", "markeredgewidth": 0.6}


def panels(rows: int, columns: int, width: float, height: float, **how) -> list[Axes]:
    """The axes of a new figure, row by row; width, height in inches; how: of `Figure.subplots`."""
    figure = plt.figure(figsize=(min(width, WIDEST), height), layout="constrained")
    with plt.rc_context({"text.parse_math": False}):
        axes = figure.subplots(rows, columns, squeeze=False, **how).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
        ax.set_axisbelow(True)
    return list(axes)


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return panels(1, 1, width, height)[0] if ax is None else ax


def titled(ax: Axes, title: str) -> Axes:
    """The axes with a title as all figures have it."""
    ax.set_title(title, parse_math=False, fontsize=TITLE, loc="left")
    return ax


def headed(ax: Axes, title: str, columns: int = 1) -> None:
    """A title above the legend of an axes; columns: of the legend."""
    legend = ax.legend(ncols=columns, **ABOVE)
    rows = -(-len(legend.get_texts()) // columns)
    ax.set_title(title, fontsize=TITLE, loc="left", pad=10 + 16 * rows)


def name_lines(ax: Axes, names: Sequence[str]) -> None:
    """A line for each name, from the top down, with equal room above and below."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)


def over_all(axes: Sequence[Axes], title: str) -> Figure:
    """The figure of several panels with one title over all."""
    figure = axes[0].figure
    figure.suptitle(title, fontsize=TITLE, parse_math=False, x=0.01, ha="left")
    return figure


def color_bar(image, axes: Axes | Sequence[Axes], label: str, **how) -> None:
    """What the colours of an image mean, beside the axes; how: of `Figure.colorbar`."""
    drawn = image.figure.colorbar(image, ax=axes, pad=0.02, **how)
    drawn.set_label(label, size=SMALL)
    drawn.ax.tick_params(labelsize=SMALL)


def above_chance(accuracy: pd.DataFrame, chance: pd.Series) -> pd.DataFrame:
    """How far of the way from chance to 100 % each accuracy is, in percent; fractions, columns
    tasks."""
    return 100 * (accuracy - chance) / (1 - chance)


def legend_below(axes: Sequence[Axes]) -> None:
    """One legend below all panels of a figure, every name once."""
    named = [zip(*ax.get_legend_handles_labels()[::-1], strict=True) for ax in axes]
    once = dict(pair for pairs in named for pair in pairs)
    how = {"loc": "outside lower center", "ncols": len(once), "frameon": False}
    axes[0].figure.legend(once.values(), once, fontsize=SMALL, **how)


def styles(names: Iterable[str]) -> list[dict]:
    """Label, marker and colour of each name, as keyword arguments of ``plot``; see `names.style`.
    Where there are more other names than colours or markers, these come again."""
    return [style(label, place) for place, label in enumerate(names)]


def heatmap(
    table: pd.DataFrame,
    title: str,
    label: str,
    ax: Axes | None = None,
    *,
    numbers: pd.DataFrame | None = None,
    form: str = "{:.1f}",
    limits: tuple[float | None, float | None] = (0, 100),
    cmap: str = SEQUENTIAL,
    cell: tuple[float, float] = (0.62, 0.34),
    bar: bool = True,
) -> Axes:
    """A table as colours. label: of the colour bar; numbers: what to write into the cells, NaN for
    nothing; limits: values at both ends of the colours, None: the table's; cell: width, height in
    inches; bar: whether there is a colour bar."""
    rows, columns = table.shape
    ax = _axes(ax, max(4.5, 2.8 + cell[0] * columns), 1.5 + cell[1] * rows)
    image = ax.imshow(table, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (i, j), value in np.ndenumerate(np.empty((0, 0)) if numbers is None else numbers):
        if not np.isnan(value):
            shade = image.cmap(image.norm(table.iat[i, j]))[:3]
            color = "white" if np.dot(shade, (0.299, 0.587, 0.114)) < 0.48 else "black"  # luminance
            how = {"ha": "center", "va": "center", "color": color, "size": SMALL}
            ax.text(j, i, form.format(value), **how)
    how = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(columns), table.columns, parse_math=False, **how)
    ax.set_yticks(range(rows), table.index, parse_math=False)
    ax.tick_params(length=0, labelsize=SMALL)
    ax.spines[:].set_visible(False)
    titled(ax, title)
    if bar:
        color_bar(image, ax, label)
    return ax


def accuracy_matrix(matrix: pd.DataFrame, chance: pd.Series | None = None) -> Figure:
    """acc[i, j] (fractions; rows trained through, columns evaluated on) in percent, and beside it
    what was lost since each task was learned.

    chance: accuracy by chance of every task (fractions); the colour then says how far of the way
    from chance to 100 % an accuracy is.
    """
    tasks = len(matrix)
    beside = tasks <= 8
    size = (WIDEST, 1.9 + 0.3 * tasks) if beside else (1.8 + 0.48 * tasks, 3 + 0.6 * tasks)
    one, other = panels(*((1, 2) if beside else (2, 1)), *size)
    chance = pd.Series(0.0, matrix.columns) if chance is None else chance
    far = above_chance(matrix, chance)
    percent, lost = 100 * matrix, 100 * (matrix - np.diag(matrix))
    how = {"form": "{:.0f}", "bar": False}
    heatmap(far, "Accuracy of the latest adapter (%)", "", one, numbers=percent, **how)
    shown = lost.where(~np.eye(tasks, dtype=bool))
    how |= {"form": "{:+z.0f}", "cmap": DIVERGING, "limits": (-50, 50)}
    heatmap(lost, "Points since the task was learned", "", other, numbers=shown, **how)
    for ax in (one, other):
        ax.set_xlabel("evaluated on (with that task's own head)")
    for ax in (one, *([] if beside else [other])):
        ax.set_ylabel("latest adapter, trained through")
    if beside:
        other.set_yticks([])
    return one.figure


def confusion(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    xlabel: str = "frame picked by the router",
    ylabel: str = "task of the text",
    title: str = "Where the router sends each task's texts (%)",
) -> Axes:
    """Counts, drawn as percent of the row: rows what is true, columns what was picked."""
    share = 100 * table.div(table.sum(axis=1).clip(lower=1), axis=0)
    how = {"numbers": share.where(share >= 0.5), "form": "{:.0f}", "cell": (0.5, 0.34)}
    ax = heatmap(share, title, "share of the row (%)", ax, **how)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def grid(
    table: pd.DataFrame,
    title: str,
    ax: Axes | None = None,
    unit: str = "%",
    span: float | None = None,
    blank: bool = False,
    **how,
) -> Axes:
    """Fractions times 100: rows methods, columns conditions. span: differences in `unit`, drawn
    from -span to span: white at 0, gains blue, losses red; blank: no number where it is 0; how: of
    `heatmap`."""
    percent = 100 * table
    numbers = percent.where(percent.abs() >= 0.05) if blank else percent
    if span is not None:
        how = {"form": "{:+z.1f}", "limits": (-span, span), "cmap": DIVERGING} | how
    how = {"numbers": numbers, "cell": (0.75, 0.32)} | how
    return heatmap(percent, title, unit, ax, **how)


def task_grid(table: pd.DataFrame, chance: pd.Series, title: str) -> Axes:
    """Fractions as percent: rows methods, columns tasks, and their mean; the last row is chance.
    The colour says how far of the way from chance to 100 % an accuracy is."""
    table = pd.concat([table, chance.rename("chance").to_frame().T])
    both = above_chance(table, chance), 100 * table
    far, percent = (part.assign(mean=part.mean(axis=1)) for part in both)
    how = {"numbers": percent, "cell": (0.62, 0.32)}
    ax = heatmap(far, title, "way from chance to 100 % correct (%)", **how)
    ax.axvline(table.shape[1] - 0.5, color="white", lw=4)
    ax.axhline(len(table) - 1.5, color="#888888", lw=1)
    return ax


def layer_figure(
    table: pd.DataFrame, title: str, label: str = "size of the update, ‖BA‖", ax: Axes | None = None
) -> Axes:
    """A number for each layer (rows) and module (columns), e.g. `views.layer_norms`."""
    low, high = table.min(axis=None), table.max(axis=None)
    signed = {"limits": (-max(-low, high), max(-low, high)), "cmap": DIVERGING}
    how = signed if low < 0 else {"limits": (0, None)}
    ax = heatmap(table, title, label, ax, cell=(0.8, 0.26), **how)
    ax.set_ylabel("layer")
    return ax


def task_bars(
    table: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "Accuracy on every task after the whole stream",
    xlabel: str = "task, in the order of the stream",
    low: pd.DataFrame | None = None,
    high: pd.DataFrame | None = None,
) -> Axes:
    """Grouped bars: index tasks, one column a method, fractions; the last one has its values on it.
    A ``chance`` column is drawn as a mark on each group. low, high: the ends of each bar's
    interval (NaN: none)."""
    bars = table.drop(columns="chance", errors="ignore")
    ax = _axes(ax, max(6.4, 2.5 + 0.75 * len(table)), 3.9)  # the legend needs room
    width, places = 0.84 / max(1, bars.shape[1]), range(len(table))
    for k, one in enumerate(styles(bars)):
        at = [i - 0.42 + (k + 0.5) * width for i in places]
        values = 100 * bars[one["label"]]
        ax.bar(at, values, width, label=one["label"], color=one["color"])
        tops = values
        if low is not None:
            ends = 100 * low[one["label"]], 100 * high[one["label"]]
            ax.vlines(at, *ends, color="#333333", lw=1.2)
            tops = values.clip(lower=ends[1].fillna(0))
    how = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL}
    for x, value, top in zip(at, values, tops, strict=True):  # of the last column
        ax.annotate("" if np.isnan(value) else f"{value:.0f}", (x, top), (0, 1.5), **how)
    if "chance" in table:
        ends = [i - 0.46 for i in places], [i + 0.46 for i in places]
        how = {"color": "black", "linestyles": "dotted", "label": "chance"}
        ax.hlines(100 * table["chance"], *ends, **how)
    ax.set_xticks(places, table.index, rotation=30, ha="right", rotation_mode="anchor")
    ax.set(ylim=(0, 105), ylabel="accuracy (%)", xlabel=xlabel)
    headed(ax, title, table.shape[1])
    return ax


def beside_published(table: pd.DataFrame, better: dict[str, Sequence[str]]) -> Figure:
    """Dots: a panel for each key of `better` (its title), a line each of its columns, a mark each
    run (index who, model, seed); columns that no run has are left out."""
    better = {title: [c for c in columns if c in table] for title, columns in better.items()}
    ratios = [len(columns) for columns in better.values()]
    height = 1.6 + 0.5 * sum(ratios)
    axes = panels(len(better), 1, WIDEST, height, height_ratios=ratios)
    for ax, (title, columns) in zip(axes, better.items(), strict=True):
        for k, (who, model, seed) in enumerate(table.index):
            ours = who == "measured here"
            one = {"label": f"{who}: {model}, seed {seed}"}
            one |= {"color": BLUE if ours else GREY, "marker": "o" if ours else "sD^v"[k % 4]}
            one |= {"markersize": 9 if ours else 7, "zorder": 3 if ours else 2}
            shift = 0 if ours else 0.12 * (k - len(table) / 2)
            places = [i + shift for i in range(len(columns))]
            ax.plot(table[columns].iloc[k], places, linestyle="none", **one, **EDGE)
        ax.set_yticks(range(len(columns)), columns)
        ax.set_ylim(len(columns) - 0.5, -0.5)
        ax.margins(x=0.05)
        ax.grid(axis="x", alpha=0.3)
        titled(ax, title)
    axes[0].legend(**BESIDE)
    axes[-1].set_xlabel("percent, or percentage points")
    return axes[0].figure


def dots(
    table: pd.DataFrame,
    xlabel: str,
    ax: Axes | None = None,
    title: str = "",
    low: pd.DataFrame | None = None,
    high: pd.DataFrame | None = None,
) -> Axes:
    """A line an index entry, a mark a column: fractions, drawn as percent; low, high: the ends of
    each mark's interval, tables of the same form (NaN: none)."""
    ax = _axes(ax, WIDEST, 1.5 + 0.36 * len(table))
    apart = 0.22 if table.shape[1] > 1 and low is not None else 0.0  # so that no bar hides another
    for k, one in enumerate(styles(table)):
        label = one["label"]
        at = np.arange(len(table)) + apart * (k - (table.shape[1] - 1) / 2)
        if low is not None:
            how = {"color": one["color"], "lw": 1.6, "zorder": 1}
            ax.hlines(at, 100 * low[label], 100 * high[label], **how)
        ax.plot(100 * table[label], at, linestyle="none", markersize=7, **one, **EDGE)
    name_lines(ax, table.index)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.3)
    ax.margins(x=0.05)
    if table.shape[1] > 1:
        headed(ax, title, min(5, table.shape[1]))
    else:
        titled(ax, title)
    return ax


def pairs(
    table: pd.DataFrame,
    xlabel: str,
    title: str,
    low: pd.DataFrame,
    high: pd.DataFrame,
    line: tuple[float, str],
    fills: Sequence[str] = ("full", "none", "bottom"),
) -> Axes:
    """A line a method (index), a mark a column below each other, each with its interval (NaN:
    none); numbers as they are. line: what to compare with, its place and name. fills: of the marks
    (matplotlib's fill styles): in the method's colour, hollow, or half."""
    grey = {"full": "#555555", "none": "white", "bottom": "#A0A0A0"}  # in the legend
    apart = 0.28 if table.shape[1] == 2 else 0.24
    ax = panels(1, 1, WIDEST, 1.5 + 1.45 * apart * table.shape[1] * len(table) / 2)[0]
    ax.axvline(line[0], color=style(line[1])["color"], ls="--", zorder=0, label=line[1])
    for k, column in enumerate(table):
        at = np.arange(len(table)) + apart * (k - (table.shape[1] - 1) / 2)
        ax.hlines(at, low[column], high[column], color="#555555", lw=1.4, zorder=1)
        fill = {"fillstyle": fills[k], "markerfacecoloralt": "white"}
        back = {"markersize": 7.5, "color": "white", "label": "_"}
        for x, y, one in zip(table[column], at, styles(table.index), strict=True):
            ax.plot(x, y, **one | back, **EDGE)  # no interval shows through a hollow mark
            ax.plot(x, y, markersize=7.5, **one | {"label": "_"} | fill, **EDGE)
        ax.plot([], [], "o", markersize=7.5, color=grey[fills[k]], label=column, **fill, **EDGE)
    name_lines(ax, table.index)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.3)
    headed(ax, title, 4)
    return ax


def verdicts(table: pd.DataFrame, ahead: pd.Series, title: str, legend: dict[int, str]) -> Axes:
    """A drawn table: a line a method (index), its cells as text. ahead: 1, 0 or -1 for each line,
    the colour of its background; legend: what these say."""
    ax = panels(1, 1, WIDEST, 1.7 + 0.3 * len(table))[0]
    colors = {1: mix_white(BLUE), 0: "white", -1: mix_white(RED)}
    at = np.linspace(0.3, 1, table.shape[1])
    for row, (label, cells) in enumerate(table.iterrows()):
        ax.axhspan(row - 0.5, row + 0.5, color=colors[ahead[label]], lw=0)
        ax.text(0, row, label, va="center", size=SMALL, parse_math=False)
        for x, cell in zip(at, cells, strict=True):
            ax.text(x, row, cell, va="center", ha="right", size=SMALL)
    for x, column in zip(at, table.columns, strict=True):
        ax.text(x, -0.7, column, va="bottom", ha="right", size=SMALL, weight="bold")
    ax.set(xlim=(-0.01, 1.01), ylim=(len(table) - 0.5, -1.9), xticks=[], yticks=[])
    ax.axis("off")
    patches = [
        Patch(facecolor=colors[k], edgecolor="#888888", linewidth=0.6, label=label)
        for k, label in legend.items()
    ]
    how = {"ncols": len(patches), "frameon": False, "fontsize": SMALL, "loc": "upper center"}
    ax.legend(handles=patches, bbox_to_anchor=(0.5, 0), **how)
    return titled(ax, title)


def mix_white(color: str, share: float = 0.28) -> tuple[float, float, float]:
    """A colour on white, so light that black text is read on it."""
    return tuple(1 - share * (1 - np.array(to_rgb(color))))


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
    by: str = "router",
    title: str = "",
    legend: bool = True,
    **scale,
) -> Axes:
    """One line for each value of column `by`, columns `x` against `y`; where the table has columns
    ``low`` and ``high``, a band; scale: ``xscale`` and ``yscale`` of the axes."""
    ax = _axes(ax, WIDEST, 4)
    for one in styles(table[by].unique()):
        rows = table[table[by] == one["label"]]
        ax.plot(rows[x], rows[y], markersize=6, **one, **EDGE)
        if {"low", "high"} <= set(table):
            ax.fill_between(
                rows[x], rows["low"], rows["high"], color=one["color"], alpha=0.15, lw=0
            )
    ax.set(xlabel=xlabel, ylabel=ylabel, **scale)
    if scale.get("xscale") == "log":
        ticks = sorted(table[x].unique())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    if legend:
        ax.legend(**BESIDE)
    return titled(ax, title)


def bold_best(ax: Axes, table: pd.DataFrame) -> None:
    """The highest numbers of each column of a heat map in bold; table: the upper rows of it, as
    they are shown, with one digit."""
    best = table.round(1).eq(table.round(1).max()).to_numpy()
    for text in ax.texts:
        column, row = text.get_position()
        if row < len(table) and best[row, column]:
            text.set_fontweight("bold")


def end_labels(ax: Axes, apart: float = 0.065) -> None:
    """The name of each line of an axes beside its last point, in its colour; names are pushed
    `apart` (share of the axes' height) where the lines end close to each other."""
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    ends = [line.get_xydata()[-1] for line in lines]
    ax.autoscale_view()  # which else waits for the drawing
    places = ax.transAxes.inverted().transform(ax.transData.transform(ends))[:, 1]
    order = np.argsort(places, kind="stable")
    steps = apart * np.arange(len(lines))
    raised = np.maximum.accumulate(places[order] - steps) + steps  # nobody is moved down
    raised = np.minimum(raised, 1 - steps[::-1])  # nor above the axes
    for k, place in zip(order, raised, strict=True):
        how = {"textcoords": ax.transAxes, "va": "center", "fontsize": SMALL, "parse_math": False}
        line = {"arrowstyle": "-", "color": lines[k].get_color(), "lw": 0.8, "shrinkA": 0}
        ax.annotate(lines[k].get_label(), ends[k], (1.06, place), arrowprops=line, **how)


def training_curve(losses: Sequence[float], title: str, ax: Axes | None = None) -> Axes:
    """The loss of every step, and its running mean over a tenth of the training."""
    ax = _axes(ax, 5.2, 3)
    losses = pd.Series(losses, dtype=float)
    smooth = losses.rolling(max(1, len(losses) // 10), min_periods=1).mean()
    ax.plot(losses.index + 1, losses, color=GREY, lw=1, label="step")
    ax.plot(losses.index + 1, smooth, color=BLUE, label="running mean")
    ax.set(xlabel="training step", ylabel="loss")
    ax.legend(frameon=False, fontsize=SMALL)
    return titled(ax, title)


def chain_figure(
    table: pd.DataFrame,
    walked: pd.DataFrame | None = None,
    ax: Axes | None = None,
    *,
    title: str = "latest frame  →  its parents  →  root",
) -> Axes:
    """The frames of `views.chain_table` that were not dropped, latest to root, `PER_LINE` a line,
    each with its accuracy. Where a parent has several children, each other branch is on a line of
    its own, whose last frame is joined to that parent.

    walked: `views.walk_table`; the frames that the router passed are grey, the one that answers is
    green, and each has its score instead.
    """
    shown = table.loc[table["intact"].ne("dropped"), "accuracy (%)"]
    parents, places, free = table["parent"].to_dict(), {}, 0
    for name in shown.index:
        free = -(-free // PER_LINE) * PER_LINE
        while name in shown and name not in places:
            places[name], free = (free % PER_LINE, -(free // PER_LINE)), free + 1
            while parents[name] in parents and parents[name] not in shown:  # dropped
                parents[name] = parents[parents[name]]
            name = parents[name]
    columns, lines = min(len(shown), PER_LINE), -(-free // PER_LINE)
    ax = _axes(ax, 1.6 + 1.35 * columns, 0.5 + 0.8 * lines)
    steps = {} if walked is None else walked["step"].str.removesuffix(" (fallback)")
    for name, place in places.items():
        color = {"answers": GREEN, "not reached": "white"}.get(
            steps.get(name, "not reached"), "#E8E8E8"
        )
        how = {"bbox": {"boxstyle": "round", "facecolor": color}, "fontsize": SMALL, "zorder": 3}
        words = name if len(name) <= 15 else f"{name[:13]}…"
        score = f"\n{walked.loc[name, 'score']:+.2f}" if name in steps else ""
        words += score or (f"\n{shown[name]} %" if shown[name] else "")
        ax.text(*place, words, ha="center", va="center", parse_math=False, **how)
    for name in [each for each in places if parents[each] in places]:
        (x, y), (to_x, to_y) = places[name], places[parents[name]]
        middle = (y + to_y) / 2  # a line's end goes round to the next line's beginning
        ways = [x, x, to_x, to_x], [y, middle, middle, to_y]
        if to_y > y:  # a branch's end goes up between two columns, to where its sibling comes in
            ways = [x, x, to_x - 0.5, to_x - 0.5, to_x], [y, y + 0.4, y + 0.4, to_y, to_y]
        ax.plot(*ways, "#888888", lw=1, zorder=1)
    ax.set(xlim=(-0.7, columns - 0.3), ylim=(0.4 - lines, 0.6))
    titled(ax, title)
    ax.axis("off")
    return ax
