"""Rows and tasks that no frame was trained on: notebook 09."""

from __future__ import annotations

import pandas as pd

from .base import Figure, Table, by_seed, in_order, measured, minus, published


def generalization_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Unseen texts, published and measured by notebook 09: right answers and the routed stack's
    gain, seed by seed, and mean and range over seeds. Index: who, seed."""
    gain, theirs = "routed - latest (pp)", published("generalization")
    names = {"latest": "latest adapter", "routed": "routed stack"}
    names |= {"best_single_frame": "best single frame", "oracle": "oracle", "gain": gain}
    theirs = theirs[theirs["metric"].eq("accuracy")].assign(split=theirs["method"].map(names))
    groups = {"mean_all": "all tasks", "mean_seen": "seen tasks", "mean_unseen": "unseen tasks"}
    ours = in_order(measured(metrics, metric=groups), "metric", groups)
    ours["who"] += ", " + ours["metric"].map(groups)
    numbers = pd.concat([theirs, ours])
    gained = numbers.assign(value=minus(numbers, ["who", "seed"], split="latest adapter"))
    gained = gained[gained["split"].eq("routed stack")].assign(split=gain)
    columns = {name: {"split": name} for name in names.values()}
    return by_seed(pd.concat([numbers, gained]), columns, list(columns))


TABLES = {
    "generalization_mixed8": Table(
        "09_skill_generalization", "mixed8", "minilm", generalization_table
    ),
}
FIGURES: dict[str, Figure] = {}
