"""The rule: which frames a stack can do without, or has learned better since, decided on
held-back rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from .answers import Answers
from .compression import MERGES, drop, families, merge
from .config import TrainingConfig, checked_config
from .errors import (
    SkillStackError,
    checked_name,
    checked_number,
    checked_router,
    checked_share,
    shown,
)
from .frames import Frame
from .parents import BEST, CRITERIA, parent_scores, pick
from .progress import progress
from .stack import LATEST, SkillStack, checked_stack
from .tasks import TaskData, checked_data


class Loss(NamedTuple):
    """What a change costs, in fractions summed over tasks.

    >>> Loss(total=0.02, variance=0.0001, losses=3, gains=1).upper(n_tasks=2, confidence=0.5)
    0.01
    """

    total: float  # sum over tasks of the mean loss in right answers
    variance: float  # of that sum
    losses: int  # rows right before and wrong after
    gains: int  # rows wrong before and right after

    def upper(self, n_tasks: int, confidence: float) -> float:
        """One-sided upper confidence bound of the mean loss over tasks."""
        return float(self.total + norm.ppf(confidence) * self.variance**0.5) / n_tasks


def paired_loss(
    before: np.ndarray, after: np.ndarray, tasks: np.ndarray, touched: np.ndarray
) -> Loss:
    """Loss from `before` to `after`, two bool arrays (n,) about the same rows.

    Per task the difference of two paired proportions with half a row added to each of the four
    cells (Agresti and Min 2005), so that a handful of rows without a loss is no proof. Tasks none
    of whose rows is `touched` (answered by another frame than before) lose nothing.
    """
    total = variance = 0.0
    for task in dict.fromkeys(tasks[touched]):
        mine = tasks == task
        lost = int((before & ~after)[mine].sum())
        won = int((after & ~before)[mine].sum())
        n = int(mine.sum()) + 2
        total += (lost - won) / n
        variance += (lost + won + 1 - (lost - won) ** 2 / n) / n**2
    return Loss(total, variance, int((before & ~after).sum()), int((after & ~before).sum()))


def prune(
    stack: SkillStack,
    router,
    choice: Answers,
    held_back: Answers,
    max_loss_pp: float = 1.0,
    confidence: float = 0.95,
    merge_by: str | None = "svd",
) -> SkillStack:
    """Reuse, merge or keep: the smallest stack whose expected loss in routed answers stays below
    `max_loss_pp`, points of accuracy, as far as one frame at a time gets.

    Another frame with the same label names may substitute for a frame. Which one is chosen on
    `choice` (rows such as the routing ones, each asked of its own task's frame). Whether that is
    good enough is decided on `held_back`, rows that neither frames nor router nor choice have
    seen, routed by `router`: the upper confidence bound (one-sided, `confidence`) of the loss
    against the stack as it was before any decision, mean over tasks, must not exceed the bound.
    Where reuse fails, a merge of the two is tried, by the method `merge_by` (None: no merge).

    The bound holds for each decision, not for all of them together. Every decision is in
    ``stack.decisions`` with its evidence: rows, losses, gains, loss and upper bound in points.
    """
    if merge_by is not None:
        checked_name(merge_by, MERGES, "merge")
    _check(stack, router, max_loss_pp, confidence, choice=choice, held_back=held_back)
    rule = _Rule(stack, router, choice, held_back, max_loss_pp, confidence)
    refused = {}
    steps = progress(rule.steps(stack, merge_by, refused), "prune", "decision")
    current = [stack, *steps][-1].copy()
    for frame in current.frames:
        why = refused.get(frame.name, {"reason": "no other frame has these labels"})
        current.decisions.append({"kind": "keep", "frames": [frame.name], **why})
    return current


def admit(
    stack: SkillStack, frame: Frame, router, choice: Answers, held_back: Answers, **options
) -> SkillStack:
    """Take in a newly trained frame online: `prune`, with the same options, on the stack with the
    frame, so that it is kept, replaced by another, replaces others, or is merged.

    The bound is for the mean over the tasks so far. The losses of earlier decisions are carried
    along, since the frames they were measured against may be gone.
    """
    if not isinstance(frame, Frame):
        raise SkillStackError(f"frame must be a Frame, got {shown(frame)}")
    if frame.name in checked_stack(stack):
        raise SkillStackError(f"frame {frame.name!r} is already in the stack")
    if frame.parent is not None and frame.parent not in stack:
        raise SkillStackError(f"frame {frame.name!r}: its parent {frame.parent!r} is unknown")
    new = prune(stack.copy([*stack.frames, frame]), router, choice, held_back, **options)
    before, own = len(stack.decisions), [frame.name]
    made = new.decisions[before:]
    new.decisions[before:] = [d for d in made if d["kind"] != "keep" or d["frames"] == own]
    return new


def second_look(
    stack: SkillStack,
    router,
    data: TaskData,
    config: TrainingConfig,
    held_back: Answers,
    parent: str | None = LATEST,
    by: str = "leep",
    max_loss_pp: float = 0.0,
    confidence: float = 0.95,
    targets: np.ndarray | None = None,
) -> SkillStack:
    """Learn an old task again, as a new frame that starts from another parent, and let that frame
    answer for the old one if it answers better.

    The new frame (``imdb-2``) is trained on the task's own rows, and starts from `parent` as in
    `SkillStack.grow`, or from the best one (`parents.BEST`) by `parents.parent_scores`, column
    `by`, on the task's routing rows. It is kept, and the old one dropped, if the upper confidence
    bound (one-sided, `confidence`) of the loss against the stack as it was does not exceed
    `max_loss_pp`, on `held_back` as in `prune`: with 0, only a gain that is proven. Otherwise the
    stack comes back with the decision alone. All other frames answer as before, to the last bit;
    `undo` brings the old one back. targets: as in `SkillStack.grow`.
    """
    checked_data(data, "train", "router", "eval")
    if data.name not in checked_stack(stack):
        raise SkillStackError(f"task {data.name!r} has no frame yet: grow the stack first")
    old = stack[data.name]
    if old.task != data.name:
        raise SkillStackError(f"frame {old.name!r} answers for {data.name!r}: undo that first")
    checked_name(by, CRITERIA, "criterion")
    checked_config(config)
    _check(stack, router, max_loss_pp, confidence, held_back=held_back)
    rule = _Rule(stack, router, None, held_back, max_loss_pp, confidence)
    rule.spent = Loss(0.0, 0.0, 0, 0)  # what was lost or gained before is not this frame's doing
    noted = {}
    if parent == BEST:
        scores = parent_scores(stack, data)
        parent = pick(scores, by)
        noted["scores"] = {name: column.dropna().to_dict() for name, column in scores.items()}
    name, grown = stack.free_name(data.name), stack.copy()
    how = {"parent": parent, "name": name, "targets": targets}
    frame = grown.grow(data, config, old.prompt, **how)
    trial = drop(grown, old.name, to=name)
    noted = {"kind": "second_look", "parent": frame.parent, **noted, **rule.test(trial)}
    if noted["accepted"]:
        trial.decisions[-1].update(noted)
        return trial
    refused = stack.copy()
    refused.decisions.append({"frames": [old.name], "by": name, **noted})
    return refused


def check_bound(max_loss_pp: float, confidence: float) -> None:
    """Raise `SkillStackError` for a bound of a loss that is none."""
    checked_share(confidence, "confidence")
    if checked_number(max_loss_pp, "max_loss_pp") < 0:
        raise SkillStackError(f"max_loss_pp must not be negative, got {max_loss_pp}")


def _check(stack: SkillStack, router, max_loss_pp, confidence, **answers: Answers) -> None:
    """Raise `SkillStackError` for what is no stack or router, for a bound that is none, or where a
    task has no rows."""
    checked_stack(stack)
    check_bound(max_loss_pp, confidence)
    checked_router(router, "predict")
    for word, rows in answers.items():
        if not isinstance(rows, Answers):
            raise SkillStackError(f"{word} must be Answers, got {shown(rows)}")
        for frame in stack.frames:
            if frame.task not in rows.tasks:
                raise SkillStackError(f"{word} has no rows of task {frame.task!r}")


class _Rule:
    """The test of one call of `prune` or `second_look`, and the search for the next step."""

    def __init__(self, stack, router, choice, held_back, max_loss_pp, confidence):
        self.choice, self.held_back = choice, held_back
        self.max_loss_pp, self.confidence = max_loss_pp, confidence
        self.rows = np.flatnonzero([task in stack for task in held_back.tasks])
        self.tasks = held_back.tasks[self.rows]
        self.picks = router.predict([held_back.texts[i] for i in self.rows])
        self.stack = stack  # as it was; asked only about rows whose frame changes
        self.answering = self._frames(stack)
        spent = [d for d in stack.decisions if d.get("accepted") and not d.get("undone")]
        # What a second look gained is not there to be spent on others; what a task without a frame
        # loses is measured against a frame that never was.
        spent = [d for d in spent if d["kind"] not in ("second_look", "never_created")]
        self.spent = Loss(*(sum(d[field] for d in spent) for field in Loss._fields))
        self.noted = Loss(0.0, 0.0, 0, 0)  # of the steps accepted in this call

    def _frames(self, stack) -> np.ndarray:
        """The frame that answers each row."""
        frames = {name: stack[name] for name in dict.fromkeys(self.picks)}
        return np.array([frames[name] for name in self.picks], dtype=object)

    def test(self, trial: SkillStack) -> dict:
        """Evidence for or against a stack; `total` to `gains` are what this step adds."""
        touched = self._frames(trial) != self.answering
        before, after = np.zeros((2, len(self.rows)), dtype=bool)
        for right, stack in ((before, self.stack), (after, trial)):
            right[touched] = self.held_back.right(stack, self.picks[touched], self.rows[touched])
        call = paired_loss(before, after, self.tasks, touched)
        whole = Loss(*(a + b for a, b in zip(self.spent, call, strict=True)))
        n_tasks = len(set(self.tasks))
        upper = 100 * whole.upper(n_tasks, self.confidence)
        step = [a - b for a, b in zip(call, self.noted, strict=True)]
        accepted = upper <= self.max_loss_pp
        if accepted:
            self.noted = call
        return {
            "accepted": accepted,
            "tasks": n_tasks,
            "rows": len(self.rows),
            "loss_pp": 100 * whole.total / n_tasks,
            "upper_pp": upper,
            "max_loss_pp": self.max_loss_pp,
            "confidence": self.confidence,
        } | dict(zip(Loss._fields, step, strict=True))

    def steps(self, current: SkillStack, merge_by, refused) -> Iterator[SkillStack]:
        """The stack after each change, until no further one passes."""
        while (changed := self.step(current, merge_by, refused)) is not None:
            yield (current := changed)

    def step(self, stack: SkillStack, merge_by: str | None, refused: dict) -> SkillStack | None:
        """The first change that passes, cheapest first on the `choice` rows; None if none does.

        refused: frame -> why it was not replaced, pair of frames -> why it was not merged; filled
        here.
        """
        for loss, name, to in self._options(stack):
            both = frozenset((name, to))
            for what in (name, both) if merge_by and both not in refused else (name,):
                try:
                    pair = [name, to]
                    trial = drop(stack, *pair) if what is name else merge(stack, pair, merge_by)
                except SkillStackError as error:  # e.g. another frame reads its adapter
                    if what is name:
                        refused.setdefault(name, {"reason": str(error)})
                    continue
                evidence = {"choice_loss": float(loss), **self.test(trial)}
                if evidence["accepted"]:
                    trial.decisions[-1].update(evidence)
                    refused.pop(name, None)
                    return trial
                refused[what] = {"by": to, **evidence}
        return None

    def _options(self, stack: SkillStack) -> list[tuple[float, str, str]]:
        """For each frame the best substitute: (loss summed over its tasks, frame, substitute)."""
        owner = {t: stack[t].name for t in dict.fromkeys(self.choice.tasks) if t in stack}
        owners = np.array([owner.get(task) for task in self.choice.tasks], dtype=object)
        options = []
        for names in families(stack):
            for name in names:
                rows = np.flatnonzero(owners == name)
                own = self.choice.right(stack, name, rows)
                found = []
                for to in names:
                    if to != name:
                        lost = own.astype(float) - self.choice.right(stack, to, rows)
                        found.append((self.choice.accuracy(lost, rows).sum(), name, to))
                options.append(min(found))
        return sorted(options)
