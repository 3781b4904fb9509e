"""What notebooks 03 and 07 measure of routers."""

import time

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers.lab import routing
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack


class Kept:
    """A run that keeps what is recorded."""

    def __init__(self):
        self.values = {}

    def record(self, metric, value, n, router="", eval_task="", split="eval"):
        self.values[metric, router, eval_task, split] = value, n

    def of(self, metric, router="a", eval_task="", split="eval"):
        return self.values[metric, router, eval_task, split]


def test_right_frames_and_correct_answers_by_hand():
    """Three texts of x, one of y: y is misrouted and answered correctly."""
    table = pd.DataFrame({"task": list("xxxy")})
    table = table.assign(a_frame=list("xxxx"), a_right=[True, False, False, True])
    table = table.assign(b_frame=list("xxxy"), b_right=True)
    run = Kept()
    routing.record_routing(run, table, ["a", "b"])
    assert run.of("router_accuracy") == (0.75, 4)
    assert run.of("router_accuracy_macro") == (0.5, 4)
    assert run.of("router_accuracy", eval_task="x") == (1.0, 3)
    assert run.of("router_accuracy", eval_task="y") == (0.0, 1)
    assert run.of("routed") == (pytest.approx((1 / 3 + 1) / 2), 4)
    assert run.of("routed_micro") == (0.5, 4)
    assert run.of("stray_answered") == (1.0, 1)
    assert ("stray_answered", "b", "", "eval") not in run.values  # nothing is misrouted


@pytest.fixture
def small(monkeypatch):
    """So few texts of a label make a frame that the small stream has enough."""
    monkeypatch.setattr(routing, "PER_FRAME", 4)


def test_label_splits_are_of_one_label_each_and_hold_no_text_twice(stream, small):
    parts = routing.label_splits(stream)
    labels = sum(len(data.task.label_names) for data in stream)
    assert {len(part) for part in parts} == {routing.PER_FRAME} and len(parts) >= labels
    texts = [text for part in parts for text in part]
    assert len(set(texts)) == len(texts)
    for part in parts:  # every generated text names its class and its task
        words = [{w for w in text.split() if "class" in w or w.endswith("word")} for text in part]
        assert all(each == words[0] for each in words)


def test_a_router_is_timed_from_an_empty_cache():
    class Backbone:
        forgotten = 0

        def forget(self):
            self.forgotten += 1

    backbone = Backbone()
    assert 0.02 <= routing.timed(backbone, time.sleep, 0.02) < 1
    assert backbone.forgotten == 1


def test_costs_have_a_line_for_each_router_and_number_of_frames(stream, model_dirs, small, capsys):
    backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
    stack = SkillStack(backbone)  # no frame, so arrow is not measured
    parts = routing.label_splits(stream)
    table = routing.measure_cost(["hybrid_svm", "arrow"], stack, parts, parts[0][:4], most=5)
    assert table[["router", "frames"]].to_numpy().tolist() == [["hybrid_svm", 2], ["hybrid_svm", 4]]
    assert (table[["fit_seconds", "predict_ms"]] > 0).all(axis=None)
    assert "4 frames: " in capsys.readouterr().out


def test_attacks_are_on_the_same_texts_and_nothing_held_out_is_learned(stream):
    asked, learned = routing.attacks(stream, 42), routing.routing_texts(stream, 42)
    assert list(asked["as streamed"]) == ["normal", "rewritten", "rewritten, held out",
                                          "keywords", "keywords, held out"]  # fmt: skip
    tasks = {tuple(table["task"]) for conditions in asked.values() for table in conditions.values()}
    assert len(tasks) == 1
    evaluated = {text for data in stream for text in data.texts("eval")}
    assert set(asked["as streamed"]["normal"]["text"]) == evaluated
    assert not set(learned["as streamed"]["plain"]["text"]) & evaluated
    assert set(learned["formatted"]) == {"plain", "format augmented"}


def test_examples_are_one_short_text_in_every_condition(stream):
    asked = routing.attacks(stream, 42)["as streamed"]
    table = routing.examples(asked, width=60)
    assert list(table.index) == list(asked) and list(table) == ["task", "text"]
    assert table["task"].nunique() == 1 and table["text"].str.len().max() <= 60
    lengths = asked["normal"]["text"].str.len()
    row = asked["normal"].iloc[lengths.where(lengths >= 20, np.inf).argmin()]
    assert row["text"].startswith(table.loc["normal", "text"].removesuffix(" …"))


def test_how_often_an_attack_decides_by_hand():
    attacked = pd.DataFrame({"text": list("1234"), "task": list("xxxy"), "wears": list("yyyx")})
    keywords = attacked.rename(columns={"wears": "trap"}).assign(trap=list("yzzz"))
    asked = {"s": {"rewritten": attacked, "keywords": keywords}}
    probe = pd.DataFrame({"task": list("xxxy") * 2, "frame": list("yyxy") * 2})
    probe = probe.assign(router="a", setting="s", condition=["rewritten"] * 4 + ["keywords"] * 4)
    run = Kept()
    routing.record_attacks(run, probe, asked)
    on = {"split": "s: rewritten"}
    assert run.of("router_accuracy", **on) == (0.5, 4)
    assert run.of("router_accuracy_macro", **on) == (pytest.approx((1 / 3 + 1) / 2), 4)
    assert run.of("wears_rate", **on) == (0.5, 4)
    assert run.of("trap_rate", split="s: keywords") == (0.25, 4)
    assert ("trap_rate", "a", "", "s: rewritten") not in run.values
