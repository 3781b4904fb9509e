"""What was answered, row by row, as a run keeps it: later questions need no training.

``predictions.parquet`` has a row a text, without the text: split, task, label (its id), and a
column ``<frame>:<label name>`` for every class of every frame or head, the log probability it
gives, in half precision; missing where it was not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax

from ..answers import Answers
from ..conformal import threshold
from ..ensemble import Mixture
from ..heads import Evaluation
from ..stack import SkillStack
from ..tasks import TaskData
from .runs import Run

FILE = "predictions.parquet"


class Predictions(NamedTuple):
    """Of one split: n texts, and what every frame or head says of them."""

    tasks: np.ndarray  # which task each text is of, object (n,)
    labels: np.ndarray  # the right label id, int64 (n,)
    logits: np.ndarray  # log probabilities, float32 (n, frames, most classes), see `Mixture`
    label_names: dict[str, tuple[str, ...]]  # of every frame, by its name
    others: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # of tasks that have no frame

    @property
    def truth(self) -> np.ndarray:
        """The right label names, object (n,)."""
        names = {**self.others, **self.label_names}
        pairs = zip(self.tasks, self.labels, strict=True)
        return np.array([names[task][label] for task, label in pairs], dtype=object)

    def right(self, frames: Sequence[str] | None = None) -> np.ndarray:
        """Whether the frame named for each text (default: its task's) finds the right label name,
        bool (n,)."""
        frames, number = self.tasks if frames is None else frames, list(self.label_names)
        at = np.array([number.index(name) for name in frames], dtype=np.int64)
        best = self.logits[np.arange(len(at)), at].argmax(1)
        pairs = zip(frames, best, strict=True)
        return self.truth == [self.label_names[name][k] for name, k in pairs]

    def most_sure(self) -> np.ndarray:
        """The frame or head that says the most probable label of all, object (n,)."""
        best = np.nanmax(self.logits, axis=2).argmax(1)
        return np.array(list(self.label_names), dtype=object)[best]

    def mixture(self, shares: str = "learned") -> Mixture:
        """The mixture that fits these rows."""
        return Mixture(self.label_names, shares).fit(self.logits, self.tasks, self.labels)

    def mixed(self, mixture: Mixture, routed: np.ndarray) -> np.ndarray:
        """Whether the mixture finds the right label name, bool (n,); routed: P(frame | text)."""
        return mixture.predict(self.logits, routed) == self.truth

    def sets(
        self, calibration: Mapping[str, Sequence[float]], coverage: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether each text's label set, told the task, holds the right label, bool (n,), and how
        many labels are in it, (n,). calibration: task -> `Frame.calibration`, of every task."""
        number = {name: k for k, name in enumerate(self.label_names)}
        limits = {name: threshold(calibration[name], coverage) for name in number}
        own = self.logits[np.arange(len(self.tasks)), [number[task] for task in self.tasks]]
        limit = np.array([limits[task] for task in self.tasks])
        # Kept in half precision, which shows in the third digit.
        inside = 1 - softmax(own.astype(np.float64), axis=1) <= limit[:, None] + 5e-4
        inside &= np.isfinite(own)
        return inside[np.arange(len(own)), self.labels], inside.sum(1)

    def mean(self, right: np.ndarray) -> pd.Series:
        """Mean of `right` per task."""
        return pd.Series(right, dtype=float).groupby(self.tasks, sort=False).mean()


def kept(
    run: Run,
    splits: Mapping[str, Answers],
    label_names: Mapping[str, Sequence[str]],
    ask: Callable[[str], np.ndarray],
    union: bool = False,
) -> dict[str, Predictions]:
    """The predictions of a run by split: read, or made and kept.

    ask: of a split's name, logits (n, frames, most classes) of its texts, NaN where a frame was not
    asked, -inf beyond its classes. union: they are of one classifier over all (frame, label) pairs,
    whose probabilities sum to 1 over all of them and not for each frame.
    """
    table = run.table(FILE, lambda: _table(splits, label_names, ask, union))
    return {split: of(table, split) for split in splits}


def keep(
    run: Run,
    answers: Answers,
    stack: SkillStack,
    picked: Sequence[str] | None = None,
    **others: Answers,
) -> None:
    """Keep what a stack's frames have said of evaluation texts, and of others by their split.

    picked: the frame that answers each evaluation text, (n,), kept beside it in routing.parquet;
    None: another table has it, and each text's own frame is included where all have one.
    """
    if run.finished or (run.folder / FILE).exists():
        return
    names = {frame.name: frame.label_names for frame in stack.frames}
    if picked is not None:
        table = pd.DataFrame({"task": answers.tasks, "frame": np.asarray(picked, dtype=object)})
        run.save("routing.parquet", table)
    elif set(answers.tasks) <= names.keys():
        picked = answers.tasks
    if picked is not None:
        answers.right(stack, picked)  # where a run was interrupted, not all is known
    splits = {"eval": answers, **others}
    kept(run, splits, names, lambda split: splits[split].logits(stack))


def keep_told(run: Run, stream: Sequence[TaskData], said: Mapping[str, Evaluation]) -> None:
    """Keep what each task's own head, and no other, has said of the task's evaluation texts."""
    answers = Answers.of(stream, "eval")
    names = {data.name: data.task.label_names for data in stream}
    logits = np.full((len(answers.texts), len(names), max(map(len, names.values()))), np.nan)
    for k, (task, own) in enumerate(names.items()):
        mine = answers.tasks == task
        logits[mine, k] = -np.inf
        logits[mine, k, : len(own)] = said[task].logits
    run.save(FILE, _table({"eval": answers}, names, lambda _: logits))


def read(run: Run) -> dict[str, Predictions]:
    """The predictions that a run has kept, by split."""
    table, labels = run.read(FILE), run.labels
    found = {split: of(table, split) for split in table["split"].unique()}
    return {split: said._replace(others=labels) for split, said in found.items()}


def of(table: pd.DataFrame, split: str) -> Predictions:
    """One split of a kept table."""
    rows = table[table["split"].eq(split)]
    columns = [name.partition(":") for name in table.columns[3:]]
    names: dict[str, tuple] = {}
    for frame, _, label in columns:
        names[frame] = (*names.get(frame, ()), label)
    logits = np.full((len(rows), len(names), max(map(len, names.values()))), -np.inf, np.float32)
    start = 3
    for k, own in enumerate(names.values()):
        part = rows.iloc[:, start : start + len(own)].to_numpy(np.float32)
        logits[:, k, : len(own)] = part
        logits[np.isnan(part[:, 0]), k] = np.nan
        start += len(own)
    return Predictions(rows["task"].to_numpy(object), rows["label"].to_numpy(), logits, names)


def _table(splits, label_names, ask, union: bool = False) -> pd.DataFrame:
    parts = []
    for split, answers in splits.items():
        # Normalized, since two nearly equal logits are told apart best close to zero.
        logits = log_softmax(np.asarray(ask(split), np.float32), axis=(1, 2) if union else 2)
        part = {"split": split, "task": answers.tasks, "label": answers.labels.astype(np.int16)}
        for k, (frame, own) in enumerate(label_names.items()):
            said = logits[:, k, : len(own)].astype(np.float16)
            part |= {f"{frame}:{label}": said[:, c] for c, label in enumerate(own)}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)
