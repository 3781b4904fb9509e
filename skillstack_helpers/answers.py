"""`Answers`: which frame answers which text right, each frame asked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from .errors import (
    SkillStackError,
    checked_labels,
    checked_list,
    checked_names,
    checked_router,
    checked_texts,
    shown,
)
from .frames import Frame, weights_digest
from .heads import Evaluation
from .stack import SkillStack
from .tasks import TaskData, checked_stream


class Answers:
    """What frames answer to a fixed set of labelled texts; no frame is asked twice about one.

    texts, (n,); tasks: which each comes from; labels, label_names: the right label ids and their
    names. `Answers.of` takes all four from a stream. ``right(stack, "imdb")`` then asks one frame,
    ``right(stack, router.predict(answers.texts))`` each text's own.

    >>> texts, tasks = ["so good", "so bad", "a goal"], ["imdb", "imdb", "agnews"]
    >>> answers = Answers(texts, tasks, [1, 0, 1], ["positive", "negative", "sports"])
    >>> answers.accuracy(np.array([True, False, True])).to_dict()
    {'imdb': 0.5, 'agnews': 1.0}
    """

    def __init__(self, texts: Sequence[str], tasks, labels, label_names):
        self.texts = checked_texts(texts)
        self.tasks = np.array(checked_names(tasks, "tasks"), dtype=object)  # (n,)
        self.labels = checked_labels(labels, "labels")  # (n,)
        self.label_names = np.array(checked_names(label_names, "label_names"), dtype=object)
        if len({len(x) for x in (self.texts, self.tasks, self.labels, self.label_names)}) > 1:
            raise SkillStackError("texts, tasks, labels and label_names differ in length")
        self._known: dict[tuple, _Said] = {}  # what a frame is -> what it said
        self._frames: WeakKeyDictionary[Frame, tuple] = WeakKeyDictionary()  # frame -> what it is

    @classmethod
    def of(cls, stream: Sequence[TaskData], split: str, rows: slice = slice(None)) -> Answers:
        """A split ("train", "router", "eval") of every task; of its rows those in the slice."""
        texts, tasks, labels, names = [], [], [], []
        if split not in ("train", "router", "eval"):
            raise SkillStackError(f"split must be train, router or eval, got {shown(split)}")
        for data in checked_stream(stream, split):
            ids = data.labels(split)[rows]
            texts += data.texts(split)[rows]
            tasks += [data.name] * len(ids)
            labels += list(ids)
            names += [data.task.label_names[i] for i in ids]
        return cls(texts, tasks, labels, names)

    def right(
        self,
        stack: SkillStack,
        names: str | Sequence[str],
        rows: ArrayLike | None = None,
        label_ids: bool = False,
    ) -> np.ndarray:
        """Whether each text (or those at `rows`) is answered right, bool (n,).

        names: the frame asked, or one per text. Right means the right label *name*; a frame that
        does not know the name is wrong without being asked. label_ids: compare ids instead. rows:
        positions, or a mask of the texts.
        """
        rows = self._rows(rows)
        frames = _frames(stack, names, len(rows))
        truth = self.labels[rows]
        if not label_ids:
            own = {f: {label: i for i, label in enumerate(f.label_names)} for f in set(frames)}
            known = zip(frames, self.label_names[rows], strict=True)
            truth = np.array([own[frame].get(name, -1) for frame, name in known], dtype=np.int64)
        result, asked = np.zeros(len(rows), dtype=bool), truth >= 0
        result[asked] = self._ask(stack, frames[asked], rows[asked]) == truth[asked]
        return result

    def accuracy(self, right: np.ndarray, rows: ArrayLike | None = None) -> pd.Series:
        """Mean of `right` per task, in the order of the texts."""
        tasks = self.tasks[self._rows(rows)]
        return pd.Series(right, dtype=float).groupby(tasks, sort=False).mean()

    def routed(self, stack: SkillStack, router) -> pd.DataFrame:
        """Every text routed and answered: task, truth (label name), frame (the router's choice),
        score, depth, fallback, answer (label name)."""
        routes = checked_router(router, "route").route(self.texts)
        frames = _frames(stack, routes["frame"], len(routes))
        labels = self._ask(stack, frames, self._rows(None))
        answer = [frame.label_names[label] for frame, label in zip(frames, labels, strict=True)]
        where = {"task": self.tasks, "truth": self.label_names}
        return pd.DataFrame(where | dict(routes) | {"answer": answer})

    def note(self, frame: Frame, rows: ArrayLike, said: Evaluation) -> None:
        """Take over what a frame is known to answer to the texts at `rows`, so that it is not
        asked."""
        known, rows = self._answers_of(frame), self._rows(rows)
        known.labels[rows], known.logits[rows] = said.labels, log_softmax(said.logits, axis=1)

    def logits(self, stack: SkillStack) -> np.ndarray:
        """All that the stack's frames have said so far: log probabilities, float32 (n, frames, most
        classes); NaN where a frame was not asked, -inf beyond its classes."""
        width = max((len(frame.label_names) for frame in stack.frames), default=0)
        out = np.full((len(self.texts), len(stack.frames), width), -np.inf, np.float32)
        for k, frame in enumerate(stack.frames):
            said = self._answers_of(frame)
            out[:, k, : len(frame.label_names)] = said.logits
            out[said.labels < 0, k] = np.nan
        return out

    def _rows(self, rows: ArrayLike | None) -> np.ndarray:
        everything = np.arange(len(self.texts))
        if rows is None:
            return everything
        try:
            chosen = everything[rows]
            if chosen.ndim == 1:
                return chosen
        except (IndexError, TypeError, ValueError):
            pass
        raise SkillStackError(
            f"rows must be positions or a mask of {len(everything)} texts, got {shown(rows)}"
        )

    def _answers_of(self, frame: Frame) -> _Said:
        """What a frame said. Frames that answer the same, such as copies on disk and in memory,
        have it in common."""
        if frame not in self._frames:
            how = (frame.slot, frame.prompt, frame.label_names, frame.training["max_length"])
            self._frames[frame] = (weights_digest(frame), *how)
        if (key := self._frames[frame]) not in self._known:
            n, classes = len(self.texts), len(frame.label_names)
            self._known[key] = _Said(np.full(n, -1), np.full((n, classes), np.nan, np.float32))
        return self._known[key]

    def _ask(self, stack: SkillStack, frames: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Label ids that frames (n,) answer to the texts at rows (n,); all that is not known is
        asked at once."""
        known = {frame: self._answers_of(frame) for frame in dict.fromkeys(frames)}
        new = [(f, i) for f, i in zip(frames, rows, strict=True) if known[f].labels[i] < 0]
        if new := list(dict.fromkeys(new)):
            texts, names = [self.texts[i] for _, i in new], [frame.name for frame, _ in new]
            labels, chances, _ = stack.predict(texts, names)
            with np.errstate(divide="ignore"):  # a chance of 0
                logits = np.log(chances)
            for (frame, i), label, row in zip(new, labels, logits, strict=True):
                known[frame].labels[i] = label
                known[frame].logits[i] = row[: len(frame.label_names)]
        found = [known[f].labels[i] for f, i in zip(frames, rows, strict=True)]
        return np.array(found, dtype=np.int64)


class _Said(NamedTuple):
    """What one frame said of n texts."""

    labels: np.ndarray  # label ids (n,), -1 where not asked
    logits: np.ndarray  # log probabilities (n, classes), NaN where not asked


def _frames(stack: SkillStack, names, n: int) -> np.ndarray:
    """The frame that each of n texts asks, object (n,)."""
    names = [names] * n if isinstance(names, str) else checked_list(names, "frame names")
    if len(names) != n:
        raise SkillStackError(f"{n} texts but {len(names)} frame names")
    frames = {name: stack[name] for name in dict.fromkeys(names)}
    found = np.empty(n, dtype=object)
    found[:] = [frames[name] for name in names]
    return found


def transfer(stack: SkillStack, answers: Answers, names: Sequence[str]) -> pd.DataFrame:
    """Accuracy of every named frame (rows) on the texts of every named task (columns)."""
    rows = np.flatnonzero(np.isin(answers.tasks, list(names)))
    asked = np.repeat(np.array(names, dtype=object), len(rows))
    right = answers.right(stack, asked, np.tile(rows, len(names))).reshape(len(names), len(rows))
    table = {n: answers.accuracy(one, rows) for n, one in zip(names, right, strict=True)}
    return pd.DataFrame(table).T.reindex(columns=list(names))
