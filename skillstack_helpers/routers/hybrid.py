"""Linear SVMs on n-grams: alone, walked along the chain, and joined with hidden states."""

from __future__ import annotations

from collections import Counter

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC

from ..errors import SkillStackError
from .base import CALIBRATION_FOLDS, Router, check_arrays, depths, needed, walk
from .ngrams import NgramTfidf, hash_strings


class HybridSVMRouter(Router):
    """Word 1-2-grams and in-word character 3-5-grams, TF-IDF, one linear SVM over the frames.

    The published ``hybrid_svm``. Scores are the SVM's signed distances, one against the rest.

    >>> texts = ["a dull film", "a fine film", "the bank cut rates", "its shares fell"]
    >>> router = HybridSVMRouter().fit(texts, ["imdb", "imdb", "agnews", "agnews"])
    >>> list(router.predict(["rates fell", "what a film"]))
    ['agnews', 'imdb']
    >>> list(router.classes_), router.decision_function(["rates fell"]).shape
    (['imdb', 'agnews'], (1, 2))
    """

    def __init__(self, C: float = 1.0):
        self.C = C

    def make_pipeline(self) -> Pipeline:
        """The same in scikit-learn's own parts, unfitted: slower, usable without this package."""
        same = [TfidfVectorizer(sublinear_tf=True, **v.get_params()) for v in self._vectorizers()]
        return make_pipeline(make_union(*same), LinearSVC(C=self.C, random_state=0))

    def _vectorizers(self) -> list[NgramTfidf]:
        return [NgramTfidf("word", (1, 2)), NgramTfidf("char_wb", (3, 5))]

    def _fit(self, texts, names):
        self._learn(texts, names, np.arange(len(texts)))

    def _learn(self, texts: list[str], names: list, source: np.ndarray) -> None:
        """Fit features, SVM and temperature; rows of one `source` share a calibration fold."""
        self.vectorizers_ = []
        self.coef_, self.intercept_ = np.zeros((1, 0)), np.ones(1)
        if len(self.frames_) == 1:  # an SVM needs two classes; one frame needs no SVM
            return
        features = scipy.sparse.hstack(self._fit_features(texts)).tocsr()
        svm = LinearSVC(C=self.C, random_state=0)
        whole = Counter(dict(zip(source, names, strict=True)).values())  # texts of each frame
        if min(whole.values()) >= CALIBRATION_FOLDS:
            folds = StratifiedGroupKFold(CALIBRATION_FOLDS)
            held_out = cross_val_predict(
                svm, features, names, groups=source, cv=folds, method="decision_function"
            )
            self._calibrate(self._in_columns(held_out, np.unique(names)), names)
        svm.fit(features, names)
        self.coef_, self.intercept_ = self._weights(svm)

    def _weights(self, linear) -> tuple[np.ndarray, np.ndarray]:
        """Weights (frames, features) and intercepts (frames,) of a linear classifier."""
        both = np.vstack([np.atleast_2d(linear.coef_).T, np.ravel(linear.intercept_)])
        both = self._in_columns(both, linear.classes_)
        return np.ascontiguousarray(both[:-1]).T, both[-1]  # products read a feature's weights

    def _in_columns(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """scikit-learn's scores, in the order of `classes`, as one column a frame."""
        if scores.ndim == 1 or scores.shape[1] == 1:  # two frames: one signed distance
            scores = np.column_stack([-scores.ravel(), scores.ravel()])
        column = {name: i for i, name in enumerate(classes)}
        return scores[:, [column[name] for name in self.frames_]]

    def _fit_features(self, texts: list[str]) -> list:
        """Learn the features of the texts; `_features` of them."""
        self.vectorizers_ = self._vectorizers()
        try:
            return [v.fit_transform(texts) for v in self.vectorizers_]
        except ValueError as error:
            raise SkillStackError(f"the routing texts hold no words: {error}") from None

    def _features(self, texts: list[str]) -> list:
        """Parts, sparse or dense, (texts, features) each."""
        return [v.transform(texts) for v in self.vectorizers_]

    def _scores(self, texts):
        if len(self.frames_) == 1:
            return np.ones((len(texts), 1))
        parts = self._features(texts)
        ends = np.cumsum([part.shape[1] for part in parts])
        weights = np.split(self.coef_.T, ends[:-1])  # (features, frames) each, in one piece
        return sum(part @ w for part, w in zip(parts, weights, strict=True)) + self.intercept_

    def _width(self) -> int:
        return sum(len(v.idf_) for v in self.vectorizers_)

    def _state(self):
        state = super()._state() | {"vectorizers_": [len(v.idf_) for v in self.vectorizers_]}
        for i, v in enumerate(self.vectorizers_):
            state |= {f"vectorizers_/{i}": v.idf_, f"vectorizers_/{i}/hashes": v.hashes_}
        return state

    def _restore(self, state):
        kinds, fitted, order = self._vectorizers(), [], [np.zeros(0, dtype=int)]
        if len(state["vectorizers_"]) not in (0, len(kinds)):  # none where there was one frame
            raise ValueError("'vectorizers_' are not those of this router")
        for i, terms in enumerate(state["vectorizers_"]):
            idf = state.pop(f"vectorizers_/{i}")
            if isinstance(terms, list):  # of version 0.4 and before: the n-grams, letter by letter
                hashes = hash_strings(terms)
                rising = np.argsort(hashes)
                if idf.shape != hashes.shape:
                    raise ValueError(f"'vectorizers_/{i}' has no frequency for each n-gram")
                hashes, idf = hashes[rising], idf[rising]
            else:
                hashes = state.pop(f"vectorizers_/{i}/hashes")
                if terms != len(hashes):
                    raise ValueError(f"'vectorizers_/{i}/hashes' are not {terms!r}")
                rising = np.arange(hashes.size)
            order.append(rising + sum(map(len, order)))
            fitted.append(kinds[i].restore(hashes, idf))
        super()._restore(state | {"vectorizers_": fitted})
        order, frames = np.concatenate(order), len(self.frames_)
        check_arrays(vars(self), coef_=(frames, self._width()), intercept_=(frames,))
        for vectorizer in self.vectorizers_:
            check_arrays(vars(vectorizer), idf_=(None,))
        order = np.concatenate([order, np.arange(len(order), self._width())])
        self.coef_ = np.ascontiguousarray(self.coef_.T[order]).T


class HybridChainRouter(HybridSVMRouter):
    """The scores of `HybridSVMRouter`, walked from the latest frame to its parents (`walk`).

    The first frame whose margin exceeds `threshold` answers. If none does, the best global score
    answers and counts as fallback. Depth is the number of frames visited. The published
    ``hybrid_chain``.

    >>> texts = ["a dull film", "a fine film", "the bank cut rates", "its shares fell"]
    >>> router = HybridChainRouter(threshold=0.0).fit(texts, ["imdb", "imdb", "agnews", "agnews"])
    >>> router.route(["what a film"])[["frame", "depth", "fallback"]].values.tolist()
    [['imdb', 2.0, False]]
    """

    def __init__(self, threshold: float = 0.0, C: float = 1.0):
        super().__init__(C=C)
        self.threshold = threshold

    def _choose(self, scores):
        return walk(scores, self.threshold)


class HybridEmbedRouter(HybridSVMRouter):
    """Cased n-grams joined with the frozen backbone's hidden states of every depth; linear SVM.

    The last hidden state tells what a text is about, the lower ones what kind of text it is, so
    all of them are pooled (`Backbone.embed`), standardized and joined with TF-IDF features of words
    and of characters (2 to 5, across words, upper case kept). Settings were chosen on training
    rows (docs/log.md).

    backbone: a `Backbone`. scale: norm of the embedded part; that of either n-gram part is 1.
    max_length: tokens of a text that are embedded.

    >>> from skillstack_helpers import load_backbone
    >>> texts = ["a dull film", "a fine film", "the bank cut rates", "its shares fell"]
    >>> router = HybridEmbedRouter(load_backbone("minilm", device="cpu"), max_length=32)
    >>> router.fit(texts, ["imdb", "imdb", "agnews", "agnews"]).predict(["a movie"])
    array(['imdb'], dtype=object)
    """

    def __init__(self, backbone=None, scale: float = 1.0, C: float = 1.0, max_length: int = 160):
        super().__init__(C=C)
        self.backbone = backbone
        self.scale = scale
        self.max_length = max_length

    def _vectorizers(self):
        return [
            NgramTfidf("word", (1, 2), lowercase=False),
            NgramTfidf("char", (2, 5), lowercase=False),
        ]

    def _embed(self, texts: list[str]) -> np.ndarray:
        return needed(self.backbone, "backbone").embed(texts, self.max_length)

    def _fit_features(self, texts):
        ngrams = super()._fit_features(texts)
        states = depths(self._embed(texts))
        self.mean_, self.spread_ = states.mean(0), states.std(0) + 1e-6
        return [*ngrams, self._scaled(states)]

    def _features(self, texts):
        return [*super()._features(texts), self._scaled(depths(self._embed(texts)))]

    def _scaled(self, states):
        return (states - self.mean_) / self.spread_ * (self.scale / states.shape[1] ** 0.5)

    def _width(self):
        return super()._width() + (self.mean_.size if self.vectorizers_ else 0)

    def _restore(self, state):
        super()._restore(state)
        if self.vectorizers_:
            check_arrays(vars(self), mean_=(None,), spread_=self.mean_.shape)
