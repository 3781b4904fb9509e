"""LoRA gradients in float16, scaled and not, and in bfloat16, against those in float32.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/precision.py

One batch of texts on the CPU, a slot as it is after some training, and a loss multiplied by a power
of two: 1 as at the start of training, smaller as once a task is learned. `scaled` is what
`training.train` does, at the scale it begins with.
"""

import argparse

import numpy as np
import torch

from skillstack_helpers import training
from skillstack_helpers.heads import LinearHead, classification_loss
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.tasks import load_task

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--task", default="bbc")
options = parser.parse_args()

data = load_task(options.task, n_train=2, n_router=5, n_eval=2, seed=7, source="embedded")
rows, labels = np.arange(8), data.labels("train")[:8]
SCALE = torch.amp.GradScaler("cpu").get_scale()


def gradients(dtype):
    """A function that gives LoRA gradients, (parameters,), of a loss times a factor, at a scale."""
    backbone = load_backbone(options.model, dtype, device="cpu")
    backbone.attach(8, 16)
    torch.manual_seed(0)
    for parameter in backbone.lora_parameters.values():
        torch.nn.init.normal_(parameter, std=0.02)
    head = LinearHead(backbone, data.task.label_names)
    ids = backbone.encode(data.texts("train")[:8], 160)
    loss = classification_loss([head], ids, labels, np.zeros(8, dtype=int))
    parameters = list(backbone.lora_parameters.values())

    def of(factor, scale):
        with training.trainable(parameters):
            (loss(rows) * factor * scale).backward()
            return torch.cat([p.grad.flatten() for p in parameters]) / scale

    return of


factors = [0, -8, -12, -16]  # powers of two
single = gradients("float32")
expected = [single(2.0**k, 1) for k in factors]
print(f"{options.model}, {len(expected[0]):,} LoRA parameters, 8 texts of {options.task}")
print("relative error of the gradient, and the share under a tenth of its size, at loss times 2^k")
print(f"{'':18s}" + "".join(f"{f'k = {k}':>20s}" for k in factors))
for name, dtype, scale in (
    ("float16", "float16", 1),
    ("float16, scaled", "float16", SCALE),
    ("bfloat16", "bfloat16", 1),
):
    of, cells = gradients(dtype), []
    for k, right in zip(factors, expected, strict=True):
        found = of(2.0**k, scale)
        error = (found - right).norm() / right.norm()
        cells.append(f"{error:12.4f}  {(found.abs() < right.abs() / 10).float().mean():6.1%}")
    print(f"{name:18s}" + "".join(cells), flush=True)
