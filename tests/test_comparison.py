"""What notebooks 04 and 05 record of every method."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers import Answers, RunConfig, SkillStackError, baselines
from skillstack_helpers.lab import comparison
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


def test_strengths_are_of_the_penalties_that_are_needed():
    config = RunConfig(olora_strength=0.5)
    assert comparison.strengths(["replay"], config) == {}
    found = comparison.strengths(["ewc_replay", "olora", "joint"], config)
    assert found == {"ewc": None, "olora": 0.5}


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


def test_only_misrouted_texts_are_asked_again():
    answers, asked = two_tasks(), []

    def predict(texts, tasks):
        asked.extend(zip(texts, tasks, strict=True))
        return np.array(["negative", "positive"], dtype=object)

    final = {"imdb": SimpleNamespace(labels=np.array([1, 1]))}
    final["agnews"] = SimpleNamespace(labels=np.array([1, 1]))
    picked = np.array(["imdb", "agnews", "agnews", "imdb"], dtype=object)
    correct = comparison.routed(answers, picked, final, predict)
    assert asked == [("bad", "agnews"), ("oil", "imdb")]
    # good: correct under its head; bad: misrouted, the name is correct; goal: correct
    assert correct.tolist() == [True, True, True, False]


def test_accuracy_is_kept_told_the_task_and_routed():
    matrix = pd.DataFrame([[0.9, np.nan], [0.5, 0.8]], ["imdb", "agnews"], ["imdb", "agnews"])
    correct = np.array([True, False, True, True])
    run = Kept(matrix=matrix)
    comparison.record_accuracy(run, STREAM, two_tasks(), correct)
    assert run.values == pytest.approx(
        {
            ("routed", "imdb"): 0.5, ("routed", "agnews"): 1.0, ("routed", ""): 0.75,
            ("final", "imdb"): 0.5, ("final", "agnews"): 0.8, ("acc", ""): 0.65,
            ("bwt", ""): -0.4, ("forgetting", ""): 0.4,
        }
    )  # fmt: skip
    run = Kept("tfidf_union", matrix.assign(imdb=[np.nan, 0.5]))  # told nothing, all at once
    comparison.record_accuracy(run, STREAM, two_tasks(), correct)
    assert {metric for metric, _ in run.values} == {"routed"}
    assert list(run.saved) == ["matrix.csv"]


def test_forgetting_is_kept_with_what_was_learned():
    matrix = pd.DataFrame([[0.9, np.nan], [0.5, 0.8]], ["imdb", "agnews"], ["imdb", "agnews"])
    run = Kept(matrix=matrix)
    comparison.record_forgetting(run, STREAM)
    expected = {"acc": 0.65, "learned": 0.85, "final_drop": 0.4, "forgetting": 0.4}
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
    latest = lora[-1] + sum(heads)
    assert comparison.latest_costs(stack) == (latest, 4 * latest, seconds, updates)
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
