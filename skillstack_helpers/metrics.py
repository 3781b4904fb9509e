"""Continual-learning metrics on an accuracy matrix, calibration error, and intervals.

``acc[i, j]``: accuracy on task j after training through task i, fractions in [0, 1], shape (T, T),
NaN where not measured. A metric that needs a missing cell is NaN, never 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .errors import (
    SkillStackError,
    checked_labels,
    checked_number,
    checked_numbers,
    checked_seed,
    checked_share,
)

LEAST_VALUES = 8  # for a bootstrap; the percentile interval of fewer is far too narrow
_NO_INTERVAL = (float("nan"), float("nan"))


def _matrix(acc: ArrayLike) -> np.ndarray:
    acc = checked_numbers(acc, "the accuracy matrix", nan=True)
    if acc.ndim != 2 or acc.shape[0] != acc.shape[1] or not len(acc):
        raise SkillStackError(f"the accuracy matrix must be square, got shape {acc.shape}")
    if np.any((acc < 0) | (acc > 1)):
        raise SkillStackError("accuracies must be fractions in [0, 1]")
    return acc


def average_accuracy(acc: ArrayLike) -> float:
    """ACC: mean of the last row (Lopez-Paz and Ranzato 2017, eq. 2)."""
    return float(_matrix(acc)[-1].mean())


def backward_transfer(acc: ArrayLike) -> float:
    """BWT: mean over j < T-1 of acc[T-1, j] - acc[j, j] (Lopez-Paz and Ranzato 2017, eq. 3).

    NaN for a single task.
    """
    acc = _matrix(acc)
    return float((acc[-1, :-1] - acc.diagonal()[:-1]).mean()) if len(acc) > 1 else float("nan")


def final_drop(acc: ArrayLike) -> float:
    """-BWT: what the published tables call forgetting."""
    return 0.0 - backward_transfer(acc)  # never -0.0


def forgetting(acc: ArrayLike) -> float:
    """Mean over j < T-1 of max over i < T-1 of acc[i, j], minus acc[T-1, j] (Chaudhry et al. 2018).

    The maximum runs over i >= j, where task j was known. May be negative. NaN for a single task.
    """
    acc = _matrix(acc)
    if len(acc) < 2:
        return float("nan")
    best = [acc[j:-1, j].max() for j in range(len(acc) - 1)]
    return float(np.mean(best - acc[-1, :-1]))


def reliability_curve(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> np.ndarray:
    """Mean confidence, accuracy and count of each equal-width confidence bin, (bins, 3).

    probabilities: (n, classes) in [0, 1], rows summing to 1; labels: ids (n,). Bins are (a, b]; an
    empty one has NaN, NaN, 0. Raises `SkillStackError` for anything else.
    """
    checked_number(bins, "bins", 1, 10**6, whole=True)
    probabilities = checked_numbers(probabilities, "probabilities", nan=True, infinite=True)
    labels = checked_numbers(labels, "labels")
    if probabilities.ndim != 2 or labels.ndim != 1 or len(probabilities) != len(labels):
        raise SkillStackError(
            f"probabilities {probabilities.shape} do not fit labels {labels.shape}"
        )
    if not np.all((probabilities >= 0) & (probabilities <= 1 + 1e-6)):  # 1 + rounding
        raise SkillStackError("probabilities must be in [0, 1]")
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise SkillStackError("probabilities must have rows that sum to 1")
    labels = checked_labels(labels, "labels", probabilities.shape[1])
    curve = np.full((bins, 3), np.nan)
    curve[:, 2] = 0
    if len(labels):
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
        which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        curve[:, 2] = np.bincount(which, minlength=bins)
        for column, values in enumerate((confidence, correct)):
            sums = np.bincount(which, weights=values, minlength=bins)
            np.divide(sums, curve[:, 2], out=curve[:, column], where=curve[:, 2] > 0)
    return curve


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """ECE: bin-weighted |accuracy - confidence| over equal-width bins (Guo et al. 2017, eq. 3).

    Arguments as for `reliability_curve`. In [0, 1]; NaN for n = 0.
    """
    curve = reliability_curve(probabilities, labels, bins)
    curve = curve[curve[:, 2] > 0]
    if not len(curve):
        return float("nan")
    return float(np.average(np.abs(curve[:, 1] - curve[:, 0]), weights=curve[:, 2]))


def seed_range(values: ArrayLike) -> tuple[float, float]:
    """Lowest and highest of values (n,), one per seed: all that two or three seeds can show.

    (NaN, NaN) with fewer than two values, or if one of them is NaN.

    >>> seed_range([0.75, 0.5, 1.0])
    (0.5, 1.0)
    """
    values = _values(values)
    return (float(values.min()), float(values.max())) if len(values) > 1 else _NO_INTERVAL


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values (n,), e.g. one per example.

    (NaN, NaN) if one is NaN or there are fewer than `LEAST_VALUES`: of three values the interval
    is their range and covers the mean 75 % of the time, whatever `confidence` says; take
    `seed_range`. For method against method, pass paired differences.
    """
    values = _values(values)
    checked_share(confidence, "confidence")
    checked_number(n_resamples, "n_resamples", 1, 10**7, whole=True)
    checked_seed(seed)
    if len(values) < LEAST_VALUES or np.isnan(values).any():
        return _NO_INTERVAL
    options = {"confidence_level": confidence, "n_resamples": n_resamples}
    options |= {"method": "percentile", "rng": np.random.default_rng(seed)}
    interval = stats.bootstrap((values,), np.mean, **options).confidence_interval
    return float(interval.low), float(interval.high)


def _values(values: ArrayLike) -> np.ndarray:
    values = checked_numbers(values, "values", nan=True)
    if values.ndim != 1:
        raise SkillStackError(f"values must be one-dimensional, got shape {values.shape}")
    return values
