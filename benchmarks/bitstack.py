"""What BitStack costs: a training step with and without it, and `update` against its own passes.

    .venv/bin/python benchmarks/bitstack.py | tee benchmarks/bitstack.txt

Full fine-tuning of minilm on news texts that ship inside a PyPI package. Both sides of every pair
take the same batch, one right after the other, the order changing from pair to pair.
"""

import argparse
import copy
import time

import numpy as np
import torch

from skillstack_helpers.bitstack import BitStack
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.tasks import load_task
from skillstack_helpers.training import pad, train_batches

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--n-batches", type=int, default=32)
parser.add_argument("--sparsity", type=float, default=0.12)
options = parser.parse_args()

backbone = load_backbone("minilm", device="cpu")
data = load_task("bbc", 48, 8, 8, seed=42, source="embedded")
ids, labels = backbone.encode(data.texts("train"), 160), data.labels("train")


class Classifier(torch.nn.Module):
    """All of the backbone is trained, under a head."""

    def __init__(self):
        super().__init__()
        self.body = copy.deepcopy(backbone.model).requires_grad_(True)
        self.score = torch.nn.Linear(backbone.hidden_size, len(data.task.label_names))

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return {"loss": torch.nn.functional.cross_entropy(self.score(mean), labels)}


def batches(seed):
    rng = np.random.default_rng(seed)
    while True:
        for rows in train_batches([len(row) for row in ids], 8, rng):
            padded, mask = pad([ids[i] for i in rows], backbone.pad_id, "cpu")
            target = torch.tensor(labels[rows])
            yield {"input_ids": padded, "attention_mask": mask, "labels": target}


def step(model, optimizer, batch):
    start = time.perf_counter()
    model(**batch)["loss"].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def spread(values):
    low, high = np.percentile(values, [25, 75])
    return f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]"


torch.manual_seed(0)
plain = Classifier()
masked = copy.deepcopy(plain)
bitstack = BitStack(masked, sparsity=options.sparsity)
stats = bitstack.update(batches(1), n_batches=4)
sides = [(m, torch.optim.AdamW(m.parameters(), lr=2e-5)) for m in (plain, masked)]
times = []
for i, batch in zip(range(options.steps + 4), batches(2), strict=False):
    pair = {side: step(*sides[side], batch) for side in ((0, 1) if i % 2 else (1, 0))}
    times.append([pair[0], pair[1]])
times = np.array(times[4:])  # the first ones make the optimizers' states
print(f"{torch.get_num_threads()} threads, {options.steps} pairs; median [quartiles]")
print(f"step without           {spread(times[:, 0])} s")
print(f"step with one task     {spread(times[:, 1])} s")
print(f"ratio pair by pair     {spread(times[:, 1] / times[:, 0])}")
print(f"ratio of the totals    {times[:, 1].sum() / times[:, 0].sum():.3f}")

ratios = []
for repeat in range(3):
    few = [batch for batch, _ in zip(batches(3 + repeat), range(options.n_batches), strict=False)]

    def passes(few=few):
        for batch in few:
            plain(**batch)["loss"].backward()
        plain.zero_grad()

    def update(few=few):
        BitStack(plain, sparsity=options.sparsity).update(few, n_batches=options.n_batches)

    seconds = {}
    for work in (passes, update) if repeat % 2 else (update, passes):
        start = time.perf_counter()
        work()
        seconds[work.__name__] = time.perf_counter() - start
    ratios.append(seconds["update"] / seconds["passes"])
print(f"update / its passes    {np.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")
bits = stats["mask_bytes"] / (stats["eligible"] / 8)
print(f"mask bytes / (eligible parameters / 8)   {bits:.4f}")
print(f"kept weights           {stats['value_bytes'] / 1e6:.1f} MB for {stats['locked']:,} locked")
