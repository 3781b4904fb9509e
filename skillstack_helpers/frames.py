"""`Frame`: one learned skill, immutable, and its folder on disk.

``frame.json`` names the SHA-256 of the files beside it; adapter and head are safetensors, for
frames as they were trained a standard PEFT folder. Nothing outside a frame's folder is read but
the adapter that it shares with another frame of the stack (compression.py).

What is on disk is read when it is asked for: frame.json once (`ListedFrame`), the weights as often
as they are not among the `RESIDENT` bytes of weights used last, which are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from .backbones import Backbone
from .errors import SkillStackError
from .files import (
    LONGEST_JSON,
    OBJECT,
    SHA256,
    TEXT,
    Rule,
    aside,
    check_fields,
    digest,
    file_sha256,
    list_of,
    number,
    or_none,
    read_bytes,
    read_json,
    sealed_json,
    sync,
    unreadable,
    whole,
)

SCHEMA = 1
ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"
PACKED = "packed.safetensors"  # an adapter that plain PEFT cannot read, see compression.py
NAME = re.compile(r"[a-z0-9_-]{1,64}")
RESIDENT = 1 << 28  # bytes of weights read from disk that are kept, over all stacks of the process
_BARE = "base_model.model."  # PEFT's prefix of adapter names on a bare AutoModel
_SCORE = _BARE + "score.weight"  # where plain PEFT expects a decoder's head
NAMED = Rule(
    f"a frame's name, {NAME.pattern}", lambda v: isinstance(v, str) and bool(NAME.fullmatch(v))
)
# What frame.json says of a frame, in this order, beside the hashes.
_FACTS = {
    "name": NAMED,
    "task": TEXT,
    "label_names": list_of(TEXT, 1),
    "parent": or_none(NAMED),
    "metrics": OBJECT,
    "training": OBJECT,
    "data": OBJECT,
    "losses": list_of(Rule("a number", lambda value: type(value) in (int, float))),
    "seconds": number(0, 1e12),
    "versions": OBJECT,
    "prefix": TEXT,
}
_PROMPT = Rule(
    "a text with one place for a text",
    lambda value: isinstance(value, str) and value.count("{text}") == 1,
)
_MORE_FACTS = {  # of some frames
    "storage": OBJECT,
    "prompt": or_none(_PROMPT),
    "calibration": list_of(number(0, 1)),
}
_SLOT = {"lora_r": whole(1, 1 << 16), "lora_alpha": whole(1, 1 << 30)}
LAYER = or_none(whole(1, 1 << 16))
_FORM = Rule("int8 or basis", lambda value: value in ("int8", "basis"))
# What is read of the objects in it; other keys are for people.
_INSIDE = {
    "training": _SLOT | {"max_length": whole(1, 1 << 24), "first_adapted_layer": LAYER},
    "metrics": {"accuracy": number(0, 1), "n": whole(0, 1 << 40), "before": OBJECT},
    "data": {"source": TEXT, "template": TEXT, "fingerprint": TEXT, "train_fingerprint": TEXT},
    "storage": _SLOT | {"format": _FORM, "shares": or_none(NAMED)},
}
_LEFT_OUT = {  # by older versions, or where it is not so
    "training": ("first_adapted_layer",),
    "metrics": _INSIDE["metrics"],
    "data": _INSIDE["data"],
    "storage": ("format", "shares"),
}


class Weights(NamedTuple):
    """What a frame froze, float32 on the CPU."""

    lora: Mapping[str, Tensor]  # PEFT names; lora_A (r, in), lora_B (out, r)
    # weight (classes, hidden); encoders also bias (classes,); nothing where a frame has a prompt
    head: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Frame:
    """One learned skill, immutable; made by `SkillStack.grow`. `weights()` reads from disk if the
    frame was loaded, unless it was asked lately."""

    name: str
    task: str
    label_names: tuple[str, ...]
    parent: str | None
    metrics: Mapping  # accuracy (own evaluation rows), n, logits_sha256
    training: Mapping  # the TrainingConfig it was trained with, the learning rate resolved
    data: Mapping  # source, fingerprint, train_fingerprint, budget and template of the rows
    losses: tuple[float, ...]  # training loss of every step
    seconds: float  # training time
    versions: Mapping
    prefix: str  # of adapter names on disk, see Backbone.saved_prefix; in memory it is _BARE
    storage: Mapping = field(default_factory=dict)  # of a compressed frame, see compression.py
    prompt: str | None = None  # of a frame that writes its answers; else it has a head
    # 1 - P(true label) of the routing rows right after training, sorted: what label sets go by.
    calibration: tuple[float, ...] = ()
    sha256: Mapping = field(default_factory=dict)  # file name -> digest, once saved
    folder: Path | None = None
    listed: str | None = None  # SHA-256 of its frame.json, once saved
    _weights: Weights | None = field(default=None, repr=False)
    _packed: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # as PACKED has it

    def weights(self) -> Weights:
        """Adapter and head, not to be written into; raises `SkillStackError` if a file is not what
        was saved. Files are checked whenever they are read."""
        return self._weights if self._weights is not None else _resident_weights(self)

    def updates(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Per module the scaled update B A as two factors: B alpha / r (out, r) and A (r, in)."""
        lora, (r, alpha, _) = self.weights().lora, self.slot
        modules = [n.removesuffix(".lora_A.weight") for n in lora if n.endswith(".lora_A.weight")]
        scaled = {m: lora[f"{m}.lora_B.weight"] * (alpha / r) for m in modules}
        return {m: (scaled[m], lora[f"{m}.lora_A.weight"]) for m in modules}

    @property
    def slot(self) -> tuple[int, int, int | None]:
        """(r, alpha, first adapted layer) of the LoRA slot the adapter fits."""
        shape = self.storage or self.training
        return shape["lora_r"], shape["lora_alpha"], self.training.get("first_adapted_layer")

    @property
    def nbytes(self) -> int:
        """Bytes of adapter and head as stored; what is read from another frame's folder counts
        there."""
        if self._weights is None:  # nothing is read for it
            files = [self.folder / file for file in self.sha256 if file.endswith(".safetensors")]
            return sum(map(_tensor_bytes, files))
        tensors = [*self.weights().head.values(), *self._own_adapter().values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def with_adapter(
        self,
        storage: Mapping,
        lora: Mapping[str, Tensor],
        packed: Mapping[str, Tensor] | None = None,
    ) -> Frame:
        """The frame with another adapter under its head, not saved yet; what was measured before
        no longer holds of it. packed: the tensors to store in place of plain LoRA, see `unpack`."""
        stored = {n.replace(_BARE, self.prefix, 1): t for n, t in (packed or {}).items()}
        return dataclasses.replace(
            self,
            metrics=MappingProxyType({"before": dict(self.metrics)}),
            storage=MappingProxyType(dict(storage)),
            calibration=(),
            sha256={},
            folder=None,
            listed=None,
            _weights=Weights(MappingProxyType(dict(lora)), self.weights().head),
            _packed=MappingProxyType(stored),
        )

    def _own_adapter(self) -> Mapping[str, Tensor]:
        """The adapter's tensors that this frame itself keeps, as they are stored."""
        if "format" not in self.storage:
            return {} if self.storage.get("shares") else self.weights().lora
        if self._weights is None:
            own = self.sha256.get(PACKED)
            return _load_tensors(self.folder / PACKED, own) if own else {}
        return self._packed

    def facts(self) -> dict:
        """What frame.json says of the frame beside the hashes, in JSON's own types."""
        keys = [*_FACTS, *(key for key in _MORE_FACTS if getattr(self, key))]
        facts = {key: getattr(self, key) for key in keys}
        facts = {key: dict(v) if isinstance(v, Mapping) else v for key, v in facts.items()}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in facts.items()}

    def verify(self) -> None:
        """Raise `SkillStackError` unless every file beside frame.json is what was saved."""
        for name, expected in self.sha256.items():
            path = self.folder / name  # may be a link, as in the hub's snapshots: the bytes count
            if file_sha256(path) != expected:
                raise SkillStackError(f"{path} was changed or cut off (SHA-256 differs)")


class ListedFrame(Frame):
    """A frame that a stack on disk lists: name, folder and hash. `read` is called, and gives the
    frame that this one is from then on, when anything else of it is asked for."""

    def __init__(self, folder: Path, listed: str, read: Callable[[], Frame]):
        vars(self).update(name=folder.name, folder=folder, listed=listed, read=read)

    def __getattribute__(self, key: str):
        if key not in ("name", "folder", "listed", "__dict__", "__class__"):
            there = vars(self)
            there.update(vars(there["read"]()))
            del there["read"]
            object.__setattr__(self, "__class__", Frame)
        return object.__getattribute__(self, key)


def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Frobenius inner product of two updates B A, each given as (B, A) by `Frame.updates`."""
    (b, a), (b0, a0) = ((x.double(), y.double()) for x, y in (one, other))
    return float(((b.T @ b0) * (a @ a0.T)).sum())


def weights_digest(frame: Frame) -> str:
    """SHA-256 of a frame's adapter and head, names and bits."""
    weights, total = frame.weights(), hashlib.sha256()
    for part in (weights.lora, weights.head):
        for name in sorted(part):
            total.update(name.encode() + digest(part[name].numpy()).encode())
    return total.hexdigest()


def in_memory(frame: Frame) -> bool:
    """Whether its weights need not be read from disk."""
    return frame._weights is not None or frame in _resident


def check_frame_name(name) -> str:
    """The name, or an error if it cannot be a frame's."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SkillStackError(f"frame name {name!r} must match [a-z0-9_-]{{1,64}}")
    return name


# ---------------------------------------------------------------------- writing


def write_frame(frame: Frame, folder: Path, backbone: Backbone) -> Frame:
    """Write a frame's folder, whole or not at all; one that is there already is left alone.

    Returns the frame as saved. Raises `SkillStackError` if the folder holds another frame.
    """
    if folder.exists():
        saved = read_frame(folder)
        same = frame.sha256 and dict(saved.sha256) == dict(frame.sha256)
        if not same and weights_digest(saved) != weights_digest(frame):
            raise SkillStackError(f"{folder} holds another frame; frames are never overwritten")
        return _saved(frame, folder, saved.sha256, saved.listed)
    new = aside(folder.parent)
    try:
        new.mkdir()
        _write_tensors(frame, new, backbone)
        digests = {p.name: file_sha256(p) for p in sorted(new.iterdir())}
        fields = {"schema_version": SCHEMA} | frame.facts() | {"sha256": digests}
        (new / "frame.json").write_bytes(sealed_json(fields))
        for path in new.iterdir():
            sync(path)
        sync(new)
        listed = file_sha256(new / "frame.json")
        os.rename(new, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return _saved(frame, folder, digests, listed)


def _saved(frame: Frame, folder: Path, sha256: Mapping[str, str], listed: str) -> Frame:
    """The frame as it is on disk: its weights may be let go."""
    where = {"folder": folder, "sha256": sha256, "listed": listed}
    saved = dataclasses.replace(frame, **where, _weights=None, _packed={})
    if frame._weights is not None:
        _keep(saved, frame._weights)
    return saved


def _write_tensors(frame: Frame, folder: Path, backbone: Backbone) -> None:
    from peft import LoraConfig

    weights, opened_as = frame.weights(), backbone.auto_class(frame.prompt)
    classifies = opened_as == "AutoModelForSequenceClassification"
    if "format" in frame.storage or frame.storage.get("shares"):  # nothing PEFT could open
        (folder / HEAD).write_bytes(safetensors.torch.save(dict(weights.head)))
        if own := frame._own_adapter():
            (folder / PACKED).write_bytes(safetensors.torch.save(dict(own)))
        return
    tensors = {n.replace(_BARE, frame.prefix, 1): t for n, t in weights.lora.items()}
    if classifies:
        tensors[_SCORE] = weights.head["weight"]
    elif frame.prompt is None:
        (folder / HEAD).write_bytes(safetensors.torch.save(dict(weights.head)))
    # save_file would hide a full disk behind an error class of its own.
    (folder / ADAPTER).write_bytes(safetensors.torch.save(tensors))
    backbone.attach(*frame.slot)  # a stack may be opened and saved without being used
    slot: LoraConfig = backbone.model.peft_config["default"]
    task_type = "SEQ_CLS" if classifies else "CAUSAL_LM" if frame.prompt else "FEATURE_EXTRACTION"
    target = sorted(slot.target_modules)
    if backbone.part:  # the part that sees may have layers of the same names
        layers = "|".join(map(str, slot.layers_to_transform or ()))
        where = rf"(.*\.)?{slot.layers_pattern}\.({layers})\." if layers else ""
        target = rf".*\.{re.escape(backbone.part)}{where}(.*\.)?({'|'.join(target)})"
    config = LoraConfig(
        r=frame.slot[0],
        lora_alpha=frame.slot[1],
        lora_dropout=0.0,
        target_modules=target,
        exclude_modules=slot.exclude_modules,
        layers_to_transform=None if isinstance(target, str) else slot.layers_to_transform,
        layers_pattern=None if isinstance(target, str) else slot.layers_pattern,
        fan_in_fan_out=slot.fan_in_fan_out,
        task_type=task_type,
        modules_to_save=["score"] if classifies else None,
        base_model_name_or_path=backbone.name,
        inference_mode=True,
    ).to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=1) + "\n")


# ---------------------------------------------------------------------- reading


def read_schema(path: Path, rules: Mapping[str, Rule], content: bytes | None = None) -> dict:
    """A JSON file of this version (content: as it was read) whose keys are what these rules say,
    or an error that names what is not."""
    fields = read_json(path, ("schema_version",), content)
    if fields["schema_version"] != SCHEMA:
        raise SkillStackError(
            f"{path} has schema {fields['schema_version']!r}, this version reads {SCHEMA}"
        )
    check_fields(str(path), fields, rules)
    return fields


def read_frame(folder: Path, sha256: str | None = None) -> Frame:
    """One frame's folder, whose frame.json has this digest; the weights are read when they are
    used."""
    check_frame_name(folder.name)
    if folder.is_symlink() or not folder.is_dir():
        raise SkillStackError(f"{folder} is missing or not a plain folder")
    path = folder / "frame.json"
    content = read_bytes(path, sha256, LONGEST_JSON)
    fields = read_schema(path, _FACTS | {"sha256": OBJECT}, content)
    check_fields(str(path), fields, _MORE_FACTS, _MORE_FACTS)
    for key, rules in _INSIDE.items():
        if key != "storage" or fields.get(key):  # none: plain LoRA
            check_fields(f"{path}: {key}", fields[key], rules, _LEFT_OUT[key])
    storage = fields.get("storage", {})
    if fields["name"] != folder.name:
        raise SkillStackError(f"{path} is frame {fields['name']!r}, not {folder.name!r}")
    if len(set(fields["label_names"])) < len(fields["label_names"]):
        raise SkillStackError(f"{path}: 'label_names' has a name twice")
    needed = HEAD if "format" in storage or storage.get("shares") else ADAPTER
    if needed not in fields["sha256"]:
        raise SkillStackError(f"{path}: sha256 does not list {needed}")
    for name in fields["sha256"]:
        if Path(name).name != name or "\0" in name:
            raise SkillStackError(f"{path} lists a file outside: {name!r}")
    check_fields(f"{path}: sha256", fields["sha256"], dict.fromkeys(fields["sha256"], SHA256))
    known = {key: fields[key] for key in (*_FACTS, *_MORE_FACTS, "sha256") if key in fields}
    frozen = {k: MappingProxyType(v) if isinstance(v, dict) else v for k, v in known.items()}
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in frozen.items()}
    return Frame(**frozen, folder=folder, listed=sha256 or hashlib.sha256(content).hexdigest())


def _tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file: all but the header and its length."""
    try:
        with path.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
            return os.fstat(stream.fileno()).st_size - 8 - header
    except OSError as error:
        raise unreadable(path, error) from None


def _load_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a file with this digest, in memory of their own: were the file mapped, who
    writes into it would change a frame in use, and who cuts it would end the process."""
    if sha256 is None:
        raise SkillStackError(f"{path.parent / 'frame.json'}: sha256 does not list {path.name}")
    content = read_bytes(path, sha256)
    try:
        return safetensors.torch.load(content)
    except (ValueError, safetensors.SafetensorError) as error:
        raise SkillStackError(f"{path} is not readable safetensors: {error}") from None


_resident: weakref.WeakKeyDictionary[Frame, tuple[Weights, int]] = weakref.WeakKeyDictionary()


def _resident_weights(frame: Frame) -> Weights:
    """The weights of a frame on disk; read, if they are not at hand."""
    if frame not in _resident:
        return _keep(frame, _read_weights(frame))
    _resident[frame] = _resident.pop(frame)  # behind all others
    return _resident[frame][0]


def _keep(frame: Frame, weights: Weights) -> Weights:
    """Have the weights of a frame on disk at hand; those asked least recently are let go, so that
    all together stay within `RESIDENT` bytes."""
    _resident[frame] = weights, sum(t.nbytes for part in weights for t in part.values())
    total = sum(size for _, size in _resident.values())
    while total > RESIDENT:
        total -= _resident.pop(next(iter(_resident)))[1]
    return weights


def _read_weights(frame: Frame) -> Weights:
    storage, plain = frame.storage, "format" not in frame.storage
    file = ADAPTER if plain else PACKED
    tensors, path = {}, frame.folder / HEAD
    if storage.get("shares"):
        holder = read_frame(frame.folder.parent / storage["shares"])
        tensors = _load_tensors(holder.folder / file, holder.sha256.get(file))
        tensors.pop(_SCORE, None)  # the head of the frame that is read from
    if file in frame.sha256:
        path = frame.folder / file
        tensors |= _load_tensors(path, frame.sha256[file])
    if _SCORE in tensors:
        head = {"weight": tensors.pop(_SCORE)}
    elif frame.prompt is not None:
        head = {}
    else:
        path = frame.folder / HEAD
        head = _load_tensors(path, frame.sha256.get(HEAD))
    shape = head["weight"].shape if "weight" in head else None
    fits = shape is not None and len(shape) == 2 and shape[0] == len(frame.label_names)
    if not fits and frame.prompt is None:
        raise SkillStackError(
            f"{path}: the head does not have {len(frame.label_names)} classes: {shape}"
        )
    if head.keys() - {"weight", "bias"} or ("bias" in head and head["bias"].shape != shape[:1]):
        raise SkillStackError(f"{path}: the head is not a weight and a bias of its classes")
    if not plain:
        try:
            tensors = unpack(tensors, storage["format"])
        except (KeyError, RuntimeError) as error:
            raise SkillStackError(f"{frame.folder / file}: not a packed adapter: {error}") from None
    lora = {name.replace(frame.prefix, _BARE, 1): tensor for name, tensor in tensors.items()}
    for name, tensor in lora.items():  # before a slot of that rank is made
        ranks = {"A": tensor.shape[:1], "B": tensor.shape[1:]}
        which = name.partition(".lora_")[2][:1]
        if tensor.ndim != 2 or list(ranks.get(which, ())) != [frame.slot[0]]:
            raise SkillStackError(
                f"{frame.folder / file}: {name} is {tuple(tensor.shape)}, "
                f"not of rank {frame.slot[0]}"
            )
    return Weights(MappingProxyType(lora), MappingProxyType(head))


def unpack(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """A packed adapter as float32 LoRA tensors.

    ``"int8"``: ``<name>`` int8 times ``<name>.scale``, one scale per component of the rank.
    ``"basis"``: ``<module>.V`` (R, in) and ``<module>.U`` (out, R) of several frames, with the
    frame's own ``<module>.core`` (R, R): B A = U core V.
    """
    lora = {}
    if form == "int8":
        for name in tensors:
            if not name.endswith(".scale"):
                lora[name] = tensors[name].float() * tensors[f"{name}.scale"]
        return lora
    for name in tensors:
        if name.endswith(".core"):
            module = name.removesuffix(".core")
            lora[f"{module}.lora_A.weight"] = tensors[f"{module}.V"]
            lora[f"{module}.lora_B.weight"] = tensors[f"{module}.U"] @ tensors[name]
    return lora
