"""Reuse or create: does a new task need a frame of its own, and where should it start from?

Two questions, each with its own evidence. Do the texts look like those of a frame
(`routers.gate`: error rates stated)? And would that frame answer as well as one of the task's own
(a bound on the loss, as in `pruning`)? Likeness is no usefulness, so the second decides wherever
there are labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .backbones import Backbone
from .config import TrainingConfig, checked_config
from .errors import SkillStackError, checked_number, checked_router, checked_share, shown
from .frames import check_frame_name
from .parents import features_and_scores, parent_scores
from .pruning import check_bound, paired_loss
from .routers.gate import GateRouter
from .stack import SkillStack, checked_stack
from .tasks import TaskData, checked_data

GROUP = 16  # texts that are tested together, by default
NOBODY = "none of my skills"


class Decision(NamedTuple):
    """What to do with a task, and why."""

    action: str  # "known", "reuse", "grow" (from `frame`) or "start" (from a new adapter)
    frame: str | None  # that is reused, or the parent
    reason: str
    evidence: pd.DataFrame  # a row a frame: alike (p-value), loss_pp, upper_pp, leep, ...


def decide(
    stack: SkillStack,
    data: TaskData,
    gate: GateRouter,
    max_loss_pp: float = 1.0,
    confidence: float = 0.95,
    texts: int = GROUP,
) -> Decision:
    """Reuse a frame, grow a new one from the best parent, or start from a new adapter.

    A frame with the task's label names may be reused if its loss against a frame of the task's own
    is at most `max_loss_pp`: the upper confidence bound of `pruning.paired_loss` on the routing
    rows, at `confidence` over all candidates together (Holm 1979: the best of m is tested at a
    level m times as strict). The frame of its own is not there yet; a logistic regression on the
    training rows stands in for it, on the frozen model's features or a frame's, whichever does
    better there (by cross-validation). It is weaker than a trained frame, so a loss is more likely
    to be missed than seen: `pruning.admit` decides again once a frame has been trained.

    Otherwise the parent is the best frame by LEEP, unless the frozen model's own features serve
    the task better than that frame's, by the same folds: then a new adapter. Evidence holds the
    group p-value of the first `texts` routing texts under each frame; it does not decide. Raises
    `SkillStackError` for a stack without frames and for a task without rows of two labels.
    """
    check_bound(max_loss_pp, confidence)
    checked_number(texts, "texts", 1, whole=True)
    checked_stack(stack)
    checked_data(data, "train", "router")
    checked_router(gate, "together", "frames_")
    names, labels = data.task.label_names, data.labels("router")
    evidence = parent_scores(stack, data)  # raises for too few rows
    evidence.insert(0, "alike", np.nan)
    if known := [name for name in evidence.index if name in gate.frames_]:
        alike = dict(zip(gate.frames_, gate.together(data.texts("router")[:texts]), strict=True))
        evidence.loc[known, "alike"] = [alike[name] for name in known]
    learned = np.unique(data.labels("train"))
    parent = str(evidence["leep"].idxmax())
    if len(learned) < 2:
        why = f"all training rows are {names[learned[0]]!r}: nothing can be compared"
        return Decision("grow", parent, why, evidence)
    stand_in, better = _stand_in(stack, data, parent)
    own = stand_in == labels
    evidence["loss_pp"] = evidence["upper_pp"] = evidence["p"] = np.nan
    touched, task = np.ones(len(own), dtype=bool), np.zeros(len(own), dtype=int)
    candidates = [f for f in stack.frames if set(f.label_names) == set(names)]
    answers = stack.logits(data.texts("router"), [f.name for f in candidates])
    for k, frame in enumerate(candidates):
        said = answers[:, k, : len(frame.label_names)].argmax(1)
        right = np.array([names.index(label) for label in frame.label_names])[said] == labels
        loss = paired_loss(own, right, task, touched)
        spread = loss.variance**0.5
        level = 1 - (1 - confidence) / len(candidates)
        evidence.loc[frame.name, "loss_pp"] = 100 * loss.total
        evidence.loc[frame.name, "upper_pp"] = 100 * loss.upper(1, level)
        evidence.loc[frame.name, "p"] = norm.cdf((loss.total - max_loss_pp / 100) / spread)
    if evidence["upper_pp"].min() <= max_loss_pp:
        best = str(evidence["upper_pp"].idxmin())
        bound, loss = evidence.loc[best, ["upper_pp", "loss_pp"]]
        why = f"{best!r} loses {loss:.1f} points, at most {bound:.1f}, against one of its own"
        return Decision("reuse", best, why, evidence)
    if not candidates:
        why = "no frame has these labels"
    else:
        best = str(evidence["upper_pp"].idxmin())
        why = f"{best!r} may lose {evidence.loc[best, 'upper_pp']:.1f} points"
    if better:
        return Decision("start", None, f"{why}; the bare model serves it best", evidence)
    return Decision("grow", parent, f"{why}; {parent!r} is the best parent", evidence)


def spare(stack: SkillStack, name: str, decision: Decision) -> SkillStack:
    """A stack in which the frame that was decided on answers for a task without one of its own.

    What was decided, and on which evidence, is in ``stack.decisions``; `compression.undo` takes it
    back, and the task can be learned. Raises `SkillStackError` for a name that is taken and for a
    decision that is not to reuse.
    """
    if not isinstance(decision, Decision):
        raise SkillStackError(f"decision must be one of `decide`, got {shown(decision)}")
    checked_stack(stack)
    if decision.action != "reuse":
        raise SkillStackError(f"the decision is to {decision.action}, not to reuse a frame")
    if check_frame_name(name) in stack:
        raise SkillStackError(f"frame {name!r} is already in the stack")
    new = stack.copy()
    new.dropped[name] = {"to": stack[decision.frame].name, "parent": None}
    noted = {"kind": "never_created", "frames": [name], "by": decision.frame}
    facts = decision.evidence.loc[[decision.frame]].dropna(axis=1) if len(decision.evidence) else {}
    evidence = {key: float(facts[key].iloc[0]) for key in facts}
    new.decisions.append(noted | {"reason": decision.reason, "accepted": True, **evidence})
    return new


def _stand_in(stack: SkillStack, data: TaskData, parent: str) -> tuple[np.ndarray, bool]:
    """What a linear classifier on the training rows says of the routing rows, label ids (n,), on
    the features of the bare model or the parent; and whether the bare model's are better."""
    length, sides = stack[parent].training["max_length"], {}
    every = [*data.texts("train"), *data.texts("router")]
    sides[False], _ = features_and_scores(stack, stack[parent], every)
    with stack.backbone.without_adapter():
        sides[True] = stack.backbone.embed(every, length)[:, -1]
    n, labels = len(data.train), data.labels("train")
    folds = min(4, np.unique(labels, return_counts=True)[1].min())
    found = {False: 0.0, True: 0.0}  # with a label that one row has nothing can be held out
    for bare, features in sides.items() if folds > 1 else ():
        found[bare] = cross_val_score(_linear(), features[:n], labels, cv=folds).mean()
    better = bool(found[True] > found[False])
    model = _linear().fit(sides[better][:n], labels)
    return model.predict(sides[better][n:]), better


def _linear():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


class LearnerLoop:
    """A learner that nobody tells where a task begins: batches come, it decides, trains what it
    must, and answers or says that it cannot.

    A batch is a `TaskData`, whose name it does not read. `learn` takes one: where its texts look
    like one known skill alone and that skill's frame answers them as well as ever, nothing is
    done; otherwise `decide`. A reused frame answers for the new skill too (``stack.dropped``), and
    the gate learns what its texts look like. Skills are called skill1, skill2, ... `answer` asks
    the frame that the gate finds, and says `NOBODY` where none fits.

    Attributes: stack, gate, decisions (one a batch, the oldest first), each undoable by hand: a
    frame is never changed.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrainingConfig,
        alpha: float = 0.05,
        max_loss_pp: float = 1.0,
        **gate,
    ):
        self.stack, self.config = SkillStack(backbone), checked_config(config)
        checked_share(alpha, "alpha")
        check_bound(max_loss_pp, 1 - alpha)
        self.gate = GateRouter(backbone, alpha=alpha, max_length=config.max_length, **gate)
        self.max_loss_pp, self.alpha = max_loss_pp, alpha
        self.decisions: list[Decision] = []
        self._skills = 0

    def learn(self, batch: TaskData) -> Decision:
        """Take in a labelled batch; what was decided."""
        checked_data(batch, "train", "router", "eval")
        first = Decision("start", None, "the first skill", pd.DataFrame())
        decision = self.decide(batch) if self.stack.frames else first
        if decision.action != "known":
            self._take(batch, decision)
        self.decisions.append(decision)
        return decision

    def decide(self, batch: TaskData) -> Decision:
        """What to do with a batch; "known" for nothing. Another policy overrides it."""
        return self._known(batch) or decide(self.stack, batch, self.gate, self.max_loss_pp)

    def _known(self, batch: TaskData) -> Decision | None:
        """A skill of the same labels that the batch's texts may come from, if there is one."""
        alike = self.gate.together(batch.texts("router")[:GROUP])
        evidence = pd.DataFrame({"alike": alike}, index=list(self.gate.classes_))
        for name in evidence["alike"].sort_values(ascending=False).index:
            same = set(self.stack[name].label_names) == set(batch.task.label_names)
            if same and evidence.loc[name, "alike"] >= self.alpha and self._answers(name, batch):
                why = f"its texts may be those of {name!r} (p = {evidence.loc[name, 'alike']:.2f})"
                return Decision("known", name, why, evidence)
        return None

    def _answers(self, name: str, batch: TaskData) -> bool:
        """Whether a skill's frame answers the batch not clearly worse than its own rows: else its
        labels mean something else now."""
        frame, names = self.stack[name], batch.task.label_names
        said = self.stack.predict(batch.texts("router"), name).label_names
        right = np.mean(said == np.array([names[k] for k in batch.labels("router")], dtype=object))
        usual, n = frame.metrics["accuracy"], (len(said), frame.metrics["n"])
        spread = (0.25 / n[0] + 0.25 / n[1]) ** 0.5
        return right >= usual - norm.ppf(1 - self.alpha) * spread

    def _take(self, batch: TaskData, decision: Decision) -> None:
        self._skills += 1
        name = f"skill{self._skills}"
        renamed = dataclasses.replace(batch, task=dataclasses.replace(batch.task, name=name))
        if decision.action == "reuse":
            self.stack = spare(self.stack, name, decision)
        else:
            self.stack.grow(renamed, self.config, parent=decision.frame)
        texts = batch.texts("router")
        self.gate.partial_fit(texts, [name] * len(texts))

    def answer(self, texts: Sequence[str]) -> pd.DataFrame:
        """`SkillStack.answer` by the gate; frame and label_name are `NOBODY` where none fits."""
        said = self.stack.answer(texts, self.gate)
        said.loc[said["fallback"], ["frame", "label_name"]] = NOBODY
        return said
