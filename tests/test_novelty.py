from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_gate import SIZE, StandIn, texts

from skillstack_helpers.lab import novelty
from skillstack_helpers.reuse import NOBODY
from skillstack_helpers.routers import GateRouter
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task


class Backbone(StandIn):
    """`StandIn` with embeddings; counts how often a text is run."""

    def __init__(self):
        self.ran = []

    def pooled(self, asked, max_length, first):
        self.ran += asked
        return super().pooled(asked, max_length, first)

    def embed(self, asked, max_length=160):
        return super().pooled(asked, max_length, 1)


class Data:
    """The part of `TaskData` that is read; the first words of a text are its task's name."""

    def __init__(self, name, router=48, asked=24):
        self.name, self._parts = name, {"router": (0, router), "eval": (1000, 1000 + asked)}

    def texts(self, split):
        return texts(self.name, *self._parts[split])


@pytest.fixture
def stream():
    return [Data(name) for name in ("alpha", "beta", "gamma", "delta")]


@pytest.fixture(scope="module")
def stream_of_tasks(data_dir):
    return [
        load_task(name, 8, 12, 8, seed=0, source="folder", data_dir=data_dir)
        for name in ("imdb", "agnews", "qqp")
    ]


@pytest.fixture
def grown(backbone, config, stream_of_tasks):
    stack = SkillStack(backbone)
    for data in stream_of_tasks:
        stack.grow(data, config)
    return stack, stream_of_tasks


def test_no_text_is_run_twice(stream):
    backbone = Backbone()
    once = novelty.Once(backbone)
    first = once.pooled(["a 1", "a 2", "a 1"], 160, 1)
    again = once.pooled(["a 2", "b 1"], 160, 1)
    assert backbone.ran == ["a 1", "a 2", "b 1"] and (again[0] == first[1]).all()
    novelty.leave_one_out(stream, once)
    novelty.groups(stream, once, sizes=(1, 4), draws=3)
    assert len(backbone.ran) == len(set(backbone.ran))


def test_judged_by_hand():
    known = pd.DataFrame({"s": np.arange(20.0)})
    novel = pd.DataFrame({"s": [5.0, 18.5, 30.0, 40.0]})
    row = novelty.judged(known, novel, pd.Series({"s": 17.5})).iloc[0]
    # 5 beats 5.5 of 20 known ones (ties count half), 18.5 beats 19, the others all.
    assert row["auroc"] == pytest.approx((5.5 + 19 + 20 + 20) / 80)
    # The 95 % quantile of the known is 18.05, which one novel text does not pass.
    assert row["fpr95"] == 0.25
    assert row["false_novel"] == 0.1 and row["detected"] == 0.75


def test_every_left_out_task_is_judged_by_every_score(stream):
    found = novelty.leave_one_out(stream, novelty.Once(Backbone()))
    assert set(found["task"]) == {d.name for d in stream}
    assert found.groupby("task")["score"].nunique().eq(found["score"].nunique()).all()
    assert found[["auroc", "fpr95", "false_novel", "detected"]].stack().between(0, 1).all()
    mean = found.groupby("score")["auroc"].mean()
    assert mean["p-value"] > 0.95 and mean["Mahalanobis"] > 0.95  # the topics lie far apart


def test_groups_find_more_the_larger_they_are(stream):
    found = novelty.groups(stream, novelty.Once(Backbone()), sizes=(1, 8), draws=20)
    mean = found.groupby(["test", "texts"])[["false_novel", "detected"]].mean()
    assert mean.loc[("together", 8), "detected"] == 1.0
    assert (mean["false_novel"] <= 0.2).all()
    assert set(found["test"]) == {"together", "Simes", "martingale"}


def test_the_published_confidence_slides_and_the_p_value_does_not():
    parts = {f"topic{k}": texts(f"topic{k}", 0, 90) for k in range(16)}
    table = novelty.slide(parts, (2, 4, 8, 16), novelty.Once(Backbone()))
    assert (np.diff(table["confidence"]) < 0).all()
    most = 1 / (1 + (table["size"] - 1) * np.exp(-2))  # one cosine 1, all others -1
    assert (table["confidence"] <= most + 1e-6).all()
    assert table.set_index("size")["reused"].loc[16] == 0
    assert (table["false_novel"] <= 0.1).all()
    assert list(table["n"]) == [60, 120, 240, 480]
    for rule in ("softmax", "entropy", "margin"):
        assert (table[f"{rule}_adapted"] <= 0.25).all()  # asked for: 0.05, of 30 texts and more
        assert table[f"{rule}_fixed"].iloc[0] == table[f"{rule}_adapted"].iloc[0]
        assert table[f"{rule}_detected"].iloc[:-1].between(0, 1).all()
        assert np.isnan(table[f"{rule}_detected"].iloc[-1])  # nothing is unknown any more
    assert table["softmax_fixed"].iloc[-1] == 1.0  # a kept threshold breaks
    assert table["detected"].iloc[0] > 0.9


def test_doubts_by_hand():
    found = novelty.doubts(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert found["softmax"].tolist() == [-0.5, -1.0]
    assert found["margin"].tolist() == [0.0, -1.0]
    assert found["entropy"] == pytest.approx([np.log(2) / np.log(3), 0.0])


def test_sketches_keep_the_angles_of_gradients(backbone, config):
    asked = ["good class1", "bad of the and a class0 word", "good", "class2 a b c", "the"]
    found = novelty.gradient_sketches(backbone, asked, config, width=4096)
    alone = novelty.gradient_sketches(backbone, asked[1:2], config, width=4096)
    np.testing.assert_allclose(found[1], alone[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    learned = [p for name, p in backbone.lora_parameters.items() if ".lora_B." in name]
    assert not any(p.requires_grad for p in learned)
    torch.manual_seed(0)  # the same draws in the same order
    backbone.reset_lora()
    size = sum(p.numel() for p in learned)
    torch.randint(4096, (size,)), torch.randint(2, (size,))
    readout, whole = torch.randn(backbone.hidden_size), []
    for parameter in learned:
        parameter.requires_grad_(True)
    for text in asked:
        ids = torch.tensor(backbone.encode([text], config.max_length)[0].astype(int))[None]
        value = backbone.features(ids, torch.ones_like(ids))[0] @ readout
        gradients = torch.autograd.grad(value, learned)
        whole.append(torch.cat([g.flatten() for g in gradients]).numpy())
    for parameter in learned:
        parameter.requires_grad_(False)
    whole = np.array(whole) / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, whole @ whole.T, atol=0.1)


def test_a_bandit_is_a_ridge_regression_a_frame_and_learns_whom_to_ask():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    right = np.column_stack([features[:, 0] > 0, features[:, 0] <= 0])
    picks, weights = novelty.bandit(features, right, explore=0.5)
    for k in range(2):
        x, y = features[picks == k], right[picks == k, k]
        expected = np.linalg.solve(np.eye(4) + x.T @ x, x.T @ y)
        np.testing.assert_allclose(weights[k], expected, atol=1e-9)
    answered = right[np.arange(300), picks]
    assert answered[:20].mean() < 0.9 < answered[-100:].mean()


def test_feedback_knows_no_task_and_is_measured_beside_those_who_do(grown):
    stack, data = grown
    gate = GateRouter(stack.backbone, max_length=32)
    for one in data:
        gate.partial_fit(one.texts("router"), [one.name] * len(one.router))
    table, said = novelty.feedback(stack, data, gate, block=10)
    assert list(table["texts"]) == [10, 20, 30, 36] and table["right"].between(0, 1).all()
    own = [(frame.metrics["accuracy"], frame.metrics["n"]) for frame in stack.frames]
    assert said["told"] == pytest.approx(np.dot(*np.array(own).T) / sum(n for _, n in own))
    assert set(said) == {"bandit", "gate", "told", "any"}


def test_odd_batches(stream_of_tasks):
    data = stream_of_tasks[0]
    batches = novelty.odd(data)
    assert batches["the same again"] is data
    assert set(batches["one class"].train["label"]) == {0}
    assert batches["16 rows"].train.groupby("label").size().max() <= 8
    assert all(len(text.split()) == 1 for text in batches["texts of one word"].train["text"])
    german = batches["German"]
    assert not set(german.texts("train")) & set(data.texts("train"))
    assert (german.train["label"] == data.train["label"]).all()
    mixed = batches["labels shuffled"].router["label"]
    assert sorted(mixed) == sorted(data.router["label"]) and mixed.ne(data.router["label"]).any()


def test_drift_counts_what_was_sent_elsewhere(stream):
    table = novelty.drift(stream, ["gate", "hybrid_svm"], novelty.Once(Backbone()))
    assert list(table["tasks"]) == [3, 4, 3, 4] and list(table["n"]) == [48, 72] * 2
    assert (table["moved_right"] <= table["moved"]).all()
    first = novelty.drift(stream, ["gate"], novelty.Once(Backbone()), root_first=True)
    assert table["right"].between(0.9, 1).all() and first["right"].between(0, 1).all()
    assert first["moved"].max() <= 0.1  # but for texts that no frame accepted
    assert SIZE == 8


def test_batches_share_no_row_and_have_every_label(data_dir):
    data = load_task("agnews", 8, 24, 4, seed=0, source="folder", data_dir=data_dir)
    parts = novelty.in_parts(data, 2)
    for split in ("train", "router"):
        texts = [text for part in parts for text in part.texts(split)]
        assert sorted(texts) == sorted(data.texts(split))
        for part in parts:
            assert np.bincount(part.labels(split)).tolist() == [len(part.labels(split)) // 4] * 4
    assert all(part.eval is data.eval for part in parts)


def test_a_loop_is_judged_on_what_it_answers_and_leaves():
    task = SimpleNamespace(name="a", task=SimpleNamespace(label_names=("x", "y")))
    task.texts, task.labels = (lambda split: ["1", "2", "3"]), (lambda split: np.array([0, 1, 1]))
    said = pd.DataFrame({"label_name": ["x", "x", NOBODY]})
    table = novelty.judge(SimpleNamespace(answer=lambda texts: said), [task])
    assert table.loc["a"].to_list() == pytest.approx([1 / 3, 1 / 3, 3])
