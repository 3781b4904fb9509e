"""`BitStack`: cumulative one-bit task masks that lock the weights a task needed.

    bitstack = BitStack(model, sparsity=0.12)
    train(model, imdb)  # any loop, any torch optimizer, transformers' Trainer
    bitstack.update(imdb_loader, task="imdb")  # lock what had the largest gradients
    train(model, agnews)  # the locked weights stay bit-equal
    bitstack.save("masks.safetensors")
    bitstack = BitStack.load("masks.safetensors", model)  # in another process

A drop-in for the published `BitStack` (g1g4b1t/MaskStack): the same names, but a mask takes one
bit a parameter, and locked weights are kept without anybody calling `restore()`. The file needs
nothing of this package but errors.py and files.py.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .errors import SkillStackError, did_you_mean
from .files import explain, write_atomic

# Heads, embeddings and norms of GPT-2, Llama, BERT and their kin, as parts of a parameter's name.
EXCLUDED = (
    r"(^|\.)(lm_head|score|classifier|classification_head|pre_classifier|qa_outputs|cls)\.",
    r"(^|\.)pooler\.",
    r"(^|\.)(wte|wpe|embed_tokens|embed_positions|word_embeddings|embeddings?)\.",
    r"(^|\.)(ln_\w+|\w*layer_?norm\w*|\w*_norm|norm)\.",
)
FULL = 0.9  # locked share of the eligible parameters from which on `update` warns
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

    upper = sum(torch.bincount(bits >> 16, minlength=1 << 15) for bits in parts())
    high, k = find(upper, k)
    lower = sum(
        torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16) for bits in parts()
    )
    low, _ = find(lower, k)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


class BitStack:
    """Locks, task after task, the share `sparsity` of the eligible parameters that mattered most.

    model: any module whose ``model(**batch)`` returns a loss. sparsity: in [0, 1]; 0 locks nothing,
    1 all. exclude: regular expressions, searched in parameter names, of what is never locked; None:
    heads, embeddings and norms (`EXCLUDED`).
    Attributes: tasks (names, in order), handles (of all hooks), hook_calls (gradients seen).

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
        if not isinstance(sparsity, (int, float)) or not 0 <= sparsity <= 1:
            raise SkillStackError(f"sparsity must be in [0, 1], got {sparsity!r}")
        self.model, self.sparsity = model, float(sparsity)
        self.exclude = tuple(EXCLUDED if exclude is None else exclude)
        pattern = re.compile("|".join(self.exclude) or r"(?!)", re.IGNORECASE)
        self._eligible = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and parameter.is_floating_point()
            and not pattern.search(name)
        }
        if not self._eligible:
            raise SkillStackError("no parameter is eligible: all are frozen or excluded")
        self.tasks: list[str] = []
        self.hook_calls = 0
        self._bits: dict[str, Tensor] = {}  # all that is locked: name -> packed mask
        self._task_bits: list[dict[str, Tensor]] = []  # what each task locked anew
        self._values: dict[str, Tensor] = {}  # the locked weights, in order of the mask
        # The hooks hold a weak reference: a model that outlives its BitStack is free again.
        me = weakref.ref(self)
        self.handles = [
            parameter.register_post_accumulate_grad_hook(_zeroing_hook(me, name))
            for name, parameter in self._eligible.items()
        ]
        self.handles.append(register_optimizer_step_post_hook(_restoring_hook(me)))
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

        Raises `SkillStackError` for batches without labels, without gradients, or when every
        eligible parameter is locked already; then nothing has changed. Warns when fewer than a
        tenth of them are left.
        """
        task = f"task{len(self.tasks) + 1}" if task is None else task
        if task in self.tasks:
            raise SkillStackError(f"task {task!r} has a mask already")
        if self._locked() == self._total():
            raise SkillStackError(
                f"no capacity left for {task!r}: all {self._total():,} eligible parameters are "
                "locked; use a smaller sparsity"
            )
        scores = self._scores(dataloader, n_batches)
        k = round(self.sparsity * self._total())
        anew: dict[str, Tensor] = {}
        if k:
            # At a share of 1 even what had no gradient is locked.
            everything = k == self._total()
            threshold = 0.0 if everything else kth_largest(scores.values(), k)
            for name, score in scores.items():
                top = score >= threshold if everything else (score >= threshold) & (score > 0)
                if name in self._bits:
                    top &= ~unpack(self._bits[name], top.shape)
                if top.any():
                    anew[name] = pack(top)
        self._add(task, anew)
        stats = self.stats()
        if stats["frozen_pct"] > 100 * FULL:
            warnings.warn(
                f"BitStack: {stats['frozen_pct']:.0f} % of the eligible parameters are locked "
                f"after {task!r}; little is left for further tasks",
                stacklevel=2,
            )
        return stats

    def _scores(self, dataloader: Iterable[Mapping], n_batches: int) -> dict[str, Tensor]:
        """Sum of |gradient| over the batches, float32, for each eligible parameter."""
        if n_batches < 1:
            raise SkillStackError(f"n_batches must be at least 1, got {n_batches}")
        parameters = list(self._eligible.values())
        scores = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        modes, seen = {module: module.training for module in self.model.modules()}, 0
        self.model.eval()  # no dropout: the ranking repeats
        try:
            for batch in itertools.islice(dataloader, n_batches):
                # Not `backward`: gradients that the user is accumulating stay as they are.
                gradients = torch.autograd.grad(self._loss(batch), parameters, allow_unused=True)
                for score, gradient in zip(scores, gradients, strict=True):
                    if gradient is not None:
                        score.add_(gradient.abs())
                seen += 1
        finally:
            for module, training in modes.items():  # a part may be in another mode than the whole
                module.training = training
        if not seen:
            raise SkillStackError("the dataloader gave no batch")
        if not all(bool(score.isfinite().all()) for score in scores):
            raise SkillStackError("gradients are not finite; nothing was locked")
        if not any(bool(score.any()) for score in scores):
            raise SkillStackError("no gradient reached an eligible parameter")
        return dict(zip(self._eligible, scores, strict=True))

    def _loss(self, batch: Mapping) -> Tensor:
        if not isinstance(batch, Mapping):
            raise SkillStackError(
                f"batches must be mappings of the model's arguments, got {type(batch).__name__}"
            )
        device = next(iter(self._eligible.values())).device
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        output = self.model(**batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None:
            names = ", ".join(batch)
            raise SkillStackError(f"no loss for a batch of {names}: are the labels missing?")
        return loss

    def _add(self, task: str, anew: dict[str, Tensor]) -> None:
        self.tasks.append(task)
        self._task_bits.append(anew)
        for name, bits in anew.items():
            self._bits[name] = self._bits[name] | bits if name in self._bits else bits.clone()
            parameter = self._eligible[name].detach()
            self._values[name] = parameter[unpack(self._bits[name], parameter.shape)]

    # ---------------------------------------------------------------- keeping it locked

    @torch.no_grad()
    def restore(self, names: Iterable[str] | None = None) -> None:
        """Write the locked weights back, bit for bit, of all parameters or of those named.

        Every step of a torch optimizer does so by itself; call it where something else has
        changed the weights, such as a loaded checkpoint.
        """
        for name in self._bits if names is None else names:
            parameter = self._eligible[name]
            mask = unpack(self._bits[name], parameter.shape)
            parameter.masked_scatter_(mask, self._values[name].to(parameter))

    def close(self) -> None:
        """Remove all hooks: everything may be trained again."""
        _remove(self.handles)

    # ---------------------------------------------------------------- looking in

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name -> boolean tensor of what is locked, unpacked anew on each access."""
        return {name: unpack(b, self._eligible[name].shape) for name, b in self._bits.items()}

    def task_masks(self, task: str) -> dict[str, Tensor]:
        """Name -> boolean tensor of what one task locked first."""
        if task not in self.tasks:
            raise SkillStackError(f"unknown task {task!r}{did_you_mean(task, self.tasks)}")
        bits = self._task_bits[self.tasks.index(task)]
        return {name: unpack(b, self._eligible[name].shape) for name, b in bits.items()}

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
            "value_bytes": sum(values.nbytes for values in self._values.values()),
        }

    def _locked(self) -> int:
        return sum(values.numel() for values in self._values.values())

    def _total(self) -> int:
        return sum(parameter.numel() for parameter in self._eligible.values())

    def _shapes(self) -> dict[str, list[int]]:
        return {name: list(parameter.shape) for name, parameter in self._eligible.items()}

    # ---------------------------------------------------------------- disk

    def save(self, path: str | Path) -> Path:
        """Write masks, tasks and locked weights to one safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {f"values:{name}": values for name, values in self._values.items()}
        for i, bits in enumerate(self._task_bits):
            tensors |= {f"{i}:{name}": b for name, b in bits.items()}
        facts = {"sparsity": self.sparsity, "exclude": self.exclude, "tasks": self.tasks}
        facts = json.dumps(facts | {"shapes": self._shapes()})
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        try:
            write_atomic(path, safetensors.torch.save(tensors, {"bitstack": facts}))
        except OSError as error:
            raise SkillStackError(f"cannot write {path}: {explain(error)}") from None
        return path

    @classmethod
    def load(cls, path: str | Path, model: torch.nn.Module) -> BitStack:
        """The saved masks on a model of the same parameters; its locked weights are written in.

        Raises `SkillStackError` if the file is damaged or belongs to another model, which is then
        left as it was, without a hook.
        """
        path, bitstack = Path(path), None
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["bitstack"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            bitstack = cls(model, facts["sparsity"], facts["exclude"])
            bitstack._take(facts["tasks"], facts["shapes"], tensors)
        except FileNotFoundError:
            raise SkillStackError(f"{path} is missing") from None
        except Exception as error:  # whatever a damaged file makes its readers raise
            if bitstack is not None:
                bitstack.close()
            known = "" if isinstance(error, SkillStackError) else "holds no BitStack: "
            raise SkillStackError(f"{path} {known}{error}") from None
        bitstack.restore()
        return bitstack

    def _take(self, tasks: list[str], shapes: dict, tensors: dict[str, Tensor]) -> None:
        """Masks and values from a file, nothing of it trusted; the model is only read."""
        ours = self._shapes()
        if ours != shapes:
            odd = [n for n in sorted(ours.keys() | shapes.keys()) if ours.get(n) != shapes.get(n)]
            raise SkillStackError(f"belongs to another model: {odd[0]} differs")
        for i, task in enumerate(tasks):
            found = [key for key in tensors if key.startswith(f"{i}:")]
            anew = {key.partition(":")[2]: tensors.pop(key) for key in found}
            for name, bits in anew.items():
                size = -(-self._eligible[name].numel() // 8)
                if bits.dtype != torch.uint8 or bits.shape != (size,):
                    raise ValueError(f"the mask of {name} is not {size} bytes")
            self._add(task, {n: bits.to(self._eligible[n].device) for n, bits in anew.items()})
        for name, values in self._values.items():
            saved = tensors.pop(f"values:{name}")
            if saved.shape != values.shape or not saved.is_floating_point():
                raise ValueError(f"the values of {name} are not {len(values)} floats")
            self._values[name] = saved.to(values)
        if tensors:
            raise ValueError(f"unexpected {min(tensors)}")


def _zeroing_hook(me: weakref.ref, name: str):
    def hook(parameter: Tensor) -> None:
        if bitstack := me():
            bitstack.hook_calls += 1
            if name in bitstack._bits:  # clipping and moments must not see locked weights
                zero_locked(parameter.grad, bitstack._bits[name])

    return hook


def _restoring_hook(me: weakref.ref):
    def hook(optimizer, args, kwargs) -> None:
        if bitstack := me():
            moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
            bitstack.restore(n for n in bitstack._bits if id(bitstack._eligible[n]) in moved)

    return hook


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
