"""`SkillStack`: a chain of immutable LoRA frames over one frozen backbone.

One adapter is trained through the stream. After each task its weights, the task's head and what
was measured are frozen as a `Frame` that points to its parent. The last frame is also the latest
sequential adapter, which forgets; an earlier frame, picked again, cannot.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import certificates, sharing, training
from .backbones import Backbone
from .config import TrainingConfig, checked_config
from .conformal import threshold
from .ensemble import Mixture
from .errors import (
    SkillStackError,
    checked_asked,
    checked_has,
    checked_names,
    checked_numbers,
    checked_path,
    checked_router,
    checked_share,
    checked_texts,
    did_you_mean,
    shown,
)
from .files import (
    NO_SEAL,
    OBJECT,
    SHA256,
    TEXT,
    check_fields,
    digest,
    explain,
    list_of,
    locked,
    or_none,
    sealed,
    sweep,
    versions,
    write_atomic,
)
from .frames import (
    LAYER,
    NAME,
    NAMED,
    SCHEMA,
    Frame,
    ListedFrame,
    Weights,
    check_frame_name,
    in_memory,
    read_frame,
    read_schema,
    weights_digest,
    write_frame,
)
from .heads import Evaluation, LinearHead, PromptHead, finite
from .progress import progress
from .tasks import TaskData, checked_data
from .training import recipe, seeded

PRECISION = ("dtype", "quantization")  # of a backbone's identity
PACKED_BYTES = 256 << 20  # of adapters that are kept ready to answer
AT_A_TIME = 1024  # texts that are routed and answered together
LATEST = "(latest)"  # the frame that was learned last; no frame can be called so
_MORE = {"first_adapted_layer": LAYER, "dropped": OBJECT, "decisions": list_of(OBJECT)}
_DECISION = {"kind": TEXT, "frames": list_of(TEXT), "by": or_none(TEXT), "replaced": OBJECT}


class Prediction(NamedTuple):
    """Answers to n texts, in input order."""

    labels: np.ndarray  # label ids, int64 (n,)
    probabilities: np.ndarray  # softmax, float32 (n, most classes of the frames asked); 0 beyond
    label_names: np.ndarray  # str (n,)


class SkillStack:
    """Frames in the order they were learned, over one backbone.

    >>> from skillstack_helpers import SkillStack, TrainingConfig, load_backbone, load_task
    >>> stack = SkillStack(load_backbone("minilm", device="cpu"))
    >>> data = load_task("bbc", n_train=2, n_router=5, n_eval=2, seed=0, source="embedded")
    >>> frame = stack.grow(data, TrainingConfig(epochs=1, max_length=32))
    >>> stack.predict(["The bank raised its rates."], frame="bbc").probabilities.shape
    (1, 5)
    """

    def __init__(self, backbone: Backbone):
        checked_has(backbone, "backbone must be a Backbone (of load_backbone)", "attach", "embed")
        self.backbone = backbone
        self.frames: list[Frame] = []
        # Frames that were left out and which one answers for each: name -> {"to", "parent", ...},
        # and what was decided on which evidence; both written by compression.py.
        self.dropped: dict[str, dict] = {}
        self.decisions: list[dict] = []
        self._places: dict[str, int] = {}  # of the frames, as far as known, see `_find`
        # Of the saved stack, where the backbone has another: {"dtype", "quantization"}.
        self._precision: dict[str, str | None] = {}
        self._packed: OrderedDict[tuple[Frame, int], Tensor] = OrderedDict()
        # What stack.json said when it was last read or written here: folder -> names, decisions.
        self._seen: dict[Path, tuple[tuple[str, ...], str]] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __contains__(self, name: str) -> bool:
        if not isinstance(name, str):
            return False
        return self._find(follow(self.dropped, name, "to")) is not None

    def __getitem__(self, name: str) -> Frame:
        """The frame of that name, or the one that answers for it if it was dropped."""
        if not isinstance(name, str):
            raise SkillStackError(f"frame names must be strings, got {shown(name)}")
        if frame := self._find(follow(self.dropped, name, "to")):
            return frame
        if self.dropped.get(name, {}).get("removed"):
            raise SkillStackError(f"frame {name!r} was removed")
        names = [frame.name for frame in self.frames] + list(self.dropped)
        raise SkillStackError(f"unknown frame {name!r}{did_you_mean(str(name), names)}")

    def _find(self, name: str | None) -> Frame | None:
        """The frame of that name; `frames` is a plain list, so a place is looked up and checked."""
        place = self._places.get(name)
        if place is None or [f.name for f in self.frames[place : place + 1]] != [name]:
            self._places = {frame.name: i for i, frame in enumerate(self.frames)}
            place = self._places.get(name)
        return None if place is None else self.frames[place]

    def free_name(self, name: str) -> str:
        """The first of name-2, name-3, ... that no frame bears or bore."""
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        return next(n for n in numbered if n not in self and n not in self.dropped)

    def copy(self, frames: Sequence[Frame] | None = None) -> SkillStack:
        """A stack of its own on the same backbone and frames (or `frames`), which never change."""
        new = SkillStack(self.backbone)
        new.frames = list(self.frames if frames is None else frames)
        new.dropped, new.decisions = copy.deepcopy((self.dropped, self.decisions))
        new._precision, new._seen = self._precision, dict(self._seen)
        return new

    def __deepcopy__(self, memo) -> SkillStack:
        return self.copy()

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
        config: TrainingConfig,
        prompt: str | None = None,
        *,
        parent: str | None = LATEST,
        name: str | None = None,
        targets: np.ndarray | None = None,
    ) -> Frame:
        """Train on a task, freeze, append.

        The adapter starts from where the `parent` ended: the latest frame, or the one of that name
        (`parents.best_parent`); None: from a new adapter. Its head is new; with a `prompt`
        (`heads.instruction`) there is no head, and the frame learns to write the label word. The
        frame is evaluated on the task's own evaluation rows and, if it has a head, calibrated on
        the routing rows, before it is frozen.

        name: of the frame, default the task's. Under another one a task can be learned again.
        targets: probabilities (training rows, classes) to learn in place of the rows' labels, such
        as those of a `Mixture` (distillation, Hinton et al. 2015).
        """
        checked_data(data, "train", "eval")
        if len(data.router):
            checked_data(data, "router")
        checked_config(config)
        labels = data.task.label_names
        if len(np.unique(data.labels("train"))) < 2:
            one = labels[int(data.labels("train")[0])]
            raise SkillStackError(f"{data.name}: all training rows have the label {one!r}")
        if targets is not None:
            checked_numbers(targets, "targets")
            targets = np.asarray(targets, dtype=np.float32)
            shape = (len(data.train), len(labels))
            sums = targets.shape == shape and np.allclose(targets.sum(1), 1, atol=1e-3)
            if not sums or (targets < 0).any():
                raise SkillStackError(
                    f"targets must be {shape}, rows summing to 1, got {targets.shape}"
                )
        name = check_frame_name(data.name if name is None else name)
        if name in self:
            raise SkillStackError(f"frame {name!r} is already in the stack")
        backbone, start_from = self.backbone, self._parent(parent)
        if prompt is not None:
            head = PromptHead(backbone, labels, prompt)
        first = backbone.layer_number(config.first_adapted_layer)
        self._use_slot(start_from, config.lora_r, config.lora_alpha, first)
        with seeded(config.seed, len(self.frames)) as rng:
            if start_from is None:
                backbone.reset_lora()
            else:
                backbone.write_lora(start_from.weights().lora, start_from.name)
            if prompt is None:
                head = LinearHead(backbone, labels)
            start = time.perf_counter()
            losses = head.train(data, config, rng, targets)
            seconds = time.perf_counter() - start
        evaluated = head.evaluate(data, config.max_length)
        calibration = head.calibration(data, config.max_length) if prompt is None else ()
        rows = {"source": data.source, "fingerprint": data.fingerprint}
        rows |= {"train_fingerprint": data.train_fingerprint} | dict(data.budget)
        rows["template"] = data.task.template
        trained = recipe(config, backbone)
        if self._precision:
            trained |= {"dtype": backbone.dtype, "quantization": backbone.quantize}
        measured = {"accuracy": evaluated.accuracy, "n": len(evaluated.labels)}
        measured |= {"logits_sha256": digest(evaluated.logits)}
        frozen = (MappingProxyType(backbone.read_lora()), MappingProxyType(head.tensors()))
        frame = Frame(
            name=name,
            task=data.name,
            label_names=tuple(labels),
            parent=start_from.name if start_from else None,
            metrics=MappingProxyType(measured),
            training=MappingProxyType(trained),
            data=MappingProxyType(rows),
            losses=tuple(losses),
            seconds=seconds,
            versions=MappingProxyType(versions()),
            prefix=backbone.saved_prefix(prompt),
            prompt=prompt,
            calibration=calibration,
            _weights=Weights(*frozen),
        )
        self.frames.append(frame)
        return frame

    def _parent(self, name: str | None) -> Frame | None:
        """The frame that a new one starts from, as `grow` is told."""
        if name == LATEST:
            return self.frames[-1] if self.frames else None
        return None if name is None else self[name]

    def _use_slot(self, parent: Frame | None, *shape: int | None) -> None:
        """Give the backbone the slot of that shape: (r, alpha, first adapted layer)."""
        like = parent or self._parent(LATEST)
        ours = like.slot if like else shape
        if ours != shape:
            raise SkillStackError(
                "a chain keeps one LoRA shape: this stack has (r, alpha, first adapted layer) "
                f"{ours}, the config asks for {shape}"
            )
        self.backbone.attach(*shape)

    @property
    def first_adapted_layer(self) -> int | None:
        """The layer from which on the frames differ; what lies below is the same for all, and runs
        once per text. None: they differ in all layers."""
        return self.frames[-1].slot[2] if self.frames else None

    # ------------------------------------------------------------------ answering

    def activate(self, frame: str, head: str | None = None) -> LinearHead | PromptHead:
        """Copy a frame's adapter into the backbone's slot; returns its head, or that of `head`."""
        adapter, holder = self[frame], self[head or frame]
        lora = adapter.weights().lora  # read, and so of that rank, before there is a slot
        self.backbone.attach(*adapter.slot)
        self.backbone.write_lora(lora, str(adapter.folder or adapter.name))
        if holder.prompt is not None:
            return PromptHead(self.backbone, holder.label_names, holder.prompt)
        return self._head(holder)

    def _head(self, holder: Frame) -> LinearHead:
        tensors = holder.weights().head
        if tensors["weight"].shape[1] != self.backbone.hidden_size:
            raise SkillStackError(
                f"{holder.folder or holder.name}: the head reads {tensors['weight'].shape[1]} "
                f"features, the backbone gives {self.backbone.hidden_size}"
            )
        return LinearHead(self.backbone, holder.label_names, tensors)

    def _packed_adapter(self, frame: Frame, rank: int) -> Tensor:
        """A frame's adapter as `Backbone.adapters` takes it; those asked last are kept."""
        kept = self._packed
        if (frame, rank) not in kept:
            where = str(frame.folder or frame.name)
            adapter = self.backbone.pack(frame.weights().lora, frame.slot, rank, where)
            while kept and sum(a.nbytes for a in kept.values()) + adapter.nbytes > PACKED_BYTES:
                kept.popitem(last=False)
            kept[frame, rank] = adapter
        kept.move_to_end((frame, rank))
        return kept[frame, rank]

    def predict(
        self,
        texts: Sequence[str],
        frame: str | Sequence[str],
        head: str | Sequence[str] | None = None,
    ) -> Prediction:
        """Answer texts with one frame, or each with its own (`frame` a sequence of names).

        head: whose head, also one or one per text (default: the frame's).
        """
        texts = checked_texts(texts)
        frames = self._answering(frame, texts)
        heads = frames if head is None else self._answering(head, texts)
        scores = self._scores(texts, frames, heads)
        labels = scores.argmax(1) if scores.shape[1] else np.zeros(len(texts), dtype=np.int64)
        probabilities = np.exp(scores - scores.max(1, keepdims=True, initial=-np.inf))
        probabilities /= probabilities.sum(1, keepdims=True)
        names = [self[name].label_names[k] for name, k in zip(heads, labels, strict=True)]
        return Prediction(labels, probabilities, np.array(names, dtype=object))

    def logits(
        self, texts: Sequence[str], frames: Sequence[str], asked: np.ndarray | None = None
    ) -> np.ndarray:
        """What each of those frames says of each text, float32 (n, frames, most classes).

        -inf beyond a frame's classes. asked: which frame about which text, bool (n, frames), None:
        all; NaN where it is not. All are asked in one pass, a text's lower layers run once, and a
        frame that answers for several names is asked once.
        """
        texts, frames = checked_texts(texts), checked_names(frames, "frames")
        answering, shape = [self[name] for name in frames], (len(texts), len(frames))
        asked = checked_asked(asked, shape)
        width = max((len(frame.label_names) for frame in answering), default=0)
        out = np.full((*shape, width), np.nan, dtype=np.float32)
        columns = {frame.name: [] for frame in answering}
        for k, frame in enumerate(answering):
            columns[frame.name].append(k)
        pairs = [
            (row, name)
            for name, its in columns.items()
            for row in np.flatnonzero(asked[:, its].any(1))
        ]
        names = np.array([name for _, name in pairs], dtype=object)
        scores = self._scores([texts[row] for row, _ in pairs], names, names)
        for (row, name), own in zip(pairs, scores, strict=True):
            for k in columns[name]:
                if asked[row, k]:
                    out[row, k] = -np.inf
                    out[row, k, : scores.shape[1]] = own
        return out

    def _scores(self, texts: list[str], frames: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Logits of each text under its frame and head, float32 (n, most classes), -inf beyond."""
        asked = {name: self[name] for name in dict.fromkeys([*frames, *heads])}
        width = max((len(asked[name].label_names) for name in heads), default=0)
        scores = np.full((len(texts), width), -np.inf, dtype=np.float32)
        writes = np.array([asked[name].prompt is not None for name in heads], dtype=bool)
        if (~writes).any():
            self._classify(texts, frames, heads, np.flatnonzero(~writes), asked, scores)
        for pair in dict.fromkeys(zip(frames[writes], heads[writes], strict=True)):
            rows = np.flatnonzero((frames == pair[0]) & (heads == pair[1]))
            under, length = self.activate(*pair), asked[pair[0]].training["max_length"]
            own = under.scores([texts[i] for i in rows], length, f"ask {pair[0]}")
            scores[rows, : own.shape[1]] = own
        return scores

    @torch.inference_mode()
    def _classify(self, texts, frames, heads, rows, asked, scores) -> None:
        """Fill in the logits, (n, classes), of these rows: batches of similar length, whatever
        frames their rows ask."""
        backbone, first = self.backbone, asked[frames[rows[0]]].slot[2]
        lengths = np.array([asked[name].training["max_length"] for name in frames])
        inputs = [None] * len(texts)
        for length in np.unique(lengths[rows]):
            here = rows[lengths[rows] == length]
            encoded = backbone.encode([texts[i] for i in here], int(length))
            for i, one in zip(here, backbone.states(encoded, first), strict=True):
                inputs[i] = one
        rank = max(asked[name].slot[0] for name in frames[rows])
        groups = [rows]
        if not backbone.mixes:
            groups = [rows[frames[rows] == name] for name in dict.fromkeys(frames[rows])]
        size, batches = training.pass_size(backbone.device), []
        for group in groups:
            parts = training.eval_batches([len(inputs[i]) for i in group], size)
            batches += [group[part] for part in parts]
        under = {name: self._head(asked[name]) for name in dict.fromkeys(heads[rows])}
        with backbone.without_adapter():
            for batch in progress(batches, "ask", "batch"):
                names = list(dict.fromkeys(frames[batch]))
                packed = [self._packed_adapter(asked[name], rank) for name in names]
                owners = torch.tensor([names.index(name) for name in frames[batch]])
                lora = backbone.adapters(packed, owners, rank)
                padded = training.pad([inputs[i] for i in batch], backbone.pad_id, backbone.device)
                features = backbone.features(*padded, lora)
                for name in dict.fromkeys(heads[batch]):
                    mine = np.flatnonzero(heads[batch] == name)
                    logits = under[name].layer(features[torch.from_numpy(mine)]).cpu().numpy()
                    scores[batch[mine], : logits.shape[1]] = finite(logits, backbone)

    def answer(
        self,
        texts: Sequence[str],
        router,
        mix: Mixture | str | None = None,
        labels: Sequence[str] | None = None,
        coverage: float | None = None,
    ) -> pd.DataFrame:
        """Route each text to a frame and let it, or the one that substitutes for it, answer.

        mix: None, and the frame that the router picks answers alone; or a `Mixture` of the router's
        frames (its `shares` as a string for an unfitted one), and all frames with a share in the
        answer are asked, in one pass. How often that is, is in the column `asked`; `frame` is the
        one that says most for the answer, `probability` the mixture's.

        labels: names of the labels in question, where they are known: frames that have none of them
        are not asked, which helps with texts of a task that has no frame.

        coverage: a probability, 0.9 say; each answer then comes with a `label_set`, the names of
        all labels that the frame does not rule out, and `abstains` where that is not one alone. Of
        texts that are exchangeable with the frame's routing rows the set holds the right label at
        least that often (split conformal prediction), now and whatever is learned later, since
        threshold and frame are frozen. Of texts that the router sends to a wrong frame nothing is
        promised. Not together with mix.

        Columns: frame, label, label_name, probability, router_score, depth, fallback, asked; with
        coverage also label_set (tuple) and abstains.
        """
        texts = checked_texts(texts)
        labels = None if labels is None else checked_names(labels, "labels")
        if coverage is not None:
            checked_share(coverage, "coverage")
        checked_router(router, "classes_", "route_scores")
        if mix is not None:
            mix = self._mixture(mix, router)
        limits = None if coverage is None else self._limits(coverage, mix, router)
        known = [self[name].label_names for name in router.classes_]
        able = np.array([labels is None or not {*labels}.isdisjoint(own) for own in known])
        if not able.any():
            raise SkillStackError(f"no frame has any of the labels {', '.join(map(str, labels))}")
        # In parts whose states are surely still there when the frames are asked, if the router has
        # run the trunk.
        starts = progress(range(0, max(len(texts), 1), AT_A_TIME), "answer", "part")
        parts = [
            self._answer(texts[start : start + AT_A_TIME], router, mix, able, limits)
            for start in starts
        ]
        return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]

    def _mixture(self, mix: Mixture | str, router) -> Mixture:
        """The mixture of that name, or the given one, if it is of the router's frames."""
        labels = {name: self[name].label_names for name in router.classes_}
        mix = Mixture(labels, mix) if isinstance(mix, str) else mix
        if not isinstance(mix, Mixture):
            raise SkillStackError(f"mix must be a Mixture or its shares, got {shown(mix)}")
        if mix.label_names != labels:
            raise SkillStackError("the mixture was made for other frames than the router's")
        return mix

    def _limits(self, coverage: float, mix: Mixture | None, router) -> dict[str, float]:
        """The threshold of every frame that may answer, see `conformal.threshold`."""
        if mix is not None:
            raise SkillStackError("coverage is a frame's own: it goes without mix")
        frames = {self[name].name: self[name] for name in router.classes_}
        for frame in frames.values():
            if not frame.calibration:
                raise SkillStackError(
                    f"frame {frame.name!r} was not calibrated: it was learned by an earlier "
                    "version or without routing rows, writes its answers, or was compressed"
                )
        return {name: threshold(frame.calibration, coverage) for name, frame in frames.items()}

    def _answer(
        self,
        texts: list[str],
        router,
        mix: Mixture | None,
        able: np.ndarray,
        limits: Mapping[str, float] | None,
    ) -> pd.DataFrame:
        scores = np.where(able, router.decision_function(texts), -np.inf)
        routes = router.route_scores(scores)
        picked = list(routes["frame"])
        if mix is None:
            prediction = self.predict(texts, picked)
            said = {
                "frame": self._answering(picked, texts),
                "label": prediction.labels,
                "label_name": prediction.label_names,
                "probability": prediction.probabilities.max(1, initial=0.0),
            }
            asked = np.ones(len(texts), dtype=np.int64)
            if limits is not None:
                said |= self._sets(said["frame"], prediction.probabilities, limits)
        else:
            routed = router.probabilities(scores)
            shared = mix.asked(routed)
            logits = self.logits(texts, list(mix.label_names), shared)
            said, asked = self._mixed(mix, logits, routed), shared.sum(1)
        more = {"router_score": routes["score"].to_numpy(), "depth": routes["depth"].to_numpy()}
        more |= {"fallback": routes["fallback"].to_numpy(), "asked": asked}
        sets = {key: said.pop(key) for key in ("label_set", "abstains") if key in said}
        return pd.DataFrame(said | more | sets)

    def _sets(self, frames: np.ndarray, chances: np.ndarray, limits: Mapping) -> dict:
        """What each text's frame does not rule out, as columns; chances: (n, most classes)."""
        sets = np.empty(len(frames), dtype=object)
        for i, (name, row) in enumerate(zip(frames, chances, strict=True)):
            labels = self[name].label_names
            within = 1 - row[: len(labels)] <= limits[name] + 1e-6  # calibrated to six digits
            sets[i] = tuple(label for label, there in zip(labels, within, strict=True) if there)
        return {"label_set": sets, "abstains": np.array([len(one) != 1 for one in sets], bool)}

    def _mixed(self, mix: Mixture, logits: np.ndarray, routed: np.ndarray) -> dict:
        """The mixture's answers, as columns."""
        parts = mix.parts(logits, routed)  # (n, frames, names)
        whole = parts.sum(1)
        best = whole.argmax(1)
        said_most = parts[np.arange(len(best)), :, best].argmax(1)
        frames = np.array([self[name].name for name in mix.label_names], dtype=object)[said_most]
        names = np.array(mix.names, dtype=object)[best]
        ids = [self[f].label_names.index(name) for f, name in zip(frames, names, strict=True)]
        chances = whole[np.arange(len(best)), best]
        return {"frame": frames, "label": ids, "label_name": names, "probability": chances}

    def evaluate(
        self,
        data: TaskData,
        frame: str | None = None,
        head: str | None = None,
    ) -> Evaluation:
        """Accuracy and predictions on a task's evaluation rows.

        frame: whose adapter (default: the task's own). head: whose head (default: the frame's);
        the latest adapter on an old task is ``evaluate(old, frame=latest, head=old.name)``.
        """
        checked_data(data, "eval")
        adapter = self[frame or data.name]
        holder = self[head] if head else adapter
        if len(holder.label_names) != len(data.task.label_names):
            raise SkillStackError(
                f"the head of frame {holder.name!r} has {len(holder.label_names)} classes, "
                f"task {data.name!r} has {len(data.task.label_names)}: pass head={data.name!r}"
            )
        under = self.activate(adapter.name, holder.name)
        return under.evaluate(data, adapter.training["max_length"])

    def certify(
        self, texts: Sequence[str], router, since: Mapping | str | Path | None = None
    ) -> dict:
        """Who answers which text, as JSON types: hashes of the backbone, of every frame and of what
        the router learned, each frame's logits (their digest, on the texts that it answers), and
        every answer.

        since: an earlier certificate about the same texts, or its file. ``since`` then says how
        many answers changed, router included, with their share and its exact 95 % interval
        (Clopper and Pearson 1934); which frames are gone or other ones; and whose logits, on the
        texts that each answered then, are not the same to the last bit. Bits can be compared on the
        same versions, device and number of threads.
        """
        return certificates.certify(self, texts, router, since)

    def remove(self, name: str, retrain: Mapping[str, TaskData] | None = None) -> dict:
        """Forget a task on request: its frame goes from memory and, if the stack was saved, from
        the disk, with every decision about it, all cached tokens, states and embeddings, and saved
        routers that know it. Returns a certificate, JSON types; `certificates.left_of` looks for
        what should not be there, in any process.

        Frames that were trained from it inherit its weights: they are listed as ``descendants``,
        and stay unless `retrain` has the rows of each of their tasks (task -> `TaskData`). Then
        each is learned anew, from its parent's new version and the removed one's children from its
        parent, as ``yelp-2``, which answers for ``yelp``, and the old ones go too. A router is not
        part of a stack: `Router.remove`, or fit it anew without the task's texts. There is no
        `undo`. Raises `SkillStackError` before anything is touched.
        """
        return certificates.remove(self, name, retrain)

    def _answering(self, names: str | Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """The name of the frame that answers each text, object (n,)."""
        if isinstance(names, str):
            names = [names] * len(texts)
        names = checked_names(names, "frame names")
        if len(names) != len(texts):
            raise SkillStackError(f"{len(texts)} texts but {len(names)} frame names")
        answering = {name: self[name].name for name in dict.fromkeys(names)}
        return np.array([answering[name] for name in names], dtype=object)

    # ------------------------------------------------------------------ disk

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the stack; frames that are already there are left alone.

        A frame's folder appears whole or not at all. One process writes at a time; frames that
        another one has added since this stack was opened from the folder, or saved in it, are kept,
        and stand in `frames` before those that are new here. Raises `SkillStackError` when the
        folder holds another stack, or when the disk refuses; what was saved before stays valid.
        """
        folder = checked_path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                self._save(folder)
        except OSError as error:
            raise SkillStackError(f"cannot save the stack in {folder}: {explain(error)}") from None
        return folder

    def _save(self, folder: Path) -> None:
        """`save_pretrained`, behind the folder's lock."""
        path = folder / "frames"
        here = [f for f in self.frames if os.path.dirname(f.folder or "") == str(path)]
        mine = {frame.name: frame.listed for frame in here}  # on disk already, and not read again
        if (folder / "stack.json").exists():
            self._take_in(folder, mine)
        path.mkdir(exist_ok=True)
        sweep(folder, locked=True)
        sweep(path, locked=True)
        if not (folder / "stack.json").exists():
            self._write_manifest(folder, [])  # so that a first frame can be found and adopted
        whole = set(os.listdir(path))
        for i, frame in enumerate(self.frames):
            if frame.name not in mine or frame.name not in whole:
                self.frames[i] = write_frame(frame, path / frame.name, self.backbone)
        self._write_manifest(folder, self.frames)

    def _take_in(self, folder: Path, mine: Mapping[str, str]) -> None:
        """Take in what other processes have added to a folder; raises if it is another stack's.
        mine: frames that are known to lie there, name -> SHA-256."""
        manifest = read_manifest(folder)
        names, decided = self._seen.get(folder.resolve(), (None, None))
        there, ours = manifest["frames"], [frame.name for frame in self.frames]
        if names is not None and decided != _decided(manifest):
            raise SkillStackError(
                f"{folder}: another process has dropped or removed frames: open the stack again"
            )
        foreign = [] if names is None else [e for e in there if e["name"] not in names]
        new = {*ours} - mine.keys()
        if taken := [entry["name"] for entry in foreign if entry["name"] in new]:
            raise SkillStackError(
                f"{folder}: another process has saved a frame {taken[0]!r}: grow it with name="
            )
        foreign = [entry for entry in foreign if entry["name"] not in ours]
        known = there[: len(there) - len(foreign)]
        if [entry["name"] for entry in known] != ours[: len(known)] or any(
            mine.get(entry["name"], entry["sha256"]) != entry["sha256"] for entry in known
        ):
            raise SkillStackError(f"{folder} holds another stack; choose an empty folder")
        if foreign:
            listed = {frame.name: frame for frame in self.frames[: len(known)]}
            first = manifest.get("first_adapted_layer")
            _list(folder, foreign, listed, self.dropped, first)
            self.frames[: len(known)] = listed.values()

    def _write_manifest(self, folder: Path, frames: Sequence[Frame]) -> None:
        listed = [{"name": frame.name, "sha256": frame.listed} for frame in frames]
        backbone = self.backbone.identity() | self._precision
        manifest = {"seal": NO_SEAL, "schema_version": SCHEMA, "backbone": backbone, "frames": []}
        if frames and (first := self.first_adapted_layer) is not None:
            manifest["first_adapted_layer"] = first
        # Decisions speak of frames that are listed, what was removed of those that must not be.
        removed = any(entry.get("removed") for entry in self.dropped.values())
        if removed or (frames and (self.dropped or self.decisions)):
            manifest |= {"dropped": self.dropped, "decisions": self.decisions}
        text = json.dumps(manifest, indent=1) + "\n"
        if listed:  # a line each: json indents slowly, and there may be a thousand
            lines = ",\n  ".join(map(json.dumps, listed))
            text = text.replace('"frames": []', f'"frames": [\n  {lines}\n ]', 1)
        write_atomic(folder / "stack.json", sealed(text))
        self._seen[folder.resolve()] = tuple(e["name"] for e in listed), _decided(manifest)

    @classmethod
    def open(
        cls, folder: str | Path, backbone: Backbone, *, any_precision: bool = False
    ) -> SkillStack:
        """The stack saved in a folder (`from_pretrained`), or an empty one where there is none
        yet."""
        if not (checked_path(folder) / "stack.json").exists():
            return cls(backbone)
        return cls.from_pretrained(folder, backbone, any_precision=any_precision)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: Backbone,
        *,
        any_precision: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> SkillStack:
        """Open a saved stack. Checked at once are stack.json, the backbone, and that every frame's
        folder is there; a frame's frame.json (hash, parent, whose adapter it shares) when something
        of it is first asked for; adapter and head whenever they are read from disk. `verify` checks
        everything. Raises `SkillStackError` naming the file that is wrong.

        folder: a folder, or ``"user/name"`` of a stack on the Hugging Face hub where there is no
        such folder. any_precision: open it also on the same model in another dtype or quantization;
        the difference is printed, and noted in frames that are then added. revision (branch, tag or
        commit) and token are for the hub alone.

        Whole frames whose folders were written but not yet listed when their process died are kept.
        """
        stack = cls(backbone)
        checked_path(folder)
        if sharing.is_hub_id(folder):
            folder = sharing.snapshot(folder, revision, token)
        folder = checked_path(folder)
        manifest = read_manifest(folder)
        made_with = manifest["backbone"]
        if key := backbone.differs_from(made_with):
            line = f"the stack was made with backbone {key} {made_with.get(key)!r}, "
            line += f"this one has {backbone.identity()[key]!r}"
            if key not in PRECISION:
                raise SkillStackError(f"{folder / 'stack.json'}: {line}")
            if not any_precision:
                how = "load the backbone like that, or open the stack with any_precision=True"
                raise SkillStackError(f"{folder / 'stack.json'}: {line}: {how}")
            stack._precision = {key: made_with.get(key) for key in PRECISION}
            now = _named(backbone.identity())
            print(f"{folder}: trained in {_named(made_with)}, used in {now}")
        stack.dropped, stack.decisions = manifest.get("dropped", {}), manifest.get("decisions", [])
        names = tuple(entry["name"] for entry in manifest["frames"])
        stack._seen[folder.resolve()] = names, _decided(manifest)
        frames, listed = folder / "frames", {}
        first = manifest.get("first_adapted_layer")
        there = _list(folder, manifest["frames"], listed, stack.dropped, first)
        stack.frames = list(listed.values())
        more = sorted(name for name in there.keys() - listed.keys() if NAME.fullmatch(name))
        removed = {name for name, entry in stack.dropped.items() if entry.get("removed")}
        for name in removed.intersection(more):  # killed before its folder was gone
            more.remove(name)
            shutil.rmtree(frames / name, ignore_errors=True)
        unlisted = [read_frame(frames / name) for name in more if there[name].is_dir()]
        # Parents before children, siblings as they were written.
        unlisted.sort(key=lambda frame: there[frame.name].stat().st_mtime_ns)
        while frame := next((f for f in unlisted if f.parent is None or f.parent in stack), None):
            unlisted.remove(frame)
            if frame.name in stack:
                raise SkillStackError(f"{frame.folder}: name {frame.name!r} is taken")
            _check_place(frame, [f.name for f in stack.frames], stack.dropped)
            frame.verify()
            stack.frames.append(frame)
        for frame in unlisted:
            missing = f"its parent {frame.parent!r} is missing"
            print(f"{frame.folder} is a whole frame, but no part of the stack: {missing}")
        return stack

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None
    ) -> str:
        """Share the stack on the Hugging Face hub as one commit; returns the repository's address.

        Uploaded are the files that the stack lists, the routers saved beside them, and a model card
        made from the frames; nothing else that lies there. A README.md of your own on the hub is
        left alone. private: for a new repository (None: the hub's default). token: default that of
        ``huggingface_hub.login()`` or HF_TOKEN. Raises `SkillStackError` in one line, also where
        the repository holds another stack.
        """
        return sharing.upload(self, repo_id, private, token)

    def verify(self) -> None:
        """Raise `SkillStackError` unless every saved file and every frame in memory is intact."""
        for frame in self.frames:
            if frame.folder is None:
                continue
            frame.verify()
            saved = read_frame(frame.folder)
            if saved.listed != frame.listed or saved.facts() != frame.facts():
                raise SkillStackError(f"{frame.folder / 'frame.json'} was changed")
            if in_memory(frame) and weights_digest(saved) != weights_digest(frame):
                raise SkillStackError(f"frame {frame.name!r} was changed in memory")


def checked_stack(stack, what: str = "stack") -> SkillStack:
    """The stack, or an error for anything else."""
    if not isinstance(stack, SkillStack):
        raise SkillStackError(f"{what} must be a SkillStack, got {shown(stack)}")
    return stack


def _named(identity: Mapping) -> str:
    """A backbone's precision in words."""
    return " ".join(str(identity[key]) for key in reversed(PRECISION) if identity.get(key))


def _decided(manifest: Mapping) -> str:
    """What a stack.json says of dropped frames, to be compared."""
    said = manifest.get("dropped", {}), manifest.get("decisions", [])
    return json.dumps(said, sort_keys=True)


def _list(
    folder: Path,
    entries: Sequence[Mapping],
    listed: dict[str, Frame],
    dropped: Collection[str],
    first: int | None,
) -> dict[str, os.DirEntry]:
    """Add the frames of these entries of stack.json to those `listed`, unread; returns what lies
    in the folder ``frames``."""
    frames = folder / "frames"
    plain = frames.is_dir() and not frames.is_symlink()
    there = {entry.name: entry for entry in os.scandir(frames)} if plain else {}
    for entry in entries:
        name, sha256 = entry["name"], entry["sha256"]
        path = frames / name
        if name in listed:
            raise SkillStackError(f"{folder / 'stack.json'}: name {name!r} is taken")
        if name not in there or not there[name].is_dir(follow_symlinks=False):
            raise SkillStackError(f"{path} is missing or not a plain folder")
        read = partial(_read_listed, path, sha256, listed, dropped, first)
        listed[name] = ListedFrame(path, sha256, read)
    return there


def _read_listed(
    path: Path,
    sha256: str,
    listed: Mapping[str, Frame],
    dropped: Collection[str],
    first: int | None,
) -> Frame:
    """The frame in a folder, if it is the one that stack.json lists. listed: all of them, in
    order, by name; first: the layer from which on all of them adapt the model."""
    frame = read_frame(path, sha256)
    if frame.slot[2] != first:
        raise SkillStackError(
            f"{path / 'frame.json'}: first_adapted_layer is {frame.slot[2]}, stack.json has {first}"
        )
    names = list(listed)
    _check_place(frame, names[: names.index(path.name)], dropped)
    if shares := frame.storage.get("shares"):
        listed[shares].facts()  # which is read, and so checked, with it
    return frame


def _check_place(frame: Frame, before: Collection[str], dropped: Collection[str]) -> None:
    """Raise unless what a frame builds on comes before it."""
    path, shares = frame.folder / "frame.json", frame.storage.get("shares")
    if frame.parent is not None and frame.parent not in before and frame.parent not in dropped:
        raise SkillStackError(f"{path}: parent {frame.parent!r} does not come before it")
    if shares and shares not in before:
        raise SkillStackError(f"{path}: frame {shares!r}, whose adapter it reads, is missing")


def read_manifest(folder: Path) -> dict:
    """A saved stack's stack.json, checked."""
    path = folder / "stack.json"
    manifest = read_schema(path, {"backbone": OBJECT, "frames": list_of(OBJECT)})
    check_fields(str(path), manifest, _MORE, _MORE)
    for entry in manifest["frames"]:
        check_fields(f"{path}: frames", entry, {"name": NAMED, "sha256": SHA256})
    dropped, kept = manifest.get("dropped", {}), {e["name"] for e in manifest["frames"]}
    check_fields(f"{path}: dropped", dropped, dict.fromkeys(dropped, OBJECT))
    for name, entry in dropped.items():
        check_fields(f"{path}: dropped", {"name": name}, {"name": NAMED})
        rules = {"to": or_none(NAMED), "parent": or_none(NAMED)}
        check_fields(f"{path}: dropped {name!r}", entry, rules)
    for decision in manifest.get("decisions", []):
        check_fields(f"{path}: decisions", decision, _DECISION, ("by", "replaced"))
        replaced = decision.get("replaced", {})
        check_fields(f"{path}: decisions", replaced, dict.fromkeys(replaced, OBJECT))
        for old in replaced.values():
            rules = {"folder": or_none(TEXT), "weights_sha256": SHA256}
            check_fields(f"{path}: decisions: replaced", old, rules)
    for name in dropped:
        to = follow(dropped, name, "to")
        gone = to is None and dropped[name].get("removed")
        if name in kept or not (to in kept or gone):
            raise SkillStackError(f"{path}: no frame answers for the dropped {name!r}")
        if follow(dropped, name, "parent") in dropped:
            raise SkillStackError(f"{path}: the parents of the dropped {name!r} go in a circle")
    return manifest


def follow(dropped: Mapping, name: str | None, key: str) -> str | None:
    """Where a chain of dropped frames ends, along ``"to"`` or ``"parent"``; a dropped frame if it
    goes in a circle."""
    for _ in range(len(dropped)):
        if name not in dropped:
            break
        name = dropped[name][key]
    return name
