"""Who answers what right, and that no frame is asked twice about a text."""

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax

from skillstack_helpers import SkillStackError
from skillstack_helpers.answers import Answers, transfer
from skillstack_helpers.compression import drop
from skillstack_helpers.heads import Evaluation
from skillstack_helpers.routers import load_router
from skillstack_helpers.stack import SkillStack


@pytest.fixture
def stack(saved, backbone):
    return SkillStack.from_pretrained(saved, backbone)


@pytest.fixture
def answers(stream):
    return Answers.of(stream, "eval")


@pytest.fixture
def asked(monkeypatch):
    """(text, frame) of every question put to a frame."""
    asked, predict = [], SkillStack.predict

    def counting(self, texts, frame, *args, **kwargs):
        names = [frame] * len(texts) if isinstance(frame, str) else frame
        asked.extend(zip(texts, names, strict=True))
        return predict(self, texts, frame, *args, **kwargs)

    monkeypatch.setattr(SkillStack, "predict", counting)
    return asked


def test_the_rows_of_a_stream(stream):
    answers = Answers.of(stream, "router", slice(2, 5))
    assert answers.texts == [text for data in stream for text in data.texts("router")[2:5]]
    assert list(answers.tasks) == ["imdb"] * 3 + ["agnews"] * 3 + ["qqp"] * 3
    assert list(answers.labels[3:6]) == list(stream[1].labels("router")[2:5])
    assert answers.label_names[3] == stream[1].task.label_names[answers.labels[3]]
    with pytest.raises(SkillStackError, match="differ in length"):
        Answers(["one", "two"], ["a"], [0], ["no"])


def test_right_by_name_and_by_position(stack, answers, asked):
    qqp = np.flatnonzero(answers.tasks == "qqp")
    assert not answers.right(stack, "imdb", qqp).any() and not asked  # cannot say "duplicate"
    by_id = answers.right(stack, "imdb", qqp, label_ids=True)
    expected = stack.predict([answers.texts[i] for i in qqp], "imdb").labels
    np.testing.assert_array_equal(by_id, expected == answers.labels[qqp])
    mask = answers.tasks == "qqp"  # rows as a mask are the same rows
    np.testing.assert_array_equal(by_id, answers.right(stack, "imdb", mask, label_ids=True))
    with pytest.raises(SkillStackError, match="64 texts but 2 frame names"):
        answers.right(stack, ["imdb", "qqp"])
    with pytest.raises(SkillStackError, match="unknown frame 'imbd' .did you mean 'imdb'"):
        answers.right(stack, "imbd")


def test_each_frame_is_asked_once_about_a_text(stack, answers, asked, saved, backbone):
    first = answers.right(stack, answers.tasks)
    assert len(asked) == len(answers.texts)
    np.testing.assert_array_equal(first, answers.right(stack, answers.tasks))
    again = SkillStack.from_pretrained(saved, backbone)  # the same frames, read anew
    np.testing.assert_array_equal(first, answers.right(again, answers.tasks))
    small = drop(stack, "qqp", to="imdb")  # imdb is known too, but not about these texts
    answers.right(small, answers.tasks, label_ids=True)
    assert len(asked) == len(set(asked)) == len(answers.texts) + (answers.tasks == "qqp").sum()


def test_frames_that_differ_in_more_than_weights_are_asked_again(stack, answers, asked):
    imdb = answers.tasks == "imdb"
    answers.right(stack, "imdb", imdb)
    frame, *rest = stack.frames
    for change in (
        {"storage": {"lora_r": 4, "lora_alpha": 1}},
        {"training": {**frame.training, "max_length": 8}},
    ):
        before = len(asked)
        answers.right(stack.copy([dataclasses.replace(frame, **change), *rest]), "imdb", imdb)
        assert len(asked) == before + imdb.sum()


def test_what_is_known_is_not_asked(stack, stream, answers, asked):
    for data in stream:
        answers.note(stack[data.name], answers.tasks == data.name, stack.evaluate(data))
    own = answers.accuracy(answers.right(stack, answers.tasks))
    assert not asked
    assert own.to_dict() == {name: stack[name].metrics["accuracy"] for name in own.index}
    wrong = np.array([1 - answers.labels[0]])
    answers.note(stack["imdb"], [0], Evaluation(0.0, wrong, np.zeros((1, 2))))  # believed
    assert not answers.right(stack, "imdb", [0])[0] and not len(answers.right(stack, "imdb", []))


def test_what_was_said_is_kept(stack, stream, answers):
    assert np.isnan(answers.logits(stack)[:, :, 0]).all()
    answers.right(stack, answers.tasks)  # each text's own frame
    answers.note(stack["imdb"], answers.tasks == "imdb", stack.evaluate(stream[0]))
    answers.right(stack, "agnews", [0])  # has no word for it, so that it is not asked
    one = stack.logits(answers.texts[:1], ["agnews"])[:, 0]
    answers.note(stack["agnews"], [0], Evaluation(0.0, one.argmax(1), one))
    said = answers.logits(stack)
    names = [frame.name for frame in stack.frames]
    own = np.array([names.index(task) for task in answers.tasks])
    asked = np.zeros(said.shape[:2], dtype=bool)
    asked[np.arange(len(own)), own] = True
    asked[0, names.index("agnews")] = True
    assert (np.isnan(said).all(2) == ~asked).all()
    expected = log_softmax(stack.logits(answers.texts, names, asked), axis=2)
    np.testing.assert_allclose(said, expected, atol=1e-4)
    assert (np.isneginf(said) == np.isneginf(expected)).all()


def test_routed_texts(stack, stream, answers, saved, asked):
    router = load_router(saved / "routers" / "hybrid_chain")
    table = answers.routed(stack, router)
    assert list(table) == ["task", "truth", "frame", "score", "depth", "fallback", "answer"]
    expected = stack.answer(answers.texts, router)
    np.testing.assert_array_equal(table["frame"], expected["frame"])
    np.testing.assert_array_equal(table["answer"], expected["label_name"])
    np.testing.assert_array_equal(table["depth"], expected["depth"])
    assert list(table["task"]) == list(answers.tasks)
    right = answers.right(stack, table["frame"])
    np.testing.assert_array_equal(right, table["answer"] == table["truth"])
    small = drop(stack, "qqp", to="agnews")
    sent = answers.routed(small, router)
    np.testing.assert_array_equal(sent["frame"], table["frame"])  # what the router chose
    assert set(sent["answer"][sent["frame"] == "qqp"]) <= set(stream[1].task.label_names)


def test_transfer(stack, stream, answers):
    table = transfer(stack, answers, ["qqp", "imdb"])
    assert list(table.index) == list(table.columns) == ["qqp", "imdb"]
    for data in stream:
        if data.name in table:
            own = stack.evaluate(data).accuracy
            assert table.loc[data.name, data.name] == pytest.approx(own)
            assert own == pytest.approx(stack[data.name].metrics["accuracy"])
    assert table.loc["qqp", "imdb"] == 0  # no label name in common
    few = Answers.of(stream[:1], "eval")
    assert np.isnan(transfer(stack, few, ["imdb", "qqp"])["qqp"]).all()  # no rows is no accuracy
