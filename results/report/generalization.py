"""Rows and tasks that no frame was trained on: notebook 09."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, listed
from skillstack_helpers.lab.names import style
from skillstack_helpers.lab.runs import Run

from .base import (
    Figure,
    Table,
    by_seed,
    chance,
    ends_said,
    in_order,
    measured,
    minus,
    published,
    seeds_of,
    with_ends,
)

WAYS = {  # what the runs call it -> display name
    "latest adapter": "latest adapter",
    "routed stack": "routed stack",
    "mixed stack": "mixed stack",
    "mixed, labels told": "mixed, labels told",
    "best single frame": "best single frame",
    "oracle": "best frame per task",
}
GAIN = "routed stack minus latest adapter (pp)"
GROUPS = {"seen": "tasks of the stack", "unseen": "tasks never trained on"}

# ---------------------------------------------------------------------- tables


def generalization_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Unseen texts, published and measured by notebook 09: correct answers and the routed stack's
    gain, seed by seed, and mean and range over seeds. Index: who, seed."""
    theirs = published("generalization")
    split = {"latest": "latest adapter", "routed": "routed stack"}
    split |= {"best_single_frame": "best single frame", "gain": GAIN}
    theirs = theirs[theirs["metric"].eq("accuracy")].assign(split=theirs["method"].map(split))
    groups = {"mean_all": "all tasks", "mean_seen": "seen tasks", "mean_unseen": "unseen tasks"}
    ours = measured(metrics.sort_values("seed", kind="stable"), metric=groups)
    ours = in_order(ours, "metric", groups)
    ours["who"] += ", " + ours["metric"].map(groups)
    numbers = pd.concat([theirs, ours])
    gained = numbers.assign(value=minus(numbers, ["who", "seed"], split="latest adapter"))
    gained = gained[gained["split"].eq("routed stack")].assign(split=GAIN)
    shown = {split: words for split, words in WAYS.items() if split != "oracle"}  # in the figure
    columns = {f"{words} (%)": {"split": split} for split, words in shown.items()}
    columns[GAIN] = {"split": GAIN}
    table = by_seed(pd.concat([numbers, gained]), columns, list(columns))
    return table.rename(index=lambda who: str(who).removeprefix("measured here, "))


# ---------------------------------------------------------------------- figures


def answers(run: Run) -> Drawn:
    """Correct answers on every task, seen or not, by six ways to answer; over seeds."""
    found = run.alike()
    groups, known = _groups(run), chance(run)
    ways = {split: shown for split, shown in WAYS.items() if split in set(found["split"])}
    columns = {shown: {"metric": "accuracy", "split": split} for split, shown in ways.items()}
    parts = with_ends(found[found["eval_task"].ne("")], ["eval_task"], columns)
    for group in groups:
        whole = {shown: {"metric": f"mean_{group}", "split": k} for k, shown in ways.items()}
        means = with_ends(found[found["eval_task"].eq("")], ["preset"], whole)
        for k, each in enumerate(means):
            parts[k].loc[f"mean, {GROUPS[group]}"] = each.iloc[0]
    order = [line for group in groups for line in [*groups[group], f"mean, {GROUPS[group]}"]]
    means, low, high = (part.loc[order] / 100 for part in parts)
    ax = plotting.panels(1, 1, plotting.WIDEST, 1.6 + 0.5 * len(order))[0]
    title = "Who answers rows that were not trained on"
    plotting.dots(means, "correct answers (%)", ax, title, low, high)
    for place, task in enumerate(order):
        if task in known:
            how = {"color": style("chance")["color"], "lw": 1.6, "zorder": 0}
            ax.vlines(100 * known[task], place - 0.42, place + 0.42, **how)
        if place % 2:  # so that marks are not taken for those of the next line
            ax.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", zorder=-1)
    ax.plot([], [], linestyle="none", markersize=10, **style("chance"))
    ax.legend(ncols=4, **plotting.ABOVE)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlim(-3, 103)
    ax.set_yticks(range(len(order)), [line if line in known else "mean" for line in order])
    ends = np.cumsum([0, *(len(tasks) + 1 for tasks in groups.values())]) - 0.5
    how = {"transform": ax.get_yaxis_transform(), "rotation": 270, "size": plotting.SMALL}
    for group, start, end in zip(groups, ends[:-1], ends[1:], strict=True):
        ax.text(1.01, (start + end) / 2, GROUPS[group], va="center", **how)
    for end in ends[1:-1]:
        ax.axhline(end, color="black", lw=1.2)
    alt = "A line for each task, those of the stack above a rule and those never trained on below "
    alt += "it, each group with its mean; marks with ranges: latest adapter, routed stack, mixed "
    alt += "stack with and without the labels told, best single frame, best frame per task; "
    alt += "grey strokes mark chance."
    look = "Above the rule other rows of the stack's tasks, below it tasks it never saw. The best "
    look += "single frame and the best frame per task are chosen on these very rows, in hindsight. "
    look += "Labels told, frames without a word for the answer are not asked. At 0: no word for it."
    look += ends_said(found, "Lines")
    return Drawn(ax, _who_is_ahead(found, groups), alt, look, seeds_of(found))


def _who_is_ahead(found: pd.DataFrame, groups: dict) -> str:
    """The means of each group, and in how many seeds the routed stack is ahead."""
    sentences, ahead = [], {"latest adapter": [], "best single frame": []}
    for group in groups:
        rows = found[found["metric"].eq(f"mean_{group}")]
        each = 100 * rows.pivot(index="seed", columns="split", values="value")
        values = each.mean()
        mixed = ""
        if "mixed stack" in values:
            mixed = f", mixed {values['mixed stack']:.1f} % (the labels told "
            mixed += f"{values['mixed, labels told']:.1f} %)"
        sentences.append(
            f"On {GROUPS[group]}, the routed stack answers {values['routed stack']:.1f} % "
            f"correctly{mixed}, the latest adapter {values['latest adapter']:.1f} % and the best "
            f"single frame {values['best single frame']:.1f} %"
        )
        for other, counts in ahead.items():
            counts.append(str((each["routed stack"] > each[other]).sum()))
    latest, single = (" and ".join(counts) for counts in ahead.values())
    return (
        f"{'. '.join(sentences)}. The routed stack is ahead of the latest adapter in {latest} of "
        f"{len(each)} seed{'s' * (len(each) > 1)}, of the best single frame in {single}."
    )


def transfer(run: Run) -> Drawn:
    """Every frame on every task, seen and unseen; means over seeds."""
    seeds, tables = zip(*run.read_alike("transfer.csv", 0), strict=True)
    groups = _groups(run)
    mean = sum(tables) / len(tables)
    far = plotting.above_chance(mean, chance(run)[list(mean)])
    counts = [len(tasks) for tasks in groups.values()]
    size = (plotting.WIDEST, 1.6 + 0.34 * len(mean))
    axes = plotting.panels(1, len(groups), *size, width_ratios=counts)
    for ax, (group, tasks) in zip(axes, groups.items(), strict=True):
        numbers = 100 * mean[tasks].where(mean[tasks] > 0)
        how = {"numbers": numbers, "form": "{:.0f}", "bar": False}
        title = f"{GROUPS[group].capitalize()}: correct (%)"
        plotting.heatmap(far[tasks], title, "", ax, **how)
        plotting.bold_best(ax, numbers)
        ax.set_xlabel("task of the text")
        for place, task in enumerate(tasks):
            if task in mean.index:
                box = {"facecolor": "none", "edgecolor": "black", "linewidth": 1.2}
                row = mean.index.get_loc(task)
                ax.add_patch(Rectangle((place - 0.5, row - 0.5), 1, 1, **box))
    for ax in axes[1:]:
        ax.set_yticks([])
    axes[0].set_ylabel("frame that answers")
    alt = (
        "A heat map for the tasks of the stack and one for tasks never trained on: rows the frame "
    )
    alt += "that answers, columns the task of the text."
    look = (
        "White is chance or less, empty means that the frame has no word for the answer, bold is "
    )
    look += "the best of a column; a box marks the task's own frame."
    look += " Means over seeds." if len(seeds) > 1 else ""
    return Drawn(axes[0].figure, _whose_frame(tables, groups), alt, look, seeds)


def _whose_frame(tables: Sequence[pd.DataFrame], groups: dict) -> str:
    """Where another frame than a task's own is the best, and which one is best on unseen tasks."""
    mean = 100 * sum(tables) / len(tables)
    seen = mean[groups["seen"]]
    others = [f"{best} on {task}" for task, best in seen.idxmax().items() if best != task]
    of = f"{len(others)} of {seen.shape[1]} tasks of the stack"
    answer = f"On {of} another frame than their own is the best"
    answer += f" ({listed(others)})." if others else "."
    if "unseen" in groups:
        unseen = mean[groups["unseen"]]
        knows = unseen.index[unseen.gt(0).any(axis=1)]
        best = unseen.mean(axis=1)
        answer += f" {len(knows)} of {len(mean)} frames have a word for the answers of the unseen "
        answer += (
            f"tasks; the best one there is {best.idxmax()} with {best.max():.1f} %, mean over "
        )
        answer += "tasks."
    return answer


def routes(run: Run) -> Drawn:
    """Where the router sends the texts of every task; means over seeds."""
    seeds, tables = zip(*run.read_alike("routes.csv", 0), strict=True)
    groups = _groups(run)
    share = sum(tables) / len(tables)
    share = share.loc[[task for tasks in groups.values() for task in tasks]]
    ax = plotting.panels(1, 1, plotting.WIDEST, 1.6 + 0.33 * len(share))[0]
    plotting.confusion(share, ax)
    if "unseen" in groups:
        ax.axhline(len(groups["seen"]) - 0.5, color="black", lw=1.2)
    own = [share.at[task, task] for task in groups["seen"]]
    answer = f"The right frame is picked for {100 * np.mean(own):.1f} % of the texts of "
    answer += f"{GROUPS['seen']}, mean over tasks."
    if "unseen" in groups:
        lost = _without_words(share.loc[groups["unseen"]], run.labels)
        answer += f" Of {GROUPS['unseen']}, {100 * lost.mean():.1f} % of the texts go to a "
        answer += "frame that has no word for the answer"
        if lost.any():
            knowing = _knowing(lost.idxmax(), share.columns, run.labels)
            where = share.loc[lost.idxmax()].drop(knowing).idxmax()
            answer += f", most on {lost.idxmax()} ({100 * lost.max():.1f} %, above all to {where})"
        answer += "."
    alt = (
        "A heat map of the router's picks: rows the task of the text, those never trained on below "
    )
    alt += "a rule; columns the frame picked."
    look = (
        "Above the rule the diagonal is the right frame; below it every frame of the same labels "
    )
    look += "is one, and an empty cell is less than half a percent."
    look += " Means over seeds." if len(seeds) > 1 else ""
    return Drawn(ax, answer, alt, look, seeds)


def _without_words(share: pd.DataFrame, labels: Mapping) -> pd.Series:
    """The share of each task's texts (rows) that goes to frames which do not know its labels."""
    lost = {t: 1 - share.loc[t, _knowing(t, share.columns, labels)].sum() for t in share.index}
    return pd.Series(lost).clip(lower=0)


def _knowing(task: str, frames, labels: Mapping) -> list[str]:
    return [frame for frame in frames if labels[frame] == labels[task]]


def _groups(run: Run) -> dict[str, list[str]]:
    """The tasks of the stack, and those never trained on (if there are any)."""
    seen = list(run.config.task_names)
    tasks = run.metrics.loc[run.metrics["metric"].eq("accuracy"), "eval_task"].unique()
    groups = {"seen": seen, "unseen": [task for task in tasks if task not in seen]}
    return {group: tasks for group, tasks in groups.items() if tasks}


def words_missing(run: Run) -> str:
    """What the router gives away on unseen tasks, a sentence about one run."""
    means = {k: 100 * run.value("mean_unseen", split=k) for k in ("oracle", "routed stack")}
    if np.isnan(means["oracle"]):
        return "There was no task that shares its labels with a frame and was not trained on."
    share = run.read("routes.csv", 0).loc[_groups(run)["unseen"]]
    lost = 100 * _without_words(share, run.labels).mean()
    return (
        f"On tasks never trained on, the router gives away "
        f"{means['oracle'] - means['routed stack']:.1f} points to the best frame per task; "
        f"{lost:.1f} % of the texts go to frames that have no word for the answer."
    )


# ---------------------------------------------------------------------- what is committed

_RUNS = ("09_skill_generalization", "mixed8", "minilm")
TABLES = {"generalization_mixed8": Table(*_RUNS, generalization_table)}
FIGURES = {
    "generalization_answers": Figure(
        *_RUNS, answers, "Do saved frames help on what they were never trained on?"
    ),
    "generalization_transfer": Figure(*_RUNS, transfer, "Which frame knows which task?"),
    "generalization_routes": Figure(*_RUNS, routes, "Where do texts of unseen tasks go?"),
}
