"""The trunk: a transformer's frozen lower layers, run once per text.

Frames that adapt the upper layers alone share all that lies below. Its output, the *states* of a
text (tokens, hidden), is kept, and whatever is asked of the text (epochs of training, other frames,
a router) starts there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import SkillStackError, checked_number
from .hardware import GIB, say_once
from .progress import progress
from .training import eval_batches


def layer_list(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The transformer layers, in order; `SkillStackError` where there is no single list of them."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    depth = model.config.num_hidden_layers
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    found = [lists[name] for name in outer if len(lists[name]) == depth]
    if len(found) != 1:
        raise SkillStackError(
            f"{model.config.model_type} has no list of {depth} layers: first_adapted_layer=None"
        )
    return found[0]


def layer_number(model: torch.nn.Module, first: int | float | None) -> int | None:
    """`first_adapted_layer` as the number of a layer: a fraction is of the depth; None: all layers.

    Raises `SkillStackError` unless at least one layer lies below and one is left.
    """
    if first is None:
        return None
    checked_number(first, "first_adapted_layer")
    depth = len(layer_list(model))
    number = round(first * depth) if isinstance(first, float) else first
    if not 1 <= number < depth:
        raise SkillStackError(
            f"first_adapted_layer={first} is layer {number}; this model has layers 1 to "
            f"{depth - 1} to start from"
        )
    return number


# Kind of layer -> how much it returns behind the states, None if it returns no tuple; from
# `run_lower`.
_MORE: dict[type, int | None] = {}


class _Reached(Exception):
    """The trunk's end; what lies above need not run."""


def run_lower(
    model: torch.nn.Module, layers: Sequence[torch.nn.Module], first: int, arguments: dict
) -> list[Tensor]:
    """Run a model up to layer `first`; what layers 0 to `first` read, each (batch, length, hidden).

    These are transformers' ``hidden_states[0]`` to ``[first]``.
    """
    read: list[Tensor] = []

    def note(layer, args, kwargs) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])
        if len(read) > first:
            raise _Reached

    def note_kind(layer, args, output) -> None:
        _MORE[type(layer)] = len(output) - 1 if isinstance(output, tuple) else None

    hooks = [layers[0].register_forward_hook(note_kind)]
    for layer in layers[: first + 1]:
        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with contextlib.suppress(_Reached):
            model(**arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return read


@contextlib.contextmanager
def starting_from(layers: Sequence[torch.nn.Module], first: int, states: Tensor) -> Iterator[None]:
    """Inside, the layers below `first` hand on `states` (batch, length, hidden) and compute
    nothing.

    They stay in their list, since layers may differ in their masks by position.
    """
    before = [vars(layer).get("forward") for layer in layers[:first]]
    for layer in layers[:first]:
        layer.forward = _handing_on(layer, states)
    try:
        yield
    finally:
        for layer, forward in zip(layers[:first], before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _handing_on(layer: torch.nn.Module, states: Tensor) -> Callable:
    """A `forward` that returns what the layer would: a tensor, or a tuple that begins with it."""
    more = _MORE.get(type(layer))
    answer = states if more is None else (states, *[None] * more)
    return lambda *args, **kwargs: answer


# ---------------------------------------------------------------------- what is kept


class Group(NamedTuple):
    """Texts that were run together."""

    states: list[Tensor] | None  # (tokens, hidden) of each, on the CPU; None: not kept
    pooled: np.ndarray  # mean over tokens of what layers 0 to first read, (n, first + 1, hidden)
    nbytes: int


class Kept:
    """States of texts (token ids), kept until they take more than `most_bytes`.

    On the CPU a text's states depend, in their last bits, on the texts beside it in a batch. So
    what must be the same to the last bit in every process asks with ``together=True``: its texts
    are then always run with one another and no others.

    folder: None keeps them in memory; else in files there, which vanish with the process.
    """

    def __init__(self, most_bytes: int = 2 * GIB, folder: Path | None = None):
        self.most_bytes, self.folder = most_bytes, folder
        self._groups: OrderedDict[bytes, Group] = OrderedDict()
        self._places: dict[bytes, tuple[bytes, int]] = {}  # text -> its group, place in it

    def clear(self) -> None:
        self._groups.clear()
        self._places.clear()

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self._groups.values())

    def of(
        self,
        rows: Sequence[np.ndarray],
        first: int,
        run: Callable[[Sequence[np.ndarray]], tuple[Tensor, np.ndarray]],
        batch_size: int,
        together: bool,
    ) -> tuple[list[Tensor] | None, np.ndarray]:
        """States of each row of token ids (None where they are more than is kept) and pooled
        (n, first + 1, hidden).

        run: a batch of rows -> states (b, length, hidden), pooled (b, first + 1, hidden).
        """
        keys = [first.to_bytes(4, "big") + row.tobytes() for row in rows]
        places = {}
        distinct = dict(zip(keys, rows, strict=True))
        if together:
            name = self._made(distinct, run, batch_size)
            places = {key: (name, i) for i, key in enumerate(distinct)}
        else:
            new = {key: row for key, row in distinct.items() if key not in self._places}
            held = {self._places[key][0] for key in distinct if key not in new}
            for name in held:
                self._groups.move_to_end(name)
            if new:
                name = self._made(new, run, batch_size)
                places = {key: (name, i) for i, key in enumerate(new)}
            if any(key not in new and key not in self._places for key in distinct):
                # The new ones drove out some that were there: all are run as one group.
                return self.of(rows, first, run, batch_size, together=True)
        found = [places.get(key) or self._places[key] for key in keys]
        groups = {name: self._groups[name] for name, _ in found}
        pooled = np.stack([groups[name].pooled[i] for name, i in found])
        if any(groups[name].states is None for name, _ in found):
            return None, pooled
        return [groups[name].states[i] for name, i in found], pooled

    def _made(self, distinct, run, batch_size) -> bytes:
        """The name of the group of these texts, which is run unless it is there."""
        total = hashlib.sha256()
        for key in distinct:
            total.update(len(key).to_bytes(8, "big") + key)
        name = total.digest()
        if name in self._groups:
            self._groups.move_to_end(name)
            return name
        rows = list(distinct.values())
        lengths = [len(row) for row in rows]
        ends = list(itertools.accumulate(lengths))
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        whole, parts, pooled = None, None, None
        for batch in progress(eval_batches(lengths, batch_size), "trunk", "batch"):
            states, means = run([rows[i] for i in batch])
            if pooled is None:
                size = ends[-1] * states.shape[2] * states.element_size()
                pooled = np.empty((len(rows), *means.shape[1:]), dtype=np.float32)
                whole = self._storage(ends[-1], states, size + pooled.nbytes, len(rows))
                parts = None if whole is None else [whole[a:b] for a, b in spans]
            pooled[batch] = means
            if parts is not None:
                for i, one in zip(batch, states, strict=True):
                    parts[i].copy_(one[: lengths[i]])
        held = pooled.nbytes + (size if parts is not None and self.folder is None else 0)
        self._groups[name] = Group(parts, pooled, held)
        self._places |= {key: (name, i) for i, key in enumerate(distinct)}
        return name

    def _make_room(self, size: int) -> None:
        while self._groups and self.nbytes + size > self.most_bytes:
            name, _ = self._groups.popitem(last=False)
            self._places = {key: at for key, at in self._places.items() if at[0] != name}

    @torch.inference_mode(False)  # what is kept while answering can be trained on later
    def _storage(self, tokens: int, like: Tensor, size: int, texts: int) -> Tensor | None:
        """A tensor (tokens, hidden), None where it would take more than is kept."""
        shape, how = (tokens, like.shape[2]), {"dtype": like.dtype}
        if self.folder is not None:
            self._make_room(0)
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix="trunk-", dir=self.folder) as file:
                how |= {"shared": True, "size": shape[0] * shape[1]}
                return torch.from_file(file.name, **how).view(shape)
        if size > self.most_bytes:
            say_once(
                f"the trunk's states of {texts} texts take {size / GIB:.1f} GiB, more than the "
                f"{self.most_bytes / GIB:.1f} GiB that are kept: they are computed again whenever "
                "they are needed (trunk_dir: a folder to keep them in)"
            )
            return None
        self._make_room(size)
        return torch.empty(shape, **how)
