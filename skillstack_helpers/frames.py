"""`SkillStack`: a chain of immutable LoRA frames over one frozen backbone.

One adapter is trained through the stream. After each task its weights, the task's head and what
was measured are frozen as a `Frame` that points to its parent. The last frame is also the latest
sequential adapter, which forgets; an earlier frame, picked again, cannot.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import SkillStackError, generation, training
from .backbones import Backbone
from .config import RunConfig, did_you_mean
from .results import explain, file_sha256, sync, versions, write_atomic
from .tasks import TaskData

SCHEMA = 1
ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"
PACKED = "packed.safetensors"  # an adapter that plain PEFT cannot read, see compression.py
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_BARE = "base_model.model."  # PEFT's prefix of adapter names on a bare AutoModel
_SCORE = _BARE + "score.weight"  # where plain PEFT expects a decoder's head


class Prediction(NamedTuple):
    """Answers to n texts, in input order."""

    labels: np.ndarray  # label ids, int64 (n,)
    probabilities: np.ndarray  # softmax, float32 (n, most classes of the frames asked); 0 beyond
    label_names: np.ndarray  # str (n,)


class Evaluation(NamedTuple):
    """How one adapter and head did on a task's evaluation rows."""

    accuracy: float  # fraction in [0, 1]
    labels: np.ndarray  # predicted label ids, int64 (n,)
    logits: np.ndarray  # float32 (n, classes)


class Weights(NamedTuple):
    """What a frame froze, float32 on the CPU."""

    lora: Mapping[str, Tensor]  # PEFT names; lora_A (r, in), lora_B (out, r)
    # weight (classes, hidden); encoders also bias (classes,); nothing where a frame has a prompt
    head: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Frame:
    """One learned skill, immutable. `weights()` reads from disk if the frame was loaded."""

    name: str
    task: str
    label_names: tuple[str, ...]
    parent: str | None
    metrics: Mapping  # accuracy (own evaluation rows), n, logits_sha256
    training: Mapping  # the RunConfig fields it was trained with, the learning rate resolved
    data: Mapping  # source, fingerprint
    losses: tuple[float, ...]  # training loss of every step
    seconds: float  # training time
    versions: Mapping
    prefix: str  # of adapter names on disk, see Backbone.saved_prefix; in memory it is _BARE
    storage: Mapping = field(default_factory=dict)  # of a compressed frame, see compression.py
    prompt: str | None = None  # of a frame that writes its answers, see generation.py; else a head
    sha256: Mapping = field(default_factory=dict)  # file name -> digest, once saved
    folder: Path | None = None
    _weights: Weights | None = field(default=None, repr=False)
    _packed: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # as PACKED has it

    def weights(self) -> Weights:
        """Adapter and head; raises `SkillStackError` if a file is not what was saved."""
        return self._weights if self._weights is not None else _read_weights(self)

    def updates(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Per module the scaled update B A as two factors: B alpha / r (out, r) and A (r, in)."""
        lora, (r, alpha) = self.weights().lora, self.slot
        modules = [n.removesuffix(".lora_A.weight") for n in lora if n.endswith(".lora_A.weight")]
        scaled = {m: lora[f"{m}.lora_B.weight"] * (alpha / r) for m in modules}
        return {m: (scaled[m], lora[f"{m}.lora_A.weight"]) for m in modules}

    @property
    def slot(self) -> tuple[int, int]:
        """(r, alpha) of the LoRA slot the adapter fits."""
        shape = self.storage or self.training
        return shape["lora_r"], shape["lora_alpha"]

    @property
    def nbytes(self) -> int:
        """Bytes of adapter and head as stored; what is read from another frame's folder counts
        there."""
        tensors = [*self.weights().head.values(), *self._own_adapter().values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _own_adapter(self) -> Mapping[str, Tensor]:
        """The adapter's tensors that this frame itself keeps, as they are stored."""
        if "format" not in self.storage:
            return {} if self.storage.get("shares") else self.weights().lora
        if self._weights is None:
            return _load_tensors(self.folder / PACKED) if PACKED in self.sha256 else {}
        return self._packed


class SkillStack:
    """Frames in the order they were learned, over one backbone.

    >>> stack = SkillStack(load_backbone("minilm"))
    >>> for data in stream:
    ...     frame = stack.grow(data, config)
    >>> stack.predict(["a fine film"], frame="imdb").label_names
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.frames: list[Frame] = []
        # Frames that were left out and who answers for them: name -> {"to", "parent", ...}, and
        # what was decided on which evidence; both written by compression.py.
        self.dropped: dict[str, dict] = {}
        self.decisions: list[dict] = []

    def __deepcopy__(self, memo) -> SkillStack:
        return self  # frames are immutable; scikit-learn's `clone` copies a router, not its stack

    def __len__(self) -> int:
        return len(self.frames)

    def __contains__(self, name: str) -> bool:
        return name in self.dropped or any(frame.name == name for frame in self.frames)

    def __getitem__(self, name: str) -> Frame:
        """The frame of that name, or the one that answers for it if it was dropped."""
        answering = name
        while answering in self.dropped:
            answering = self.dropped[answering]["to"]
        for frame in self.frames:
            if frame.name == answering:
                return frame
        names = [frame.name for frame in self.frames] + list(self.dropped)
        raise SkillStackError(f"unknown frame {name!r}{did_you_mean(str(name), names)}")

    def chain(self) -> list[Frame]:
        """The frames from the latest along the parents to the root, dropped ones left out."""
        walk, name = [], self.frames[-1].name if self.frames else None
        while name is not None:
            if name in self.dropped:
                name = self.dropped[name]["parent"]
            else:
                walk.append(self[name])
                name = walk[-1].parent
        return walk

    # ------------------------------------------------------------------ learning

    def grow(
        self,
        data: TaskData,
        config: RunConfig,
        prompt: str | None = None,
        progress: Callable = tqdm,
    ) -> Frame:
        """Train on a task, freeze, append.

        The adapter starts from where the latest frame ended, with a new head; with a `prompt`
        (`generation.instruction`) there is no head, and the frame learns to write the label word.
        The frame is evaluated on the task's own evaluation rows before it is frozen.
        """
        name = _checked_name(data.name)
        if name in self:
            raise SkillStackError(f"frame {name!r} is already in the stack")
        if prompt is not None:
            generation.check_prompt(self.backbone, prompt, config.max_length)
        backbone, parent = self.backbone, self.frames[-1] if self.frames else None
        self._use_slot(config.lora_r, config.lora_alpha)
        lr = config.lr or backbone.lr
        entropy = np.random.SeedSequence([config.seed, len(self.frames)])
        with torch.random.fork_rng():
            torch.manual_seed(int(entropy.generate_state(1)[0]))
            if parent is None:
                backbone.reset_lora()
            else:
                backbone.write_lora(parent.weights().lora, parent.name)
            rng = np.random.default_rng(entropy)
            if prompt is None:
                head = training.new_head(backbone, len(data.task.label_names))
            start = time.perf_counter()
            if prompt is not None:
                losses = generation.train_answers(backbone, prompt, data, config, rng, progress)
            else:
                losses = training.train(
                    backbone,
                    head,
                    backbone.encode(data.texts("train"), config.max_length),
                    data.labels("train"),
                    epochs=config.epochs,
                    lr=lr,
                    batch_size=config.batch_size,
                    rng=rng,
                    description=f"train {name}",
                    progress=progress,
                )
            seconds = time.perf_counter() - start
        named = [] if prompt is not None else head.named_parameters()
        head_weights = {n: p.detach().to("cpu", copy=True) for n, p in named}
        judge = (prompt, data.task.label_names) if prompt is not None else head
        evaluated = self._evaluate(data, judge, config.max_length, progress)
        frame = Frame(
            name=name,
            task=data.name,
            label_names=tuple(data.task.label_names),
            parent=parent.name if parent else None,
            metrics=MappingProxyType(
                {
                    "accuracy": evaluated.accuracy,
                    "n": len(evaluated.labels),
                    "logits_sha256": digest(evaluated.logits),
                }
            ),
            training=MappingProxyType(config.identity() | {"lr": lr}),
            data=MappingProxyType({"source": data.source, "fingerprint": data.fingerprint}),
            losses=tuple(losses),
            seconds=seconds,
            versions=MappingProxyType(versions()),
            prefix=backbone.saved_prefix,
            prompt=prompt,
            _weights=Weights(
                MappingProxyType(backbone.read_lora()), MappingProxyType(head_weights)
            ),
        )
        self.frames.append(frame)
        return frame

    # ------------------------------------------------------------------ answering

    def predict(
        self,
        texts: Sequence[str],
        frame: str | Sequence[str],
        head: str | Sequence[str] | None = None,
        progress: Callable = tqdm,
    ) -> Prediction:
        """Answer texts with one frame, or each with its own (`frame` a sequence of names).

        head: whose head, also one or one per text (default: the frame's).
        """
        texts = list(texts)
        frames = self._answering(frame, texts)
        heads = frames if head is None else self._answering(head, texts)
        asked = list(dict.fromkeys(zip(frames, heads, strict=True)))
        width = max((len(self[name].label_names) for _, name in asked), default=0)
        labels = np.zeros(len(texts), dtype=np.int64)
        probabilities = np.zeros((len(texts), width), dtype=np.float32)
        label_names = np.empty(len(texts), dtype=object)
        for adapter, holder in asked:
            rows = np.flatnonzero((frames == adapter) & (heads == holder))
            one = self[adapter]
            judge = self._activate(one, self[holder])
            mine, length = [texts[i] for i in rows], one.training["max_length"]
            scores = self._logits(judge, mine, length, f"ask {adapter}", progress)
            softmax = np.exp(scores - scores.max(1, keepdims=True))
            probabilities[rows, : scores.shape[1]] = softmax / softmax.sum(1, keepdims=True)
            labels[rows] = scores.argmax(1)
            label_names[rows] = [self[holder].label_names[i] for i in labels[rows]]
        return Prediction(labels, probabilities, label_names)

    def answer(self, texts: Sequence[str], router) -> pd.DataFrame:
        """Route each text to a frame and let it, or the one that stands in for it, answer.

        Columns: frame, label, label_name, probability, router_score, depth, fallback.
        """
        routes = router.route(texts)
        prediction = self.predict(texts, list(routes["frame"]))
        return pd.DataFrame(
            {
                "frame": self._answering(list(routes["frame"]), list(texts)),
                "label": prediction.labels,
                "label_name": prediction.label_names,
                "probability": prediction.probabilities.max(1, initial=0.0),
                "router_score": routes["score"].to_numpy(),
                "depth": routes["depth"].to_numpy(),
                "fallback": routes["fallback"].to_numpy(),
            }
        )

    def evaluate(
        self,
        data: TaskData,
        frame: str | None = None,
        head: str | None = None,
        progress: Callable = tqdm,
    ) -> Evaluation:
        """Accuracy and predictions on a task's evaluation rows.

        frame: whose adapter (default: the task's own). head: whose head (default: the frame's);
        the latest adapter on an old task is ``evaluate(old, frame=latest, head=old.name)``.
        """
        adapter = self[frame or data.name]
        holder = self[head] if head else adapter
        if len(holder.label_names) != len(data.task.label_names):
            raise SkillStackError(
                f"the head of frame {holder.name!r} has {len(holder.label_names)} classes, "
                f"task {data.name!r} has {len(data.task.label_names)}: pass head={data.name!r}"
            )
        judge = self._activate(adapter, holder)
        return self._evaluate(data, judge, adapter.training["max_length"], progress)

    def _logits(self, judge, texts, max_length, description, progress) -> np.ndarray:
        """Scores (n, classes) under the slot's adapter by a head, or by a prompt and labels."""
        told = {"description": description, "progress": progress}
        if isinstance(judge, torch.nn.Module):
            ids = self.backbone.encode(texts, max_length)
            return training.logits(self.backbone, judge, ids, **told)
        prompt, label_names = judge
        ids = generation.encode_prompts(self.backbone, prompt, texts, max_length)
        return generation.choice_scores(self.backbone, label_names, ids, **told)

    def _evaluate(self, data, judge, max_length, progress) -> Evaluation:
        told = (max_length, f"evaluate {data.name}", progress)
        scores = self._logits(judge, data.texts("eval"), *told)
        labels = scores.argmax(1)
        return Evaluation(float((labels == data.labels("eval")).mean()), labels, scores)

    def _answering(self, names: str | Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """The name of the frame that answers each text, object (n,)."""
        names = _per_text(names, texts)
        standing = {name: self[name].name for name in dict.fromkeys(names)}
        return np.array([standing[name] for name in names], dtype=object)

    def _use_slot(self, r: int, alpha: int) -> None:
        shapes = {f.slot for f in self.frames}
        if shapes and shapes != {(r, alpha)}:
            raise SkillStackError(
                f"a chain keeps one LoRA shape: this stack has (r, alpha) {shapes.pop()}, "
                f"the config asks for {(r, alpha)}"
            )
        self.backbone.attach(r, alpha)

    def activate(self, frame: Frame) -> None:
        """Copy a frame's adapter into the backbone's slot."""
        self.backbone.attach(*frame.slot)
        self.backbone.write_lora(frame.weights().lora, str(frame.folder or frame.name))

    def _activate(self, adapter: Frame, holder: Frame):
        """Activate a frame; returns the holder's head, or its prompt and label names."""
        self.activate(adapter)
        if holder.prompt is not None:
            return holder.prompt, holder.label_names
        weights = holder.weights().head
        classes, hidden = weights["weight"].shape
        if hidden != self.backbone.hidden_size:
            raise SkillStackError(
                f"{holder.folder or holder.name}: the head reads {hidden} features, "
                f"the backbone gives {self.backbone.hidden_size}"
            )
        head = torch.nn.Linear(hidden, classes, bias="bias" in weights)
        head.load_state_dict(dict(weights))
        return head.to(self.backbone.device).requires_grad_(False)

    # ------------------------------------------------------------------ disk

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the stack; frames that are already there are left alone.

        A frame's folder appears whole or not at all. Raises `SkillStackError` when the folder
        holds another stack, or when the disk refuses; what was saved before stays valid.
        """
        folder = Path(folder)
        if (folder / "stack.json").exists():
            there = read_manifest(folder)["frames"]
            ours = [frame.name for frame in self.frames]
            if [entry["name"] for entry in there] != ours[: len(there)]:
                raise SkillStackError(f"{folder} holds another stack; choose an empty folder")
        try:
            (folder / "frames").mkdir(parents=True, exist_ok=True)
            for stale in folder.rglob(".tmp-*"):  # left behind by a killed process
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
            if not (folder / "stack.json").exists():
                self._write_manifest(folder, [])  # so that a first frame can be found and adopted
            for i, frame in enumerate(self.frames):
                self.frames[i] = self._save_frame(frame, folder / "frames" / frame.name)
            self._write_manifest(folder, self.frames)
        except OSError as error:
            raise SkillStackError(f"cannot save the stack in {folder}: {explain(error)}") from None
        return folder

    def _write_manifest(self, folder: Path, frames: Sequence[Frame]) -> None:
        path = folder / "frames"
        listed = [
            {"name": f.name, "sha256": file_sha256(path / f.name / "frame.json")} for f in frames
        ]
        backbone = self.backbone.identity()
        manifest = {"schema_version": SCHEMA, "backbone": backbone, "frames": listed}
        if self.dropped or self.decisions:
            manifest |= {"dropped": self.dropped, "decisions": self.decisions}
        write_atomic(folder / "stack.json", json.dumps(manifest, indent=1) + "\n")

    def _save_frame(self, frame: Frame, folder: Path) -> Frame:
        if folder.exists():
            saved = read_frame(folder)
            if frame.sha256 and dict(saved.sha256) == dict(frame.sha256):
                return frame
            if weights_digest(saved) != weights_digest(frame):
                raise SkillStackError(f"{folder} holds another frame; frames are never overwritten")
            return dataclasses.replace(frame, sha256=saved.sha256, folder=folder)
        aside = Path(tempfile.mkdtemp(prefix=f".tmp-{frame.name}-", dir=folder.parent))
        try:
            self._write_frame_files(frame, aside)
            digests = {p.name: file_sha256(p) for p in sorted(aside.iterdir())}
            fields = {"schema_version": SCHEMA} | _facts(frame) | {"sha256": digests}
            (aside / "frame.json").write_text(json.dumps(fields, indent=1) + "\n")
            for path in aside.iterdir():
                sync(path)
            sync(aside)
            os.chmod(aside, 0o755)  # mkdtemp makes it private
            os.rename(aside, folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return dataclasses.replace(frame, sha256=digests, folder=folder)

    def _write_frame_files(self, frame: Frame, folder: Path) -> None:
        from peft import LoraConfig

        weights, decoder = frame.weights(), self.backbone.kind == "decoder"
        if "format" in frame.storage or frame.storage.get("shares"):  # nothing PEFT could open
            (folder / HEAD).write_bytes(safetensors.torch.save(dict(weights.head)))
            if own := frame._own_adapter():
                (folder / PACKED).write_bytes(safetensors.torch.save(dict(own)))
            return
        tensors = {n.replace(_BARE, frame.prefix, 1): t for n, t in weights.lora.items()}
        writes = frame.prompt is not None
        if decoder and not writes:
            tensors[_SCORE] = weights.head["weight"]
        elif not writes:
            (folder / HEAD).write_bytes(safetensors.torch.save(dict(weights.head)))
        # save_file would hide a full disk behind an error class of its own.
        (folder / ADAPTER).write_bytes(safetensors.torch.save(tensors))
        self.backbone.attach(*frame.slot)  # a stack may be opened and saved without being used
        slot: LoraConfig = self.backbone.model.peft_config["default"]
        config = LoraConfig(
            r=frame.slot[0],
            lora_alpha=frame.slot[1],
            lora_dropout=0.0,
            target_modules=sorted(slot.target_modules),
            exclude_modules=slot.exclude_modules,
            fan_in_fan_out=slot.fan_in_fan_out,
            task_type=("CAUSAL_LM" if writes else "SEQ_CLS" if decoder else "FEATURE_EXTRACTION"),
            modules_to_save=["score"] if decoder and not writes else None,
            base_model_name_or_path=self.backbone.name,
            inference_mode=True,
        ).to_dict()
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        (folder / "adapter_config.json").write_text(json.dumps(plain, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: Backbone) -> SkillStack:
        """Open a saved stack. Schema, backbone and every file's hash are checked first; weights
        are read when a frame is used. Raises `SkillStackError` naming the file that is wrong.

        A whole frame whose folder was written but not yet listed when its process died is kept.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest["backbone"] != backbone.identity():
            theirs, ours = manifest["backbone"], backbone.identity()
            key = next(k for k in ours if theirs.get(k) != ours[k])
            raise SkillStackError(
                f"{folder / 'stack.json'}: the stack was made with backbone {key} "
                f"{theirs.get(key)!r}, this one has {ours[key]!r}"
            )
        stack = cls(backbone)
        stack.dropped, stack.decisions = manifest.get("dropped", {}), manifest.get("decisions", [])
        for entry in manifest["frames"]:
            path = folder / "frames" / entry["name"]
            frame = read_frame(path)
            if file_sha256(path / "frame.json") != entry["sha256"]:
                raise SkillStackError(f"{path / 'frame.json'} was changed (SHA-256 differs)")
            stack._adopt(frame)
        listed = {entry["name"] for entry in manifest["frames"]}
        unlisted = [p for p in sorted((folder / "frames").glob("*")) if p.name not in listed]
        for path in unlisted:
            if path.is_dir() and _NAME.fullmatch(path.name):
                frame = read_frame(path)
                latest = stack.frames[-1].name if stack.frames else None
                if frame.parent == latest:
                    stack._adopt(frame)
        return stack

    def _adopt(self, frame: Frame) -> None:
        path = frame.folder / "frame.json"
        if frame.name in self:
            raise SkillStackError(f"{path}: name {frame.name!r} is taken")
        if frame.parent is not None and frame.parent not in self:
            raise SkillStackError(f"{path}: parent {frame.parent!r} does not come before it")
        shares = frame.storage.get("shares")
        if shares and shares not in [f.name for f in self.frames]:
            raise SkillStackError(f"{path}: frame {shares!r}, whose adapter it reads, is missing")
        _verify_files(frame)
        self.frames.append(frame)

    def verify(self) -> None:
        """Raise `SkillStackError` unless every saved file and every frame in memory is intact."""
        for frame in self.frames:
            if frame.folder is None:
                continue
            _verify_files(frame)
            saved = read_frame(frame.folder)
            if _facts(saved) != _facts(frame):
                raise SkillStackError(f"{frame.folder / 'frame.json'} was changed")
            if frame._weights is not None and weights_digest(saved) != weights_digest(frame):
                raise SkillStackError(f"frame {frame.name!r} was changed in memory")


# ---------------------------------------------------------------------- files and digests


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and bytes: equal only where every bit is."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


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


def _per_text(names: str | Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """A frame name per text, object (n,)."""
    one = isinstance(names, str)
    names = np.array([names] * len(texts) if one else list(names), dtype=object)
    if len(names) != len(texts):
        raise SkillStackError(f"{len(texts)} texts but {len(names)} frame names")
    return names


def _checked_name(name) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SkillStackError(f"frame name {name!r} must match [a-z0-9_-]{{1,64}}")
    return name


def _read_json(path: Path, keys: Sequence[str]) -> dict:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkillStackError(f"{path} is missing") from None
    except (ValueError, RecursionError):
        raise SkillStackError(f"{path} is not valid JSON (truncated or edited?)") from None
    except OSError as error:
        raise SkillStackError(f"{path}: {error.strerror}") from None
    missing = [key for key in keys if not isinstance(fields, dict) or key not in fields]
    if missing:
        raise SkillStackError(f"{path} has no {missing[0]!r} (truncated or edited?)")
    if fields["schema_version"] != SCHEMA:
        raise SkillStackError(
            f"{path} has schema {fields['schema_version']!r}, this version reads {SCHEMA}"
        )
    return fields


def read_manifest(folder: Path) -> dict:
    """A saved stack's stack.json, checked."""
    path = folder / "stack.json"
    manifest = _read_json(path, ("schema_version", "backbone", "frames"))
    for entry in manifest["frames"] if isinstance(manifest["frames"], list) else [None]:
        if not isinstance(entry, dict) or not {"name", "sha256"} <= entry.keys():
            raise SkillStackError(f"{path}: 'frames' is not a list of names and hashes")
        _checked_name(entry["name"])
    if not isinstance(manifest["backbone"], dict):
        raise SkillStackError(f"{path}: 'backbone' is not an object")
    _check_dropped(path, manifest)
    return manifest


def _check_dropped(path: Path, manifest: dict) -> None:
    dropped, kept = manifest.get("dropped", {}), {e["name"] for e in manifest["frames"]}
    if not isinstance(dropped, dict) or not isinstance(manifest.get("decisions", []), list):
        raise SkillStackError(f"{path}: 'dropped' and 'decisions' are not an object and a list")
    for name in dropped:
        seen, answering = set(), name
        while answering in dropped and answering not in seen:
            seen.add(answering)
            entry = dropped[answering]
            if not isinstance(entry, dict) or not {"to", "parent"} <= entry.keys():
                raise SkillStackError(f"{path}: dropped {answering!r} has no 'to' or 'parent'")
            answering = entry["to"]
        if answering not in kept or name in kept:
            raise SkillStackError(f"{path}: no frame answers for the dropped {name!r}")
        seen, parent = set(), name
        while parent in dropped and parent not in seen:
            seen.add(parent)
            parent = dropped[parent]["parent"]
        if parent in seen:
            raise SkillStackError(f"{path}: the parents of the dropped {name!r} go in a circle")


_FRAME_KEYS = tuple(f.name for f in dataclasses.fields(Frame))[:11]  # what frame.json carries


def _facts(frame: Frame) -> dict:
    """What frame.json says of a frame beside the hashes, in JSON's own types."""
    keys = [*_FRAME_KEYS, *(key for key in ("storage", "prompt") if getattr(frame, key))]
    facts = {key: getattr(frame, key) for key in keys}
    facts = {key: dict(v) if isinstance(v, Mapping) else v for key, v in facts.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in facts.items()}


def read_frame(folder: Path) -> Frame:
    """One frame's folder; the weights are read when they are used."""
    _checked_name(folder.name)
    if folder.is_symlink() or not folder.is_dir():
        raise SkillStackError(f"{folder} is missing or not a plain folder")
    path = folder / "frame.json"
    fields = _read_json(path, ("schema_version", *_FRAME_KEYS, "sha256"))
    if fields["name"] != folder.name:
        raise SkillStackError(f"{path} is frame {fields['name']!r}, not {folder.name!r}")
    for key in ("metrics", "training", "data", "versions", "sha256"):
        if not isinstance(fields[key], dict):
            raise SkillStackError(f"{path}: {key!r} is not an object")
    for key in ("lora_r", "lora_alpha", "max_length"):
        if type(fields["training"].get(key)) is not int:
            raise SkillStackError(f"{path}: training has no integer {key!r}")
    storage = fields.get("storage", {})
    _check_storage(path, storage)
    prompt = fields.get("prompt")
    if prompt is not None and (not isinstance(prompt, str) or prompt.count("{text}") != 1):
        raise SkillStackError(f"{path}: 'prompt' has no place for a text")
    needed = HEAD if "format" in storage or storage.get("shares") else ADAPTER
    if needed not in fields["sha256"]:
        raise SkillStackError(f"{path}: sha256 does not list {needed}")
    return Frame(
        name=fields["name"],
        task=fields["task"],
        label_names=tuple(fields["label_names"]),
        parent=fields["parent"],
        metrics=MappingProxyType(fields["metrics"]),
        training=MappingProxyType(fields["training"]),
        data=MappingProxyType(fields["data"]),
        losses=tuple(fields["losses"]),
        seconds=fields["seconds"],
        versions=MappingProxyType(fields["versions"]),
        prefix=fields["prefix"],
        storage=MappingProxyType(storage),
        prompt=prompt,
        sha256=MappingProxyType(fields["sha256"]),
        folder=folder,
    )


def _verify_files(frame: Frame) -> None:
    for name, expected in frame.sha256.items():
        if Path(name).name != name:
            raise SkillStackError(f"{frame.folder / 'frame.json'} lists a file outside: {name!r}")
        path = frame.folder / name
        if path.is_symlink() or file_sha256(path) != expected:
            raise SkillStackError(f"{path} was changed or cut off (SHA-256 differs)")


def _check_storage(path: Path, storage) -> None:
    if not isinstance(storage, dict):
        raise SkillStackError(f"{path}: 'storage' is not an object")
    if not storage:
        return
    for key in ("lora_r", "lora_alpha"):
        if type(storage.get(key)) is not int:
            raise SkillStackError(f"{path}: storage has no integer {key!r}")
    if storage.get("format", "int8") not in ("int8", "basis"):
        raise SkillStackError(f"{path}: unknown storage format {storage['format']!r}")
    if storage.get("shares") is not None:
        _checked_name(storage["shares"])


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise SkillStackError(f"{path} is missing") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise SkillStackError(f"{path} is not readable safetensors: {error}") from None


def _read_weights(frame: Frame) -> Weights:
    storage, plain = frame.storage, "format" not in frame.storage
    file = ADAPTER if plain else PACKED
    tensors, path = {}, frame.folder / HEAD
    if storage.get("shares"):
        tensors = _load_tensors(frame.folder.parent / storage["shares"] / file)
        tensors.pop(_SCORE, None)  # the head of the frame that is read from
    if file in frame.sha256:
        path = frame.folder / file
        tensors |= _load_tensors(path)
    if _SCORE in tensors:
        head = {"weight": tensors.pop(_SCORE)}
    elif frame.prompt is not None:
        head = {}
    else:
        path = frame.folder / HEAD
        head = _load_tensors(path)
    shape = head["weight"].shape if "weight" in head else None
    fits = shape is not None and len(shape) == 2 and shape[0] == len(frame.label_names)
    if not fits and frame.prompt is None:
        raise SkillStackError(
            f"{path}: the head does not have {len(frame.label_names)} classes: {shape}"
        )
    if not plain:
        try:
            tensors = unpack(tensors, storage["format"])
        except (KeyError, RuntimeError) as error:
            raise SkillStackError(f"{frame.folder / file}: not a packed adapter: {error}") from None
    lora = {name.replace(frame.prefix, _BARE, 1): tensor for name, tensor in tensors.items()}
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
