"""What it costs to add one frame to a fitted router of 32, against fitting anew.

    .venv/bin/python benchmarks/routers.py | tee benchmarks/routers.txt

Frames are label-split sub-tasks: every label of hard12 in parts of 16 texts. Each measurement
starts from empty caches of tokens and embeddings, the two sides in turn, `--repeats` times.
"""

import argparse
import time

import numpy as np

from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import make_router
from skillstack_helpers.tasks import PRESETS, load_task

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--preset", default="hard12", choices=PRESETS)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--rows", type=int, default=16, help="texts a frame")
options = parser.parse_args()

backbone = load_backbone("minilm")
stream = [load_task(name, 1, 256, 8, seed=42) for name in PRESETS[options.preset]]
pools = [
    data.task.render(rows.iloc[start : start + options.rows])
    for data in stream
    for _, rows in data.router.groupby("label")
    for start in range(0, len(rows) - options.rows + 1, options.rows)
]
pools = pools[:: max(1, len(pools) // 64)]
print(f"{len(pools)} sub-tasks of {options.rows} texts")


def rows(frames):
    texts = [text for k in frames for text in pools[k]]
    return texts, [f"sub{k}" for k in frames for _ in pools[k]]


def timed(work, *arguments):
    backbone.forget()
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def median(values):
    return f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


print("\nadd frame 33 / fit 33 frames anew: seconds, median [min, max], and the ratio pair by pair")
for name in ("centroid", "profile"):
    add, anew = [], []
    for _ in range(options.repeats):
        fitted = make_router(name, backbone=backbone).fit(*rows(range(32)))
        add.append(timed(fitted.partial_fit, *rows([32])))
        anew.append(timed(make_router(name, backbone=backbone).fit, *rows(range(33))))
    print(f"{name:16s} {median(add)}  {median(anew)}  ratio {median(np.divide(add, anew))}")
