"""Bad input is one line that names it, everywhere; generators are sequences."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import ASKED, BAD
from sklearn.exceptions import NotFittedError

from skillstack_helpers import SkillStackError, baselines, compression, errors, heads
from skillstack_helpers.answers import Answers
from skillstack_helpers.bitstack import BitStack
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.ensemble import Mixture
from skillstack_helpers.lab.parameters import ROUTERS
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.reuse import LearnerLoop
from skillstack_helpers.routers import make_router
from skillstack_helpers.stack import SkillStack


class Tiny(torch.nn.Module):
    """Two classes of four numbers: a loss for `BitStack`."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 2)

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.cross_entropy(self.body(x), labels)}


@pytest.fixture(scope="module")
def kit(saved, model_dirs, decoders, stream, data_dir, tmp_path_factory):
    """One of everything that the functions of inputs.py are asked of. No bad input changes it."""
    kit = SimpleNamespace(stream=stream, data=stream[0], data_dir=data_dir)
    kit.folder, kit.model = tmp_path_factory.mktemp("inputs"), str(model_dirs["bert"])
    kit.config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=0)
    kit.backbone = load_backbone(kit.model, device="cpu")
    kit.stack = SkillStack.from_pretrained(saved, kit.backbone)
    kit.twins = kit.stack.copy()
    kit.twins.grow(kit.data, kit.config, name="imdb-2")
    kit.dropped = compression.drop(kit.stack, "qqp", "imdb")
    texts = [text for data in stream for text in data.texts("router")]
    names = [data.name for data in stream for _ in data.texts("router")]
    kit.unfitted = lambda name: make_router(name, backbone=kit.backbone, stack=kit.stack)
    kit.routers = {name: kit.unfitted(name).fit(texts, names) for name in ROUTERS}
    kit.router = kit.routers["hybrid_chain"]
    kit.answers = Answers.of(stream, "eval")
    kit.mixture = lambda: Mixture({"a": ["no", "yes"], "b": ["no", "yes"]})
    kit.tiny = Tiny()
    kit.bits = BitStack(kit.tiny, 0.25, exclude=[])
    kit.batches = lambda label=0: [
        {"x": torch.arange(1.0, 5)[None], "labels": torch.tensor([label])}
    ]
    kit.bits.update(kit.batches(), task="one")
    kit.mask_file = kit.bits.save(kit.folder / "masks.safetensors")
    how = (kit.backbone, kit.config)
    kit.new_learner = lambda name: (
        baselines.TfidfLogistic() if name == "TfidfLogistic" else getattr(baselines, name)(*how)
    )
    kit.learner = baselines.Sequential.of(kit.stack, kit.config)
    kit.independent, kit.lda = baselines.Independent(*how), baselines.FrozenLDA(*how)
    kit.tfidf, kit.union = baselines.TfidfLogistic(), baselines.TfidfLogistic(union=True)
    kit.independent.learn(kit.data)
    for learner in (kit.lda, kit.tfidf, kit.union):
        learner.learn(stream)
    kit.writer = SkillStack(load_backbone(str(decoders["llama"]), device="cpu"))
    long = TrainingConfig(epochs=1, batch_size=4, lora_r=4, max_length=64)
    kit.writer.grow(kit.data, long, heads.instruction(kit.data.task))
    kit.loop = LearnerLoop(load_backbone(kit.model, device="cpu"), kit.config)
    kit.loop.learn(kit.data)
    kit.table = pd.DataFrame({"text": ["a", "b", "c", "d"], "label": ["no", "yes"] * 2})
    kit.removed = {"files_sha256": {}, "removed": "imdb", "trained_anew": {}}
    return kit


FUNCTIONS: dict[str, list] = {}
for _bad in BAD:
    FUNCTIONS.setdefault(_bad.where, []).append(_bad)


def wrong_with(bad, kit) -> str:
    """What is wrong with the answer to a bad input; nothing if it is one line that names it."""
    try:
        return f"{bad.value}: accepted, {bad.call(kit)!r:.200}"
    except SkillStackError as error:
        said = str(error)
        good = len(said.splitlines()) == 1 and len(said) < 600 and re.search(bad.words, said)
        return "" if good else f"{bad.value}: said {said!r}, not {bad.words!r}"
    except Exception as error:
        return f"{bad.value}: raw {error!r}"


@pytest.mark.parametrize("where", FUNCTIONS)
def test_bad_input_is_one_line_that_names_it(where, kit):
    assert [line for bad in FUNCTIONS[where] if (line := wrong_with(bad, kit))] == []


def test_nothing_of_it_changed_anything(kit):
    """The last of them, so that whatever was refused half-way would show."""
    assert [len(s.frames) for s in (kit.stack, kit.twins, kit.writer)] == [3, 4, 1]
    kit.stack.verify()
    assert kit.bits.tasks == ["one"] and list(kit.learner.heads) == ["imdb", "agnews", "qqp"]
    assert all(router.frames_ == ["imdb", "agnews", "qqp"] for router in kit.routers.values())
    assert not list(kit.folder.glob("*.json"))


def test_there_are_hundreds():
    assert len(BAD) > 2500 and len(FUNCTIONS) > 300


@pytest.mark.parametrize("where", ASKED)
def test_a_generator_is_read_once_and_answered_like_a_list(where, kit):
    texts = ["class1 of the", "so it goes"]
    listed, streamed = (ASKED[where](kit, one) for one in (texts, (text for text in texts)))
    assert len(listed) == len(streamed) == 2
    if isinstance(listed, pd.DataFrame):
        assert listed.equals(streamed)
    else:
        assert all(np.array_equal(a, b) for a, b in zip(listed, streamed, strict=True))


@pytest.mark.parametrize("name", ROUTERS)
def test_generators_fit_a_router_and_an_unfitted_one_is_scikit_learn_s_error_too(name, kit):
    texts = [text for data in kit.stream for text in data.texts("router")]
    names = [data.name for data in kit.stream for _ in data.texts("router")]
    router = kit.unfitted(name).fit(iter(texts), iter(names))
    ours, theirs = (one.decision_function(texts) for one in (router, kit.routers[name]))
    assert np.array_equal(ours, theirs)
    with pytest.raises(NotFittedError):
        kit.unfitted(name).predict(["a"])


def test_a_fit_that_fails_leaves_the_one_before():
    router = make_router("hybrid_svm").fit(["so good", "so bad"], ["a", "b"])
    with pytest.raises(SkillStackError, match="hold no words"):
        router.fit(["", ""], ["x", "y"])
    assert list(router.predict(["so good"])) == ["a"]


# ---------------------------------------------------------------------- the checkers themselves

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.lists(st.one_of(st.none(), st.integers(), st.text(), st.floats()), max_size=3),
    st.dictionaries(st.text(), st.integers(), max_size=2),
)  # fmt: skip


def one_line(check, *given, **how) -> object:
    """What a checker gives, None where it refuses; it never raises anything else."""
    try:
        return check(*given, **how)
    except SkillStackError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 400
        return None


@settings(max_examples=200, deadline=None)
@given(ANYTHING)
def test_a_checker_gives_the_value_or_one_line(value):
    texts = one_line(errors.checked_texts, value)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        assert texts == value
    else:
        assert texts is None
    number = one_line(errors.checked_number, value, "n", 0, 10)
    good = type(value) in (int, float) and 0 <= value <= 10
    assert (number is value) if good else number is None
    one_line(errors.checked_labels, value, "labels", 3)
    one_line(errors.checked_numbers, value, "values")
    one_line(errors.checked_path, value)
    one_line(errors.checked_name, value, ("a", "b"), "letter")
    one_line(errors.checked_seed, value)
    assert "\n" not in errors.shown(value) and len(errors.shown(value)) <= 120


@given(st.lists(st.text()))
def test_texts_come_through_as_they_are(texts):
    for given_as in (texts, tuple(texts), iter(texts), np.array(texts, dtype=object)):
        assert errors.checked_texts(given_as) == texts


@given(st.text())
def test_an_error_is_one_line_whatever_it_quotes(text):
    assert len(str(SkillStackError(f"unknown {text}")).splitlines()) == 1
