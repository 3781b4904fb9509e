"""*The* training loop, and the batches of training and evaluation.

The loop knows no model: it is given parameters and ``loss(rows)``. Texts are token ids, made once;
batches hold texts of similar length, so little is padded.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .config import TrainingConfig
from .errors import SkillStackError
from .progress import progress

EVAL_BATCH = 64  # fixed: logits are bit-equal only where the batches are the same
WARMUP = 0.1  # share of the steps in which the learning rate rises from 0
POOL = 8  # training batches are cut from shuffled pools of this many batches, sorted by length


def default_lr(hidden_size: int) -> float:
    """Peak learning rate of a LoRA where none is given: the published 2e-4 for Llama-size models.
    Smaller ones learn little from it in so few steps; docs/log.md has the search."""
    return 2e-4 if hidden_size >= 2048 else 5e-4 if hidden_size >= 512 else 2e-3


def peak_lr(config: TrainingConfig, hidden_size: int) -> float:
    """The config's learning rate, or the default of models of that size."""
    return config.lr or default_lr(hidden_size)


def recipe(config: TrainingConfig, backbone) -> dict:
    """What a frame on that `Backbone` is trained with, as it is noted and compared: the training
    fields alone, the learning rate resolved, texts no longer than the model has positions for, the
    first adapted layer a number."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainingConfig)}
    return fields | {
        "lr": peak_lr(config, backbone.hidden_size),
        "max_length": min(config.max_length, backbone.max_positions),
        "first_adapted_layer": backbone.layer_number(config.first_adapted_layer),
    }


@contextlib.contextmanager
def seeded(seed: int, order: int = 0) -> Iterator[np.random.Generator]:
    """The random state in which the order-th task of a stream is learned: torch is seeded and put
    back afterwards; yields the generator that draws the batches."""
    entropy = np.random.SeedSequence([seed, order])
    with torch.random.fork_rng():
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        yield np.random.default_rng(entropy)


@contextlib.contextmanager
def trainable(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters that ask for gradients inside, and for none afterwards, whatever happens."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def train(
    loss: Callable[[np.ndarray], Tensor],
    parameters: Sequence[Tensor],
    lengths: Sequence[int],
    config: TrainingConfig,
    rng: np.random.Generator,
    *,
    lr: float,
    after_backward: Callable[[], None] | None = None,
    split: Callable[[int], None] | None = None,
    half: bool = False,
    description: str = "train",
) -> list[float]:
    """Minimize ``loss(rows)``, a scalar for a batch of row indices; returns the loss of every step.

    lengths: tokens of each row, (n,). config: for epochs and batch size. AdamW without weight
    decay, gradient norm clipped at 1, learning rate up over the first tenth of the steps and then
    linearly down to zero. after_backward: called before gradients are clipped. split: called with
    the size of a batch that did not fit in the GPU's memory before it is tried again; it makes
    `loss` need less, or raises (`Backbone.split_batches`). half: the model computes in float16,
    whose gradients vanish below 6e-8: the loss is scaled up (Micikevicius et al. 2018), and a batch
    whose gradients overflow is learned again at half the scale. Deterministic on the CPU for a
    given `rng` and torch seed. Raises `SkillStackError` if the training diverged.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    epochs = (train_batches(lengths, config.batch_size, rng) for _ in range(config.epochs))
    batches = [batch for epoch in epochs for batch in epoch]
    warmup = max(1, round(WARMUP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup + 1)),
    )
    # Disabled, it hands everything through: the same operations as without.
    scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=half)
    losses = []
    with trainable(parameters):
        for batch in progress(batches, description, "step"):
            drawn, step = rng.bit_generator.state, None
            while step is None:  # until the gradients fit into memory, and into float16
                rng.bit_generator.state = drawn
                optimizer.zero_grad(set_to_none=True)
                try:
                    step = loss(batch)
                    scaler.scale(step).backward()
                except torch.cuda.OutOfMemoryError:
                    if split is None:
                        raise
                    step = None  # with its tensors; so does the error, whose handler ends here
                if step is None:
                    split(len(batch))
                    continue
                scaler.unscale_(optimizer)
                if after_backward is not None:
                    after_backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                if scaler.get_scale() < scale:  # gradients overflowed, and no step was made
                    step = None
                    if scale <= 1:
                        raise SkillStackError(
                            f"{description}: gradients overflow float16 at every scale; choose "
                            f"dtype='bfloat16' or 'float32', or a lower lr ({lr:g})"
                        )
            schedule.step()
            losses.append(step.detach())
    losses = torch.stack(losses)
    if not losses.isfinite().all() or not all(p.isfinite().all() for p in parameters):
        raise SkillStackError(f"{description}: the loss is not finite; lower lr ({lr:g})")
    return losses.tolist()


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


def pass_size(device: str) -> int:
    """Texts per forward pass where no committed logits depend on it: on the CPU batches of 64
    texts no longer fit the caches and take up to 1.4 times as long (benchmarks/)."""
    return 16 if device == "cpu" else EVAL_BATCH


def eval_batches(lengths: Sequence[int], size: int = EVAL_BATCH) -> list[np.ndarray]:
    """All rows sorted by length, longest first (memory runs out at once or never)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad(
    ids: Sequence[np.ndarray] | Sequence[Tensor], pad_id: int, device: str
) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask, int64 (batch, longest of this batch); of states (length, hidden)
    a tensor (batch, longest, hidden), padded with zeros."""
    width = max(len(row) for row in ids)
    if isinstance(ids[0], Tensor):
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
        padded = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
        return padded.to(device), mask.to(device, torch.int64)
    padded = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device)
