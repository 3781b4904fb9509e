import numpy as np
import pytest
import safetensors.numpy
from conftest import edit_json

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.routers import (
    fit_temperature,
    load_router,
    make_router,
    save_router,
)
from skillstack_helpers.routers import trunk as module
from skillstack_helpers.routers.ngrams import hash_strings
from skillstack_helpers.routers.trunk import TrunkRouter, _sketch, _Sums, discriminants

COLUMNS = 1 << 6  # of n-grams: small, for speed
WIDTH = 4 * 6 + COLUMNS


@pytest.fixture(autouse=True)
def few_columns(monkeypatch):
    monkeypatch.setattr(module, "_BITS", 6)


class StandIn:
    """A backbone of eight layers whose states of a text are drawn from a seed in the text."""

    name, hidden, depth = "stand-in", 6, 8

    def __init__(self):
        self.asked = []

    def layer_number(self, first):
        return round(first * self.depth) if isinstance(first, float) else first

    def pooled(self, texts, max_length, first):
        self.asked.append((tuple(texts), max_length, first))
        states = [self.state(text)[: first + 1] for text in texts]
        return np.array(states, dtype=np.float32).reshape(len(texts), first + 1, self.hidden)

    def state(self, text):
        rng = np.random.default_rng(list(text.encode()))
        topic = np.random.default_rng(list(text.split()[0].encode()) if text else 0)
        return topic.normal(size=(9, self.hidden)) + rng.normal(size=(9, self.hidden))


def corpus(frames=12, texts=15):
    rng = np.random.default_rng(0)
    names = [f"frame{k}" for k in range(frames) for _ in range(texts)]
    words = [
        f"{name} {' '.join(rng.choice(list('abcdefgh'), 3))} n{rng.integers(999)}" for name in names
    ]
    return words, names


@pytest.fixture
def router():
    return TrunkRouter(StandIn()).fit(*corpus(3))


# ------------------------------------------------------------------ by hand


def test_discriminants_by_hand():
    # Uncorrelated: nothing tells the covariance from one without correlations, so each mean is
    # divided by the variances, 4 and 1.
    means = np.array([[0.02, 0.0], [0.0, 0.01]])
    alone = discriminants(np.diag([40.0, 10.0]), means, texts=10)
    assert alone == pytest.approx(np.array([[0.005, 0], [0, 0.01]]), rel=1e-6)
    # Correlation 1/2, two features, 18 texts of 2 frames: squares 2.5, trace 2, so shrinkage is
    # (0 * 2.5 + 4) / ((16 + 1 - 1) * (2.5 - 4 / 2)) = 1/2 and the inverse of [[1, 1/4], [1/4, 1]]
    # is 16/15 [[1, -1/4], [-1/4, 1]].
    within = np.array([[18.0, 9.0], [9.0, 18.0]])
    joined = discriminants(within, 0.015 * np.eye(2), texts=18)
    assert joined == pytest.approx(np.array([[0.016, -0.004], [-0.004, 0.016]]), rel=1e-6)
    # So few texts that their covariance says nothing: correlations are left out.
    few = discriminants(np.array([[4.0, 2.0], [2.0, 4.0]]), 0.015 * np.eye(2), texts=4)
    assert few == pytest.approx(0.015 * np.eye(2), rel=1e-6)


def test_scores_are_log_likelihoods_of_normals(router):
    """Differences of a text's scores, from the features of all texts and without any sums."""
    texts, names = corpus(3)
    features = router._features(texts)
    frames = np.array(names)
    means = np.array([features[frames == name].mean(0) for name in router.frames_])
    residual = features - means[[router.frames_.index(name) for name in names]]
    expected = 0
    for block, weight in ((slice(0, 24), 1.0), (slice(24, None), 0.5)):
        x, mean, rest = features[:, block], means[:, block], residual[:, block]
        spread = np.sqrt(rest.var(0) + 1e-4 * (mean**2).mean())
        correlation = np.cov((rest / spread).T, bias=True)
        d, n, square, trace = len(spread), 45 - 3, (correlation**2).sum(), np.trace(correlation)
        shrinkage = (1 - 2 / d) * square + trace**2
        shrinkage = min(1, shrinkage / ((n + 1 - 2 / d) * (square - trace**2 / d)))
        covariance = (1 - shrinkage) * correlation + shrinkage * np.eye(d)
        inverse = np.linalg.inv(covariance * np.outer(spread, spread))
        away = x[:, None] - mean  # (texts, frames, features)
        expected = expected - weight * np.einsum("tfi,ij,tfj->tf", away, inverse, away) / 2
    scores = router.decision_function(texts)
    assert scores - scores[:, :1] == pytest.approx(expected - expected[:, :1], rel=1e-6, abs=1e-6)


def test_sketch_by_hand(monkeypatch):
    monkeypatch.setattr(module, "_BITS", 11)
    # "xy" is one word and two letters, "abab" one word and ab (twice), ba, aba, bab, abab.
    one, two, none = _sketch(["xy", "abab", ""])
    word = hash_strings(["xy", "abab", "ab", "ba", "aba", "bab", "abab"])
    letters = word << np.uint64(16)

    def cell(row, hashed):
        sign = -1 if int(hashed) >> 52 & 1 else 1
        return sign * row[int(hashed) >> 53]

    assert (one != 0).sum() == 2 and not none.any()
    assert cell(one, word[0]) == cell(one, letters[0]) == pytest.approx(0.5**0.5)
    length = (5 + (1 + np.log(2)) ** 2) ** 0.5
    assert cell(two, word[1]) == pytest.approx(1 / length)
    assert cell(two, letters[2]) == pytest.approx((1 + np.log(2)) / length)
    assert [cell(two, h) for h in letters[3:]] == pytest.approx([1 / length] * 4)


def test_sketches_keep_what_texts_have_in_common(monkeypatch):
    monkeypatch.setattr(module, "_BITS", 11)
    texts = ["the bank cut its rates today", "the bank raised its rates", "Wonderful FILM, see it!"]
    near = _sketch(texts) @ _sketch(texts).T
    assert np.diag(near) == pytest.approx(1, abs=0.15)
    assert near[0, 1] > 0.3 and abs(near[0, 2]) < 0.1 and abs(near[1, 2]) < 0.1


def test_four_depths_are_read_up_to_the_first_adapted_layer():
    backbone = StandIn()
    router = TrunkRouter(backbone, first=7, max_length=9)
    features = router._features(["a b"])
    assert backbone.asked == [(("a b",), 9, 7)]
    states = backbone.state("a b").astype(np.float32)[[0, 2, 5, 7]]  # evenly, 0 to 7
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    assert features[0, :24] == pytest.approx(states.ravel(), abs=1e-6)
    assert make_router("trunk", backbone=backbone)._features(["a"]).shape == (1, WIDTH)
    assert backbone.asked[-1][2] == 4  # half of the eight layers
    router.set_params(first=1)  # fewer than four: each once
    assert router._features(["a"]).shape == (1, WIDTH - 2 * 6)


# ------------------------------------------------------------------ one frame more


def test_added_in_any_order_weights_are_those_of_the_joint_fit():
    texts, names = (np.array(part, object) for part in corpus(12))
    joint = TrunkRouter(StandIn()).fit(texts, names)
    assert joint.score(texts, names) > 0.9 and np.abs(joint.coef_).max() > 1
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(joint.frames_)
        router, start = TrunkRouter(StandIn()), seed % 4 + 1  # so many at first, then one by one
        for group in (order[:start], *order[start:, None]):
            mine = np.isin(names, group)
            router.partial_fit(texts[mine], names[mine])
        assert sorted(router.frames_) == sorted(joint.frames_)
        column = [router.frames_.index(name) for name in joint.frames_]
        assert np.abs(router.coef_[column] - joint.coef_).max() < 1e-8
        assert np.abs(router.intercept_[column] - joint.intercept_).max() < 1e-8


def test_adding_reads_the_new_texts_alone(router):
    texts, names = corpus(4)
    before = router.temperature_
    router.backbone.asked.clear()
    router.partial_fit(texts[45:], names[45:])
    assert [asked[0] for asked in router.backbone.asked] == [tuple(texts[45:])]
    assert router.frames_[-1] == "frame3" and router.temperature_ == before


def test_frames_are_added_all_or_none(router):
    texts, names = corpus(5)
    whole, scores = router.sums_, router.decision_function(texts)
    read = router.backbone.pooled

    def failing(texts, max_length, first):
        if texts[0].startswith("frame4"):
            raise MemoryError
        return read(texts, max_length, first)

    router.backbone.pooled = failing
    with pytest.raises(MemoryError):
        router.partial_fit(texts[45:], names[45:])
    router.backbone.pooled = read
    assert router.sums_ is whole and len(router.frames_) == 3
    assert np.array_equal(router.decision_function(texts), scores)


# ------------------------------------------------------------------ few texts


def test_one_frame_and_one_text_a_frame():
    texts, names = corpus(3)
    one = TrunkRouter(StandIn()).fit(texts[:15], names[:15])
    assert (one.predict(texts) == "frame0").all() and one.temperature_ == 1
    assert one.predict_proba(texts).tolist() == [[1.0]] * 45
    single = TrunkRouter(StandIn()).fit(texts[::15], names[::15])
    assert list(single.predict(texts[::15])) == names[::15]
    assert np.isfinite(single.decision_function([*texts, "", "日本"])).all()
    same = TrunkRouter(StandIn()).fit(["", ""], ["a", "b"])
    assert same.predict_proba([""]).tolist() == [[0.5, 0.5]]


def test_temperature_is_that_of_texts_taken_out_of_the_sums():
    texts, names = corpus(3)
    router = TrunkRouter(StandIn()).fit(texts, names)
    held = np.arange(45) % 15 % 3 == 0
    rest = TrunkRouter(StandIn())
    rest.fit(np.array(texts, object)[~held], np.array(names, object)[~held])
    scores = rest.decision_function(np.array(texts, object)[held])
    of_held = [name for name, out in zip(names, held, strict=True) if out]
    expected = fit_temperature(scores, router.frames_, of_held)
    assert router.temperature_ == pytest.approx(expected, rel=1e-5) and expected != 1
    assert TrunkRouter(StandIn()).fit(texts[::8], names[::8]).temperature_ == 1  # two of each


def test_another_fit_forgets_sums_and_width(router):
    texts, names = corpus(3)
    router.set_params(first=1)
    again = router.fit(texts[15:], names[15:])
    assert again.frames_ == ["frame1", "frame2"] and again.sums_.counts.tolist() == [15, 15]
    assert again.coef_.shape == (2, WIDTH - 12)


# ------------------------------------------------------------------ disk


def test_a_loaded_router_takes_more_frames(router, tmp_path):
    texts, names = corpus(5)
    loaded = load_router(save_router(router, tmp_path), backbone=router.backbone)
    assert np.array_equal(loaded.decision_function(texts), router.decision_function(texts))
    for each in (router, loaded):
        each.partial_fit(texts[45:], names[45:])
    assert np.array_equal(loaded.coef_, router.coef_)
    held = safetensors.numpy.load_file(tmp_path / "router.safetensors")
    halves = {"states_": (24 * 25 // 2,), "ngrams_": (64 * 65 // 2,)}
    assert {name: held[name].shape for name in halves} == halves
    assert held["counts_"].tolist() == [15, 15, 15]


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("counts_", np.ones(4)),
        ("totals_", np.ones((2, WIDTH))),
        ("totals_", np.ones(3)),
        ("totals_", np.ones((3, 7))),
        ("states_", np.ones(24)),
        ("ngrams_", np.ones(9)),
        ("coef_", np.ones((3, WIDTH - 1))),
        ("intercept_", np.ones((3, 1))),
        ("counts_", np.ones(3, np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(router, name, wrong):
    state = router._state() | {name: wrong}
    with pytest.raises(ValueError, match="not float64"):
        TrunkRouter(router.backbone)._restore(state)


def test_a_missing_array_is_named(router, tmp_path):
    router._state = lambda: {k: v for k, v in TrunkRouter._state(router).items() if k != "ngrams_"}
    save_router(router, tmp_path)
    with pytest.raises(SkillStackError, match=r"router.safetensors is damaged: 'ngrams_'"):
        load_router(tmp_path, backbone=router.backbone)
    edit_json(tmp_path / "router.safetensors", lambda f: f["state"].update(ngrams_=3))
    with pytest.raises(SkillStackError, match="router.safetensors is damaged"):
        load_router(tmp_path, backbone=router.backbone)


# ------------------------------------------------------------------ bad input


def test_bad_input(router):
    with pytest.raises(SkillStackError, match="pass backbone="):
        TrunkRouter().fit(*corpus(2))
    with pytest.raises(SkillStackError, match="'frame0' is already in the router"):
        router.partial_fit(*corpus(1))
    router.backbone.hidden = 5
    with pytest.raises(SkillStackError, match="88 features, stand-in gives 84: pass the"):
        router.predict(["a"])


def test_sums_of_frames_are_sums_of_their_texts(router):
    texts, _ = corpus(3)
    whole = _Sums.of([router._features(texts[i : i + 15]) for i in (0, 15, 30)])
    part = _Sums.of([router._features(texts[i : i + 5]) for i in (0, 15, 30)])
    rest = _Sums.of([router._features(texts[i + 5 : i + 15]) for i in (0, 15, 30)])
    for left, kept in zip(whole.without(part), rest, strict=True):
        assert left == pytest.approx(kept, abs=1e-12)
    for ours, theirs in zip(router.sums_, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)
