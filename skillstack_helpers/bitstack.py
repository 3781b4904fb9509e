"""`BitStack`: cumulative one-bit task masks that lock the weights a task needed.

    bitstack = BitStack(model, sparsity=0.12)
    train(model, imdb)  # any loop, any torch optimizer, transformers' Trainer
    bitstack.update(imdb_loader, task="imdb")  # lock what had the largest gradients
    train(model, agnews)  # the locked weights stay bit-equal
    bitstack.save("masks.safetensors")
    bitstack = BitStack.load("masks.safetensors", model)  # in another process

A drop-in for the published `BitStack` (g1g4b1t/MaskStack): the same names and arguments, but a
mask takes one bit a parameter, and locked weights are kept without anybody calling `restore()`.
Different on purpose: `update` ranks in evaluation mode and leaves modes and gradients as they were;
it ranks locked weights too; in a transformers model `exclude=None` leaves out embeddings, norms and
heads by what they are; an empty `exclude` excludes nothing. The file needs nothing of this package
but errors.py and files.py.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import numbers
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .errors import (
    SkillStackError,
    checked_list,
    checked_number,
    checked_path,
    did_you_mean,
    first_line,
    shown,
)
from .files import NO_SEAL, metadata, read_bytes, sealed, write_or_say

# Names left out by default: the published four, and other names of heads.
EXCLUDED = (
    *("score", "wte", "wpe", "ln_f"),
    r"(^|\.)(lm_head|(pre_)?classifier|classification_head|qa_outputs|pooler)\.",
)
FULL = 0.9  # locked share of the eligible parameters from which on `update` warns
_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module)\.")  # of compiled parts, say
# Classes, and parameters that belong to no layer (`mask_emb`, `cls_token`), in transformers models.
_EMBEDDING = re.compile(r"(Embeddings?|EmbeddingBag|Pooler)$")
_LOOSE_EMBEDDING = re.compile(r"(^|_)emb|_tokens?$")
_CHUNK = 1 << 24  # values ranked at a time: 64 MiB of float32
# Byte -> its eight bits as booleans, eight of them read as one int64: unpacking is one gather.
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.bool)
_BITS_OF_BYTE = _BITS.contiguous().view(torch.int64).flatten()
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a float
# Byte -> eight integers, 0 where its bit is set and all ones (-1) where not.
_KEEP_OF_BYTE = {size: _BITS.to(kind) - 1 for size, kind in _INTEGERS.items()}


def pack(mask: Tensor) -> Tensor:
    """A boolean mask of any shape as bits, uint8 (ceil(n / 8),), the first value lowest."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    powers = (1 << torch.arange(8, device=mask.device)).to(torch.uint8)
    return (flat.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """The boolean mask that `pack` packed."""
    table = _BITS_OF_BYTE.to(bits.device)
    return table.index_select(0, bits.int()).view(torch.bool)[: shape.numel()].view(shape)


def zero_locked(values: Tensor, bits: Tensor) -> None:
    """Set the packed mask's values to 0 in place: a bitwise and, several times as fast on the CPU
    as `masked_fill_`."""
    table = _KEEP_OF_BYTE[values.element_size()].to(bits.device)
    keep = table.index_select(0, bits.int()).flatten()[: values.numel()].view(values.shape)
    values.view(keep.dtype).bitwise_and_(keep)


def kth_largest(scores: Iterable[Tensor], k: int) -> float:
    """The k-th largest of all values of some float32 tensors, none negative.

    Exact, and never holds them all in one tensor: the bits of non-negative floats are ordered like
    the floats, so a histogram of the upper 16 bits finds the bin, one of the lower 16 the value.
    """
    scores = list(scores)

    def parts() -> Iterator[Tensor]:
        for tensor in scores:
            yield from tensor.flatten().view(torch.int32).split(_CHUNK)

    def find(counts: Tensor, k: int) -> tuple[int, int]:
        """The bin of the k-th largest, and its rank within the bin."""
        above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(above, k))
        return len(counts) - 1 - place, k - (int(above[place - 1]) if place else 0)

    # On the CPU: a model may lie on several devices.
    upper = sum(torch.bincount(bits >> 16, minlength=1 << 15).cpu() for bits in parts())
    high, k = find(upper, k)
    lower = sum(
        torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16).cpu()
        for bits in parts()
    )
    low, _ = find(lower, k)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


class NoGradientError(SkillStackError, RuntimeError):
    """`BitStack.update` has found no gradient; a RuntimeError in the published class."""


class BitStack:
    """Locks, task after task, the share `sparsity` of the eligible parameters that mattered most.

    model: any module whose ``model(**batch)`` returns a loss. sparsity: in [0, 1]; 0 locks nothing,
    1 all. exclude: parts of the parameter names that are never locked; what is not just letters,
    digits, ``_``, ``-`` and ``.`` is a regular expression, in either case of letters. None: the
    names in `EXCLUDED`, and within transformers models all embeddings, norms, poolers and heads,
    whatever their name. Parameters frozen now are never locked either.
    Attributes: tasks (names, in order), frozen (name -> locked weights, in the mask's order),
    handles (of the gradient hooks, one a mask), hook_calls (name -> gradients seen).

    >>> class Net(torch.nn.Linear):
    ...     def forward(self, x, labels):
    ...         return {"loss": (super().forward(x) - labels).square().mean()}
    >>> model, batch = Net(4, 4), {"x": torch.randn(8, 4), "labels": torch.randn(8, 4)}
    >>> bitstack = BitStack(model, sparsity=0.25)
    >>> bitstack.update([batch], task="first")["locked"]
    5
    >>> before = model.weight.detach().clone()
    >>> model(**batch)["loss"].backward()
    >>> torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    >>> torch.equal(model.weight == before, bitstack.masks["weight"])
    True
    """

    def __init__(
        self,
        model: torch.nn.Module,
        sparsity: float = 0.12,
        exclude: Sequence[str] | None = None,
    ):
        number = isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool)
        if not number or not 0 <= sparsity <= 1:
            raise SkillStackError(f"sparsity must be in [0, 1], got {shown(sparsity)}")
        if not isinstance(model, torch.nn.Module):
            raise SkillStackError(f"model must be a torch.nn.Module, got {shown(model)}")
        self.model, self.sparsity = model, float(sparsity)
        self._by_kind = exclude is None
        self.exclude, patterns = _exclude(EXCLUDED if exclude is None else exclude)
        core = _core(model)
        left_out = _left_out(core, patterns, self._by_kind)
        self._eligible = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and parameter.is_floating_point()
            and id(parameter) not in left_out
        }
        if not self._eligible:
            raise SkillStackError("no parameter is eligible: all are frozen or excluded")
        # On disk, names are those of the model inside torch.compile and DataParallel.
        plain = {id(p): _WRAPPERS.sub("", name) for name, p in core.named_parameters()}
        self._names = {name: plain[id(p)] for name, p in self._eligible.items()}
        self.tasks: list[str] = []
        self.frozen: dict[str, Tensor] = {}
        self.hook_calls: Counter[str] = Counter()
        self._bits: dict[str, Tensor] = {}  # all that is locked: name -> packed mask
        self._task_bits: list[dict[str, Tensor]] = []  # what each task locked anew
        self._ranking = False
        self.handles: list = []
        weakref.finalize(self, _remove, self.handles)

    # ---------------------------------------------------------------- learning what to lock

    def update(
        self, dataloader: Iterable[Mapping], n_batches: int = 32, task: str | None = None
    ) -> dict[str, float]:
        """Lock what mattered for the task just learned; returns `stats()`.

        Ranks the sum of |gradient| over the first `n_batches` batches over all eligible parameters
        and locks the top share (locked ones count, so later tasks that need the same weights lock
        fewer new ones). task: its name, default ``task1`` and so on. Memory: one float32 per
        eligible parameter, and nothing that grows with the model beside it.

        dataloader: mappings of the model's arguments, on any device; what its `forward` does not
        take, such as ``token_type_ids``, is left out. Under DistributedDataParallel every rank
        calls `update`, and all lock the same if the BitStack was given the wrapped model.

        Raises `SkillStackError` for batches without labels, without gradients (`NoGradientError`),
        or when every eligible parameter is locked already; then nothing has changed. Warns when
        fewer than a tenth of them are left.
        """
        task = f"task{len(self.tasks) + 1}" if task is None else task
        if not isinstance(task, str) or not task:
            raise SkillStackError(f"task must be a name, got {shown(task)}")
        checked_number(n_batches, "n_batches", 1, whole=True)
        if not isinstance(dataloader, Iterable) or isinstance(dataloader, str | bytes | Mapping):
            raise SkillStackError(f"dataloader must give batches, got {shown(dataloader)}")
        if task in self.tasks:
            raise SkillStackError(f"task {task!r} has a mask already")
        if self._locked() == self._total():
            raise SkillStackError(
                f"no capacity left for {task!r}: all {self._total():,} eligible parameters are "
                "locked; use a smaller sparsity"
            )
        self._follow()
        scores = self._scores(dataloader, n_batches)
        k = round(self.sparsity * self._total())
        anew: dict[str, Tensor] = {}
        if k:
            # At a share of 1 even what had no gradient is locked.
            everything = k == self._total()
            threshold = 0.0 if everything else kth_largest(scores.values(), k)
            for name, score in scores.items():
                top = score >= threshold if everything else (score >= threshold) & (score > 0)
                top &= ~self._mask(name)
                if top.any():
                    anew[name] = pack(top)
        self._add(task, anew)
        self._hook()
        stats = self.stats()
        if stats["frozen_pct"] > 100 * FULL:
            warnings.warn(
                f"BitStack: {stats['frozen_pct']:.0f} % of the eligible parameters are locked "
                f"after {task!r}; little is left for further tasks",
                stacklevel=2,
            )
        return stats

    @torch.enable_grad()
    def _scores(self, dataloader: Iterable[Mapping], n_batches: int) -> dict[str, Tensor]:
        """Sum of |gradient| over the batches, float32, for each eligible parameter."""
        scores = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self._eligible.items()}
        trained = {n: p for n, p in self._eligible.items() if p.requires_grad}
        if not trained:
            raise NoGradientError("no gradient can reach an eligible parameter: all are frozen")
        modes, seen = {module: module.training for module in self.model.modules()}, 0
        self.model.eval()  # no dropout: the ranking repeats
        self._ranking = True
        try:
            for batch in itertools.islice(dataloader, n_batches):
                gradients = _gradients(self._loss(batch), list(trained.values()), self.model)
                for name, gradient in zip(trained, gradients, strict=True):
                    if gradient is not None:
                        dense = gradient.to_dense() if gradient.is_sparse else gradient
                        scores[name].add_(dense.abs())
                seen += 1
        finally:
            self._ranking = False
            for module, training in modes.items():  # a part may be in another mode than the whole
                module.training = training
        if not seen:
            raise NoGradientError("the dataloader gave no batch")
        for module in self.model.modules():
            if isinstance(module, torch.nn.parallel.DistributedDataParallel):
                for score in scores.values():  # the same masks on all ranks
                    torch.distributed.all_reduce(score, group=module.process_group)
        if not all(bool(score.isfinite().all()) for score in scores.values()):
            raise SkillStackError("gradients are not finite; nothing was locked")
        if not any(bool(score.any()) for score in scores.values()):
            raise NoGradientError("no gradient reached an eligible parameter")
        return scores

    def _loss(self, batch: Mapping) -> Tensor:
        if not callable(getattr(batch, "items", None)):
            raise SkillStackError(
                f"batches must be mappings of the model's arguments, got {type(batch).__name__}: "
                'give each tensor its name, {"input_ids": ..., "labels": ...}'
            )
        # Not through DataParallel or torch.compile: nothing to be spread or compiled here, and
        # DistributedDataParallel waits for gradients that only `backward` brings.
        core = _core(self.model)
        device = next(core.parameters()).device
        given, (named, needed, anything) = dict(batch.items()), _arguments(core)
        taken = {
            key: _moved(value, device)
            for key, value in given.items()
            # Token types come from tokenizers, asked for or not; few models know what to do with
            # them, however many keywords they take.
            if key in named or (anything and key != "token_type_ids")
        }
        if missing := [name for name in needed if name not in taken]:
            raise SkillStackError(
                f"the model needs {missing[0]!r}, the batch has {', '.join(map(str, given))}"
            )
        try:
            output = core(**taken)
        except (IndexError, ValueError) as error:  # a label or a token that the model has not
            line = f"{type(error).__name__}: {first_line(error)}"
            raise SkillStackError(f"the model cannot read a batch, {line}") from error
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            unused = ", ".join(str(key) for key in given if key not in taken)
            unused = f" (the model does not take {unused})" if unused else ""
            raise SkillStackError(
                f"no loss for a batch of {', '.join(taken)}{unused}: are the labels missing?"
            )
        if loss.numel() != 1:
            raise SkillStackError(f"the loss must be one number, got shape {tuple(loss.shape)}")
        if not loss.requires_grad:
            raise NoGradientError("the loss has no gradient: is the model frozen?")
        return loss

    def _add(self, task: str, anew: dict[str, Tensor]) -> None:
        self.tasks.append(task)
        self._task_bits.append(anew)
        for name, bits in anew.items():
            self._bits[name] = self._here(name) | bits if name in self._bits else bits.clone()
            self.frozen[name] = self._eligible[name].detach()[self._mask(name)]

    # ---------------------------------------------------------------- keeping it locked

    def restore(self) -> None:
        """Write the locked weights back, bit for bit.

        Every step of a torch optimizer does so by itself; call it where something else has
        changed the weights, such as a loaded checkpoint.
        """
        self._follow()
        self._restore(self._bits)

    @torch.no_grad()
    def _restore(self, names: Iterable[str]) -> None:
        for name in names:
            parameter = self._eligible[name]
            parameter.masked_scatter_(self._mask(name), self.frozen[name].to(parameter))

    def callback(self):
        """A callback for transformers' Trainer that calls `restore` after each step: needed only
        with an optimizer that is none of torch's."""
        from transformers import TrainerCallback

        bitstack = self

        class Restoring(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                bitstack.restore()
                return control

        return Restoring()

    def close(self) -> None:
        """Remove all hooks: everything may be trained again, until the next `update`."""
        _remove(self.handles)
        _LOCKING.discard(self)

    def _hook(self) -> None:
        """Hooks on all eligible parameters, in place of earlier ones, and one on all optimizers.

        They hold a weak reference: a model that outlives its BitStack is free again.
        """
        _remove(self.handles)
        _LOCKING.add(self)
        _watch_optimizers()
        me = weakref.ref(self)
        for name, parameter in self._eligible.items():
            trained = parameter.requires_grad
            parameter.requires_grad_(True)  # torch takes hooks for no others; it may thaw later
            hook = _zeroing_hook(me, name)
            self.handles.append(parameter.register_post_accumulate_grad_hook(hook))
            parameter.requires_grad_(trained)

    def _follow(self) -> None:
        """Take the model's present parameters where others have replaced those we know, as
        `load_state_dict(assign=True)` does."""
        now = dict(self.model.named_parameters())
        new = {n: now[n] for n, p in self._eligible.items() if now.get(n, p) is not p}
        for name, parameter in new.items():
            if parameter.shape != self._eligible[name].shape:
                raise SkillStackError(f"{name} has another shape than when BitStack was made")
            self._eligible[name] = parameter
        if new and self.handles:
            self._hook()

    def _here(self, name: str) -> Tensor:
        """A parameter's packed mask, on the device where the parameter lies now."""
        self._bits[name] = self._bits[name].to(self._eligible[name].device)
        return self._bits[name]

    def _mask(self, name: str) -> Tensor:
        parameter = self._eligible[name]
        if name not in self._bits:
            return torch.zeros_like(parameter, dtype=torch.bool)
        return unpack(self._here(name), parameter.shape)

    # ---------------------------------------------------------------- looking in

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name -> boolean tensor of what is locked, of each eligible parameter once there is a
        task; a copy, unpacked anew on each access."""
        return {name: self._mask(name) for name in self._eligible} if self.tasks else {}

    def task_masks(self, task: str) -> dict[str, Tensor]:
        """Name -> boolean tensor of what one task locked first."""
        if task not in self.tasks:
            raise SkillStackError(f"unknown task {shown(task)}{did_you_mean(task, self.tasks)}")
        bits = self._task_bits[self.tasks.index(task)]
        known = {name: self._eligible[name] for name in bits}
        return {n: unpack(bits[n].to(p.device), p.shape) for n, p in known.items()}

    def stats(self) -> dict[str, float]:
        """locked, total (all parameters), eligible (counts); locked_pct (of total), frozen_pct (of
        eligible); free (eligible and not locked); mask_bytes (of the cumulative masks),
        task_mask_bytes (of the tasks' own), value_bytes (of the kept weights)."""
        total = sum(p.numel() for p in self.model.parameters())
        locked, eligible = self._locked(), self._total()
        task_bits = [bits for one in self._task_bits for bits in one.values()]
        return {
            "locked": locked,
            "total": total,
            "eligible": eligible,
            "locked_pct": 100 * locked / total,
            "frozen_pct": 100 * locked / eligible,
            "free": eligible - locked,
            "mask_bytes": sum(bits.nbytes for bits in self._bits.values()),
            "task_mask_bytes": sum(bits.nbytes for bits in task_bits),
            "value_bytes": sum(values.nbytes for values in self.frozen.values()),
        }

    def _locked(self) -> int:
        return sum(values.numel() for values in self.frozen.values())

    def _total(self) -> int:
        return sum(parameter.numel() for parameter in self._eligible.values())

    def _shapes(self) -> dict[str, list[int]]:
        return {self._names[name]: list(p.shape) for name, p in self._eligible.items()}

    # ---------------------------------------------------------------- disk

    def save(self, path: str | Path) -> Path:
        """Write masks, tasks and locked weights to one safetensors file, whole or not at all."""
        path = checked_path(path, "path")
        tensors = {f"values:{self._names[name]}": kept for name, kept in self.frozen.items()}
        for i, bits in enumerate(self._task_bits):
            tensors |= {f"{i}:{self._names[name]}": b for name, b in bits.items()}
        exclude = None if self._by_kind else self.exclude
        facts = {"sparsity": self.sparsity, "exclude": exclude, "tasks": self.tasks}
        facts = json.dumps({"seal": NO_SEAL, **facts, "shapes": self._shapes()})
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_or_say(path, sealed(safetensors.torch.save(tensors, {"bitstack": facts})))
        return path

    @classmethod
    def load(cls, path: str | Path, model: torch.nn.Module) -> BitStack:
        """The saved masks on a model of the same parameters, compiled or in DataParallel or not;
        its locked weights are written in.

        Raises `SkillStackError` if the file is damaged or belongs to another model, which is then
        left as it was, without a hook.
        """
        path = checked_path(path, "path")
        content = read_bytes(path)
        facts = metadata(path, content, "bitstack", "BitStack")
        try:
            tensors = safetensors.torch.load(content)
            bitstack = cls(model, facts["sparsity"], facts["exclude"])
            bitstack._take(facts["tasks"], facts["shapes"], tensors)
        except Exception as error:  # whatever a damaged file makes its readers raise
            known = "" if isinstance(error, SkillStackError) else "holds no BitStack: "
            raise SkillStackError(f"{path} {known}{error}") from None
        bitstack._hook()
        bitstack.restore()
        return bitstack

    def _take(self, tasks: list[str], shapes: dict, tensors: dict[str, Tensor]) -> None:
        """Masks and values from a file, nothing of it trusted; the model is only read."""
        ours = self._shapes()
        if ours != shapes:
            odd = [n for n in sorted(ours.keys() | shapes.keys()) if ours.get(n) != shapes.get(n)]
            why = "has another shape" if {odd[0]} <= ours.keys() & shapes.keys() else "differs"
            why = "is missing, frozen or excluded" if odd[0] not in ours else why
            raise SkillStackError(f"belongs to another model: {odd[0]} {why}")
        names = {on_disk: name for name, on_disk in self._names.items()}
        for i, task in enumerate(tasks):
            found = [key for key in tensors if key.startswith(f"{i}:")]
            anew = {names[key.partition(":")[2]]: tensors.pop(key) for key in found}
            for name, bits in anew.items():
                size = -(-self._eligible[name].numel() // 8)
                if bits.dtype != torch.uint8 or bits.shape != (size,):
                    raise ValueError(f"the mask of {name} is not {size} bytes")
            self._add(task, {n: bits.to(self._eligible[n].device) for n, bits in anew.items()})
        for name, values in self.frozen.items():
            saved = tensors.pop(f"values:{self._names[name]}")
            if saved.shape != values.shape or not saved.is_floating_point():
                raise ValueError(f"the values of {name} are not {len(values)} floats")
            self.frozen[name] = saved.to(values)
        if tensors:
            raise ValueError(f"unexpected {min(tensors)}")


# ---------------------------------------------------------------------- what is never locked


def _exclude(tokens: Iterable[str]) -> tuple[tuple[str, ...], list[re.Pattern]]:
    """The tokens checked, and as patterns: a plain one is a part of the name, dots and all."""
    known = checked_list(tokens, "exclude")
    if not all(isinstance(token, str) for token in known):
        raise SkillStackError(f"exclude must be a list of strings, got {shown(known)}")
    patterns = []
    for token in known:
        plain = re.fullmatch(r"[\w.-]+", token)
        try:
            patterns.append(re.compile(re.escape(token)) if plain else re.compile(token, re.I))
        except re.error as error:
            raise SkillStackError(f"exclude: {token!r} is no regular expression: {error}") from None
    return tuple(known), patterns


def _left_out(model: torch.nn.Module, patterns: list[re.Pattern], by_kind: bool) -> set[int]:
    """The ids of the parameters that are never locked. by_kind: names count from the outermost
    transformers model on, so that no name of a whole model is taken for that of a head."""
    roots: list[str] = []
    for name, module in model.named_modules() if by_kind else ():
        if _is_transformers(module) and not any(name.startswith(root) for root in roots):
            roots.append(f"{name}." if name else "")
    left_out = set()
    for name, parameter in model.named_parameters():
        root = next((root for root in roots if name.startswith(root)), "")
        name = _WRAPPERS.sub("", name.removeprefix(root))
        if any(pattern.search(name) for pattern in patterns):
            left_out.add(id(parameter))
    if by_kind:
        left_out |= {id(p) for m in model.modules() if _is_transformers(m) for p in _outside(m)}
    return left_out


def _is_transformers(module: torch.nn.Module) -> bool:
    return hasattr(type(module), "get_input_embeddings") and hasattr(module, "base_model_prefix")


def _outside(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The parameters of a transformers model that are no layer between embedding and head, by what
    the modules are; tied ones lie in several of them."""
    for part in ("get_input_embeddings", "get_output_embeddings"):
        with contextlib.suppress(NotImplementedError, AttributeError):  # not every model has them
            if (module := getattr(model, part)()) is not None:
                yield from module.parameters()
    body = {id(p) for p in model.base_model.parameters()}
    yield from (p for p in model.parameters() if id(p) not in body)  # heads
    for module in model.modules():
        kinds = [kind.__name__ for kind in type(module).__mro__]
        if any(_EMBEDDING.search(kind) for kind in kinds) and not _is_transformers(module):
            yield from module.parameters()
        for name, parameter in module.named_parameters(recurse=False):
            if any("norm" in kind.lower() for kind in kinds) or _LOOSE_EMBEDDING.search(name):
                yield parameter


# ---------------------------------------------------------------------- asking for gradients


def _core(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, parallel):
            model = model.module
        else:
            return model


def _arguments(model: torch.nn.Module) -> tuple[set[str], list[str], bool]:
    """Names of the arguments that `forward` takes, those it needs, and whether it takes any. Of
    PEFT's shells, which take any and hand them on, the model inside decides."""
    named: set[str] = set()
    while True:
        parameters = inspect.signature(model.forward).parameters.values()
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        named |= {p.name for p in by_name}
        needed = [p.name for p in by_name if p.default is p.empty]
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        inner = _core(model)
        if hasattr(type(model), "get_base_model"):
            inner = model.get_base_model()
        if inner is model or not anything:
            return named, needed, anything
        model = inner


def _moved(value, device: torch.device):
    """A value of a batch on the device, tensors within mappings, lists and tuples too."""
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        values = [_moved(one, device) for one in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return value


def _gradients(
    loss: Tensor, parameters: Sequence[Tensor], model: torch.nn.Module
) -> Sequence[Tensor | None]:
    """The loss's gradients; those that the user is accumulating stay as they are."""
    if not _has_python_function(loss):
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    # A function written in Python may run a graph of its own, as reentrant checkpoints do;
    # `grad` reaches no parameter in there, `backward` does.
    held = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        for parameter in held:
            parameter.grad = None
        loss.backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in held.items():
            parameter.grad = gradient


def _has_python_function(loss: Tensor) -> bool:
    nodes, seen = [loss.grad_fn], {None}
    while nodes:
        if (node := nodes.pop()) not in seen:
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                return True
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return False


# ---------------------------------------------------------------------- hooks


def _zeroing_hook(me: weakref.ref, name: str):
    def hook(parameter: Tensor) -> None:
        bitstack = me()
        if bitstack is None or bitstack._ranking:
            return
        bitstack.hook_calls[name] += 1
        if name in bitstack._bits:  # clipping and moments must not see locked weights
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad * ~bitstack._mask(name)
            else:
                zero_locked(parameter.grad, bitstack._here(name))

    return hook


# Not a hook each: torch goes through its hooks when a step is done, and one that goes away
# meanwhile, with a BitStack that is garbage, is an error there.
_LOCKING: weakref.WeakSet[BitStack] = weakref.WeakSet()


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_restore_after_step)


def _restore_after_step(optimizer, args, kwargs) -> None:
    for bitstack in list(_LOCKING):
        if bitstack._bits:
            bitstack._follow()
            moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
            bitstack._restore(n for n in bitstack._bits if id(bitstack._eligible[n]) in moved)


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
