"""What can be shown to somebody else: who answered which text, how many answers changed, and that
a task is gone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from .config import TrainingConfig
from .errors import SkillStackError, checked_path, checked_router, checked_texts, shown
from .files import digest, file_sha256, locked, read_json
from .frames import weights_digest

SCHEMA = 1
_KEYS = ("schema_version", "texts", "frames", "answers")


def certify(stack, texts: Sequence[str], router, since: Mapping | str | Path | None = None) -> dict:
    """See `SkillStack.certify`."""
    texts = checked_texts(texts)
    if not texts:
        raise SkillStackError("texts: there are none to certify")
    checked_router(router, "classes_", "predict", "_state")
    before = None if since is None else _read(since, texts)
    names = np.array([stack[name].name for name in router.predict(texts)], dtype=object)
    said, frames = np.empty(len(texts), dtype=object), {}
    for frame in stack.frames:
        rows = np.flatnonzero(names == frame.name)
        facts = {"sha256": weights_digest(frame), "answered": len(rows)}
        if len(rows):
            logits = _logits(stack, frame.name, [texts[i] for i in rows])
            said[rows] = np.array(frame.label_names, dtype=object)[logits.argmax(1)]
            facts["logits_sha256"] = digest(logits)
        frames[frame.name] = facts
    certificate = {
        "schema_version": SCHEMA,
        "backbone": stack.backbone.identity(),
        "texts": {"n": len(texts), "sha256": _texts(texts)},
        "router": {"kind": type(router).__name__, "sha256": router_digest(router)},
        "frames": frames,
        "answers": {"frame": list(names), "label_name": list(said)},
    }
    if before is not None:
        certificate["since"] = _compared(stack, texts, certificate, before)
    return json.loads(json.dumps(certificate))  # plain types alone


def router_digest(router) -> str:
    """SHA-256 of all that a fitted router learned, and of its parameters."""
    total = hashlib.sha256()
    known = router._state() | {
        key: value for key, value in router.get_params().items() if not hasattr(value, "__dict__")
    }
    for key in sorted(known):
        value = known[key]
        content = digest(value) if isinstance(value, np.ndarray) else json.dumps(value)
        total.update(f"{key}={content};".encode())
    return total.hexdigest()


def _compared(stack, texts: list[str], now: Mapping, before: Mapping) -> dict:
    """What changed from one certificate to the next, and what provably did not."""
    frames, labels = (np.array(before["answers"][key], dtype=object)
                      for key in ("frame", "label_name"))  # fmt: skip
    moved = np.array(now["answers"]["frame"], dtype=object) != frames
    changed = np.array(now["answers"]["label_name"], dtype=object) != labels
    interval = binomtest(int(changed.sum()), len(texts)).proportion_ci(method="exact")
    there = {name: facts for name, facts in before["frames"].items() if name in now["frames"]}
    other = [n for n, facts in there.items() if facts["sha256"] != now["frames"][n]["sha256"]]
    asked = {n: [texts[i] for i in np.flatnonzero(frames == n)] for n in there}
    bits = [
        name
        for name in there
        if asked[name] and there[name]["logits_sha256"] != digest(_logits(stack, name, asked[name]))
    ]
    return {
        "answers_changed": int(changed.sum()),
        "changed_share": float(changed.mean()),
        "interval_95": [float(interval.low), float(interval.high)],
        "changed": np.flatnonzero(changed).tolist(),
        "other_frame": int(moved.sum()),
        "same_router": before["router"]["sha256"] == now["router"]["sha256"],
        "frames_gone": [name for name in before["frames"] if name not in now["frames"]],
        "frames_changed": other,
        "logits_changed": bits,
    }


def _logits(stack, name: str, texts: list[str]) -> np.ndarray:
    """A frame's logits on texts. Their last bits depend on the texts that are run with them, so
    these texts are run with one another alone."""
    with stack.backbone.afresh():
        return stack.activate(name).scores(texts, stack[name].training["max_length"])


def _texts(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _read(since: Mapping | str | Path, texts: list[str]) -> Mapping:
    """An earlier certificate, of the same texts."""
    where = "the certificate" if isinstance(since, Mapping) else str(since)
    before = since if isinstance(since, Mapping) else read_json(checked_path(since, "since"), _KEYS)
    if any(key not in before for key in _KEYS) or before["schema_version"] != SCHEMA:
        raise SkillStackError(f"{where} is not a certificate of this version")
    if before["texts"] != {"n": len(texts), "sha256": _texts(texts)}:
        raise SkillStackError(f"{where} is about other texts: give it the same, in the same order")
    return before


# ---------------------------------------------------------------------- removal


def remove(stack, name: str, retrain: Mapping | None = None) -> dict:
    """See `SkillStack.remove`."""
    if not isinstance(retrain, Mapping | None):
        raise SkillStackError("retrain must be a mapping from task names to TaskData")
    frame = stack[name]
    if frame.name != name:
        raise SkillStackError(
            f"frame {name!r} was dropped, {frame.name!r} answers: undo that first"
        )
    heirs = descendants(stack, name)
    gone = [frame] + [stack[heir] for heir in heirs] * (retrain is not None)
    for other in stack.frames:
        if other not in gone and other.storage.get("shares") in [one.name for one in gone]:
            raise SkillStackError(f"frame {other.name!r} reads the adapter of {name!r}: undo that")
    if missing := [stack[h].task for h in heirs if retrain is not None
                   and stack[h].task not in retrain]:  # fmt: skip
        raise SkillStackError(f"retrain has no rows of {', '.join(missing)}")
    hashes = {one.name: weights_digest(one) for one in gone}
    folder = frame.folder.parent.parent if frame.folder else None
    files = {}
    if folder:
        for one in gone:  # adapter_config.json is alike in all frames
            own = {v for file, v in one.sha256.items() if file.endswith(".safetensors")}
            files[one.name] = sorted({one.listed, *own})

    renamed, before = {name: None}, list(stack.frames)
    try:
        for heir in heirs if retrain is not None else ():
            renamed[heir] = _again(stack, stack[heir], renamed, retrain[stack[heir].task])
        if folder:
            stack.save_pretrained(folder)  # what was learned anew is there before the old goes
    except BaseException:
        stack.frames = before
        raise
    for one in gone:
        left_to = {"to": renamed[one.name], "parent": one.parent, "removed": True}
        stack.dropped[one.name] = left_to
    stack.frames = [one for one in stack.frames if one.name not in renamed]
    for alias, entry in stack.dropped.items():  # whom the removed one answered for
        if alias not in stack:
            entry |= {"to": None, "removed": True}
    stack.decisions = [d for d in stack.decisions if not _speaks_of(d, renamed)]
    stack.backbone.forget()
    stack._packed.clear()
    if folder:
        with locked(folder):
            stack._write_manifest(folder, stack.frames)  # from here on nothing of it is opened
            _sweep(folder, renamed)
    return {
        "schema_version": SCHEMA,
        "removed": name,
        "weights_sha256": hashes,
        "files_sha256": files,
        "descendants": heirs,
        "trained_anew": {old: new for old, new in renamed.items() if new},
        "texts_sha256": [frame.data.get("fingerprint"), frame.data.get("train_fingerprint")],
    }


def descendants(stack, name: str) -> list[str]:
    """Frames that were trained from `name`, or from one that was, in stack order."""
    heirs = {name}
    for frame in stack.frames:
        if frame.parent in heirs:
            heirs.add(frame.name)
    return [frame.name for frame in stack.frames if frame.name in heirs - {name}]


def left_of(folder: str | Path, certificate: Mapping) -> list[str]:
    """Files below a folder that a removal should have taken away: those with a hash that it names,
    and frames that bear a removed name. Empty if it kept its word; any process can ask."""
    folder = checked_path(folder)
    if not isinstance(certificate, Mapping) or not {"files_sha256", "removed"} <= {*certificate}:
        raise SkillStackError(f"certificate must be one of `remove`, got {shown(certificate)}")
    known = {digest for hashes in certificate["files_sha256"].values() for digest in hashes}
    names = {certificate["removed"], *certificate["trained_anew"]}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        str(path)
        for path in paths
        if file_sha256(path) in known or (path.parent.parent.name, path.parent.name) in
        {("frames", name) for name in names}
    ]  # fmt: skip


def _again(stack, old, renamed: Mapping, data) -> str:
    """A descendant learned anew, from what its parent has become; its new name."""
    parent = old.parent
    while parent in renamed and renamed[parent] is None:  # the removed one: from its own parent
        parent = stack[parent].parent
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    config = TrainingConfig(**{key: v for key, v in old.training.items() if key in known})
    name = stack.free_name(old.name)
    stack.grow(data, config, old.prompt, parent=renamed.get(parent, parent), name=name)
    return name


def _speaks_of(decision: Mapping, names: Mapping) -> bool:
    about = [*decision.get("frames", ()), decision.get("by"), *decision.get("replaced", ())]
    return not set(names).isdisjoint(about)


def _sweep(folder: Path, names: Mapping) -> None:
    """Delete the folders of removed frames, and saved routers that know them and cannot forget."""
    for name in names:
        shutil.rmtree(folder / "frames" / name, ignore_errors=True)
    from .routers import read_saved, saved_in

    for saved in saved_in(folder):
        if not set(names).isdisjoint(read_saved(saved)[1]["state"].get("frames_", ())):
            shutil.rmtree(saved)
