"""What the stack is compared with: each method a short piece on the one training loop.

A learner learns task after task (`learn(data)`) or, where `at_once` is true, a whole stream
(`learn(stream)`); `evaluate`, `predict` and `logits` ask it. All but the TF-IDF and LDA ones train
the backbone's LoRA slot and keep a head per task; which head answers, the caller says (the task is
given).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from . import hardware, training
from .backbones import Backbone
from .bitstack import BitStack
from .config import TrainingConfig, checked_config
from .errors import (
    SkillStackError,
    checked_asked,
    checked_has,
    checked_name,
    checked_names,
    checked_number,
    checked_texts,
    did_you_mean,
    shown,
)
from .generation import write
from .heads import Evaluation, LinearHead, classification_loss
from .progress import progress
from .routers.base import depths
from .routers.hybrid import HybridSVMRouter
from .routers.trunk import discriminants
from .stack import SkillStack, checked_stack
from .tasks import TaskData, checked_data, checked_stream

FISHERS = ("exact", "empirical")


class Sequential:
    """One adapter through the stream, a new head per task: the latest adapter of a stack, to the
    last bit. The other methods say what they do differently.

    Attributes: heads (task -> `LinearHead`), seconds (spent learning), updates (optimizer steps),
    calibration (task -> `Frame.calibration`, as it was right after the task was learned).
    """

    at_once = False

    def __init__(self, backbone: Backbone, config: TrainingConfig):
        checked_has(backbone, "backbone must be a Backbone (of load_backbone)", "attach", "embed")
        self.backbone, self.config = backbone, checked_config(config)
        self.heads: dict[str, LinearHead] = {}
        self.calibration: dict[str, tuple[float, ...]] = {}
        self.seconds, self.updates = 0.0, 0
        self._adapter: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, stack: SkillStack, config: TrainingConfig) -> Sequential:
        """The latest adapter of a stack under the heads of all its frames."""
        if not checked_stack(stack).frames:
            raise SkillStackError("an empty stack has no latest adapter")
        learner = cls(stack.backbone, config)
        for frame in stack.frames:
            head = frame.weights().head
            learner.heads[frame.name] = LinearHead(stack.backbone, frame.label_names, head)
            learner.calibration[frame.name] = frame.calibration
            learner.seconds += frame.seconds
            learner.updates += len(frame.losses)
        learner._adapter = stack.frames[-1].weights().lora
        return learner

    # ---------------------------------------------------------------- learning

    def learn(self, data: TaskData) -> list[float]:
        """Train on the next task; returns the loss of every step."""
        if checked_data(data, "train").name in self.heads:
            raise SkillStackError(f"task {data.name!r} was learned before")
        start = time.perf_counter()
        self._attach(len(self.heads) + 1)  # before seeding: a new slot draws random numbers
        with training.seeded(self.config.seed, len(self.heads)) as rng:
            self._start()
            self.heads[data.name] = LinearHead(self.backbone, data.task.label_names)
            try:
                ids = self._inputs(data.texts("train"))
                loss, heads = self._loss(data, ids, rng)
                losses = self._train(loss, heads, ids, rng, data.name)
            except BaseException:  # interrupted: the task can be learned again
                del self.heads[data.name]
                raise
            self._adapter = self.backbone.read_lora()
            self._finish(data, ids, rng)
        self.seconds += time.perf_counter() - start
        self._calibrate([data])
        return losses

    def _calibrate(self, stream: Sequence[TaskData]) -> None:
        for data in stream:
            head = self._head(data.name)
            self.calibration[data.name] = head.calibration(data, self.config.max_length)

    def _attach(self, tasks: int) -> None:
        """Give the backbone the slot for that many tasks: the same for any number."""
        self.backbone.attach(self.config.lora_r, self.config.lora_alpha, self._first())

    def _first(self) -> int | None:
        """The first layer that has an adapter."""
        return self.backbone.layer_number(self.config.first_adapted_layer)

    def _inputs(self, texts: Sequence[str]) -> list:
        """What the trained layers read of each text: token ids, or the trunk's states."""
        return self.backbone.inputs(texts, self.config.max_length, together=True)

    def _start(self) -> None:
        """Bring the slot to where training starts: new, or where the last task ended."""
        if self._adapter is None:
            self.backbone.reset_lora()
        else:
            self.backbone.write_lora(self._adapter, "the latest adapter")

    def _loss(self, data: TaskData, ids: list, rng) -> tuple[Callable, list[LinearHead]]:
        """``loss(rows)`` of the task's training rows, and the heads it trains."""
        head = self.heads[data.name]
        return head.loss(data, self.config.max_length)[0], [head]

    _after_backward: Callable[[], None] | None = None  # called before gradients are clipped

    def _train(self, loss, heads, ids, rng, description) -> list[float]:
        hardware.advise(self.backbone, self.config)
        losses = training.train(
            loss,
            [*self._body(), *(p for head in heads for p in head.parameters())],
            [len(row) for row in ids],
            self.config,
            rng,
            lr=self._lr(),
            after_backward=self._after_backward,
            split=self.backbone.split_batches,
            half=self.backbone.dtype == "float16",
            description=description,
        )
        self.updates += len(losses)
        return losses

    def _body(self) -> list[Tensor]:
        return list(self.backbone.lora_parameters.values())

    def _lr(self) -> float:
        return training.peak_lr(self.config, self.backbone.hidden_size)

    def _finish(self, data: TaskData, ids: list, rng) -> None:
        """What the method keeps of a task it has learned."""

    # ---------------------------------------------------------------- asking

    def evaluate(self, data: TaskData) -> Evaluation:
        """Accuracy and predictions on a learned task's evaluation rows, under its own head."""
        head = self._head(checked_data(data, "eval").name)
        return head.evaluate(data, self.config.max_length)

    def predict(self, texts: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """Label names, object (n,): each text under the head of the task named for it."""
        texts, tasks = _paired(texts, tasks, self.heads)
        names = np.empty(len(texts), dtype=object)
        for task in dict.fromkeys(tasks):
            rows, head = np.flatnonzero(tasks == task), self._head(task)
            best = head.scores(list(texts[rows]), self.config.max_length, f"ask {task}").argmax(1)
            names[rows] = [head.label_names[k] for k in best]
        return names

    def logits(self, texts: Sequence[str], asked: np.ndarray | None = None) -> np.ndarray:
        """Logits of every head, float32 (n, tasks, most classes), -inf past a task's classes.

        Tasks in the order learned. asked: which head about which text, bool (n, tasks), None: all;
        NaN where it is not. Where one adapter serves them all, a text is read once. Raises
        `SkillStackError` if no task was learned.
        """
        texts, asked = _asked(texts, asked, self.heads)
        return _per_task(self._all_scores(texts, asked), self.label_names, asked)

    def _all_scores(self, texts: Sequence[str], asked: np.ndarray) -> np.ndarray:
        """Logits of all heads side by side, (n, classes of all tasks); where a head was not asked,
        anything."""
        heads = list(self.heads.values())
        self._activate(next(iter(self.heads)))  # the same for all
        names = [name for head in heads for name in head.label_names]
        parts = [head.tensors() for head in heads]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        wide = LinearHead(self.backbone, names, joined)
        return wide.scores(texts, self.config.max_length, "ask all heads")

    @property
    def label_names(self) -> dict[str, tuple[str, ...]]:
        """Task -> the names of its labels, in the order learned."""
        return {task: head.label_names for task, head in self.heads.items()}

    def _head(self, task: str) -> LinearHead:
        """A learned task's head, with the weights it answers with in place."""
        _check_learned(task, self.heads)
        self._activate(task)
        return self.heads[task]

    def _activate(self, task: str) -> None:
        self._attach(len(self.heads))
        self.backbone.write_lora(self._adapter, "the latest adapter")

    # ---------------------------------------------------------------- cost

    @property
    def trained_parameters(self) -> int:
        """Parameters that were trained over the stream so far, heads included."""
        return self._adapter_size() + sum(
            p.numel() for head in set(self.heads.values()) for p in head.parameters()
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of all that must be kept to answer and to learn on, weights in float32."""
        return 4 * self.trained_parameters

    def _adapter_size(self) -> int:
        return sum(t.numel() for t in (self._adapter or {}).values())


def _check_learned(task: str, learned: Mapping) -> None:
    if task not in learned:
        raise SkillStackError(f"{shown(task)} was not learned{did_you_mean(task, learned)}")


def _paired(
    texts: Sequence[str], tasks: Sequence[str], learned: Mapping
) -> tuple[np.ndarray, np.ndarray]:
    """Texts and the learned task of each, object (n,)."""
    texts, tasks = checked_texts(texts), checked_names(tasks, "tasks")
    if len(texts) != len(tasks):
        raise SkillStackError(f"{len(texts)} texts but {len(tasks)} tasks")
    for task in dict.fromkeys(tasks):
        _check_learned(task, learned)
    return np.array(texts, dtype=object), np.array(tasks, dtype=object)


def _asked(texts: Sequence[str], asked, learned: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Texts, and which of the learned tasks' heads are asked about each, bool (n, tasks)."""
    texts = checked_texts(texts)
    if not learned:
        raise SkillStackError("no task was learned: call learn first")
    return texts, checked_asked(asked, (len(texts), len(learned)))


def _per_task(
    scores: np.ndarray, label_names: Mapping[str, Sequence[str]], asked: np.ndarray
) -> np.ndarray:
    """Scores (n, classes of all tasks), cut up by task: float32 (n, tasks, most classes), -inf past
    a task's classes, NaN where its head was not asked."""
    sizes = np.array([len(names) for names in label_names.values()])
    real = np.arange(sizes.max()) < sizes[:, None]
    out = np.full((len(scores), *real.shape), -np.inf, np.float32)
    out[:, real] = scores
    out[~asked] = np.nan
    return out


class Independent(Sequential):
    """A fresh adapter per task, from scratch: nothing is forgotten, nothing is passed on."""

    def __init__(self, backbone: Backbone, config: TrainingConfig):
        super().__init__(backbone, config)
        self._adapters: dict[str, Mapping[str, Tensor]] = {}
        self._evaluated: dict[str, Evaluation] = {}  # by the rows' fingerprint

    def _start(self) -> None:
        self._adapter = None
        super()._start()

    def _finish(self, data, ids, rng) -> None:
        self._adapters[data.name] = self._adapter

    def evaluate(self, data) -> Evaluation:
        # Its adapter is never written to again.
        if checked_data(data, "eval").fingerprint not in self._evaluated:
            self._evaluated[data.fingerprint] = super().evaluate(data)
        return self._evaluated[data.fingerprint]

    def _all_scores(self, texts, asked) -> np.ndarray:
        parts = []
        for task, its in zip(self.heads, asked.T, strict=True):
            head, rows = self._head(task), np.flatnonzero(its)
            part = np.empty((len(texts), len(head.label_names)), np.float32)
            own = [texts[row] for row in rows]
            part[rows] = head.scores(own, self.config.max_length, f"ask {task}")
            parts.append(part)
        return np.hstack(parts)

    def _activate(self, task) -> None:
        self._adapter = self._adapters[task]
        super()._activate(task)

    def _adapter_size(self) -> int:
        return len(self._adapters) * super()._adapter_size()


def _check_strength(strength: float) -> None:
    """Raise unless it is a penalty's: beyond 1e30 the penalty is infinite in float32."""
    checked_number(strength, "strength", 0, 1e30)


class EWC(Sequential):
    """Elastic weight consolidation on the LoRA parameters, heads excluded.

    Adds strength / 2 * sum over earlier tasks k and parameters i of F_ki (θ_i - θ*_ki)² to the
    loss (Kirkpatrick et al. 2017, eq. 3), F the diagonal Fisher information at the end of task k.

    strength: their λ; the default was found on hard8 with `minilm` (docs/log.md), search it for
    another model. estimator: of F, see `diagonal_fisher`. n_fisher: rows of the task it is computed
    on. decay: None keeps an anchor per task; a number in [0, 1] keeps one, F <- decay F + F_k
    (online EWC, Schwarz et al. 2018). gamma_gain: None, or the penalty's gradient is added after
    the backward pass, scaled down to at most gamma_gain times the norm of the loss's own, so that
    old tasks never drown out the new one. The adaptive learner names such a gate without a formula;
    this is our reading.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrainingConfig,
        strength: float = 1e3,
        estimator: str = "exact",
        n_fisher: int = 64,
        decay: float | None = None,
        gamma_gain: float | None = None,
        **others,
    ):
        super().__init__(backbone, config, **others)
        checked_name(estimator, FISHERS, "estimator")
        _check_strength(strength)
        checked_number(n_fisher, "n_fisher", 1, whole=True)
        if decay is not None:
            checked_number(decay, "decay", 0, 1)
        if gamma_gain is not None and gamma_gain != float("inf"):
            checked_number(gamma_gain, "gamma_gain", 0)
        self.strength, self.estimator, self.n_fisher = strength, estimator, n_fisher
        self.decay, self.gamma_gain = decay, gamma_gain
        self.anchors: list[tuple[Tensor, Tensor]] = []  # (F, θ*), each (parameters,)

    def penalty(self) -> Tensor:
        """The penalty of the slot's present parameters, a scalar."""
        theta = parameters_to_vector(self.backbone.lora_parameters.values())
        terms = [(fisher * (theta - anchor).square()).sum() for fisher, anchor in self.anchors]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def _loss(self, data, ids, rng):
        loss, heads = super()._loss(data, ids, rng)
        if not self.anchors or self.gamma_gain is not None:
            return loss, heads
        return (lambda rows: loss(rows) + self.penalty()), heads

    @torch.no_grad()
    def _after_backward(self) -> None:
        """Add the penalty's gradient to that of the slot, gated, if there is a gamma_gain."""
        if not self.anchors or self.gamma_gain is None:
            return
        parameters = list(self.backbone.lora_parameters.values())
        theta = parameters_to_vector(parameters)
        gradient = sum(fisher * (theta - anchor) for fisher, anchor in self.anchors)
        gradient = self.strength * gradient
        own = parameters_to_vector([p.grad for p in parameters]).norm()
        gradient *= min(1.0, float(self.gamma_gain * own / (gradient.norm() + 1e-12)))
        parts = gradient.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad += part.view_as(parameter)

    def _finish(self, data, ids, rng) -> None:
        super()._finish(data, ids, rng)
        rows = rng.permutation(len(ids))[: self.n_fisher]
        layer, backbone = self.heads[data.name].layer, self.backbone

        def log_probabilities(batch: np.ndarray) -> Tensor:
            inputs = training.pad([ids[rows[i]] for i in batch], backbone.pad_id, backbone.device)
            return layer(backbone.features(*inputs)).log_softmax(-1)

        parameters, labels = self._body(), data.labels("train")[rows]
        with training.trainable(parameters):
            how = (labels, self.estimator, 1024.0 if backbone.dtype == "float16" else 1.0)
            fisher = diagonal_fisher(log_probabilities, parameters, *how)
        if self.decay is not None and self.anchors:
            fisher = self.decay * self.anchors.pop()[0] + fisher
        self.anchors.append((fisher, parameters_to_vector(parameters).clone()))

    @property
    def stored_bytes(self) -> int:
        return super().stored_bytes + sum(4 * v.numel() for anchor in self.anchors for v in anchor)


def diagonal_fisher(
    log_probabilities: Callable[[np.ndarray], Tensor],
    parameters: Sequence[Tensor],
    labels: np.ndarray,
    estimator: str,
    scale: float = 1.0,
) -> Tensor:
    """Diagonal of the Fisher information, (parameters,), a mean over n rows.

    log_probabilities: row indices (b,) -> log p(y | x), (b, classes). labels: true ones, (n,).
    With g(y) the gradient of log p(y | x), the estimators (van de Ven 2025, arXiv 2502.11756) are
    ``exact``: the mean over rows of the sum over y of p(y | x) g(y)²; ``empirical``: g(y)² for the
    true label. scale: of log p before the gradient is taken, against underflow in float16.
    """
    total = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)

    def add(log_probability: Tensor, weight: float, more: bool = False) -> None:
        gradients = torch.autograd.grad(scale * log_probability, parameters, retain_graph=more)
        total.add_(weight / scale**2 * parameters_to_vector(gradients).square())

    n = len(labels)
    for row in progress(range(n), "Fisher", "row"):
        log_p = log_probabilities(np.array([row]))[0]  # (classes,)
        if estimator == "empirical":
            add(log_p[int(labels[row])], 1 / n)
            continue
        for y in range(len(log_p)):
            weight = float(log_p[y].detach().exp()) / n
            add(log_p[y], weight, more=y + 1 < len(log_p))
    return total


class ReservoirBuffer:
    """A uniform sample of all rows seen, at most `capacity` (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int, rng: np.random.Generator):
        checked_number(capacity, "the buffer's capacity", 1, whole=True)
        self.capacity, self.rng, self.seen = capacity, rng, 0
        self.rows: list = []

    def add(self, row) -> None:
        self.seen += 1
        if len(self.rows) < self.capacity:
            self.rows.append(row)
        elif (place := self.rng.integers(self.seen)) < self.capacity:
            self.rows[place] = row


class Replay(Sequential):
    """Experience replay (Chaudhry et al. 2019, "tiny episodic memories"): every batch of the new
    task is joined by as many rows of earlier tasks, drawn from a reservoir buffer of `capacity`
    rows. As many updates as without, each on twice the rows; earlier heads learn on.
    """

    def __init__(self, backbone: Backbone, config: TrainingConfig, capacity: int = 200, **others):
        super().__init__(backbone, config, **others)
        rng = np.random.default_rng([config.seed, 1])
        self.buffer = ReservoirBuffer(capacity, rng)  # of (task, inputs, label)

    def _loss(self, data, ids, rng):
        old = self.buffer.rows
        if not old:
            return super()._loss(data, ids, rng)
        heads, number = list(self.heads.values()), {name: k for k, name in enumerate(self.heads)}
        labels = np.concatenate([data.labels("train"), [row[2] for row in old]])
        owners = np.array([number[data.name]] * len(ids) + [number[row[0]] for row in old])
        loss = classification_loss(heads, [*ids, *(row[1] for row in old)], labels, owners)
        size = min(self.config.batch_size, len(old))

        def rehearsed(rows: np.ndarray) -> Tensor:
            return loss(
                np.concatenate([rows, len(ids) + rng.choice(len(old), size, replace=False)])
            )

        return rehearsed, heads

    def _finish(self, data, ids, rng) -> None:
        super()._finish(data, ids, rng)
        for i in rng.permutation(len(ids)):
            self.buffer.add((data.name, ids[i], int(data.labels("train")[i])))

    @property
    def stored_bytes(self) -> int:
        # Token ids, label and task; a trunk's states can be computed again from the ids.
        rows = sum(4 * len(row[1]) + 8 for row in self.buffer.rows)
        return super().stored_bytes + rows


class GatedEWCReplay(EWC, Replay):
    """The adaptive learner's recipe: one LoRA reused for all tasks, EWC from true labels with its
    gradient gated, and replay."""

    def __init__(self, backbone: Backbone, config: TrainingConfig, **others):
        super().__init__(
            backbone, config, **({"estimator": "empirical", "gamma_gain": 1.0} | others)
        )


class GenerativeReplay(Replay):
    """Replay of texts that the backbone writes itself (Shin et al. 2017), with the task's adapter.

    After a task, `n_pseudo` texts are sampled from the causal language model under the task's
    adapter, prompted with the task's label names, and labelled by the model that has just learned
    the task. No row of the task is kept. Decoder backbones with tied embeddings only.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrainingConfig,
        n_pseudo: int = 32,
        max_new: int = 48,
        **others,
    ):
        _ = backbone.causal_lm  # an encoder, or untied embeddings: one line that says so
        super().__init__(backbone, config, **others)
        checked_number(n_pseudo, "n_pseudo", 1, 10**6, whole=True)
        checked_number(max_new, "max_new", 1, 10**6, whole=True)
        self.n_pseudo, self.max_new = n_pseudo, max_new
        self.texts: dict[str, list[str]] = {}  # what was written for each task

    def _finish(self, data, ids, rng) -> None:
        names = data.task.label_names
        texts = []
        for k, name in enumerate(names):
            n = len(range(k, self.n_pseudo, len(names)))  # as equal as it goes
            opening = data.task.template.partition("{")[0]
            prompt = f"A text that a reader would label as {name}:\n{opening}"
            written = sample_texts(self.backbone, prompt, n, self.max_new, rng) if n else []
            texts += [opening + text for text in written]
        self.texts[data.name] = texts
        scores = self.heads[data.name].scores(texts, self.config.max_length)
        pseudo = self._inputs(texts)
        for row, label in zip(pseudo, scores.argmax(1), strict=True):
            self.buffer.add((data.name, row, int(label)))


def sample_texts(
    backbone: Backbone, prompt: str, n: int, max_new: int, rng: np.random.Generator, top_k: int = 50
) -> list[str]:
    """Sample n continuations of one prompt (temperature 1, top-k) under the slot's adapter."""
    ids = torch.tensor([backbone.tokenizer(prompt)["input_ids"]] * n, device=backbone.device)
    how = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": top_k}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(int(rng.integers(1 << 62)))
        return write(backbone, ids, torch.ones_like(ids), max_new_tokens=max_new, **how)


class Joint(Sequential):
    """All tasks at once, one adapter, a head per task: what is possible without a stream.

    share_heads: tasks with the same label names, in the same order, have one head together; it is
    in `heads` under each of their names.
    """

    at_once = True

    def __init__(self, backbone: Backbone, config: TrainingConfig, share_heads: bool = False):
        super().__init__(backbone, config)
        self.share_heads = share_heads

    def learn(self, stream: Sequence[TaskData]) -> list[float]:
        """Train on all tasks, their rows mixed in every epoch; as many updates as one by one."""
        stream = checked_stream(stream, "train")
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, 0]))
        start = time.perf_counter()
        self._attach(len(stream))
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(1 << 62)))
            self._start()
            names = {data.name: tuple(data.task.label_names) for data in stream}
            owner = {task: names[task] if self.share_heads else task for task in names}
            heads = {owner[task]: names[task] for task in names}
            heads = {key: LinearHead(self.backbone, labels) for key, labels in heads.items()}
            texts = [text for data in stream for text in data.texts("train")]
            ids = self._inputs(texts)
            labels = np.concatenate([data.labels("train") for data in stream])
            which = [list(heads).index(owner[data.name]) for data in stream]
            owners = np.repeat(which, [len(data.train) for data in stream])
            loss = classification_loss(list(heads.values()), ids, labels, owners)
            losses = self._train(loss, heads.values(), ids, rng, "all tasks")
            self.heads = {task: heads[key] for task, key in owner.items()}
            self._adapter = self.backbone.read_lora()
        self.seconds += time.perf_counter() - start
        self._calibrate(stream)
        return losses


class OLoRA(Sequential):
    """O-LoRA (Wang et al. 2023): a new LoRA per task beside the frozen earlier ones, all summed.

    Adds strength * sum over modules and earlier tasks k of the squared entries of A_k Aᵀ to the
    loss (their eq. 7 and 8, λ1 = 0.5), so that a task learns in directions orthogonal to the
    earlier ones'. The slot holds all LoRAs side by side: A (r T, in), B (out, r T).
    """

    def __init__(self, backbone: Backbone, config: TrainingConfig, strength: float = 0.5):
        super().__init__(backbone, config)
        _check_strength(strength)
        self.strength = strength

    def _attach(self, tasks: int) -> None:
        r, alpha = self.config.lora_r * tasks, self.config.lora_alpha * tasks
        self.backbone.attach(r, alpha, self._first())

    def _start(self) -> None:
        self.backbone.reset_lora()  # B zero: the new LoRA starts as nothing
        with torch.no_grad():
            for name, old in (self._adapter or {}).items():
                rank = old.shape[0] if ".lora_A." in name else old.shape[1]
                parameter = self.backbone.lora_parameters[name]
                (parameter[:rank] if ".lora_A." in name else parameter[:, :rank]).copy_(old)

    def overlap(self) -> Tensor:
        """Sum of the squared entries of A_k Aᵀ over modules and earlier tasks k, a scalar."""
        old = self.config.lora_r * (len(self.heads) - 1)
        named = self.backbone.lora_parameters.items()
        return sum((A[:old] @ A[old:].T).square().sum() for n, A in named if ".lora_A." in n)

    def _loss(self, data, ids, rng):
        loss, heads = super()._loss(data, ids, rng)
        if len(self.heads) == 1:
            return loss, heads
        return (lambda rows: loss(rows) + self.strength * self.overlap()), heads

    @torch.no_grad()
    def _after_backward(self) -> None:
        """Zero the earlier LoRAs' gradients; AdamW without decay then leaves them bit-equal."""
        old = self.config.lora_r * (len(self.heads) - 1)
        for name, parameter in self.backbone.lora_parameters.items():
            (parameter.grad[:old] if ".lora_A." in name else parameter.grad[:, :old]).zero_()


class FineTuning(Sequential):
    """All weights of a copy of the backbone trained through the stream, a head per task.

    The default learning rate is a tenth of LoRA's (Schulman et al. 2025, "LoRA without regret").
    sparsity: None, or the share of the weights that a `BitStack` locks after each task, ranked on
    `n_batches` batches of the task's training rows. classifier: the model that the BitStack sees,
    batch in, loss out, under the head ``classifier.score``.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrainingConfig,
        sparsity: float | None = None,
        n_batches: int = 32,
    ):
        checked_has(backbone, "backbone must be a Backbone (of load_backbone)", "attach", "embed")
        checked_config(config)
        checked_number(n_batches, "n_batches", 1, whole=True)
        if backbone.quantize:
            raise SkillStackError(f"{backbone.quantize} weights cannot be trained; quantize=None")
        if config.first_adapted_layer is not None:
            raise SkillStackError("full fine-tuning trains all layers: first_adapted_layer=None")
        model = copy.deepcopy(backbone.model)
        model = (model.unload() if hasattr(model, "unload") else model).requires_grad_(True)
        dtype = backbone.dtype
        if dtype == "float16":  # small updates would be rounded away, and cannot be scaled
            model, dtype = model.float(), "float32"
        facts = {"model": model, "dtype": dtype, "_lora": {}, "_shape": None, "_embedded": {}}
        own = dataclasses.replace(backbone, **facts)
        super().__init__(own, config)
        self.n_batches = n_batches
        self.classifier = _Classifier(own)
        self.bitstack = None if sparsity is None else BitStack(self.classifier, sparsity)

    def _attach(self, tasks: int) -> None:
        pass

    def _start(self) -> None:
        pass

    def _activate(self, task: str) -> None:
        pass

    def _body(self) -> list[Tensor]:
        return list(self.backbone.model.parameters())

    def _lr(self) -> float:
        return self.config.lr or training.default_lr(self.backbone.hidden_size) / 10

    def _finish(self, data, ids, rng) -> None:
        if self.bitstack is None:
            return
        labels, lengths = data.labels("train"), [len(row) for row in ids]
        self.classifier.score = self.heads[data.name].layer
        batches = (
            self.classifier.batch([ids[i] for i in rows], labels[rows])
            for rows in training.train_batches(lengths, self.config.batch_size, rng)
        )
        with training.trainable(self._body()):
            self.bitstack.update(batches, self.n_batches, data.name)

    def _adapter_size(self) -> int:
        return sum(p.numel() for p in self._body())

    @property
    def stored_bytes(self) -> int:
        masks = 0 if self.bitstack is None else self.bitstack.stats()["task_mask_bytes"]
        return super().stored_bytes + masks


class _Classifier(torch.nn.Module):
    """The backbone under the present head, as `BitStack` asks for it: batch in, loss out."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.body, self._backbone = backbone.model, [backbone]  # a list: no submodule
        self.score: torch.nn.Linear | None = None

    def batch(self, ids: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, Tensor]:
        """Token ids and labels (b,) as the arguments of a call."""
        (backbone,) = self._backbone
        input_ids, mask = training.pad(ids, backbone.pad_id, backbone.device)
        targets = torch.tensor(labels, device=backbone.device)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": targets}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict:
        features = self._backbone[0].features(input_ids, attention_mask)
        return {"loss": torch.nn.functional.cross_entropy(self.score(features), labels)}


class _WithoutTraining:
    """What the methods share that fit a classifier on features that no task has changed.

    union: False answers with the labels of the task given; True is told nothing and may answer with
    any task's. Attributes: label_names (task -> its labels), seconds (spent learning), updates (0).
    """

    at_once = True

    def __init__(self, union: bool = False):
        self.union, self.seconds, self.updates = union, 0.0, 0
        self.label_names: dict[str, tuple[str, ...]] = {}

    def evaluate(self, data: TaskData) -> Evaluation:
        """Accuracy on a task's evaluation rows; label -1 where the answer is another task's."""
        checked_data(data, "eval")
        names = self.predict(data.texts("eval"), [data.name] * len(data.eval))
        known = {name: k for k, name in enumerate(data.task.label_names)}
        labels = np.array([known.get(name, -1) for name in names])
        accuracy = float((labels == data.labels("eval")).mean())
        return Evaluation(accuracy, labels, np.empty((len(labels), 0), np.float32))


class FrozenLDA(_WithoutTraining):
    """Linear discriminant analysis of the frozen backbone's states: in closed form, from sums.

    In every (task, label) pair a text's features are taken as normal, with one covariance for all
    pairs and equal priors: mean-pooled states of up to seven depths (`Backbone.embed`), each of
    length 1. The covariance is shrunk by what suits the number of texts (oracle approximating
    shrinkage, Chen et al. 2010). This is streaming LDA (Hayes and Kanan 2020) over depths; KLDA
    (Momeni et al. 2025) puts random Fourier features between, RanPAC (McDonnell et al. 2023) random
    ReLU features and ridge regression.

    Tasks may also come one after another, in any order (`learn([data])`): the weights are those of
    all at once, up to rounding, and no text is kept.
    """

    def __init__(self, backbone: Backbone, config: TrainingConfig, union: bool = False):
        super().__init__(union)
        checked_has(backbone, "backbone must be a Backbone (of load_backbone)", "attach", "embed")
        self.backbone, self.config = backbone, checked_config(config)
        self._counts, self._totals, self._moments = np.empty(0), 0.0, 0.0

    def learn(self, stream: Sequence[TaskData]) -> None:
        """Add the training rows of these tasks."""
        start, stream = time.perf_counter(), checked_stream(stream, "train")
        for data in stream:
            if data.name in self.label_names:
                raise SkillStackError(f"task {data.name!r} was learned before")
        features = [self._features(data.texts("train")) for data in stream]
        for data, rows in zip(stream, features, strict=True):
            names = tuple(data.task.label_names)
            member = np.eye(len(names))[data.labels("train")]  # (n, classes)
            totals = member.T @ rows
            self._totals = np.vstack([self._totals, totals]) if len(self._counts) else totals
            self._counts = np.append(self._counts, member.sum(0))
            self._moments = self._moments + rows.T @ rows
            self.label_names[data.name] = names
        means = self._totals / np.maximum(self._counts, 1)[:, None]
        within = self._moments - self._totals.T @ means
        self._coef = discriminants(within, means, self._counts.sum())
        intercept = -(self._coef * means).sum(1) / 2
        self._intercept = np.where(self._counts, intercept, -np.inf)  # a label without a row
        self.seconds += time.perf_counter() - start

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        """float64 (n, depths * hidden)."""
        return depths(self.backbone.embed(texts, self.config.max_length).astype(np.float64))

    def logits(self, texts: Sequence[str], asked: np.ndarray | None = None) -> np.ndarray:
        """Log likelihoods of the pairs, up to what a text's pairs have in common; the rest as in
        `Sequential.logits`."""
        texts, asked = _asked(texts, asked, self.label_names)
        scores = np.empty((0, len(self._coef)))
        if texts:
            scores = self._features(texts) @ self._coef.T + self._intercept
        return _per_task(scores, self.label_names, asked)

    def predict(self, texts: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """Label names, object (n,); the tasks named are not looked at by the union."""
        texts = checked_texts(texts)
        if not self.union:
            texts, tasks = _paired(texts, tasks, self.label_names)
        scores, names = self.logits(texts), list(self.label_names.values())
        n, known, most = scores.shape
        if self.union:
            task, best = np.divmod(scores.reshape(n, known * most).argmax(1), most)
        else:
            task = np.array([list(self.label_names).index(name) for name in tasks], dtype=int)
            best = scores[np.arange(n), task].argmax(1)
        return np.array([names[t][k] for t, k in zip(task, best, strict=True)], dtype=object)

    @property
    def trained_parameters(self) -> int:
        """Coefficients and intercepts."""
        return self._coef.size + self._intercept.size

    @property
    def stored_bytes(self) -> int:
        """Coefficients in float32, and the sums, in float64, that the next task is added to."""
        width = len(self._moments)
        sums = self._counts.size + self._totals.size + width * (width + 1) // 2
        return 4 * self.trained_parameters + 8 * sums


class TfidfLogistic(_WithoutTraining):
    """TF-IDF and logistic regression on the same rows, the cheap thing to try first.

    union: False fits one classifier per task, to be asked with the task given; True fits one over
    the union of all (task, label) pairs, which is told nothing and may answer with any task's.
    """

    def learn(self, stream: Sequence[TaskData]) -> None:
        """Fit on the training rows of all tasks."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        start, stream = time.perf_counter(), checked_stream(stream, "train")
        self.label_names = {data.name: tuple(data.task.label_names) for data in stream}
        rows = [
            ("" if self.union else data.name, text, f"{data.name}/{label}")
            for data in stream
            for text, label in zip(data.texts("train"), data.labels("train"), strict=True)
        ]
        self._models = {}
        for name in dict.fromkeys(name for name, *_ in rows):
            features = HybridSVMRouter().make_pipeline()[0]  # the router's own n-grams
            model = make_pipeline(features, LogisticRegression(max_iter=1000))
            _, texts, pairs = zip(*(row for row in rows if row[0] == name), strict=True)
            self._models[name] = model.fit(texts, pairs)
        self.seconds += time.perf_counter() - start

    def predict(self, texts: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """Label names, object (n,); the tasks named are not looked at by the union."""
        if not self.label_names:
            raise SkillStackError("no task was learned: call learn first")
        texts = checked_texts(texts)
        where = [""] * len(texts) if self.union else tasks
        texts, tasks = _paired(texts, where, {"": ()} if self.union else self.label_names)
        names = np.empty(len(texts), dtype=object)
        for task in dict.fromkeys(tasks):
            rows = np.flatnonzero(tasks == task)
            pairs = [pair.rsplit("/", 1) for pair in self._models[task].predict(texts[rows])]
            names[rows] = [self.label_names[name][int(k)] for name, k in pairs]
        return names

    def logits(self, texts: Sequence[str], asked: np.ndarray | None = None) -> np.ndarray:
        """log P(label | text, task), of the union log P(task, label | text); the rest as in
        `Sequential.logits`."""
        texts, asked = _asked(texts, asked, self.label_names)
        place = {task: k for k, task in enumerate(self.label_names)}
        most = max(map(len, self.label_names.values()))
        out = np.full((len(texts), len(place), most), -np.inf, np.float32)
        for model in self._models.values():
            for pair, column in zip(model.classes_, model.predict_log_proba(texts).T, strict=True):
                task, label = pair.rsplit("/", 1)
                out[:, place[task], int(label)] = column
        out[~asked] = np.nan
        return out

    @property
    def trained_parameters(self) -> int:
        """Coefficients and intercepts."""
        steps = [model[-1] for model in self._models.values()]
        return sum(step.coef_.size + step.intercept_.size for step in steps)

    @property
    def stored_bytes(self) -> int:
        """Coefficients in float32 and the n-grams' inverse document frequencies and letters."""
        terms = [t for model in self._models.values() for t in model[0].get_feature_names_out()]
        return 4 * self.trained_parameters + sum(4 + len(t.encode()) for t in terms)
