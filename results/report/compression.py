"""Smaller stacks: notebook 06."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, listed
from skillstack_helpers.lab.names import name, style
from skillstack_helpers.lab.runs import Run

from .base import (
    RANGE,
    Figure,
    Table,
    by_seed,
    check_alike,
    ends_said,
    every,
    figures,
    in_order,
    measured,
    minus,
    published,
    seeds_of,
    signed,
    summary,
    whole,
    with_ends,
)

# ---------------------------------------------------------------------- tables


def _variants(metrics: pd.DataFrame) -> pd.DataFrame:
    """The numbers of every stack that notebook 06 saved, and of each what the full stack has
    (``full_``), the difference from it (``_less``) and that as a fraction of it (``_relative``);
    ``worst`` is the largest loss of one task."""
    saved = metrics.loc[metrics["metric"].eq("total_bytes"), "split"]
    found = metrics[metrics["split"].isin(saved)]
    less = found.assign(value=minus(found, ["seed", "metric", "eval_task"], split="full"))
    full = found.assign(metric="full_" + found["metric"], value=found["value"] - less["value"])
    relative = less.assign(value=less["value"] / full["value"], unit="fraction")
    worst = less[less["metric"].eq("routed") & less["eval_task"].ne("")].sort_values("value")
    worst = worst.drop_duplicates(["seed", "split"]).assign(metric="worst", eval_task="")
    less["metric"] += "_less"
    relative["metric"] += "_relative"
    return measured(pd.concat([found, full, less, relative, worst]), eval_task="")


def compression_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Families on one anchor and the rule, above the published probe: seed by seed, and of the
    change also mean and range over seeds. Index: who, way, seed."""
    columns = {
        "frames before": ("full_frames", whole),
        "frames left": ("frames", whole),
        "routed before (%)": "full_routed",
        "routed after (%)": "routed",
        "change (pp)": ("routed_less", signed),
        "adapter bytes, change (%)": ("adapter_bytes_relative", signed),
    }
    theirs = published("compression").replace(
        {"metric": {"n_frames": "frames", "accuracy": "routed"}}
    )
    changes = {"adapter_memory_change": "adapter_bytes_relative", "gain": "routed_less"}
    theirs = theirs.replace({"metric": changes}).assign(split="published anchor")
    theirs["metric"] = theirs["method"].map({"full": "full_", "compressed": ""}) + theirs["metric"]
    ways = ["published anchor", "chosen anchor", "rule: online", "rule: at the end"]
    ours = in_order(measured(_variants(metrics), split=ways), "split", ways)
    numbers = pd.concat([ours, theirs])
    numbers["who"] += "|" + numbers["split"].map(name)
    table = by_seed(numbers, columns, ["change (pp)"])
    keys = [(*who.split("|"), seed) for who, seed in table.index]
    return table.set_axis(pd.MultiIndex.from_tuples(keys, names=["who", "way", "seed"]))


def boundary_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What notebook 06 loses when one more frame is taken from the compressed stack, in points. A
    published cell gives seeds 42 and 123; ours are mean and range over seeds. "by position":
    answers compared by label id, so that a frame with other labels can be correct by luck, which is
    how the published numbers read."""
    columns = {
        "published: all tasks": ("published loss", every),
        "published: its own task": ("published task_loss", every),
        "all tasks": "loss",
        "its own task": "task_loss",
        "all tasks, by position": "loss_by_id",
        "its own task, by position": "task_loss_by_id",
    }
    ours, theirs = _boundary(metrics)
    theirs = theirs.assign(metric="published " + theirs["metric"])
    table = summary(pd.concat([ours, theirs]), ["frame removed"], columns)
    corner = ["points lost, mean over tasks or on the task of the frame", table.columns.name]
    return table.rename_axis(columns="; ".join(filter(None, corner)))


def _boundary(metrics: pd.DataFrame) -> list[pd.DataFrame]:
    """Losses without one more frame, ours and the published ones of the same frames."""
    ours = metrics[metrics["split"].str.startswith("anchor without ")]
    ours = ours.assign(removed=ours["split"].str.removeprefix("anchor without "))
    theirs = published("boundary")
    theirs = theirs.assign(removed=theirs["method"].str.removeprefix("compressed_without_"))
    gained = theirs["metric"].eq("accuracy_change")
    value = theirs["value"].mask(gained, -theirs["value"])
    metric = theirs["metric"].replace("accuracy_change", "task_loss")
    theirs = theirs.assign(value=value, metric=metric)
    theirs = theirs[theirs["removed"].isin(ours["removed"])]
    return [table.rename(columns={"removed": "frame removed"}) for table in (ours, theirs)]


def shrink_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Every way of notebook 06 to shrink a stack, over seeds, as numbers for `shrink_cells` and
    figures: frames, adapters, bytes (share of the full stack's), routed, change (fractions; low
    and high: the range over seeds), worst (the largest loss of one task), seeds."""
    check_alike(metrics)
    found = _variants(metrics)
    table = found.pivot_table(index="split", columns="metric", values="value", sort=False)
    change = found[found["metric"].eq("routed_less")].groupby("split")["value"]
    table = table.join(change.agg(low="min", high="max", seeds="size"))
    table["bytes"] = 1 + table["total_bytes_relative"]
    table[["low", "high"]] = table[["low", "high"]].where(table["seeds"] > 1)
    columns = ["frames", "adapters", "bytes", "routed", "change", "low", "high", "worst", "seeds"]
    table = table.rename(columns={"routed_less": "change"})[columns]
    return table.rename_axis(index="variant", columns=None)


def shrink_cells(table: pd.DataFrame) -> pd.DataFrame:
    """`shrink_table` as a reader wants it."""

    def percent(column: str, form: str = "{:+.1f}") -> pd.Series:
        return (100 * table[column]).map(form.format)

    change, over = percent("change"), table["seeds"].max()
    cells = {
        "frames left": table["frames"].map("{:.1f}".format),
        "adapters": table["adapters"].map("{:.1f}".format),
        "bytes on disk (%)": percent("bytes", "{:.1f}"),
        "routed (%)": percent("routed", "{:.1f}"),
        "change (pp)": change.where(
            table["low"].isna(), change + " [" + percent("low") + ", " + percent("high") + "]"
        ),
        "worst task (pp)": percent("worst"),
    }
    return pd.DataFrame(cells).rename_axis(columns=RANGE.format(over) if over > 1 else None)


def decided(decisions: pd.DataFrame) -> pd.DataFrame:
    """What the rule decided, in words: decisions.csv as a reader wants it. Index: rule."""
    columns = ["rule", "kind", "frames", "by", "tasks", "loss_pp", "upper_pp", "reason"]
    found = decisions.reindex(columns=columns)

    def cells(column: str, form: str) -> list[str]:
        values = pd.to_numeric(found[column])
        return ["" if np.isnan(value) else form.format(value) for value in values]

    table = {
        "change": [_change(row) for row in found.itertuples()],
        "verdict": [_verdict(row) for row in found.itertuples()],
        "loss (pp)": cells("loss_pp", "{:.1f}"),
        "at most (pp)": cells("upper_pp", "{:.1f}"),
        "tasks so far": cells("tasks", "{:.0f}"),
    }
    return pd.DataFrame(table, index=found["rule"])


def _change(row) -> str:
    """A decision in words; what was tried, where it was refused."""
    frames = str(row.frames)
    if row.kind == "merge":
        return f"{frames.replace(', ', ' and ')} merged"
    return f"{frames} alone" if pd.isna(row.by) else f"{frames} answered by {row.by}"


def _verdict(row) -> str:
    if not pd.isna(row.by):
        return "made" if row.kind != "keep" else "refused"
    return "kept" if pd.isna(row.reason) else f"kept: {row.reason}"


def tried(decisions: pd.DataFrame) -> pd.DataFrame:
    """The decisions that were taken on evidence."""
    return decisions[decisions["upper_pp"].notna()] if "upper_pp" in decisions else decisions[:0]


# ---------------------------------------------------------------------- figures

_COLOR = style("way")["color"]
PLACES = [(0, 8), (0, -8), (9, 0), (-9, 0), (7, 8), (7, -8), (-7, 8), (-7, -8)]  # points
PLACES += [(0, 20), (0, -20), (14, 16), (14, -16), (-14, 16), (-14, -16)]


def size(run: Run) -> Drawn:
    """Size against routed accuracy: every way to make the stack smaller."""
    metrics = run.alike()
    table = shrink_table(metrics)
    points = 100 * table[["bytes", "change", "low", "high"]].rename(index=name)
    points["front"] = pareto(points["bytes"], points["change"])
    crowd = points.loc[_crowd(points["bytes"])].sort_values("change", ascending=False)
    above = points.drop(crowd.index[1:])
    heights = [3.6, 1.1 + 0.32 * len(crowd)][: 1 + (len(crowd) > 0)]
    how = {"height_ratios": heights}
    axes = plotting.panels(len(heights), 1, plotting.WIDEST, sum(heights) + 0.8, **how)
    _scatter(axes[0], above, crowd)
    for ax in axes[1:]:
        full = 100 * table.loc["full", "routed"]
        _rows(ax, crowd, f"change in routed accuracy (points; full stack: {full:.1f} %)")
    plotting.legend_below(axes[:1])
    _label(axes[0], above)
    alt = "A mark for each way to make the stack smaller: bytes on disk against the change in "
    alt += "routed accuracy; a line joins those that no other way beats."
    alt += " Below, the ways of about the same size, a line each." if len(crowd) else ""
    look = "Left is smaller, up is better; above the dotted line nothing is lost. A way is on the "
    look += "Pareto front if no other is as small and better, or smaller and as good."
    look += ends_said(metrics)
    return Drawn(axes[0].figure, _how_small(table, points), alt, look, seeds_of(metrics))


def _how_small(table: pd.DataFrame, points: pd.DataFrame) -> str:
    """What the rule leaves, the smallest and the most accurate stack."""
    small = points.drop(name("full")).sort_values(["bytes", "change"], ascending=[True, False])
    smallest, best = small.iloc[0], small.loc[small["change"].idxmax()]
    rule, full, answer = "rule: at the end", table.loc["full", "frames"], ""
    if rule in table.index:
        frames, point = table.loc[rule, "frames"], points.loc[name(rule)]
        answer = f"The rule, at the end, leaves {frames:.0f} of {full:.0f} frames and "
        answer += f"{point['bytes']:.0f} % of the bytes; routed accuracy changes by "
        answer += f"{_ranged(point)} points. "
    answer += f"The smallest stack of all is ‘{smallest.name}’ ({_said(smallest)}), the most "
    return answer + f"accurate ‘{best.name}’ ({_said(best)})."


def _rows(ax: Axes, crowd: pd.DataFrame, xlabel: str) -> None:
    """The ways of about the same size, a line each."""
    at = np.arange(len(crowd))
    ax.hlines(at, crowd["low"], crowd["high"], color=_COLOR, lw=1.6, zorder=2)
    _marks(ax, crowd["change"].to_numpy(), at, crowd["front"])
    ax.axvline(0, color="#888888", ls=":", lw=1, zorder=0)
    plotting.name_lines(ax, crowd.index)
    ax.set_xlim(min(-1, ax.get_xlim()[0]), max(1, ax.get_xlim()[1]))
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel(xlabel)
    words = f"The {len(crowd)} ways in the grey band, at about {crowd['bytes'].median():.0f} %"
    plotting.titled(ax, f"{words} of the bytes")


def _scatter(ax: Axes, points: pd.DataFrame, crowd: pd.DataFrame) -> None:
    """Bytes against the change; a band where the crowd is, of which `points` has the best."""
    if len(crowd):
        ends = crowd["bytes"].min() * 0.97, crowd["bytes"].max() * 1.03
        ax.axvspan(*ends, color="#EAEAEA", lw=0, zorder=0)
    front = points[points["front"]].sort_values("bytes")
    ax.plot(front["bytes"], front["change"], color=_COLOR, lw=1, zorder=1)
    ax.vlines(points["bytes"], points["low"], points["high"], color=_COLOR, lw=1.6, zorder=2)
    _marks(ax, points["bytes"].to_numpy(), points["change"].to_numpy(), points["front"])
    ax.axhline(0, color="#888888", ls=":", lw=1, zorder=0)
    ax.set_xscale("log")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick > 0.6 * points["bytes"].min()]
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set_xlim(0.85 * min(ticks[0], points["bytes"].min()), 1.25 * points["bytes"].max())
    ax.margins(y=0.15)
    ax.set_ylim(min(-1, ax.get_ylim()[0]), max(1, ax.get_ylim()[1]))
    ax.grid(alpha=0.3)
    ax.set_ylabel("change in routed\naccuracy (points)")
    ax.set_xlabel("bytes on disk (% of the full stack, logarithmic axis)")
    plotting.titled(ax, "How small, and what it costs: every way to make the stack smaller")


def _marks(ax: Axes, x: np.ndarray, y: np.ndarray, front: pd.Series) -> None:
    """Filled on the Pareto front, hollow behind it."""
    for on, label in ((True, "on the Pareto front"), (False, "behind it")):
        some, color = front.to_numpy() == on, _COLOR if on else "white"
        how = {"linestyle": "none", "markersize": 7, "color": color, "zorder": 3}
        ax.plot(x[some], y[some], "o", label=label, **how | plotting.EDGE)


def pareto(cost: pd.Series, gain: pd.Series) -> np.ndarray:
    """Which points (n,) no other beats: as cheap and better, or cheaper and as good; bool (n,)."""
    cost, gain = np.asarray(cost), np.asarray(gain)
    better = (cost[None] <= cost[:, None]) & (gain[None] >= gain[:, None])
    strictly = (cost[None] < cost[:, None]) | (gain[None] > gain[:, None])
    return ~(better & strictly).any(1)


def _crowd(sizes: pd.Series, within: float = 1.1) -> list[str]:
    """The largest set of ways that are of about the same size, if there are four or more."""
    near = [sizes.index[sizes.between(least, within * least)] for least in sizes]
    most = max(near, key=len)
    return list(most) if len(most) > 3 else []


def _label(ax: Axes, points: pd.DataFrame) -> None:
    """Write each point's name beside it, where it covers least of points, lines and other names;
    points that are one on top of the other are named together."""
    ax.figure.draw_without_rendering()
    at = ax.transData.transform(points[["bytes", "change"]])
    ends = points[["low", "high"]].apply(lambda end: end.fillna(points["change"]))
    ends = [ax.transData.transform(np.c_[points["bytes"], ends[end]]) for end in ends]
    taken = [Bbox([low - 2, high + 2]) for low, high in zip(*ends, strict=True)]
    taken += [Bbox([middle - 6, middle + 6]) for middle in at]
    front = points[points["front"]].sort_values("bytes")
    lines = (front[["bytes", "change"]], [(x, 0) for x in ax.get_xlim()])
    lines = [Path(ax.transData.transform(line)) for line in lines]
    inside = ax.get_window_extent()
    close = points.sort_values("bytes").round({"bytes": 0, "change": 1})
    for _, some in close.groupby(["bytes", "change"], sort=False):
        notes = []
        for dx, dy in PLACES:
            how = {"ha": {-1: "right", 0: "center", 1: "left"}[np.sign(dx)]}
            how |= {"va": {-1: "top", 0: "center", 1: "bottom"}[np.sign(dy)]}
            where = {"xytext": (dx, dy), "textcoords": "offset points"}
            point = points.loc[some.index[0], ["bytes", "change"]]
            words = "\n".join(some.index)
            note = ax.annotate(words, point, fontsize=plotting.SMALL, **where, **how)
            note.set_in_layout(False)
            box = note.get_window_extent()
            out = not (inside.x0 < box.x0 and box.x1 < inside.x1)
            out |= not (inside.y0 < box.y0 and box.y1 < inside.y1)
            crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
            notes.append((100 * out + 10 * box.count_overlaps(taken) + crossed, note, box))
        _, kept, box = min(notes, key=lambda found: found[0])
        for _, note, _ in notes:
            if note is not kept:
                note.remove()
        taken.append(box)


def _ranged(point: pd.Series) -> str:
    """The change, and its range over seeds where there is one."""
    ends = f" [{point['low']:+z.1f}, {point['high']:+z.1f}]" if point["low"] == point["low"] else ""
    return f"{point['change']:+z.1f}{ends}"


def _said(point: pd.Series) -> str:
    return f"{point['bytes']:.0f} % of the bytes, {_ranged(point)} points"


def change(run: Run) -> Drawn:
    """What every way changes on every task, mean over seeds."""
    metrics, order = run.alike(), list(run.config.task_names)
    saved = metrics.loc[metrics["metric"].eq("total_bytes"), "split"]
    found = metrics[metrics["metric"].eq("routed") & metrics["split"].isin(saved)]
    less = found.assign(value=minus(found, ["seed", "eval_task"], split="full"))
    less = less[less["split"].ne("full") & less["eval_task"].ne("")]
    columns = {task: {"metric": "routed", "eval_task": task} for task in order}
    table = figures(less.assign(unit=""), ["split"], columns).rename(index=name)
    means = table.mean(axis=1)
    lost, won = table.stack().idxmin(), table.stack().idxmax()
    answer = f"{(means.round(6) >= 0).sum()} of {len(means)} ways lose nothing on the mean over "
    answer += f"tasks. On a single task the change is between {100 * table.loc[lost]:+z.1f} points "
    answer += f"({lost[0]}, on {lost[1]}) and {100 * table.loc[won]:+z.1f} ({won[0]}, on {won[1]})."
    span = 5 * np.ceil(max(1e-9, 100 * table.abs().max(axis=None)) / 5)
    title = "Change in routed accuracy on every task (points)"
    shown = table.assign(mean=means)
    ax = plotting.grid(shown, title, unit="points", span=span, blank=True, cell=(0.6, 0.32))
    ax.axvline(len(order) - 0.5, color="white", lw=4)
    rows = int(found.loc[found["eval_task"].ne(""), "n"].min())
    alt = "A heat map: rows the ways to make the stack smaller, columns the tasks and their mean."
    look = "Red is lost and blue is won against the full stack, empty is no change; one of the "
    look += f"{rows} rows of a task is {100 / rows:.1f} points."
    return Drawn(ax, answer, alt, look, seeds_of(metrics))


def boundary(run: Run) -> Drawn:
    """What one more frame loses, on its own task and on the mean over tasks, beside published."""
    metrics = run.alike()
    ours, theirs = _boundary(metrics)
    anchor = {"sst2": "sst2 (anchor)"} if "published anchor" in set(metrics["split"]) else {}
    numbers = pd.concat([ours, theirs.assign(metric="published " + theirs["metric"], run_id=None)])
    axes = plotting.panels(1, 2, plotting.WIDEST, 2.2 + 0.5 * ours["frame removed"].nunique())
    titles = {
        "task_loss": "Lost on the frame's own task",
        "loss": "Lost on the mean over all tasks",
    }
    found = {}
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        columns = {"by label name": metric, "by label position": f"{metric}_by_id"}
        columns |= {"published": f"published {metric}"}
        tables = [table / 100 for table in with_ends(numbers, ["frame removed"], columns)]
        tables = [table.rename(anchor) for table in tables]
        tables = [table.dropna(axis=1, how="all") for table in tables]
        found[metric] = tables[0]
        drawn = tables[0].columns
        low, high = (table.reindex(columns=drawn) for table in tables[1:])
        plotting.dots(tables[0], "points lost", ax, low=low, high=high)
        ax.get_legend().remove()
        ax.axvline(0, color="#888888", ls=":", lw=1, zorder=0)
        plotting.titled(ax, title)
    most = max(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(min(ax.get_xlim()[0] for ax in axes), most)
    axes[1].set_yticklabels([])
    axes[0].set_ylabel("frame removed")
    plotting.legend_below(axes)
    own = 100 * found["task_loss"]
    answer = (
        f"One more frame removed loses {own['by label name'].min():.0f} to "
        f"{own['by label name'].max():.0f} points on its own task"
    )
    if "published" in own:
        answer += f", {own['published'].min():.0f} to {own['published'].max():.0f} in the "
        answer += "published runs (means of two)"
    answer += f"; compared by label position, {own['by label position'].min():.0f} to "
    answer += f"{own['by label position'].max():.0f}."
    alt = "A line for each frame that is left: points lost without it, on its own task and on the "
    alt += "mean over tasks, compared by label name and by label position, beside published losses."
    look = "The anchor takes its whole family with it. By position, a frame with other labels is "
    look += "correct by luck, and so the published losses seem to be counted. "
    look += "Bars: lowest and highest seed."
    return Drawn(axes[0].figure, answer, alt, look, seeds_of(metrics))


def family(run: Run) -> Drawn:
    """Each frame on each task of the family, and where a removed frame's texts go; means over
    seeds."""
    seeds, tables = zip(*run.read_alike("transfer.csv", 0), strict=True)
    table = _mean(tables)
    how = {"index": "removed", "columns": "frame", "values": "share", "fill_value": 0}
    sent = [each for _, each in run.read_alike("substitutes.csv")]
    shares = _mean([each.pivot_table(**how, sort=False) for each in sent])
    frames = [task for task in run.config.task_names if task in shares]
    shares = 100 * shares.reindex(index=table.index, columns=frames).fillna(0)
    size = plotting.WIDEST, 2.5 + 0.34 * len(table)
    one, other = plotting.panels(1, 2, *size, width_ratios=[table.shape[1], len(frames)])
    one.figure.get_layout_engine().set(wspace=0.06)
    percent, worst = 100 * table, 100 * table.min(axis=None)
    start = max(0, 10 * np.floor(worst / 10))
    how = {"form": "{:.0f}", "bar": False}
    limits = (start, 100)
    plotting.heatmap(percent, "Accuracy (%)", "", one, numbers=percent, limits=limits, **how)
    one.set(xlabel="task of the text", ylabel="frame that answers")
    title = "Where a removed frame's texts go (%)"
    plotting.heatmap(shares, title, "", other, numbers=shares.where(shares >= 0.5), **how)
    other.set(xlabel="frame that steps in", ylabel="frame removed")
    means = percent.mean(axis=1)
    heirs = shares.idxmax(axis=1)
    pairs = [f"from {gone} to {heir}" for gone, heir in heirs.items()]
    answer = (
        f"On the {len(table)} tasks of the family, the frame {means.idxmax()} is best "
        f"({means.max():.0f} % on average) and {means.idxmin()} is worst ({means.min():.0f} %). "
        f"Once its frame is removed, a text goes most often {listed(pairs)}."
    )
    alt = "Two heat maps. Left the accuracy of each frame of the family on each task of the "
    alt += "family; right, for each frame removed, the share of its task's texts each other gets."
    look = f"Left, a column read downwards is one task under every frame; white is {start:.0f} %. "
    look += "Right, a row is where the router sends one task's texts once its frame is gone."
    return Drawn(one.figure, answer, alt, look, seeds)


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of tables cell by cell; a cell that a table does not have counts as 0."""
    rows, columns = tables[0].index, list(dict.fromkeys(c for table in tables for c in table))
    alike = [table.reindex(index=rows, columns=columns).fillna(0) for table in tables]
    return sum(alike) / len(alike)


def rule(run: Run) -> Drawn:
    """What the rule tried in one run, on which evidence, and what it lost in the end."""
    steps, bound = tried(run.read("decisions.csv")), run.config.max_loss_pp
    by = {"router": run.config.router}
    full = run.value("routed", split="full", **by)
    parts = dict(list(steps.groupby("rule", sort=False)))
    ratios = [len(part) + 1 for part in parts.values()]
    height = 1.7 + 0.4 * len(parts) + 0.3 * sum(ratios)
    how = {"height_ratios": ratios, "sharex": True}
    axes = plotting.panels(len(parts), 1, plotting.WIDEST, height, **how)
    sentences = []
    for ax, (each, part) in zip(axes, parts.items(), strict=True):
        lost = 100 * (full - run.value("routed", split=f"rule: {each}", **by))
        _decisions(ax, part, lost)
        ax.axvline(bound, color="black", ls=":", zorder=0, label=f"bound: {bound:g}")
        plotting.titled(ax, f"The rule, {each}")
        done = part[part["kind"].ne("keep")]
        sentence = f"{each.capitalize()}, {len(done)} changes are made and {len(part) - len(done)} "
        sentence += "refused"
        for most in done["upper_pp"][-1:]:
            sentence += f"; after the last, at most {most:z.1f} points are lost on held-back rows "
            sentence += f"(95 %), and on evaluation rows the accuracy changes by {-lost:+z.1f}"
        sentences.append(sentence + ".")
    axes[-1].set_xlabel("points of routed accuracy lost so far (negative: won)")
    plotting.legend_below(axes)
    answer = f"The bound is {bound:g} point{'s' * (bound != 1)}. {' '.join(sentences)}"
    alt = "A bar for each change that the rule tried: the loss on held-back rows, a line up to its "
    alt += "upper 95 % limit, and a dotted line at the bound; below, the loss on evaluation rows."
    look = "A change is made where the line ends left of the dotted one. Losses are against the "
    look += "stack before any decision, mean over the tasks so far, all changes made together. Of "
    look += "what was refused, the last attempt for each frame is shown."
    return Drawn(axes[0].figure, answer, alt, look)


def _decisions(ax: Axes, part: pd.DataFrame, lost: float) -> None:
    """Bars of what one rule tried, and of what was lost in the end (points)."""
    done = part["kind"].ne("keep").to_numpy()
    made, end = plotting.styles(["made", "all changes made, on evaluation rows"])
    for some, color, label in ((done, made["color"], "made"), (~done, "white", "refused")):
        if some.any():
            how = {"height": 0.6, "color": color, "edgecolor": made["color"], "label": label}
            ax.barh(np.flatnonzero(some), part["loss_pp"][some], **how)
    at = np.arange(len(part))
    ax.hlines(at, part["loss_pp"], part["upper_pp"], color="black", lw=1.4, zorder=3)
    ax.plot(part["upper_pp"], at, "|", color="black", markersize=9, zorder=3)
    ax.barh(len(part), lost, height=0.6, color=end["color"], label=end["label"])
    words = [
        f"{_change(row)}: loss {row.loss_pp:z.1f}, at most {row.upper_pp:z.1f}"
        for row in part.itertuples()
    ]
    ax.set_yticks(range(len(part) + 1), [*words, f"{end['label']}: loss {lost:z.1f}"])
    ax.set_ylim(len(part) + 0.6, -0.6)
    ax.axvline(0, color="#888888", lw=0.8, zorder=0)
    ax.grid(axis="x", alpha=0.3)
    ax.margins(x=0.05)


def told(run: Run) -> list[str]:
    """What a run of notebook 06 found beside its figures, in a sentence or two."""
    decisions = run.read("decisions.csv")
    found = run.metrics[run.metrics["metric"].eq("logits_bit_equal")]
    lines = [
        f"{row.value * row.n:.0f} of {row.n} frames that the rule left alone have the same logits, "
        "to the last bit."
        for row in found.itertuples()
    ]
    if decisions["kind"].eq("keep").all():
        why = listed(decisions["reason"].dropna().unique()) if "reason" in decisions else "none"
        lines.append(f"The rule changed nothing: {why}.")
    return lines


_MIXED8, _HARD5 = ("06_compression", "mixed8", "minilm"), ("06_compression", "hard5", "minilm")
TABLES = {
    "compression_mixed8": Table(*_MIXED8, compression_table),
    "shrink_mixed8": Table(*_MIXED8, lambda m: shrink_cells(shrink_table(m))),
    "boundary_mixed8": Table(*_MIXED8, boundary_table),
    "shrink_hard5": Table(*_HARD5, lambda m: shrink_cells(shrink_table(m))),
}
FIGURES = {
    "shrink_mixed8": Figure(*_MIXED8, size, "How small can a stack be without losing answers?"),
    "shrink_mixed8_tasks": Figure(*_MIXED8, change, "Which task pays for a smaller stack?"),
    "shrink_mixed8_boundary": Figure(*_MIXED8, boundary, "What does one frame too few cost?"),
    "shrink_mixed8_family": Figure(*_MIXED8, family, "Who steps in for a frame that is gone?"),
    "shrink_mixed8_rule": Figure(*_MIXED8, rule, "What does the rule decide, on which evidence?"),
    "shrink_hard5": Figure(*_HARD5, size, "And where no two tasks have the same labels?"),
}
