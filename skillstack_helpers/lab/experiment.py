"""What the notebooks share: the stream, its stack, the router, and the published columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .. import metrics, packaged
from ..answers import Answers
from ..backbones import Backbone
from ..ensemble import Mixture
from ..errors import SkillStackError
from ..frames import Frame, read_frame
from ..loading import load_backbone
from ..parents import best_parent
from ..progress import progress
from ..routers import load_router, make_router, save_router, saved_in
from ..stack import LATEST, SkillStack, read_manifest
from ..tasks import Task, TaskData, load_task
from ..training import recipe
from .parameters import RunConfig, placed, user_path
from .runs import Run

INSPECTED = ("hybrid_chain", "centroid")  # fitted for the inspector where a stack has no router


def load_stream(config: RunConfig, **budget: int) -> list[TaskData]:
    """The rows of the stream's tasks; budget: `n_train`, `n_router` or `n_eval` to override. With
    `train_on_router` the routing rows are training rows too."""
    counts = {n: getattr(config, n) for n in ("n_train", "n_router", "n_eval")} | budget
    names = progress(config.task_names, "load rows", "task")
    where = {"source": config.source, "data_dir": config.data_dir}
    stream = [load_task(name, **counts, seed=config.seed, **where) for name in names]
    if not config.train_on_router:
        return stream
    every = [pd.concat([data.train, data.router], ignore_index=True) for data in stream]
    return [dataclasses.replace(d, train=rows) for d, rows in zip(stream, every, strict=True)]


def stream_table(stream: Sequence[TaskData]) -> pd.DataFrame:
    """Family, classes, rows and source of every task."""
    rows = {
        data.name: {
            "family": data.task.family,
            "classes": len(data.task.label_names),
            **{split: len(getattr(data, split)) for split in ("train", "router", "eval")},
            "source": data.source,
        }
        for data in stream
    }
    return pd.DataFrame.from_dict(rows, "index")


def open_backbone(config: RunConfig) -> Backbone:
    """The backbone that a run asks for."""
    how = (config.dtype, config.quantize, config.device, config.gradient_checkpointing)
    backbone = load_backbone(config.model, *how)
    if config.trunk_dir is not None:
        backbone.trunk.folder = user_path(config.trunk_dir)
    return backbone


# ---------------------------------------------------------------------- stacks


def find_stack(
    config: RunConfig,
    stream: Sequence[TaskData],
    backbone: Backbone,
    prompt: Callable[[Task], str] | None = None,
) -> Path | None:
    """A stack below the output folder that was trained on the very rows of this stream, with the
    same training parameters and backbone, each frame from the latest; None if there is none.

    Routing and evaluation rows may be others: frames have not seen them.
    """
    wanted = recipe(config, backbone)

    def is_this(frame: Frame, data: TaskData) -> bool:
        same = all(frame.training.get(name) == value for name, value in wanted.items())
        # Version 0.1 noted all rows together, the same where routing rows are learned.
        noted = "train_fingerprint" if "train_fingerprint" in frame.data else "fingerprint"
        rows = frame.data.get(noted) == getattr(data, noted)
        return same and rows and frame.prompt == (prompt(data.task) if prompt else None)

    for path in sorted(placed(config.output_dir).glob("*/stack/stack.json")):
        manifest = read_manifest(path.parent)
        names = [entry["name"] for entry in manifest["frames"]]
        other = names != [data.name for data in stream] or manifest.get("decisions")
        if other or backbone.differs_from(manifest["backbone"]):
            continue
        frames = [read_frame(path.parent / "frames" / name) for name in names]
        if [frame.parent for frame in frames] != [None, *names[:-1]]:
            continue
        if all(is_this(frame, data) for frame, data in zip(frames, stream, strict=True)):
            return path.parent
    return None


def open_or_train(
    config: RunConfig,
    stream: Sequence[TaskData],
    backbone: Backbone,
    folder: Path,
    prompt: Callable[[Task], str] | None = None,
) -> SkillStack:
    """The stack of this stream: one that another notebook left, else trained into `folder`.

    prompt: makes the prompt of each task (`heads.instruction`), for frames that write.
    """
    best = config.parent == "best"  # which frames that are is known when they are trained
    folder = (None if best else find_stack(config, stream, backbone, prompt)) or folder
    stack = SkillStack.open(folder, backbone)
    for data in progress([d for d in stream if d.name not in stack], "train", "task"):
        parent = best_parent(stack, data) if best else LATEST
        frame = stack.grow(data, config, prompt(data.task) if prompt else None, parent=parent)
        stack.save_pretrained(folder)
        print(f"{len(stack)} of {len(stream)}", learned(frame), flush=True)
    print(f"{len(stack)} frames in {folder}")
    return stack


def fit_router(
    name: str, stream: Sequence[TaskData], stack: SkillStack, rows: slice = slice(None), **settings
):
    """A router fitted on the routing rows (or some of each task's) of a stream.

    settings: parameters of the router; those it does not have are left out.
    """
    texts = [text for data in stream for text in data.texts("router")[rows]]
    names = [data.name for data in stream for _ in data.texts("router")[rows]]
    described = {d.name: f"{d.task.family}, {', '.join(d.task.label_names)}" for d in stream}
    settings = {"backbone": stack.backbone, "stack": stack, "descriptions": described} | settings
    if stack.frames:  # routers that embed texts read as much of them as the frames do
        settings = {"max_length": stack.frames[0].training["max_length"]} | settings
    if (first := stack.first_adapted_layer) is not None:  # what the frames share, the router reads
        settings = {"first": first} | settings
    return make_router(name, **settings).fit(texts, names)


def fit_mixture(stream: Sequence[TaskData], stack: SkillStack, shares: str = "learned") -> Mixture:
    """A mixture of the stack's frames, fitted on the routing rows of a stream and their labels."""
    rows = Answers.of(stream, "router")
    mixture = Mixture({data.name: stack[data.name].label_names for data in stream}, shares)
    own = rows.tasks[:, None] == np.array(list(mixture.label_names), dtype=object)
    family = Mixture(mixture.label_names, "family").asked(own.astype(float))
    logits = stack.logits(rows.texts, list(mixture.label_names), family)
    return mixture.fit(logits, rows.tasks, rows.labels)


def learned(frame: Frame) -> str:
    """A line about a frame that has just been trained."""
    correct, chance = 100 * frame.metrics["accuracy"], 100 / len(frame.label_names)
    rows, steps = frame.metrics["n"], len(frame.losses)
    return (
        f"{frame.name}: {correct:.0f} % of {rows} correct (chance {chance:.0f} %), "
        f"{steps} steps in {frame.seconds:.0f} s"
    )


# ---------------------------------------------------------------------- the published columns


def record_stream(run: Run, matrix: pd.DataFrame, saved: Sequence[float]) -> None:
    """Summaries of the accuracy matrix of the latest adapter (T, T), and of the saved frames'
    accuracies at the end (T,), as `latest_drop`, `stack_drop` and so on."""
    saved, after = np.asarray(saved), np.diag(matrix)  # right after each task was learned
    n = sum(run.metrics.loc[run.metrics["metric"].eq("saved"), "n"])
    run.record("acc", metrics.average_accuracy(matrix), n=n)
    run.record("bwt", metrics.backward_transfer(matrix), n=n)
    run.record("forgetting", metrics.forgetting(matrix), n=n)
    run.record("latest_drop", metrics.final_drop(matrix), n=n)
    run.record("stack_drop", np.mean(after[:-1] - saved[:-1]), n=n)
    run.record("task_aware", saved.mean(), n=n)


def record_routed(run: Run, routes: pd.DataFrame, router: str) -> None:
    """Summaries of `Answers.routed`: per task, over all texts, and as a mean over tasks."""
    correct, own = routes["answer"] == routes["truth"], routes["frame"] == routes["task"]
    tasks, n, by = routes["task"], len(routes), {"router": router}
    for task in dict.fromkeys(tasks):
        here = tasks == task
        on = by | {"eval_task": task, "n": int(here.sum())}
        run.record("routed", correct[here].mean(), **on)
        run.record("router_accuracy", own[here].mean(), **on)
    run.record("routed", correct.groupby(tasks).mean().mean(), **by, n=n)
    run.record("routed_micro", correct.mean(), **by, n=n)
    run.record("router_accuracy", own.mean(), **by, n=n)
    run.record("fallback", routes["fallback"].mean(), **by, n=n)
    run.record("depth", routes["depth"].mean(), unit="frames", **by, n=n)


# ---------------------------------------------------------------------- stacks to look into


def find_stacks(root: str | Path = "results") -> list[Path]:
    """Folders below `root` (relative to the repository) that hold a saved stack, by name."""
    return sorted(path.parent for path in placed(root).glob("**/stack.json"))


def newest_stack(root: str | Path = "results") -> Path:
    """The stack below `root` that was saved last."""
    found = find_stacks(root)
    if not found:
        raise SkillStackError(f"no saved stack below {root}: run `make demo`, or give stack_dir")
    return max(found, key=lambda path: (path / "stack.json").stat().st_mtime)


def open_stack(
    folder: str | Path, backbones: dict | None = None, models: Sequence[str] | None = None
) -> SkillStack:
    """Open a saved stack with the backbone it was made with.

    backbones: loaded ones, (name, dtype, quantization) -> Backbone; used, wherever the model lies,
    and added to, so that no model is loaded twice. models: hub ids and folders that may be loaded
    besides the packaged models, for stacks of unknown origin; None: whatever the stack names.
    Raises `SkillStackError` in one line for a folder that holds no stack.
    """
    folder = placed(folder)
    made_with = read_manifest(folder)["backbone"]
    key = tuple(made_with.get(name) for name in ("name", "dtype", "quantization"))
    if not isinstance(key[0], str):
        raise SkillStackError(f"{folder / 'stack.json'}: the backbone has no name")
    backbones = {} if backbones is None else backbones
    same = [one for one in backbones.values() if not one.differs_from(made_with)]
    if not same:
        if models is not None and key[0] not in (*packaged.NAMES, *models):
            raise SkillStackError(
                f"{folder / 'stack.json'}: its model {key[0]!r} is neither packaged nor one that "
                "may be loaded: if you trust it, start the page with --model and this name"
            )
        same = [load_backbone(*key)]
        backbones[key] = same[0]
    return SkillStack.from_pretrained(folder, same[0])


def load_rows(frame: Frame, data_dir: str | Path | None = None) -> TaskData:
    """The rows a frame was trained and evaluated on, loaded again; an error if they are others."""
    noted = {**frame.training, **frame.data}  # version 0.1 kept the budget in `training`
    budget = [noted.get(key) for key in ("n_train", "n_router", "n_eval", "seed")]
    source = "folder" if data_dir else noted.get("source", "auto")
    if None in budget:
        raise SkillStackError(f"frame {frame.name!r} does not say which rows it was trained on")
    data = load_task(frame.task, *budget, source=source, data_dir=data_dir)
    if data.fingerprint != noted.get("fingerprint"):
        raise SkillStackError(
            f"the rows of {frame.task!r} found here are not those that frame {frame.name!r} was "
            "trained on: set data_dir or SKILLSTACK_DATA to where they are"
        )
    return data


def saved_routers(folder: str | Path) -> dict[str, Path]:
    """The routers in a stack's folder: name -> where it is saved. `INSPECTED`'s first one leads."""
    found = saved_in(placed(folder))
    return {path.name: path for path in sorted(found, key=lambda path: path.name != INSPECTED[0])}


def stack_routers(
    stack: SkillStack,
    folder: str | Path,
    data_dir: str | Path | None = None,
    more: Sequence[str] = (),
    save: bool = False,
) -> dict:
    """The routers saved in a stack's folder; where there is none, `INSPECTED`, fitted on the
    routing rows of its tasks.

    more: routers to fit where they are not saved. save: write what was fitted into the folder,
    which is otherwise only read.
    """
    saved, kit = saved_routers(folder), {"backbone": stack.backbone, "stack": stack}
    routers = {name: load_router(path, **kit) for name, path in saved.items()}
    missing = [name for name in [*(() if saved else INSPECTED), *more] if name not in routers]
    if missing:
        frames = progress(stack.frames, "routing rows", "task")
        stream = [load_rows(frame, data_dir) for frame in frames]
    for name in progress(missing, "fit routers", "router"):
        routers[name] = fit_router(name, stream, stack)
        if save:
            save_router(routers[name], placed(folder) / "routers" / name)
    return routers
