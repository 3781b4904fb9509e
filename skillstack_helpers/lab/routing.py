"""What notebooks 03 and 07 measure of routers: what they find and cost, what misleads them."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..backbones import Backbone
from ..probes import formatted, rewritten, with_keywords
from ..progress import progress
from ..routers import make_router
from ..stack import SkillStack
from ..tasks import TaskData
from .runs import Run

PER_FRAME = 16  # texts of a label split
PARTS = 12  # that a label's texts are cut into, at most

# ---------------------------------------------------------------------- what they find


def record_routing(run: Run, routing: pd.DataFrame, routers: Iterable[str]) -> None:
    """Right frames and correct answers of every router: over all texts, as a mean over tasks, of
    the misrouted texts, and right frames per task.

    routing: task, and for every router ``<router>_frame`` and ``<router>_right`` of each text; a
    run that was finished before there was such a router has none of it.
    """
    for router in [each for each in routers if f"{each}_frame" in routing]:
        found, right = routing[f"{router}_frame"] == routing["task"], routing[f"{router}_right"]
        found_by_task = found.groupby(routing["task"], sort=False)
        right_by_task = right.groupby(routing["task"], sort=False)
        on = {"router": router, "n": len(routing)}
        run.record("router_accuracy", found.mean(), **on)
        run.record("router_accuracy_macro", found_by_task.mean().mean(), **on)
        run.record("routed", right_by_task.mean().mean(), **on)
        run.record("routed_micro", right.mean(), **on)
        if not found.all():
            run.record("stray_answered", right[~found].mean(), router=router, n=(~found).sum())
        for task, mine in found_by_task:
            on = {"eval_task": task, "router": router, "n": len(mine)}
            run.record("router_accuracy", mine.mean(), **on)


# ---------------------------------------------------------------------- what they cost


def label_splits(stream: Sequence[TaskData]) -> list[list[str]]:
    """Texts of stand-ins for frames, `PER_FRAME` each: the first texts of every label of every
    task, then the next ones, and so on."""
    labels = [
        data.task.render(rows)
        for data in stream
        for _, rows in pd.concat([data.train, data.router]).groupby("label")
    ]
    starts = range(0, PARTS * PER_FRAME, PER_FRAME)
    parts = [texts[k : k + PER_FRAME] for k in starts for texts in labels]
    return [part for part in parts if len(part) == PER_FRAME]


def timed(backbone: Backbone, work: Callable, *arguments) -> float:
    """Seconds that a router's `fit` or `predict` takes when no embedding is kept."""
    backbone.forget()
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def measure_cost(
    routers: Sequence[str],
    stack: SkillStack,
    parts: Sequence[Sequence[str]],
    unseen: Sequence[str],
    most: int = 64,
    **settings,
) -> pd.DataFrame:
    """Seconds to fit and milliseconds per unseen text, with 2, 4, ... up to `most` frames.

    parts: of `label_splits`. `arrow` needs trained frames and is measured up to those of the stack.
    Columns: router, frames, fit_seconds, predict_ms.
    """
    rows, counts = [], [2**k for k in range(1, most.bit_length()) if 2**k <= len(parts)]
    for count in progress(counts, "cost", "count"):
        texts = [text for part in parts[:count] for text in part]
        for name in routers:
            subs = [f"sub{k}" for k in range(count)]
            subs = [frame.name for frame in stack.frames] if name == "arrow" else subs
            if count <= len(subs):
                names = [sub for sub, part in zip(subs, parts[:count], strict=False) for _ in part]
                router = make_router(name, backbone=stack.backbone, stack=stack, **settings)
                fit = timed(stack.backbone, router.fit, texts, names)
                predict = timed(stack.backbone, router.predict, unseen)
                rows.append((name, count, fit, 1000 * predict / len(unseen)))
        print(f"{count} frames: {sum(row[2] for row in rows if row[1] == count):.1f} s of fitting")
    return pd.DataFrame(rows, columns=["router", "frames", "fit_seconds", "predict_ms"])


# ---------------------------------------------------------------------- what misleads them


def plain(stream: Sequence[TaskData], split: str) -> pd.DataFrame:
    """The texts of a split as they are, and their tasks."""
    rows = [(text, data.name) for data in stream for text in data.texts(split)]
    return pd.DataFrame(rows, columns=["text", "task"])


def attacks(stream: Sequence[TaskData], seed: int) -> dict[str, dict[str, pd.DataFrame]]:
    """Setting -> condition -> evaluation texts, the same for every router."""
    streamed = {
        "normal": plain(stream, "eval"),
        "rewritten": rewritten(stream, "eval", "train", seed),
        "rewritten, held out": rewritten(stream, "eval", "held_out", seed),
        "keywords": with_keywords(stream, "eval", "train", seed),
        "keywords, held out": with_keywords(stream, "eval", "held_out", seed),
    }
    own = {
        "normal": formatted(stream, "eval", "train", seed),
        "rewritten": rewritten(stream, "eval", "train", seed, one_format=True),
        "rewritten, held out": streamed["rewritten, held out"],
    }
    return {"as streamed": streamed, "formatted": own}


def routing_texts(stream: Sequence[TaskData], seed: int) -> dict[str, dict[str, pd.DataFrame]]:
    """Setting -> what a router is fitted on: "plain", and what an augmented router sees besides."""
    streamed = {
        "plain": plain(stream, "router"),
        "format augmented": rewritten(stream, "router", "train", seed),
        "keyword augmented": with_keywords(stream, "router", "train", seed),
    }
    own = {
        "plain": formatted(stream, "router", "train", seed),
        "format augmented": rewritten(stream, "router", "train", seed, one_format=True),
    }
    return {"as streamed": streamed, "formatted": own}


def examples(asked: Mapping[str, pd.DataFrame], width: int = 95) -> pd.DataFrame:
    """One short text in every condition, cut to `width` characters: task and text."""
    lengths = asked["normal"]["text"].str.len()
    row = lengths.where(lengths >= 20, np.inf).argmin()
    table = pd.DataFrame({name: part.iloc[row] for name, part in asked.items()}).T
    short = [textwrap.shorten(text, width, placeholder=" …") for text in table["text"]]
    return table.assign(text=short)[["task", "text"]]


def record_attacks(
    run: Run, probe: pd.DataFrame, asked: Mapping[str, Mapping[str, pd.DataFrame]]
) -> None:
    """Right frames under every attack, and how often the attack decides which frame is picked.

    probe: router, setting, condition, task and frame of each text; asked: of `attacks`.
    """
    for (name, setting, condition), rows in probe.groupby(["router", "setting", "condition"]):
        attacked, picked = asked[setting][condition], rows["frame"].to_numpy()
        right = rows["frame"] == rows["task"]
        on = {"router": name, "split": f"{setting}: {condition}", "n": len(rows)}
        run.record("router_accuracy", right.mean(), **on)
        run.record("router_accuracy_macro", right.groupby(rows["task"]).mean().mean(), **on)
        for column, metric in (("wears", "wears_rate"), ("trap", "trap_rate")):
            if column in attacked:
                run.record(metric, np.mean(picked == attacked[column].to_numpy()), **on)
