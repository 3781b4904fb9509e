"""What notebooks 04 and 05 share: methods side by side, each measured in a run of its own."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .. import metrics
from ..answers import Answers
from ..errors import SkillStackError
from ..heads import Evaluation
from ..routers import save_router
from ..stack import SkillStack
from ..tasks import TaskData
from .experiment import load_stream
from .names import name
from .parameters import METHODS, RunConfig
from .runs import Run

PENALTY = {"ewc": "ewc", "ewc_replay": "ewc", "olora": "olora"}  # method -> whose strength it has
VALIDATION_ROWS = 64  # routing rows per task that a search is judged on

# ---------------------------------------------------------------------- which methods


def possible(learners: Mapping[str, Callable], config: RunConfig) -> list[str]:
    """The methods that are asked for and that the backbone can do. It says which ones it cannot;
    one that was asked for by name is an error."""
    asked, found = config.method_names or METHODS, []
    for method in [each for each in learners if each in asked]:
        try:
            learners[method]()
            found.append(method)
        except SkillStackError as error:
            if config.methods is not None:
                raise
            print(f"{name(method)} is left out: {error}")
    return found


def strengths(methods: Iterable[str], config: RunConfig) -> dict[str, float | None]:
    """The penalties of these methods and their strengths; None: to be searched."""
    given = {"ewc": config.ewc_strength, "olora": config.olora_strength}
    needed = {PENALTY[method] for method in methods if method in PENALTY}
    return {penalty: value for penalty, value in given.items() if penalty in needed}


# ---------------------------------------------------------------------- the search


def validation_stream(config: RunConfig) -> list[TaskData]:
    """The stream with a quarter of the training rows, judged on routing rows."""
    few = load_stream(config, n_train=max(1, config.n_train // 4))
    return [dataclasses.replace(data, eval=data.router.head(VALIDATION_ROWS)) for data in few]


def searched(run: Run, grid: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """What a search has found so far: method, strength, learned, final (fractions)."""
    tried = [(p, s, {"split": f"router, {p} {s:g}"}) for p in grid for s in grid[p]]
    rows = [(p, s, run.value("learned", **on), run.value("validation", **on)) for p, s, on in tried]
    return pd.DataFrame(rows, columns=["method", "strength", "learned", "final"]).dropna()


def best(found: pd.DataFrame) -> dict[str, float]:
    """The strength of each penalty that came out best at the end; of equals the first."""
    rows = found.loc[found.groupby("method")["final"].idxmax()]
    return dict(zip(rows["method"], rows["strength"].astype(float), strict=True))


# ---------------------------------------------------------------------- what is recorded


def routed(
    answers: Answers,
    picked: np.ndarray,
    final: Mapping[str, Evaluation],
    predict: Callable[[Sequence[str], np.ndarray], np.ndarray],
) -> np.ndarray:
    """Whether each text is answered correctly under the head that the router picked, bool (n,).

    picked: frame names, (n,). final: evaluations at the end, by task: they hold the answers under
    a text's own head, so that `predict` (texts, tasks -> label names) is asked about the misrouted
    texts only.
    """
    correct = np.concatenate([final[task].labels for task in dict.fromkeys(answers.tasks)])
    correct = correct == answers.labels
    misrouted = np.flatnonzero(picked != answers.tasks)
    again = predict([answers.texts[i] for i in misrouted], picked[misrouted])
    correct[misrouted] = again == answers.label_names[misrouted]
    return correct


def record_accuracy(
    run: Run, stream: Sequence[TaskData], answers: Answers, correct: np.ndarray
) -> None:
    """The metrics of the run's accuracy matrix, told the task, and of the routed answers.

    correct: whether each text is answered correctly under the head (or frame) that was picked.
    """
    matrix, by_task, n = run.matrix(stream), answers.accuracy(correct), len(correct)
    told = run.method != "tfidf_union"  # which is told no task
    for data in stream:
        on = {"eval_task": data.name, "n": len(data.eval)}
        run.record("routed", by_task[data.name], router=run.config.router, **on)
        if told:
            run.record("final", matrix.iloc[-1][data.name], **on)
    run.record("routed", by_task.mean(), n=n)
    if told:
        run.record("acc", metrics.average_accuracy(matrix), n=n)
    if matrix.iloc[0].notna().any():  # learned one by one
        run.record("bwt", metrics.backward_transfer(matrix), n=n)
        run.record("forgetting", metrics.forgetting(matrix), n=n)
    run.save("matrix.csv", matrix)


def record_forgetting(run: Run, stream: Sequence[TaskData]) -> None:
    """The metrics of the run's accuracy matrix, told the task."""
    matrix, n = run.matrix(stream), sum(len(data.eval) for data in stream)
    run.record("acc", metrics.average_accuracy(matrix), n=n)
    run.record("learned", np.mean(np.diag(matrix)), n=n)
    run.record("final_drop", metrics.final_drop(matrix), n=n)
    run.record("forgetting", metrics.forgetting(matrix), n=n)
    run.record("first_task", matrix.iloc[-1, 0], n=len(stream[0].eval))
    run.save("matrix.csv", matrix)


def record_costs(
    run: Run, trained_parameters: int, stored_bytes: int, seconds: float, updates: int
) -> None:
    """What a method trained, keeps and spent."""
    run.record("trained_parameters", trained_parameters, unit="count")
    run.record("stored_bytes", stored_bytes, unit="bytes")
    run.record("learning_seconds", seconds, unit="s")
    run.record("updates", updates, unit="steps")


def frame_costs(stack: SkillStack) -> tuple[int, int, float, int]:
    """Of all frames: parameters, bytes, seconds and updates."""
    weights = [part for frame in stack.frames for part in frame.weights()]
    trained = sum(w.numel() for part in weights for w in part.values())
    return trained, sum(frame.nbytes for frame in stack.frames), *_spent(stack)


def latest_costs(stack: SkillStack) -> tuple[int, int, float, int]:
    """Of the latest adapter with the heads of all tasks: parameters, bytes, seconds, updates."""
    heads = sum(w.numel() for frame in stack.frames for w in frame.weights().head.values())
    trained = heads + sum(w.numel() for w in stack.frames[-1].weights().lora.values())
    return trained, 4 * trained, *_spent(stack)


def _spent(stack: SkillStack) -> tuple[float, int]:
    frames = stack.frames
    return sum(frame.seconds for frame in frames), sum(len(frame.losses) for frame in frames)


def adapter_bytes(stack: SkillStack) -> int:
    """Bytes of the adapters of all frames, without heads."""
    adapters = [frame.weights().lora.values() for frame in stack.frames]
    return sum(4 * w.numel() for weights in adapters for w in weights)


def beside_heads(learner) -> int:
    """Bytes that a learner of `baselines` stores beside its heads."""
    heads = [p for head in learner.heads.values() for p in head.parameters()]
    return learner.stored_bytes - 4 * sum(p.numel() for p in heads)


def router_bytes(router) -> int:
    """Bytes of a router's files."""
    with tempfile.TemporaryDirectory() as aside:
        save_router(router, Path(aside) / "router")
        return sum(file.stat().st_size for file in Path(aside).rglob("*") if file.is_file())
