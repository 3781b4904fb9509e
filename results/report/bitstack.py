"""BitStack, one bit a weight: notebook 05."""

from __future__ import annotations

import pandas as pd

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn
from skillstack_helpers.lab.names import name, style
from skillstack_helpers.lab.runs import Run

from .base import (
    Figure,
    Table,
    chance,
    figures,
    mean,
    measured,
    published,
    seeds_of,
    summary,
    with_ends,
)

PANELS = {
    "final_drop": "Points lost on earlier tasks",
    "learned": "Correct right after learning (%)",
    "acc": "Correct at the end (%)",
}

# ---------------------------------------------------------------------- tables


def bitstack_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The methods of notebook 05 above the published ones: mean and range over seeds. Index: who,
    method. Columns: points lost on earlier tasks (the publication's forgetting), forgetting after
    Chaudhry et al., accuracy right after learning and at the end, share locked at the end, bytes.
    """
    columns = {
        "points lost": "final_drop",
        name("forgetting"): "forgetting",
        "learned (%)": "learned",
        "at the end (%)": "acc",
        "first task at the end (%)": "first_task",
        "locked (%)": "locked_pct",
        "stored (MB)": ("stored_bytes", mean),
    }
    last = metrics[metrics["metric"].eq("locked_pct")].groupby("run_id", sort=False).tail(1)
    ours = measured(pd.concat([measured(metrics, eval_task="", trained_through=""), last]))
    theirs = _published(metrics)
    theirs = theirs.assign(who="published: " + theirs["model"])
    return summary(pd.concat([ours, theirs]), ["who", "method"], columns).sort_index(kind="stable")


def _published(metrics: pd.DataFrame) -> pd.DataFrame:
    """The published numbers of the presets in `metrics`, under our names of the metrics."""
    names = {"avg_forgetting": "final_drop", "accuracy_final": "first_task"}
    theirs = published("results_table").replace({"metric": names | {"locked_share": "locked_pct"}})
    return theirs[theirs["preset"].isin(metrics["preset"])]


def curve(metrics: pd.DataFrame) -> pd.DataFrame:
    """What `PANELS` show of full fine-tuning (sparsity 0) and BitStack: method, metric, sparsity,
    percent (or points), low, high (over seeds, NaN for one); method is ``BitStack`` or
    ``published``."""
    ours = measured(metrics, eval_task="", trained_through="")
    ours = ours[ours["method"].str.match(r"baseline$|bitstack_")].assign(line="BitStack")
    theirs = _published(metrics).assign(line="published")
    numbers = pd.concat([ours, theirs[theirs["metric"].isin(PANELS)]])
    sparsity = numbers["method"].str.extract(r"_([\d.]+)")[0].astype(float).fillna(0.0)
    tables = with_ends(
        numbers.assign(sparsity=sparsity), ["line", "sparsity"], {m: m for m in PANELS}
    )
    parts = [table.stack() for table in tables]
    table = pd.concat(parts, axis=1, keys=["percent", "low", "high"]).reset_index()
    table = table.set_axis(["method", "sparsity", "metric", "percent", "low", "high"], axis=1)
    return table.dropna(subset="percent").sort_values(["method", "sparsity"], ignore_index=True)


# ---------------------------------------------------------------------- figures


def sparsity(run: Run) -> Drawn:
    """Points lost and accuracy against BitStack's sparsity, beside the saved frames and EWC."""
    found = run.alike()
    table = curve(found)
    whole = found[found["eval_task"].eq("") & found["trained_through"].eq("")]
    others = whole[whole["method"].isin(["frames", "ewc"])]
    lines = figures(others, ["method"], {m: m for m in PANELS}).loc[["frames", "ewc"]]
    lines = lines.rename(index=name)  # the dashed line comes last, so that equal ones show both
    axes = plotting.panels(1, len(PANELS), plotting.WIDEST, 3.8)
    for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
        part = table[table["metric"].eq(metric)]
        words = ("sparsity: share locked per task", "")
        plotting.curves(part, "sparsity", "percent", *words, ax, "method", title, legend=False)
        for line in ax.lines:
            line.set_linestyle("--" if line.get_label() == "published" else "-")
        for label, value in lines[metric].items():
            how = {"color": style(label)["color"], "label": label, "zorder": 1}
            ax.axhline(value, lw=2, ls="-." if label == name("ewc") else "-", **how)
        if metric != "final_drop":
            ax.set_ylim(0, 100)
            level = 100 * chance(run).mean()
            ax.axhline(level, color="black", ls=":", lw=1, label="chance")
    top = axes[0].get_ylim()[1]
    axes[0].set_ylim(min(axes[0].get_ylim()[0], -0.05 * top), top)
    plotting.legend_below(axes)
    lost = table[table["metric"].eq("final_drop") & table["method"].eq("BitStack")]
    lost = lost.set_index("sparsity")["percent"]
    masks = lost.drop(0.0)
    answer = f"Full fine-tuning loses {lost[0.0]:.1f} points on earlier tasks, BitStack "
    answer += f"{masks.min():.1f} (sparsity {masks.idxmin():g}) to {masks.max():.1f} "
    answer += f"({masks.idxmax():g}), EWC on a LoRA {lines.loc['EWC', 'final_drop']:.1f} and the "
    answer += f"saved frames {lines.loc[name('frames'), 'final_drop']:.1f}."
    alt = "Three panels against sparsity: points lost on earlier tasks, accuracy right after "
    alt += "learning and accuracy at the end, with horizontal lines for the saved frames and EWC."
    look = "A sparsity of 0 is full fine-tuning without masks. Accuracy at the end is what was "
    look += "learned less what was lost. Bands: lowest and highest seed."
    if table["method"].eq("published").any():
        look += " Published: single runs with GPT-2, points lost only."
    return Drawn(axes[0].figure, answer, alt, look, seeds_of(found))


def tasks(run: Run) -> Drawn:
    """Accuracy on every task at the end."""
    found = run.alike().sort_values("method", kind="stable")
    order = list(run.config.task_names)
    last = {"metric": "accuracy", "trained_through": order[-1]}
    columns = {task: last | {"eval_task": task} for task in order}
    table = figures(found, ["method"], columns).rename(index=name) / 100
    first = order[0]
    masked = table[table.index.str.startswith("BitStack")][first]
    title = "Accuracy at the end of the stream (%)"
    ax = plotting.task_grid(table, chance(run), title)
    answer = f"At the end the first task, {first}, is between {100 * masked.min():.1f} and "
    answer += (
        f"{100 * masked.max():.1f} % with BitStack, {100 * table.loc['EWC', first]:.1f} % with "
    )
    answer += (
        f"EWC and {100 * table.loc[name('frames'), first]:.1f} % with the saved frames; chance "
    )
    answer += f"is {100 * chance(run)[first]:.0f} %."
    alt = "A heat map: rows the methods, columns the tasks and their mean; the last row is chance."
    look = "All are told the task. The stream runs from left to right: the first columns have had "
    look += "most time to be forgotten. White is chance."
    return Drawn(ax, answer, alt, look, seeds_of(found))


def size(run: Run) -> str:
    """What must be stored beside the heads, a sentence."""
    found = run.alike()
    bytes_ = found[found["metric"].eq("stored_bytes")].groupby("method")["value"].mean() / 1e6
    masked = bytes_[bytes_.index.str.startswith("bitstack")].max()
    masks = masked - bytes_["baseline"]
    return (
        f"Stored beside the heads: saved frames {bytes_['frames']:.1f} MB, EWC "
        f"{bytes_['ewc']:.1f} MB, BitStack with its model {masked:.1f} MB ({masks:.1f} of them "
        "masks)."
    )


# ---------------------------------------------------------------------- what is committed

_5 = ("05_bitstack", "bitstack5", "minilm")
TABLES = {
    "bitstack_bitstack5": Table(*_5, bitstack_table),
    "bitstack_two_task": Table("05_bitstack", "two_task", "smollm2-135m", bitstack_table),
}
FIGURES = {
    "bitstack_sparsity": Figure(
        *_5, sparsity, "Does locking the weights that mattered stop forgetting?", "baseline"
    ),
    "bitstack_tasks": Figure(*_5, tasks, "Which tasks are left at the end?", "baseline"),
}
