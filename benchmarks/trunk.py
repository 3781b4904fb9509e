"""A stream trained and evaluated with a trunk and without, task by task in turn.

    .venv/bin/python benchmarks/trunk.py --preset hard8 --out benchmarks/trunk.csv

Both sides do what notebook 01 does: learn a task, evaluate the latest adapter on all tasks so far
(each with its own head), and at the end every saved frame on its own task. They differ in
`first_adapted_layer` alone: None (LoRA in all layers, as published), and `--first`. Which side goes
first alternates from task to task. Texts are tokenized before any clock starts; the trunk's own
forward passes are part of what is measured, in training or evaluation, wherever a text is first
needed.

Seconds are the process's CPU time, which other processes on the machine hardly change; run it on
one thread. CSV, added to after every seed: seconds of training and of evaluation, accuracy right
after learning (learned), at the end with the latest adapter (latest) and with the saved frame
(saved), as fractions, and bytes of the frame. With `--show` the CSV is read and summed up instead.
"""

import argparse
import contextlib
import time
from pathlib import Path

import pandas as pd

from skillstack_helpers import SkillStack, load_backbone
from skillstack_helpers.heads import LinearHead
from skillstack_helpers.lab.experiment import load_stream
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.progress import silent

SIDES = {"all layers": None, "trunk": 0.5}
KEYS = ["model", "preset", "seed", "n_train", "n_eval"]


@contextlib.contextmanager
def trained_at():
    """The time at which a head had been trained and its evaluation began, as a list of one."""
    clock, evaluate = [], LinearHead.evaluate

    def noting(self, *arguments):
        clock.append(time.process_time())
        return evaluate(self, *arguments)

    LinearHead.evaluate = noting
    try:
        yield clock
    finally:
        LinearHead.evaluate = evaluate


class Side:
    """One stack that grows through the stream, and its clocks."""

    def __init__(self, backbone, config: RunConfig):
        self.backbone, self.config, self.rows = backbone, config, {}
        self.stack = SkillStack(backbone)

    def learn(self, seen: list) -> None:
        data, config = seen[-1], self.config
        first = self.backbone.layer_number(config.first_adapted_layer)
        self.backbone.attach(config.lora_r, config.lora_alpha, first)
        start = time.process_time()
        with trained_at() as clock:
            frame = self.stack.grow(data, config)
        row = {"learned": frame.metrics["accuracy"], "bytes": frame.nbytes}
        latest = [self.stack.evaluate(d, frame=data.name, head=d.name).accuracy for d in seen]
        row |= {"train_seconds": clock[0] - start, "eval_seconds": time.process_time() - clock[0]}
        self.rows[data.name] = row
        self.latest = dict(zip([d.name for d in seen], latest, strict=True))

    def finish(self, stream: list) -> None:
        self.stack.activate(stream[0].name)
        for data in stream:
            start = time.process_time()
            self.rows[data.name]["saved"] = self.stack.evaluate(data).accuracy
            self.rows[data.name]["eval_seconds"] += time.process_time() - start
            self.rows[data.name]["latest"] = self.latest[data.name]


def measure(options, seed: int) -> pd.DataFrame:
    budget = {"n_train": options.n_train, "n_eval": options.n_eval, "seed": seed}
    configs = {
        side: RunConfig(preset=options.preset, model=options.model, **budget,
                        first_adapted_layer=options.first if first else None)
        for side, first in SIDES.items()
    }  # fmt: skip
    stream = load_stream(configs["trunk"])
    backbone = load_backbone(options.model)
    for data in stream:
        for split in ("train", "eval"):
            backbone.encode(data.texts(split), configs["trunk"].max_length)
    sides = {name: Side(backbone, config) for name, config in configs.items()}
    for i, data in enumerate(stream):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            with silent():
                sides[name].learn(stream[: i + 1])
        said = ", ".join(
            f"{name} {s.rows[data.name]['train_seconds']:.0f} + "
            f"{s.rows[data.name]['eval_seconds']:.0f} s, {s.rows[data.name]['learned']:.3f}"
            for name, s in sides.items()
        )
        print(f"{options.preset} {seed} {data.name}: {said}", flush=True)
    for side in sides.values():
        with silent():
            side.finish(stream)
    rows = [
        dict(zip(KEYS, (options.model, options.preset, seed, options.n_train, options.n_eval),
                 strict=True)) | {"task": task, "side": name} | row
        for name, side in sides.items()
        for task, row in side.rows.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per run and side: seconds, bytes, mean accuracies (%), and times faster than `all
    layers`."""
    sums = table.groupby([*KEYS, "side"], sort=False)[["train_seconds", "eval_seconds", "bytes"]]
    sums = sums.sum()
    means = table.groupby([*KEYS, "side"], sort=False)[["learned", "saved", "latest"]].mean()
    both = sums.join(100 * means)
    both["seconds"] = both["train_seconds"] + both["eval_seconds"]
    for what in ("train_seconds", "eval_seconds", "seconds"):
        slow = both[what].xs("all layers", level="side")
        both[f"{what.removesuffix('_seconds')} ratio"] = slow / both[what]
    return both.rename(columns={"seconds ratio": "ratio"}).round(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", default="hard8")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--n-train", type=int, default=48, help="rows per class")
    parser.add_argument("--n-eval", type=int, default=64, help="rows per class")
    parser.add_argument("--first", type=float, default=0.5, help="fraction of the layers below")
    parser.add_argument("--out", type=Path, help="CSV that rows are added to")
    parser.add_argument("--show", type=Path, help="sum up this CSV instead")
    options = parser.parse_args()
    if options.show:
        print(summary(pd.read_csv(options.show)).to_string())
        raise SystemExit
    for seed in options.seeds:
        measured = measure(options, seed)
        print(summary(measured).to_string(), flush=True)
        if options.out:
            new = not options.out.exists()
            measured.round(4).to_csv(options.out, mode="a", header=new, index=False)
