"""What notebook 10 measures: who notices that a text, or a task, is none of a stack's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from ..backbones import Backbone
from ..conformal import Martingale, simes
from ..progress import progress
from ..reuse import NOBODY, LearnerLoop
from ..routers import GateRouter, HybridSVMRouter, ProfileRouter, Router, make_router
from ..routers.base import unit
from ..routers.gate import _Region
from ..stack import SkillStack
from ..tasks import OUT_OF_SCOPE, TaskData, load_task
from .parameters import RunConfig
from .runs import Run

ALPHA = 0.05
GROUPS = (1, 4, 16, 64)
NEIGHBOURS = 5
_OUT_OF_SCOPE = 1000  # evaluation rows; fewer where there are fewer


class Once:
    """A backbone for routers that read pooled states: it runs no text twice."""

    def __init__(self, backbone: Backbone):
        self.backbone, self._pooled = backbone, {}

    def __getattr__(self, name: str):
        return getattr(self.backbone, name)

    def pooled(self, texts: Sequence[str], max_length: int, first: int) -> np.ndarray:
        """`Backbone.pooled`."""
        new = [t for t in dict.fromkeys(texts) if (t, max_length, first) not in self._pooled]
        if new:
            rows = self.backbone.pooled(new, max_length, first)
            self._pooled |= {(t, max_length, first): r for t, r in zip(new, rows, strict=True)}
        return np.array([self._pooled[text, max_length, first] for text in texts])


class Pool:
    """Some known tasks, and every way to say how strange a text is to all of them together.

    texts: task -> routing texts. Every second one is a reference, for the gate and for the SVM on
    n-grams whose scores are compared with it; the others calibrate every threshold.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], backbone: Once, svm: bool = True):
        names = [name for name, own in texts.items() for _ in own]
        self.gate = GateRouter(backbone).fit([t for own in texts.values() for t in own], names)
        self.references = np.vstack([region.rows[::2] for region in self.gate._regions])
        self.whole = _Region(np.repeat(self.references, 2, axis=0))
        self.svm = HybridSVMRouter() if svm and len(texts) > 1 else None
        if self.svm is not None:
            halves = {name: own[::2] for name, own in texts.items()}
            names = [name for name, own in halves.items() for _ in own]
            self.svm.fit([t for own in halves.values() for t in own], names)
        self.held = [t for own in texts.values() for t in own[1::2]]
        self.calibration = self.strangeness(self.held, own=False)

    def strangeness(self, texts: Sequence[str], own: bool = True) -> pd.DataFrame:
        """A column a score, a row a text; larger is stranger. own: with the p-value, whose
        calibration texts are its own."""
        features = self.gate._features(list(texts))
        distances = self.gate.strangeness(texts)
        found = {"p-value": -self.gate.p_values(texts).max(1)} if own else {}
        found["Mahalanobis"] = distances.min(1)
        whole = np.square(self.whole.white(features)).sum(1)
        found["relative Mahalanobis"] = (distances - whole[:, None]).min(1)
        near = np.sort(features @ unit(self.references).T, axis=1)[:, -NEIGHBOURS:]
        found["nearest neighbours"] = -near.mean(1)
        if self.svm is not None:
            scores = self.svm.decision_function(texts)
            chances = self.svm.probabilities(scores)
            ordered = np.sort(scores, axis=1)
            found["softmax, with temperature"] = -chances.max(1)
            found["entropy"] = entropy(chances, axis=1)
            found["energy"] = -logsumexp(scores / self.svm.temperature_, axis=1)
            found["SVM margin"] = ordered[:, -2] - ordered[:, -1]
        return pd.DataFrame(found)

    def limits(self, alpha: float = ALPHA) -> pd.Series:
        """Above which a score calls a text novel: that of `alpha` of the calibration texts."""
        limits = self.calibration.quantile(1 - alpha)
        limits["p-value"] = -alpha
        return limits


def texts_of(stream: Sequence[TaskData], split: str) -> dict[str, list[str]]:
    """Task -> its texts."""
    return {data.name: data.texts(split) for data in stream}


def label_parts(stream: Sequence[TaskData]) -> dict[str, list[str]]:
    """Training texts of every label of every task, each a small task of its own."""
    return {
        f"{data.name}: {label}": data.task.render(data.train[data.train["label"] == k])
        for data in stream
        for k, label in enumerate(data.task.label_names)
    }


def load_out_of_scope(config: RunConfig) -> list[TaskData]:
    """The texts that no task of the preset owns, as one task; none where there are none."""
    name = OUT_OF_SCOPE.get(config.preset)
    if name is None:
        return []
    how = {"source": config.source, "data_dir": config.data_dir}
    return [load_task(name, 1, 1, _OUT_OF_SCOPE, config.seed, **how)]


def judged(known: pd.DataFrame, novel: pd.DataFrame, limits: pd.Series) -> pd.DataFrame:
    """A row a score: AUROC; FPR95, the share of novel texts that pass where 95 % of known ones do;
    and at the limits, which known texts set before, the shares called novel."""
    rows = {}
    for score in known:
        both = np.append(known[score], novel[score])
        truth = np.repeat([0, 1], [len(known), len(novel)])
        rows[score] = {
            "auroc": roc_auc_score(truth, both),
            "fpr95": np.mean(novel[score] <= np.quantile(known[score], 0.95)),
            "false_novel": np.mean(known[score] > limits[score]),
            "detected": np.mean(novel[score] > limits[score]),
        }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("score").reset_index()


def leave_one_out(stream: Sequence[TaskData], backbone: Once) -> pd.DataFrame:
    """Every task in turn is unknown to all the others: `judged` on the evaluation rows, with the
    task that was left out."""
    routing, asked, found = texts_of(stream, "router"), texts_of(stream, "eval"), []
    for name in progress(list(routing), "leave one out", "task"):
        pool = Pool({other: own for other, own in routing.items() if other != name}, backbone)
        known = pool.strangeness([t for o, own in asked.items() if o != name for t in own])
        found.append(judged(known, pool.strangeness(asked[name]), pool.limits()).assign(task=name))
    return pd.concat(found, ignore_index=True)


def groups(
    stream: Sequence[TaskData],
    backbone: Once,
    sizes: Sequence[int] = GROUPS,
    draws: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """How often a group of texts of one task is called novel, at `ALPHA`: with its task among the
    known ones (false_novel), and without (detected). A row a task, size and test."""
    rng, found = np.random.default_rng(seed), []
    gate = Pool(texts_of(stream, "router"), backbone, svm=False).gate
    for data in progress(stream, "groups of texts", "task"):
        own = list(gate.classes_).index(data.name)
        asked = data.texts("eval")
        strange, p = gate.strangeness(asked), gate.p_values(asked)
        for size in [n for n in sizes if n <= len(asked)]:
            called: dict[str, list] = {}
            for draw in range(draws):
                rows = rng.choice(len(asked), size, replace=False)
                tests = {
                    "together": gate.together([asked[i] for i in rows], draw),
                    "Simes": simes(p[rows]),
                    "martingale": _wealth(gate, strange[rows], draw),
                }
                for test, each in tests.items():
                    foreign = np.delete(each, own).max() < ALPHA
                    called.setdefault(test, []).append((each.max() < ALPHA, foreign))
            for test, pairs in called.items():
                known, novel = np.mean(pairs, axis=0)
                found.append((data.name, size, test, known, novel))
    return pd.DataFrame(found, columns=["task", "texts", "test", "false_novel", "detected"])


def _wealth(gate: GateRouter, strange: np.ndarray, seed: int) -> np.ndarray:
    """The martingale's p-value under every frame, (frames,)."""
    columns = zip(gate._regions, strange.T, strict=True)
    tests = [(Martingale(region.calibration, seed), own) for region, own in columns]
    for test, own in tests:
        test.update(own)
    return np.array([min(1.0, 1 / test.highest) for test, _ in tests])


def slide(
    parts: Mapping[str, Sequence[str]], sizes: Sequence[int], backbone: Once, seed: int = 0
) -> pd.DataFrame:
    """What happens to the published confidence as the pool grows, and to the p-value: a row a size.

    parts: small tasks -> texts, two thirds of them to fit, the rest to ask. Columns: confidence,
    the mean of the largest softmax over cosines (`ProfileRouter`, temperature 1); reused, the share
    of texts whose confidence passes 0.4; false_novel, the share that the gate calls novel; all of
    texts whose task is in the pool.
    """
    rng, found = np.random.default_rng(seed), []
    order = rng.permutation(list(parts))
    for size in progress(list(sizes), "pool sizes", "size"):
        chosen = {name: list(parts[name]) for name in order[:size]}
        ends = {name: 2 * len(own) // 3 for name, own in chosen.items()}
        names = [name for name, end in ends.items() for _ in range(end)]
        fitted = [t for name, own in chosen.items() for t in own[: ends[name]]]
        asked = [t for name, own in chosen.items() for t in own[ends[name] :]]
        profile = ProfileRouter(backbone, epochs=5, temperature=1.0).fit(fitted, names)
        confidence = profile.predict_proba(asked).max(1)
        novel = GateRouter(backbone, alpha=ALPHA).fit(fitted, names).route(asked)["fallback"]
        found.append((size, len(asked), confidence.mean(), np.mean(confidence >= 0.4),
                      novel.mean()))  # fmt: skip
    return pd.DataFrame(found, columns=["size", "n", "confidence", "reused", "false_novel"])


def most_confident(frames: int) -> float:
    """The largest softmax over cosines in [-1, 1] that a router of so many profiles can have: one
    of 1, all others -1.

    >>> round(most_confident(2), 2), most_confident(13) < 0.4 < most_confident(12)
    (0.88, True)
    """
    return float(1 / (1 + (frames - 1) * np.exp(-2)))


def drift(
    stream: Sequence[TaskData], routers: Sequence[str], backbone: Backbone, **settings
) -> pd.DataFrame:
    """How many texts are sent elsewhere because a router was fitted with more tasks: a row a router
    and step, of the evaluation texts of all tasks known a step before. Columns: router, tasks, n,
    moved (share sent to another frame than a step before), moved_right (share sent rightly before
    and wrongly now)."""
    routing, asked, found = texts_of(stream, "router"), texts_of(stream, "eval"), []
    names = list(routing)
    for kind in progress(list(routers), "routing drift", "router"):
        before: np.ndarray | None = None
        for step in range(2, len(names) + 1):
            known = names[:step]
            router: Router = make_router(kind, backbone=backbone, **settings)
            owners = [k for k in known for _ in routing[k]]
            router.fit([t for k in known for t in routing[k]], owners)
            picks = router.predict([t for k in known for t in asked[k]])
            if before is not None:
                now = picks[: len(before)]
                truth = np.repeat(known[:-1], [len(asked[k]) for k in known[:-1]])
                moved = now != before
                lost = moved & (before == truth)
                found.append((kind, step, len(now), moved.mean(), lost.mean()))
            before = picks
    return pd.DataFrame(found, columns=["router", "tasks", "n", "moved", "moved_right"])


# ---------------------------------------------------------------------- a stream without names


def in_parts(data: TaskData, parts: int) -> list[TaskData]:
    """A task's training and routing rows cut into batches that share none, each with every label as
    often; all with the same evaluation rows."""
    cut = {}
    for split in ("train", "router"):
        rows = getattr(data, split)
        place = rows.groupby("label").cumcount()
        cut[split] = [rows[place % parts == k].reset_index(drop=True) for k in range(parts)]
    pairs = zip(cut["train"], cut["router"], strict=True)
    return [dataclasses.replace(data, train=train, router=router) for train, router in pairs]


def judge(loop: LearnerLoop, stream: Sequence[TaskData]) -> pd.DataFrame:
    """What a loop answers to the evaluation rows of tasks, told nothing: a row a task. Columns:
    accuracy, unanswered (shares of its rows), n."""
    rows = {}
    for data in stream:
        said = loop.answer(data.texts("eval"))["label_name"].to_numpy(object)
        truth = np.array([data.task.label_names[k] for k in data.labels("eval")], dtype=object)
        rows[data.name] = {
            "accuracy": np.mean(said == truth),
            "unanswered": np.mean(said == NOBODY),
            "n": len(truth),
        }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("task")


def unnamed(stream: Sequence[TaskData]) -> dict[str, list[TaskData]]:
    """Three streams of batches from one of tasks: ``returning``, three unlike tasks and then more
    rows of the same; ``near``, the largest family of tasks with the same labels; ``far``, the first
    task of every set of labels. Those that would have one batch are left out."""
    families: dict[frozenset, list[TaskData]] = {}
    for data in stream:
        families.setdefault(frozenset(data.task.label_names), []).append(data)
    far = [family[0] for family in families.values()]
    halves = [in_parts(data, 2) for data in far[:3]]
    streams = {
        "returning": [half[k] for k in (0, 1) for half in halves],
        "near": max(families.values(), key=len),
        "far": far,
    }
    return {name: batches for name, batches in streams.items() if len(batches) > 1}


def played(loop: LearnerLoop, batches: Sequence[TaskData]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What came of a loop: `judge`, with frames and bytes kept; and a row for each decision."""
    tasks = list({data.name: data for data in batches}.values())
    size = sum(frame.nbytes for frame in loop.stack.frames)
    table = judge(loop, tasks).assign(frames=len(loop.stack.frames), bytes=size)
    said = [(data.name, d.action, d.frame or "", d.reason)
            for data, d in zip(batches, loop.decisions, strict=True)]  # fmt: skip
    decisions = pd.DataFrame(said, columns=["batch", "action", "frame", "reason"])
    return table.reset_index(), decisions


def oracle(
    batches: Sequence[TaskData], backbone: Backbone, config: RunConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`played` by one who is told the task: a frame each, in the order of the batches, that answers
    its own evaluation rows."""
    stack, rows, said = SkillStack(backbone), [], []
    for data in batches:
        action = "known" if data.name in stack else "grow"
        if action == "grow":
            measured = stack.grow(data, config).metrics
            rows.append((data.name, measured["accuracy"], 0.0, measured["n"]))
        said.append((data.name, action, data.name, "told"))
    table = pd.DataFrame(rows, columns=["task", "accuracy", "unanswered", "n"])
    size = sum(frame.nbytes for frame in stack.frames)
    table = table.assign(frames=len(stack.frames), bytes=size)
    return table, pd.DataFrame(said, columns=["batch", "action", "frame", "reason"])


def append(run: Run, name: str, table: pd.DataFrame) -> None:
    """Add rows to a table of a run; those of the same stream and policy are replaced."""
    if (run.folder / name).exists():
        old = run.read(name)
        same = old["stream"].eq(table["stream"].iloc[0]) & old["policy"].eq(table["policy"].iloc[0])
        table = pd.concat([old[~same], table], ignore_index=True)
    run.save(name, table)
