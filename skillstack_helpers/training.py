"""The one training loop and the one evaluation loop.

Texts come in as token ids, made once. Batches hold texts of similar length, so little is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def new_head(backbone: Backbone, classes: int) -> torch.nn.Linear:
    """A classification head to be trained: weights N(0, 0.02), bias (encoders only) zero."""
    head = torch.nn.Linear(backbone.hidden_size, classes, bias=backbone.kind == "encoder")
    torch.nn.init.normal_(head.weight, std=0.02)
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    return head.to(backbone.device)


def train(
    backbone: Backbone,
    heads: torch.nn.Linear | Sequence[torch.nn.Linear],
    ids: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    rng: np.random.Generator,
    body: Sequence[torch.nn.Parameter] | None = None,
    owners: np.ndarray | None = None,
    rehearse: Callable[[], np.ndarray] | None = None,
    n_new: int | None = None,
    penalty: Callable[[], Tensor] | None = None,
    after_backward: Callable[[], None] | None = None,
    objective: Callable[[np.ndarray], Tensor] | None = None,
    description: str = "train",
    progress: Callable = tqdm,
) -> list[float]:
    """Train the LoRA slot (or `body`) and heads on cross-entropy; returns the loss of every step.

    AdamW without weight decay, gradient norm clipped at 1, learning rate up over the first tenth
    of the steps and then linearly down to zero. Deterministic on the CPU for a given `rng` and
    torch seed.

    What the baselines add: several heads and `owners`, the head of each row (n,); `rehearse`, which
    gives further rows for every batch (an epoch then runs over the first `n_new` rows alone);
    `penalty`, a scalar added to the loss; `after_backward`, called before gradients are clipped.
    objective: the loss of a batch of row indices, in place of cross-entropy under a head.
    """
    heads = [heads] if isinstance(heads, torch.nn.Linear) else list(heads)
    owners = np.zeros(len(ids), dtype=np.int64) if owners is None else owners
    body = list(backbone.lora_parameters.values() if body is None else body)
    parameters = [*body, *(p for head in heads for p in head.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    lengths = [len(row) for row in ids[:n_new]]
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
        if rehearse is not None:
            batch = np.concatenate([batch, rehearse()])
        if objective is not None:
            loss = objective(batch)
        else:
            inputs = pad([ids[i] for i in batch], backbone.pad_id, backbone.device)
            features = backbone.features(*inputs)  # (batch, hidden)
            loss = cross_entropy(features, heads, owners[batch], targets[torch.from_numpy(batch)])
        (loss if penalty is None else loss + penalty()).backward()
        if after_backward is not None:
            after_backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.stack(losses).tolist()


def cross_entropy(
    features: Tensor, heads: Sequence[torch.nn.Linear], owners: np.ndarray, targets: Tensor
) -> Tensor:
    """Mean cross-entropy of features (batch, hidden), each row under its own head."""
    present = np.unique(owners)
    if len(present) == 1:
        return torch.nn.functional.cross_entropy(heads[present[0]](features), targets)
    sums = []
    for k in present:
        rows = torch.from_numpy(np.flatnonzero(owners == k)).to(features.device)
        scores = heads[k](features[rows])  # (rows of this head, classes)
        sums.append(torch.nn.functional.cross_entropy(scores, targets[rows], reduction="sum"))
    return torch.stack(sums).sum() / len(targets)


def batch_bar(progress: Callable, batches: Sequence[np.ndarray], description: str) -> Iterable:
    """The batches behind a bar that vanishes when they are done; none for a single batch."""
    how = {"leave": False, "unit": "batch", "disable": len(batches) < 2}
    return progress(batches, desc=description, **how)


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
    for batch in batch_bar(progress, batches, description):
        inputs = pad([ids[i] for i in batch], backbone.pad_id, backbone.device)
        out[batch] = head(backbone.features(*inputs)).cpu().numpy()
    return out
