"""What the machine can do: the device, the precision that suits it, and how much memory it has."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from .config import TrainingConfig, checked_device
from .errors import SkillStackError

DTYPES = ("float32", "bfloat16", "float16")
SMALL = 500_000_000  # parameters; smaller models are float32 everywhere, so that runs compare
GIB = 1 << 30
WORKSPACE = 0.7 * GIB  # context, kernels' workspace and fragments; an estimate


@functools.cache
def say_once(line: str) -> None:
    """Print a line the first time it is said."""
    print(line, flush=True)


# ---------------------------------------------------------------------- device and precision


def pick_device(device: str) -> str:
    """``auto`` made concrete: a GPU that this torch can use, else the CPU.

    Raises `SkillStackError` for a GPU that is asked for and not there or not usable.
    """
    if checked_device(device) == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        if reason := gpu_refusal("cuda"):
            say_once(f"{reason}; the CPU is used")
            return "cpu"
        return "cuda"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise SkillStackError(f"device {device!r} is not there; device='auto' takes what is")
        if reason := gpu_refusal(device):
            raise SkillStackError(reason)
    if device == "mps" and not torch.backends.mps.is_available():
        raise SkillStackError("device 'mps' is not there; device='auto' takes what is")
    return device


def gpu_refusal(device: str) -> str | None:
    """Why this torch cannot compute on a GPU (Kaggle's P100, say) and what to do; None if it can.

    `torch.cuda.is_available` is True there, and the first operation fails.
    """
    capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if _built_for(capability, built):
        return None
    name, ours = torch.cuda.get_device_name(device), "sm_{}{}".format(*capability)
    return (
        f"this torch has no kernels for the GPU {name} ({ours}, built for {', '.join(built)}): "
        "choose another accelerator (on Kaggle GPU T4 x2), or install a torch built for it"
    )


def _built_for(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether kernels built for these architectures run on that compute capability.

    ``sm_XY`` runs on X.Y and later ones of the same X, ``compute_XY`` (PTX) on X.Y and all later.
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in built]
    if not all(known) or not known:  # AMD's names, or none: torch knows better
        return True
    for kind, major, minor in (match.groups() for match in known):
        there = (int(major), int(minor))
        if there <= capability and (kind == "compute" or there[0] == capability[0]):
            return True
    return False


def suitable_dtype(device: str, kind: str, config) -> str:
    """The precision that ``dtype="auto"`` means.

    float32 on the CPU and on Apple's GPUs, for encoders, and for models under `SMALL` parameters.
    On CUDA bfloat16 from compute capability 8 on. Capability 7 (T4, V100) only emulates bfloat16,
    about four times slower than float16, so there float16, trained with a gradient scaler; but
    float32 for Gemma, whose activations overflow float16 (transformers issue 36822). Older ones
    float32.
    """
    if not device.startswith("cuda") or kind == "encoder" or count_parameters(config)[0] < SMALL:
        return "float32"
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:
        return "bfloat16"
    return "float16" if major == 7 and not config.model_type.startswith("gemma") else "float32"


# ---------------------------------------------------------------------- memory


def count_parameters(config) -> tuple[int, int]:
    """Parameters of a model that is not loaded: all, and those in linear layers (packed by NF4)."""
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    linear = (m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    return sum(p.numel() for p in model.parameters()), sum(linear)


def weight_bytes(parameters: tuple[int, int], dtype: str, quantize: str | None) -> float:
    """Bytes of a model's weights; parameters: see `count_parameters`."""
    total, linear = parameters
    size = getattr(torch, dtype).itemsize
    # NF4: half a byte, and one float32 scale for 64 weights.
    return total * size if quantize is None else (total - linear) * size + linear * (0.5 + 4 / 64)


def activation_bytes(config, dtype: str, tokens: int, checkpointing: bool = False) -> float:
    """About what the backward pass of LoRA on all linear layers keeps of a batch.

    tokens: rows times length. Fitted to what autograd saved per layer for Llama-3.2's 1B (201 MiB)
    and 3B (251 MiB) shapes, 1,280 tokens in 16 bits; float32 took 1.23 times as much. With
    checkpointing the inputs of all layers and the activations of one are alive.
    """
    hidden = config.hidden_size
    layer = (40 * hidden + 10 * getattr(config, "intermediate_size", 4 * hidden)) * tokens
    layer *= 1.23 if dtype == "float32" else 1.0
    inputs = tokens * hidden * getattr(torch, dtype).itemsize
    if checkpointing:
        return layer + config.num_hidden_layers * inputs
    return layer * config.num_hidden_layers


def free_bytes(device: str) -> int:
    """Memory that a GPU has left for tensors, with what torch keeps for reuse."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def place(name: str, config, dtype: str, quantize: str | None, device: str) -> str | None:
    """``"auto"`` (a device map over all GPUs) where the weights do not fit on one, else None.

    Raises `SkillStackError`, with what would fit, where they fit on none and not on all together.
    """
    if not device.startswith("cuda"):
        return None
    parameters = count_parameters(config)
    weights, free = weight_bytes(parameters, dtype, quantize), free_bytes(device)
    need = weights + WORKSPACE
    if need <= free:
        return None
    everywhere = [free_bytes(f"cuda:{i}") for i in range(torch.cuda.device_count())]
    if weights <= sum(room - WORKSPACE for room in everywhere):
        say_once(f"{name} does not fit on one GPU and is spread over {len(everywhere)}")
        return "auto"
    line = f"{name} needs about {need / GIB:.1f} GiB in {quantize or dtype}, "
    line += f"{free / GIB:.1f} GiB are free on the GPU"
    smaller = weight_bytes(parameters, dtype, "nf4") + WORKSPACE
    if quantize is None and smaller <= free:
        raise SkillStackError(f"{line}: quantize='nf4' needs {smaller / GIB:.1f} GiB")
    raise SkillStackError(f"{line}: choose a smaller model")


def advise(backbone, config: TrainingConfig) -> None:
    """Say in one line, once, if training will probably not fit on the GPU, and what needs less.

    Only what is not done already is suggested. It is an estimate: a batch that does not fit is
    split (`Backbone.split_batches`).
    """
    if not backbone.device.startswith("cuda"):
        return
    rows, length = config.batch_size, min(config.max_length, backbone.max_positions)
    how = (backbone.model.config, backbone.dtype, rows * length)
    need = activation_bytes(*how, backbone.gradient_checkpointing)
    if need + WORKSPACE / 2 <= free_bytes(backbone.device):
        return
    less = [] if backbone.quantize else ["quantize='nf4'"]
    if not backbone.gradient_checkpointing:
        kept = activation_bytes(*how, checkpointing=True)
        less.append(f"gradient_checkpointing=True (about {kept / GIB:.1f} GiB)")
    less = less or ["a smaller max_length"]
    say_once(
        f"{backbone.name}: batches of {rows} texts of up to {length} tokens keep about "
        f"{need / GIB:.1f} GiB beside the weights, which may not fit on the GPU; "
        f"{' or '.join(less)} needs less"
    )


def checkpoint_layers(model: torch.nn.Module) -> None:
    """Gradient checkpointing: from now on a layer's activations are computed a second time in the
    backward pass instead of being kept.

    transformers' own switch works in training mode only, which would also switch dropout on.
    """
    lists = [name for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    for name in lists:
        if not any(name.startswith(f"{outer}.") for outer in lists):
            for layer in model.get_submodule(name):
                layer.forward = functools.partial(recomputed, layer.forward)


def recomputed(forward: Callable, *args, **kwargs):
    """``forward(...)``, of which the backward pass keeps the arguments alone."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
