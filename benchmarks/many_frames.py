"""A stack of 1,000 frames against one of a single frame: seconds and memory.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/many_frames.py | tee benchmarks/many_frames.txt

The frames are real ones on `minilm`: one is trained for a single step, the others have its shape
and weights of their own. Each side runs in processes of its own, in turn, with the model loaded and
warm before the clock starts. For scale the 64 first frames as a PEFT user would load them
(`load_adapter` into one model, one of them set active).
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--frames", type=int, default=1000)
parser.add_argument("--asked", type=int, default=200, help="frames that answer one text each")
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--side", choices=["stack", "save", "peft"], help=argparse.SUPPRESS)
parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
options = parser.parse_args()
os.environ["TQDM_DISABLE"] = "1"
TEXT = "The plot is thin, but the two leads make up for it, and the ending is worth the wait."
PEFT_FRAMES = 64


def another(frame, name: str, parent: str, rng):
    """A frame of the same shape, not saved yet, with weights near those of `frame`."""
    import torch

    lora = frame.weights().lora
    noise = {
        k: torch.from_numpy(rng.normal(0, 0.01, t.shape).astype("f4")) for k, t in lora.items()
    }
    weights = frame.weights()._replace(lora={k: t + noise[k] for k, t in lora.items()})
    fresh = {"sha256": {}, "folder": None, "listed": None, "_weights": weights}
    return dataclasses.replace(frame, name=name, parent=parent, **fresh)


def build(folder: Path, n: int) -> None:
    import skillstack_helpers as ss

    stack, rng = ss.SkillStack(ss.load_backbone("minilm")), np.random.default_rng(0)
    data = ss.load_task("movies", 4, 4, 4, seed=42, source="embedded")
    task = dataclasses.replace(data.task, name="skill0000")
    first = stack.grow(dataclasses.replace(data, task=task), ss.TrainingConfig(epochs=1))
    for i in range(1, n):
        stack.frames.append(another(first, f"skill{i:04}", f"skill{i - 1:04}", rng))
    stack.save_pretrained(folder)


def head_of(folder: Path, to: Path, n: int) -> Path:
    """The first n frames of a stack as one of its own, of links."""
    fields = json.loads((folder / "stack.json").read_text())
    fields["frames"] = fields["frames"][:n]
    for entry in fields["frames"]:
        part = Path("frames", entry["name"])
        shutil.copytree(folder / part, to / part, copy_function=os.link)
    (to / "stack.json").write_text(json.dumps(fields, indent=1) + "\n")
    return to


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def clock(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def opened(folder: Path):
    """A backbone that has answered, which no number of frames changes, and a way to open."""
    import skillstack_helpers as ss

    backbone = ss.load_backbone("minilm")
    ss.SkillStack.from_pretrained(folder.parent / "1", backbone).predict([TEXT], "skill0000")
    return lambda: ss.SkillStack.from_pretrained(folder, backbone)


def stack_side(folder: Path) -> dict:
    open_it = opened(folder)
    before = megabytes()
    seconds, stack = clock(open_it)
    after = megabytes()
    names = [frame.name for frame in stack.frames]
    first, _ = clock(lambda: stack.predict([TEXT], names[-1]))
    again, _ = clock(lambda: stack.predict([TEXT], names[-1]))
    told = {
        "open (s)": seconds,
        "first answer (s)": first,
        "the same frame again (s)": again,
        "memory to open (MB)": after - before,
    }
    if len(names) > options.asked:
        # Asked in turn and not last to first, so that the order on disk does not help.
        asked = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
        part, rest = asked[: options.asked], asked[options.asked :]
        seconds, _ = clock(lambda: [stack.predict([TEXT], name) for name in part])
        told[f"an answer, mean of {options.asked} frames (s)"] = seconds / len(part)
        told[f"memory when {options.asked} frames have answered (MB)"] = megabytes() - before
        for name in rest:
            stack.predict([TEXT], name)
        told["memory when all have answered (MB)"] = megabytes() - before
    return told


def save_side(folder: Path) -> dict:
    stack = opened(folder)()
    rng = np.random.default_rng(1)
    seconds = []
    for i in range(3):  # the first reads the latest frame and makes the slot
        last = stack.frames[-1]
        stack.frames.append(another(last, f"more{i}", last.name, rng))
        seconds.append(clock(lambda: stack.save_pretrained(folder))[0])
    return {"save one more (s)": float(np.median(seconds))}


def peft_side(folder: Path) -> dict:
    import torch
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    from skillstack_helpers.loading import _locate

    frames = sorted((folder / "frames").iterdir())
    base = _locate("minilm")[0]
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base)
    inputs = tokenizer(TEXT, return_tensors="pt")
    with torch.inference_mode():
        model(**inputs)
    before = megabytes()

    def open_it():
        both = PeftModel.from_pretrained(model, frames[0], adapter_name=frames[0].name)
        for frame in frames[1:]:
            both.load_adapter(frame, adapter_name=frame.name)
        return both.eval()

    def answer():
        both.set_adapter(frames[-1].name)
        with torch.inference_mode():
            return both(**inputs)

    seconds, both = clock(open_it)
    after = megabytes()
    first, _ = clock(answer)
    again, _ = clock(answer)
    return {
        "open (s)": seconds,
        "first answer (s)": first,
        "the same frame again (s)": again,
        "memory to open (MB)": after - before,
    }


if options.side:
    side = {"stack": stack_side, "save": save_side, "peft": peft_side}[options.side]
    print(json.dumps(side(options.folder)))
    sys.exit()

with tempfile.TemporaryDirectory() as folder:
    whole, counts = Path(folder) / "whole", (10, 100, options.frames)
    build(whole, options.frames)
    head_of(whole, whole.parent / "1", 1)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    print(f"minilm, {size / 1e6:.0f} MB in {options.frames} frames, {options.repeats} turns")
    told = {("stack", n): [] for n in (1, options.frames)} | {("peft", PEFT_FRAMES): []}
    told |= {("save", n): [] for n in counts}
    for _ in range(options.repeats):
        for (side, n), rows in told.items():
            place = head_of(whole, whole.parent / "side", n)
            command = [sys.executable, __file__, "--side", side, "--folder", str(place)]
            command += ["--asked", str(options.asked)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(place)
for what in dict.fromkeys(key for rows in told.values() for key in rows[0]):
    print(f"\n{what}: median [min, max]")
    for (side, n), rows in told.items():
        if what in rows[0]:
            values = [row[what] for row in rows]
            low, high = min(values), max(values)
            print(f"  {side:5s} {n:5d} {np.median(values):9.4f} [{low:.4f}, {high:.4f}]")
