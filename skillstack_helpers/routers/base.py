"""What all routers share: scikit-learn's contract, the walk, and the temperature."""

from __future__ import annotations

import numbers
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import exceptions
from sklearn.base import BaseEstimator, ClassifierMixin

from ..config import MOST
from ..errors import (
    SkillStackError,
    checked_has,
    checked_list,
    checked_number,
    checked_numbers,
    checked_router,
    checked_seed,
    checked_texts,
    shown,
)

CALIBRATION_FOLDS = 3  # and the fewest texts of a frame that a temperature is fitted on


# What a parameter may be, whichever routers have it: arguments of `checked_number`.
_NUMBERS = {
    "C": {"above": 0},
    "scale": {"above": 0},
    "threshold": {},
    "nearly_every": {"above": 0, "most": 1},
    "tolerance": {"least": 0},
    "format_trust": {"least": 0},
    "k": {"least": 1, "whole": True},
    "epochs": {"least": 0, "most": 10**6, "whole": True},
    "lr": {"above": 0},
    "temperature": {"above": 0},  # or None
    "min_confidence": {},
    "max_length": {"least": 1, "most": MOST["max_length"], "whole": True},
    "first": {"above": 0, "most": 1 << 16},
    "alpha": {"above": 0, "below": 1},
}


class NotFittedError(SkillStackError, exceptions.NotFittedError):
    """A router is asked before it was fitted; scikit-learn's error too."""


class Router(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier from texts to frames.

    A method defines ``_fit(texts, names)``, ``_scores(texts)`` and, if it can take a frame without
    the old texts, ``_add(texts, names, new)``; a rule other than the best score is its `_choose`.

    Columns and `classes_` are in stack order, oldest frame first: that in which the names first
    appear in `fit`. Names are strings, or integers that count up from the oldest frame. Few tools
    of scikit-learn need to know: those that encode the labels (``cross_val_predict(...,
    method="predict_proba")``, voting) get columns in the order they expect, but scorers of
    probabilities (``neg_log_loss``, ``roc_auc_ovr``) assume sorted labels, so give them integers.
    Scores have one column a frame also where there are two, or one.
    """

    _renamed: ClassVar[dict[str, str]] = {}  # parameters of routers saved by version 0.1

    def fit(self, texts: Sequence[str], frame_names: Sequence[str]) -> Router:
        """Learn which texts belong to which frame; forgets every earlier fit.

        Raises `SkillStackError` unless texts are strings and there is a name for each.
        """
        self._check_parameters()
        texts, names = _paired(texts, frame_names)
        before = dict(vars(self))
        self.frames_ = _in_stack_order(names)
        self.temperature_ = 1.0
        try:
            self._fit(texts, names)
        except BaseException:  # no half of a fit
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    def partial_fit(self, texts: Sequence[str], frame_names: Sequence[str]) -> Router:
        """Add new frames; the texts of the frames that are there already are not needed.

        Raises `SkillStackError` for a method that must see the old texts again, and for a frame
        that is already known. The temperature stays as it was fitted.
        """
        if not hasattr(self, "frames_"):
            return self.fit(texts, frame_names)
        self._check_parameters()
        if not hasattr(self, "_add"):
            raise SkillStackError(
                f"{type(self).__name__} cannot add a frame without the old texts: fit it anew"
            )
        texts, names = _paired(texts, frame_names, self.frames_)
        new = _in_stack_order(names)
        if known := [name for name in new if name in self.frames_]:
            raise SkillStackError(f"frame {known[0]!r} is already in the router")
        self._add(texts, names, new)
        self.frames_ = [*self.frames_, *new]
        return self

    def remove(self, name, texts: Sequence[str] | None = None) -> Router:
        """Forget a frame: scores are then those of a router that never saw it, up to rounding.

        texts: those that the frame was fitted with, for a method whose sums they are part of
        (`trunk`). The temperature, which the frame had a part in, is 1 from then on. Raises
        `SkillStackError` for a method that must be fitted anew without the frame's texts.
        """
        check_fitted(self)
        if not hasattr(self, "_drop"):
            raise SkillStackError(
                f"{type(self).__name__} cannot forget a frame: fit it anew without its texts"
            )
        if name not in self.frames_:
            raise SkillStackError(f"the router knows no frame {shown(name)}")
        if len(self.frames_) == 1:
            raise SkillStackError(f"{name!r} is the router's only frame: nothing would be left")
        place = self.frames_.index(name)
        self._drop(place, None if texts is None else checked_texts(texts))
        self.frames_ = [*self.frames_[:place], *self.frames_[place + 1 :]]
        self.temperature_ = 1.0
        return self

    def _choose(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns, depth and fallback, each (n,), of scores (n, frames)."""
        return scores.argmax(1), np.full(len(scores), np.nan), np.zeros(len(scores), bool)

    @property
    def classes_(self) -> np.ndarray:
        """The frames' names in stack order, (frames,): objects, or int64."""
        return np.array(self.frames_, dtype=object if isinstance(self.frames_[0], str) else int)

    def decision_function(self, texts: Sequence[str]) -> np.ndarray:
        """Score of each frame for each text, (n, frames), columns in stack order."""
        check_fitted(self)
        texts = checked_texts(texts)
        return self._scores(texts) if texts else np.empty((0, len(self.frames_)))

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probability of each frame, (n, frames), rows sum to 1.

        Softmax of the scores over a temperature, fitted on scores of texts that the scorer had
        not seen (`fit_temperature`). Without three texts a frame it stays 1.
        """
        return self.probabilities(self.decision_function(texts))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """`predict_proba`, for scores (n, frames) that `decision_function` has given already."""
        return softmax(self._of_frames(scores) / self.temperature_, axis=1)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Name of the chosen frame for each text, (n,)."""
        return self.route(texts)["frame"].to_numpy()

    def route(self, texts: Sequence[str]) -> pd.DataFrame:
        """One row a text: frame, score, depth (frames visited; NaN without a walk), fallback."""
        return self.route_scores(self.decision_function(texts))

    def route_scores(self, scores: np.ndarray) -> pd.DataFrame:
        """`route`, for scores (n, frames) that `decision_function` has given already."""
        scores = self._of_frames(scores)
        chosen, depth, fallback = self._choose(scores)
        score = scores[np.arange(len(scores)), chosen]
        routes = {"frame": self.classes_[chosen], "score": score}
        return pd.DataFrame(routes | {"depth": depth, "fallback": fallback})

    def _of_frames(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n, frames) of this router, or an error; -inf of frames that must not answer."""
        check_fitted(self)
        checked_numbers(scores, "scores", infinite=True)
        scores = np.asarray(scores)
        if scores.ndim != 2 or scores.shape[1] != len(self.frames_):
            raise SkillStackError(
                f"scores must be (texts, {len(self.frames_)} frames), got {scores.shape}"
            )
        return scores

    def _check_parameters(self) -> None:
        """Raise `SkillStackError` for the first parameter that makes no sense; not in `__init__`,
        since scikit-learn sets parameters later."""
        for name, value in self.get_params(deep=False).items():
            if name in _NUMBERS and not (name == "temperature" and value is None):
                checked_number(value, name, **_NUMBERS[name])
            elif name == "seed":
                checked_seed(value)
            elif name in ("delta", "root_first") and not isinstance(value, bool | np.bool_):
                raise SkillStackError(f"{name} must be True or False, got {shown(value)}")
            elif name == "descriptions" and not isinstance(value, Mapping | None):
                raise SkillStackError(
                    f"descriptions must be a mapping from frames to texts, got {shown(value)}"
                )
            elif name == "descriptions":
                checked_texts((value or {}).values(), "descriptions")

    def _calibrate(self, scores: np.ndarray, names: list) -> None:
        if len(self.frames_) > 1 and min(Counter(names).values()) >= CALIBRATION_FOLDS:
            self.temperature_ = fit_temperature(scores, self.frames_, names)

    def _state(self) -> dict:
        """What was learned, to be saved: attribute -> array, or what JSON can hold."""
        return {name: value for name, value in vars(self).items() if name.endswith("_")}

    def _restore(self, state: dict) -> None:
        """Take back what `_state` gave; raises ValueError for what it cannot have given."""
        for name in state:
            if not re.fullmatch(r"[a-z][a-z_]*_", name):
                raise ValueError(f"unexpected {name!r}")
        vars(self).update(state)
        names = self.frames_ if isinstance(self.frames_, list) else []
        if {type(name) for name in names} not in ({str}, {int}) or len(set(names)) < len(names):
            raise ValueError("'frames_' is not a list of names")
        if type(self.temperature_) not in (int, float) or not 0 < self.temperature_ < np.inf:
            raise ValueError(f"'temperature_' is {self.temperature_!r}, not a number above 0")

    def __sklearn_clone__(self) -> Router:
        """The unfitted router for scikit-learn's `clone`: backbone and stack are shared."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


def check_arrays(arrays: dict, **shapes: tuple) -> None:
    """Raise ValueError unless what was saved are arrays of these shapes (None: any length), in
    which every number is finite."""
    for name, shape in shapes.items():
        array = arrays[name]
        right = isinstance(array, np.ndarray) and array.ndim == len(shape)
        sizes = zip(array.shape, shape, strict=True) if right else [(0, 1)]
        if not all(size == asked or asked is None for size, asked in sizes):
            raise ValueError(f"{name!r} is no array of shape {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name!r} has numbers that are not finite")


def walk(scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk from the latest frame to its parents: the first score above `threshold` answers.

    scores: (n, frames), oldest frame first. Returns the chosen columns (n,), the number of frames
    visited (n,), and whether nobody exceeded the threshold, so that the best score answers (n,).

    >>> walk(np.array([[0.9, 0.2], [0.9, -1.0], [-2.0, -1.0]]), threshold=0.0)
    (array([1, 0, 1]), array([1., 2., 2.]), array([False, False,  True]))
    """
    latest_first = scores[:, ::-1] > threshold
    fallback = ~latest_first.any(1)
    first = latest_first.argmax(1)
    chosen = np.where(fallback, scores.argmax(1), scores.shape[1] - 1 - first)
    depth = np.where(fallback, scores.shape[1], first + 1).astype(float)
    return chosen, depth, fallback


def fit_temperature(scores: np.ndarray, columns: Sequence[str], names: Sequence[str]) -> float:
    """The temperature T for which softmax(scores / T) fits the names best (Guo et al. 2017).

    scores: (n, frames), out of sample, one column a frame in the order of `columns`; names: the
    true frame of each row. T lies in exp(-10) .. exp(10) and minimizes the negative log
    likelihood, which is convex in 1 / T.
    """
    scores, column = np.asarray(scores, np.float64), {name: k for k, name in enumerate(columns)}
    true = (np.arange(len(scores)), [column[name] for name in names])

    def loss(log_inverse: float) -> float:
        return -log_softmax(scores * np.exp(log_inverse), axis=1)[true].mean()

    found = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10})
    return float(np.exp(-found.x))


def _paired(texts: Iterable[str], frame_names: Iterable, known: Sequence = ()) -> tuple:
    """Texts, and names of the same kind as those `known`: all str or all int."""
    texts = checked_texts(texts)
    if isinstance(frame_names, str) or not isinstance(frame_names, Iterable):
        raise SkillStackError(f"frame names must be one per text, got {shown(frame_names)}")
    names = checked_list(frame_names, "frame names")
    if len(texts) != len(names):
        raise SkillStackError(f"{len(texts)} texts but {len(names)} frame names")
    if not texts:
        raise SkillStackError("a router needs at least one text to fit")
    kind = str if isinstance([*known, *names][0], str) else numbers.Integral
    for name in names:
        if not isinstance(name, kind) or isinstance(name, bool):
            wrong = f"frame names must be strings (or all integers), got {shown(name)}"
            raise SkillStackError(wrong)
        if kind is str and not name:
            raise SkillStackError("frame names must not be empty, got ''")
    return texts, [str(name) if kind is str else int(name) for name in names]


def _in_stack_order(names: list) -> list:
    """Each name once: strings by first appearance, integers counting up."""
    names = list(dict.fromkeys(names))
    return names if isinstance(names[0], str) else sorted(names)


def places(names: Sequence) -> np.ndarray:
    """How many texts of the same frame come before each text, (n,)."""
    return pd.Series(names).groupby(np.array(names)).cumcount().to_numpy()


def check_fitted(router: Router) -> None:
    """Raise for parameters that make no sense, and `NotFittedError` before the first `fit`."""
    router._check_parameters()
    checked_router(router, unfitted=NotFittedError)


def needed(given, parameter: str):
    """A backbone or stack that was given, or an error that says which parameter to pass."""
    if given is None:
        raise SkillStackError(f"this router reads a model: pass {parameter}=")
    needs = {"backbone": "pooled", "stack": "frames"}[parameter]
    return checked_has(given, f"{parameter} must be a loaded {parameter}", needs)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def depths(states: np.ndarray) -> np.ndarray:
    """Pooled hidden states (n, layers, hidden) as (n, layers * hidden), each layer of length 1."""
    return unit(states).reshape(len(states), -1)
