"""`Answers`: which frame answers which text right, each frame asked once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .errors import SkillStackError
from .frames import Frame, weights_digest
from .progress import progress
from .stack import SkillStack
from .tasks import TaskData


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
        self.texts = list(texts)
        self.tasks = np.array(tasks, dtype=object)  # (n,)
        self.labels = np.array(labels, dtype=np.int64)  # (n,)
        self.label_names = np.array(label_names, dtype=object)  # (n,)
        if len({len(x) for x in (self.texts, self.tasks, self.labels, self.label_names)}) > 1:
            raise SkillStackError("texts, tasks, labels and label_names differ in length")
        self._known: dict[tuple, np.ndarray] = {}  # what a frame is -> label ids, -1 not asked
        self._frames: WeakKeyDictionary[Frame, tuple] = WeakKeyDictionary()  # frame -> what it is

    @classmethod
    def of(cls, stream: Sequence[TaskData], split: str, rows: slice = slice(None)) -> Answers:
        """A split ("train", "router", "eval") of every task; of its rows those in the slice."""
        texts, tasks, labels, names = [], [], [], []
        for data in stream:
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
        result = np.zeros(len(rows), dtype=bool)
        for frame, mine in _by_frame(stack, names, len(rows)):
            truth = self.labels[rows[mine]]
            if not label_ids:
                own = {label: i for i, label in enumerate(frame.label_names)}
                truth = np.array([own.get(name, -1) for name in self.label_names[rows[mine]]])
            asked = mine[truth >= 0]
            result[asked] = self._ask(stack, frame, rows[asked]) == truth[truth >= 0]
        return result

    def accuracy(self, right: np.ndarray, rows: ArrayLike | None = None) -> pd.Series:
        """Mean of `right` per task, in the order of the texts."""
        tasks = self.tasks[self._rows(rows)]
        return pd.Series(right, dtype=float).groupby(tasks, sort=False).mean()

    def routed(self, stack: SkillStack, router) -> pd.DataFrame:
        """Every text routed and answered: task, truth (label name), frame (the router's choice),
        score, depth, fallback, answer (label name)."""
        routes = router.route(self.texts)
        answer = np.empty(len(self.texts), dtype=object)
        for frame, mine in _by_frame(stack, routes["frame"], len(routes)):
            answer[mine] = np.array(frame.label_names, dtype=object)[self._ask(stack, frame, mine)]
        where = {"task": self.tasks, "truth": self.label_names}
        return pd.DataFrame(where | dict(routes) | {"answer": answer})

    def note(self, frame: Frame, rows: ArrayLike, labels: ArrayLike) -> None:
        """Take over what a frame is known to answer, so that it is not asked: label ids of the
        texts at `rows`."""
        self._answers_of(frame)[self._rows(rows)] = labels

    def _rows(self, rows: ArrayLike | None) -> np.ndarray:
        everything = np.arange(len(self.texts))
        return everything if rows is None else everything[rows]

    def _answers_of(self, frame: Frame) -> np.ndarray:
        """Label ids, -1 where not asked. Frames that answer the same, such as copies on disk and
        in memory, have them in common."""
        if frame not in self._frames:
            how = (frame.slot, frame.prompt, frame.label_names, frame.training["max_length"])
            self._frames[frame] = (weights_digest(frame), *how)
        return self._known.setdefault(self._frames[frame], np.full(len(self.texts), -1))

    def _ask(self, stack: SkillStack, frame: Frame, rows: np.ndarray) -> np.ndarray:
        known = self._answers_of(frame)
        new = rows[known[rows] < 0]
        if len(new):
            known[new] = stack.predict([self.texts[i] for i in new], frame.name).labels
        return known[rows]


def _by_frame(stack: SkillStack, names, n: int) -> Iterator[tuple[Frame, np.ndarray]]:
    """The frames asked, in order of appearance, each with the positions it is asked at."""
    names = np.array([names] * n if isinstance(names, str) else names, dtype=object)
    if names.shape != (n,):
        raise SkillStackError(f"{n} texts but {len(names)} frame names")
    for name in dict.fromkeys(names):
        yield stack[name], np.flatnonzero(names == name)


def transfer(stack: SkillStack, answers: Answers, names: Sequence[str]) -> pd.DataFrame:
    """Accuracy of every named frame (rows) on the texts of every named task (columns)."""
    rows, bar = np.isin(answers.tasks, list(names)), progress(names, "transfer", "frame")
    table = {name: answers.accuracy(answers.right(stack, name, rows), rows) for name in bar}
    return pd.DataFrame(table).T.reindex(columns=list(names))
