"""What notebook 06 measures of every smaller stack."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .. import compression
from ..answers import Answers
from ..errors import SkillStackError
from ..frames import weights_digest
from ..progress import progress
from ..stack import SkillStack
from ..tasks import TaskData
from .experiment import fit_router
from .names import name
from .runs import Run


class Bench:
    """The full stack and its router on the evaluation rows; smaller stacks are measured beside it.

    router: fitted on the first `n_router` routing rows of every task; it stays that of the full
    stack, so that what it sends to a dropped frame, the substitute answers. picks: the frame it
    sends each evaluation text to, (n,).
    """

    def __init__(self, run: Run, stack: SkillStack, stream: Sequence[TaskData]):
        self.run, self.stack, self.stream = run, stack, stream
        self.tasks = [data.name for data in stream]
        self.evaluated = Answers.of(stream, "eval")
        self.router = self.fit(self.tasks)
        self.picks = self.router.predict(self.evaluated.texts)
        self.folder = run.folder / "variants"

    def fit(self, names: Sequence[str]):
        """The run's router on the routing rows of some tasks."""
        config, some = self.run.config, [data for data in self.stream if data.name in names]
        settings = {"threshold": config.threshold, "seed": config.seed}
        rows = slice(config.n_router)
        return fit_router(config.router, some, self.stack, rows=rows, **settings)

    def measure(self, variant: str, small: SkillStack) -> str:
        """Save a stack, open it again and ask it the evaluation rows, so that bytes and answers are
        those of the files. Recorded with split `variant`; returned is a line about it."""
        place = self.folder / variant.replace(": ", "-").replace(" ", "_")
        shutil.rmtree(place, ignore_errors=True)
        small.copy().save_pretrained(place)
        again = SkillStack.from_pretrained(place, small.backbone)
        for one, other in zip(small.frames, again.frames, strict=True):
            if weights_digest(one) != weights_digest(other):
                raise SkillStackError(f"{place}: frame {one.name!r} is not what was saved")
        correct = self.evaluated.right(again, self.picks)
        size, n = compression.stored_bytes(place), len(correct)
        on = {"router": self.run.config.router, "split": variant}
        by_task = self.evaluated.accuracy(correct)
        for task, value in by_task.items():
            rows = (self.evaluated.tasks == task).sum()
            self.run.record("routed", value, eval_task=task, n=rows, **on)
        self.run.record("routed", by_task.mean(), n=n, **on)
        self.run.record("frames", len(again), unit="frames", n=n, **on)
        how = [frame.storage for frame in again.frames]  # on a basis, each has a core of its own
        adapters = sum("shares" not in s or s.get("format") == "basis" for s in how)
        self.run.record("adapters", adapters, unit="adapters", n=n, **on)
        self.run.record("adapter_bytes", size["adapters"], unit="bytes", n=n, **on)
        self.run.record("total_bytes", size.sum(), unit="bytes", n=n, **on)
        share = size.sum() / self.run.value("total_bytes", **on | {"split": "full"})
        return (
            f"{name(variant)}: {len(again)} frames, {100 * share:.1f} % of the bytes, "
            f"{100 * by_task.mean():.1f} % routed correctly"
        )

    def clear(self) -> None:
        """Delete the stacks that were measured."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def one_too_few(self, small: SkillStack, gone: str) -> str:
        """What a compressed stack loses without one more frame, and the router fitted without it
        and all it answers for: by label name, and by label position (``_by_id``), where a frame of
        another family can be correct by luck."""
        names = [task for task in self.tasks if small[task].name != gone]
        picks, own = self.fit(names).predict(self.evaluated.texts), self.evaluated.tasks == gone
        on = {"router": self.run.config.router, "split": f"anchor without {gone}"}
        for ids, ending in ((False, ""), (True, "_by_id")):
            before, after = (
                self.evaluated.right(small, by, label_ids=ids) for by in (self.picks, picks)
            )
            lost = before.astype(float) - after
            mean = self.evaluated.accuracy(lost).mean()
            self.run.record(f"loss{ending}", mean, n=len(lost), **on)
            self.run.record(f"task_loss{ending}", lost[own].mean(), n=own.sum(), **on)
        lost = 100 * self.run.value("task_loss", **on)
        return f"without {gone}: {lost:.1f} points lost on its own task"

    def substitutes(self, family: Sequence[str]) -> pd.DataFrame:
        """Who steps in: each frame of a family is taken out in turn and the router fitted without
        it. The loss on its own task is recorded; returned is where its texts go (removed, frame,
        share)."""
        rows = []
        for gone in progress(family, "who steps in", "frame"):
            own = np.flatnonzero(self.evaluated.tasks == gone)
            others = self.fit([task for task in self.tasks if task != gone])
            sent = others.predict([self.evaluated.texts[i] for i in own])
            before, after = (
                self.evaluated.right(self.stack, by, own) for by in (self.picks[own], sent)
            )
            on = {"router": self.run.config.router, "split": f"full without {gone}"}
            lost = before.mean() - after.mean()
            self.run.record("task_loss", lost, eval_task=gone, n=len(own), **on)
            shares = pd.Series(sent).value_counts(normalize=True)
            rows += [(gone, frame, share) for frame, share in shares.items()]
        return pd.DataFrame(rows, columns=["removed", "frame", "share"])


def decision_table(made: Mapping[str, SkillStack]) -> pd.DataFrame:
    """What the rule decided, a line a decision: rule -> the stack that it left."""
    rows = [{"rule": rule, **each} for rule, stack in made.items() for each in stack.decisions]
    table = pd.DataFrame(rows).drop(columns="replaced", errors="ignore")
    return table.assign(frames=table["frames"].map(", ".join))
