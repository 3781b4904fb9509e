"""The latest adapter, the saved frames and the routed stack: notebooks 01 and 02."""

from __future__ import annotations

import pandas as pd

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, listed
from skillstack_helpers.lab.names import name
from skillstack_helpers.lab.runs import Run

from .base import (
    BARS,
    BARS_LOOK,
    Figure,
    Table,
    crossed,
    forgotten_said,
    measured,
    number,
    published,
    summary,
)

COLUMNS = [
    "latest_drop",
    "stack_drop",
    "task_aware",
    "routed",
    "router_accuracy",
    "fallback",
    "depth",
]

MATRIX = (  # what is in an accuracy matrix, for those who do not see it
    "Two heat maps, rows: trained through, columns: evaluated on. Left the accuracy of the latest "
    "adapter, right the points won or lost since each task was learned."
)


def per_task(metrics: pd.DataFrame) -> pd.DataFrame:
    """One run's accuracy (fractions) per task, in stream order, for `plotting.task_bars`."""
    metrics = metrics[metrics["eval_task"].ne("")].assign(unit="")
    last = {"metric": "accuracy", "trained_through": metrics["eval_task"].unique()[-1:]}
    columns = {"latest adapter": last, "saved frames": "saved", "routed stack": "routed"}
    return summary(metrics, ["eval_task"], columns | {"chance": "chance"}, number)


def beside_published(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The published table's columns, in percent and percentage points: our runs first, a line
    each. Index: who, model, seed.

    metrics: of any runs; those of stacks on this preset are shown.
    """
    columns = {name(metric): metric for metric in COLUMNS}
    found = measured(metrics, preset=preset, method="stack", eval_task="")
    runs = [run for _, run in found.groupby(["model", "seed", "run_id"])]
    runs = [
        *(run.assign(seed=run["seed"].astype(str)) for run in runs),
        published(f"{preset}_table"),
    ]
    tables = [summary(run, ["who", "model", "seed"], columns, number) for run in runs]
    return pd.concat([table.astype(float) for table in tables])


# ---------------------------------------------------------------------- figures


def matrix(run: Run) -> Drawn:
    """The accuracy matrix of the latest adapter, and what was lost in it."""
    table, tasks = run.read("matrix.csv"), per_task(run.metrics)
    lost = 100 * (tasks["latest adapter"] - tasks["saved frames"])[:-1]
    adapter, frames = (100 * run.value(of) for of in ("latest_drop", "stack_drop"))
    answer = forgotten_said(adapter, lost, frames)
    look = "Read a column downwards: one task's fate under the latest adapter. Left, white is "
    look += "chance; right, red is lost."
    return Drawn(plotting.accuracy_matrix(table, tasks["chance"]), answer, MATRIX, look)


def tasks(run: Run) -> Drawn:
    """Accuracy per task at the end: latest adapter, saved frames, routed stack."""
    table = per_task(run.metrics)
    better = table.index[table["latest adapter"] > table["routed stack"]]
    by = {"router": run.config.router}
    answer = (
        f"Told the task, the saved frames answer {100 * run.value('task_aware'):.1f} % correctly; "
        f"told nothing, the routed stack {100 * run.value('routed', **by):.1f} %. "
        f"The latest adapter beats the routed stack on {len(better)} of {len(table)} tasks"
    )
    answer += f" ({listed(better)})." if len(better) else "."
    return Drawn(plotting.task_bars(table), answer, BARS, BARS_LOOK)


def confusion(run: Run) -> Drawn:
    """Where the router sends each task's texts."""
    routes, order = run.read("routing.parquet"), per_task(run.metrics).index
    counts = crossed(routes["task"], routes["frame"], order)
    astray = routes[routes["frame"] != routes["task"]]
    pairs = astray.groupby(["task", "frame"]).size().sort_values(ascending=False)
    answer = (
        f"The router finds the right frame for {100 * (1 - len(astray) / len(routes)):.1f} % of "
        f"{len(routes):,} texts"
    )
    if not len(pairs):
        answer += "."
    else:
        share = 100 * (astray["answer"] == astray["truth"]).mean()
        answer += f"; {share:.0f} % of the {len(astray)} sent to another frame are answered "
        answer += "correctly all the same."
        answer += f" Most often {pairs.index[0][0]} is taken for {pairs.index[0][1]}."
    alt = "A heat map of the router's picks: rows the task of the text, columns the frame picked."
    look = "Off the diagonal are tasks that look alike; a cell is percent of its row."
    return Drawn(plotting.confusion(counts), answer, alt, look)


def is_published(preset: str) -> bool:
    """Whether there is a published table of this stream."""
    return len(published(f"{preset}_table")) > 0


def pattern(run: Run) -> Drawn:
    """The published table's columns, published and measured."""
    table = beside_published(run.metrics, run.config.preset)
    better = {
        "Lower is better": [name("latest_drop"), name("stack_drop"), name("fallback")],
        "Higher is better": [name("task_aware"), name("routed"), name("router_accuracy")],
    }
    mine = table.loc["measured here"].iloc[0]
    column = name("latest_drop")
    answer = f"The latest adapter loses {mine[column]:.1f} points here"
    theirs = table.loc["published", column] if "published" in table.index else table[column][:0]
    if len(theirs):
        answer += f", {theirs.min():.1f} to {theirs.max():.1f} in the {len(theirs)} published runs "
        answer += "with Llama-3.2"
    answer += f"; the saved frames lose {mine[name('stack_drop')]:.1f}."
    alt = "Dots for each column of the published table: our run in blue, published runs in grey."
    look = "The models differ, so compare the pattern and not the level."
    return Drawn(plotting.beside_published(table, better), answer, alt, look)


def told(run: Run) -> list[str]:
    """What a run of notebook 01 or 02 found, in five lines for a reader who is new to all this."""
    table, by = per_task(run.metrics), {"router": run.config.router}
    learned = (100 * table[["saved frames", "chance"]]).round().astype(int)
    learned = [f"{task} {correct} ({chance})" for task, correct, chance in learned.itertuples()]
    equal = run.metrics.loc[run.metrics["metric"].eq("logits_bit_equal"), "value"].astype(int)
    drops = {name: 100 * run.value(name) for name in ("latest_drop", "stack_drop")}
    routed = {name: 100 * run.value(name, **by) for name in ("router_accuracy", "routed")}
    return [
        f"One LoRA adapter on {run.model} learned {len(table)} tasks one after another, from "
        f"{run.config.n_train} examples per class, in {run.facts['seconds']:.0f} seconds.",
        f"Accuracy right after learning, chance in brackets (%): {', '.join(learned)}.",
        f"By now the adapter has lost {drops['latest_drop']:.1f} points on the earlier tasks.",
        f"The frames saved on the way have lost {drops['stack_drop']:.1f}: {equal.sum()} of "
        f"{len(equal)} answer with the same logits, to the last bit.",
        f"Told nothing, the router finds the right frame for {routed['router_accuracy']:.1f} % "
        f"of the texts, and {routed['routed']:.1f} % of the answers are correct.",
    ]


def by_run(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """`beside_published` with a run in one column, as a page shows it."""
    table = beside_published(metrics, preset)
    who, model, seed = (table.index.get_level_values(level) for level in range(3))
    runs = [f"{m}, seed {s}" for m, s in zip(model, seed, strict=True)]
    return table.set_axis(pd.MultiIndex.from_arrays([who, runs], names=["who", "run"]))


def by_stream(metrics: pd.DataFrame) -> pd.DataFrame:
    """A line for each stream, as the field's other streams are shown."""
    seen = list(dict.fromkeys(metrics["preset"]))
    tables = {preset: beside_published(metrics, preset).loc["measured here"] for preset in seen}
    table = pd.concat(tables, names=["stream"])
    by = zip(*(table.index.get_level_values(n) for n in ("stream", "model", "seed")), strict=True)
    return table.set_axis(pd.Index([f"{s}, {m}, seed {k}" for s, m, k in by], name="run"))


_LONG = [f"long15_order{order}" for order in (4, 5, 6)]
_M, _S, _NF4 = "minilm", "smollm2-135m", "smollm2-135m nf4"
TABLES = {
    "hard8": Table("01_train_stack", "hard8", _M, lambda m: by_run(m, "hard8")),
    "hard12": Table("02_hard12", "hard12", _M, lambda m: by_run(m, "hard12")),
    "long15": Table("01_train_stack", _LONG, _M, by_stream),
    "intents": Table("01_train_stack", ["clinc10", "banking77"], _M, by_stream),
    "mini4": Table("01_train_stack", "mini4", [_S, _NF4], lambda m: by_run(m, "mini4")),
}
_LONG4, _CLINC = ("01_train_stack", _LONG[0], _M), ("01_train_stack", "clinc10", _M)
_LONG5 = ("01_train_stack", _LONG[1], _M)
_OWN = ("01_train_stack", "spam_airline_intents", _M)
_BANKING = ("01_train_stack", "banking77", _M)
_8, _12 = ("01_train_stack", "hard8", _M), ("02_hard12", "hard12", _M)
FIGURES = {
    "hard8_tasks": Figure(*_8, tasks, "What is left of eight tasks at the end of the stream?"),
    "hard8_matrix": Figure(*_8, matrix, "When does the latest adapter forget what?"),
    "hard8_confusion": Figure(*_8, confusion, "Which tasks does the router confuse?"),
    "hard8_published": Figure(*_8, pattern, "Is it the published pattern?"),
    "hard12_tasks": Figure(*_12, tasks, "Does the pattern hold for twelve tasks?"),
    "hard12_matrix": Figure(*_12, matrix, "When is what forgotten in the longer stream?"),
    "hard12_confusion": Figure(*_12, confusion, "Are pair tasks easier to route?"),
    "hard12_published": Figure(*_12, pattern, "Is it the published pattern?"),
    "long15_tasks": Figure(*_LONG4, tasks, "What is left of the field's long sequence?"),
    "long15_matrix": Figure(*_LONG4, matrix, "When is what forgotten in the long sequence?"),
    "long15_collapse": Figure(*_LONG5, tasks, "What if a frame of the chain collapses?"),
    "clinc10_tasks": Figure(*_CLINC, tasks, "Ten domains of fifteen intents: what is left?"),
    "own_tasks": Figure(*_OWN, tasks, "Three tasks that others had put online?"),
    "banking77_tasks": Figure(*_BANKING, tasks, "77 intents of one bank in seven steps?"),
    "banking77_confusion": Figure(*_BANKING, confusion, "Can a router tell the steps apart?"),
}
