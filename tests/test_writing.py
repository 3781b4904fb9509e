"""What notebook 08 asks frames that write, on a stand-in that writes on its own."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers import generation, load_backbone
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.heads import instruction
from skillstack_helpers.lab import writing
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task

TASKS = ("imdb", "amazon", "agnews")


@pytest.fixture(scope="module")
def stream(data_dir):
    return [load_task(n, 4, 8, 6, seed=0, source="folder", data_dir=data_dir) for n in TASKS]


@pytest.fixture
def says(monkeypatch):
    """A stack whose frames write the word given for them, and what each was asked."""
    labels = {"imdb": ("negative", "positive"), "amazon": ("negative", "positive")}
    labels["agnews"] = ("world", "sports", "business", "sci/tech")
    asked, words = [], {"imdb": " positive", "amazon": " Negative.", "agnews": " well"}

    def generate(stack, texts, frame, head=None, contexts=None):
        asked.append((frame, head, list(texts), contexts))
        return [words[frame]] * len(texts)

    monkeypatch.setattr(generation, "generate", generate)
    stack = {name: SimpleNamespace(label_names=names) for name, names in labels.items()}
    return stack, asked


def test_what_is_written_is_read_under_the_head_that_was_asked(says):
    stack, _ = says
    assert writing.write(stack, ["a", "b"], "imdb").tolist() == ["positive", "positive"]
    assert writing.write(stack, ["a"], "imdb", head="agnews").tolist() == [writing.UNREADABLE]


def test_routed_asks_the_other_frames_about_their_texts_only(says):
    stack, asked = says
    own = np.array(["positive"] * 3, dtype=object)
    picks = np.array(["imdb", "amazon", "agnews"], dtype=object)
    routed = writing.write_routed(stack, ["a", "b", "c"], picks, "imdb", own)
    assert routed.tolist() == ["positive", "negative", writing.UNREADABLE]
    assert [(frame, texts) for frame, _, texts, _ in asked] == [
        ("agnews", ["c"]),
        ("amazon", ["b"]),
    ]
    assert own.tolist() == ["positive"] * 3


def run_that_notes():
    noted = {}
    run = SimpleNamespace(metrics=pd.DataFrame())
    run.record = lambda metric, value, **on: noted.update({(metric, on.get("split")): value})
    return run, noted


def test_correct_and_unreadable_answers_are_counted(stream):
    run, noted = run_that_notes()
    read = writing.truth(stream[0]).copy()
    read[:2], read[2] = writing.UNREADABLE, "something else"
    share = writing.record_written(run, stream[0], "own frame", read)
    assert share == noted["written", "own frame"] == pytest.approx(9 / 12)
    assert noted["unreadable", "own frame"] == pytest.approx(2 / 12)
    assert noted["written_low", "own frame"] < share < noted["written_high", "own frame"]


def test_means_are_over_tasks_and_of_the_router_over_texts():
    run, noted = run_that_notes()
    lines = [("router_accuracy", "eval", 1.0, 30), ("router_accuracy", "eval", 0.5, 10)]
    lines += [("written", "own frame", 1.0, 30), ("written", "own frame", 0.0, 10)]
    run.metrics = pd.DataFrame(lines, columns=["metric", "split", "value", "n"])
    writing.record_means(run)
    assert noted == {("mean_router_accuracy", None): 0.875, ("mean_written", "own frame"): 0.5}


def test_contexts_are_of_the_right_frame_the_next_one_and_of_chance(stream):
    first, again = (list(writing.contexts(stream, 7)) for _ in range(2))
    other = list(writing.contexts(stream, 8))
    tasks = {data.name: data for data in stream}
    for place, (data, rows, shown) in enumerate(first):
        assert rows.tolist() == list(range(0, len(data.eval), 2)) and shown["nothing"] is None
        assert list(shown) == ["nothing", "right memory", "wrong memory", "random"]
        for what, name in (("right memory", data.name), ("wrong memory", TASKS[(place + 1) % 3])):
            beginnings = [" ".join(text.split()[:30]) for text in tasks[name].texts("train")]
            for context in shown[what]:
                assert context.count("Label:") == writing.EXAMPLES
                assert sum(text in context for text in beginnings) == writing.EXAMPLES
        assert shown["random"] == again[place][2]["random"] != other[place][2]["random"]
        assert len(shown["random"]) == len(rows)


def test_frame_and_bare_backbone_are_asked_the_same_with_every_context(stream, decoders):
    stack = SkillStack(load_backbone(str(decoders["llama"]), device="cpu"))
    config = TrainingConfig(epochs=1, lr=1e-2, batch_size=4, lora_r=4, max_length=48, seed=0)
    for data in stream:
        stack.grow(data, config, prompt=instruction(data.task))
    table = writing.remember(stack, stream, 7)
    assert list(table) == ["who", "shown", "task", "row", "right"]
    assert set(table["right"]) <= {0, 1}
    sizes = table.groupby(["who", "shown", "task"]).size().unstack("task")
    assert len(sizes) == 2 * 4 and sizes.loc[("own frame", "random")].to_dict() == {
        data.name: len(data.eval) // 2 for data in stream
    }
    data = stream[0]
    questions = data.texts("eval")[::2]
    read = writing.write(stack, questions, data.name)
    own = table[table["task"].eq(data.name) & table["shown"].eq("nothing")]
    own = own.loc[own["who"].eq("own frame"), "right"]
    assert own.tolist() == (read == writing.truth(data)[::2]).astype(int).tolist()
    wrote = writing.samples(stack, stream, 1)
    assert list(wrote) == ["task", "saved frames", "latest adapter", "correct"]
    assert wrote["task"].tolist() == list(TASKS)
    assert wrote.loc[2, "saved frames"] == wrote.loc[2, "latest adapter"]
