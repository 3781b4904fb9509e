import dataclasses

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers.compression import undo
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.reuse import NOBODY, LearnerLoop, decide, spare
from skillstack_helpers.routers.gate import GateRouter
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task

LEARNS = TrainingConfig(epochs=4, lr=1e-2, batch_size=4, lora_r=4, max_length=32, seed=3)


@pytest.fixture(scope="module")
def tasks(data_dir):
    """Generated tasks whose words say the label: more rows than most tests need."""
    return {
        name: load_task(name, 16, 48, 16, seed=0, source="folder", data_dir=data_dir)
        for name in ("imdb", "yelp", "agnews", "qqp")
    }


@pytest.fixture(scope="module")
def grown(model_dirs, tasks):
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    gate = GateRouter(stack.backbone)
    for name in ("imdb", "agnews"):
        stack.grow(tasks[name], LEARNS)
        texts = tasks[name].texts("router")
        gate.partial_fit(texts, [name] * len(texts))
    return stack, gate


def shuffled(data, seed=0):
    """Its training and routing labels, in another order."""
    rng = np.random.default_rng(seed)
    parts = {s: getattr(data, s).copy() for s in ("train", "router")}
    for table in parts.values():
        table["label"] = rng.permutation(table["label"].to_numpy())
    return dataclasses.replace(data, **parts)


def test_a_task_whose_labels_nobody_knows_gets_a_frame_from_the_best_parent(grown, tasks):
    stack, gate = grown
    decision = decide(stack, tasks["qqp"], gate)
    assert decision.action in ("grow", "start") and "no frame has these labels" in decision.reason
    assert decision.frame == (
        decision.evidence["leep"].idxmax() if decision.action == "grow" else None
    )
    assert list(decision.evidence.index) == ["imdb", "agnews"]
    assert decision.evidence["alike"].between(0, 1).all()


def test_the_bound_decides_on_reuse(grown, tasks):
    stack, gate = grown
    again = tasks["imdb"]
    generous, strict = (decide(stack, again, gate, max_loss_pp=pp) for pp in (100.0, 0.0))
    assert generous.action == "reuse" and generous.frame == "imdb"
    assert strict.action != "reuse" and "'imdb' may lose" in strict.reason
    found = generous.evidence.loc["imdb"]
    assert found["loss_pp"] <= found["upper_pp"] and 0 <= found["p"] <= 1
    # Two candidates are tested at a level twice as strict, so the same frame's bound is higher.
    other = stack.copy()
    other.grow(tasks["yelp"], LEARNS)
    with_yelp = decide(other, again, gate, max_loss_pp=100.0).evidence
    assert with_yelp.loc["imdb", "upper_pp"] > found["upper_pp"]
    assert with_yelp.loc["imdb", "loss_pp"] == pytest.approx(found["loss_pp"], abs=20)
    assert np.isnan(with_yelp.loc["yelp", "alike"])  # the gate does not know it


def test_odd_tasks_get_a_decision_and_a_reason(grown, tasks):
    stack, gate = grown
    imdb = tasks["imdb"]
    one_class = dataclasses.replace(imdb, train=imdb.train[imdb.train["label"] == 0])
    decision = decide(stack, one_class, gate)
    assert decision.action == "grow" and "all training rows are 'negative'" in decision.reason
    few = dataclasses.replace(imdb, train=imdb.train[:4], router=imdb.router[:4])
    words = imdb.router.assign(text=[f"class{i % 2}" for i in range(len(imdb.router))])
    for odd in (few, shuffled(imdb), dataclasses.replace(imdb, router=words)):
        decision = decide(stack, odd, gate)
        assert decision.action in ("reuse", "grow", "start") and decision.reason
    assert decide(stack, shuffled(imdb), gate).action != "reuse"


def test_bad_input_is_one_line(grown, tasks, backbone):
    stack, gate = grown
    with pytest.raises(SkillStackError, match="confidence must be between 0 and 1, got 95"):
        decide(stack, tasks["imdb"], gate, confidence=95)
    with pytest.raises(SkillStackError, match="an empty stack has no frame to start from"):
        decide(SkillStack(backbone), tasks["imdb"], gate)


def test_the_loop_creates_knows_and_refuses(model_dirs, tasks):
    loop = LearnerLoop(load_backbone(str(model_dirs["bert"]), device="cpu"), LEARNS)
    assert loop.learn(tasks["imdb"]).action == "start"
    assert loop.learn(tasks["agnews"]).action in ("grow", "start")
    before = [frame.metrics["logits_sha256"] for frame in loop.stack.frames]
    returned = loop.learn(tasks["imdb"])
    assert returned.action == "known" and returned.frame == "skill1"
    assert [frame.metrics["logits_sha256"] for frame in loop.stack.frames] == before
    assert len(loop.decisions) == 3 and all(d.reason for d in loop.decisions)
    assert isinstance(returned.evidence, pd.DataFrame)
    said = loop.answer([*tasks["imdb"].texts("eval"), "?! ?! ?! ?! ?!"])
    assert said["frame"].iloc[:-1].isin(["skill1", "skill2", NOBODY]).all()
    assert (said["fallback"] == said["frame"].eq(NOBODY)).all()
    assert said.loc[said["fallback"], "label_name"].eq(NOBODY).all()


def test_a_reused_frame_answers_for_the_new_skill(model_dirs, tasks, tmp_path):
    loop = LearnerLoop(
        load_backbone(str(model_dirs["bert"]), device="cpu"), LEARNS, alpha=0.999, max_loss_pp=100.0
    )
    loop.learn(tasks["imdb"])
    decision = loop.learn(tasks["yelp"])
    assert decision.action == "reuse" and len(loop.stack.frames) == 1
    assert loop.stack["skill2"] is loop.stack["skill1"]
    assert list(loop.gate.classes_) == ["skill1", "skill2"]
    loop.stack.save_pretrained(tmp_path)
    again = SkillStack.from_pretrained(tmp_path, loop.stack.backbone)
    assert again["skill2"].name == "skill1"
    noted = again.decisions[-1]
    assert noted["kind"] == "never_created" and noted["by"] == "skill1" and noted["reason"]
    assert noted["upper_pp"] == pytest.approx(decision.evidence.loc["skill1", "upper_pp"])
    back = undo(again, "skill2")
    assert "skill2" not in back and "skill2" in again and back.decisions[-1]["undone"]
    with pytest.raises(SkillStackError, match="no decision about frame 'skill2'"):
        undo(back, "skill2")
    with pytest.raises(SkillStackError, match="frame 'skill1' is already in the stack"):
        spare(back, "skill1", decision)
    with pytest.raises(SkillStackError, match="the decision is to start, not to reuse"):
        spare(back, "skill3", loop.decisions[0])
