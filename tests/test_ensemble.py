"""Answers of many frames: by hand, as properties, and through a stack."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers.answers import Answers
from skillstack_helpers.compression import drop
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.ensemble import SHARES, Mixture
from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.files import NO_SEAL, sealed
from skillstack_helpers.lab.experiment import fit_mixture
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import HybridSVMRouter
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task

YESNO, TOPICS = ("no", "yes"), ("sport", "world", "trade")
NAMES = {"a": YESNO, "b": YESNO, "c": TOPICS}


def logits_of(*rows):
    """Logits (rows, 3 frames, 3 classes) from probabilities; -inf beyond a frame's classes."""
    out = np.full((len(rows), 3, 3), -np.inf)
    for i, row in enumerate(rows):
        for k, chances in enumerate(row):
            out[i, k, : len(chances)] = np.log(chances)
    return out


ROW = logits_of([(0.4, 0.6), (0.9, 0.1), (0.2, 0.5, 0.3)])
ROUTED = np.array([[0.6, 0.1, 0.3]])


@pytest.mark.parametrize(
    ("shares", "expected"),  # worked out by hand
    [
        ("own", [0.6 * 0.4 + 0.1 * 0.9, 0.6 * 0.6 + 0.1 * 0.1, 0.06, 0.15, 0.09]),
        ("family", [0.35 * 0.4 + 0.35 * 0.9, 0.35 * 0.6 + 0.35 * 0.1, 0.06, 0.15, 0.09]),
        ("half", [0.475 * 0.4 + 0.225 * 0.9, 0.475 * 0.6 + 0.225 * 0.1, 0.06, 0.15, 0.09]),
    ],
)
def test_a_mixture_by_hand(shares, expected):
    mixture = Mixture(NAMES, shares)
    assert mixture.names == ["no", "yes", "sport", "world", "trade"]
    np.testing.assert_allclose(mixture.predict_proba(ROW, ROUTED), [expected], atol=1e-12)
    assert mixture.predict(ROW, ROUTED)[0] == mixture.names[int(np.argmax(expected))]


def test_names_tie_labels_in_any_order_and_part_of_them():
    """The same names in another order are a family; a shared name alone is not, but adds up."""
    mixture = Mixture({"a": YESNO, "b": YESNO[::-1], "c": ("yes", "maybe", "never")}, "family")
    logits = logits_of([(0.4, 0.6), (0.9, 0.1), (0.2, 0.5, 0.3)])
    chances = mixture.predict_proba(logits, np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(chances, [[0.25, 0.75, 0, 0]])  # b says yes 0.9, no 0.1
    chances = mixture.predict_proba(logits, np.array([[0.5, 0.0, 0.5]]))
    np.testing.assert_allclose(chances, [[0.125, 0.375 + 0.1, 0.25, 0.15]])


def test_learned_shares_find_who_is_right():
    """b answers a's rows better than a does; c's own answers are all there is for c."""
    rng = np.random.default_rng(0)
    labels, frames = rng.integers(2, size=300), np.array(["a"] * 150 + ["b"] * 150)
    right = np.where(frames == "a", 0.9, 0.6)  # how often b is right about these rows
    says_b = np.where(rng.random(300) < right, labels, 1 - labels)
    chances = [[(0.5, 0.5), (0.85, 0.15) if s == 0 else (0.15, 0.85), (1, 1, 1)] for s in says_b]
    logits = logits_of(*chances)
    mixture = Mixture(NAMES, "learned").fit(logits, frames, labels)
    assert mixture.weights[0, 1] > 0.95
    np.testing.assert_allclose(mixture.weights.sum(1), 1)
    assert mixture.weights[2].tolist() == [0, 0, 1]
    # The temperature makes b as sure as it is right about its own rows: about 0.6.
    b = Mixture(NAMES, "own").fit(logits, frames, labels)
    share = (says_b == labels)[150:].mean()
    sure = b.predict_proba(logits[150:], np.tile([0.0, 1.0, 0.0], (150, 1))).max(1)
    np.testing.assert_allclose(sure, share, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SHARES))
def test_a_mixture_is_a_distribution(seed, shares):
    rng = np.random.default_rng(seed)
    logits = 5 * rng.normal(size=(6, 3, 3))
    logits[:, :2, 2] = -np.inf
    frames, labels = ["a", "b", "c"] * 2, np.array([0, 1, 2, 1, 0, 0])
    mixture, routed = Mixture(NAMES, shares).fit(logits, frames, labels), rng.dirichlet([1] * 3, 6)
    chances = mixture.predict_proba(logits, routed)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert (mixture.weights >= 0).all() and (mixture.temperatures > 0).all()
    # A frame without a share may as well not be asked.
    logits[:, 2] = np.where(mixture.asked(np.eye(3)[[0]])[0, 2], logits[:, 2], np.nan)
    alone = mixture.predict_proba(logits, np.tile([1.0, 0, 0], (6, 1)))
    np.testing.assert_allclose(alone.sum(1), 1)
    assert (alone[:, 2:] == 0).all()


def test_what_was_not_asked_has_no_share():
    logits = ROW.copy()
    logits[0, 2] = np.nan
    chances = Mixture(NAMES, "own").predict_proba(logits, ROUTED)
    expected = [(0.6 * 0.4 + 0.1 * 0.9) / 0.7, (0.6 * 0.6 + 0.1 * 0.1) / 0.7, 0, 0, 0]
    np.testing.assert_allclose(chances, [expected])
    asked = Mixture(NAMES, "family").asked(np.array([[0.99, 0.001, 0.009]]))
    assert asked.tolist() == [[True, True, False]]


def test_saved_and_loaded(tmp_path):
    mixture = Mixture(NAMES, "learned").fit(np.repeat(ROW, 2, 0), ["a", "b"], np.array([1, 0]))
    mixture.save(tmp_path / "mixture.json")
    loaded = Mixture.load(tmp_path / "mixture.json")
    assert loaded.label_names == mixture.label_names
    np.testing.assert_array_equal(loaded.predict_proba(ROW, ROUTED),
                                  mixture.predict_proba(ROW, ROUTED))  # fmt: skip
    path = tmp_path / "mixture.json"
    text = path.read_text()
    for old, new in (("1.0", "-1.0"), ('"learned"', '"leaned"'), ('"yes"', "7, 8")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(SkillStackError, match="mixture.json was changed"):
            Mixture.load(path)
        unsealed = re.sub(r'"seal": "\w+"', f'"seal": "{NO_SEAL}"', text)
        path.write_bytes(sealed(unsealed.replace(old, new, 1)))
        with pytest.raises(SkillStackError, match="mixture.json is damaged"):
            Mixture.load(tmp_path / "mixture.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(NAMES, "familly"), "unknown shares 'familly'.*'family'"),
        (lambda: Mixture({}), "at least one frame"),
        (lambda: Mixture(NAMES).predict(ROW[:, :2], ROUTED), r"\(rows, 3 frames, 3 classes\)"),
        (lambda: Mixture(NAMES).fit(ROW, ["z"], np.array([0])), "unknown frame 'z'"),
        (lambda: Mixture(NAMES).fit(ROW, ["a", "a"], np.array([0])), "1 rows of logits, 2 frames"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(SkillStackError, match=message):
        make()


# ---------------------------------------------------------------------- through a stack


@pytest.fixture(scope="module")
def family(model_dirs, data_dir):
    """A stack of two sentiment frames and one of topics, its rows, and a router."""
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=0)
    how = {"seed": 0, "source": "folder", "data_dir": data_dir}
    stream = [load_task(name, 4, 12, 4, **how) for name in ("imdb", "agnews", "sst2")]
    for data in stream:
        stack.grow(data, config)
    rows = Answers.of(stream, "router")
    rows.stream = stream
    return stack, rows, HybridSVMRouter().fit(rows.texts, list(rows.tasks))


def test_every_frame_is_asked_as_if_alone(family):
    stack, rows, _ = family
    names = ["imdb", "agnews", "sst2"]
    logits = stack.logits(rows.texts, names)
    assert logits.shape == (36, 3, 4) and np.isneginf(logits[:, [0, 2], 2:]).all()
    for k, name in enumerate(names):
        alone = stack.predict(rows.texts, name).probabilities
        said = np.exp(logits[:, k]) / np.exp(logits[:, k]).sum(1, keepdims=True)
        np.testing.assert_allclose(said[:, : alone.shape[1]], alone, atol=1e-5)
    asked = np.random.default_rng(0).random((36, 3)) < 0.4
    some = stack.logits(rows.texts, names, asked)
    np.testing.assert_array_equal(np.isnan(some).all(2), ~asked)
    np.testing.assert_allclose(some[asked], logits[asked], atol=1e-5)
    with pytest.raises(SkillStackError, match=r"asked must be bool \(36, 3\)"):
        stack.logits(rows.texts, names, asked[:, :2])


def test_a_dropped_frame_is_asked_through_its_substitute(family, monkeypatch):
    stack, rows, _ = family
    small = drop(stack, "imdb", "sst2")
    seen = []
    real = SkillStack._scores
    count = lambda self, texts, *rest: seen.append(len(texts)) or real(self, texts, *rest)  # noqa: E731
    monkeypatch.setattr(SkillStack, "_scores", count)
    logits = small.logits(rows.texts, ["imdb", "sst2"])
    assert seen == [36]  # and once for both names
    np.testing.assert_array_equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize("shares", SHARES)
def test_answers_are_the_mixtures(family, shares):
    stack, rows, router = family
    names = list(router.classes_)
    logits = stack.logits(rows.texts, names)
    mixture = Mixture({name: stack[name].label_names for name in names}, shares)
    mixture.fit(logits, rows.tasks, rows.labels)
    answers = stack.answer(rows.texts, router, mix=mixture)
    routed = router.predict_proba(rows.texts)
    worth = mixture.asked(routed)
    chances = mixture.predict_proba(np.where(worth[..., None], logits, np.nan), routed)
    np.testing.assert_allclose(answers["probability"], chances.max(1), atol=1e-4)
    assert list(answers["asked"]) == list(worth.sum(1))
    for frame, label, name in zip(
        answers["frame"], answers["label"], answers["label_name"], strict=True
    ):
        assert stack[frame].label_names[label] == name


@pytest.mark.parametrize("mix", [None, "half"])
def test_labels_in_question_leave_out_frames_without_them(family, mix):
    stack, rows, router = family
    topics = [text for text, task in zip(rows.texts, rows.tasks, strict=True) if task == "agnews"]
    assert set(stack.answer(topics, router, mix)["frame"]) == {"agnews"}
    asked = stack.answer(topics, router, mix, labels=["positive", "negative"])
    assert set(asked["frame"]) <= {"imdb", "sst2"}
    assert set(asked["label_name"]) <= {"positive", "negative"}
    with pytest.raises(SkillStackError, match="no frame has any of the labels maybe, never"):
        stack.answer(topics, router, mix, labels=["maybe", "never"])


def test_fitted_on_a_stream_as_by_hand(family):
    stack, rows, _ = family
    found = fit_mixture(stack=stack, stream=rows.stream)
    logits = stack.logits(rows.texts, ["imdb", "agnews", "sst2"])
    names = {name: stack[name].label_names for name in ("imdb", "agnews", "sst2")}
    expected = Mixture(names, "learned").fit(logits, rows.tasks, rows.labels)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-3)
    np.testing.assert_allclose(found.temperatures, expected.temperatures, rtol=1e-3)


def test_a_mixture_by_its_name_and_of_other_frames(family):
    stack, rows, router = family
    assert stack.answer(rows.texts, router, mix="family")["asked"].max() >= 2
    assert (stack.answer(rows.texts, router)["asked"] == 1).all()
    assert stack.answer([], router, mix="family").empty
    other = Mixture({"imdb": YESNO})
    with pytest.raises(SkillStackError, match="made for other frames than the router's"):
        stack.answer(rows.texts, router, mix=other)
