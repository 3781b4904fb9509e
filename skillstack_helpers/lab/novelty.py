"""What notebook 10 measures: who notices that a text, or a task, is none of a stack's own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from .. import training
from ..backbones import Backbone
from ..config import TrainingConfig
from ..conformal import Martingale, simes
from ..progress import progress
from ..reuse import NOBODY, LearnerLoop
from ..routers import GateRouter, HybridSVMRouter, ProfileRouter, Router, make_router
from ..routers.base import unit
from ..routers.gate import Region
from ..stack import SkillStack
from ..tasks import OUT_OF_SCOPE, TaskData, load_task
from .parameters import ALPHA, RunConfig
from .runs import Run

GROUPS = (1, 4, 16, 64)
NEIGHBOURS = 5
_OUT_OF_SCOPE = 1000  # evaluation rows; fewer where there are fewer


class Once:
    """A backbone for routers that read its states: it runs no text twice, at one length.

    sketched: whose adapter's shape `gradient_sketches` are taken at; None: there are none.
    """

    def __init__(self, backbone: Backbone, sketched: TrainingConfig | None = None):
        self.backbone, self.sketched = backbone, sketched
        self._known: dict[tuple, np.ndarray] = {}

    def __getattr__(self, name: str):
        return getattr(self.backbone, name)

    def pooled(self, texts: Sequence[str], max_length: int, first: int) -> np.ndarray:
        """`Backbone.pooled`."""
        return self._rows(texts, self.backbone.pooled, max_length, first)

    def embed(self, texts: Sequence[str], max_length: int = 160) -> np.ndarray:
        """`Backbone.embed`."""
        return self._rows(texts, self.backbone.embed, max_length)

    def sketches(self, texts: Sequence[str]) -> np.ndarray:
        """`gradient_sketches`."""
        return self._rows(texts, lambda new: gradient_sketches(self.backbone, new, self.sketched))

    def _rows(self, texts: Sequence[str], run: Callable, *how) -> np.ndarray:
        key = (getattr(run, "__name__", ""), *how)
        if new := [t for t in dict.fromkeys(texts) if (t, *key) not in self._known]:
            self._known |= {(t, *key): r for t, r in zip(new, run(new, *how), strict=True)}
        return np.array([self._known[text, *key] for text in texts])


def gradient_sketches(
    backbone: Backbone, texts: Sequence[str], config: TrainingConfig, width: int = 256
) -> np.ndarray:
    """Where each text would pull a fresh adapter, float32 (n, width), rows of length 1.

    The gradient of one random readout of the features with respect to every B of a new adapter of
    that shape, which are zero, as a count sketch (Charikar, Chen and Farach-Colton 2002). No label
    is read. Texts run one by one.
    """
    backbone.attach(
        config.lora_r, config.lora_alpha, backbone.layer_number(config.first_adapted_layer)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone.reset_lora()
        learned = [p for name, p in backbone.lora_parameters.items() if ".lora_B." in name]
        size, device = sum(p.numel() for p in learned), backbone.device
        place = torch.randint(width, (size,)).to(device)
        sign = (2.0 * torch.randint(2, (size,)) - 1).to(device)
        readout = torch.randn(backbone.hidden_size).to(device)
    found = np.empty((len(texts), width), dtype=np.float32)
    inputs = backbone.inputs(texts, config.max_length)
    with training.trainable(learned):
        for i, row in enumerate(progress(inputs, "gradient sketches", "text")):
            padded = training.pad([row], backbone.pad_id, device)
            gradients = torch.autograd.grad(backbone.features(*padded)[0] @ readout, learned)
            flat = torch.cat([g.float().flatten() for g in gradients])
            found[i] = torch.zeros(width, device=device).index_add_(0, place, flat * sign).cpu()
    return unit(found)


class Pool:
    """Some known tasks, and every way to say how strange a text is to all of them together.

    texts: task -> routing texts. Every second one is a reference, for the gate and for what its
    scores are compared with; the others calibrate every threshold. gate_alone: nothing else.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], backbone: Once, gate_alone=False):
        names = [name for name, own in texts.items() for _ in own]
        self.gate = GateRouter(backbone).fit([t for own in texts.values() for t in own], names)
        self.references = np.vstack([region.rows[::2] for region in self.gate.regions])
        self.whole = Region(np.repeat(self.references, 2, axis=0))
        if gate_alone:
            return
        halves = {name: own[::2] for name, own in texts.items()}
        rows = [t for own in halves.values() for t in own]
        names = [name for name, own in halves.items() for _ in own]
        self.sketches = backbone.sketches(rows) if backbone.sketched else None
        self.svm = self.profiles = None
        if len(texts) > 1:
            self.svm = HybridSVMRouter().fit(rows, names)
            self.profiles = ProfileRouter(backbone, epochs=5, temperature=1.0).fit(rows, names)
        self.held = [t for own in texts.values() for t in own[1::2]]
        self.calibration = self.strangeness(self.held, own=False)

    def strangeness(self, texts: Sequence[str], own: bool = True) -> pd.DataFrame:
        """A column a score, a row a text; larger is stranger. own: with the p-value, whose
        calibration texts are its own."""
        features = self.gate.features(texts)
        distances = self.gate.strangeness(texts)
        found = {"p-value": -self.gate.p_values(texts).max(1)} if own else {}
        found["Mahalanobis"] = distances.min(1)
        whole = np.square(self.whole.white(features)).sum(1)
        found["relative Mahalanobis"] = (distances - whole[:, None]).min(1)
        found["nearest neighbours"] = -_nearest(features, unit(self.references))
        if self.sketches is not None:
            mine = self.gate.backbone.sketches(texts)
            found["gradient sketches"] = -_nearest(mine, self.sketches)
        if self.svm is not None:
            scores = self.svm.decision_function(texts)
            chances = self.svm.probabilities(scores)
            found |= {f"SVM: {how}": each for how, each in doubts(chances).items()}
            found["SVM: energy"] = -logsumexp(scores / self.svm.temperature_, axis=1)
            chances = self.profiles.predict_proba(texts)
            found |= {f"profiles: {how}": each for how, each in doubts(chances).items()}
        return pd.DataFrame(found)

    def limits(self, alpha: float = ALPHA) -> pd.Series:
        """Above which a score calls a text novel: that of `alpha` of the calibration texts."""
        limits = self.calibration.quantile(1 - alpha)
        limits["p-value"] = -alpha
        return limits


def _nearest(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Mean cosine of each row, (n,), to the nearest references; all of length 1."""
    return np.sort(features @ references.T, axis=1)[:, -NEIGHBOURS:].mean(1)


def doubts(chances: np.ndarray) -> dict[str, np.ndarray]:
    """How unsure probabilities (n, frames) are, in three ways, larger is less sure: of the largest,
    as entropy in units of the largest entropy, and by the margin of the two largest."""
    ordered = np.sort(chances, axis=1)
    return {
        "softmax": -ordered[:, -1],
        "entropy": entropy(chances, axis=1) / np.log(chances.shape[1]),
        "margin": ordered[:, -2] - ordered[:, -1],
    }


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
    gate = Pool(texts_of(stream, "router"), backbone, gate_alone=True).gate
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
    columns = zip(gate.regions, strange.T, strict=True)
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
    texts whose task is in the pool. detected: of the texts of all other parts, NaN for none.

    For each of `doubts` half of the texts asked set a threshold at `ALPHA`. `..._fixed` and
    `..._adapted`: shares of the other half that are called novel by the threshold of the first size
    and by this size's own; `..._detected`: of the other parts, by its own.
    """
    rng, first, found = np.random.default_rng(seed), {}, []
    order = rng.permutation(list(parts))
    ends = {name: 2 * len(own) // 3 for name, own in parts.items()}
    for size in progress(list(sizes), "pool sizes", "size"):
        names = [name for name in order[:size] for _ in range(ends[name])]
        fitted = [t for name in order[:size] for t in parts[name][: ends[name]]]
        asked, foreign = (
            [t for name in some for t in parts[name][ends[name] :]]
            for some in (order[:size], order[size:])
        )
        profile = ProfileRouter(backbone, epochs=5, temperature=1.0).fit(fitted, names)
        gate = GateRouter(backbone, alpha=ALPHA).fit(fitted, names)
        chances = profile.predict_proba(asked)
        row = {
            "size": size,
            "n": len(asked),
            "confidence": chances.max(1).mean(),
            "reused": np.mean(chances.max(1) >= 0.4),
            "false_novel": gate.route(asked)["fallback"].mean(),
            "detected": gate.route(foreign)["fallback"].mean() if foreign else np.nan,
        }
        novel = doubts(profile.predict_proba(foreign)) if foreign else {}
        for rule, doubt in doubts(chances).items():
            limit = np.quantile(doubt[::2], 1 - ALPHA)
            row[f"{rule}_fixed"] = np.mean(doubt[1::2] > first.setdefault(rule, limit))
            row[f"{rule}_adapted"] = np.mean(doubt[1::2] > limit)
            row[f"{rule}_detected"] = np.mean(novel[rule] > limit) if foreign else np.nan
        found.append(row)
    return pd.DataFrame(found)


def drift(
    stream: Sequence[TaskData], routers: Sequence[str], backbone: Backbone, **settings
) -> pd.DataFrame:
    """How many texts are sent elsewhere because a router was fitted with more tasks: a row a router
    and step, of the evaluation texts of all tasks known a step before. Columns: router, tasks, n,
    moved (share sent to another frame than a step before), moved_right (share sent rightly before
    and wrongly now), right (share sent to their own frame now)."""
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
                shares = moved.mean(), lost.mean(), np.mean(now == truth)
                found.append((kind, step, len(now), *shares))
            before = picks
    columns = ["router", "tasks", "n", "moved", "moved_right", "right"]
    return pd.DataFrame(found, columns=columns)


def bandit(
    features: np.ndarray, right: np.ndarray, explore: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A router that is told only whether the answer was right: LinUCB with disjoint linear models
    (Li et al. 2010, algorithm 1).

    features (n, d), of length 1; right (n, frames), whether a frame's answer is; explore: the
    width of the bonus (alpha there). Returns the picks (n,), in order, each made before its answer
    is known, and the weights (frames, d) that were learned.
    """
    frames, width = right.shape[1], features.shape[1]
    inverse, seen = np.tile(np.eye(width), (frames, 1, 1)), np.zeros((frames, width))
    picks = np.empty(len(features), dtype=int)
    for i, x in enumerate(features.astype(float)):
        spread = inverse @ x  # (frames, d)
        value = (spread * seen).sum(1)  # x A^-1 b, A symmetric
        picks[i] = k = (value + explore * np.sqrt(spread @ x)).argmax()
        inverse[k] -= np.outer(spread[k], spread[k]) / (1 + spread[k] @ x)  # Sherman and Morrison
        seen[k] += right[i, k] * x
    return picks, np.einsum("kij,kj->ki", inverse, seen)


def feedback(
    stack: SkillStack, stream: Sequence[TaskData], gate: GateRouter, seed: int = 0, block: int = 64
) -> tuple[pd.DataFrame, dict[str, float]]:
    """A `bandit` over a stack's frames: it answers the routing texts of all tasks in random order
    and is told of each answer whether it was right, reading what the gate reads.

    Returns the share of right answers in each block of texts (columns block, texts so far, right),
    and shares of right answers to the evaluation rows: of the bandit as it was left, of the gate,
    of each task's own frame (told), and the mean over frames (any).
    """
    texts, right = (
        {split: make(split) for split in ("router", "eval")}
        for make in (lambda split: [t for data in stream for t in data.texts(split)],
                     lambda split: _right_answers(stack, stream, split))
    )  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(texts["router"]))
    features = {split: gate.features(own) for split, own in texts.items()}
    picks, weights = bandit(features["router"][order], right["router"][order])
    answered = right["router"][order, picks]
    blocks = [(k // block, min(k + block, len(order)), answered[k : k + block].mean())
              for k in range(0, len(order), block)]  # fmt: skip
    names, rows = [frame.name for frame in stack.frames], np.arange(len(texts["eval"]))
    ways = {
        "bandit": (features["eval"] @ weights.T).argmax(1),
        "gate": [names.index(name) for name in gate.predict(texts["eval"])],
        "told": [names.index(data.name) for data in stream for _ in range(len(data.eval))],
    }
    said = {way: right["eval"][rows, chosen].mean() for way, chosen in ways.items()}
    table = pd.DataFrame(blocks, columns=["block", "texts", "right"])
    return table, said | {"any": right["eval"].mean()}


def _right_answers(stack: SkillStack, stream: Sequence[TaskData], split: str) -> np.ndarray:
    """Whether each frame answers each text by the right label name, (n, frames)."""
    texts = [text for data in stream for text in data.texts(split)]
    true = np.array([d.task.label_names[k] for d in stream for k in d.labels(split)], dtype=object)
    return np.column_stack(
        [stack.predict(texts, frame.name).label_names == true for frame in stack.frames]
    )


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
    """Streams of batches from one of tasks: ``returning``, three unlike tasks and then more rows of
    the same; ``near``, the largest family of tasks with the same labels; ``far``, the first task of
    every set of labels; ``whole``, all tasks, where they are at most eight. Those that would have
    one batch are left out."""
    families: dict[frozenset, list[TaskData]] = {}
    for data in stream:
        families.setdefault(frozenset(data.task.label_names), []).append(data)
    far = [family[0] for family in families.values()]
    halves = [in_parts(data, 2) for data in far[:3]]
    streams = {
        "returning": [half[k] for k in (0, 1) for half in halves],
        "near": max(families.values(), key=len),
        "far": far,
    } | ({"whole": list(stream)} if len(stream) <= 8 else {})
    return {name: batches for name, batches in streams.items() if len(batches) > 1}


def odd(data: TaskData) -> dict[str, TaskData]:
    """Batches that are no ordinary ones, made of one that a loop has learned."""

    def changed(change: Callable[[pd.DataFrame], pd.DataFrame]) -> TaskData:
        parts = {split: change(getattr(data, split)) for split in ("train", "router")}
        return dataclasses.replace(data, **parts)

    def worded(how: Callable[[str], str]) -> TaskData:
        return changed(lambda rows: rows.assign(text=rows["text"].map(how)))

    german = (f"{opening} {word}." for word in _GERMAN for opening in _OPENINGS)
    other = dict(zip(sorted({*data.train["text"], *data.router["text"]}),
                     itertools.cycle(german), strict=False))  # fmt: skip
    return {
        "the same again": data,
        "16 rows": changed(lambda rows: rows.groupby("label").head(8)),
        "one class": changed(lambda rows: rows[rows["label"] == 0]),
        "labels shuffled": changed(
            lambda rows: rows.assign(label=rows["label"].sample(frac=1, random_state=0).to_numpy())
        ),
        "German": worded(other.__getitem__),
        "texts of one word": worded(lambda text: (text.split() or [text])[0]),
        "first half of each text": worded(lambda text: text[: max(1, len(text) // 2)]),
    }


_GERMAN = ("großartig", "langweilig", "viel zu lang", "wunderbar gespielt", "eine Enttäuschung",
           "besser als erwartet", "nichts für mich", "sehenswert", "schlecht", "gut")  # fmt: skip
_OPENINGS = ("Der Film war", "Das Buch ist", "Die Serie bleibt", "Mein Urteil:", "Am Ende doch")


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
