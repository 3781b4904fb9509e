"""The rule: what it drops, what it merges, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from test_compression import TASKS, grown, load_rows, routing

from skillstack_helpers import SkillStackError, pruning
from skillstack_helpers.answers import Answers
from skillstack_helpers.compression import int8, merge
from skillstack_helpers.pruning import admit, paired_loss, prune
from skillstack_helpers.routers import HybridSVMRouter
from skillstack_helpers.stack import SkillStack


@pytest.fixture(scope="module")
def rows(data_dir):
    return load_rows(data_dir)


@pytest.fixture(scope="module")
def stack(model_dirs, rows):
    return grown(model_dirs["bert"], rows)


@pytest.fixture
def evidence(rows):
    router = HybridSVMRouter().fit(*routing(rows))
    choice = Answers.of(rows, "router", slice(0, 20))
    return router, choice, Answers.of(rows, "router", slice(20, None))


def test_paired_loss_by_hand():
    tasks = np.array(["a"] * 8 + ["b"] * 4, dtype=object)
    before = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0], dtype=bool)
    after = np.array([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0], dtype=bool)
    touched = tasks == "a"
    loss = paired_loss(before, after, tasks, touched)
    assert (loss.losses, loss.gains) == (2, 1)
    assert loss.total == pytest.approx((2 - 1) / 10)
    assert loss.variance == pytest.approx((2 + 1 + 1 - 1 / 10) / 100)
    assert loss.upper(2, 0.5) == pytest.approx(0.05)  # the median: no margin
    assert loss.upper(2, 0.95) == pytest.approx(0.05 + 1.6448536 * 0.039**0.5 / 2)
    nothing = paired_loss(before, before, tasks, np.zeros(12, bool))
    assert nothing == (0, 0, 0, 0)
    quiet = paired_loss(before, before, tasks, touched)
    assert quiet.total == 0 and quiet.upper(2, 0.95) > 0  # no loss seen is no proof


def test_no_frame_is_asked_twice_about_a_text(stack, rows, evidence, monkeypatch):
    asked = []
    predict = SkillStack.predict

    def counting(self, texts, frame, head=None):
        names = [frame] * len(texts) if isinstance(frame, str) else frame
        asked.extend(zip(texts, names, strict=True))
        return predict(self, texts, frame, head)

    monkeypatch.setattr(SkillStack, "predict", counting)
    prune(stack, *evidence, max_loss_pp=100, merge_by=None)
    assert asked and len(set(asked)) == len(asked)
    # a frame that does not know a task's labels is never asked about it
    assert not [1 for text, frame in asked if "agnewsword" in text and frame != "agnews"]


def test_prune_with_any_loss_allowed_leaves_one_frame_a_family(stack, evidence, tmp_path):
    small = prune(stack, *evidence, max_loss_pp=100)
    kept = [f.name for f in small.frames]
    assert len(kept) == 3 and {"qqp", "agnews"} < set(kept)
    kinds = [decision["kind"] for decision in small.decisions]
    assert kinds == ["reuse", "reuse", "keep", "keep", "keep"]
    assert small.decisions[-1] == {
        "kind": "keep",
        "frames": ["agnews"],
        "reason": "no other frame has these labels",
    }
    first = small.decisions[0]
    assert first["accepted"] and first["rows"] == 100 and first["tasks"] == 5
    assert first["loss_pp"] <= first["upper_pp"] <= 100
    small.save_pretrained(tmp_path / "small")
    again = SkillStack.from_pretrained(tmp_path / "small", stack.backbone)
    assert again.decisions == small.decisions


def test_prune_drops_nothing_without_evidence(stack, evidence):
    """Twenty rows a task cannot show a loss below a tenth of a point; nothing is risked."""
    small = prune(stack, *evidence, max_loss_pp=0.1)
    tried = [d for d in small.decisions if "by" in d]
    refused = [d for d in tried if d["kind"] == "keep"]
    assert refused and all(d["upper_pp"] > 0.1 and not d["accepted"] for d in refused)
    assert all(d["upper_pp"] <= 0.1 for d in tried if d["kind"] != "keep")
    wide = prune(stack, *evidence, max_loss_pp=0.1, confidence=1 - 1e-9)
    assert [f.name for f in wide.frames] == list(TASKS) and not wide.dropped


def test_the_bound_is_kept_where_substitutes_are_bad(stack, rows, evidence):
    """Heads turned round: every frame answers the opposite of its siblings."""
    turned = stack["yelp"].weights()
    head = {key: tensor.flip(0).contiguous() for key, tensor in turned.head.items()}
    frame = dataclasses.replace(
        stack["yelp"], _weights=turned._replace(head=head), folder=None, sha256={}
    )
    other = stack.copy([frame if f.name == "yelp" else f for f in stack.frames])
    held_back = evidence[2]
    router = evidence[0]
    small = prune(other, *evidence, max_loss_pp=5)
    picks = router.predict(held_back.texts)
    before = held_back.accuracy(held_back.right(other, picks)).mean()
    after = held_back.accuracy(held_back.right(small, picks)).mean()
    assert before - after <= 0.05
    assert small["yelp"].name != "imdb" or before <= after


def test_bounds_add_up_over_decisions(stack, evidence):
    small = prune(stack, *evidence, max_loss_pp=100)
    steps = [d for d in small.decisions if d["kind"] == "reuse"]
    assert sum(d["total"] for d in steps) / 5 * 100 == pytest.approx(steps[-1]["loss_pp"])
    # a second call starts from what the first one spent
    again = prune(small, *evidence, max_loss_pp=100)
    assert [f.name for f in again.frames] == [f.name for f in small.frames]
    rule = pruning._Rule(small, *evidence, 100, 0.95)
    assert rule.spent.total == pytest.approx(sum(d["total"] for d in steps))
    # what was refused was not spent, and does not stand in the way of a later call
    strict = prune(stack, *evidence, max_loss_pp=0.0, confidence=1 - 1e-9)
    assert any(d["kind"] == "keep" and d.get("total") for d in strict.decisions)
    assert pruning._Rule(strict, *evidence, 100, 0.95).spent == (0, 0, 0, 0)
    later = prune(strict, *evidence, max_loss_pp=100)
    assert [f.name for f in later.frames] == [f.name for f in small.frames]


def test_admit_one_frame_after_another(stack, rows, evidence):
    online = SkillStack(stack.backbone)
    for i, frame in enumerate(stack.frames):
        router = HybridSVMRouter().fit(*routing(rows[: i + 1]))
        online = admit(online, frame, router, *evidence[1:], max_loss_pp=100)
    assert len(online.frames) == 3
    assert set(online.dropped) | {f.name for f in online.frames} == set(TASKS)
    assert [d["tasks"] for d in online.decisions if d["kind"] == "reuse"] == [2, 4]
    with pytest.raises(SkillStackError, match="'imdb' is already in the stack"):
        admit(online, stack["imdb"], *evidence)
    with pytest.raises(SkillStackError, match="its parent 'agnews' is unknown"):
        orphan = dataclasses.replace(stack["qqp"], name="late", parent="agnews")
        admit(SkillStack(stack.backbone), orphan, *evidence)


def test_the_rule_refuses_bad_input(stack, rows, evidence):
    router, choice, _ = evidence
    with pytest.raises(SkillStackError, match="confidence must be between"):
        prune(stack, *evidence, confidence=1.0)
    with pytest.raises(SkillStackError, match="max_loss_pp must not be negative"):
        prune(stack, *evidence, max_loss_pp=-1)
    with pytest.raises(SkillStackError, match="unknown merge 'mean'"):
        prune(stack, *evidence, merge_by="mean")
    with pytest.raises(SkillStackError, match="held_back has no rows of task 'agnews'"):
        prune(stack, router, choice, Answers.of(rows[:4], "router"))


def test_a_frame_whose_adapter_others_read_says_so_where_it_is_kept(stack, evidence):
    merged = merge(stack, ["imdb", "yelp"])
    small = prune(merged, *evidence, max_loss_pp=0.0, merge_by=None)
    why = {d["frames"][0]: d for d in small.decisions if d["kind"] == "keep"}
    assert why["imdb"]["reason"] == "frame 'imdb' holds the adapter of yelp"
    assert why["qqp"]["reason"] == "no other frame has these labels"
    assert not why["yelp"]["accepted"]


def test_a_pruned_stack_may_be_packed(stack, evidence):
    small = int8(prune(stack, *evidence, max_loss_pp=100))
    assert all(frame.storage["format"] == "int8" for frame in small.frames)
    kinds = [decision["kind"] for decision in small.decisions]
    assert kinds == ["reuse", "reuse", "keep", "keep", "keep", "int8"]
