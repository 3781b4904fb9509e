"""The nearest frame by embedding: class means, and profiles of description and examples."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
from scipy.special import softmax

from ..errors import SkillStackError
from .base import Router, check_arrays, needed, places, unit


class CentroidRouter(Router):
    """Nearest class mean of the frozen backbone's embeddings; scores are cosines.

    backbone: a `Backbone`. max_length: tokens of a text that are read.

    >>> from skillstack_helpers import load_backbone
    >>> router = CentroidRouter(load_backbone("minilm", device="cpu"))
    >>> router = router.fit(["a dull film", "a fine film"], ["imdb", "imdb"])
    >>> router = router.partial_fit(["the bank cut rates"], ["agnews"])
    >>> list(router.predict(["its shares fell", "what a movie"]))
    ['agnews', 'imdb']
    """

    def __init__(self, backbone=None, max_length: int = 160):
        self.backbone = backbone
        self.max_length = max_length

    def _fit(self, texts, names):
        embedded = _sentences(self, texts)
        self.sums_ = np.zeros((0, embedded.shape[1]))
        self._add(texts, names, self.frames_)
        if len(self.frames_) > 1 and min(Counter(names).values()) > 1:
            own = np.array([self.frames_.index(name) for name in names])
            scores = embedded @ unit(self.sums_).T
            alone = unit(self.sums_[own] - embedded)  # a text has no part in its own class mean
            scores[np.arange(len(own)), own] = (embedded * alone).sum(1)
            self._calibrate(scores, names)

    def _add(self, texts, names, new):
        embedded = _sentences(self, texts)
        sums = [embedded[np.array(names) == name].sum(0) for name in new]
        self.sums_ = np.vstack([self.sums_, *sums])

    def _drop(self, place, texts):
        self.sums_ = np.delete(self.sums_, place, axis=0)

    def _restore(self, state):
        super()._restore(state)
        check_arrays(vars(self), sums_=(len(self.frames_), None))

    def _scores(self, texts):
        return _sentences(self, texts) @ unit(self.sums_).T


class ProfileRouter(Router):
    """Cosine to a frame's profile: its description joined with the mean of k example texts.

    The adaptive learner's router (r/MachineLearning 1kpax4u): a text stands in both halves, and
    softmax of the cosines over a temperature is the confidence. Below `min_confidence` no profile
    is trusted and the best answers as a fallback (there, a new adapter would be created).

    backbone: a `Backbone`. descriptions: frame name -> text (default: the name itself). k:
    examples, the first of each frame. epochs: 0 leaves the profiles where they are; there they
    are learned on, by steepest descent of the cross-entropy of all (task, frame) pairs with
    step size `lr`, for 1 to 5 epochs whenever a frame comes. temperature: None finds it on the
    routing texts that are no examples. max_length: tokens of a text that are read.

    >>> from skillstack_helpers import load_backbone
    >>> described = {"imdb": "film reviews", "agnews": "news of business and sport"}
    >>> router = ProfileRouter(load_backbone("minilm", device="cpu"), described, temperature=0.1)
    >>> router = router.fit(["a dull film", "the bank cut rates"], ["imdb", "agnews"])
    >>> router.route(["its shares fell"])[["frame", "fallback"]].values.tolist()
    [['agnews', False]]
    """

    _renamed: ClassVar = {"threshold": "min_confidence"}

    def __init__(
        self,
        backbone=None,
        descriptions: dict[str, str] | None = None,
        k: int = 3,
        epochs: int = 0,
        lr: float = 0.1,
        temperature: float | None = None,
        min_confidence: float = 0.4,
        max_length: int = 160,
    ):
        self.backbone = backbone
        self.descriptions = descriptions
        self.k = k
        self.epochs = epochs
        self.lr = lr
        self.temperature = temperature
        self.min_confidence = min_confidence
        self.max_length = max_length

    def _fit(self, texts, names):
        self.profiles_ = self.tasks_ = np.zeros((0, 0))
        self._add(texts, names, self.frames_)
        if self.temperature is not None:
            self.temperature_ = self.temperature
            return
        rest = np.flatnonzero(places(names) >= self.k)
        rest_names = [names[i] for i in rest]
        if len(set(rest_names)) == len(self.frames_):
            self._calibrate(self._scores([texts[i] for i in rest]), rest_names)

    def _add(self, texts, names, new):
        given = self.descriptions or {}
        described = [given.get(name, str(name).replace("_", " ")) for name in new]
        for name, description in zip(new, _sentences(self, described), strict=True):
            examples = [t for t, n in zip(texts, names, strict=True) if n == name][: self.k]
            mean = unit(_sentences(self, examples).mean(0))
            task = np.concatenate([description, mean]) / 2**0.5
            self.tasks_ = np.vstack([self.tasks_.reshape(-1, len(task)), task])
            self.profiles_ = np.vstack([self.profiles_.reshape(-1, len(task)), task])
        for _ in range(self.epochs):
            chances = softmax(self.tasks_ @ self.profiles_.T, axis=1)  # (tasks, frames)
            gradient = (chances - np.eye(len(chances))).T @ self.tasks_ / len(chances)
            self.profiles_ = unit(self.profiles_ - self.lr * gradient)

    def _drop(self, place, texts):
        if self.epochs:
            raise SkillStackError("learned profiles hold the frame: fit the router anew without it")
        self.profiles_ = np.delete(self.profiles_, place, axis=0)
        self.tasks_ = np.delete(self.tasks_, place, axis=0)

    def _scores(self, texts):
        embedded = _sentences(self, texts)
        return np.hstack([embedded, embedded]) / 2**0.5 @ self.profiles_.T

    def _state(self):
        state = super()._state()
        return state if self.epochs else {k: v for k, v in state.items() if k != "tasks_"}

    def _restore(self, state):
        super()._restore({"tasks_": state["profiles_"]} | state)
        check_arrays(vars(self), profiles_=(len(self.frames_), None), tasks_=self.profiles_.shape)

    def _choose(self, scores):
        chosen, depth, _ = super()._choose(scores)
        confidence = softmax(scores / self.temperature_, axis=1).max(1)
        return chosen, depth, confidence < self.min_confidence


def _sentences(router: CentroidRouter | ProfileRouter, texts: list[str]) -> np.ndarray:
    """Mean-pooled last hidden state of each text, (n, hidden), of length 1."""
    backbone = needed(router.backbone, "backbone")
    return unit(backbone.embed(texts, router.max_length)[:, -1])
