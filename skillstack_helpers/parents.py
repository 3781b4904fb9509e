"""Which frame a new one should start from: how well each serves a task before anything is trained.

The scores are read off the task's routing rows, which no frame was trained on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from . import training
from .errors import (
    SkillStackError,
    checked_labels,
    checked_name,
    checked_number,
    checked_numbers,
)
from .frames import Frame
from .heads import finite
from .progress import progress
from .stack import SkillStack, checked_stack
from .tasks import TaskData, checked_data

CRITERIA = ("accuracy", "leep", "logme", "knn")
NEIGHBOURS = 5
BEST = "(best)"  # the frame that `best_parent` picks; no frame can be called so
_ROUNDS, _SMALLEST = 100, 1e-12  # of the fixed point of `logme`


def parent_scores(stack: SkillStack, data: TaskData) -> pd.DataFrame:
    """Every frame as a parent for a task: one row a frame, in stack order; more is better.

    ``accuracy``, a fraction: the frame's own head answers the routing rows; NaN where it has other
    label names. ``leep`` reads the head's probabilities, ``logme`` and ``knn`` the pooled features
    below it, so these compare frames of all tasks. Evaluation rows are not looked at.
    """
    if not checked_stack(stack).frames:
        raise SkillStackError("an empty stack has no frame to start from")
    checked_data(data, "router")
    labels = data.labels("router")
    if len(labels) < 2:
        raise SkillStackError(f"task {data.name!r} has {len(labels)} routing rows: n_router")
    names, rows = data.task.label_names, {}
    for frame in progress(stack.frames, f"parents for {data.name}", "frame"):
        features, scores = features_and_scores(stack, frame, data.texts("router"))
        probabilities = torch.from_numpy(scores).double().softmax(1).numpy()
        right = np.nan
        if set(frame.label_names) == set(names):
            own = np.array([names.index(name) for name in frame.label_names])
            right = (own[scores.argmax(1)] == labels).mean()
        rows[frame.name] = {
            "accuracy": right,
            "leep": leep(probabilities, labels),
            "logme": logme(features, labels),
            "knn": nearest_accuracy(features, labels),
        }
    return pd.DataFrame.from_dict(rows, "index", columns=list(CRITERIA), dtype=float)


def best_parent(stack: SkillStack, data: TaskData, by: str = "leep") -> str | None:
    """The frame with the best score for a task; None for an empty stack: a new adapter.

    by: a column of `parent_scores`. ``accuracy`` falls back to ``leep`` where no frame has the
    task's label names. Not clearly better than the latest frame where it was measured: docs/log.md,
    «The second look».
    """
    checked_name(by, CRITERIA, "criterion")
    checked_data(data)
    checked_stack(stack)
    return pick(parent_scores(stack, data), by) if stack.frames else None


def pick(scores: pd.DataFrame, by: str) -> str:
    """The best of some rows of `parent_scores`."""
    column = scores[by] if scores[by].notna().any() else scores["leep"]
    return str(column.idxmax())


@torch.inference_mode()
def features_and_scores(
    stack: SkillStack, frame: Frame, texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """What a frame's head reads of texts, (n, hidden), and says, (n, classes)."""
    backbone, length = stack.backbone, frame.training["max_length"]
    head = stack.activate(frame.name)
    encode = backbone.encode if frame.prompt is None else head.encode
    inputs = backbone.states(encode(texts, length), backbone.first_adapted_layer)
    features = np.empty((len(texts), backbone.hidden_size), dtype=np.float32)
    for batch in training.eval_batches(list(map(len, inputs)), training.pass_size(backbone.device)):
        padded = training.pad([inputs[i] for i in batch], backbone.pad_id, backbone.device)
        features[batch] = backbone.features(*padded).cpu().numpy()
    if frame.prompt is not None:
        return features, head.scores(texts, length)
    scores = head.layer(torch.from_numpy(features).to(backbone.device)).cpu().numpy()
    return features, finite(scores, backbone)


# ---------------------------------------------------------------------- criteria


def leep(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020, eq. 1-2): the mean log-likelihood of
    labels (n,) under P(label | source class), counted, times what the source head says.

    probabilities: (n, source classes), rows summing to 1. At most 0.
    """
    probabilities, labels = _rows(probabilities, labels, "probabilities")
    if not np.all((probabilities >= 0) & (probabilities <= 1 + 1e-6)):  # 1 + rounding
        raise SkillStackError("probabilities must be in [0, 1]")
    joint = _one_hot(labels).T @ probabilities / len(labels)  # P(label, source class)
    given = joint / np.maximum(joint.sum(0), 1e-300)
    return float(np.log((probabilities @ given.T)[np.arange(len(labels)), _ids(labels)]).mean())


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log maximum evidence per row (You et al. 2021, Algorithm 1): a Bayesian linear regression of
    each class's indicator (n,) on features (n, hidden), the precisions of weights (alpha) and noise
    (beta) at the fixed point of MacKay's updates; mean over classes."""
    features, labels = _rows(features, labels, "features")
    targets = _one_hot(labels)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    squares, along = s**2, (u.T @ targets) ** 2  # (k,), (k, classes)
    beyond = np.maximum((targets**2).sum(0) - along.sum(0), 0.0)  # of y outside the features' span
    n, hidden = features.shape
    evidence = [
        _evidence(squares, z, rest, n, hidden) for z, rest in zip(along.T, beyond, strict=True)
    ]
    return float(np.mean(evidence)) / n


def _evidence(squares, z, rest, n: int, hidden: int) -> float:
    """Log evidence of one target (n,); squares (k,): of the singular values; z (k,): of the target
    along their directions; rest: of what remains of it."""
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        gamma = (beta * squares / (alpha + beta * squares)).sum()
        weights, residual = _solution(squares, z, rest, alpha, beta)
        before, alpha = alpha / beta, gamma / max(weights, _SMALLEST)
        beta = max(n - gamma, _SMALLEST) / max(residual, _SMALLEST)
        if abs(alpha / beta - before) <= 1e-6 * before:
            break
    weights, residual = _solution(squares, z, rest, alpha, beta)
    determinant = np.log(alpha + beta * squares).sum() + (hidden - len(squares)) * np.log(alpha)
    fit = n * np.log(beta) + hidden * np.log(alpha) - n * np.log(2 * np.pi)
    return 0.5 * (fit - beta * residual - alpha * weights - determinant)


def _solution(squares, z, rest, alpha: float, beta: float) -> tuple[float, float]:
    """Squared norms of the posterior mean weights and of what they leave unexplained."""
    precision = alpha + beta * squares
    weights = (beta**2 * squares * z / precision**2).sum()
    return weights, (alpha**2 * z / precision**2).sum() + rest


def nearest_accuracy(features: ArrayLike, labels: ArrayLike, k: int = NEIGHBOURS) -> float:
    """Accuracy of the k nearest other rows' majority, by cosine; among equals the nearer class.

    features (n, hidden), labels (n,); with n <= k all other rows vote.
    """
    features, labels = _rows(features, labels, "features")
    checked_number(k, "k", 1, whole=True)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    near = np.argsort(-cosine, axis=1, kind="stable")[:, : min(k, len(labels) - 1)]
    weight = 1 + np.take_along_axis(cosine, near, 1) / (4 * k)  # a vote, and less than half of one
    votes = (_one_hot(labels)[near] * weight[..., None]).sum(1)  # (n, classes)
    return float((votes.argmax(1) == _ids(labels)).mean())


def _rows(values: ArrayLike, labels: ArrayLike, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n, columns) and label ids (n,), or an error for anything else."""
    values, labels = checked_numbers(values, what), checked_labels(labels, "labels")
    if values.ndim != 2 or not len(values) or len(values) != len(labels):
        raise SkillStackError(f"{what} {values.shape} do not fit labels {labels.shape}")
    return values, labels


def _ids(labels: np.ndarray) -> np.ndarray:
    """Labels as 0, 1, ... without gaps; a class without a row has no column."""
    return np.unique(labels, return_inverse=True)[1]


def _one_hot(labels: np.ndarray) -> np.ndarray:
    ids = _ids(labels)
    return np.eye(ids.max() + 1)[ids]  # (n, classes)
