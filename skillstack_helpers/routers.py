"""Routers: which frame answers a text. All share scikit-learn's shape.

``fit(texts, frame_names)`` (the order in which frames first appear is the stack's order, oldest
first), ``partial_fit`` for one more frame where the method allows it without the old texts,
``predict``, ``decision_function`` and ``predict_proba`` of shape (n, frames), and ``route``.
Routers that read embeddings take the frozen backbone (`Backbone.embed`). A fitted router is saved
as JSON and plain arrays (`save_router`, `load_router`): nothing is pickled, no code is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
import scipy.sparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted

from . import SkillStackError
from .config import did_you_mean
from .results import explain, write_atomic

if TYPE_CHECKING:  # torch stays unloaded until a router asks for a model
    from .backbones import Backbone
    from .frames import Frame, SkillStack

CALIBRATION_FOLDS = 3
DETECTOR_TEXTS = 1500  # of the routing texts, for a regression on some twenty numbers


class _Scores(ClassifierMixin, BaseEstimator):
    """A stand-in whose decision function is its input: lets scikit-learn calibrate any scores."""

    def fit(self, scores, names):
        self.classes_ = np.unique(names)
        return self

    def decision_function(self, scores):
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, scores):  # scikit-learn asks for it, calibration does not call it
        raise NotImplementedError


def fit_temperature(scores: np.ndarray, columns: Sequence[str], names: Sequence[str]) -> float:
    """The temperature T for which softmax(scores / T) fits the names best (Guo et al. 2017).

    scores: (n, frames), out of sample, one column a frame in the order of `columns`; names: the
    right frame of each row. Found by scikit-learn's `CalibratedClassifierCV`.
    """
    order = np.argsort(np.array(columns, dtype=str), kind="stable")
    scores = np.asarray(scores, dtype=np.float64)[:, order]
    if scores.shape[1] == 2:  # scikit-learn reads one signed score as the logits (-s, s)
        scores = (scores[:, 1:] - scores[:, :1]) / 2
    frozen = FrozenEstimator(_Scores().fit(scores, names))
    calibrated = CalibratedClassifierCV(frozen, method="temperature", cv=2).fit(scores, names)
    return float(1 / calibrated.calibrated_classifiers_[0].calibrators[0].beta_)


def walk(scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk from the latest frame to its parents: the first score above `threshold` answers.

    scores: (n, frames), oldest frame first. Returns the chosen columns (n,), the number of frames
    visited (n,), and whether nobody exceeded the threshold, so that the best score answers (n,).
    """
    latest_first = scores[:, ::-1] > threshold
    fallback = ~latest_first.any(1)
    first = latest_first.argmax(1)
    chosen = np.where(fallback, scores.argmax(1), scores.shape[1] - 1 - first)
    depth = np.where(fallback, scores.shape[1], first + 1).astype(float)
    return chosen, depth, fallback


class _Router(BaseEstimator):
    """What all routers share; a router defines `_fit` and `_scores`, and may define `_add`."""

    def fit(self, texts: Sequence[str], frame_names: Sequence[str]) -> _Router:
        """Learn which texts belong to which frame; forgets every earlier fit."""
        texts, names = _paired(texts, frame_names)
        if not texts:
            raise SkillStackError("a router needs at least one text to fit")
        self.frames_ = list(dict.fromkeys(names))  # stack order
        self.temperature_ = 1.0
        self._fit(texts, names)
        return self

    def partial_fit(self, texts: Sequence[str], frame_names: Sequence[str]) -> _Router:
        """Add new frames; the texts of the frames that are there already are not needed.

        Raises `SkillStackError` for a method that must see the old texts again, and for a frame
        that is already known. The temperature stays as it was fitted.
        """
        if not hasattr(self, "frames_"):
            return self.fit(texts, frame_names)
        if type(self)._add is _Router._add:
            raise SkillStackError(
                f"{type(self).__name__} cannot add a frame without the old texts: fit it anew"
            )
        texts, names = _paired(texts, frame_names)
        new = list(dict.fromkeys(names))
        known = [name for name in new if name in self.frames_]
        if known:
            raise SkillStackError(f"frame {known[0]!r} is already in the router")
        self._add(texts, names, new)
        self.frames_ = [*self.frames_, *new]
        return self

    def _fit(self, texts: list[str], names: list[str]) -> None:
        pass

    def _add(self, texts: list[str], names: list[str], new: list[str]) -> None:
        raise NotImplementedError

    def _scores(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def decision_function(self, texts: Sequence[str]) -> np.ndarray:
        """Score of each frame for each text, (n, frames), columns in stack order."""
        check_is_fitted(self)
        texts = _checked(texts)
        return self._scores(texts) if texts else np.empty((0, len(self.frames_)))

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probability of each frame, (n, frames), rows sum to 1.

        Softmax of the scores over a temperature, fitted on scores of texts that the scorer had
        not seen (`fit_temperature`). Without three texts a frame it stays 1.
        """
        return softmax(self.decision_function(texts) / self.temperature_, axis=1)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Name of the chosen frame for each text, (n,)."""
        return self.route(texts)["frame"].to_numpy()

    def route(self, texts: Sequence[str]) -> pd.DataFrame:
        """One row a text: frame, score, depth (frames visited; NaN without a walk), fallback."""
        return self.route_scores(self.decision_function(texts))

    def route_scores(self, scores: np.ndarray) -> pd.DataFrame:
        """`route`, for scores (n, frames) that `decision_function` has given already."""
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

    def _calibrate(self, scores: np.ndarray, names: list[str]) -> None:
        if len(self.frames_) > 1 and min(Counter(names).values()) >= CALIBRATION_FOLDS:
            self.temperature_ = fit_temperature(scores, self.frames_, names)


# ---------------------------------------------------------------------- bounds


class OracleRouter(_Router):
    """The upper bound: knows the right frame of every text it was fitted on."""

    def _fit(self, texts, names):
        self.truth_ = dict(zip(texts, names, strict=True))

    def _add(self, texts, names, new):
        self.truth_ = self.truth_ | dict(zip(texts, names, strict=True))

    def _scores(self, texts):
        scores = np.zeros((len(texts), len(self.frames_)))
        for i, text in enumerate(texts):
            if text not in self.truth_:
                raise SkillStackError(f"the oracle was not told about the text {text[:40]!r}")
            scores[i, self.frames_.index(self.truth_[text])] = 1.0
        return scores


class LatestRouter(_Router):
    """Always the latest frame: what plain sequential fine-tuning does."""

    def _add(self, texts, names, new):
        pass

    def _scores(self, texts):
        scores = np.zeros((len(texts), len(self.frames_)))
        scores[:, -1] = 1.0
        return scores


class RandomRouter(_Router):
    """The lower bound: any frame, decided by the text and the seed alone."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _add(self, texts, names, new):
        pass

    def _scores(self, texts):
        scores = np.empty((len(texts), len(self.frames_)))
        for i, text in enumerate(texts):
            key = hashlib.sha256(f"{self.seed}\x1f{text}".encode("utf-8", "replace")).digest()
            scores[i] = np.random.default_rng(list(key)).random(len(self.frames_))
        return scores


# ---------------------------------------------------------------------- linear, on n-grams


class HybridSVMRouter(_Router):
    """Word 1-2-grams and in-word character 3-5-grams, TF-IDF, one linear SVM over the frames.

    The published ``hybrid_svm``. Scores are the SVM's signed distances, one against the rest.
    """

    def __init__(self, C: float = 1.0):
        self.C = C

    def make_pipeline(self) -> Pipeline:
        """The unfitted scikit-learn pipeline, usable on its own."""
        return make_pipeline(make_union(*self._vectorizers()), LinearSVC(C=self.C, random_state=0))

    def _vectorizers(self) -> list[TfidfVectorizer]:
        return [
            TfidfVectorizer(analyzer="word", ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
        ]

    def _fit(self, texts, names):
        self._learn(texts, names, np.arange(len(texts)))

    def _learn(self, texts: list[str], names: list[str], source: np.ndarray) -> None:
        """Fit features, SVM and temperature; rows of one `source` share a calibration fold."""
        self.vectorizers_ = []
        self.coef_, self.intercept_ = np.zeros((1, 0)), np.ones(1)
        if len(self.frames_) == 1:  # an SVM needs two classes; one frame needs no SVM
            return
        features = self._fit_features(texts)
        svm = LinearSVC(C=self.C, random_state=0)
        whole = Counter(dict(zip(source, names, strict=True)).values())  # texts of each frame
        if min(whole.values()) >= CALIBRATION_FOLDS:
            folds = StratifiedGroupKFold(CALIBRATION_FOLDS)
            held_out = cross_val_predict(
                svm, features, names, groups=source, cv=folds, method="decision_function"
            )
            self._calibrate(self._in_stack_order(held_out, np.unique(names)), names)
        svm.fit(features, names)
        self.coef_, self.intercept_ = self._weights(svm)

    def _weights(self, linear) -> tuple[np.ndarray, np.ndarray]:
        """Weights (frames, features) and intercepts (frames,) of a linear classifier."""
        both = np.vstack([np.atleast_2d(linear.coef_).T, np.ravel(linear.intercept_)])
        both = self._in_stack_order(both, linear.classes_)
        return np.ascontiguousarray(both[:-1].T), both[-1]

    def _in_stack_order(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        if scores.ndim == 1 or scores.shape[1] == 1:  # two frames: one signed distance
            scores = np.column_stack([-scores.ravel(), scores.ravel()])
        column = {name: i for i, name in enumerate(classes)}
        return scores[:, [column[name] for name in self.frames_]]

    def _fit_features(self, texts: list[str]) -> scipy.sparse.csr_matrix:
        self.vectorizers_ = self._vectorizers()
        try:
            return scipy.sparse.hstack([v.fit_transform(texts) for v in self.vectorizers_]).tocsr()
        except ValueError as error:
            raise SkillStackError(f"the routing texts hold no words: {error}") from None

    def _features(self, texts: list[str]) -> scipy.sparse.csr_matrix:
        return scipy.sparse.hstack([v.transform(texts) for v in self.vectorizers_]).tocsr()

    def _scores(self, texts):
        if len(self.frames_) == 1:
            return np.ones((len(texts), 1))
        return self._features(texts) @ self.coef_.T + self.intercept_


class HybridChainRouter(HybridSVMRouter):
    """The scores of `HybridSVMRouter`, walked from the latest frame to its parents (`walk`).

    The first frame whose margin exceeds `threshold` answers. If none does, the best global score
    answers and counts as fallback. Depth is the number of frames visited. The published
    ``hybrid_chain``.
    """

    def __init__(self, threshold: float = 0.0, C: float = 1.0):
        super().__init__(C=C)
        self.threshold = threshold

    def route_scores(self, scores):
        return self._routes(scores, *walk(scores, self.threshold))


class HybridEmbedRouter(HybridSVMRouter):
    """Cased n-grams joined with the frozen backbone's hidden states of every depth; linear SVM.

    What a text is *about* stands in the last hidden state, whose kind it is in the lower ones, so
    all of them are pooled (`Backbone.embed`), standardized and joined with TF-IDF features of
    words and of characters (2 to 5, across words, upper case kept). `scale` is the norm of the
    embedded half; that of either n-gram half is 1. Settings were chosen on training rows
    (docs/log.md).
    """

    def __init__(self, backbone: Backbone | None = None, scale: float = 1.0, C: float = 1.0):
        super().__init__(C=C)
        self.backbone = backbone
        self.scale = scale

    def _vectorizers(self):
        same = {"sublinear_tf": True, "lowercase": False}
        return [
            TfidfVectorizer(analyzer="word", ngram_range=(1, 2), **same),
            TfidfVectorizer(analyzer="char", ngram_range=(2, 5), **same),
        ]

    def _fit_features(self, texts):
        ngrams = super()._fit_features(texts)
        states = _depths(_model(self.backbone).embed(texts))
        self.mean_, self.spread_ = states.mean(0), states.std(0) + 1e-6
        return self._joined(ngrams, states)

    def _features(self, texts):
        return self._joined(super()._features(texts), _depths(_model(self.backbone).embed(texts)))

    def _joined(self, ngrams, states):
        embedded = (states - self.mean_) / self.spread_ * (self.scale / states.shape[1] ** 0.5)
        return scipy.sparse.hstack([ngrams, scipy.sparse.csr_matrix(embedded)]).tocsr()


class ScaffoldBlindRouter(HybridEmbedRouter):
    """`HybridEmbedRouter` made to look past a text's scaffold.

    A scaffold is what surrounds the content: a task's format, an instruction, a list of keywords.
    Three means, all learned from the routing texts alone, never from a rewritten text:

    1. *Learned format.* Word sequences that begin or end a line in at least `nearly_every` of some
       frame's texts (``Question 1:``) are cut from the ends of every line.
    2. *Foreign pieces.* A text is split into lines, sentences and brackets; each piece is compared
       with the rest of its text (cosines of the pooled hidden states at every depth, agreement of
       a linear classifier's opinions, lengths, position). A logistic regression that has seen 2 to
       10 words out of another frame's text put before or behind says whether the piece belongs.
       Pieces more likely foreign than `tolerance` are dropped, the most foreign first, as long as
       40 % of the words stay.
    3. *Noise.* The SVM learns from each text twice, once with such foreign words at one end.

    A text's score is the mean over its readings: without the format, and without foreign pieces.
    The format still counts, but no more than `format_trust`: that is added to the frames whose
    formats are exactly the ones found. So the costume decides between frames that the content
    leaves open, and not against it.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        scale: float = 1.0,
        C: float = 1.0,
        nearly_every: float = 0.9,
        tolerance: float = 0.5,
        format_trust: float = 0.4,
        seed: int = 0,
    ):
        super().__init__(backbone=backbone, scale=scale, C=C)
        self.nearly_every = nearly_every
        self.tolerance = tolerance
        self.format_trust = format_trust
        self.seed = seed

    def _fit(self, texts, names):
        rng = np.random.default_rng(self.seed)
        self.formats_ = learn_formats(texts, names, self.nearly_every)
        texts = self._without_formats(texts)[0]
        noisy = []
        if len(self.frames_) > 1:
            self._fit_detector(texts, names, rng)
            for i, text in enumerate(texts):
                ends = [" ".join(_foreign(i, texts, names, rng)), text]
                noisy.append("\n".join(ends if rng.random() < 0.5 else ends[::-1]))
        source = np.arange(len(texts))
        source = np.concatenate([source, source[: len(noisy)]])
        self._learn([*texts, *noisy], [*names, *names[: len(noisy)]], source)

    def _scores(self, texts):
        cut, found = self._without_formats(texts)
        scores = super()._scores(cut)
        content = self._without_foreign(cut)
        changed = np.array([a != b for a, b in zip(cut, content, strict=True)])
        if changed.any():
            again = super()._scores([content[i] for i in np.flatnonzero(changed)])
            scores[changed] = (scores[changed] + again) / 2
        own = [
            {(side, cut) for side, cuts in self.formats_[frame].items() for cut in cuts}
            for frame in self.frames_
        ]
        return scores + self.format_trust * np.array([[one == f for one in own] for f in found])

    def content(self, texts: Sequence[str]) -> list[str]:
        """The texts without format and foreign pieces."""
        check_is_fitted(self)
        return self._without_foreign(self._without_formats(_checked(texts))[0])

    def _without_formats(self, texts: list[str]) -> tuple[list[str], list[set]]:
        patterns = format_patterns(self.formats_)
        both = [cut_formats(text, patterns) for text in texts]
        return [cut for cut, _ in both], [found for _, found in both]

    def _without_foreign(self, texts: list[str]) -> list[str]:
        if len(self.frames_) == 1 or not texts:
            return texts
        pieces = [split_pieces(text) for text in texts]
        features, where = self._compare(pieces)
        if not len(where):
            return texts
        foreign = expit(features @ self.detector_coef_ + self.detector_intercept_)
        kept = [np.ones(len(row), dtype=bool) for row in pieces]
        words = [np.array([len(piece.split()) for piece in row]) for row in pieces]
        for k in np.argsort(-foreign, kind="stable"):
            i, j = where[k]
            if foreign[k] <= self.tolerance:
                break
            if words[i][kept[i]].sum() - words[i][j] >= 0.4 * words[i].sum():
                kept[i][j] = False
        return [
            text if keep.all() else " ".join(p for p, k in zip(row, keep, strict=True) if k)
            for text, row, keep in zip(texts, pieces, kept, strict=True)
        ]

    def _fit_detector(self, texts: list[str], names: list[str], rng) -> None:
        if len(texts) > DETECTOR_TEXTS:
            place = pd.Series(names).groupby(names).cumcount().to_numpy()  # as many of each frame
            some = np.argsort(place, kind="stable")[:DETECTOR_TEXTS]
            texts, names = [texts[i] for i in some], [names[i] for i in some]
        pieces = [split_pieces(text) for text in texts]
        states, sizes = self._embed_pieces(pieces)
        whole = _depths(np.stack([_mean(states[row], sizes[row]) for row in _rows(pieces)]))
        self.piece_mean_, self.piece_spread_ = whole.mean(0), whole.std(0) + 1e-6
        opinion = RidgeClassifier(alpha=0.3).fit(self._standard(whole), names)
        self.opinion_coef_, self.opinion_intercept_ = self._weights(opinion)
        mixed, is_foreign = [*pieces], [[False] * len(row) for row in pieces]
        for i, row in enumerate(pieces):
            for behind in (False, True):
                alien = _foreign(i, texts, names, rng)
                mixed.append([*row, *alien] if behind else [*alien, *row])
                told = [True] * len(alien) + [False] * len(row)
                is_foreign.append(told[::-1] if behind else told)
        features, where = self._compare(mixed)
        is_foreign = np.array([is_foreign[i][j] for i, j in where])
        mean, spread = features.mean(0), features.std(0) + 1e-6
        fitted = LogisticRegression(max_iter=500, class_weight="balanced")
        fitted.fit((features - mean) / spread, is_foreign)
        self.detector_coef_ = fitted.coef_[0] / spread
        self.detector_intercept_ = fitted.intercept_[0] - mean @ self.detector_coef_

    def _embed_pieces(self, pieces: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        flat = [piece for row in pieces for piece in row]
        backbone = _model(self.backbone)
        sizes = np.array([len(ids) for ids in backbone.encode(flat, 160)], dtype=float)
        return backbone.embed(flat), sizes

    def _standard(self, states: np.ndarray) -> np.ndarray:
        return (states - self.piece_mean_) / self.piece_spread_ / states.shape[1] ** 0.5

    def _opinions(self, states: np.ndarray) -> np.ndarray:
        scores = self._standard(_depths(states)) @ self.opinion_coef_.T + self.opinion_intercept_
        return softmax(8 * scores, axis=1)  # ridge scores lie in about [-1, 1]

    def _compare(self, pieces: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Each piece of a text of several against the rest of it: features (m, layers + 11), and
        (text, piece) of each row (m, 2)."""
        features, where = [], []
        for start in range(0, len(pieces), 1000):  # bounded memory
            some, place = self._compare_some(pieces[start : start + 1000])
            features.append(some)
            where.append(np.add(place, [start, 0]))
        return np.concatenate(features), np.concatenate(where)

    def _compare_some(self, pieces):
        flat, sizes = self._embed_pieces(pieces)
        where, rest, rest_size = [], [], []
        for i, row in enumerate(_rows(pieces)):
            if len(row) < 2:
                continue
            weighted = flat[row] * sizes[row, None, None]  # (pieces, layers, hidden)
            total, size = weighted.sum(0), sizes[row].sum()
            for j, k in enumerate(row):
                where.append((i, j, k, len(row)))
                rest.append((total - weighted[j]) / (size - sizes[k]))
                rest_size.append(size - sizes[k])
        if not where:
            return np.zeros((0, flat.shape[1] + 11)), np.zeros((0, 2), dtype=int)
        where = np.array(where)
        piece, rest, n_rest = flat[where[:, 2]], np.array(rest), np.array(rest_size)
        n_piece = sizes[where[:, 2]]
        cosine = (_unit(piece) * _unit(rest)).sum(2)  # (m, layers)
        ours, theirs = self._opinions(piece), self._opinions(rest)
        agree = (ours * theirs).sum(1)
        features = np.column_stack(
            [
                cosine,
                agree,
                np.log(agree + 1e-3),
                ours.max(1),
                theirs.max(1),
                ours[np.arange(len(ours)), theirs.argmax(1)],
                np.log(n_piece),
                np.log(n_rest),
                n_piece / (n_piece + n_rest),
                where[:, 1] == 0,
                where[:, 1] == where[:, 3] - 1,
                np.log(where[:, 3]),
            ]
        )
        return features, where[:, :2]


def _foreign(i: int, texts: list[str], names: list[str], rng) -> list[str]:
    """2 to 10 consecutive words of a random text of another frame, as one piece or two."""
    while True:
        j = int(rng.integers(len(texts)))
        if names[j] != names[i]:
            break
    words = texts[j].split() or [""]
    size = int(rng.integers(2, 11))
    start = int(rng.integers(0, max(1, len(words) - size + 1)))
    words = words[start : start + size]
    cut = int(rng.integers(1, len(words))) if len(words) > 1 and rng.random() < 0.5 else 0
    return [" ".join(part) for part in (words[:cut], words[cut:]) if part]


def learn_formats(texts: list[str], names: list[str], share: float) -> dict[str, dict]:
    """Word sequences (1 to 8 tokens) that begin or end a line in at least `share` of a frame's
    texts: frame -> ``{"begin": [...], "end": [...]}``. Punctuation alone is no format, and of less
    than five texts everything is common.
    """
    formats = {}
    for frame in dict.fromkeys(names):
        own = [text for text, name in zip(texts, names, strict=True) if name == frame]
        seen = {"begin": Counter(), "end": Counter()}
        for text in own:
            lines = [_TOKEN.findall(line) for line in text.splitlines()]
            for side, counts in seen.items():
                cuts = {
                    " ".join(line[:n] if side == "begin" else line[-n:])
                    for line in lines
                    for n in range(1, min(8, len(line) - 1) + 1)
                }
                counts.update(cuts)
        formats[frame] = {"begin": [], "end": []}
        for side, counts in seen.items():
            often = {cut for cut, n in counts.items() if n >= share * len(own) and len(own) >= 5}
            whole = str.startswith if side == "begin" else str.endswith
            inner = {cut for cut in often for more in often if cut != more and whole(more, cut)}
            formats[frame][side] = sorted(cut for cut in often - inner if re.search(r"\w", cut))
    return formats


def format_patterns(formats: dict[str, dict]) -> dict[tuple[str, str], re.Pattern]:
    """(side, word sequence) -> where it stands; longest first."""
    patterns = {}
    every = {(side, cut) for sides in formats.values() for side in sides for cut in sides[side]}
    for side, cut in sorted(every, key=lambda key: (-len(key[1]), key)):
        words = r"\s*".join(map(re.escape, cut.split(" ")))
        pattern = rf"^{words}(?!\w)[ \t]*" if side == "begin" else rf"[ \t]*(?<!\w){words}$"
        patterns[side, cut] = re.compile(pattern, re.MULTILINE)
    return patterns


def cut_formats(
    text: str, patterns: dict[tuple[str, str], re.Pattern]
) -> tuple[str, set[tuple[str, str]]]:
    """The text without learned formats, and those that were found: (side, word sequence).

    patterns: of `format_patterns`, made once for many texts. A text of which nothing would be left
    stays as it was.
    """
    found, rest = set(), text
    for key, pattern in patterns.items():
        rest, n = pattern.subn("", rest)
        if n:
            found.add(key)
    return (rest if rest.strip() else text), found


_TOKEN = re.compile(r"\w+|[^\w\s]")
# Between lines, sentences and clauses after a colon, and around brackets and tags.
_BREAK = re.compile(
    r"\n+|(?<=[.!?])[\"')\]]*\s+|(?=[\[(<{#])|(?<=[\])}>])\s*|(?<=[:;])\s+| [-–—|]+ "
)


def split_pieces(text: str) -> list[str]:
    """The pieces of a text; one piece, the text itself, if it has no break."""
    pieces = [piece.strip() for piece in _BREAK.split(text)]
    return [piece for piece in pieces if piece] or [text]


def _rows(pieces: list[list[str]]) -> list[np.ndarray]:
    """Positions of each text's pieces in the flat list of all pieces."""
    ends = np.cumsum([len(row) for row in pieces])
    return [np.arange(end - len(row), end) for end, row in zip(ends, pieces, strict=True)]


def _mean(states: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return (states * sizes[:, None, None]).sum(0) / sizes.sum()


# ---------------------------------------------------------------------- nearest profile


class CentroidRouter(_Router):
    """Nearest class mean of the frozen backbone's embeddings; scores are cosines."""

    def __init__(self, backbone: Backbone | None = None):
        self.backbone = backbone

    def _fit(self, texts, names):
        self.sums_ = np.zeros((0, _model(self.backbone).hidden_size))
        embedded = _sentences(self.backbone, texts)
        self._append(embedded, names, self.frames_)
        if len(self.frames_) > 1 and min(Counter(names).values()) > 1:
            own = np.array([self.frames_.index(name) for name in names])
            scores = embedded @ _unit(self.sums_).T
            alone = _unit(self.sums_[own] - embedded)  # a text has no part in its own class mean
            scores[np.arange(len(own)), own] = (embedded * alone).sum(1)
            self._calibrate(scores, names)

    def _add(self, texts, names, new):
        self._append(_sentences(self.backbone, texts), names, new)

    def _append(self, embedded, names, new):
        sums = [embedded[np.array(names) == name].sum(0) for name in new]
        self.sums_ = np.vstack([self.sums_, *sums])

    def _scores(self, texts):
        return _sentences(self.backbone, texts) @ _unit(self.sums_).T


class ProfileRouter(_Router):
    """Cosine to a frame's profile: its description joined with the mean of k example texts.

    The adaptive learner's router (r/MachineLearning 1kpax4u): a text stands in both halves, softmax
    of the cosines over a temperature is the confidence, and below `threshold` no profile is
    trusted: the best answers as a fallback (there, a new adapter would be created).

    descriptions: frame name -> text (default: the name itself). k: examples, the first of each
    frame. temperature: None finds it on the routing texts that are no examples.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        descriptions: dict[str, str] | None = None,
        k: int = 3,
        temperature: float | None = None,
        threshold: float = 0.4,
    ):
        self.backbone = backbone
        self.descriptions = descriptions
        self.k = k
        self.temperature = temperature
        self.threshold = threshold

    def _fit(self, texts, names):
        self.profiles_ = np.zeros((0, 2 * _model(self.backbone).hidden_size))
        self._add(texts, names, self.frames_)
        if self.temperature is not None:
            self.temperature_ = self.temperature
            return
        place = pd.Series(names).groupby(names).cumcount().to_numpy()
        rest = np.flatnonzero(place >= self.k)
        rest_names = [names[i] for i in rest]
        if len(set(rest_names)) == len(self.frames_):
            self._calibrate(self._scores([texts[i] for i in rest]), rest_names)

    def _add(self, texts, names, new):
        given = self.descriptions or {}
        described = _sentences(
            self.backbone, [given.get(name, name.replace("_", " ")) for name in new]
        )
        for name, description in zip(new, described, strict=True):
            examples = [t for t, n in zip(texts, names, strict=True) if n == name][: self.k]
            mean = _unit(_sentences(self.backbone, examples).mean(0))
            profile = np.concatenate([description, mean]) / 2**0.5
            self.profiles_ = np.vstack([self.profiles_, profile])

    def _scores(self, texts):
        embedded = _sentences(self.backbone, texts)
        return np.hstack([embedded, embedded]) / 2**0.5 @ self.profiles_.T

    def route_scores(self, scores):
        confidence = softmax(scores / self.temperature_, axis=1).max(1)
        depth = np.full(len(scores), np.nan)
        return self._routes(scores, scores.argmax(1), depth, confidence < self.threshold)


# ---------------------------------------------------------------------- from the weights alone


class ArrowRouter(_Router):
    """Training-free: a frame's prototype in each layer is the input direction its LoRA moves most.

    Arrow (Ostapenko et al. 2024): the top right singular vector of B·A; a token's affinity is the
    absolute dot product with it, softmax over the frames. Arrow mixes adapters per token and layer
    inside the model (so does PEFT's implementation, which cannot hand out one frame per text);
    here the affinities are averaged over a text's tokens and layers, and the best frame answers.
    The routing texts are read for the temperature of `predict_proba` only.

    stack: whose frames are routed to. delta: use what a frame added to its parent's update rather
    than the whole update, since the frames of a chain inherit most of theirs.
    """

    def __init__(self, stack: SkillStack | None = None, delta: bool = True):
        self.stack = stack
        self.delta = delta

    def _fit(self, texts, names):
        self.prototypes_ = {}
        self._add([], [], self.frames_)
        if len(self.frames_) > 1:
            self._calibrate(self._scores(texts), names)

    def _add(self, texts, names, new):
        stack = _model(self.stack)
        for name in new:
            for module, vector in self._prototypes(stack[name]).items():
                rows = self.prototypes_.get(module, np.zeros((0, len(vector)), np.float32))
                self.prototypes_[module] = np.vstack([rows, vector])

    def _prototypes(self, frame: Frame) -> dict[str, np.ndarray]:
        import torch

        own = frame.weights().lora
        inherit = self.delta and frame.parent is not None
        parent = self.stack[frame.parent].weights().lora if inherit else {}
        out = {}
        for key, a in own.items():
            if ".lora_A." not in key:
                continue
            b = own[key.replace(".lora_A.", ".lora_B.")]
            if parent:  # B·A - B'·A' = [B, -B']·[A; A']
                b = torch.cat([b, -parent[key.replace(".lora_A.", ".lora_B.")]], dim=1)
                a = torch.cat([a, parent[key]], dim=0)
            _, r = torch.linalg.qr(b)  # B = QR: B·A and R·A have the same right singular vectors
            directions = torch.linalg.svd(r @ a, full_matrices=False)[2]
            out[key.split(".lora_A.")[0]] = directions[0].numpy()
        return out

    def _scores(self, texts):
        import torch

        from . import training

        stack = _model(self.stack)
        backbone, first = stack.backbone, stack[self.frames_[0]].training
        backbone.attach(first["lora_r"], first["lora_alpha"])
        ids = backbone.encode(texts, first["max_length"])
        out = np.empty((len(texts), len(self.frames_)))
        affinity, mask = [], None

        def hook(prototypes):
            def see(module, inputs):
                likeness = (inputs[0].float() @ prototypes.T).abs().softmax(-1)
                affinity.append((likeness * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))

            return see

        handles = []
        for name, rows in self.prototypes_.items():
            vectors = torch.from_numpy(rows).to(backbone.device)
            module = backbone.model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(hook(vectors)))
        try:
            with torch.inference_mode(), backbone.without_adapter():
                for batch in training.eval_batches([len(row) for row in ids]):
                    padded, mask = training.pad(
                        [ids[i] for i in batch], backbone.pad_id, backbone.device
                    )
                    affinity.clear()
                    backbone.features(padded, mask)
                    out[batch] = torch.stack(affinity).mean(0).cpu().numpy()
        finally:
            for handle in handles:
                handle.remove()
        return out


ROUTERS = {
    "oracle": OracleRouter,
    "latest": LatestRouter,
    "random": RandomRouter,
    "hybrid_svm": HybridSVMRouter,
    "hybrid_chain": HybridChainRouter,
    "hybrid_embed": HybridEmbedRouter,
    "scaffold_blind": ScaffoldBlindRouter,
    "centroid": CentroidRouter,
    "profile": ProfileRouter,
    "arrow": ArrowRouter,
}


def make_router(name: str, **parameters) -> _Router:
    """The unfitted router of that name; parameters that it does not have are left out.

    parameters: `backbone`, `stack`, `threshold`, `seed`, `descriptions`, as far as it takes them.
    """
    if name not in ROUTERS:
        raise SkillStackError(f"unknown router {name!r}{did_you_mean(name, ROUTERS)}")
    known = ROUTERS[name]().get_params()
    return ROUTERS[name](**{key: value for key, value in parameters.items() if key in known})


# ---------------------------------------------------------------------- disk

SCHEMA = 1
_LIVE = ("backbone", "stack")  # parameters that are handed over again when a router is loaded


def save_router(router: _Router, folder: str | Path) -> Path:
    """Write a fitted router: ``router.json`` and ``arrays.safetensors``; both are replaced whole.

    The JSON file is written last and names the SHA-256 of the arrays, so that a router that was
    half replaced is noticed when it is loaded.
    """
    check_is_fitted(router)
    name = next(key for key, kind in ROUTERS.items() if type(router) is kind)
    parameters = {k: v for k, v in router.get_params().items() if k not in _LIVE}
    state, arrays = {}, {}
    for key, value in vars(router).items():
        if not key.endswith("_"):
            continue
        if isinstance(value, np.ndarray):
            arrays[key] = value
        elif key == "prototypes_":
            arrays |= {f"{key}/{module}": rows for module, rows in value.items()}
        elif key == "vectorizers_":
            state[key] = [list(v.get_feature_names_out()) for v in value]
            arrays |= {f"{key}/{i}": v.idf_ for i, v in enumerate(value)}
        else:
            state[key] = value
    content = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    fields = {"schema_version": SCHEMA, "router": name, "parameters": parameters, "state": state}
    fields["sha256"] = hashlib.sha256(content).hexdigest()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "arrays.safetensors", content)
        write_atomic(folder / "router.json", json.dumps(fields) + "\n")
    except OSError as error:
        raise SkillStackError(f"cannot save the router in {folder}: {explain(error)}") from None
    return folder


def load_router(
    folder: str | Path, backbone: Backbone | None = None, stack: SkillStack | None = None
) -> _Router:
    """Read a router that `save_router` wrote; safe on files of unknown origin.

    Only JSON and plain arrays are read. Raises `SkillStackError` naming the file that is wrong.
    """
    path = Path(folder) / "router.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        content = (path.parent / "arrays.safetensors").read_bytes()
        if fields["schema_version"] != SCHEMA or fields["router"] not in ROUTERS:
            raise SkillStackError(f"{path} is not a router of this version")
        if hashlib.sha256(content).hexdigest() != fields["sha256"]:
            raise SkillStackError(f"{path.parent / 'arrays.safetensors'} was changed or cut off")
        arrays = safetensors.numpy.load(content)
        router = ROUTERS[fields["router"]](**fields["parameters"])
        router.set_params(
            **{
                key: value
                for key, value in {"backbone": backbone, "stack": stack}.items()
                if key in router.get_params()
            }
        )
        for key, value in fields["state"].items():
            if not re.fullmatch(r"[a-z][a-z_]*_", key):
                raise ValueError(f"unexpected {key!r}")
            setattr(router, key, value)
        if "vectorizers_" in fields["state"]:
            router.vectorizers_ = [
                _with_vocabulary(v, words, arrays.pop(f"vectorizers_/{i}"))
                for i, (v, words) in enumerate(
                    zip(router._vectorizers(), fields["state"]["vectorizers_"], strict=False)
                )
            ]
        for key, value in arrays.items():
            attribute, _, module = key.partition("/")
            if not re.fullmatch(r"[a-z][a-z_]*_", attribute):
                raise ValueError(f"unexpected {key!r}")
            if module:
                vars(router).setdefault(attribute, {})[module] = value
            else:
                setattr(router, attribute, value)
        if not isinstance(router.frames_, list) or not all(
            isinstance(name, str) for name in router.frames_
        ):
            raise ValueError("'frames_' is not a list of names")
        return router
    except SkillStackError:
        raise
    except OSError as error:
        raise SkillStackError(f"{error.filename or path}: {explain(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SkillStackError(f"{path} is damaged: {error}") from None
    except safetensors.SafetensorError as error:
        raise SkillStackError(f"{path.parent / 'arrays.safetensors'}: {error}") from None


def _with_vocabulary(vectorizer: TfidfVectorizer, words: list[str], idf) -> TfidfVectorizer:
    vectorizer.set_params(vocabulary={word: i for i, word in enumerate(words)})
    vectorizer.idf_ = idf
    return vectorizer


# ---------------------------------------------------------------------- small things


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise SkillStackError("texts must be a sequence of strings, got one string")
    for text in texts:
        if not isinstance(text, str):
            raise SkillStackError(f"texts must be strings, got {text!r}")
    return list(texts)


def _paired(texts: Sequence[str], frame_names: Sequence[str]) -> tuple[list[str], list[str]]:
    texts, names = _checked(texts), list(frame_names)
    if len(texts) != len(names):
        raise SkillStackError(f"{len(texts)} texts but {len(names)} frame names")
    return texts, names


def _model(given):
    if given is None:
        raise SkillStackError("this router reads a model: pass backbone= (or stack= for arrow)")
    return given


def _sentences(backbone: Backbone | None, texts: list[str]) -> np.ndarray:
    """Mean-pooled last hidden state of each text, (n, hidden), of length 1."""
    return _unit(_model(backbone).embed(texts)[:, -1])


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def _depths(states: np.ndarray) -> np.ndarray:
    """Pooled hidden states (n, layers, hidden) as (n, layers * hidden), each layer of length 1."""
    return _unit(states).reshape(len(states), -1)
