import numpy as np
import pytest
from crepes import ConformalClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from skillstack_helpers.conformal import Martingale, p_values, simes, threshold
from skillstack_helpers.errors import SkillStackError

scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


def test_p_values_by_hand():
    # 2 is as large as one of three and larger than one: (1 + 2) / 4; nothing is as large as 9.
    assert p_values([1, 2, 3], [2, 9, -5]).tolist() == [0.75, 0.25, 1.0]
    assert p_values([1, 2, 3], np.full((2, 2), 3.0)).tolist() == [[0.5, 0.5]] * 2
    assert p_values([1.0], []).shape == (0,)


@given(scores, scores)
def test_a_stranger_text_never_has_a_larger_p_value(calibration, asked):
    asked = np.sort(asked)
    p = p_values(calibration, asked)
    assert (np.diff(p) <= 0).all() and p.min() >= 1 / (len(calibration) + 1) and p.max() <= 1


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.5, 0.8, 0.9]))
def test_p_values_and_sets_are_those_of_crepes(seed, n, coverage):
    rng = np.random.default_rng(seed)
    known, asked = rng.normal(size=n).round(1), rng.normal(size=(8, 3)).round(1)  # with ties
    theirs = ConformalClassifier()
    theirs.fit(known)
    expected = theirs.predict_p(asked, all_classes=True, smoothing=False)
    assert np.allclose(p_values(known, asked), expected)
    # It also takes in a label whose p-value is just 1 - coverage, which is one more than is needed.
    assert ((asked <= threshold(known, coverage)) == (expected > 1 - coverage + 1e-9)).all()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(5, 60), st.sampled_from([0.05, 0.1, 0.3]))
def test_a_known_text_is_called_strange_as_seldom_as_said(seed, n, alpha):
    # Exactly: of n + 1 exchangeable scores each is the last one equally often.
    drawn = np.random.default_rng(seed).normal(size=n + 1).round(1)  # with ties
    p = [p_values(np.delete(drawn, i), drawn[i : i + 1])[0] for i in range(n + 1)]
    assert np.mean(np.array(p) <= alpha) <= alpha


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
def test_simes_is_the_least_adjusted_p_value_of_benjamini_and_hochberg(p):
    assert simes(p) == pytest.approx(false_discovery_control(p).min())
    both = simes(np.column_stack([p, np.ones(len(p))]))
    assert both.tolist() == pytest.approx([simes(p), 1])


def test_the_martingale_seldom_grows_among_its_own_and_fast_among_strangers():
    rng = np.random.default_rng(0)
    highest = []
    for seed in range(300):
        test = Martingale(rng.normal(size=64), seed)
        test.update(rng.normal(size=50))
        highest.append(test.highest)
    assert np.mean(np.array(highest) >= 20) <= 0.05  # Ville
    test = Martingale(rng.normal(size=64))
    assert test.update(rng.normal(3, size=8)) > 20 and test.highest >= test.wealth


def test_taking_scores_one_by_one_or_together_is_the_same():
    one, all_at_once = Martingale([0.0, 1.0, 2.0], seed=3), Martingale([0.0, 1.0, 2.0], seed=3)
    for score in (0.5, 3.0, 3.0):
        one.update([score])
    assert all_at_once.update([0.5, 3.0, 3.0]) == one.wealth != 1


def test_thresholds_by_hand():
    # ceil(5 * 0.8) = 4th smallest of four; ceil(5 * 0.81) = 5 is one too many.
    assert threshold([4, 1, 3, 2], 0.8) == 4 and threshold([4, 1, 3, 2], 0.81) == np.inf
    assert threshold(np.arange(1, 10), 0.9) == 9  # ceil(10 * 0.9), whatever 0.9 is in binary


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: p_values([], [1.0]), "no calibration scores"),
        (lambda: p_values([1.0], [np.nan]), "scores must be numbers, got NaN"),
        (lambda: simes([]), "no p-values to combine"),
        (lambda: Martingale([]), "no calibration scores"),
        (lambda: threshold([1.0], 1.0), "coverage must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(SkillStackError, match=words):
        call()
