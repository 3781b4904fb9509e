"""Fewer frames, fewer bytes, the same answers.

Every function takes a stack and returns a new one that saves and loads like any other; frames it
does not touch are the same objects, so their logits stay the same to the last bit. What was
changed, and on which evidence, is in ``stack.decisions``, and `undo` takes it back as long as the
old frame is on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .errors import (
    SkillStackError,
    checked_name,
    checked_names,
    checked_number,
    checked_path,
    checked_seed,
    checked_text,
)
from .frames import ADAPTER, HEAD, PACKED, Frame, inner, read_frame, unpack, weights_digest
from .stack import SkillStack, checked_stack, follow, read_manifest

MERGES = ("linear", "ties", "dare_linear", "dare_ties", "svd")  # PEFT's names


# ---------------------------------------------------------------------- dropping and merging


def drop(stack: SkillStack, name: str, to: str) -> SkillStack:
    """Leave a frame out; `to` answers what a router sends to it from now on."""
    frame, target = _own_frame(checked_stack(stack), name), _own_frame(stack, to)
    if name == to:
        raise SkillStackError(f"frame {name!r} cannot substitute for itself")
    if readers := _readers(stack, name):
        raise SkillStackError(f"frame {name!r} holds the adapter of {', '.join(readers)}")
    new = stack.copy([f for f in stack.frames if f is not frame])
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
    frames = _mergeable(checked_stack(stack), checked_names(names, "names"))
    checked_name(method, MERGES, "merge")
    checked_number(density, "density", above=0, most=1)
    checked_seed(seed)
    r = frames[0].slot[0]
    lora = _weighted_adapter(stack, frames, method, density, seed)
    changed = {}
    for frame in frames:
        storage = {"lora_r": r, "lora_alpha": r}
        storage |= {} if frame is frames[0] else {"shares": frames[0].name}
        changed[frame.name] = frame.with_adapter(storage, lora)
    return _replaced(stack, "merge", changed, method)


def _mergeable(stack: SkillStack, names: Sequence[str]) -> list[Frame]:
    if len(set(names)) < 2:
        raise SkillStackError(f"a merge takes two frames or more, got {list(names)}")
    if stack.backbone.quantize:
        raise SkillStackError(f"frames on {stack.backbone.quantize} weights cannot be merged")
    chosen = {_own_frame(stack, name).name for name in names}
    first, *others = frames = [frame for frame in stack.frames if frame.name in chosen]
    for frame in frames:
        if frame.storage.keys() & {"format", "shares"} or _readers(stack, frame.name):
            raise SkillStackError(f"frame {frame.name!r} has no adapter of its own to merge")
    for frame in others:
        for what, one, other in (
            ("labels", first.label_names, frame.label_names),
            ("rank, alpha and first adapted layer", first.slot, frame.slot),
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
    r, alpha, layer = frames[0].slot
    # The scaling is in the weights: before 0.21 PEFT's svd applies it twice.
    backbone.attach(r, r, layer)
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
                [alpha / r / len(frames)] * len(frames),
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
    checked_number(energy, "energy", above=0, most=1)
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
        changed[frame.name] = frame.with_adapter({"lora_r": r, "lora_alpha": r}, lora)
    return _replaced(stack, "lower_rank", changed, f"{energy:.4g} of the energy")


def int8(stack: SkillStack, names: Iterable[str] | None = None) -> SkillStack:
    """Store adapters as int8 with one float32 scale per component of the rank; computed with as
    float32."""
    changed: dict[str, Frame] = {}
    for frame in _plain(stack, names, merged=True):
        r, alpha, _ = frame.slot
        storage = {"lora_r": r, "lora_alpha": alpha, "format": "int8"}
        if holder := frame.storage.get("shares"):
            lora = changed[holder].weights().lora
            changed[frame.name] = frame.with_adapter(storage | {"shares": holder}, lora)
            continue
        packed = {}
        for name, tensor in frame.weights().lora.items():
            along = 1 if ".lora_A." in name else 0  # A is (r, in), B is (out, r)
            scale = tensor.abs().amax(along, keepdim=True).clamp_min(1e-12) / 127
            packed[name] = (tensor / scale).round().to(torch.int8)
            packed[f"{name}.scale"] = scale
        changed[frame.name] = frame.with_adapter(storage, unpack(packed, "int8"), packed)
    return _replaced(stack, "int8", changed, "a scale per component of the rank")


def shared_basis(
    stack: SkillStack, rank: int, names: Iterable[str] | None = None, rounds: int = 10
) -> SkillStack:
    """One pair of bases for many frames, and a small core per frame: B A = U core V.

    U (out, rank) and V (rank, in) are orthonormal and minimize the summed squared error over the
    frames ("Compress then Serve", Brüel-Gabrielsson et al. 2024, joint full diagonalization), by
    alternating eigenvector steps from the stacked SVD. The first frame's folder keeps the bases.
    """
    checked_number(rank, "rank", whole=True)
    checked_number(rounds, "rounds", 1, 10**6, whole=True)
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
        storage |= {} if frame is frames[0] else {"shares": frames[0].name}
        stored = own if "shares" in storage else own | bases
        changed[frame.name] = frame.with_adapter(storage, unpack(own | bases, "basis"), stored)
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
    if isinstance(name, str) and name in stack.dropped:
        raise SkillStackError(f"frame {name!r} was dropped before")
    return stack[name]


def _readers(stack: SkillStack, name: str) -> list[str]:
    """The frames that read the adapter of this one."""
    return [frame.name for frame in stack.frames if frame.storage.get("shares") == name]


def _plain(stack: SkillStack, names: Iterable[str] | None, merged: bool = False) -> list[Frame]:
    """The named frames (default: all that qualify) that are stored as plain LoRA.

    merged: with those that share an adapter, always all that share it, its holder first.
    """

    def holder(frame: Frame) -> str:
        return frame.storage.get("shares") or frame.name

    checked_stack(stack)
    wanted = None
    if names is not None:
        wanted = {holder(_own_frame(stack, name)) for name in checked_names(names, "names")}
    frames = []
    for frame in stack.frames:
        if wanted is None or holder(frame) in wanted:
            packed, shared = "format" in frame.storage, _readers(stack, holder(frame))
            if not packed and (merged or not shared):
                frames.append(frame)
            elif wanted is not None:
                reason = "packed already" if packed else "merged with others"
                raise SkillStackError(f"frame {frame.name!r} is {reason}")
    return frames


def _replaced(stack: SkillStack, kind: str, changed: Mapping[str, Frame], by: str) -> SkillStack:
    if not changed:
        raise SkillStackError(f"{kind}: no frame of this stack can be changed that way")
    old = [frame for frame in stack.frames if frame.name in changed]
    new = stack.copy([changed.get(frame.name, frame) for frame in stack.frames])
    return _noted(new, kind, old, by)


def _noted(stack: SkillStack, kind: str, old: Sequence[Frame], by: str) -> SkillStack:
    """Write the decision down, with what `undo` needs to find the old frames."""
    replaced = {}
    for frame in old:
        folder = str(frame.folder.resolve()) if frame.folder else None
        replaced[frame.name] = {"folder": folder, "weights_sha256": weights_digest(frame)}
    decision = {"kind": kind, "frames": list(replaced), "by": by, "replaced": replaced}
    stack.decisions.append(decision)
    return stack


# ---------------------------------------------------------------------- taking it back


def undo(
    stack: SkillStack, name: str, original: SkillStack | str | Path | None = None
) -> SkillStack:
    """Take back the last decision that changed frame `name`.

    The old frames are read from the folder they were saved in when the decision was made, or from
    `original`, a stack or its folder. What cannot be had without goes with it: an earlier decision
    whose result was never saved, and later ones about any frame that comes back, or about the one
    whose adapter it shares. Decisions about other frames stay. Raises `SkillStackError` if the old
    frames are gone or changed. Of a second look (pruning.py) the new frame is left out, and the
    old one answers for it. A task that never had a frame of its own (reuse.py) is unknown again.
    """
    checked_stack(stack)
    checked_text(name, "name")
    if not isinstance(original, SkillStack | None):
        original = checked_path(original, "original")
    for i, decision in enumerate(stack.decisions):
        never = decision["kind"] == "never_created" and decision["frames"] == [name]
        if never and not decision.get("undone"):  # reuse.py: there is no frame to bring back
            new = stack.copy()
            del new.dropped[name]
            new.decisions[i]["undone"] = True
            return new
    history: dict[str, list[int]] = {}  # frame -> the decisions about it that hold
    for i, decision in enumerate(stack.decisions):
        for old in () if decision.get("undone") else decision.get("replaced", ()):
            history.setdefault(old, []).append(i)
    if name not in history:
        raise SkillStackError(f"no decision about frame {name!r} can be undone")
    first: dict[str, int] = {}  # frame -> the first decision about it that is taken back
    back: dict[str, Frame] = {}  # and the frame as it was before
    todo = [(name, history[name][-1])]
    while todo:
        old, i = todo.pop()
        record = stack.decisions[i]["replaced"][old]
        earlier = [j for j in history[old] if j < i]
        if earlier and record["folder"] is None and original is None:
            todo.append((old, earlier[-1]))
        elif i < first.get(old, len(stack.decisions)):
            first[old], back[old] = i, _old_frame(old, record, original)
            holder = back[old].storage.get("shares")
            again = [j for j in history[old] if j >= i]
            todo += [(other, j) for j in again for other in stack.decisions[j]["replaced"]]
            todo += [(holder, j) for j in history.get(holder, ()) if j > i]
    new = stack.copy([back.pop(frame.name, frame) for frame in stack.frames])
    for frame in back.values():
        del new.dropped[frame.name]
        new.frames.insert(_place(new, frame), frame)
    for old, i in first.items():
        for j in history[old]:
            if j >= i:
                new.decisions[j]["undone"] = True
                if new.decisions[j]["kind"] == "second_look":
                    _leave_out_again(new, new.decisions[j]["by"], new[old])
    return new


def _leave_out_again(stack: SkillStack, name: str, old: Frame) -> None:
    """Let an old frame that came back answer for what was learned in its place, or since then
    in the place of that."""
    frame = stack[name]
    if frame.name != old.name and frame.task == old.task and not _readers(stack, frame.name):
        stack.frames.remove(frame)
        stack.dropped[frame.name] = {"to": old.name, "parent": frame.parent}


def _old_frame(name: str, record: Mapping, original) -> Frame:
    if isinstance(original, SkillStack):
        frame = next((f for f in original.frames if f.name == name), None)
        where = "the original stack"
    else:
        folder = original / "frames" / name if original else record["folder"]
        if folder is None:
            raise SkillStackError(f"frame {name!r} was never saved: pass the original stack")
        frame, where = read_frame(Path(folder)), folder
    if frame is None or weights_digest(frame) != record["weights_sha256"]:
        raise SkillStackError(f"{where} does not hold the old frame {name!r}")
    return frame


def _place(stack: SkillStack, frame: Frame) -> int:
    """Where a frame was in the chain: right behind its parent, or what is left of its ancestors."""
    parent = follow(stack.dropped, frame.parent, "parent")
    return [None, *(f.name for f in stack.frames)].index(parent)


# ---------------------------------------------------------------------- looking in


def families(stack: SkillStack) -> list[list[str]]:
    """Frames that answer with the same label names, in stack order; groups of two or more."""
    groups: dict[tuple, list[str]] = {}
    for frame in stack.frames:
        groups.setdefault(tuple(frame.label_names), []).append(frame.name)
    return [names for names in groups.values() if len(names) > 1]


def stored_bytes(folder: str | Path) -> pd.Series:
    """Bytes on disk of a saved stack: ``adapters`` (and what they need), ``heads``, ``notes``
    (everything else: frame.json, adapter_config.json, stack.json). Routers do not count.

    A decoder's head lies in its adapter's file and counts there.
    """
    folder, sizes = checked_path(folder), {"adapters": 0, "heads": 0, "notes": 0}
    read_manifest(folder)  # or one line that says what is wrong
    for path in (folder / "stack.json", *sorted((folder / "frames").glob("*/*"))):
        kind = "heads" if path.name == HEAD else "notes"
        if path.name in (ADAPTER, PACKED):
            kind = "adapters"
        sizes[kind] += path.stat().st_size
    return pd.Series(sizes)
