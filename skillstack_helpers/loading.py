"""`load_backbone`: where a model comes from (the hub, a folder, a PyPI package), in which precision
it is loaded, and what is refused in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

import torch

from . import packaged
from .backbones import VOCABULARY, Backbone, folder_revision, tokenizer_files, weight_files
from .errors import SkillStackError, checked_path, did_you_mean, first_line, shown
from .files import hub_reachable, read_json
from .hardware import DTYPES, checkpoint_layers, pick_device, place, suitable_dtype

AUTO_GPU = "meta-llama/Llama-3.2-1B-Instruct"
_FETCHED = (  # of a hub model; never pickled weights, nor a second copy in another format
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "*.safetensors.index.json",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "bpe.codes",
    "*.model",
)
# Of a model that also sees, the part that reads is loaded alone.
_LANGUAGE_MODEL = {r"^(model\.)?language_model\.": ""}
# Layers that are no plain linear maps under a mask: LoRA would miss them, silently.
_EXPERTS = re.compile(r"^(moe_)?(num|n)(_local|_routed)?_experts$")
_RECURRENT = re.compile(r"mamba|state_size|time_step|lru_width")
_ODD_TYPES = {
    "xlnet": "permutation",
    "rwkv": "recurrent",
    "xlstm": "recurrent",
    "ibert": "quantized-integer",
    "squeezebert": "convolutional",
}
# Their mask does not reach all layers: a text's features change with the padding behind it.
_READ_PADDING = ("convbert", "fnet", "funnel", "mobilebert", "nystromformer")


def load_backbone(
    name: str,
    dtype: str = "auto",
    quantize: str | None = None,
    device: str = "auto",
    gradient_checkpointing: bool = False,
) -> Backbone:
    """Load a frozen backbone.

    name: ``minilm``, ``smollm2-135m``, ``mpnet``, ``gemma3-270m`` (fetched on first use), a hub id,
    a local folder, or ``auto`` (Llama-3.2-1B where there is CUDA and a Hugging Face token that may
    open it, else minilm; one line says why).
    dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (`hardware.suitable_dtype`: float32,
    but for larger decoders on CUDA what the GPU is fast in).
    quantize: ``None`` or ``"nf4"`` (bitsandbytes; CUDA and CPU).
    gradient_checkpointing: train in less memory, in about a third more time, with the same result.
    A model that is larger than one GPU is spread over those there are.
    Raises `SkillStackError` in one line for an unknown name, a gated model, a missing network, a
    GPU that cannot be used or a model that does not fit.
    """
    name, device = _given(name), pick_device(device)
    if not isinstance(gradient_checkpointing, bool):
        raise SkillStackError(
            f"gradient_checkpointing must be True or False, got {shown(gradient_checkpointing)}"
        )
    for value, known in ((dtype, ("auto", *DTYPES)), (quantize, (None, "nf4"))):
        if value not in known:
            raise SkillStackError(f"{shown(value)} is not one of {', '.join(map(str, known))}")
    _use_platform_token()
    if name == "auto":
        name, why = _choose(device)
        print(f"backbone: {name} (model='auto': {why})")
    path, revision = _locate(name)
    loaded = _load(name, path, dtype, quantize, device)
    backbone = Backbone(name, revision, *loaded, path, gradient_checkpointing)
    if gradient_checkpointing:
        checkpoint_layers(backbone.model)
    return backbone


def identify(
    name: str, dtype: str = "auto", quantize: str | None = None, device: str = "auto"
) -> dict:
    """What `load_backbone` would load, without loading it: name, revision, dtype, quantization and
    the kind of device. Files that are not here are fetched. Raises as it does."""
    name, device = _given(name), pick_device(device)
    _use_platform_token()
    name = _choose(device)[0] if name == "auto" else name
    path, revision = _locate(name)
    if dtype == "auto":
        config, kind = _read_config(name, path)
        dtype = suitable_dtype(device, kind, config)
    found = {"name": name, "revision": revision, "dtype": dtype, "quantization": quantize}
    return found | {"device": device.partition(":")[0]}


def _given(name: str | os.PathLike) -> str:
    """The name or folder of a model, or an error for what is neither."""
    checked_path(name, "name")
    return os.fspath(name)


def _choose(device: str) -> tuple[str, str]:
    """What ``auto`` stands for here, and why."""
    from huggingface_hub import get_token

    if not device.startswith("cuda"):
        return "minilm", "no CUDA GPU"
    if not get_token():
        return "minilm", f"no Hugging Face token, which {AUTO_GPU} needs: set HF_TOKEN"
    try:
        _hub_config(AUTO_GPU)
    except SkillStackError as error:
        return "minilm", str(error)
    return AUTO_GPU, "a CUDA GPU, and a token that may open it"


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


def _locate(name: str) -> tuple[Path, str]:
    """The folder with the model's files, and its revision."""
    if name in packaged.NAMES:
        return packaged.locate(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise SkillStackError(f"{folder} holds no model: config.json is missing")
        _read_config(name, folder)
        _check_files(folder)
        return folder, folder_revision(folder)
    if name.startswith((".", "/", "~")):
        raise SkillStackError(f"model folder {name} does not exist")
    folder = _hub_folder(name)
    return folder, folder.name


def _hub_config(name: str) -> Path:
    """A hub model's config.json, the first file to be fetched: it tells whether the model can be
    used and may be opened. A copy in the local cache does where the hub cannot be reached."""
    from huggingface_hub import hf_hub_download

    offline = hub_reachable()
    try:
        return Path(hf_hub_download(name, "config.json", local_files_only=bool(offline)))
    except Exception as error:
        raise SkillStackError(_explain(name, error, offline)) from None


def _hub_folder(name: str) -> Path:
    """The folder in the local cache with a hub model's files; its name is the commit."""
    from huggingface_hub import snapshot_download

    folder = _hub_config(name).parent
    _read_config(name, folder)
    offline = hub_reachable()
    if not offline:
        try:
            snapshot_download(name, revision=folder.name, allow_patterns=list(_FETCHED))
        except Exception as error:
            raise SkillStackError(_explain(name, error)) from None
    try:
        _check_files(folder)
    except SkillStackError as error:
        raise SkillStackError(f"{error}; {offline}" if offline else str(error)) from None
    return folder


def _check_files(folder: Path) -> None:
    """Raise for files of a model that are missing, cut short or stand-ins, before any is loaded."""
    from safetensors import SafetensorError, safe_open

    adapter = folder / "adapter_config.json"
    if adapter.exists():  # transformers would put it into the weights, or fetch what it names
        raise SkillStackError(
            f"{adapter}: an adapter lies beside the model and would be loaded into it: move it away"
        )
    weights, tokenizer = weight_files(folder), tokenizer_files(folder)
    for file in filter(Path.exists, (*tokenizer, *weights)):
        with file.open("rb") as stream:
            if stream.read(23) == b"version https://git-lfs":
                raise SkillStackError(f"{file} is a git-lfs pointer: run `git lfs pull` there")
    missing = [file for file in weights if not file.exists()]
    if missing and any(folder.rglob("*.incomplete")):
        raise SkillStackError(f"{missing[0]} was not fetched to its end: download it again")
    if missing and len(weights) > 1:
        count = f"{len(missing)} of {len(weights)} files with weights are missing"
        raise SkillStackError(f"{count} (first {missing[0]}): download them again")
    if missing:
        raise SkillStackError(
            f"{missing[0]} is missing; weights in other formats (pickled ones may run code) are "
            "not opened: convert them with save_pretrained where you trust them"
        )
    for file in weights:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            cut = f"{file} is cut short or damaged ({first_line(error)})"
            raise SkillStackError(f"{cut}: download it again") from None
    lacks = [folder / "tokenizer.json"]
    if any(file.match(part) for file in tokenizer for part in ("tokenizer.json", *VOCABULARY)):
        lacks = [folder / "merges.txt"] if folder / "vocab.json" in tokenizer else []
    if lacks and not lacks[0].exists():
        raise SkillStackError(f"{lacks[0]} is missing: copy all tokenizer files of the model there")


def _load(name, path, dtype, quantize, device):
    from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig
    from transformers import logging as transformers_logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # chatter about optional kernels
    config, kind = _read_config(name, path)
    if dtype == "auto":
        dtype = suitable_dtype(device, kind, config)
    extra = {"device_map": place(name, config, dtype, quantize, device)}
    if quantize == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        extra["device_map"] = extra["device_map"] or {"": device}
    extra |= {"use_safetensors": True, "trust_remote_code": False}
    extra |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # see `_check_loaded`
    extra |= {"config": config, "key_mapping": _LANGUAGE_MODEL}
    transformers_logging.disable_progress_bar()
    chatter = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would say of the weights is checked here
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        _check_tokenizer(tokenizer, config, path)
        model, report = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), **extra)
    except SkillStackError:
        raise
    except Exception as error:  # tokenizers, safetensors and configs raise anything
        for file in tokenizer_files(path):
            if file.suffix == ".json":
                read_json(file)
        raise SkillStackError(_explain(name, error)) from None
    finally:
        transformers_logging.set_verbosity(chatter)
    _check_loaded(path, model, report)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if kind == "decoder":
        model.config.use_cache = False  # no generation here: key-value caches would only cost
    if extra["device_map"] is None:
        model.to(device)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights on the CPU at the first evaluation, for a kernel that
        # has no backward pass: every later training step would silently lose its gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.eval().requires_grad_(False)
    return dtype, quantize, device, kind, model, tokenizer


def _read_config(name: str, folder: Path):
    """The config in a folder (of a model that also sees, of the part that reads) and the kind of
    model it tells, which is refused if it cannot be a backbone."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    fields = read_json(folder / "config.json")
    model_type = fields.get("model_type")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in fields:
            raise SkillStackError(
                f"model {name} brings code of its own (auto_map in config.json), which is not run: "
                "choose one whose architecture transformers has"
            )
        raise SkillStackError(
            f"model {name}: transformers {__version__} does not know the architecture "
            f"{model_type!r} that config.json names; a newer transformers may"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each config checks itself in its own way
        raise SkillStackError(f"{folder / 'config.json'}: {first_line(error)}") from None
    return config.get_text_config(), _kind(config, name)


def _kind(config, name: str) -> str:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind, odd = None, _ODD_TYPES.get(config.model_type)
    if config.is_encoder_decoder:
        pass
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        kind = "encoder"
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "decoder"
    if kind is None:
        raise SkillStackError(
            f"model {name}: {config.model_type} is neither encoder nor decoder only"
        )
    fields = config.get_text_config().to_dict()
    fields |= fields.get("ffn_config") or {}  # DBRX
    if any(_EXPERTS.match(key) and (fields[key] or 0) > 1 for key in fields):
        odd = "mixture-of-experts"
    elif any(map(_RECURRENT.search, fields)):
        odd = "state-space"
    if odd:
        raise SkillStackError(
            f"model {name}: {config.model_type} is a {odd} model, in which a frame would not reach "
            "all layers: choose a dense encoder or decoder"
        )
    if config.model_type in _READ_PADDING:
        raise SkillStackError(
            f"model {name}: {config.model_type} reads padding, so that an answer would depend on "
            "the texts beside it: choose another encoder"
        )
    return kind


def _check_tokenizer(tokenizer, config, folder: Path) -> None:
    """Raise unless the tokenizer can be this model's; give it a pad token if it has none.

    Padding is masked, so that any token will do.
    """
    rows, known = getattr(config.get_text_config(), "vocab_size", None), len(tokenizer)
    if rows and (tokenizer.vocab_size > rows or 4 * known < rows):
        raise SkillStackError(
            f"{folder}: the tokenizer has {known} tokens, the model {rows} (vocab_size in "
            "config.json): copy the tokenizer's files from where the weights are from"
        )
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    usable = [i for i in candidates if i is not None and i < (rows or i + 1)]
    if not usable:
        raise SkillStackError(
            f"{folder / 'tokenizer_config.json'} names no pad, end or unknown token that the model "
            'has: add one, such as "pad_token"'
        )
    if usable[0] != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0])


def _check_loaded(folder: Path, model, report: dict) -> None:
    """Raise if weights and config are not of one model, where transformers makes up what is missing
    and drops what is too much."""
    # A pooler is not read; and models saved with another head have none.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    numberless = {re.sub(r"\d+", "#", key) for key in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    left = [re.sub(r"\d+", "#", key).removeprefix(prefix) for key in report["unexpected_keys"]]
    odd = sorted(key for key, *_ in report["mismatched_keys"])
    if odd:
        what = f"{len(odd)} weights have another shape than config.json says (first {odd[0]})"
    elif missing:
        what = f"{len(missing)} weights that config.json asks for are missing (first {missing[0]})"
    elif numberless & set(left):
        what = "the weights have more layers than config.json says"
    else:
        return
    raise SkillStackError(f"{folder}: {what}: take both from the same model")


def _explain(name: str, error: Exception, offline: str | None = None) -> str:
    """Why a model cannot be opened, in one line. A gated one is refused for four reasons, which the
    hub tells apart by status, code and message."""
    from huggingface_hub.constants import ENDPOINT

    page, settings = f"{ENDPOINT}/{name}", f"{ENDPOINT}/settings/tokens"
    instead = "or take an open model such as minilm"
    status, code, said = _answer(error)
    if offline:
        reason = f"it is not in the local cache, and {offline}"
    elif status == 403 and "fine-grained" in said:
        return (
            f"model {name} is gated ({page}) and your Hugging Face token may not read such models: "
            f"allow it public gated repositories in {settings}, {instead}"
        )
    elif status == 401 and "Invalid credentials" in said:
        return (
            f"model {name} ({page}): the hub does not take your Hugging Face token (mistyped or "
            f"expired): make another in {settings} and set HF_TOKEN, or unset it for open models"
        )
    elif code == "GatedRepo" and "awaiting" in said:
        return f"model {name} is gated and your request awaits review ({page}): wait, {instead}"
    elif code == "GatedRepo" and "rejected" in said:
        return f"model {name} is gated and your request was rejected ({page}): take another model"
    elif code == "GatedRepo":
        how = " and set HF_TOKEN" if status == 401 else " with the account of your HF_TOKEN"
        return f"model {name} is gated: accept its licence at {page}{how}, {instead}"
    elif code == "EntryNotFound":
        reason = f"it has no config.json ({page})"
    elif status in (401, 404):
        reason = f"{page} is not there, or is private and not for your token"
    else:
        reason = f"the hub answers {status} {said}".strip() if status else first_line(error)
    meant = "" if "/" in name else did_you_mean(name, packaged.NAMES)
    return f"cannot load model {name!r}{meant}: {reason}"


def _answer(error: BaseException | None) -> tuple[int, str, str]:
    """Status, code and message of the hub's refusal that is behind an error; 0 if there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            headers = response.headers
            code, said = (headers.get(f"X-Error-{part}") or "" for part in ("Code", "Message"))
            return response.status_code, code, said
        error = error.__cause__ or error.__context__
    return 0, "", ""
