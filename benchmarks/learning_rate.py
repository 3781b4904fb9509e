"""Which peak learning rate suits a model: a chain of four short tasks at each rate, every frame
asked about its own task's routing rows, on which nothing is reported.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/learning_rate.py --model mpnet
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/learning_rate.py --model smollm2-135m \
        --dtype bfloat16 --first-adapted-layer 0.5 --rates 5e-4 1e-3 2e-3

A rate that is in --out already is not run again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from skillstack_helpers import SkillStack, SkillStackError, TrainingConfig, load_backbone
from skillstack_helpers.files import write_atomic
from skillstack_helpers.tasks import load_task

USUAL = {"dtype": "float32", "first_adapted_layer": None}  # of entries that do not say

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--model", required=True)
parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 2e-4])
parser.add_argument("--tasks", nargs="+", default=["rotten_tomatoes", "agnews", "sst2", "mrpc"])
parser.add_argument("--n-train", type=int, default=48)
parser.add_argument("--n-router", type=int, default=256)
parser.add_argument("--seed", type=int, default=7)
parser.add_argument("--dtype", default=USUAL["dtype"])
parser.add_argument("--first-adapted-layer", type=float)
parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
options = parser.parse_args()

stream = [
    load_task(name, options.n_train, options.n_router, 1, options.seed) for name in options.tasks
]
known = {"model": Path(options.model).name, "seed": options.seed, "n_train": options.n_train}
known |= {key: getattr(options, key) for key in USUAL}
done = json.loads(options.out.read_text()) if options.out.exists() else []
backbone = None
for lr in options.rates:
    run = known | {"lr": lr}
    same = [other for other in done if run.items() <= (USUAL | other).items()]
    if any([*other["right"]] == options.tasks for other in same):
        continue
    backbone = backbone or load_backbone(options.model, dtype=options.dtype, device="cpu")
    first = options.first_adapted_layer
    config, right = TrainingConfig(lr=lr, seed=options.seed, first_adapted_layer=first), {}
    stack, start = SkillStack(backbone), time.process_time()
    try:
        for data in stream:
            stack.grow(data, config)
            answers = stack.predict(data.texts("router"), frame=data.name).labels
            right[data.name] = round(float(np.mean(answers == data.labels("router"))), 4)
            print(f"{known['model']} {lr:g} {data.name}: {right[data.name]:.3f}", flush=True)
    except SkillStackError as error:  # diverged
        print(error, flush=True)
    right |= {data.name: None for data in stream if data.name not in right}
    minutes = round((time.process_time() - start) / 60, 1)
    done.append(run | {"right": right, "n": options.n_router, "cpu_minutes": minutes})
    write_atomic(options.out, json.dumps(done, indent=1) + "\n")

for run in (run for run in done if known.items() <= (USUAL | run).items()):
    shown = {name: f"{value or np.nan:.3f}" for name, value in run["right"].items()}
    mean = np.mean([value or np.nan for value in run["right"].values()])
    print(f"{run['lr']:g}", shown, f"mean {mean:.3f}", f"{run['cpu_minutes']} minutes")
