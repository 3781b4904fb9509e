"""Continual learning with immutable, linked LoRA frames and a router that picks one.

``import skillstack_helpers as ss`` loads neither torch nor pandas; a name does when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import SkillStackError

__version__ = "0.7.0"

_HOME = {
    "backbones": "Backbone",
    "loading": "load_backbone",
    "tasks": "PRESETS TASKS Task TaskData load_task",
    "config": "TrainingConfig",
    "stack": "SkillStack",
    "frames": "Frame",
    "heads": "instruction",
    "routers": "HybridSVMRouter HybridChainRouter HybridEmbedRouter ScaffoldBlindRouter "
    "TrunkRouter make_router save_router load_router",
    "bitstack": "BitStack",
    "answers": "Answers",
    "pruning": "second_look",
    "ensemble": "Mixture",
    "lab.parameters": "RunConfig repo_root",
    "lab.runs": "open_run load_runs",
    "lab.experiment": "load_stream open_backbone open_or_train open_stack fit_router fit_mixture",
}
_HOME = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = ["SkillStackError", "__version__", *_HOME]

if TYPE_CHECKING:  # for editors
    # ruff: noqa: F401
    from .answers import Answers
    from .backbones import Backbone
    from .bitstack import BitStack
    from .config import TrainingConfig
    from .ensemble import Mixture
    from .frames import Frame
    from .heads import instruction
    from .lab.experiment import (
        fit_mixture,
        fit_router,
        load_stream,
        open_backbone,
        open_or_train,
        open_stack,
    )
    from .lab.parameters import RunConfig, repo_root
    from .lab.runs import load_runs, open_run
    from .loading import load_backbone
    from .pruning import second_look
    from .routers import (
        HybridChainRouter,
        HybridEmbedRouter,
        HybridSVMRouter,
        ScaffoldBlindRouter,
        TrunkRouter,
        load_router,
        make_router,
        save_router,
    )
    from .stack import SkillStack
    from .tasks import PRESETS, TASKS, Task, TaskData, load_task


def __getattr__(name: str):  # PEP 562
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f".{_HOME[name]}", __name__), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
