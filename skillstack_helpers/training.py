"""The one training loop and the one evaluation loop.

Texts come in as token ids, made once. Batches hold texts of similar length, so little is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from .backbones import Backbone

EVAL_BATCH = 64  # fixed: logits are bit-equal only where the batches are the same
WARMUP = 0.1  # share of the steps in which the learning rate rises from 0
POOL = 8  # training batches are cut from shuffled pools of this many batches, sorted by length


def train_batches(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """One epoch of shuffled batches (row indices): every row once, similar lengths together."""
    order = rng.permutation(len(lengths))
    pools = np.split(order, np.arange(0, len(order), POOL * batch_size)[1:])
    lengths = np.asarray(lengths)
    order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = np.split(order, np.arange(0, len(order), batch_size)[1:])
    return [batches[i] for i in rng.permutation(len(batches))]


def eval_batches(lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """All rows sorted by length, longest first (memory runs out at once or never)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), EVAL_BATCH):
        yield order[start : start + EVAL_BATCH]


def pad(ids: Sequence[np.ndarray], pad_id: int, device: str) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask, int64 (batch, longest of this batch)."""
    width = max(len(row) for row in ids)
    padded = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device)


def train(
    backbone: Backbone,
    head: torch.nn.Linear,
    ids: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    rng: np.random.Generator,
    description: str = "train",
    progress: Callable = tqdm,
) -> list[float]:
    """Train the LoRA slot and the head on cross-entropy; returns the loss of every step.

    AdamW without weight decay, gradient norm clipped at 1, learning rate up over the first tenth
    of the steps and then linearly down to zero. Deterministic on the CPU for a given `rng` and
    torch seed.
    """
    parameters = [*backbone.lora_parameters.values(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    lengths = [len(row) for row in ids]
    batches = [b for _ in range(epochs) for b in train_batches(lengths, batch_size, rng)]
    warmup = max(1, round(WARMUP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup + 1)),
    )
    targets = torch.tensor(labels, dtype=torch.int64, device=backbone.device)
    losses = []
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in progress(batches, desc=description, leave=False, unit="step"):
        inputs = pad([ids[i] for i in batch], backbone.pad_id, backbone.device)
        logits = head(backbone.features(*inputs))  # (batch, classes)
        loss = torch.nn.functional.cross_entropy(logits, targets[torch.from_numpy(batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.stack(losses).tolist()


@torch.inference_mode()
def logits(
    backbone: Backbone,
    head: torch.nn.Linear,
    ids: Sequence[np.ndarray],
    *,
    description: str = "evaluate",
    progress: Callable = tqdm,
) -> np.ndarray:
    """Logits of the slot's present adapter under `head`, float32 (n, classes), in input order."""
    out = np.empty((len(ids), head.out_features), dtype=np.float32)
    batches = list(eval_batches([len(row) for row in ids]))
    for batch in progress(batches, desc=description, leave=False, unit="batch"):
        inputs = pad([ids[i] for i in batch], backbone.pad_id, backbone.device)
        out[batch] = head(backbone.features(*inputs)).cpu().numpy()
    return out
