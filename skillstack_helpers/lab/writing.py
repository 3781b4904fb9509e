"""What notebook 08 asks frames that write: with and without examples before the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import pandas as pd

from .. import generation, metrics
from ..progress import progress
from ..stack import SkillStack
from ..tasks import TaskData
from .runs import Run

UNREADABLE = "unreadable"
EXAMPLES = 2  # shown before a text


def write(
    stack: SkillStack,
    texts: Sequence[str],
    frame: str,
    head: str | None = None,
    contexts: Sequence[str] | None = None,
) -> np.ndarray:
    """What a frame writes, read as its label names (or those of `head`) or `UNREADABLE`, (n,)."""
    written = generation.generate(stack, texts, frame, head, contexts)
    labels = stack[head or frame].label_names
    names = np.array([*labels, UNREADABLE], dtype=object)
    return names[generation.read_answers(written, labels)]  # -1: the last one


def write_routed(
    stack: SkillStack, texts: Sequence[str], picks: np.ndarray, name: str, own: np.ndarray
) -> np.ndarray:
    """What the picked frames write, each under its own prompt, (n,); own: what frame `name` writes
    to all of these texts, so that the others are asked about theirs only."""
    routed = own.copy()
    for other in sorted(set(picks) - {name}):
        mine = np.flatnonzero(picks == other)
        routed[mine] = write(stack, [texts[k] for k in mine], other)
    return routed


def truth(data: TaskData, split: str = "eval") -> np.ndarray:
    """The correct label name of every row, (n,)."""
    return np.array(data.task.label_names, dtype=object)[data.labels(split)]


def record_written(run: Run, data: TaskData, who: str, read: np.ndarray) -> float:
    """Record how many answers to a task's evaluation rows are correct, with the ends of a 95 %
    bootstrap interval, and how many unreadable; returns the first."""
    correct = (read == truth(data)).astype(float)
    low, high = metrics.bootstrap_interval(correct)
    on = {"eval_task": data.name, "split": who, "n": len(read)}
    run.record("written", correct.mean(), **on)
    run.record("unreadable", (read == UNREADABLE).mean(), **on)
    run.record("written_low", low, **on)
    run.record("written_high", high, **on)
    return correct.mean()


def keep_read(run: Run, data: TaskData, picks: np.ndarray, read: Mapping[str, np.ndarray]) -> None:
    """Keep, row by row and without a text, which frame the router picked for a task's evaluation
    rows and what was read of the answers, by who wrote them, beside the tasks before."""
    rows = {"task": data.name, "truth": truth(data), "frame": picks}
    tables = [pd.DataFrame(rows | dict(read))]
    if (run.folder / "routing.parquet").exists():
        before = run.read("routing.parquet")
        tables.insert(0, before[before["task"].ne(data.name)])  # interrupted after this was written
    run.save("routing.parquet", pd.concat(tables, ignore_index=True))


def record_means(run: Run) -> None:
    """Record the means over tasks of what was written; of the router, over all texts."""
    found = run.metrics[run.metrics["metric"].eq("router_accuracy")]
    run.record("mean_router_accuracy", np.average(found["value"], weights=found["n"]))
    for metric in ("written", "unreadable"):
        found = run.metrics[run.metrics["metric"].eq(metric)]
        for who, value in found.groupby("split", sort=False)["value"].mean().items():
            run.record(f"mean_{metric}", value, split=who)


# ---------------------------------------------------------------------- memory


def contexts(
    stream: Sequence[TaskData], seed: int
) -> Iterator[tuple[TaskData, np.ndarray, dict[str, list[str] | None]]]:
    """Of every task every second evaluation row (their positions), and what is shown before each of
    these texts: nothing, the most similar training texts of its own frame or of the next one in the
    stream, or random ones of all tasks."""
    rng = np.random.default_rng(seed)
    pool = [pair for data in stream for pair in _examples(data)]
    rows = {data.name: np.arange(0, len(data.eval), 2) for data in stream}
    picked = {n: rng.integers(len(pool), size=(len(half), EXAMPLES)) for n, half in rows.items()}
    for place, data in enumerate(stream):
        texts, half = data.texts("eval"), rows[data.name]
        questions = [texts[k] for k in half]
        random = [generation.as_context([pool[k] for k in drawn]) for drawn in picked[data.name]]
        shown = {
            "nothing": None,
            "right memory": _memory(data, questions),
            "wrong memory": _memory(stream[(place + 1) % len(stream)], questions),
            "random": random,
        }
        yield data, half, shown


def remember(stack: SkillStack, stream: Sequence[TaskData], seed: int) -> pd.DataFrame:
    """Every answer of frame and bare backbone with every context: who, shown, task, row, right (0
    or 1)."""
    answers, asked = [], list(contexts(stream, seed))
    for data, rows, shown in progress(asked, "memory", "task"):
        texts = data.texts("eval")
        questions = [texts[k] for k in rows]
        for who in ("own frame", "bare backbone"):
            for what, context in shown.items():
                bare = who == "bare backbone"
                with stack.backbone.without_adapter() if bare else nullcontext():
                    read = write(stack, questions, data.name, contexts=context)
                correct = (read == truth(data)[rows]).astype(int)
                on = {"who": who, "shown": what, "task": data.name}
                answers.append(pd.DataFrame({**on, "row": rows, "right": correct}))
    return pd.concat(answers, ignore_index=True)


def _examples(data: TaskData) -> list[tuple[str, str]]:
    return list(zip(data.texts("train"), truth(data, "train"), strict=True))


def _memory(data: TaskData, questions: Sequence[str]) -> list[str]:
    texts, labels = zip(*_examples(data), strict=True)
    return generation.retrieve(texts, labels, questions, k=EXAMPLES)


def samples(stack: SkillStack, stream: Sequence[TaskData], n: int = 2) -> pd.DataFrame:
    """What saved frame and latest adapter write to the first texts of every task, word for word."""
    tables = []
    for data in progress(stream, "write", "task"):
        texts = data.texts("eval")[:n]
        by = {"saved frames": data.name, "latest adapter": stream[-1].name}
        wrote = {w: generation.generate(stack, texts, f, head=data.name) for w, f in by.items()}
        tables.append(pd.DataFrame({"task": data.name, **wrote, "correct": truth(data)[:n]}))
    return pd.concat(tables, ignore_index=True)
