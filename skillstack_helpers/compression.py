"""Fewer frames, fewer bytes, the same answers.

Every function takes a stack and returns a new one that saves and loads like any other; frames it
does not touch are the same objects, so their logits stay the same to the last bit. What was
changed, and on which evidence, is in ``stack.decisions``, and `undo` takes it back as long as the
old frame is on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from torch import Tensor
from tqdm.auto import tqdm

from . import SkillStackError
from .frames import (
    _BARE,
    ADAPTER,
    HEAD,
    PACKED,
    Frame,
    SkillStack,
    Weights,
    inner,
    read_frame,
    unpack,
    weights_digest,
)
from .tasks import TaskData

MERGES = ("linear", "ties", "dare_linear", "dare_ties", "svd")  # PEFT's names


# ---------------------------------------------------------------------- dropping and merging


def drop(stack: SkillStack, name: str, to: str) -> SkillStack:
    """Leave a frame out; what a router sends to it is answered by `to` from now on."""
    frame, target = _own_frame(stack, name), _own_frame(stack, to)
    if name == to:
        raise SkillStackError(f"frame {name!r} cannot stand in for itself")
    readers = [f.name for f in stack.frames if f.storage.get("shares") == name]
    if readers:
        raise SkillStackError(f"frame {name!r} holds the adapter of {', '.join(readers)}")
    new = _copy(stack, [f for f in stack.frames if f is not frame])
    new.dropped[name] = {"to": target.name, "parent": frame.parent}
    return _noted(new, "reuse", [frame], to)


def merge(
    stack: SkillStack,
    names: Sequence[str],
    method: str = "svd",
    density: float = 0.5,
    seed: int = 0,
) -> SkillStack:
    """One adapter, the mean of several frames' adapters, under each frame's own head.

    method: how PEFT's ``add_weighted_adapter`` combines them. ``svd`` averages the products B A
    and cuts them to rank r; ``linear``, ``ties`` (Yadav et al. 2023), ``dare_linear`` and
    ``dare_ties`` (Yu et al. 2024; random, hence `seed`) work on A and B apart, which PEFT itself
    calls a rough approximation. density: share of the values that TIES and DARE keep, (0, 1].
    Frames with other labels, ranks, targets or a packed adapter are refused, and so is NF4.
    """
    frames = _mergeable(stack, names)
    if method not in MERGES:
        raise SkillStackError(f"unknown merge {method!r} (known: {', '.join(MERGES)})")
    if not 0 < density <= 1:
        raise SkillStackError(f"density must be above 0 and at most 1, got {density}")
    r = frames[0].slot[0]
    lora = MappingProxyType(_weighted_adapter(stack, frames, method, density, seed))
    storage = {"lora_r": r, "lora_alpha": r}
    changed = {}
    for frame in frames:
        shared = {} if frame is frames[0] else {"shares": frames[0].name}
        weights = Weights(lora, frame.weights().head)
        changed[frame.name] = _compressed(frame, storage | shared, weights)
    return _replaced(stack, "merge", changed, method)


def _mergeable(stack: SkillStack, names: Sequence[str]) -> list[Frame]:
    if len(set(names)) < 2:
        raise SkillStackError(f"a merge takes two frames or more, got {list(names)}")
    if stack.backbone.quantize:
        raise SkillStackError(f"frames on {stack.backbone.quantize} weights cannot be merged")
    chosen = {_own_frame(stack, name).name for name in names}
    first, *others = frames = [frame for frame in stack.frames if frame.name in chosen]
    for frame in frames:
        if "format" in frame.storage or frame.storage.get("shares"):
            raise SkillStackError(f"frame {frame.name!r} has no adapter of its own to merge")
    for frame in others:
        for what, one, other in (
            ("labels", first.label_names, frame.label_names),
            ("rank and alpha", first.slot, frame.slot),
            ("targets", first.weights().lora.keys(), frame.weights().lora.keys()),
        ):
            if one != other:
                shown = "" if what == "targets" else f": {one} and {other}"
                raise SkillStackError(
                    f"frames {first.name!r} and {frame.name!r} differ in {what}{shown}"
                )
    return frames


def _weighted_adapter(stack, frames, method, density, seed) -> dict[str, Tensor]:
    """Weights of PEFT's merge, each adapter weighted 1/n; the backbone is left as it was."""
    backbone = stack.backbone
    backbone.attach(*frames[0].slot)
    model = backbone.model
    adapters = [f"merging_{i}" for i in range(len(frames))]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        try:
            for adapter, frame in zip(adapters, frames, strict=True):
                model.add_adapter(adapter, model.peft_config["default"])
                live = dict(model.named_parameters())
                for name, tensor in frame.weights().lora.items():
                    live[_of_adapter(name, adapter)].copy_(tensor)
            model.add_weighted_adapter(
                adapters,
                [1 / len(frames)] * len(frames),
                "merged",
                combination_type=method,
                density=density,
                svd_full_matrices=False,
            )
            live = dict(model.named_parameters())
            return {
                name: live[_of_adapter(name, "merged")]
                .detach()
                .to("cpu", torch.float32, copy=True)
                .contiguous()
                for name in frames[0].weights().lora
            }
        finally:
            for adapter in (*adapters, "merged"):
                if adapter in model.peft_config:
                    model.delete_adapter(adapter)


def _of_adapter(name: str, adapter: str) -> str:
    return name.removesuffix(".weight") + f".{adapter}.weight"


# ---------------------------------------------------------------------- fewer bytes a frame


def lower_rank(
    stack: SkillStack, energy: float = 0.95, names: Iterable[str] | None = None
) -> SkillStack:
    """Cut each adapter to the smallest rank that keeps `energy`, the share of the squared singular
    values of all its updates B A together (truncated SVD, the best approximation of that rank)."""
    if not 0 < energy <= 1:
        raise SkillStackError(f"energy must be above 0 and at most 1, got {energy}")
    changed = {}
    for frame in _plain(stack, names):
        parts = {module: _svd(update) for module, update in frame.updates().items()}
        squares = sum(s.double() ** 2 for _, s, _ in parts.values())  # (r,)
        kept = torch.cumsum(squares, 0) / squares.sum().clamp_min(1e-30)
        r = min(int((kept < energy - 1e-9).sum()) + 1, len(squares))
        lora = {}
        for module, (u, s, v) in parts.items():
            root = s[:r].sqrt()
            lora[f"{module}.lora_A.weight"] = (root[:, None] * v[:r]).contiguous()
            lora[f"{module}.lora_B.weight"] = (u[:, :r] * root).contiguous()
        weights = Weights(MappingProxyType(lora), frame.weights().head)
        changed[frame.name] = _compressed(frame, {"lora_r": r, "lora_alpha": r}, weights)
    return _replaced(stack, "lower_rank", changed, f"{energy:.4g} of the energy")


def int8(stack: SkillStack, names: Iterable[str] | None = None) -> SkillStack:
    """Store adapters as int8 with one float32 scale per component of the rank; computed with as
    float32."""
    changed: dict[str, Frame] = {}
    for frame in _plain(stack, names, merged=True):
        r, alpha = frame.slot
        storage = {"lora_r": r, "lora_alpha": alpha, "format": "int8"}
        if holder := frame.storage.get("shares"):
            lora = changed[holder].weights().lora
            weights = Weights(lora, frame.weights().head)
            changed[frame.name] = _compressed(frame, storage | {"shares": holder}, weights)
            continue
        packed = {}
        for name, tensor in frame.weights().lora.items():
            along = 1 if ".lora_A." in name else 0  # A is (r, in), B is (out, r)
            scale = tensor.abs().amax(along, keepdim=True).clamp_min(1e-12) / 127
            packed[name] = (tensor / scale).round().to(torch.int8)
            packed[f"{name}.scale"] = scale
        changed[frame.name] = _packed(frame, storage, packed, packed)
    return _replaced(stack, "int8", changed, "a scale per component of the rank")


def shared_basis(
    stack: SkillStack, rank: int, names: Iterable[str] | None = None, rounds: int = 10
) -> SkillStack:
    """One pair of bases for many frames, and a small core per frame: B A = U core V.

    U (out, rank) and V (rank, in) are orthonormal and minimize the summed squared error over the
    frames ("Compress then Serve", Brüel-Gabrielsson et al. 2024, joint full diagonalization), by
    alternating eigenvector steps from the stacked SVD. The first frame's folder keeps the bases.
    """
    frames = _plain(stack, names)
    if len(frames) < 2:
        raise SkillStackError(f"a shared basis takes two frames or more, got {len(frames)}")
    if len({frozenset(frame.weights().lora) for frame in frames}) > 1:
        raise SkillStackError("a shared basis takes frames with the same targets")
    updates = [frame.updates() for frame in frames]
    narrowest = min(min(b.shape[0], a.shape[1]) for b, a in updates[0].values())
    most = min(sum(frame.slot[0] for frame in frames), narrowest)
    if not 1 <= rank <= most:
        raise SkillStackError(f"rank must be in 1 .. {most} for these frames, got {rank}")
    packed: list[dict] = [{} for _ in frames]
    bases, energy, total = {}, 0.0, 0.0
    for module in updates[0]:
        u, v, cores = _joint_basis([update[module] for update in updates], rank, rounds)
        bases |= {f"{module}.U": u, f"{module}.V": v}
        for part, core in zip(packed, cores, strict=True):
            part[f"{module}.core"] = core
        energy += sum(float((core.double() ** 2).sum()) for core in cores)
        total += sum(inner(update[module], update[module]) for update in updates)
    changed = {}
    for frame, own in zip(frames, packed, strict=True):
        storage = {"lora_r": rank, "lora_alpha": rank, "format": "basis"}
        first = frame is frames[0]
        storage |= {} if first else {"shares": frames[0].name}
        changed[frame.name] = _packed(frame, storage, own | bases if first else own, own | bases)
    new = _replaced(stack, "shared_basis", changed, f"rank {rank}")
    new.decisions[-1]["energy"] = energy / max(total, 1e-30)
    return new


def _svd(update: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of B A through its small core: U (out, r), singular values (r,), V (r, in)."""
    b, a = update
    qb, rb = torch.linalg.qr(b)
    qa, ra = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(rb @ ra.T)
    return qb @ u, s, v @ qa.T


def _joint_basis(updates, rank: int, rounds: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """U (out, rank), V (rank, in) and a core (rank, rank) per update.

    All updates lie in the spans of the stacked B and A, so the work is done in those small spaces.
    """
    left, _ = torch.linalg.qr(torch.cat([b for b, _ in updates], 1))  # (out, m)
    right, _ = torch.linalg.qr(torch.cat([a for _, a in updates], 0).T)  # (in, m)
    small = torch.stack([(left.T @ b) @ (a @ right) for b, a in updates]).double()  # (n, m, m)

    def leading(products: Tensor) -> Tensor:
        return torch.linalg.eigh(products.sum(0)).eigenvectors[:, -rank:].flip(1)

    v = leading(small.mT @ small)
    for _ in range(rounds):
        u = leading(small @ v @ v.T @ small.mT)
        v = leading(small.mT @ u @ u.T @ small)
    cores = [(u.T @ one @ v).float().contiguous() for one in small]
    return left @ u.float(), (right @ v.float()).T.contiguous(), cores


# ---------------------------------------------------------------------- new stacks from old


def _own_frame(stack: SkillStack, name: str) -> Frame:
    if name in stack.dropped:
        raise SkillStackError(f"frame {name!r} was dropped before")
    return stack[name]


def _plain(stack: SkillStack, names: Iterable[str] | None, merged: bool = False) -> list[Frame]:
    """The named frames (default: all that qualify) that are stored as plain LoRA.

    merged: with those that share an adapter, always all that share it, its holder first.
    """
    shared = {f.storage["shares"] for f in stack.frames if f.storage.get("shares")}

    def group(frame: Frame) -> str:
        return frame.storage.get("shares") or frame.name

    wanted = None if names is None else {group(_own_frame(stack, name)) for name in names}
    frames = [f for f in stack.frames if wanted is None or group(f) in wanted]
    for frame in list(frames):
        reason = "packed already" if "format" in frame.storage else None
        if not merged and (group(frame) in shared):
            reason = "merged with others"
        if reason and wanted is None:
            frames.remove(frame)
        elif reason:
            raise SkillStackError(f"frame {frame.name!r} is {reason}")
    return frames


def _compressed(frame: Frame, storage: dict, weights: Weights) -> Frame:
    """The frame with other weights; what was measured before no longer holds of it."""
    return dataclasses.replace(
        frame,
        metrics=MappingProxyType({"before": dict(frame.metrics)}),
        storage=MappingProxyType(storage),
        sha256={},
        folder=None,
        _weights=weights,
        _packed={},
    )


def _packed(frame: Frame, storage: dict, own: dict, all_tensors: dict) -> Frame:
    """The frame stored as `own` tensors, computed from all it reads. Names as on disk."""
    lora = MappingProxyType(unpack(all_tensors, storage["format"]))
    new = _compressed(frame, storage, Weights(lora, frame.weights().head))
    stored = {name.replace(_BARE, frame.prefix, 1): tensor for name, tensor in own.items()}
    return dataclasses.replace(new, _packed=MappingProxyType(stored))


def _copy(stack: SkillStack, frames: Sequence[Frame]) -> SkillStack:
    new = SkillStack(stack.backbone)
    new.frames, new.dropped = list(frames), {k: dict(v) for k, v in stack.dropped.items()}
    new.decisions = [dict(decision) for decision in stack.decisions]
    return new


def _replaced(stack: SkillStack, kind: str, changed: Mapping[str, Frame], by: str) -> SkillStack:
    if not changed:
        raise SkillStackError(f"{kind}: no frame of this stack can be changed that way")
    old = [frame for frame in stack.frames if frame.name in changed]
    new = _copy(stack, [changed.get(frame.name, frame) for frame in stack.frames])
    return _noted(new, kind, old, by)


def _noted(stack: SkillStack, kind: str, old: Sequence[Frame], by: str) -> SkillStack:
    """Write the decision down, with what `undo` needs to find the old frames."""
    replaced = {
        frame.name: {
            "folder": str(frame.folder.resolve()) if frame.folder else None,
            "weights_sha256": weights_digest(frame),
        }
        for frame in old
    }
    stack.decisions.append(
        {"kind": kind, "frames": [f.name for f in old], "by": by, "replaced": replaced}
    )
    return stack


# ---------------------------------------------------------------------- taking it back


def undo(
    stack: SkillStack, name: str, original: SkillStack | str | Path | None = None
) -> SkillStack:
    """Take back the last decision that changed frame `name`, and those it cannot be had without:
    earlier ones whose result was never saved, and later ones about the frames that come back.

    original: the stack the old frames are in, or its folder; by default the folder they were
    saved in when the decision was made. Raises `SkillStackError` if they are gone or changed.
    """
    live = [
        (i, decision["replaced"])
        for i, decision in enumerate(stack.decisions)
        if decision.get("replaced") and not decision.get("undone")
    ]
    undone = {i for i, replaced in live if name in replaced}
    if not undone:
        raise SkillStackError(f"no decision about frame {name!r} can be undone")
    undone = {max(undone)}
    while True:
        records: dict[str, tuple[int, Mapping]] = {}  # frame -> its first decision undone
        for i, replaced in live:
            if i in undone:
                records = {old: (i, record) for old, record in replaced.items()} | records
        more = set()
        for old, (first, record) in records.items():
            about = [i for i, replaced in live if old in replaced]
            more |= {i for i in about if i > first}
            if record["folder"] is None and original is None:
                more |= set([i for i in about if i < first][-1:])
        if more <= undone:
            break
        undone |= more
    back = {old: _old_frame(old, record, original) for old, (_, record) in records.items()}
    new = _copy(stack, [back.pop(frame.name, frame) for frame in stack.frames])
    for frame in back.values():
        del new.dropped[frame.name]
        _insert(new, frame)
    for i in undone:
        new.decisions[i]["undone"] = True
    return new


def _old_frame(name: str, record: Mapping, original) -> Frame:
    if isinstance(original, SkillStack):
        frame = next((f for f in original.frames if f.name == name), None)
        where = "the original stack"
    else:
        folder = Path(original) / "frames" / name if original else record["folder"]
        if folder is None:
            raise SkillStackError(f"frame {name!r} was never saved: pass the original stack")
        frame, where = read_frame(Path(folder)), folder
    if frame is None or weights_digest(frame) != record["weights_sha256"]:
        raise SkillStackError(f"{where} does not hold the old frame {name!r}")
    return frame


def _insert(stack: SkillStack, frame: Frame) -> None:
    """Put a frame back where it was: before the first that descends from it."""
    parents = {f.name: f.parent for f in stack.frames}
    parents |= {name: entry["parent"] for name, entry in stack.dropped.items()}

    def descends(name: str | None) -> bool:
        while name is not None and name != frame.name:
            name = parents.get(name)
        return name is not None

    place = [i for i, other in enumerate(stack.frames) if descends(other.parent)]
    stack.frames.insert(place[0] if place else len(stack.frames), frame)


# ---------------------------------------------------------------------- who answers what


class Answers:
    """What frames answer to a fixed set of labelled rows; no frame is asked twice about a row.

    `Answers.of(stream, "eval")`, or with ``rows=slice(256, None)`` a part of each task's rows.
    """

    def __init__(self, texts: Sequence[str], tasks, labels, label_names):
        self.texts = list(texts)
        self.tasks = np.array(tasks, dtype=object)  # (n,)
        self.labels = np.array(labels, dtype=np.int64)  # right label ids, (n,)
        self.label_names = np.array(label_names, dtype=object)  # and their names, (n,)
        self._known: dict[str, np.ndarray] = {}  # digest of a frame -> label ids, -1 not asked
        self._digests: dict[int, tuple[Frame, str]] = {}

    @classmethod
    def of(cls, stream: Sequence[TaskData], split: str, rows: slice = slice(None)) -> Answers:
        texts, tasks, labels, names = [], [], [], []
        for data in stream:
            ids = data.labels(split)[rows]
            texts += data.texts(split)[rows]
            tasks += [data.name] * len(ids)
            labels += list(ids)
            names += [data.task.label_names[i] for i in ids]
        return cls(texts, tasks, labels, names)

    def right(
        self,
        stack: SkillStack,
        names: str | Sequence[str],
        rows: np.ndarray | None = None,
        label_ids: bool = False,
    ) -> np.ndarray:
        """Whether each text (or those at `rows`) is answered right, bool (n,).

        names: the frame asked, or one per text. Right means the right label *name*; a frame that
        does not know the name is wrong without being asked. label_ids: compare positions instead.
        """
        rows = np.arange(len(self.texts)) if rows is None else np.asarray(rows)
        names = np.array([names] * len(rows) if isinstance(names, str) else names, dtype=object)
        result = np.zeros(len(rows), dtype=bool)
        for name in dict.fromkeys(names):
            frame = stack[name]
            own = {label: i for i, label in enumerate(frame.label_names)}
            mine = np.flatnonzero(names == name)
            truth = self.labels[rows[mine]]
            if not label_ids:
                truth = np.array([own.get(self.label_names[i], -1) for i in rows[mine]])
            asked = mine[truth >= 0]
            if len(asked):
                result[asked] = self._ask(stack, frame, rows[asked]) == truth[truth >= 0]
        return result

    def accuracy(self, right: np.ndarray, rows: np.ndarray | None = None) -> pd.Series:
        """Mean of `right` per task, in the order of the rows."""
        tasks = self.tasks if rows is None else self.tasks[rows]
        return pd.Series(right, dtype=float).groupby(tasks, sort=False).mean()

    def _ask(self, stack: SkillStack, frame: Frame, rows: np.ndarray) -> np.ndarray:
        if id(frame) not in self._digests:  # the frame is kept, or its id could be given again
            self._digests[id(frame)] = frame, weights_digest(frame)
        digest = self._digests[id(frame)][1]
        known = self._known.setdefault(digest, np.full(len(self.texts), -1))
        new = rows[known[rows] < 0]
        if len(new):
            known[new] = stack.predict([self.texts[i] for i in new], frame.name).labels
        return known[rows]


def transfer(stack: SkillStack, answers: Answers, names: Sequence[str]) -> pd.DataFrame:
    """Accuracy of every named frame (rows) on the rows of every named task (columns)."""
    rows = np.flatnonzero(np.isin(answers.tasks, list(names)))
    table = {name: answers.accuracy(answers.right(stack, name, rows), rows) for name in tqdm(names)}
    return pd.DataFrame(table).T.loc[list(names), list(names)]


def families(stack: SkillStack) -> list[list[str]]:
    """Frames that answer with the same label names, in stack order; groups of two or more."""
    groups: dict[tuple, list[str]] = {}
    for frame in stack.frames:
        groups.setdefault(tuple(frame.label_names), []).append(frame.name)
    return [names for names in groups.values() if len(names) > 1]


def choose_anchor(stack: SkillStack, names: Sequence[str], answers: Answers) -> str:
    """The frame that answers best for all of them, mean over tasks, on rows such as the routing
    ones."""
    return str(transfer(stack, answers, names).mean(axis=1).idxmax())


# ---------------------------------------------------------------------- the rule


class Loss(NamedTuple):
    """What a change costs, in fractions summed over tasks."""

    total: float  # sum over tasks of the mean loss in right answers
    variance: float  # of that sum
    losses: int  # rows right before and wrong after
    gains: int  # rows wrong before and right after

    def upper(self, n_tasks: int, confidence: float) -> float:
        """One-sided upper confidence bound of the mean loss over tasks."""
        return (self.total + norm.ppf(confidence) * self.variance**0.5) / n_tasks


def paired_loss(
    before: np.ndarray, after: np.ndarray, tasks: np.ndarray, touched: np.ndarray
) -> Loss:
    """Loss from `before` to `after`, two bool arrays (n,) about the same rows.

    Per task the difference of two paired proportions with half a row added to each of the four
    cells (Agresti and Min 2005), so that a handful of rows without a loss is no proof. Tasks none
    of whose rows is `touched` (answered by another frame than before) lose nothing.
    """
    total = variance = 0.0
    for task in dict.fromkeys(tasks[touched]):
        mine = tasks == task
        lost = int((before & ~after)[mine].sum())
        won = int((after & ~before)[mine].sum())
        n = int(mine.sum()) + 2
        total += (lost - won) / n
        variance += (lost + won + 1 - (lost - won) ** 2 / n) / n**2
    return Loss(total, variance, int((before & ~after).sum()), int((after & ~before).sum()))


def prune(
    stack: SkillStack,
    router,
    choice: Answers,
    held_back: Answers,
    max_loss_pp: float = 1.0,
    confidence: float = 0.95,
    merge_by: str | None = "svd",
    pack: bool = False,
    progress: Callable = tqdm,
) -> SkillStack:
    """Reuse, merge or keep: the smallest stack whose expected loss in routed answers stays below
    `max_loss_pp`, as far as one frame at a time gets.

    A frame may be answered for by another with the same label names. Who stands in is chosen on
    `choice` (rows such as the routing ones, each asked of its own task's frame). Whether that is
    good enough is decided on `held_back`, rows that neither frames nor router nor choice have
    seen, routed by `router`: the upper confidence bound (one-sided, `confidence`) of the loss
    against the stack as it was before any decision, mean over tasks, must not exceed the bound.
    Where reuse fails, a merge of the two is tried. pack: at last int8 storage, by the same test.

    The statement holds for each decision, not for all of them together. Every decision is in
    ``stack.decisions`` with its evidence: rows, losses, gains, loss and upper bound in points.
    """
    if not 0 < confidence < 1:
        raise SkillStackError(f"confidence must be between 0 and 1, got {confidence}")
    if not max_loss_pp >= 0:
        raise SkillStackError(f"max_loss_pp must not be negative, got {max_loss_pp}")
    for rows, word in ((choice, "choice"), (held_back, "held_back")):
        for frame in stack.frames:
            if frame.name not in rows.tasks:
                raise SkillStackError(f"{word} has no rows of task {frame.name!r}")
    rule = _Rule(stack, router, choice, held_back, max_loss_pp, confidence)
    current, refused = stack, {}
    with progress(desc="prune", unit="decision") as bar:
        while True:
            step = rule.step(current, merge_by, refused)
            if step is None:
                break
            current = step
            bar.update()
        if pack:
            trial = int8(current)
            evidence = rule.test(trial)
            if evidence["accepted"]:
                trial.decisions[-1].update(evidence)
                current = trial
    current = _copy(current, current.frames)
    for frame in current.frames:
        why = refused.get(frame.name, {"reason": "no other frame has these labels"})
        current.decisions.append({"kind": "keep", "frames": [frame.name], **why})
    return current


def admit(stack: SkillStack, frame: Frame, *others, **options) -> SkillStack:
    """Take up a newly trained frame online: `prune`, with the same arguments, on the stack with
    the frame, so that it is kept, answered for by another, answers for others, or is merged.

    The bound is for the mean over the tasks so far. The losses of earlier decisions are carried
    along, since the frames they were measured against may be gone.
    """
    if frame.name in stack:
        raise SkillStackError(f"frame {frame.name!r} is already in the stack")
    if frame.parent is not None and frame.parent not in stack:
        raise SkillStackError(f"frame {frame.name!r}: its parent {frame.parent!r} is unknown")
    new = prune(_copy(stack, [*stack.frames, frame]), *others, **options)
    kept = [d for d in new.decisions[len(stack.decisions) :] if d["kind"] == "keep"]
    for decision in kept:
        if decision["frames"] != [frame.name]:
            new.decisions.remove(decision)
    return new


class _Rule:
    """The test of one call of `prune`, and its search for the next step."""

    def __init__(self, stack, router, choice, held_back, max_loss_pp, confidence):
        self.choice, self.held_back = choice, held_back
        self.max_loss_pp, self.confidence = max_loss_pp, confidence
        self.rows = np.flatnonzero([task in stack for task in held_back.tasks])
        self.tasks = held_back.tasks[self.rows]
        self.picks = router.predict([held_back.texts[i] for i in self.rows])
        self.stack = stack  # as it was; asked only about rows whose answer may change
        self.answering = self._frames(stack)
        spent = [d for d in stack.decisions if d.get("accepted") and not d.get("undone")]
        self.spent = Loss(
            sum(d["total"] for d in spent),
            sum(d["variance"] for d in spent),
            sum(d["losses"] for d in spent),
            sum(d["gains"] for d in spent),
        )
        self.noted = Loss(0.0, 0.0, 0, 0)  # of the steps accepted in this call

    def _frames(self, stack) -> np.ndarray:
        frames = {name: id(stack[name]) for name in dict.fromkeys(self.picks)}
        return np.array([frames[name] for name in self.picks])

    def test(self, trial: SkillStack) -> dict:
        """Evidence for or against a stack; `total` to `gains` are what this step adds."""
        touched = self._frames(trial) != self.answering
        before, after = np.zeros((2, len(self.rows)), dtype=bool)
        for right, stack in ((before, self.stack), (after, trial)):
            right[touched] = self.held_back.right(stack, self.picks[touched], self.rows[touched])
        call = paired_loss(before, after, self.tasks, touched)
        whole = Loss(*(a + b for a, b in zip(self.spent, call, strict=True)))
        n_tasks = len(set(self.tasks))
        upper = 100 * float(whole.upper(n_tasks, self.confidence))
        step = [a - b for a, b in zip(call, self.noted, strict=True)]
        accepted = upper <= self.max_loss_pp
        if accepted:
            self.noted = call
        return {
            "accepted": accepted,
            "tasks": n_tasks,
            "rows": len(self.rows),
            "loss_pp": 100 * whole.total / n_tasks,
            "upper_pp": upper,
            "max_loss_pp": self.max_loss_pp,
            "confidence": self.confidence,
        } | dict(zip(Loss._fields, step, strict=True))

    def step(self, current: SkillStack, merge_by: str | None, refused: dict) -> SkillStack | None:
        """The first change that passes, cheapest first on the `choice` rows; None if none does.

        refused: frame -> why its best stand-in was not taken, filled here.
        """
        for loss, name, to in self._options(current):
            trials = [("reuse", lambda name=name, to=to: drop(current, name, to))]
            if merge_by and ("merge", name, to) not in refused:
                pair = [name, to]
                trials.append((merge_by, lambda pair=pair: merge(current, pair, merge_by)))
            for way, make in trials:
                try:
                    trial = make()
                except SkillStackError:  # e.g. a merge of frames that share an adapter already
                    continue
                evidence = {"choice_loss": float(loss), **self.test(trial)}
                if evidence["accepted"]:
                    trial.decisions[-1].update(evidence)
                    refused.pop(name, None)
                    return trial
                if way == "reuse":
                    refused[name] = {"by": to, **evidence}
                else:
                    refused["merge", name, to] = refused["merge", to, name] = evidence
        return None

    def _options(self, stack: SkillStack) -> list[tuple[float, str, str]]:
        """For each frame the best stand-in: (loss summed over the tasks it answers, frame, to)."""
        owner = {t: stack[t].name for t in dict.fromkeys(self.choice.tasks) if t in stack}
        owners = np.array([owner.get(task) for task in self.choice.tasks], dtype=object)
        options = []
        for names in families(stack):
            for name in names:
                rows = np.flatnonzero(owners == name)
                own = self.choice.right(stack, name, rows)
                found = []
                for to in names:
                    if to != name:
                        lost = own.astype(float) - self.choice.right(stack, to, rows)
                        found.append((self.choice.accuracy(lost, rows).sum(), name, to))
                options.append(min(found))
        return sorted(options)


def stored_bytes(folder: str | Path) -> pd.Series:
    """Bytes on disk of a saved stack: ``adapters`` (and what they need), ``heads``, ``notes``
    (everything else: frame.json, adapter_config.json, stack.json). Routers do not count.

    A decoder's head lies in its adapter's file and counts there.
    """
    folder, sizes = Path(folder), {"adapters": 0, "heads": 0, "notes": 0}
    for path in (folder / "stack.json", *sorted((folder / "frames").glob("*/*"))):
        kind = "heads" if path.name == HEAD else "notes"
        if path.name in (ADAPTER, PACKED):
            kind = "adapters"
        sizes[kind] += path.stat().st_size
    return pd.Series(sizes)
