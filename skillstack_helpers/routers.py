"""Routers: which frame answers a text. All share scikit-learn's shape.

``fit(texts, frame_names)`` (the order in which frames first appear is the stack's order, oldest
first), ``predict(texts)``, ``decision_function(texts)`` of shape (n, frames) and ``route(texts)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted

from . import SkillStackError


class _Router(BaseEstimator):
    """What all routers share; a router defines `_fit` and `decision_function`."""

    def fit(self, texts: Sequence[str], frame_names: Sequence[str]) -> _Router:
        """Learn which texts belong to which frame; forgets every earlier fit."""
        texts, names = list(texts), list(frame_names)
        if len(texts) != len(names):
            raise SkillStackError(f"{len(texts)} texts but {len(names)} frame names")
        if not texts:
            raise SkillStackError("a router needs at least one text to fit")
        self.frames_ = list(dict.fromkeys(names))  # stack order
        self._fit(_checked(texts), names)
        return self

    def _fit(self, texts: list[str], names: list[str]) -> None:
        pass

    def decision_function(self, texts: Sequence[str]) -> np.ndarray:
        """Score of each frame for each text, (n, frames), columns in stack order."""
        raise NotImplementedError

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Name of the chosen frame for each text, (n,)."""
        return self.route(texts)["frame"].to_numpy()

    def route(self, texts: Sequence[str]) -> pd.DataFrame:
        """One row a text: frame, score, depth (frames visited; NaN without a walk), fallback."""
        scores = self.decision_function(texts)
        best = scores.argmax(1)
        return self._routes(scores, best, np.full(len(best), np.nan), np.zeros(len(best), bool))

    def _routes(self, scores, chosen, depth, fallback) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "frame": np.array(self.frames_, dtype=object)[chosen],
                "score": scores[np.arange(len(chosen)), chosen],
                "depth": depth,
                "fallback": fallback,
            }
        )


class OracleRouter(_Router):
    """The upper bound: knows the right frame of every text it was fitted on."""

    def _fit(self, texts, names):
        self.truth_ = dict(zip(texts, names, strict=True))

    def decision_function(self, texts):
        check_is_fitted(self)
        scores = np.zeros((len(texts), len(self.frames_)))
        for i, text in enumerate(_checked(texts)):
            if text not in self.truth_:
                raise SkillStackError(f"the oracle was not told about the text {text[:40]!r}")
            scores[i, self.frames_.index(self.truth_[text])] = 1.0
        return scores


class LatestRouter(_Router):
    """Always the latest frame: what plain sequential fine-tuning does."""

    def decision_function(self, texts):
        check_is_fitted(self)
        scores = np.zeros((len(_checked(texts)), len(self.frames_)))
        scores[:, -1] = 1.0
        return scores


class RandomRouter(_Router):
    """The lower bound: any frame, decided by the text and the seed alone."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def decision_function(self, texts):
        check_is_fitted(self)
        scores = np.empty((len(texts), len(self.frames_)))
        for i, text in enumerate(_checked(texts)):
            key = hashlib.sha256(f"{self.seed}\x1f{text}".encode("utf-8", "replace")).digest()
            scores[i] = np.random.default_rng(list(key)).random(len(self.frames_))
        return scores


class HybridSVMRouter(_Router):
    """Word 1-2-grams and in-word character 3-5-grams, TF-IDF, one linear SVM over the frames.

    The published ``hybrid_svm``. Scores are the SVM's signed distances, one against the rest.
    """

    def __init__(self, C: float = 1.0):
        self.C = C

    def make_pipeline(self) -> Pipeline:
        """The unfitted scikit-learn pipeline, usable on its own."""
        return make_pipeline(
            make_union(
                TfidfVectorizer(analyzer="word", ngram_range=(1, 2), sublinear_tf=True),
                TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
            ),
            LinearSVC(C=self.C, random_state=0),
        )

    def _fit(self, texts, names):
        self.pipeline_ = None
        if len(self.frames_) > 1:  # an SVM needs two classes; one frame needs no SVM
            try:
                self.pipeline_ = self.make_pipeline().fit(texts, names)
            except ValueError as error:
                raise SkillStackError(f"the routing texts hold no words: {error}") from None

    def decision_function(self, texts):
        check_is_fitted(self)
        texts = _checked(texts)
        if self.pipeline_ is None:
            return np.ones((len(texts), 1))
        if not texts:
            return np.empty((0, len(self.frames_)))
        scores = self.pipeline_.decision_function(texts)
        if scores.ndim == 1:  # two frames: the SVM keeps one distance
            scores = np.column_stack([-scores, scores])
        column = {name: i for i, name in enumerate(self.pipeline_.classes_)}
        return scores[:, [column[name] for name in self.frames_]]


class HybridChainRouter(HybridSVMRouter):
    """The scores of `HybridSVMRouter`, walked from the latest frame to its parents.

    The first frame whose margin exceeds `threshold` answers. If none does, the best global score
    answers and counts as fallback. Depth is the number of frames visited. The published
    ``hybrid_chain``.
    """

    def __init__(self, threshold: float = 0.0, C: float = 1.0):
        super().__init__(C=C)
        self.threshold = threshold

    def route(self, texts):
        scores = self.decision_function(texts)
        walk = scores[:, ::-1] > self.threshold  # (n, frames), latest frame first
        fallback = ~walk.any(1)
        first = walk.argmax(1)
        chosen = np.where(fallback, scores.argmax(1), scores.shape[1] - 1 - first)
        depth = np.where(fallback, scores.shape[1], first + 1).astype(float)
        return self._routes(scores, chosen, depth, fallback)


ROUTERS = {
    "oracle": OracleRouter,
    "latest": LatestRouter,
    "random": RandomRouter,
    "hybrid_svm": HybridSVMRouter,
    "hybrid_chain": HybridChainRouter,
}


def make_router(name: str, *, threshold: float = 0.0, seed: int = 0) -> _Router:
    """The unfitted router of that name; parameters that it does not have are left out."""
    from .config import did_you_mean

    if name not in ROUTERS:
        raise SkillStackError(f"unknown router {name!r}{did_you_mean(name, ROUTERS)}")
    known = ROUTERS[name]().get_params()
    given = {"threshold": threshold, "seed": seed}
    return ROUTERS[name](**{key: value for key, value in given.items() if key in known})


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise SkillStackError("texts must be a sequence of strings, got one string")
    for text in texts:
        if not isinstance(text, str):
            raise SkillStackError(f"texts must be strings, got {text!r}")
    return list(texts)
