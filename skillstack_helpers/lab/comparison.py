"""What notebooks 04 and 05 share: methods side by side, each measured in a run of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from .. import metrics
from ..answers import Answers
from ..backbones import Backbone
from ..ensemble import Mixture
from ..errors import SkillStackError
from ..routers import save_router
from ..stack import SkillStack
from ..tasks import TaskData
from .experiment import load_stream
from .names import name
from .parameters import METHODS, SEARCHED, RunConfig
from .predictions import Predictions, kept
from .runs import Run

COVERAGE = 0.9  # that label sets are made for

# ---------------------------------------------------------------------- which methods


def possible(learners: Mapping[str, Callable], config: RunConfig) -> list[str]:
    """The methods that are asked for, in that order, and that the backbone can do. It says which
    ones it cannot; one that was asked for by name is an error."""
    asked, found = config.method_names or METHODS, []
    for method in [each for each in asked if each in learners]:
        try:
            learners[method]()
            found.append(method)
        except SkillStackError as error:
            if config.methods is not None:
                raise
            print(f"{name(method)} is left out: {error}")
    return found


def given(methods: Iterable[str], config: RunConfig) -> dict[str, float | None]:
    """What must be searched for these methods, and its value where the config has it."""
    values = {
        "ewc": config.ewc_strength,
        "ewc_online": config.ewc_online_strength,
        "olora": config.olora_strength,
        "joint_wide": config.joint_wide_lr,
    }
    return {what: values[what] for what, users in SEARCHED.items() if {*users} & {*methods}}


# ---------------------------------------------------------------------- the search


def validation_stream(config: RunConfig) -> list[TaskData]:
    """The stream, judged on its routing rows; or another one, if that is what the methods are to be
    tuned on."""
    config = dataclasses.replace(config, train_on_router=False)
    if config.tuned_on:
        config = dataclasses.replace(config, preset=config.tuned_on, tasks=None)
    return [dataclasses.replace(data, eval=data.router) for data in load_stream(config)]


def held_back(config: RunConfig, stream: Sequence[TaskData]) -> Answers:
    """`n_held_back` rows of every task's train split that neither frames nor router have seen."""
    rest = []
    for data in load_stream(config, n_router=config.n_router + config.n_held_back):
        known = {text for d in stream if d.name == data.name for text in d.texts("router")}
        new = [text not in known for text in data.texts("router")]
        rest.append(dataclasses.replace(data, router=data.router[new]))
    return Answers.of(rest, "router")


def searched(run: Run, grid: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """What a search has found so far: method, strength, learned, final (fractions)."""
    tried = [(p, s, {"split": f"router, {p} {s:g}"}) for p in grid for s in grid[p]]
    rows = [(p, s, run.value("learned", **on), run.value("validation", **on)) for p, s, on in tried]
    return pd.DataFrame(rows, columns=["method", "strength", "learned", "final"]).dropna()


def best(found: pd.DataFrame) -> dict[str, float]:
    """The value of each that came out best at the end; of equals the first."""
    rows = found.loc[found.groupby("method")["final"].idxmax()]
    return dict(zip(rows["method"], rows["strength"].astype(float), strict=True))


# ---------------------------------------------------------------------- what is recorded


def worth_asking(
    label_names: Mapping[str, Sequence[str]], tasks: np.ndarray, routes: pd.DataFrame | None = None
) -> np.ndarray:
    """Which frames any mixture could need about texts of these tasks, bool (n, frames): the family
    of the text's own, the one picked, and whatever the router leaves open. routes: of the texts,
    with P(frame | text) in columns ``P:<frame>``."""
    which = np.array(list(label_names), dtype=object)
    family = Mixture(label_names, "family")
    asked = family.asked((tasks[:, None] == which).astype(float))
    if routes is None:
        return asked
    picked, routed = routes["frame"].to_numpy(object)[:, None] == which, chances(routes)
    return asked | picked | (routed >= 0.01) | family.asked(routed)


def record_answers(
    run: Run,
    stream: Sequence[TaskData],
    said: Predictions,
    picked: np.ndarray,
    routed: np.ndarray | None,
    mixture: Mixture | None,
    calibration: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """What is right at the end: told the task (of the accuracy matrix, with its metrics), under
    the head or frame that the router picked, and by the mixture of all.

    picked: frame names, (n,). routed: the router's P(frame | text), (n, frames). mixture: None for
    a method that is told nothing and needs no router: `picked` is what it chose itself.
    calibration: task -> scores right after it was learned (`Frame.calibration`): how many label
    sets made with them still hold the right label, told the task.
    """
    n, by, last = len(said.labels), {"router": run.config.router}, stream[-1].name
    found = {"routed": said.right(picked)}
    told = said.mean(found["routed"] if mixture is None else said.right())
    for data in stream:  # the last row of the accuracy matrix
        where = {"trained_through": last, "eval_task": data.name, "n": len(data.eval)}
        run.record("accuracy", told[data.name], **where)
    matrix = run.matrix(stream)
    if mixture is not None:
        found["mixed"] = said.mixed(mixture, routed)
    for metric, right in found.items():
        tasks = said.mean(right)
        for data in stream:
            run.record(metric, tasks[data.name], eval_task=data.name, n=len(data.eval), **by)
        run.record(metric, tasks.mean(), n=n)
    if mixture is not None:
        for data in stream:
            right = matrix.iloc[-1][data.name]
            run.record("final", right, eval_task=data.name, n=len(data.eval))
        run.record("acc", metrics.average_accuracy(matrix), n=n)
    if matrix.iloc[0].notna().any():  # learned one by one
        run.record("bwt", metrics.backward_transfer(matrix), n=n)
        run.record("forgetting", metrics.forgetting(matrix), n=n)
    if calibration and all(calibration.get(data.name) for data in stream):
        held, sizes = said.sets(calibration, COVERAGE)
        tasks = said.mean(held)
        for data in stream:
            run.record("coverage", tasks[data.name], eval_task=data.name, n=len(data.eval))
        run.record("coverage", tasks.mean(), n=n)
        run.record("set_size", said.mean(sizes).mean(), unit="labels", n=n)
    run.save("matrix.csv", matrix)


def record_stack(
    run: Run,
    stream: Sequence[TaskData],
    splits: Mapping[str, Answers],
    stack: SkillStack,
    router,
    routes: pd.DataFrame,
    texts: Sequence[str],
    like: tuple[SkillStack, Mapping[str, Predictions]] | None = None,
) -> tuple[dict[str, Predictions], Mixture]:
    """All that is recorded of a stack at the end; returns its predictions, and the mixture.

    splits, routes, texts: as in `record_learner`. like: the stack as the stream left it, and its
    predictions, where `stack` was made of it; of frames that both have, they are taken over.
    """
    label_names = {data.name: data.task.label_names for data in stream}
    which, routed = list(router.classes_), chances(routes)

    def ask(split: str) -> np.ndarray:
        rows = splits[split]
        worth = worth_asking(label_names, rows.tasks, routes if split == "eval" else None)
        known = [like is not None and stack[name] is like[0][name] for name in which]
        logits = stack.logits(rows.texts, which, worth & ~np.array(known))
        for k in np.flatnonzero(known):
            logits[:, k] = like[1][split].logits[:, k]
        return logits

    said = kept(run, splits, label_names, ask)
    first = (said if like is None else like[1])["eval"]  # nobody writes to a frame again
    for task, value in first.mean(first.right()).items():
        for later in stream[which.index(task) : -1]:
            n = int((first.tasks == task).sum())
            run.record("accuracy", value, trained_through=later.name, eval_task=task, n=n)
    mixture = said["router"].mixture()
    picked = routes["frame"].to_numpy(object)
    calibration = {name: stack[name].calibration for name in which}
    record_answers(run, stream, said["eval"], picked, routed, mixture, calibration)
    record_costs(run, *frame_costs(stack))
    asked = mixture.asked(routed).sum(1)
    run.record("frames_asked", asked.mean(), unit="frames", router=run.config.router, n=len(asked))
    ways = {"answer_ms": partial(stack.answer, router=router)}
    ways["mixed_ms"] = partial(stack.answer, router=router, mix=mixture)
    record_speed(run, stack.backbone, texts, **ways)
    mixture.save(run.folder / "mixture.json")
    return said, mixture


def record_learner(
    run: Run,
    stream: Sequence[TaskData],
    splits: Mapping[str, Answers],
    learner,
    router,
    routes: pd.DataFrame,
    texts: Sequence[str],
) -> None:
    """All that is recorded of a learner of `baselines` at the end.

    splits: ``eval`` and ``router`` rows. routes: where the router sends the evaluation rows, with
    P(frame | text) in columns ``P:<frame>``. texts: that the speed is measured on.
    """
    union = getattr(learner, "union", False)  # told nothing, and needs no router
    routed = chances(routes)

    def ask(split: str) -> np.ndarray:
        rows = splits[split]
        at = routes if split == "eval" else None
        worth = None if union else worth_asking(learner.label_names, rows.tasks, at)
        return learner.logits(rows.texts, worth)

    said = kept(run, splits, learner.label_names, ask, union)
    mixture = None if union else said["router"].mixture()
    picked = said["eval"].most_sure() if union else routes["frame"].to_numpy(object)
    calibration = getattr(learner, "calibration", None)
    record_answers(run, stream, said["eval"], picked, routed, mixture, calibration)
    size = learner.trained_parameters, learner.stored_bytes
    record_costs(run, *size, learner.seconds, learner.updates)

    def answer(texts):
        return learner.predict(texts, None if union else router.predict(texts))

    def mixed(texts):
        routed = router.predict_proba(texts)
        return mixture.predict(learner.logits(texts, mixture.asked(routed)), routed)

    ways = {"answer_ms": answer} | ({} if union else {"mixed_ms": mixed})
    backbone = getattr(learner, "backbone", getattr(router, "backbone", None))
    record_speed(run, backbone, texts, **ways)


def chances(routes: pd.DataFrame) -> np.ndarray:
    """P(frame | text), (n, frames), of a table of routes."""
    return routes[[name for name in routes if name.startswith("P:")]].to_numpy()


def record_speed(
    run: Run, backbone: Backbone | None, texts: Sequence[str], **ask: Callable
) -> None:
    """Milliseconds to answer a text, each way asked about the same texts, of which nothing is known
    yet; the fastest of three turns, since other work on the machine only slows down.

    ask: metric -> a function of the texts. backbone: that reads them, if one does.
    """
    for metric, answer in ask.items():
        turns = []
        for _ in range(3):
            with contextlib.nullcontext() if backbone is None else backbone.afresh():
                start = time.perf_counter()
                answer(list(texts))
                turns.append(time.perf_counter() - start)
        run.record(metric, 1000 * min(turns) / len(texts), unit="ms", n=len(texts))


def record_forgetting(run: Run, stream: Sequence[TaskData]) -> None:
    """The metrics of the run's accuracy matrix, told the task."""
    matrix, n = run.matrix(stream), sum(len(data.eval) for data in stream)
    run.record("acc", metrics.average_accuracy(matrix), n=n)
    run.record("learned", np.mean(np.diag(matrix)), n=n)
    run.record("bwt", metrics.backward_transfer(matrix), n=n)
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
    frames = stack.frames
    trained = sum(w.numel() for frame in frames for part in frame.weights() for w in part.values())
    steps = sum(len(frame.losses) for frame in frames)
    return trained, sum(f.nbytes for f in frames), sum(f.seconds for f in frames), steps


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
