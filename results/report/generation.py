"""Frames that write their answers: notebook 08."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, listed
from skillstack_helpers.lab.names import name
from skillstack_helpers.lab.runs import Run
from skillstack_helpers.metrics import bootstrap_interval

from .base import (
    Figure,
    Table,
    bootstrapped,
    by_seed,
    ends_said,
    every,
    figures,
    files,
    mean,
    measured,
    minus,
    over_pairs,
    published,
    seeds_of,
    summary,
    with_ends,
)
from .streams import MATRIX

WHO = {  # display name -> what the runs call it
    "latest adapter": "latest adapter",
    "saved frames": "own frame",
    "routed stack": "routed stack",
}
SHOWN = ["right memory", "wrong memory", "random"]
ASKED = ["own frame", "bare backbone"]

# ---------------------------------------------------------------------- tables


def generative_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Written answers, published and measured by notebook 08, seed by seed, and mean and range over
    seeds; unreadable are answers of the saved frames. Index: who, seed."""
    drop = name("stack_drop")
    columns = {f"{who} (%)": {"metric": "mean_written", "split": k} for who, k in WHO.items()}
    columns |= {
        drop: "drop",
        "unreadable (%)": {"metric": "mean_unreadable", "split": "own frame"},
        name("router_accuracy"): "mean_router_accuracy",
    }
    metrics = metrics.sort_values("seed", kind="stable")
    return by_seed(_beside(metrics), columns, [heading for heading in columns if heading != drop])


def _beside(metrics: pd.DataFrame) -> pd.DataFrame:
    """The published numbers under the names of ours, our own, and each saved frame's `drop`."""
    theirs = published("generative").assign(seed="2 seeds")
    theirs["split"] = theirs["method"].map({"latest": "latest adapter", "routed": "routed stack"})
    shown = {"accuracy": "mean_written", "avg_forgetting": "drop"}
    shown |= {"router_accuracy": "mean_router_accuracy"}
    theirs["metric"] = theirs["metric"].map(shown)
    ours = measured(metrics, metric=["accuracy", "choice"])
    lost = ours.assign(value=minus(ours, ["seed", "eval_task"], metric="choice"), metric="drop")
    lost = lost[lost["trained_through"].eq(lost["eval_task"])]
    return pd.concat([theirs, measured(metrics), lost])


def written_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Written answers of notebook 08 per task in percent, mean over seeds: chance, latest adapter,
    saved frames and the lower 95 % limits of each seed (bootstrap over its rows), routed stack,
    router accuracy."""
    written = {who: {"metric": "written", "split": split} for who, split in WHO.items()}
    limits = ({"metric": "written_low", "split": "own frame"}, every)
    columns = {
        "chance": "chance",
        "latest adapter": written["latest adapter"],
        "saved frames": written["saved frames"],
        "saved frames, lower limit of each seed": limits,
        "routed stack": written["routed stack"],
        "right frame": "router_accuracy",
    }
    columns = {f"{heading} (%)": what for heading, what in columns.items()}
    table = summary(metrics[metrics["eval_task"].ne("")], ["eval_task"], columns, mean)
    return table.rename_axis("task").rename_axis(columns="means over seeds")


def memory_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What examples in the prompt change in notebook 08: correct answers in percent with nothing
    shown, then differences from that in points. Per task the mean over seeds; the mean over tasks
    with its 95 % bootstrap interval over seeds and tasks. Index: who, shown."""

    def written(how: Callable) -> Callable:
        forms = {"nothing": "{:.1f}"}  # else a difference, +0.0 where it is none
        return lambda cell: how(cell, forms.get(cell["shown"].iloc[0], "{:+z.1f}"))

    numbers = _memory(metrics)
    tasks = numbers["eval_task"].unique()
    columns = {task: ({"eval_task": task}, written(mean)) for task in tasks}
    columns["mean"] = ("memory", written(bootstrapped))
    return summary(numbers, ["who", "shown"], columns).rename_axis(
        columns="with nothing shown percent correct, below it points more or fewer; "
        "means [95 % bootstrap interval over seeds and tasks]"
    )


def _memory(metrics: pd.DataFrame) -> pd.DataFrame:
    """The share of correct answers with nothing shown, and the gain of everything else over it."""
    part = metrics[metrics["metric"].eq("memory")]
    part = part.assign(**part["split"].str.extract("(?P<who>.*): (?P<shown>.*)"))
    gain = minus(part, ["who", "seed", "eval_task"], shown="nothing")
    return part.assign(value=part["value"].where(part["shown"].eq("nothing"), gain))


# ---------------------------------------------------------------------- figures


def tasks(run: Run) -> Drawn:
    """Written answers per task: latest adapter, saved frames, routed stack; over seeds."""
    found = run.alike()
    seeds = seeds_of(found)
    rows = found[found["eval_task"].ne("")]

    def shown(metric: str, value: Callable) -> pd.DataFrame:
        columns = {who: {"metric": metric, "split": split} for who, split in WHO.items()}
        return figures(rows, ["eval_task"], columns, value) / 100

    table = shown("written", lambda cell: cell["value"].mean())
    low = shown("written_low", lambda cell: cell["value"].min())
    high = shown("written_high", lambda cell: cell["value"].max())
    chance = rows[rows["metric"].eq("chance")].groupby("eval_task")["value"].first()
    how = {"low": low, "high": high, "title": "Written answers after the whole stream"}
    ax = plotting.task_bars(table.assign(chance=chance.loc[table.index]), **how)
    ax.set_ylabel("written answers that are correct (%)")
    whole = found[found["metric"].eq("mean_written")]
    whole = 100 * whole.pivot(index="seed", columns="split", values="value")
    means = whole.rename(columns={split: who for who, split in WHO.items()}).mean()
    ahead = int((whole["routed stack"] > whole["latest adapter"]).sum())
    clear = [task for task in low.index if low.at[task, "saved frames"] > chance[task]]
    answer = (
        f"The saved frames write {means['saved frames']:.1f} % correct answers, the routed stack, "
        f"which is told nothing, {means['routed stack']:.1f} % and the latest adapter, which is "
        f"told the task, {means['latest adapter']:.1f} %; the routed stack is ahead of it in "
        f"{ahead} of {len(whole)} seed{'s' * (len(whole) > 1)}. "
    )
    every_seed = "in every seed " if len(whole) > 1 else ""
    answer += f"Clearly above chance {every_seed}(lower 95 % limit): {listed(clear)}."
    alt = "Three bars with whiskers for every task: latest adapter, saved frames, routed stack; "
    alt += "chance is dotted."
    look = "Blue above red is what forgetting costs, blue above green what the router costs; the "
    look += "number is the routed stack's. Whiskers: 95 % bootstrap interval over evaluation rows"
    several = (
        ", from the lowest seed's lower to the highest seed's upper end; bars: mean over seeds"
    )
    look += f"{several if len(seeds) > 1 else ''}."
    return Drawn(ax, answer, alt, look, seeds)


def matrix(run: Run) -> Drawn:
    """The accuracy matrix of the latest adapter, by a choice among the label words."""
    table, by_task = run.read("matrix.csv"), run.metrics.set_index("eval_task")
    chance = by_task.loc[by_task["metric"].eq("chance"), "value"]
    chosen = by_task.loc[by_task["metric"].eq("choice"), "value"]
    equal = by_task.loc[by_task["metric"].eq("logits_bit_equal"), "value"].astype(int)
    learned = pd.Series(np.diag(table), table.columns)
    lost = 100 * (table.iloc[-1] - learned)[:-1]
    kept = 100 * (learned - chosen)[:-1].mean()
    answer = (
        f"Choosing among the label words, the latest adapter ends {lost.mean():+.1f} points from "
        f"what it had learned of earlier tasks, lowest on {lost.idxmin()} ({lost.min():+.1f}); the "
        f"saved frames lose {kept:.1f}, and {equal.sum()} of {len(equal)} give the same log "
        "probabilities to the last bit."
    )
    figure = plotting.accuracy_matrix(table, chance)
    for ax in figure.axes:
        ax.set_xlabel("evaluated on (under that task's own prompt)")
    look = "Read a column downwards: what one task loses, and what later tasks bring back. Left, "
    look += "white is chance; right, red is lost."
    return Drawn(figure, answer, MATRIX, look)


def memory(run: Run) -> Drawn:
    """What two examples in the prompt change, of frame and bare backbone; over seeds."""
    found = run.alike()
    answers = files(run, "memory.csv")
    gains, over_tasks = memory_gains(answers), _memory(found)
    order = list(dict.fromkeys(answers["task"]))
    axes = plotting.panels(1, 2, plotting.WIDEST, 3.3)
    gained = {}
    for ax, who in zip(axes, ASKED, strict=True):
        means = over_tasks[over_tasks["who"].eq(who)]
        nothing = gains.loc[who]["nothing"].groupby("task").first()[order]
        nothing["mean"] = means.loc[means["shown"].eq("nothing"), "value"].mean()
        parts = {key: gains.loc[who][key].unstack("task")[order] for key in ("gain", "low", "high")}
        cells = {shown: means[means["shown"].eq(shown)] for shown in SHOWN}
        ends = {shown: over_pairs(cell) for shown, cell in cells.items()}
        parts["gain"]["mean"] = {shown: cell["value"].mean() for shown, cell in cells.items()}
        for end, key in enumerate(("low", "high")):
            parts[key]["mean"] = {shown: pair[end] for shown, pair in ends.items()}
        parts = {key: 100 * part.loc[SHOWN] for key, part in parts.items()}
        _gain_panel(ax, who, 100 * nothing, **parts)
        gained[who] = parts["gain"]["mean"]
    axes[1].set_yticks([])
    axes[0].set_ylabel("shown before the text")
    frame, bare = (gained[who] for who in ASKED)
    answer = (
        "Two examples from the memory of the right frame change the accuracy of the saved frames "
        f"by {frame['right memory']:+.1f} points and that of the bare backbone by "
        f"{bare['right memory']:+.1f}; from the memory of a wrong frame by "
        f"{frame['wrong memory']:+.1f} and {bare['wrong memory']:+.1f}; random examples by "
        f"{frame['random']:+.1f} and {bare['random']:+.1f} (means over tasks)."
    )
    alt = "Two heat maps, left the saved frames, right the backbone without adapter. Rows: what is "
    alt += "shown before a text; columns: tasks and their mean; cells: points gained or lost."
    look = "The first row is the percentage that is correct with nothing shown, the others the "
    look += "change in points: red is lost, blue gained. A hatched cell is not to be told from no "
    look += (
        "change: its 95 % bootstrap interval over questions (of the mean, over seeds and tasks) "
    )
    look += "holds 0. Half of the evaluation rows."
    return Drawn(axes[0].figure, answer, alt, look, seeds_of(found))


def memory_gains(answers: pd.DataFrame) -> pd.DataFrame:
    """Gain of every context over nothing shown: the mean difference of two answers to one question,
    with its 95 % bootstrap interval (fractions). Index: who, shown, task.

    answers: rows of memory.csv with their seed.
    """
    rows = {}
    for (who, task), part in answers.groupby(["who", "task"], sort=False):
        table = part.pivot(index=["seed", "row"], columns="shown", values="right").astype(float)
        for shown in SHOWN:
            gain = table[shown] - table["nothing"]
            numbers = (table["nothing"].mean(), gain.mean(), *bootstrap_interval(gain))
            rows[who, shown, task] = numbers
    table = pd.DataFrame.from_dict(rows, "index", columns=["nothing", "gain", "low", "high"])
    return table.set_axis(pd.MultiIndex.from_tuples(table.index, names=["who", "shown", "task"]))


def _gain_panel(ax, who, nothing, gain, low, high) -> None:
    """A row of what is correct with nothing shown, and below it the points gained; cells whose
    interval holds 0 (or that have none) hatched."""
    sure = (low > 0) | (high < 0)
    colors = pd.concat([pd.DataFrame(0.0, ["nothing"], gain.columns), gain.where(sure, 0.0)])
    numbers = pd.concat([pd.DataFrame(np.nan, ["nothing"], gain.columns), gain])
    how = {"cmap": plotting.DIVERGING, "limits": (-75, 75), "bar": False, "form": "{:+z.0f}"}
    title = "bare backbone" if who == "bare backbone" else name(who)
    shown = colors.rename(index=lambda key: f"{name(key)}{' (%)' * (key == 'nothing')}")
    title = f"{title[0].upper()}{title[1:]}: gain (points)"
    plotting.heatmap(shown, title, "", ax, numbers=numbers, **how)
    for place, value in enumerate(nothing):
        ax.text(place, 0, f"{value:.0f}", ha="center", va="center", size=plotting.SMALL)
    for (i, j), clear in np.ndenumerate(sure):
        if not clear:
            how = {"facecolor": "none", "edgecolor": "#BBBBBB", "hatch": "////", "linewidth": 0}
            ax.add_patch(Rectangle((j - 0.5, i + 0.5), 1, 1, **how))
    ax.axhline(0.5, color="#888888", lw=1)
    ax.axvline(gain.shape[1] - 1.5, color="#888888", lw=1)


def beside_published(run: Run) -> Drawn:
    """Means over tasks, published and measured; over seeds."""
    found = run.alike()
    numbers = _beside(found)
    columns = {
        f"{who} (%)": {"metric": "mean_written", "split": WHO[who]}
        for who in ("latest adapter", "routed stack")
    }
    columns |= {name("router_accuracy"): "mean_router_accuracy", name("stack_drop"): "drop"}
    means, low, high = (part.T / 100 for part in with_ends(numbers, ["who"], columns))
    ours, theirs = means["measured here"] * 100, means["published"] * 100
    latest, routed = list(columns)[:2]
    right = name("router_accuracy")
    answer = (
        f"Routed stack minus latest adapter is {ours[routed] - ours[latest]:+.1f} points here and "
        f"{theirs[routed] - theirs[latest]:+.1f} in the publication; the router finds the right "
        f"frame for {ours[right]:.1f} % of the texts here, {theirs[right]:.1f} % there."
    )
    order = ["measured here", "published"]
    means, low, high = (part[order] for part in (means, low, high))
    title = "Written answers, published and measured"
    ax = plotting.dots(means, "percent, or percentage points", title=title, low=low, high=high)
    ax.set_xticks(range(0, 101, 20))
    alt = "Dots for each number that was published: the publication in grey, our mean and range "
    alt += "over seeds in blue."
    look = (
        "The models differ (published: Llama-3.2-1B, mean of two seeds), so compare the distance "
    )
    look += "of latest adapter and routed stack, and not the level."
    look += ends_said(found, "Lines")
    return Drawn(ax, answer, alt, look, seeds_of(found))


def unreadable(run: Run) -> str:
    """How many written answers were no label word, a sentence about one run."""
    values = {who: 100 * run.value("mean_unreadable", split=split) for who, split in WHO.items()}
    words = listed(f"{who} {value:.1f} %" for who, value in values.items())
    return f"Written answers that do not begin with a label word: {words}."


# ---------------------------------------------------------------------- what is committed

_RUNS = ("08_generative_probe", "gen_mixed5", "smollm2-135m")
TABLES = {
    "generative_gen_mixed5": Table(*_RUNS, generative_table),
    "written_gen_mixed5": Table(*_RUNS, written_table),
    "memory_gen_mixed5": Table(*_RUNS, memory_table),
}
FIGURES = {
    "generation_tasks": Figure(*_RUNS, tasks, "Do frames keep the skill of writing an answer?"),
    "generation_matrix": Figure(*_RUNS, matrix, "When does a writing adapter forget what?"),
    "generation_memory": Figure(*_RUNS, memory, "Does it help to be shown examples?"),
    "generation_published": Figure(*_RUNS, beside_published, "Is it the published pattern?"),
}
