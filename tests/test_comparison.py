"""What notebooks 04 and 05 record of every method."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers import (
    Answers,
    Mixture,
    RunConfig,
    SkillStackError,
    TrainingConfig,
    baselines,
)
from skillstack_helpers.lab import comparison, predictions
from skillstack_helpers.lab.experiment import load_stream
from skillstack_helpers.lab.runs import Run
from skillstack_helpers.routers import make_router


class Kept:
    """A run that only keeps what is recorded."""

    def __init__(self, method="ewc", matrix=None):
        self.method, self.config, self._matrix = method, RunConfig(), matrix
        self.values, self.saved = {}, {}

    def matrix(self, stream):
        return self._matrix

    def record(self, metric, value, *, eval_task="", split="eval", **more):
        self.values[metric, eval_task] = value

    def value(self, metric, split="eval"):
        return self.values.get((metric, split), np.nan)

    def save(self, name, table):
        self.saved[name] = table


STREAM = [SimpleNamespace(name=name, eval=range(2)) for name in ("imdb", "agnews")]


def two_tasks():
    texts, tasks = ["good", "bad", "goal", "oil"], ["imdb", "imdb", "agnews", "agnews"]
    return Answers(texts, tasks, [1, 0, 1, 0], ["positive", "negative", "sports", "business"])


def test_what_the_backbone_cannot_do_is_left_out_unless_it_was_asked_for(capsys):
    def cannot():
        raise SkillStackError("is an encoder")

    learners = {"ewc": lambda: 1, "generative_replay": cannot}
    assert comparison.possible(learners, RunConfig()) == ["ewc"]
    assert capsys.readouterr().out == "generative replay is left out: is an encoder\n"
    assert comparison.possible(learners, RunConfig(methods="ewc")) == ["ewc"]
    with pytest.raises(SkillStackError, match="is an encoder"):
        comparison.possible(learners, RunConfig(methods="ewc,generative_replay"))


def test_only_what_is_needed_is_searched():
    config = RunConfig(olora_strength=0.5)
    assert comparison.given(["replay"], config) == {}
    found = comparison.given(["ewc_replay", "olora", "joint", "joint_wide"], config)
    assert found == {"ewc": None, "olora": 0.5, "joint_wide": None}


def test_the_best_strength_is_that_of_the_end_and_of_equals_the_first():
    run, grid = Kept(), {"ewc": [10, 100, 1000], "olora": [0.5]}
    for strength, learned, final in ((10, 0.9, 0.5), (100, 0.7, 0.6)):
        run.values["learned", f"router, ewc {strength}"] = learned
        run.values["validation", f"router, ewc {strength}"] = final
    found = comparison.searched(run, grid)
    assert found.to_numpy().tolist() == [["ewc", 10, 0.9, 0.5], ["ewc", 100, 0.7, 0.6]]
    assert comparison.best(found) == {"ewc": 100}
    tied = pd.concat([found, found.assign(strength=7)])
    assert comparison.best(tied.reset_index(drop=True)) == {"ewc": 100}


NAMES = {"imdb": ("negative", "positive"), "agnews": ("sports", "business", "world")}


def said(*rows, tasks=("imdb", "imdb", "agnews", "agnews"), labels=(1, 0, 0, 1)):
    """What two heads say of four texts: a row of probabilities each."""
    logits = np.full((len(rows), 2, 3), -np.inf, np.float32)
    logits[:, 0, :2] = [np.log(row[0]) for row in rows]
    logits[:, 1] = [np.log(row[1]) for row in rows]
    return predictions.Predictions(np.array(tasks, object), np.array(labels), logits, NAMES)


SAID = said(
    ((0.2, 0.8), (0.1, 0.8, 0.1)),  # positive: right
    ((0.3, 0.7), (0.5, 0.3, 0.2)),  # negative: wrong
    ((0.9, 0.1), (0.7, 0.2, 0.1)),  # sports: right
    ((0.9, 0.1), (0.6, 0.3, 0.1)),  # business: wrong
)


def test_accuracy_is_kept_told_the_task_routed_and_mixed():
    matrix = pd.DataFrame([[0.9, np.nan], [0.5, 0.8]], ["imdb", "agnews"], ["imdb", "agnews"])
    run = Kept(matrix=matrix)
    picked = np.array(["imdb", "imdb", "imdb", "agnews"], dtype=object)
    routed = np.array([[0.9, 0.1], [1, 0], [0.4, 0.6], [0, 1]])
    comparison.record_answers(run, STREAM, SAID, picked, routed, Mixture(NAMES, "own"))
    assert run.values == pytest.approx(
        {
            ("accuracy", "imdb"): 0.5, ("accuracy", "agnews"): 0.5,
            # Sports was sent to imdb, and cannot be right there; mixed, 0.6 * 0.7 > 0.4 * 0.9.
            ("routed", "imdb"): 0.5, ("routed", "agnews"): 0.0, ("routed", ""): 0.25,
            ("mixed", "imdb"): 0.5, ("mixed", "agnews"): 0.5, ("mixed", ""): 0.5,
            ("final", "imdb"): 0.5, ("final", "agnews"): 0.8, ("acc", ""): 0.65,
            ("bwt", ""): -0.4, ("forgetting", ""): 0.4,
        }
    )  # fmt: skip
    run = Kept("tfidf_union", matrix.assign(imdb=[np.nan, 0.5]))  # told nothing, all at once
    comparison.record_answers(run, STREAM, SAID, SAID.most_sure(), None, None)
    assert {metric for metric, _ in run.values} == {"routed", "accuracy"}
    assert list(run.saved) == ["matrix.csv"]


def test_label_sets_are_judged_by_the_thresholds_of_the_task():
    # P(true) is 0.9, 0.6, 0.3: with 1 - P up to 0.5 the first two labels are in their sets.
    logits = np.log(np.array([[[0.9, 0.1]], [[0.4, 0.6]], [[0.7, 0.3]]], np.float32))
    said = predictions.Predictions(
        np.array(["a"] * 3, object), np.array([0, 1, 1]), logits, {"a": ("x", "y")}
    )
    held, sizes = said.sets({"a": (0.1, 0.2, 0.5)}, coverage=0.75)
    assert held.tolist() == [True, True, False] and sizes.tolist() == [1, 1, 1]
    held, sizes = said.sets({"a": (0.1, 0.2, 0.5)}, coverage=0.9)  # too few for it: every label
    assert held.all() and sizes.tolist() == [2, 2, 2]


def test_held_back_rows_are_new(data_dir):
    config = RunConfig(preset="two_task", n_train=6, n_router=12, n_eval=8, n_held_back=10,
                       data_dir=str(data_dir), source="folder")  # fmt: skip
    stream = load_stream(config)
    rows = comparison.held_back(config, stream)
    assert list(rows.tasks) == ["imdb"] * 10 + ["agnews"] * 10
    known = {t for data in stream for s in ("train", "router", "eval") for t in data.texts(s)}
    assert not known & set(rows.texts)


def test_frames_worth_asking_are_the_family_and_what_the_router_leaves_open():
    names = {"imdb": ("no", "yes"), "sst2": ("yes", "no"), "agnews": ("sports", "world")}
    tasks = np.array(["imdb", "agnews", "agnews"], object)
    assert comparison.worth_asking(names, tasks).tolist() == [
        [True, True, False], [False, False, True], [False, False, True],
    ]  # fmt: skip
    routed = [[0.5, 0.0, 0.5], [0.0, 0.03, 0.97], [0.001, 0.004, 0.995], [0.001, 0.004, 0.995]]
    routes = pd.DataFrame(routed, columns=["P:imdb", "P:sst2", "P:agnews"])
    routes["frame"] = ["imdb", "agnews", "agnews", "sst2"]  # a walk may pick what is improbable
    tasks = np.append(tasks, "agnews")
    assert comparison.worth_asking(names, tasks, routes).tolist() == [
        [True, True, True], [True, True, True], [False, False, True], [False, True, True],
    ]  # fmt: skip


def test_predictions_are_kept_without_texts_and_read_back(tmp_path):
    run = Run(tmp_path, RunConfig(), "frames", "minilm")
    rows = two_tasks()
    rows.labels[:] = (1, 0, 0, 1)
    logits = SAID.logits.copy()
    logits[1, 1] = np.nan  # agnews was not asked about the second text
    asked = []
    how = (run, {"eval": rows, "router": rows}, NAMES)
    predictions.kept(*how, lambda split: asked.append(split) or logits)
    found = predictions.kept(*how, None)["eval"]  # read
    assert asked == ["eval", "router"] and found.label_names == NAMES
    table = pd.read_parquet(tmp_path / predictions.FILE)
    assert list(table)[:4] == ["split", "task", "label", "imdb:negative"] and "text" not in table
    assert (table.dtypes.iloc[3:] == np.float16).all()
    np.testing.assert_allclose(np.exp(found.logits[0, 0, :2]), [0.2, 0.8], atol=1e-3)
    assert np.isnan(found.logits[1, 1]).all() and np.isneginf(found.logits[0, 0, 2])
    assert found.right().tolist() == SAID.right().tolist() == [True, False, True, False]
    assert found.mean(found.right()).to_dict() == {"imdb": 0.5, "agnews": 0.5}
    # Of one classifier over all pairs the probabilities sum to 1 over all of them.
    union = predictions._table({"eval": rows}, NAMES, lambda split: SAID.logits, True)
    np.testing.assert_allclose(np.exp(union.iloc[:, 3:].astype(float)).sum(1), 1, atol=1e-2)


def test_forgetting_is_kept_with_what_was_learned():
    matrix = pd.DataFrame([[0.9, np.nan], [0.5, 0.8]], ["imdb", "agnews"], ["imdb", "agnews"])
    run = Kept(matrix=matrix)
    comparison.record_forgetting(run, STREAM)
    expected = {"acc": 0.65, "learned": 0.85, "bwt": -0.4, "final_drop": 0.4, "forgetting": 0.4}
    expected = {(metric, ""): value for metric, value in (expected | {"first_task": 0.5}).items()}
    assert run.values == pytest.approx(expected)


def test_costs_of_a_stack_are_those_of_its_weights(stack):
    frames = [frame.weights() for frame in stack.frames]
    lora = [sum(w.numel() for w in weights.lora.values()) for weights in frames]
    heads = [sum(w.numel() for w in weights.head.values()) for weights in frames]
    trained, size, seconds, updates = comparison.frame_costs(stack)
    assert trained == sum(lora) + sum(heads)
    assert size == sum(frame.nbytes for frame in stack.frames)
    assert updates == sum(len(frame.losses) for frame in stack.frames) and seconds > 0
    latest = baselines.Sequential.of(stack, TrainingConfig(lora_r=4))
    assert latest.trained_parameters == lora[-1] + sum(heads)
    assert (latest.seconds, latest.updates) == (seconds, updates)
    assert comparison.adapter_bytes(stack) == 4 * sum(lora)
    run = Kept()
    comparison.record_costs(run, *comparison.frame_costs(stack))
    assert [metric for metric, _ in run.values] == [
        "trained_parameters", "stored_bytes", "learning_seconds", "updates",
    ]  # fmt: skip


def test_a_learner_is_counted_without_its_heads(backbone, config, stream):
    learner = baselines.Sequential(backbone, config)
    learner.learn(stream[0])
    adapter = sum(w.numel() for w in backbone.lora_parameters.values())
    assert comparison.beside_heads(learner) == 4 * adapter


def test_a_router_is_as_large_as_its_files():
    router = make_router("hybrid_svm").fit(["a good film", "a goal"] * 8, ["imdb", "agnews"] * 8)
    assert comparison.router_bytes(router) > 1000
