"""Routing from the trunk: linear discriminant analysis of what its layers read, from sums alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..errors import SkillStackError
from .base import CALIBRATION_FOLDS, Router, depths, fit_temperature, needed
from .ngrams import NgramTfidf

_DEPTHS = 4  # states read, evenly spaced from the token embeddings to the trunk's end
_NGRAMS = (  # as `HybridEmbedRouter` reads them, so that a text is cut up once for both
    NgramTfidf("word", (1, 2), lowercase=False),
    NgramTfidf("char", (2, 5), lowercase=False),
)
_BITS = 11  # n-grams are hashed into 2^11 columns; saved routers hold them, so it never changes
_NGRAM_WEIGHT = 0.5  # of their log likelihood beside that of the states (docs/log.md)
_HELD_OUT = 4096  # texts at most that the temperature is fitted on


class TrunkRouter(Router):
    """Linear discriminant analysis of the trunk's pooled states and of n-grams, from sums alone.

    The layers below `first` are frozen and the same for every frame, so what they read of a text
    is there before any frame runs (`Backbone.pooled`). In every frame a text's features are taken
    as normal, with one covariance for all frames: mean-pooled states of four depths, each of
    length 1, and cased n-grams (words 1-2, characters 2-5; sublinear counts, length 1) hashed with
    a sign into 2,048 columns. States and n-grams are taken as independent of each other; either
    covariance is shrunk by what suits its number of texts (oracle approximating shrinkage, Chen et
    al. 2010). Settings were chosen on training rows (docs/log.md).

    All of it follows from sums over texts: a new frame needs no text of the others, and the
    weights are those of a joint fit, up to rounding and in any order. Only the temperature stays
    as it was fitted. Scores are log likelihoods, up to what a text's frames have in common.

    backbone: a `Backbone`. first: the layer where frames begin, as a number or a fraction of all;
    what lies below is read. max_length: tokens of a text that are read.

    >>> from skillstack_helpers import load_backbone
    >>> router = TrunkRouter(load_backbone("minilm", device="cpu"))
    >>> films = ["a dull film", "a fine film", "a film to see"]
    >>> news = ["the bank cut rates", "its shares fell", "oil prices rose"]
    >>> router = router.fit(films, ["imdb"] * 3).partial_fit(news, ["agnews"] * 3)
    >>> list(router.predict(["rates fell", "what a film"]))
    ['agnews', 'imdb']
    """

    def __init__(self, backbone=None, first: int | float = 0.5, max_length: int = 160):
        self.backbone = backbone
        self.first = first
        self.max_length = max_length

    def _fit(self, texts, names):
        vars(self).pop("sums_", None)
        most, held = max(1, _HELD_OUT // len(self.frames_)), []
        for name in self.frames_:
            features = self._include(_texts_of(name, texts, names))
            kept = min(len(features) // CALIBRATION_FOLDS, most)
            held.append(features[::CALIBRATION_FOLDS][:kept])
        self.coef_, self.intercept_ = self.sums_.weights()
        # The temperature is found on texts that the weights have not seen: their part in the sums
        # can be taken out again.
        if len(held) > 1 and all(map(len, held)):
            coef, intercept = self.sums_.without(_Sums.of(held)).weights()
            of_held = [name for name, rows in zip(self.frames_, held, strict=True) for _ in rows]
            scores = np.vstack(held) @ coef.T + intercept
            self.temperature_ = fit_temperature(scores, self.frames_, of_held)

    def _add(self, texts, names, new):
        before = self.sums_
        try:
            for name in new:
                self._include(_texts_of(name, texts, names))
        except BaseException:
            self.sums_ = before  # every frame or none
            raise
        self.coef_, self.intercept_ = self.sums_.weights()

    def _drop(self, place, texts):
        if texts is None:
            raise SkillStackError("the sums hold the frame's texts: pass them, texts=[...]")
        features = self._features(texts)
        total = self.sums_.totals[place]
        scale = np.abs(features).sum(0) + np.abs(total)
        if len(features) != self.sums_.counts[place] or not np.allclose(
            features.sum(0) / np.maximum(scale, 1e-12), total / np.maximum(scale, 1e-12), atol=1e-4
        ):
            name = self.frames_[place]
            raise SkillStackError(
                f"these are not the {self.sums_.counts[place]:.0f} texts of {name!r}"
            )
        self.sums_ = self.sums_.outside(place, features)
        self.coef_, self.intercept_ = self.sums_.weights()

    def _include(self, texts: list[str]) -> np.ndarray:
        """Add one frame's texts to the sums; their features. Frames are read one at a time, so that
        memory does not grow with them."""
        features = self._features(texts)
        one = _Sums.of([features])
        self.sums_ = self.sums_.beside(one) if "sums_" in vars(self) else one
        return features

    def _scores(self, texts):
        return self._features(texts) @ self.coef_.T + self.intercept_

    def _features(self, texts: list[str]) -> np.ndarray:
        """States and n-grams, float64 (texts, features)."""
        backbone = needed(self.backbone, "backbone")
        first = backbone.layer_number(self.first)
        layers = np.unique(np.linspace(0, first, _DEPTHS).round().astype(int))
        states = backbone.pooled(texts, self.max_length, first)[:, layers]
        features = np.hstack([depths(states.astype(np.float64)), _sketch(texts)])
        if "sums_" in vars(self) and features.shape[1] != self.sums_.totals.shape[1]:
            raise SkillStackError(
                f"this router was fitted on {self.sums_.totals.shape[1]} features, {backbone.name} "
                f"gives {features.shape[1]}: pass the backbone it was fitted with"
            )
        return features

    def _state(self):
        state = super()._state()
        counts, totals, *moments = state.pop("sums_")
        halves = [part[np.triu_indices(len(part))] for part in moments]  # they are symmetric
        kept = zip(_Sums._fields, (counts, totals, *halves), strict=True)
        return state | {f"{name}_": part for name, part in kept}

    def _restore(self, state):
        parts = [state.pop(f"{part}_") for part in _Sums._fields]
        frames, width = len(state["frames_"]), parts[1].shape[-1]
        shapes = [(frames,), (frames, width), *_triangles(width)]
        parts += [state["coef_"], state["intercept_"]]
        for part, shape in zip(parts, [*shapes, (frames, width), (frames,)], strict=True):
            if part.shape != shape or part.dtype != np.float64:
                raise ValueError(f"an array is {part.dtype} {part.shape}, not float64 {shape}")
            if not np.isfinite(part).all():
                raise ValueError("an array has numbers that are not finite")
        counts, totals, states, ngrams = parts[:4]
        state["sums_"] = _Sums(counts, totals, _symmetric(states), _symmetric(ngrams))
        super()._restore(state)


class _Sums(NamedTuple):
    """Sums over texts that the weights follow from; float64."""

    counts: np.ndarray  # texts of each frame, (frames,)
    totals: np.ndarray  # of their features, (frames, states + n-grams)
    states: np.ndarray  # second moments of all texts' states, (states, states)
    ngrams: np.ndarray  # and of their n-grams, (n-grams, n-grams)

    @classmethod
    def of(cls, frames: Sequence[np.ndarray]) -> _Sums:
        """From the features (texts, states + n-grams) of each frame."""
        every = np.vstack(frames)
        states, ngrams = np.split(every, [every.shape[1] - (1 << _BITS)], axis=1)
        counts = np.array([float(len(rows)) for rows in frames])
        totals = np.vstack([rows.sum(0) for rows in frames])
        return cls(counts, totals, states.T @ states, ngrams.T @ ngrams)

    def beside(self, other: _Sums) -> _Sums:
        """Those of the frames of both."""
        return _Sums(
            np.append(self.counts, other.counts),
            np.vstack([self.totals, other.totals]),
            self.states + other.states,
            self.ngrams + other.ngrams,
        )

    def without(self, part: _Sums) -> _Sums:
        """Those of the same frames without some of their texts."""
        return _Sums(*(ours - theirs for ours, theirs in zip(self, part, strict=True)))

    def outside(self, place: int, features: np.ndarray) -> _Sums:
        """Those of all frames but one, whose features are given."""
        gone = _Sums.of([features])
        counts, totals = (np.delete(part, place, axis=0) for part in self[:2])
        return _Sums(counts, totals, self.states - gone.states, self.ngrams - gone.ngrams)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (frames, states + n-grams) and intercepts (frames,)."""
        means = self.totals / self.counts[:, None]
        coef, start = np.empty_like(means), 0
        for moments, weight in ((self.states, 1.0), (self.ngrams, _NGRAM_WEIGHT)):
            block = slice(start, start := start + len(moments))
            within = moments - self.totals[:, block].T @ means[:, block]
            coef[:, block] = weight * discriminants(within, means[:, block], self.counts.sum())
        return coef, -(coef * means).sum(1) / 2


def discriminants(within: np.ndarray, means: np.ndarray, texts: float) -> np.ndarray:
    """Means of the frames (frames, d) over the covariance within frames, shrunk: (frames, d).

    within: the sum of squares of that covariance, (d, d), over so many texts.
    """
    frames, d = means.shape
    floor = max(1e-4 * (means**2).mean(), 1e-12)  # for what is the same in every text
    spread = np.sqrt(np.maximum(np.diag(within) / texts, 0) + floor)
    correlation = within / np.outer(texts * spread, spread)
    square, trace = (correlation**2).sum(), np.trace(correlation)
    over = (texts - frames + 1 - 2 / d) * (square - trace**2 / d)
    shrinkage = min(1, ((1 - 2 / d) * square + trace**2) / over) if over > 0 else 1
    correlation *= 1 - shrinkage
    correlation[np.diag_indices(d)] += shrinkage
    return scipy.linalg.solve(correlation, (means / spread).T, assume_a="pos").T / spread


def _sketch(texts: list[str]) -> np.ndarray:
    """N-grams hashed with a sign (Weinberger et al. 2009), (texts, 2^_BITS)."""
    out = np.zeros((len(texts), 1 << _BITS))
    squares = np.zeros(len(texts))
    for kind, read in enumerate(_NGRAMS):
        hashes, counts, ends = read.counted(texts)
        hashes = hashes << np.uint64(16 * kind)  # the word "so" and the letters: two columns
        row = np.repeat(np.arange(len(texts)), np.diff(ends, prepend=0))
        values = np.log(counts) + 1.0
        squares += np.bincount(row, values**2, minlength=len(texts))
        column = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
        signs = 1.0 - 2.0 * ((hashes >> np.uint64(63 - _BITS)) & np.uint64(1))
        place = row * out.shape[1] + column
        out += np.bincount(place, signs * values, minlength=out.size).reshape(out.shape)
    return out / np.sqrt(np.maximum(squares, 1))[:, None]


def _texts_of(frame, texts: Sequence[str], names: Sequence) -> list[str]:
    return [text for text, name in zip(texts, names, strict=True) if name == frame]


def _triangles(width: int) -> list[tuple[int]]:
    """Shapes of the upper halves of both second moments of so many features."""
    return [(d * (d + 1) // 2,) for d in (width - (1 << _BITS), 1 << _BITS)]


def _symmetric(upper: np.ndarray) -> np.ndarray:
    """The symmetric matrix with this upper half."""
    d = int((2 * len(upper)) ** 0.5)
    out = np.empty((d, d))
    out[np.triu_indices(d)] = upper
    return np.triu(out) + np.triu(out, 1).T
