"""Many LoRA adapters in one forward pass: each row of a batch with its own.

Every adapted linear layer gathers its rows' factors and adds two batched products (Chen et al.
2023, "Punica", on plain torch). A batch whose rows all have the same adapter needs no gathering and
two plain products instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

_BARE = "base_model.model."  # PEFT's prefix of adapter names on a bare AutoModel


def short_name(name: str) -> str:
    """A PEFT name as the bare model has it."""
    return name.removeprefix(_BARE)


class Place(NamedTuple):
    """Where a linear layer's factors stand in a packed adapter: A (r, in), then B (out, r)."""

    start: int
    inputs: int
    outputs: int


class Layout(NamedTuple):
    """How adapters of one rank are packed."""

    rank: int
    places: Mapping[str, Place]  # by the layer's name in the bare model
    size: int  # numbers of an adapter


def layout(lora: Mapping[str, Tensor], rank: int) -> Layout:
    """The layout of adapters of at most that rank for the layers that `lora` adapts."""
    places, end = {}, 0
    for name, a in lora.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            inputs, outputs = a.shape[1], lora[f"{module}.lora_B.weight"].shape[0]
            places[short_name(module)] = Place(end, inputs, outputs)
            end += rank * (inputs + outputs)
    return Layout(rank, places, end)


def pack(lora: Mapping[str, Tensor], scale: float, how: Layout) -> Tensor:
    """An adapter as one float32 vector (size,): `scale` in B, missing ranks zero."""
    vector = torch.zeros(how.size)
    for module, (start, inputs, outputs) in how.places.items():
        a = lora[f"{_BARE}{module}.lora_A.weight"]
        b = lora[f"{_BARE}{module}.lora_B.weight"]
        middle, end = start + how.rank * inputs, start + how.rank * (inputs + outputs)
        vector[start:middle].view(how.rank, inputs)[: len(a)] = a
        vector[middle:end].view(outputs, how.rank)[:, : len(a)] = b * scale
    return vector


class Adapters(NamedTuple):
    """The adapters of a batch."""

    layout: Layout
    first: int | None  # the first adapted layer, None: all are
    layers: Mapping[str, torch.nn.Module]  # the bare linear layers of the layout, by name
    packed: Sequence[Tensor]  # of `pack`
    owners: Tensor  # which of them each row has, int64 (batch,), on the CPU


@contextlib.contextmanager
def adapted(lora: Adapters, owners: Tensor) -> Iterator[None]:
    """Inside, row i of a batch has adapter ``lora.packed[owners[i]]``; owners: those of a batch or
    of a part of it."""
    how, asked = lora.layout, owners.tolist()
    # One adapter for all rows is not copied for each: (1, numbers).
    asked = asked[:1] if len(set(asked)) == 1 else asked
    chosen = [lora.packed[k] for k in asked]

    def factors(name: str) -> tuple[Tensor, Tensor]:
        start, inputs, outputs = how.places[name]
        middle, size = how.rank * inputs, how.rank * (inputs + outputs)
        # Layer by layer, so that what was gathered is in the caches when it is used.
        mine = torch.stack([one[start : start + size] for one in chosen])
        a = mine[:, :middle].view(-1, how.rank, inputs)
        return a, mine[:, middle:].view(-1, outputs, how.rank)

    with adding(lora.layers, factors):
        yield


@contextlib.contextmanager
def adding(
    layers: Mapping[str, torch.nn.Module], factors: Callable[[str], tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Inside, these linear layers add B A x to what they return.

    factors: of a layer's name, asked when it runs: A (n, r, in) and B (n, out, r); n is the rows
    of the batch, or 1.
    """
    hooks = []
    try:
        for name, layer in layers.items():
            hooks.append(layer.register_forward_hook(_adding(partial(factors, name))))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(factors: Callable[[], tuple[Tensor, Tensor]]):
    def add(module, args, output: Tensor) -> Tensor:
        a, b = factors()
        x, shape = args[0].to(a.dtype), output.shape
        # Some models flatten a batch to (tokens of all rows, hidden); rows stay in order.
        x = x.reshape(len(a), -1, a.shape[2])
        # In place: nobody else has what the layer returned.
        total = output.to(a.dtype).reshape(len(a), -1, b.shape[1])
        if len(a) == 1:
            total[0].addmm_(x[0] @ a[0].T, b[0].T)
        else:
            total.baddbmm_(torch.bmm(x, a.mT), b.mT)
        return total.view(shape).to(output.dtype)

    return add
