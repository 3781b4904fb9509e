"""Routers: which frame answers a text. All are scikit-learn classifiers on texts (`base.Router`).

``fit(texts, frame_names)``, ``partial_fit`` for one more frame where the method allows it without
the old texts, ``predict``, ``decision_function`` and ``predict_proba`` of shape (n, frames), and
``route``. Routers that read embeddings take the frozen backbone (`Backbone.embed`). A fitted router
is saved as JSON and plain arrays in one file: nothing is pickled, no code is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import SkillStackError, checked_name, checked_path, shown
from ..files import (
    NO_SEAL,
    OBJECT,
    SHA256,
    TEXT,
    check_fields,
    explain,
    metadata,
    read_bytes,
    read_json,
    sealed,
    sweep,
    whole,
    write_atomic,
)
from .arrow import ArrowRouter
from .base import NotFittedError, Router, check_fitted, fit_temperature, walk  # noqa: F401
from .gate import GateRouter
from .hybrid import HybridChainRouter, HybridEmbedRouter, HybridSVMRouter
from .profile import CentroidRouter, ProfileRouter
from .scaffold_blind import ScaffoldBlindRouter
from .trunk import TrunkRouter

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..stack import SkillStack

ROUTERS = {
    "hybrid_svm": HybridSVMRouter,
    "hybrid_chain": HybridChainRouter,
    "hybrid_embed": HybridEmbedRouter,
    "scaffold_blind": ScaffoldBlindRouter,
    "trunk": TrunkRouter,
    "gate": GateRouter,
    "centroid": CentroidRouter,
    "profile": ProfileRouter,
    "arrow": ArrowRouter,
}
SCHEMA = 1
FILE = "router.safetensors"
_PAIR = ("router.json", "arrays.safetensors")  # of version 0.6 and before
_FIELDS = {"schema_version": whole(0, 1 << 30), "router": TEXT}
_FIELDS |= {"parameters": OBJECT, "state": OBJECT}
_LIVE = ("backbone", "stack")  # parameters that are handed over again when a router is loaded


def make_router(name: str, **parameters) -> Router:
    """The unfitted router of that name; parameters that only others have are left out.

    Raises `SkillStackError` for a name or parameter that no router has.

    >>> make_router("hybrid_chain", threshold=0.2, max_length=160, seed=42)
    HybridChainRouter(threshold=0.2)
    """
    kind = ROUTERS[checked_name(name, ROUTERS, "router")]
    known = {parameter for other in ROUTERS.values() for parameter in other().get_params()}
    own = kind().get_params()
    for parameter in parameters:
        checked_name(parameter, sorted(known), "router parameter")
    router = kind(**{key: value for key, value in parameters.items() if key in own})
    router._check_parameters()
    return router


def save_router(router: Router, folder: str | Path) -> Path:
    """Write a fitted router to one file, ``router.safetensors``, which is replaced whole and holds
    a digest of all that is in it."""
    name = next((key for key, kind in ROUTERS.items() if type(router) is kind), None)
    if name is None:
        what = type(router).__name__ if isinstance(router, Router) else f"router: {shown(router)}"
        raise SkillStackError(f"{what} is none of {', '.join(ROUTERS)}")
    check_fitted(router)
    parameters = {k: v for k, v in router.get_params().items() if k not in _LIVE}
    state, arrays = {}, {}
    for key, value in router._state().items():
        (arrays if isinstance(value, np.ndarray) else state)[key] = value
    fields = {"seal": NO_SEAL, "schema_version": SCHEMA, "router": name}
    fields = json.dumps(fields | {"parameters": parameters, "state": state})
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    content = sealed(safetensors.numpy.save(arrays, {"router": fields}))
    folder = checked_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        write_atomic(folder / FILE, content)
        for older in _PAIR:  # the router that was there in two files
            (folder / older).unlink(missing_ok=True)
    except OSError as error:
        raise SkillStackError(f"cannot save the router in {folder}: {explain(error)}") from None
    return folder


def saved_in(stack_folder: str | Path) -> list[Path]:
    """The folders below ``routers/`` of a stack that hold a saved router, by name."""
    found = (Path(stack_folder) / "routers").glob("*/*")
    return sorted({path.parent for path in found if path.name in (FILE, _PAIR[0])})


def files_of(folder: Path) -> list[Path]:
    """The files of a saved router; version 0.6 and before wrote two."""
    pair = [folder / name for name in _PAIR]
    return pair if pair[0].exists() and not (folder / FILE).exists() else [folder / FILE]


def read_saved(folder: Path) -> tuple[Path, dict, bytes]:
    """A saved router's file, what it says in JSON, and its arrays, checked against the digest."""
    path, *arrays = files_of(folder)
    if arrays:
        fields = read_json(path, ("sha256",))
        check_fields(str(path), fields, {"sha256": SHA256})
        content = read_bytes(arrays[0], fields["sha256"])
    else:
        content = read_bytes(path)
        fields = metadata(path, content, "router", "router")
    check_fields(str(path), fields, _FIELDS)
    return path, fields, content


def load_router(
    folder: str | Path, backbone: Backbone | None = None, stack: SkillStack | None = None
) -> Router:
    """Read a router that `save_router` wrote; safe on files of unknown origin.

    Only JSON and plain arrays are read. Raises `SkillStackError` naming the file that is wrong.
    """
    path, fields, content = read_saved(checked_path(folder))
    if fields["schema_version"] != SCHEMA or fields["router"] not in list(ROUTERS):
        raise SkillStackError(f"{path} is not a router of this version")
    kind = ROUTERS[fields["router"]]
    live = {"backbone": backbone, "stack": stack}.items()
    live = {key: value for key, value in live if key in kind().get_params()}
    saved = {kind._renamed.get(key, key): v for key, v in fields["parameters"].items()}
    try:
        router = kind(**saved, **live)
        router._check_parameters()
        router._restore(fields["state"] | safetensors.numpy.load(content))
    except safetensors.SafetensorError as error:
        raise SkillStackError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise SkillStackError(f"{path} is damaged: {error}") from None
    return router
