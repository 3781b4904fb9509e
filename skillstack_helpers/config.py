"""`TrainingConfig`: what training takes, typed and checked before any work starts."""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import dataclass

from .errors import SkillStackError, checked_number, checked_seed, shown

# No run is that large: a typing error, said before the memory or the weekend is gone.
MOST = {
    "epochs": 10**6,
    "batch_size": 10**6,
    "max_length": 10**6,
    "lora_r": 10**4,
    "lora_alpha": 10**6,
    "first_adapted_layer": 10**6,
}
MOST_ROWS = 10**9  # of any budget


@dataclass(frozen=True)
class TrainingConfig:
    """How frames (and baselines) are trained; the defaults are the published ones.

    Raises `SkillStackError` naming the first field that is wrong.

    >>> TrainingConfig(epochs=1).lora_r
    8
    >>> TrainingConfig(epochs="3")
    Traceback (most recent call last):
    skillstack_helpers.errors.SkillStackError: epochs must be an integer, got '3'
    """

    seed: int = 42  # rows, LoRA and head initialization, batch order
    max_length: int = 160  # tokens per text, longer texts are cut
    epochs: int = 3  # passes over a task's training rows
    lr: float | None = None  # peak learning rate; None: by hidden size (training.default_lr)
    batch_size: int = 8  # texts per optimizer step
    lora_r: int = 8  # rank r of the LoRA update
    lora_alpha: int = 16  # the update is scaled by lora_alpha / lora_r
    # The first layer that has an adapter: a number from 1, or a fraction of the depth. The frozen
    # ones below run once per text (trunk.py). None: all layers have one, as published.
    first_adapted_layer: int | float | None = None

    def __post_init__(self):
        check_types(self)
        for name in ("epochs", "batch_size", "lora_r", "lora_alpha", "max_length"):
            least = 8 if name == "max_length" else 1
            checked_number(getattr(self, name), name, least, MOST[name])
        checked_seed(self.seed)
        first = self.first_adapted_layer
        if first is not None:
            checked_number(first, "first_adapted_layer", most=MOST["first_adapted_layer"])
        if first is not None and not (0 < first < 1 if isinstance(first, float) else first >= 1):
            raise SkillStackError(
                "first_adapted_layer must be a layer from 1 on, or a fraction between 0 and 1, "
                f"got {first}"
            )
        if self.lr is not None and not 0 < self.lr < 1:
            raise SkillStackError(f"lr must be above 0 and below 1, got {self.lr}")


def checked_config(config) -> TrainingConfig:
    """The config, or an error for anything else."""
    if not isinstance(config, TrainingConfig):
        raise SkillStackError(f"config must be a TrainingConfig, got {shown(config)}")
    return config


def checked_device(device: str) -> str:
    """The name of a device, whether it is there or not, or an error."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", device):
        known = "(known: auto, cpu, cuda, mps)"
        raise SkillStackError(f"unknown device {shown(device)} {known}")
    return device


def check_types(config) -> None:
    """Raise `SkillStackError` for the first field of a dataclass whose value has another type, is
    not finite, or is a string that no system call takes."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is_a(value, kind):
            hint = ""
            if isinstance(value, str) and value.lower() in {"true", "false", "none"}:
                hint = f" (write {value.capitalize()}, not a string)"
            raise SkillStackError(f"{name} must be {_describe(kind)}, got {shown(value)}{hint}")
        if isinstance(value, float) and not math.isfinite(value):
            raise SkillStackError(f"{name} must be finite, got {value!r}")
        if isinstance(value, str) and "\0" in value:
            raise SkillStackError(f"{name} must not hold a NUL, got {shown(value)}")


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
