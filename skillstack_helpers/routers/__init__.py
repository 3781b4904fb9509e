"""Routers: which frame answers a text. All are scikit-learn classifiers on texts (`base.Router`).

``fit(texts, frame_names)``, ``partial_fit`` for one more frame where the method allows it without
the old texts, ``predict``, ``decision_function`` and ``predict_proba`` of shape (n, frames), and
``route``. Routers that read embeddings take the frozen backbone (`Backbone.embed`). A fitted router
is saved as JSON and plain arrays: nothing is pickled, no code is loaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import SkillStackError, checked_name, checked_path, shown
from ..files import explain, read_json, write_atomic
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
    """Write a fitted router: ``router.json`` and ``arrays.safetensors``; both are replaced whole.

    The JSON file is written last and names the SHA-256 of the arrays, so that a router that was
    half replaced is noticed when it is loaded.
    """
    name = next((key for key, kind in ROUTERS.items() if type(router) is kind), None)
    if name is None:
        what = type(router).__name__ if isinstance(router, Router) else f"router: {shown(router)}"
        raise SkillStackError(f"{what} is none of {', '.join(ROUTERS)}")
    check_fitted(router)
    parameters = {k: v for k, v in router.get_params().items() if k not in _LIVE}
    state, arrays = {}, {}
    for key, value in router._state().items():
        (arrays if isinstance(value, np.ndarray) else state)[key] = value
    content = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    fields = {"schema_version": SCHEMA, "router": name, "parameters": parameters, "state": state}
    fields["sha256"] = hashlib.sha256(content).hexdigest()
    folder = checked_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "arrays.safetensors", content)
        write_atomic(folder / "router.json", json.dumps(fields) + "\n")
    except OSError as error:
        raise SkillStackError(f"cannot save the router in {folder}: {explain(error)}") from None
    return folder


def load_router(
    folder: str | Path, backbone: Backbone | None = None, stack: SkillStack | None = None
) -> Router:
    """Read a router that `save_router` wrote; safe on files of unknown origin.

    Only JSON and plain arrays are read. Raises `SkillStackError` naming the file that is wrong.
    """
    path = checked_path(folder) / "router.json"
    arrays_path = path.parent / "arrays.safetensors"
    fields = read_json(path, ("schema_version", "router", "parameters", "state", "sha256"))
    if fields["schema_version"] != SCHEMA or fields["router"] not in list(ROUTERS):
        raise SkillStackError(f"{path} is not a router of this version")
    try:
        content = arrays_path.read_bytes()
    except OSError as error:
        raise SkillStackError(f"{arrays_path}: {explain(error)}") from None
    if hashlib.sha256(content).hexdigest() != fields["sha256"]:
        raise SkillStackError(f"{arrays_path} was changed or cut off")
    try:
        kind = ROUTERS[fields["router"]]
        live = {"backbone": backbone, "stack": stack}.items()
        live = {key: value for key, value in live if key in kind().get_params()}
        saved = {kind._renamed.get(key, key): v for key, v in fields["parameters"].items()}
        router = kind(**saved, **live)
        router._restore(fields["state"] | safetensors.numpy.load(content))
    except safetensors.SafetensorError as error:
        raise SkillStackError(f"{arrays_path}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SkillStackError(f"{path} is damaged: {error}") from None
    return router
