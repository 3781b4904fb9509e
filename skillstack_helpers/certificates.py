"""What can be shown to somebody else: who answered which text, and how many answers changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from .errors import SkillStackError, checked_texts
from .files import digest, read_json
from .frames import weights_digest

SCHEMA = 1
_KEYS = ("schema_version", "texts", "frames", "answers")


def certify(stack, texts: Sequence[str], router, since: Mapping | str | Path | None = None) -> dict:
    """See `SkillStack.certify`."""
    texts = checked_texts(texts)
    before = None if since is None else _read(since, texts)
    names = np.array([stack[name].name for name in router.predict(texts)], dtype=object)
    said = stack.predict(texts, list(names)).label_names
    frames = {}
    for frame in stack.frames:
        rows = np.flatnonzero(names == frame.name)
        facts = {"sha256": weights_digest(frame), "answered": len(rows)}
        if len(rows):
            facts["logits_sha256"] = _logits(stack, frame.name, [texts[i] for i in rows])
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
        n for n in there if asked[n] and there[n]["logits_sha256"] != _logits(stack, n, asked[n])
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


def _logits(stack, name: str, texts: list[str]) -> str:
    """Digest of a frame's logits on texts. Their last bits depend on the texts that are run with
    them, so these texts are run with one another alone."""
    with stack.backbone.afresh():
        scores = stack.activate(name).scores(texts, stack[name].training["max_length"])
    return digest(scores)


def _texts(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _read(since: Mapping | str | Path, texts: list[str]) -> Mapping:
    """An earlier certificate, of the same texts."""
    where = "the certificate" if isinstance(since, Mapping) else str(since)
    before = since if isinstance(since, Mapping) else read_json(Path(since), _KEYS)
    if any(key not in before for key in _KEYS) or before["schema_version"] != SCHEMA:
        raise SkillStackError(f"{where} is not a certificate of this version")
    if before["texts"] != {"n": len(texts), "sha256": _texts(texts)}:
        raise SkillStackError(f"{where} is about other texts: give it the same, in the same order")
    return before
