"""`Mixture`: one answer from many frames (or heads), their probabilities added up by label name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from .errors import (
    SkillStackError,
    checked_labels,
    checked_list,
    checked_name,
    checked_names,
    checked_numbers,
    checked_path,
    shown,
)
from .files import read_json, sealed_json, write_or_say

SHARES = ("own", "family", "half", "learned")
_FLOOR = 0.01  # a frame whose share of an answer is smaller is not asked
_ROUNDS = 200  # of expectation maximization; the log likelihood is concave in the weights


class Mixture:
    """P(name | text) = sum over t of P(t | text) sum over s of weights[t, s] P(name | text, s).

    P(t | text) is the router's, P(name | text, s) what frame s says, softmax(logits / its
    temperature) under its own label names; frames whose labels bear the same names meet there. A
    family is the frames with the same label names. The logits may as well be those of the heads
    of any other multi-task model.

    label_names: of every frame, by its name, in the router's order. shares: who answers for t:

    - ``own``: t alone, so that only the router's doubt is mixed;
    - ``family``: t's family, all alike;
    - ``half``: half t, half its family;
    - ``learned``: weights over the family that make the labels of t's rows most likely (stacking,
      Wolpert 1992), by expectation maximization; `fit` reads those labels. Where mixing does not
      help, that is t alone.

    `fit` also finds the temperatures (Guo et al. 2017), from labels of rows that frames were not
    trained on. Unfitted, they are 1.

    Attributes: names, the label names of the answers; weights (frames, frames), rows sum to 1;
    temperatures (frames,).

    >>> names = ("negative", "positive")
    >>> mixture = Mixture({"imdb": names, "sst2": names, "news": ("sport", "world")}, "family")
    >>> logits = np.log([[[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]]])
    >>> mixture.predict_proba(logits, np.array([[0.8, 0.0, 0.2]])).round(2).tolist()
    [[0.52, 0.28, 0.1, 0.1]]
    """

    def __init__(self, label_names: Mapping[str, Sequence[str]], shares: str = "family"):
        checked_name(shares, SHARES, "shares")
        if not isinstance(label_names, Mapping):
            raise SkillStackError(
                f"label_names must be a mapping from frames to names, got {shown(label_names)}"
            )
        if not label_names:
            raise SkillStackError("a mixture needs the label names of at least one frame")
        self.label_names = {
            name: tuple(checked_names(labels, f"label names of {shown(name)}"))
            for name, labels in label_names.items()
        }
        for name, labels in self.label_names.items():
            if not labels or len(set(labels)) < len(labels):
                raise SkillStackError(f"label names of {name!r} must differ, got {shown(labels)}")
        self.shares = shares
        labels = list(self.label_names.values())
        self.names = list(dict.fromkeys(name for own in labels for name in own))
        self._column = [np.array([self.names.index(name) for name in own]) for own in labels]
        alike = np.array([[set(a) == set(b) for b in labels] for a in labels])
        self._family = alike / alike.sum(1, keepdims=True)  # (frames, frames)
        own = np.eye(len(labels))
        start = {"own": own, "half": (own + self._family) / 2}
        self.weights = start.get(shares, self._family)
        self.temperatures = np.ones(len(labels))

    def fit(self, logits: np.ndarray, frames: Sequence[str], labels: np.ndarray) -> Mixture:
        """Find temperatures, and the weights that are learned.

        logits: (n, frames, most classes), -inf beyond a frame's classes; of each row at least those
        of its own frame's family. frames: whose row each is, (n,); labels: its right label id under
        that frame, (n,). Frames without rows keep temperature 1 and even weights.
        """
        logits, frames = self._checked(logits), checked_list(frames, "frames")
        labels = checked_labels(labels, "labels")
        number = {name: k for k, name in enumerate(self.label_names)}
        owner = np.array([number[checked_name(f, tuple(number), "frame")] for f in frames])
        if not len(owner) == len(labels) == len(logits):
            raise SkillStackError(
                f"{len(logits)} rows of logits, {len(owner)} frames and {len(labels)} labels"
            )
        if not len(labels):
            raise SkillStackError("labels: a mixture is fitted on one row or more")
        checked_labels(labels, "labels", np.array(list(map(len, self._column)))[owner])
        if np.isnan(logits[np.arange(len(owner)), owner, 0]).any():
            raise SkillStackError("logits must hold what each row's own frame says, got NaN")
        for k in np.unique(owner):
            mine = owner == k
            own = logits[mine, k, : len(self._column[k])].astype(np.float64)
            self.temperatures[k] = _temperature(own, labels[mine])
        if self.shares != "learned":
            return self
        said = self._said(logits)
        for k in np.unique(owner):
            mine, family = np.flatnonzero(owner == k), np.flatnonzero(self._family[k])
            truth = self._column[k][labels[mine]]
            likelihood = said[mine[:, None], family, truth[:, None]]  # (rows, family)
            self.weights = self.weights.copy()
            self.weights[k, family] = _shares(likelihood)
        return self

    def asked(self, routed: np.ndarray) -> np.ndarray:
        """Which frames are worth asking, bool (n, frames): those with a share in the answer of 1 %
        or more. routed: P(frame | text), (n, frames)."""
        return self._routed(routed) @ self.weights >= _FLOOR

    def predict_proba(self, logits: np.ndarray, routed: np.ndarray) -> np.ndarray:
        """P(name | text), (n, names); logits (n, frames, most classes), routed (n, frames).

        A frame that was not asked (NaN) has no share, and the others more.
        """
        return self.parts(logits, routed).sum(1)

    def parts(self, logits: np.ndarray, routed: np.ndarray) -> np.ndarray:
        """What each frame adds to `predict_proba`, (n, frames, names)."""
        logits = self._checked(logits)
        there = ~np.isnan(logits[:, :, 0])
        shares = np.where(there, self._routed(routed, len(logits)) @ self.weights, 0.0)
        shares /= np.maximum(shares.sum(1, keepdims=True), 1e-300)
        return shares[:, :, None] * self._said(logits)

    def predict(self, logits: np.ndarray, routed: np.ndarray) -> np.ndarray:
        """The most probable name of each row, object (n,)."""
        best = self.predict_proba(logits, routed).argmax(1)
        return np.array(self.names, dtype=object)[best]

    def _routed(self, routed: np.ndarray, rows: int | None = None) -> np.ndarray:
        """What a router says, (rows, frames), or an error."""
        shares, frames = checked_numbers(routed, "routed"), len(self._column)
        if shares.ndim != 2 or shares.shape[1] != frames or rows not in (None, len(shares)):
            many = "rows" if rows is None else rows
            raise SkillStackError(f"routed must be ({many}, {frames} frames), got {shares.shape}")
        if ((shares < 0) | (shares > 1 + 1e-6)).any():
            raise SkillStackError("routed must be probabilities in [0, 1]")
        return np.asarray(routed)

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        checked_numbers(logits, "logits", nan=True, infinite=True)
        most = max(map(len, self._column))
        if np.ndim(logits) != 3 or np.shape(logits)[1:] != (len(self._column), most):
            raise SkillStackError(
                f"logits must be (rows, {len(self._column)} frames, {most} classes), "
                f"got {np.shape(logits)}"
            )
        return np.asarray(logits)

    def _said(self, logits: np.ndarray) -> np.ndarray:
        """P(name | text, frame), (n, frames, names); 0 for names that a frame does not know, and
        for frames that were not asked."""
        said = np.zeros((*logits.shape[:2], len(self.names)))
        for k, column in enumerate(self._column):
            asked = np.flatnonzero(~np.isnan(logits[:, k, 0]))
            own = logits[asked, k, : len(column)].astype(np.float64) / self.temperatures[k]
            said[asked[:, None], k, column] = softmax(own, axis=1)
        return said

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        facts = {"label_names": self.label_names, "shares": self.shares}
        facts |= {"weights": self.weights.tolist(), "temperatures": self.temperatures.tolist()}
        path = checked_path(path, "path")
        write_or_say(path, sealed_json(facts))

    @classmethod
    def load(cls, path: str | Path) -> Mixture:
        """Read what `save` wrote; raises `SkillStackError` naming the file that is wrong."""
        path = checked_path(path, "path")
        facts = read_json(path, ("label_names", "shares", "weights", "temperatures"))
        try:
            mixture = cls(facts["label_names"], facts["shares"])
            weights = np.array(facts["weights"], np.float64)
            temperatures = np.array(facts["temperatures"], np.float64)
            fits = weights.shape == mixture.weights.shape and len(temperatures) == len(weights)
            if not (fits and (weights >= 0).all() and np.allclose(weights.sum(1), 1)):
                raise ValueError("weights are no shares of these frames")
            if not (np.isfinite(temperatures).all() and (temperatures > 0).all()):
                raise ValueError("temperatures are not above 0")
        except (ValueError, TypeError, AttributeError, SkillStackError) as error:
            raise SkillStackError(f"{path} is damaged: {error}") from None
        mixture.weights, mixture.temperatures = weights, temperatures
        return mixture


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the labels most likely; logits (n, classes)."""
    rows = np.arange(len(labels))

    def loss(log_inverse: float) -> float:
        return -log_softmax(logits * np.exp(log_inverse), axis=1)[rows, labels].mean()

    found = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(-found.x))


def _shares(likelihood: np.ndarray) -> np.ndarray:
    """The shares (frames,) of a mixture that make rows most likely; likelihood (n, frames)."""
    shares = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(_ROUNDS):
        responsible = likelihood * shares
        responsible /= np.maximum(responsible.sum(1, keepdims=True), 1e-300)
        shares = responsible.mean(0)
    return shares
