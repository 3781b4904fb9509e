"""A stack of many frames: seconds and memory to open it and to answer one text.

    .venv/bin/python benchmarks/inspector.py | tee benchmarks/inspector.txt

The frames are real ones, of a single training step each, with a `hybrid_chain` router over them.
Each side runs in processes of its own, in turn, with the model loaded and warm before the clock
starts: the stack, the inspector's page on it, and what a PEFT user would do: every adapter loaded
into one model (`load_adapter`), one of them set active, one text answered without any router.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--frames", type=int, default=64)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--side", choices=["stack", "page", "peft"], help=argparse.SUPPRESS)
parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
options = parser.parse_args()
os.environ["TQDM_DISABLE"] = "1"
TEXT = "The plot is thin, but the two leads make up for it, and the ending is worth the wait."


def build(folder: Path) -> None:
    import skillstack_helpers as ss

    stack = ss.SkillStack(ss.load_backbone("minilm"))
    data = ss.load_task("movies", 4, 256, 4, seed=42, source="embedded")
    texts, names = [], []
    for i in range(options.frames):
        task = dataclasses.replace(data.task, name=f"skill{i:02}")
        stack.grow(dataclasses.replace(data, task=task), ss.TrainingConfig(epochs=1))
        mine = data.texts("router")[i % 64 * 4 : i % 64 * 4 + 4]
        texts += [f"{task.name} {text}" for text in mine]
        names += [task.name] * len(mine)
    stack.save_pretrained(folder)
    ss.save_router(
        ss.make_router("hybrid_chain").fit(texts, names), folder / "routers/hybrid_chain"
    )


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def clock(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def warm(stack) -> None:
    """The model loaded, PEFT imported, the slot made: what no number of frames changes."""
    stack.predict(["A warm-up."], stack.frames[0].name)


def stack_side(folder: Path) -> dict:
    from skillstack_helpers.lab import views
    from skillstack_helpers.lab.experiment import open_stack, stack_routers

    backbones = {}
    warm(open_stack(folder, backbones))
    before = megabytes()

    def open_it():
        stack = open_stack(folder, backbones)
        return stack, stack_routers(stack, folder)["hybrid_chain"]

    opened, (stack, router) = clock(open_it)
    after = megabytes()
    answered, _ = clock(lambda: stack.answer([TEXT], router))
    again, _ = clock(lambda: stack.answer([f"{TEXT} Twice."], router))
    names = [frame.name for frame in stack.frames]
    every, _ = clock(lambda: views.ask(stack, TEXT, names))
    once = megabytes()
    for _ in range(3):
        views.ask(stack, TEXT, names)
    return {
        "open (s)": opened,
        "first answer (s)": answered,
        "next answer (s)": again,
        "every frame asked (s)": every,
        "memory to open (MB)": after - before,
        "memory when every frame has answered (MB)": once - before,
        "memory when every frame has answered four times (MB)": megabytes() - before,
    }


def page_side(folder: Path) -> dict:
    from skillstack_helpers.lab import experiment, widgets

    app = widgets.Inspector(None, folder.parent)
    warm(experiment.open_stack(folder, app.backbones))
    before = megabytes()
    opened, _ = clock(lambda: app.open(str(folder)))
    app.text.value = TEXT
    answered, _ = clock(app.ask_button.click)
    app.text.value = f"{TEXT} Twice."
    app.message.value, seen = "", []
    app.message.observe(lambda _: seen.append(time.perf_counter()), "value")
    start = time.perf_counter()
    again, _ = clock(app.ask_button.click)
    assert "answers" in app.message.value, app.message.value
    every, _ = clock(app.answer.children[-1].click)
    return {
        "open (s)": opened,
        "first answer (s)": answered,
        "next answer (s)": again,
        "its first line is there (s)": seen[0] - start,
        "every frame asked (s)": every,
        "memory when every frame has answered (MB)": megabytes() - before,
    }


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

    def answer(name):
        both.set_adapter(name)
        with torch.inference_mode():
            return both(**inputs)

    opened, both = clock(open_it)
    after = megabytes()
    answered, _ = clock(lambda: answer(frames[3].name))
    again, _ = clock(lambda: answer(frames[5].name))
    every, _ = clock(lambda: [answer(frame.name) for frame in frames])
    return {
        "open (s)": opened,
        "first answer (s)": answered,
        "next answer (s)": again,
        "every frame asked (s)": every,
        "memory to open (MB)": after - before,
        "memory when every frame has answered (MB)": megabytes() - before,
    }


if options.side:
    side = {"stack": stack_side, "page": page_side, "peft": peft_side}[options.side]
    print(json.dumps(side(options.folder)))
    sys.exit()

with tempfile.TemporaryDirectory() as folder:
    stack = Path(folder) / "stack"
    build(stack)
    size = sum(path.stat().st_size for path in stack.rglob("*") if path.is_file())
    print(
        f"{options.frames} frames on minilm, {size / 1e6:.0f} MB on disk, {options.repeats} turns"
    )
    told = {side: [] for side in ("stack", "page", "peft")}
    for _ in range(options.repeats):
        for side, rows in told.items():
            command = [sys.executable, __file__, "--side", side, "--folder", str(stack)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
for what in dict.fromkeys(key for rows in told.values() for key in rows[0]):
    print(f"\n{what}: median [min, max]")
    for side, rows in told.items():
        if what in rows[0]:
            values = [row[what] for row in rows]
            low, high = min(values), max(values)
            print(f"  {side:6s} {np.median(values):8.3f} [{low:.3f}, {high:.3f}]")
