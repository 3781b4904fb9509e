import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, metrics

NAN = float("nan")
# Three tasks. Last row: 0.5, 0.6, 0.9. Task 0: best 0.9 after task 1. Task 1: learned at 0.8.
ACC = np.array([[0.8, NAN, NAN], [0.9, 0.8, NAN], [0.5, 0.6, 0.9]])


def test_worked_by_hand():
    assert metrics.average_accuracy(ACC) == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert metrics.backward_transfer(ACC) == pytest.approx(((0.5 - 0.8) + (0.6 - 0.8)) / 2)
    assert metrics.final_drop(ACC) == pytest.approx(0.25)
    assert metrics.forgetting(ACC) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)


def test_forgetting_can_be_negative():
    assert metrics.forgetting([[0.5, NAN], [0.7, 0.9]]) == pytest.approx(-0.2)


def test_missing_is_nan_and_never_zero():
    holes = ACC.copy()
    holes[2, 0] = NAN
    for metric in (metrics.average_accuracy, metrics.backward_transfer, metrics.forgetting):
        assert math.isnan(metric(holes))
    assert math.isnan(metrics.backward_transfer([[0.9]]))
    assert math.isnan(metrics.forgetting([[0.9]]))


@pytest.mark.parametrize("bad", [[[0.5, 0.5]], [0.5], [[1.5]], [[-0.1]], np.empty((0, 0))])
def test_bad_matrix(bad):
    with pytest.raises(SkillStackError):
        metrics.average_accuracy(bad)


@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_stack_that_keeps_everything_forgets_nothing(n, seed):
    learned = np.random.default_rng(seed).random(n)
    acc = np.where(np.tri(n, dtype=bool), learned, np.nan)
    assert metrics.final_drop(acc) == 0
    assert metrics.forgetting(acc) == 0


def test_calibration_error_by_hand():
    # Confidence 0.9, right once in two: gap 0.4. Confidence 0.6, right: gap 0.4.
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]
    assert metrics.calibration_error(probabilities, [0, 1, 0], bins=10) == pytest.approx(0.4)
    assert metrics.calibration_error([[1.0, 0.0]], [0]) == 0
    assert math.isnan(metrics.calibration_error(np.empty((0, 2)), []))


def test_bootstrap_interval_holds_the_mean_and_repeats():
    values = np.linspace(0.5, 1.0, 9)
    low, high = metrics.bootstrap_interval(values)
    assert 0.5 < low < 0.75 < high < 1.0
    assert (low, high) == metrics.bootstrap_interval(values)
    assert all(map(math.isnan, metrics.bootstrap_interval([*values, NAN])))


@given(st.lists(st.floats(0, 1), max_size=metrics.LEAST_VALUES - 1))
def test_few_values_have_a_range_and_no_interval(values):
    """Two or three seeds cannot show a 95 % interval: their bootstrap is their range."""
    assert all(map(math.isnan, metrics.bootstrap_interval(values)))
    if len(values) > 1:
        assert metrics.seed_range(values) == (min(values), max(values))
    else:
        assert all(map(math.isnan, metrics.seed_range(values)))


def test_the_range_of_seeds_needs_all_of_them():
    assert all(map(math.isnan, metrics.seed_range([0.5, NAN, 1.0])))
    for function in (metrics.seed_range, metrics.bootstrap_interval):
        with pytest.raises(SkillStackError, match="one-dimensional, got shape \\(2, 1\\)"):
            function([[0.5], [0.6]])


def test_reliability_curve_by_hand():
    curve = metrics.reliability_curve([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]], [0, 1, 0], bins=10)
    assert curve[8] == pytest.approx([0.9, 0.5, 2])
    assert curve[5] == pytest.approx([0.6, 1.0, 1])
    assert curve[:, 2].sum() == 3 and np.isnan(curve[0, :2]).all()


@pytest.mark.parametrize(
    "probabilities, labels, bins, words",
    [
        ([[0.5, 0.5]], [0], 0, "bins must be at least 1, got 0"),
        ([[1.5, -0.5]], [0], 15, "probabilities must be in"),
        ([[NAN, 0.5]], [0], 15, "probabilities must be in"),
        ([[0.5, 0.5]], [0, 1], 15, "do not fit labels"),
        ([0.5, 0.5], [0, 1], 15, "do not fit labels"),
    ],
)
def test_bad_probabilities_are_one_line(probabilities, labels, bins, words):
    for function in (metrics.calibration_error, metrics.reliability_curve):
        with pytest.raises(SkillStackError, match=words):
            function(probabilities, labels, bins)
