"""Choosing what a frame starts from: the criteria by hand, the tree, and the second look."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import edit_json
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from test_compression import TASKS, logits, routing

from skillstack_helpers import SkillStackError
from skillstack_helpers.answers import Answers
from skillstack_helpers.compression import drop, undo
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.frames import weights_digest
from skillstack_helpers.heads import instruction
from skillstack_helpers.lab import views
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.parents import (
    BEST,
    CRITERIA,
    best_parent,
    leep,
    logme,
    nearest_accuracy,
    parent_scores,
    pick,
)
from skillstack_helpers.pruning import _Rule, prune, second_look
from skillstack_helpers.routers import HybridSVMRouter
from skillstack_helpers.stack import LATEST, SkillStack
from skillstack_helpers.tasks import load_task

CONFIG = TrainingConfig(epochs=4, lr=1e-2, batch_size=4, lora_r=4, max_length=32, seed=3)


@pytest.fixture(scope="module")
def rows(data_dir):
    return [load_task(n, 32, 40, 8, seed=0, source="folder", data_dir=data_dir) for n in TASKS]


@pytest.fixture(scope="module")
def grown(model_dirs, rows, tmp_path_factory):
    """A saved stack whose root answers the opposite of what is right."""
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    for data in rows:
        stack.grow(data, CONFIG)
    weights = stack["imdb"].weights()
    head = {key: tensor.flip(0).contiguous() for key, tensor in weights.head.items()}
    stack.frames[0] = dataclasses.replace(stack["imdb"], _weights=weights._replace(head=head))
    stack.save_pretrained(tmp_path_factory.mktemp("stacks") / "stack")
    return stack


@pytest.fixture
def stack(grown):
    return grown.copy()


@pytest.fixture(scope="module")
def evidence(rows):
    router = HybridSVMRouter().fit(*routing(rows))
    return router, Answers.of(rows, "router", slice(20, None))


# ------------------------------------------------------------------ the criteria


def test_leep_by_hand():
    probabilities = [[0.8, 0.2], [0.4, 0.6]]
    # P(label, class) = [[0.4, 0.1], [0.2, 0.3]]; P(label | class) = [[2/3, 1/4], [1/3, 3/4]]
    first, second = 0.8 * 2 / 3 + 0.2 / 4, 0.4 / 3 + 0.6 * 3 / 4
    assert leep(probabilities, [0, 1]) == pytest.approx(np.log([first, second]).mean())
    assert leep(np.eye(3)[[2, 0, 2]], [5, 7, 5]) == 0  # a head that tells the labels apart
    assert leep(np.full((4, 2), 0.5), [0, 0, 1, 1]) == pytest.approx(np.log(0.5))


@pytest.mark.parametrize("shape", [(12, 4), (30, 40)])
def test_logme_is_the_largest_marginal_likelihood(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape)
    labels = (features[:, 0] + 0.7 * rng.normal(size=len(features)) > 0).astype(int)

    def negative(log, target):  # y ~ N(0, F F' / alpha + I / beta)
        alpha, beta = np.exp(log)
        covariance = features @ features.T / alpha + np.eye(len(features)) / beta
        return -multivariate_normal(np.zeros(len(features)), covariance).logpdf(target)

    best = [
        -minimize(negative, [0.0, 0.0], (labels == k).astype(float), "Nelder-Mead").fun
        for k in (0, 1)
    ]
    assert logme(features, labels) == pytest.approx(np.mean(best) / len(features), abs=1e-4)
    assert logme(features, labels) > logme(rng.normal(size=shape), labels)


def test_nearest_rows_by_hand():
    features = np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3.0]])
    assert nearest_accuracy(features, [0, 0, 1, 1], k=1) == 1
    assert nearest_accuracy(features, [0, 0, 1, 0], k=1) == 0.5  # the last two name each other
    # with k = 2 the votes of rows 2 and 3 are one to one, and the nearer row decides
    assert nearest_accuracy(features, [0, 0, 1, 1], k=2) == 1
    assert nearest_accuracy(features, [0, 0, 1, 1], k=99) == 0  # two others against one


# ------------------------------------------------------------------ scores of frames


def test_scores_of_frames(stack, rows):
    data = rows[3]  # sst2
    scores = parent_scores(stack, data)
    assert list(scores.index) == [frame.name for frame in stack.frames]
    assert list(scores.columns) == list(CRITERIA)
    texts, labels = data.texts("router"), data.labels("router")
    for name in ("imdb", "yelp", "sst2"):
        asked = stack.predict(texts, name)
        assert scores.loc[name, "accuracy"] == (asked.labels == labels).mean()
        expected = leep(asked.probabilities, labels)
        assert scores.loc[name, "leep"] == pytest.approx(expected, rel=1e-4)
    assert scores.loc[["qqp", "agnews"], "accuracy"].isna().all()
    assert scores.drop(columns="accuracy").notna().all(axis=None)
    assert (scores["leep"] <= 0).all() and scores["knn"].between(0, 1).all()
    for by in CRITERIA:
        assert best_parent(stack, data, by) == scores[by].idxmax()


def test_accuracy_compares_label_names(stack, rows):
    weights = stack["yelp"].weights()
    head = {key: tensor.flip(0).contiguous() for key, tensor in weights.head.items()}
    other = dataclasses.replace(
        stack["yelp"],
        label_names=stack["yelp"].label_names[::-1],
        _weights=weights._replace(head=head),
    )
    both = stack.copy([stack["yelp"], dataclasses.replace(other, name="turned")])
    accuracy = parent_scores(both, rows[1])["accuracy"]
    assert accuracy["turned"] == accuracy["yelp"] > 0.5
    assert pick(parent_scores(both, rows[4]), "accuracy") == best_parent(both, rows[4], "leep")


def test_scores_above_a_trunk_and_of_a_frame_that_writes(decoders, rows):
    stack = SkillStack(load_backbone(str(decoders["llama"]), device="cpu"))
    config = dataclasses.replace(CONFIG, epochs=1, max_length=64, first_adapted_layer=1)
    stack.grow(rows[0], config, instruction(rows[0].task))
    stack.grow(rows[4], config)
    scores = parent_scores(stack, rows[0])
    labels = stack.predict(rows[0].texts("router"), "imdb").labels
    assert scores.loc["imdb", "accuracy"] == (labels == rows[0].labels("router")).mean()
    assert scores.drop(columns="accuracy").notna().all(axis=None)


def test_scores_refuse_bad_input(stack, rows):
    empty = SkillStack(stack.backbone)
    assert best_parent(empty, rows[0]) is None
    with pytest.raises(SkillStackError, match="an empty stack has no frame"):
        parent_scores(empty, rows[0])
    with pytest.raises(SkillStackError, match="unknown criterion 'nearest'"):
        best_parent(stack, rows[0], by="nearest")
    with pytest.raises(SkillStackError, match="imdb, router rows: there are none .n_router"):
        parent_scores(stack, dataclasses.replace(rows[0], router=rows[0].router[:0]))


# ------------------------------------------------------------------ growing a tree


def test_the_latest_frame_is_the_default_parent(stack, data_dir):
    new = load_task("rotten_tomatoes", 4, 4, 4, 0, "folder", data_dir)
    one, two, three = stack.copy(), stack.copy(), stack.copy()
    frames = [
        one.grow(new, CONFIG),
        two.grow(new, CONFIG, parent="agnews"),
        three.grow(new, CONFIG, parent=LATEST),
    ]
    assert {frame.parent for frame in frames} == {"agnews"}
    assert len({weights_digest(frame) for frame in frames}) == 1


def test_a_frame_starts_where_it_is_told(stack, rows):
    still = dataclasses.replace(CONFIG, lr=1e-9, epochs=1)  # hardly moves
    lora = {}
    for parent in ("imdb", "qqp", None):
        frame = stack.copy().grow(rows[0], still, parent=parent, name="imdb-2")
        assert (frame.name, frame.task, frame.parent) == ("imdb-2", "imdb", parent)
        lora[parent] = frame.weights().lora
    for parent in ("imdb", "qqp"):
        for name, tensor in stack[parent].weights().lora.items():
            np.testing.assert_allclose(lora[parent][name], tensor, atol=1e-6)
    assert all(abs(t).max() < 1e-6 for name, t in lora[None].items() if ".lora_B." in name)
    small = drop(stack, "imdb", to="yelp")
    assert small.grow(rows[0], still, parent="imdb", name="imdb-2").parent == "yelp"


def test_growing_refuses_before_any_work(stack, rows, monkeypatch):
    monkeypatch.setattr(SkillStack, "_use_slot", None)  # nothing may get so far
    with pytest.raises(SkillStackError, match="unknown frame 'imbd'.*imdb"):
        stack.grow(rows[0], CONFIG, parent="imbd", name="imdb-2")
    with pytest.raises(SkillStackError, match="frame 'yelp' is already in the stack"):
        stack.grow(rows[0], CONFIG, name="yelp")
    with pytest.raises(SkillStackError, match="frame name 'imdb 2' must match"):
        stack.grow(rows[0], CONFIG, name="imdb 2")
    assert len(stack) == 5


def test_a_tree_is_saved_opened_and_adopted(stack, rows, tmp_path):
    stack.grow(rows[1], CONFIG, parent="imdb", name="second")
    stack.grow(rows[1], CONFIG, parent=None, name="alone")
    stack.grow(rows[1], CONFIG, parent="imdb", name="another")
    stack.save_pretrained(tmp_path / "tree")
    again = SkillStack.from_pretrained(tmp_path / "tree", stack.backbone)
    again.verify()
    names = [frame.name for frame in stack.frames]
    assert [frame.name for frame in again.frames] == names
    assert [frame.name for frame in again.chain()] == ["another", "imdb"]
    for lost in (8, 3, 2):  # killed before it could list what it had written
        edit_json(
            tmp_path / "tree" / "stack.json",
            lambda f, n=lost: f.update(frames=f["frames"][:-n]),
        )
        found = SkillStack.from_pretrained(tmp_path / "tree", stack.backbone)
        assert [frame.name for frame in found.frames] == names
        found.save_pretrained(tmp_path / "tree")


# ------------------------------------------------------------------ the second look


def test_a_second_look_answers_better_and_can_be_undone(grown, rows, evidence, tmp_path):
    router, held_back = evidence
    new = second_look(grown, router, rows[0], CONFIG, held_back, parent=BEST, by="knn")
    assert [f.name for f in new.frames] == ["yelp", "qqp", "sst2", "agnews", "imdb-2"]
    (decision,) = new.decisions
    scores = parent_scores(grown, rows[0])
    assert decision["kind"] == "second_look" and decision["accepted"]
    assert decision["parent"] == new["imdb-2"].parent == pick(scores, "knn")
    assert decision["scores"]["knn"] == scores["knn"].to_dict()
    assert decision["frames"] == ["imdb"] and decision["by"] == "imdb-2"
    assert decision["upper_pp"] <= 0 and decision["gains"] > decision["losses"]
    picks = router.predict(held_back.texts)
    before, after = (held_back.right(stack, picks).mean() for stack in (grown, new))
    assert after > before
    folder = new.save_pretrained(tmp_path / "new")
    again = SkillStack.from_pretrained(folder, grown.backbone)
    again.verify()
    json.loads((folder / "stack.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert again.decisions == new.decisions and again["imdb"].name == "imdb-2"
    for data in rows[1:]:
        assert logits(again, rows, data.name) == grown[data.name].metrics["logits_sha256"]
    assert logits(again, rows, "imdb") == new["imdb-2"].metrics["logits_sha256"]
    back = undo(again, "imdb")
    back.save_pretrained(tmp_path / "back")
    back = SkillStack.from_pretrained(tmp_path / "back", grown.backbone)
    back.verify()
    assert [f.name for f in back.frames] == [f.name for f in grown.frames]
    assert back["imdb-2"].name == "imdb" and back.decisions[0]["undone"]
    for data in rows:
        assert logits(back, rows, data.name) == logits(grown, rows, data.name)
    once_more = second_look(back, router, rows[0], CONFIG, held_back, parent="agnews")
    assert once_more["imdb"].name == "imdb-3" and "scores" not in once_more.decisions[-1]


def test_no_proof_no_new_frame(grown, rows, evidence):
    kept = second_look(grown, *evidence[:1], rows[1], CONFIG, evidence[1], parent=None)
    assert kept.frames == grown.frames and not kept.dropped and not grown.decisions
    (decision,) = kept.decisions
    assert decision["kind"] == "second_look" and not decision["accepted"]
    assert decision["parent"] is None and decision["by"] == "yelp-2" and decision["upper_pp"] > 0
    with pytest.raises(SkillStackError, match="no decision about frame 'yelp' can be undone"):
        undo(kept, "yelp")


def test_two_second_looks_go_back_together(grown, rows, evidence):
    router, held_back = evidence
    args = (router, rows[0], CONFIG, held_back)
    once = second_look(grown, *args)
    assert once.decisions[0]["parent"] == "agnews"  # the latest
    twice = second_look(once, *args, parent="sst2", max_loss_pp=100)
    assert twice["imdb"].name == twice["imdb-2"].name == "imdb-3"
    back = undo(twice, "imdb")
    assert [f.name for f in back.frames] == [f.name for f in grown.frames]
    assert {back[name].name for name in ("imdb", "imdb-2", "imdb-3")} == {"imdb"}


def test_a_later_frame_may_build_on_one_that_is_undone(grown, rows, evidence, data_dir, tmp_path):
    new = second_look(grown, evidence[0], rows[0], CONFIG, evidence[1], parent="yelp")
    more = load_task("rotten_tomatoes", 4, 4, 4, 0, "folder", data_dir)
    assert new.grow(more, CONFIG).parent == "imdb-2"
    back = undo(new, "imdb")
    back.save_pretrained(tmp_path / "back")
    again = SkillStack.from_pretrained(tmp_path / "back", grown.backbone)
    again.verify()
    assert [f.name for f in again.chain()] == ["rotten_tomatoes", "yelp", "imdb"]


def test_a_second_look_is_pruned_like_any_frame_and_its_gain_is_not_spent(grown, rows, evidence):
    router, held_back = evidence
    new = second_look(grown, router, rows[0], CONFIG, held_back, parent="yelp")
    assert new.decisions[0]["total"] < 0
    assert _Rule(new, router, held_back, held_back, 100, 0.95).spent == (0, 0, 0, 0)
    small = prune(new, router, held_back, held_back, max_loss_pp=100)
    sentiment = {small[name].name for name in ("imdb", "imdb-2", "yelp", "sst2")}
    assert len(sentiment) == 1 and len(small) == 3


def test_views_cope_with_a_tree(grown, rows, evidence):
    new = second_look(grown, evidence[0], rows[0], CONFIG, evidence[1], parent="yelp")
    table = views.chain_table(new)
    assert list(table.index) == ["imdb-2", "agnews", "sst2", "qqp", "yelp", "imdb"]
    assert table.loc["imdb", "task"] == "answered by imdb-2"
    for frame in new.frames:
        assert len(views.layer_norms(frame, views.parent_of(new, frame)))


def test_second_looks_that_are_refused_at_once(grown, rows, evidence, data_dir, monkeypatch):
    router, held_back = evidence
    monkeypatch.setattr(SkillStack, "grow", None)  # nothing may get so far
    with pytest.raises(SkillStackError, match="task 'rotten_tomatoes' has no frame yet"):
        more = load_task("rotten_tomatoes", 4, 4, 4, 0, "folder", data_dir)
        second_look(grown, router, more, CONFIG, held_back)
    with pytest.raises(SkillStackError, match="frame 'yelp' answers for 'imdb': undo that first"):
        second_look(drop(grown, "imdb", "yelp"), router, rows[0], CONFIG, held_back)
    with pytest.raises(SkillStackError, match="max_loss_pp must not be negative"):
        second_look(grown, router, rows[0], CONFIG, held_back, max_loss_pp=-1)
    with pytest.raises(SkillStackError, match="held_back has no rows of task 'agnews'"):
        second_look(grown, router, rows[0], CONFIG, Answers.of(rows[:4], "router"))
