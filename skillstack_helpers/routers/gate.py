"""Which frames a text, or a handful of texts, could belong to, with an error rate; and when it is
none."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from sklearn.covariance import oas

from ..conformal import p_values
from ..errors import SkillStackError, checked_seed, checked_texts
from .base import Router, check_fitted, needed, unit

DRAWS = 999  # other groups that a group of texts is compared with
_NEARER = 1e-9  # of a score: among equal p-values the nearer frame


class GateRouter(Router):
    """A conformal p-value per frame, from how far a text lies from that frame's own texts.

    Every second text of a frame is kept as a reference, the others calibrate. A text is as strange
    to a frame as its Mahalanobis distance from the references is large: their mean, and their
    covariance shrunk by the oracle approximation (Chen et al. 2010), of mean-pooled states that
    layer `first` of the frozen model reads, of length 1. Its p-value says how many calibration
    texts are at least as strange (`conformal.p_values`). It is called novel, and `fallback` is
    true, where even the largest is below `alpha`. So a text of a known task, exchangeable with that
    task's calibration texts, is called novel with probability at most alpha, however many frames
    there are: another frame can only raise the largest.

    One text is weak evidence, a handful is strong: `together` says of a group of texts what
    `p_values` says of one.

    root_first: the oldest frame whose p-value is at least alpha answers, in place of the one with
    the largest. No frame reads another's texts, so that adding frames then never changes who
    answers a text that was not novel. Scores are log p.

    Attributes: regions, a `Region` a frame, in stack order.

    >>> from skillstack_helpers import load_backbone
    >>> films = [f"a {word} film" for word in ("dull", "fine", "long", "short", "sad", "loud")]
    >>> gate = GateRouter(load_backbone("minilm", device="cpu"), alpha=0.26)
    >>> gate = gate.fit(films, ["imdb"] * 6)
    >>> gate.route(["a funny film", "interest rates fell"])["fallback"].tolist()
    [False, True]
    """

    def __init__(
        self,
        backbone=None,
        first: int | float = 0.5,
        alpha: float = 0.05,
        root_first: bool = False,
        max_length: int = 160,
    ):
        self.backbone = backbone
        self.first = first
        self.alpha = alpha
        self.root_first = root_first
        self.max_length = max_length

    def _fit(self, texts, names):
        self.features_, self.ends_ = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        self.regions = []
        self._add(texts, names, self.frames_)

    def _add(self, texts, names, new):
        features = self.features(texts)
        own = [features[[known == name for known in names]] for name in new]
        for name, rows in zip(new, own, strict=True):
            if len(rows) < 3:
                raise SkillStackError(f"a gate needs 3 texts of a frame, {name!r} has {len(rows)}")
        self.regions = [*self.regions, *map(Region, own)]
        self.features_ = np.vstack([self.features_.reshape(-1, features.shape[1]), *own])
        self.ends_ = np.cumsum([len(region.rows) for region in self.regions])

    def _drop(self, place, texts):
        del self.regions[place]
        self.features_ = np.vstack([region.rows for region in self.regions])
        self.ends_ = np.cumsum([len(region.rows) for region in self.regions])

    def p_values(self, texts) -> np.ndarray:
        """Of each text under each frame, (n, frames)."""
        return self._ranked(self.strangeness(texts))

    def _ranked(self, strange: np.ndarray) -> np.ndarray:
        columns = zip(self.regions, strange.T, strict=True)
        return np.column_stack([p_values(region.calibration, own) for region, own in columns])

    def strangeness(self, texts) -> np.ndarray:
        """Squared Mahalanobis distance of each text from each frame's references, (n, frames)."""
        features = self.features(texts)
        return np.column_stack([_squares(region.white(features)) for region in self.regions])

    def together(self, texts, seed: int = 0) -> np.ndarray:
        """A p-value for each frame, (frames,), that all of a group of texts are like its own.

        A permutation test: how far the group's mean lies from the references' mean, in the same
        metric, is compared with `DRAWS` groups of as many texts, drawn from the calibration texts
        and the group itself. Under exchangeability P(p <= a) <= a (Phipson and Smyth 2010).
        """
        checked_seed(seed)
        texts = checked_texts(texts)
        if not texts:
            raise SkillStackError("no texts to test together")
        features = self.features(texts)
        return np.array([region.together(features, seed) for region in self.regions])

    def _scores(self, texts):
        strange = self.strangeness(texts)
        return np.log(self._ranked(strange)) + _NEARER / (1 + strange)

    def _choose(self, scores):
        fits = scores >= np.log(self.alpha)
        novel = ~fits.any(1)
        chosen = scores.argmax(1)
        if self.root_first:
            chosen = np.where(novel, chosen, fits.argmax(1))
        return chosen, np.full(len(scores), np.nan), novel

    def features(self, texts) -> np.ndarray:
        """What the gate reads of each text, float32 (n, hidden), rows of length 1.

        Raises `SkillStackError` before the first `fit`, and for another model's width.
        """
        check_fitted(self)
        texts = checked_texts(texts)
        backbone = needed(self.backbone, "backbone")
        first = backbone.layer_number(self.first)
        features = unit(backbone.pooled(texts, self.max_length, first)[:, -1])
        if (width := self.features_.shape[1]) not in (0, features.shape[1]):
            raise SkillStackError(
                f"this router was fitted on {width} features, {backbone.name} gives "
                f"{features.shape[1]}: pass the backbone it was fitted with"
            )
        return features

    def _restore(self, state):
        super()._restore(state)
        ends = self.ends_
        sizes = np.diff(ends, prepend=0)
        fits = ends.dtype == np.int64 and ends.shape == (len(self.frames_),) and (sizes > 2).all()
        if not fits or self.features_.dtype != np.float32 or self.features_.ndim != 2:
            raise ValueError("'features_' and 'ends_' are not those of these frames")
        if ends[-1] != len(self.features_) or not np.isfinite(self.features_).all():
            raise ValueError("'features_' are not those of these frames")
        self.regions = [Region(rows) for rows in np.split(self.features_, ends[:-1])]


class Region:
    """Where a frame's texts lie; rows: their features (n, hidden), every second a reference.

    Attributes: calibration, the squared distances of the other texts, (m,), sorted.
    """

    def __init__(self, rows: np.ndarray):
        self.rows, references = rows, rows[::2].astype(np.float64)
        covariance, _ = oas(references)
        floor = 1e-9 + 1e-6 * np.trace(covariance) / len(covariance)  # for texts that are all alike
        values, vectors = np.linalg.eigh(covariance + floor * np.eye(len(covariance)))
        self.mean, self.whitening = references.mean(0), vectors / np.sqrt(values)
        self.known = self.white(rows[1::2])  # the calibration texts, (m, hidden)
        self.calibration = np.sort(_squares(self.known))

    def white(self, features: np.ndarray) -> np.ndarray:
        """Features (n, hidden) in units of the references' spread around their mean."""
        return (features - self.mean) @ self.whitening

    def together(self, features: np.ndarray, seed: int) -> float:
        """The p-value of `GateRouter.together` under this frame, of a group's features."""
        every = np.vstack([self.white(features), self.known])
        far = _squares(_groups(len(features), len(every), seed) @ every)
        return float(np.mean(far >= far[0] * (1 - 1e-12)))


@lru_cache(maxsize=4)
def _groups(size: int, texts: int, seed: int) -> np.ndarray:
    """Groups of so many out of so many texts, as rows of zeros and ones; the first: the first."""
    order = np.random.default_rng(seed).random((DRAWS, texts)).argsort(1)[:, :size]
    members = np.zeros((DRAWS + 1, texts))
    members[0, :size] = 1.0
    np.put_along_axis(members[1:], order, 1.0, axis=1)
    return members


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.square(rows).sum(1)
