"""Conformal p-values, tests of many texts together, and label sets: pure NumPy/SciPy.

All of it rests on one assumption: the texts asked about and the calibration texts are exchangeable
(in an order that says nothing), and neither was trained on. Nothing is assumed of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .errors import SkillStackError, checked_numbers, checked_seed, checked_share


def p_values(calibration: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Split-conformal p-value of each score, float64 of the scores' shape, in [1 / (n + 1), 1].

    calibration: (n,), scores of known texts; larger is stranger. The p-value is (1 + number of
    calibration scores at least as large) / (n + 1): for an exchangeable text P(p <= a) <= a
    (Vovk, Gammerman and Shafer 2005, section 2.2). Raises `SkillStackError` for no calibration
    scores and for NaN.

    >>> p_values([0.1, 0.2, 0.3], [0.0, 0.25, 0.9]).tolist()
    [1.0, 0.5, 0.25]
    """
    known = np.sort(_numbers(calibration, "calibration scores", ndim=1))
    scores = _numbers(scores, "scores", at_least=0)
    smaller = np.searchsorted(known, scores, side="left")
    return (1 + len(known) - smaller) / (len(known) + 1)


def simes(p: ArrayLike, axis: int = 0) -> np.ndarray:
    """Simes' p-value of n p-values: the least of n p_(k) / k, p_(k) the k-th smallest (1986).

    Valid for p-values against one calibration set, which are positively dependent (Bates et al.
    2023, theorem 2).

    >>> float(simes([0.01, 0.04, 0.9]))
    0.03
    """
    p = checked_numbers(p, "p-values")
    if not isinstance(axis, int) or not -p.ndim <= axis < p.ndim:
        raise SkillStackError(f"axis must be one of the {p.ndim} of the p-values, got {axis!r}")
    if ((p < 0) | (p > 1)).any():
        raise SkillStackError("p-values must be in [0, 1]")
    ordered = np.sort(p, axis=axis)
    n = ordered.shape[axis]
    if not n:
        raise SkillStackError("no p-values to combine")
    rank = np.arange(1, n + 1).reshape([-1 if k == axis % ordered.ndim else 1 for k in
                                        range(ordered.ndim)])  # fmt: skip
    return np.minimum((ordered * n / rank).min(axis=axis), 1.0)


class Martingale:
    """An anytime-valid test that a stream of scores is exchangeable with calibration scores.

    Each score is ranked among the calibration scores and the stream's earlier ones; the smoothed
    p-values are then independent and uniform (Vovk, Gammerman and Shafer 2005, theorem 8.2). The
    wealth is the mean over exponents e in (0, 1) of the product of e p^(e - 1), a martingale that
    starts at 1: it ever reaches 1 / a with probability at most a (Ville), so one may look after
    every text and stop at will.

    >>> test = Martingale(np.linspace(0, 1, 99), seed=0)
    >>> test.update([0.3, 0.5]) < 5 < test.update([2.0] * 8)
    True
    """

    _EXPONENTS = np.linspace(0.05, 0.95, 19)

    def __init__(self, calibration: ArrayLike, seed: int = 0):
        self._known = np.sort(_numbers(calibration, "calibration scores", ndim=1))
        checked_seed(seed)
        self._rng = np.random.default_rng(seed)
        self._log = np.zeros(len(self._EXPONENTS))
        self.highest = 1.0  # wealth ever

    def update(self, scores: ArrayLike) -> float:
        """Take in more scores, in their order; the wealth now. 1 / `highest` is a p-value."""
        for score in _numbers(scores, "scores", at_least=0, ndim=1):
            low = np.searchsorted(self._known, score)
            high = np.searchsorted(self._known, score, side="right")
            larger, equal = len(self._known) - high, high - low + 1  # itself among the equal
            p = (larger + self._rng.uniform() * equal) / (len(self._known) + 1)
            self._known = np.insert(self._known, low, score)
            self._log += np.log(self._EXPONENTS) + (self._EXPONENTS - 1) * np.log(max(p, 1e-12))
            self.highest = max(self.highest, self.wealth)
        return self.wealth

    @property
    def wealth(self) -> float:
        return float(np.exp(self._log).mean())


def threshold(calibration: ArrayLike, coverage: float) -> float:
    """The score up to which a label is in the set, so that the true one is in it with at least
    that probability: the ceil((n + 1) coverage)-th smallest of n calibration scores of true labels
    (Vovk et al. 2005; Angelopoulos and Bates 2021, section 1). Infinity, and so every label, where
    n is too small for it.

    >>> threshold([0.1, 0.2, 0.3, 0.4], 0.6), threshold([0.1, 0.2], 0.9)
    (0.3, inf)
    """
    checked_share(coverage, "coverage")
    known = np.sort(_numbers(calibration, "calibration scores", ndim=1))
    place = int(np.ceil((len(known) + 1) * coverage - 1e-9))
    return float(known[place - 1]) if place <= len(known) else np.inf


def _numbers(
    values: ArrayLike | Sequence[float], what: str, at_least: int = 1, ndim: int | None = None
) -> np.ndarray:
    """As float64 without NaN; at least so many, of so many dimensions."""
    values = checked_numbers(values, what, infinite=True)
    if values.size < at_least:
        raise SkillStackError(f"no {what}")
    if ndim is not None and values.ndim != ndim:
        raise SkillStackError(f"{what} must be (n,), got shape {values.shape}")
    return values
