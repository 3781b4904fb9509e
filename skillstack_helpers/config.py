"""`RunConfig`: every parameter of a notebook run, typed and checked before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass

from . import SkillStackError

# Where a run reads and writes does not change what it measures, so it is no part of its identity.
# So with the choice of methods: each has a run of its own.
_PLACES = ("data_dir", "output_dir", "methods", "stack_dir")
# Parameters of a few methods only, and these methods: no part of the identity of other runs.
_OF_METHODS = {
    "ewc_strength": ("ewc", "ewc_replay"),
    "olora_strength": ("olora",),
    "buffer_size": ("replay", "ewc_replay", "generative_replay"),
    "n_held_back": ("compression",),
    "max_loss_pp": ("compression",),
}


@dataclass(frozen=True)
class RunConfig:
    """Parameters of one run; the defaults are the published hard8 ones (seed 42).

    Raises `SkillStackError` naming the first field that is wrong.
    """

    notebook: str = ""  # e.g. "01_train_stack"; part of the run id
    preset: str = "hard8"  # stream of tasks, a key of tasks.PRESETS
    model: str = "auto"  # backbone: minilm, smollm2-135m, a hub id, a folder, or auto
    seed: int = 42  # rows, LoRA and head initialization, batch order
    n_train: int = 48  # training rows per class
    n_router: int = 256  # routing rows per task
    n_eval: int = 64  # evaluation rows per class
    max_length: int = 160  # tokens per text, longer texts are cut
    epochs: int = 3  # passes over a task's training rows
    lr: float | None = None  # peak learning rate; None: the backbone's own (backbones.Backbone.lr)
    batch_size: int = 8  # texts per optimizer step
    lora_r: int = 8  # rank r of the LoRA update
    lora_alpha: int = 16  # the update is scaled by lora_alpha / lora_r
    router: str = "hybrid_chain"  # a key of routers.ROUTERS
    threshold: float = 0.0  # margin a frame needs to answer in the chain walk
    methods: str | None = None  # names from baselines.METHODS, comma between; None: all that fit
    ewc_strength: float | None = None  # weight of EWC's penalty; None: searched on routing rows
    olora_strength: float | None = None  # O-LoRA's λ1; None: searched on routing rows
    buffer_size: int = 200  # rows that replay may keep
    n_held_back: int = 512  # rows per task that only the rule of compression.py sees
    max_loss_pp: float = 1.0  # points of accuracy that compression may cost
    dtype: str = "auto"  # float32, bfloat16, or auto (bfloat16 on CUDA, else float32)
    quantize: str | None = None  # None or "nf4" (bitsandbytes)
    device: str = "auto"  # cpu, cuda, or auto
    source: str = "auto"  # folder, hub, embedded, or auto
    data_dir: str | None = None  # folder source; None: the variable SKILLSTACK_DATA
    output_dir: str = "results/runs"  # relative to the repository root
    stack_dir: str | None = None  # a saved stack to look into (notebook 11)

    def __post_init__(self):
        for name, kind in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _is_a(value, kind):
                hint = ""
                if isinstance(value, str) and value.lower() in {"true", "false", "none"}:
                    hint = f" (write {value.capitalize()}, not a string)"
                raise SkillStackError(f"{name} must be {_describe(kind)}, got {value!r}{hint}")
            if isinstance(value, float) and not math.isfinite(value):
                raise SkillStackError(f"{name} must be finite, got {value!r}")
        _check_names(self)
        at_least_one = ("n_train", "n_router", "n_eval", "epochs", "batch_size", "lora_r")
        for name in (*at_least_one, "buffer_size", "n_held_back"):
            if getattr(self, name) < 1:
                raise SkillStackError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lora_alpha < 1:
            raise SkillStackError(f"lora_alpha must be at least 1, got {self.lora_alpha}")
        if self.max_length < 8:
            raise SkillStackError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if not 0 <= self.seed < 2**32:
            raise SkillStackError(f"seed must be in 0 .. 2**32 - 1, got {self.seed}")
        for name in ("ewc_strength", "olora_strength", "max_loss_pp"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise SkillStackError(f"{name} must not be negative, got {value}")
        if self.lr is not None and not 0 < self.lr < 1:
            raise SkillStackError(f"lr must be above 0 and below 1, got {self.lr}")

    @classmethod
    def from_notebook(cls, namespace: dict, notebook: str) -> RunConfig:
        """Build the config from the notebook's globals, right after the parameters cell.

        Every public name bound to a literal is taken for a parameter, so a name that papermill
        injected but nobody reads (``-p sede 123``) is an error here instead of a warning.
        """
        shell_names = {"In", "Out"}
        literals = (str, int, float, bool, list, tuple, dict, types.NoneType)
        given = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in shell_names and type(value) in literals
        }
        fields = [f.name for f in dataclasses.fields(cls) if f.name != "notebook"]
        for name in given:
            if name not in fields:
                raise SkillStackError(f"unknown parameter {name!r}{did_you_mean(name, fields)}")
        return cls(notebook=notebook, **given)

    def identity(self, method: str = "") -> dict:
        """The fields that decide what a method measures (everything but the places)."""
        left_out = {*_PLACES, *(n for n, users in _OF_METHODS.items() if method not in users)}
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in left_out}

    @property
    def method_names(self) -> list[str] | None:
        """`methods` as a list, None for all."""
        return None if self.methods is None else [m.strip() for m in self.methods.split(",")]

    def run_id(self, method: str = "stack") -> str:
        """``<notebook>-<preset>-<model>-<method>-s<seed>-<hash8>``; same parameters, same id."""
        fields = json.dumps(self.identity(method), sort_keys=True)
        digest = hashlib.sha256(fields.encode()).hexdigest()
        model = re.sub(r"[^a-z0-9_.]+", "_", self.model.rstrip("/").split("/")[-1].lower())
        parts = (self.notebook, self.preset, model, method, f"s{self.seed}", digest[:8])
        return "-".join(part for part in parts if part)


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """`` (did you mean ...?)`` or `` (known: ...)``, for error messages about unknown names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def _is_a(value, kind) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind  # strict: True is no int here, "false" is no bool


def _describe(kind) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    names = {int: "an integer", float: "a number", str: "a string", types.NoneType: "None"}
    return names.get(kind, kind.__name__)


def _check_names(config: RunConfig) -> None:
    from .baselines import METHODS
    from .routers import ROUTERS
    from .tasks import PRESETS, SOURCES

    known = {
        "preset": PRESETS,
        "router": ROUTERS,
        "source": ("auto", *SOURCES),
        "dtype": ("auto", "float32", "bfloat16"),
        "quantize": ("nf4",),
    }
    for field, names in known.items():
        value = getattr(config, field)
        if value is not None and value not in names:
            raise SkillStackError(f"unknown {field} {value!r}{did_you_mean(value, names)}")
    for name in config.method_names or ():
        if name not in METHODS:
            raise SkillStackError(f"unknown method {name!r}{did_you_mean(name, METHODS)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", config.device):
        raise SkillStackError(f"unknown device {config.device!r} (known: auto, cpu, cuda, mps)")
    if not config.model.strip():
        raise SkillStackError("model must name a backbone, got an empty string")
    if not config.output_dir.strip():
        raise SkillStackError("output_dir must name a folder, got an empty string")
