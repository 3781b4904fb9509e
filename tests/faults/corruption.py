"""Files that were damaged, replaced or written by somebody else: every byte and every key.

A case is a file of the specimen and what happens to it. Afterwards the part it belongs to is opened
and asked, and either says the same as before or ends in one line that names the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import safetensors.numpy
import specimen
from conftest import said_in

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.files import NO_SEAL, sealed

VALUES = [None, True, 0, -1, 1, 1e30, float("nan"), float("inf"), "", "x", "../x", "a\0b", [], [1],
          {}, {"a": 1}, "x" * 1000]  # fmt: skip
SECONDS = 20  # after which a case hangs
FLIPS, CUTS = 8, 3  # of every file
OF_KEYS = {"edited": 1, "signed": 2}  # values out of VALUES for each key
SLACK = 16 << 20  # bytes of memory beyond twice the honest need


class Case(NamedTuple):
    part: str
    file: str
    kind: str
    seed: int

    @property
    def key(self) -> str:
        return "/".join(map(str, ("corruption", *self)))


class HangsError(Exception):
    pass


def cases(root: Path) -> list[Case]:
    """All of them, the same for the same specimen's names."""
    found = []
    for part, files in specimen.parts(root).items():
        for file in files:
            kinds = ["flip"] * FLIPS + ["truncate"] * CUTS + ["zero"] * 2 + ["swap"] * 2
            kinds += ["empty", "delete", "append", "pipe", "device", "folder", "link", "outside"]
            kinds += ["huge"]
            if file.endswith(".json"):
                kinds += ["nested", "twice", "list"]
            if file.endswith(".safetensors"):
                kinds += ["header"] * 4
            if Path(file).name in ("frame.json", "stack.json", "run.json", "mixture.json",
                                   "router.safetensors", "masks.safetensors"):  # fmt: skip
                keys = len(list(key_paths(facts_of(root / "kept" / part / file))))
                for kind, values in OF_KEYS.items():
                    kinds += [kind] * (keys * values)
            seeds = {kind: iter(range(len(kinds))) for kind in kinds}
            found += [Case(part, file, kind, next(seeds[kind])) for kind in kinds]
    return found


# ---------------------------------------------------------------------- what happens to a file


def facts_of(path: Path) -> dict:
    """The JSON of a file, or of a safetensors file's metadata."""
    return json.loads(path.read_bytes()) if path.suffix == ".json" else said_in(path)[1]


def with_facts(path: Path, facts, sign: bool) -> bytes:
    """The file with other JSON in it; sign: with a digest that fits."""
    if sign and isinstance(facts, dict) and "seal" in facts:
        facts = {**facts, "seal": NO_SEAL}
    if path.suffix == ".json":
        content = json.dumps(facts).encode()
    else:
        arrays = safetensors.numpy.load(path.read_bytes())
        content = safetensors.numpy.save(arrays, {said_in(path)[0]: json.dumps(facts)})
    return sealed(content) if sign else content


def key_paths(facts, path: tuple = (), depth: int = 3) -> Iterator[tuple]:
    """The way to every value, of lists to the first two."""
    items = facts.items() if isinstance(facts, dict) else enumerate(facts[:2])
    for key, value in items:
        if (*path, key) != ("seal",):
            yield (*path, key)
            if isinstance(value, dict | list) and depth > 1:
                yield from key_paths(value, (*path, key), depth - 1)


def damage(case: Case, root: Path, rng: random.Random) -> list[Path]:
    """Do it; returns the files that an error may name."""
    folder = root / "kept" / case.part
    path = folder / case.file
    content, named = path.read_bytes(), [path]
    n = len(content)
    if case.kind == "flip":
        place = rng.randrange(n)
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        )
    elif case.kind == "truncate":
        path.write_bytes(content[: rng.randrange(n)])
    elif case.kind == "zero":
        place, size = rng.randrange(n), rng.choice((1, 16, 512))
        path.write_bytes((content[:place] + bytes(size) + content[place + size :])[:n])
    elif case.kind == "append":
        path.write_bytes(content + rng.choice((b"\0", b" {}", content)))
    elif case.kind == "empty":
        path.write_bytes(b"")
    elif case.kind == "swap":
        others = [p for p in folder.rglob(f"*{path.suffix}") if p != path] or [path]
        other = rng.choice(sorted(others))
        theirs = other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(content)
        named.append(other)
    elif case.kind == "huge":  # without blocks on disk
        os.truncate(path, 1 << 31)
    elif case.kind == "nested":
        path.write_bytes(b'{"a":' * 100_000)
    elif case.kind == "list":
        path.write_bytes(b"[" + content + b"]")
    elif case.kind == "twice":
        text = content.decode().rstrip().removesuffix("}")
        path.write_text(text + ', "schema_version": 1, "frames": [], "name": "imdb"}')
    elif case.kind == "header":
        header = [
            lambda: (10**10).to_bytes(8, "little") + content[8:],
            lambda: (2**63).to_bytes(8, "little") + content[8:],
            lambda: content[:8] + re.sub(rb'"shape":\[\d+', b'"shape":[1099511627776', content[8:]),
            lambda: content.replace(b"data_offsets", b"data_offsetz"),
        ]
        path.write_bytes(header[case.seed % 4]())
    elif case.kind in OF_KEYS:
        facts = facts_of(path)
        ways = list(key_paths(facts))
        *way, key = ways[case.seed % len(ways)]
        holder = facts
        for step in way:
            holder = holder[step]
        if rng.random() < 0.1 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = rng.choice(VALUES)
        path.write_bytes(with_facts(path, facts, case.kind == "signed"))
        if case.kind == "signed" and path.name == "frame.json":
            manifest = folder / "stack.json"
            listed = facts_of(manifest)
            for entry in listed["frames"]:
                if entry["name"] == path.parent.name:
                    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest.write_bytes(with_facts(manifest, listed, True))
    else:
        path.unlink()
        if case.kind == "pipe":
            os.mkfifo(path)
        elif case.kind == "device":
            path.symlink_to("/dev/zero")
        elif case.kind == "folder":
            path.mkdir()
        elif case.kind == "link":  # as in the hub's cache: the same bytes behind it
            elsewhere = root / "elsewhere"
            elsewhere.write_bytes(content)
            path.symlink_to(elsewhere)
        elif case.kind == "outside":
            elsewhere = root / "elsewhere"
            elsewhere.write_bytes(content[: n // 2] + b"?" + content[n // 2 + 1 :])
            path.symlink_to(elsewhere)
    return named


# ---------------------------------------------------------------------- what comes of it


def run(case: Case, root: Path, whole: dict[str, tuple[str, int]]) -> tuple[str, str]:
    """The verdict, and what was raised. whole: `honest` of every part."""
    kept, aside = root / "kept" / case.part, root / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(kept, aside)
    (root / "elsewhere").unlink(missing_ok=True)
    rng = random.Random(f"{case.key}")
    try:
        named = damage(case, root, rng)
        return judge(case, root, named, whole)
    finally:
        shutil.rmtree(kept)
        shutil.move(aside, kept)


def honest(root: Path) -> dict[str, tuple[str, int]]:
    """What every part says undamaged, and the memory that takes, part -> (digest, bytes)."""
    said = {
        part: specimen.fingerprint(specimen.said_by(part, root)) for part in specimen.parts(root)
    }
    need = {}
    for part in said:
        with peak() as used:
            specimen.said_by(part, root)
            specimen.checked(part, root)
        need[part] = used[0]
    return {part: (said[part], need[part]) for part in said}


def judge(case: Case, root: Path, named: list[Path], whole) -> tuple[str, str]:
    expected, need = whole[case.part]
    try:
        with limited(), peak() as used:
            said = specimen.fingerprint(specimen.said_by(case.part, root))
            if said == expected:
                specimen.checked(case.part, root)
    except SkillStackError as error:
        text = str(error)
        if "\n" in text:
            return "several lines", text
        places = [str(path) for path in named]
        if case.kind == "signed":  # then it may be another file that does not fit it
            places.append(str(root / "kept" / case.part))
        places += [str(path.parent) for path in named if path.name in ("frame.json", "stack.json")]
        right = any(place in text for place in places)
        verdict = "named" if right else "error without the file"
        return (verdict, text) if used[0] <= 2 * need + SLACK else ("memory", f"{used[0]:,}")
    except HangsError:
        return "hang", ""
    except BaseException as error:
        return "raw", f"{type(error).__name__}: {error}"
    if used[0] > 2 * need + SLACK:
        return "memory", f"{used[0]:,} bytes"
    if said == expected:
        return "identical", ""
    return ("other (signed)" if case.kind == "signed" else "SILENT"), ""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """An exception where something hangs, and MemoryError instead of a machine without memory."""

    def late(*_):
        raise HangsError

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30), limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """How much more memory was in use at the worst moment than before, bytes."""
    used = [0]
    Path("/proc/self/clear_refs").write_text("5")
    before = _kib("VmRSS")
    try:
        yield used
    finally:
        used[0] = max(0, _kib("VmHWM") - before) * 1024


def _kib(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1))
