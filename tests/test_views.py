import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers import SkillStackError, compression
from skillstack_helpers.lab import views
from skillstack_helpers.lab.experiment import open_stack

# ------------------------------------------------------------------ a stack, a frame


def test_the_chain_says_what_is_intact(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "stack")
    stack = open_stack(folder)
    table = views.chain_table(stack)
    assert list(table.index) == ["qqp", "agnews", "imdb"]
    assert list(table["parent"]) == ["agnews", "imdb", ""]
    assert (table["intact"] == "yes").all() and table.loc["agnews", "labels"] == 4
    assert table.loc["imdb", "accuracy (%)"] == f"{100 * stack['imdb'].metrics['accuracy']:.1f}"
    path = folder / "frames" / "agnews" / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert "head.safetensors was changed" in views.chain_table(stack).loc["agnews", "intact"]
    assert views.chain_table(stack).loc["imdb", "intact"] == "yes"


def test_dropped_frames_are_shown_with_the_frame_that_answers(stack):
    small = compression.drop(stack, "imdb", to="qqp")
    table = views.chain_table(small)
    assert list(table.index) == ["qqp", "agnews", "imdb"]
    assert (
        table.loc["imdb", "task"] == "answered by qqp" and table.loc["imdb", "intact"] == "dropped"
    )


def test_the_parent_to_compare_with(stack):
    assert views.parent_of(stack, stack["qqp"]).name == "agnews"
    assert views.parent_of(stack, stack["imdb"]) is None
    small = compression.drop(stack, "agnews", to="qqp")
    assert views.parent_of(small, small["qqp"]) is None  # it answers for its own parent


def test_the_card_has_the_frames_facts(stack):
    card = views.frame_card(stack["agnews"])[""]
    assert card["labels"] == ", ".join(stack["agnews"].label_names)
    assert card["parent"] == "imdb" and card["rank, alpha"] == "4, 16"
    assert card["learning rate"] == "0.005" and card["answers by"] == "a head"
    assert card["steps"] == str(len(stack["agnews"].losses))


def test_layer_norms_by_hand(stack):
    frame = stack["agnews"]
    table = views.layer_norms(frame)
    assert table.shape == (2, 6)
    lora = {n: t.double() for n, t in frame.weights().lora.items()}
    name = next(n for n in lora if ".1." in n and "query.lora_A" in n)
    update = 16 / 4 * lora[name.replace("lora_A", "lora_B")] @ lora[name]
    assert table.loc[1, "attention.self.query"] == pytest.approx(update.norm().item(), rel=1e-5)
    same = views.layer_norms(frame, since=frame)
    assert same.to_numpy().max() < 1e-5
    moved = views.layer_norms(frame, since=stack["imdb"])
    parent = {n: t.double() for n, t in stack["imdb"].weights().lora.items()}
    before = 16 / 4 * parent[name.replace("lora_A", "lora_B")] @ parent[name]
    expected = (update - before).norm().item()
    assert moved.loc[1, "attention.self.query"] == pytest.approx(expected, rel=1e-4)
    # two frames: the cosine of the same updates
    cosines = views.compare_frames(frame, stack["imdb"])
    expected = (update * before).sum() / update.norm() / before.norm()
    assert cosines.loc[1, "attention.self.query"] == pytest.approx(expected.item(), abs=1e-5)


# ------------------------------------------------------------------ many texts


def test_answers_mistakes_and_classes(stack, stream):
    answers = views.own_answers(stack, "agnews", stream[1])
    accuracy = stack["agnews"].metrics["accuracy"]
    assert list(answers) == ["text", "label", "answer", "probability", "right"]
    assert answers["right"].mean() == pytest.approx(accuracy)
    wrong = views.mistakes(answers)
    assert len(wrong) == (~answers["right"]).sum() and wrong["probability"].is_monotonic_decreasing
    classes = views.per_class(answers)
    assert (classes["n"] == 8).all() and len(classes) == 4
    assert (classes["accuracy (%)"] * classes["n"]).sum() / 32 == pytest.approx(
        100 * accuracy, abs=0.1
    )


def test_where_a_router_sends_the_tasks(routers, stream):
    answers = views.routed_frames(routers["centroid"], stream, 8)
    assert len(answers) == 24 and set(answers["label"]) == {"imdb", "agnews", "qqp"}
    assert list(answers["answer"]) == list(routers["centroid"].predict(list(answers["text"])))
    chances = routers["centroid"].predict_proba(list(answers["text"]))
    np.testing.assert_allclose(answers["probability"], chances.max(1), atol=1e-6)
    table = views.confusion_table(answers)
    assert table.sum(axis=1).to_dict() == {"imdb": 8, "agnews": 8, "qqp": 8}
    for label in table.index:
        for answer in table:
            found = views.examples_in_cell(answers, label, answer)
            assert len(found) == table.loc[label, answer]
            assert found["probability"].is_monotonic_decreasing


def test_a_confusion_matrix_of_the_labels_with_most_mistakes():
    pairs = ["aa", "ab", "bb", "bb", "cb", "ca", "cb", "dd"]
    answers = pd.DataFrame([tuple(pair) for pair in pairs], columns=["label", "answer"])
    table = views.confusion_table(answers)
    assert list(table.index) == list(table) == ["a", "b", "c", "d"]
    assert table.loc["c"].to_list() == [1, 2, 0, 0]
    small = views.confusion_table(answers, 2)
    assert list(small.index) == list(small) == ["a", "c"] and small.loc["c", "a"] == 1


# ------------------------------------------------------------------ one text


def test_the_walk_is_the_routers_own(routers, stream):
    text = stream[1].texts("eval")[0]
    for name, router in routers.items():
        table, route = views.walk_table(router, text), router.route([text]).iloc[0]
        assert list(table.index) == ["qqp", "agnews", "imdb"]
        (answering,) = table.index[table["step"].str.startswith("answers")]
        assert answering == route["frame"]
        assert table["probability"].sum() == pytest.approx(1)
        steps = list(table["step"])
        if name == "hybrid_chain":
            assert sum(step != "not reached" for step in steps) == route["depth"]
        else:
            assert sorted(steps) == ["answers", "compared", "compared"]
    strict = routers["hybrid_chain"].set_params(threshold=99.0)
    assert set(views.walk_table(strict, text)["step"]) == {"below threshold", "answers (fallback)"}


def test_one_text_asked_of_every_frame(stack, stream):
    text = stream[0].texts("eval")[0]
    table = views.ask(stack, text, ["imdb", "agnews"])
    for name, row in table.iterrows():
        prediction = stack.predict([text], name)
        assert row["answer"] == prediction.label_names[0]
        assert row["probability"] == pytest.approx(prediction.probabilities.max())
        assert row["all"].startswith(f"{row['answer']} ")


def test_a_text_is_put_in_the_form_of_the_frames_own_task(stack):
    frame = stack["imdb"]

    def form(task, **noted):
        other = dataclasses.replace(frame, task=task, data=noted)
        return views.render(other, "one", "two")

    assert form("qqp") == "Question 1: one\nQuestion 2: two"  # saved by version 0.1
    assert form("mine") == "one"
    assert form("mine", template="Q: {text} A: {text_pair}") == "Q: one A: two"
    assert views.render(frame, "one") == "one"
    assert frame.data["template"] == "{text}"
    for bad in ("{text.__class__}", "{text:>99999999}", "{0}", "{", 3):
        with pytest.raises(SkillStackError, match="frame imdb: .* is no template"):
            form("mine", template=bad)


# ------------------------------------------------------------------ two of them


def test_frames_and_stacks_compared(stack):
    table = views.compare_frames(stack["imdb"], stack["imdb"])
    assert table.shape == (2, 6)
    np.testing.assert_allclose(table, 1, atol=1e-6)
    other = views.compare_frames(stack["imdb"], stack["qqp"])
    assert (other.abs() <= 1).all(axis=None) and other.max(axis=None) < 0.9999
    small = compression.int8(compression.drop(stack, "imdb", to="qqp"), names=["qqp"])
    both = views.compare_stacks(stack, small)
    assert both.loc["imdb", "accuracy, second (%)"] == "–"
    assert list(both["same weights"]) == ["no", "yes", "no"]
    assert list(views.compare_stacks(stack, stack)["same weights"]) == ["yes"] * 3


def test_frames_of_two_models_have_nothing_to_compare(stack):
    frame = stack["imdb"]
    narrow = {name: (b[:5], a) for name, (b, a) in frame.updates().items()}
    for updates in (narrow, {}, {"other": next(iter(narrow.values()))}):
        other = SimpleNamespace(name="elsewhere", updates=lambda updates=updates: updates)
        with pytest.raises(SkillStackError, match="'imdb' and 'elsewhere' adapt no module"):
            views.compare_frames(frame, other)
