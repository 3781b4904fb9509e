"""Frozen language models with one LoRA slot, from the hub, a local folder or a PyPI package."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import training, trunk
from .errors import SkillStackError, checked_number, checked_texts
from .files import kept_sha256, read_json
from .hardware import recomputed, say_once
from .mixed import Adapters, Layout, adapted, adding, layout, pack, short_name
from .progress import progress

_CACHED_TEXTS = 200_000  # token cache, about 100 MB at 160 tokens a text
_EMBEDDED_LAYERS = 7  # hidden states that `embed` pools, evenly spaced; all of a 6-layer model
_TOKENIZER = (  # what decides a tokenizer's ids, with or without `VOCABULARY`
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
VOCABULARY = ("vocab*", "*.model")  # of tokenizers that have no tokenizer.json
_CACHED_EMBEDDINGS = 1 << 30  # bytes of pooled hidden states kept (float16)


@dataclass(eq=False)
class Backbone:
    """A frozen transformer that turns texts into features under a classification head.

    Encoders give the normalized mean of the last hidden states times 16 (sentence encoders are
    trained to be mean-pooled); decoders give the last token's hidden state, as
    ``AutoModelForSequenceClassification`` does.

    >>> from skillstack_helpers import load_backbone
    >>> backbone = load_backbone("minilm", device="cpu")
    >>> backbone.kind, backbone.hidden_size
    ('encoder', 384)
    >>> backbone.embed(["a fine film", "a dull one"]).shape  # (texts, layers, hidden)
    (2, 7, 384)
    """

    name: str
    revision: str  # package version, hub commit, or SHA-256 of what a local folder answers with
    dtype: str  # float32, bfloat16 or float16
    quantize: str | None  # None or nf4
    device: str
    kind: str  # encoder or decoder
    model: torch.nn.Module  # a PeftModel once `attach` was called
    tokenizer: object
    folder: Path | None = None  # where its files lie
    gradient_checkpointing: bool = False
    trunk: trunk.Kept = field(default_factory=trunk.Kept, repr=False)  # states of the lower layers
    _lora: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _shape: tuple | None = field(default=None, repr=False)  # (r, alpha, first adapted layer)
    _tokens: dict = field(default_factory=dict, repr=False)
    _embedded: dict = field(default_factory=dict, repr=False)
    _lm: torch.nn.Module | None = field(default=None, repr=False)
    _bare: int = field(default=0, repr=False)  # how many `without_adapter` are open
    # Rows that memory holds at a time: with gradients and without, None where it holds all.
    _rows: dict = field(default_factory=lambda: {True: None, False: None}, repr=False)

    @property
    def hidden_size(self) -> int:
        """Width of the features, which is that of the hidden states, but below OPT-350m's
        projection."""
        config = self.model.config
        return getattr(config, "word_embed_proj_dim", config.hidden_size)

    @functools.cached_property
    def max_positions(self) -> int:
        """The most tokens of a text that the model has positions for."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "padding_idx"):
                # RoBERTa counts from the padding token's id on.
                positions -= 0 if module.padding_idx is None else module.padding_idx + 1
        return positions

    def identity(self) -> dict:
        """What must agree between a saved stack and the backbone it is loaded on, see
        `differs_from`; with the content where the revision is not made of it."""
        content = {} if self.content in (None, self.revision) else {"content": self.content}
        return {
            "name": self.name,
            "revision": self.revision,
            "dtype": self.dtype,
            "quantization": self.quantize,
            "kind": self.kind,
            **content,
        }

    def differs_from(self, identity: Mapping) -> str | None:
        """The first thing in which a saved stack's backbone is another one, None if there is none.

        The content decides, not where it lies: a folder that was moved, or the same files from the
        hub, are the same model.
        """
        if not self._holds(identity):
            local = self.revision.startswith("sha256:")
            return "revision" if local or self.name == identity.get("name") else "name"
        ours = self.identity()
        keys = ("dtype", "quantization", "kind")
        return next((key for key in keys if identity.get(key) != ours[key]), None)

    def _holds(self, identity: Mapping) -> bool:
        """Whether the model is the one of that identity."""
        revision = identity.get("revision")
        if revision == self.revision:
            return True
        if self.content and self.content in (revision, identity.get("content")):
            return True
        # Version 0.1 left the tokenizer out of a folder's revision.
        before = str(revision).startswith("sha256:") and self.folder is not None
        return before and revision == self._revision_of_0_1

    @functools.cached_property
    def content(self) -> str | None:
        """SHA-256 of the files that answers depend on; None where they are not known."""
        if self.revision.startswith("sha256:"):  # of a local folder, as it was when it was loaded
            return self.revision
        return None if self.folder is None else folder_revision(self.folder)

    @functools.cached_property
    def _revision_of_0_1(self) -> str:
        return folder_revision(self.folder, weights_only=True)

    # -------------------------------------------------------------- text in, features out

    def fits(self, max_length: int) -> int:
        """The most tokens that are read of a text: `max_length`, or all that the model has
        positions for where they are fewer, which is said once."""
        checked_number(max_length, "max_length", 1, whole=True)
        if max_length > self.max_positions:
            say_once(
                f"{self.name} has {self.max_positions} positions: texts are cut there, not at "
                f"max_length={max_length}"
            )
        return min(max_length, self.max_positions)

    def encode(
        self, texts: Sequence[str], max_length: int, middle: bool = False
    ) -> list[np.ndarray]:
        """Token ids, int32 (length,) per text; a text seen before is not tokenized again.

        A text of more than `max_length` tokens loses its end; with `middle` it loses its middle,
        and has no special tokens. No text is longer than what the model `fits`. Raises
        `SkillStackError` for what is no string.
        """
        max_length = self.fits(max_length)
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

    def features(
        self, inputs: Tensor, attention_mask: Tensor, lora: Adapters | None = None
    ) -> Tensor:
        """Pooled float32 features (batch, hidden) of right-padded int64 ids (batch, length), or of
        a trunk's states (batch, length, hidden). lora: adapters to use in place of the slot's."""
        hidden = self.last_hidden(inputs, attention_mask, lora)
        if self.kind == "encoder":
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (batch, length, 1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return 16 * torch.nn.functional.normalize(mean.float(), dim=-1)
        last = attention_mask.sum(1) - 1  # (batch,)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()

    def last_hidden(
        self, inputs: Tensor, attention_mask: Tensor, lora: Adapters | None = None
    ) -> Tensor:
        """Last hidden states (batch, length, hidden) of int64 ids (batch, length), or of what the
        layers from the first adapted one on read (batch, length, hidden).

        lora: adapters of this batch, see `mixed`; None: the slot's. A batch that memory does not
        hold is read in parts; with gradients, a part's activations are computed again in the
        backward pass. Whatever is computed from the states stays the same.
        """
        first = self.first_adapted_layer if lora is None else lora.first

        def read(inputs: Tensor, mask: Tensor, *owners: Tensor) -> Tensor:
            with contextlib.ExitStack() as inside:
                how, above = {}, inputs.is_floating_point()
                if lora is not None:
                    inside.enter_context(self.without_adapter())
                    inside.enter_context(adapted(lora, *owners))
                elif above and not torch.is_grad_enabled():
                    # What PEFT's layers compute, in place; 1.1 times as fast without gradients.
                    factors = self._slot_factors()
                    inside.enter_context(self.without_adapter())
                    inside.enter_context(adding(self._linear(factors), factors.__getitem__))
                if above:
                    inside.enter_context(trunk.starting_from(self.layers, first, inputs))
                    inputs = torch.full_like(mask, self.pad_id)  # embedded, and not looked at
                    how = self._without_cache
                read = self.model(input_ids=inputs, attention_mask=mask, **how)
                return read.last_hidden_state

        parts = [] if lora is None else [lora.owners]
        return self._in_parts(read, inputs, attention_mask, *parts)

    def _in_parts(self, read: Callable, *tensors: Tensor) -> Tensor:
        """``read(*tensors)``, tensors (batch, ...), in as many parts as memory asks for."""
        while True:
            rows, size = self._rows[torch.is_grad_enabled()], len(tensors[0])
            try:
                if rows is None or rows >= size:
                    return read(*tensors)
                parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
                return torch.cat([recomputed(read, *part) for part in parts])
            except torch.cuda.OutOfMemoryError:
                pass  # the next try waits until the error, which holds tensors, is gone
            self.split_batches(size)

    @property
    def mixes(self) -> bool:
        """Whether rows of a batch may have different adapters. DeBERTa's linear layers also read
        the relative positions, which belong to no row."""
        return not self.model.config.model_type.startswith("deberta")

    @property
    def _without_cache(self) -> dict:
        """Arguments of a call that keeps no keys and values of the layers it runs."""
        return {"use_cache": False} if self.kind == "decoder" else {}

    def split_batches(self, size: int) -> None:
        """Halve the parts in which batches of that many rows are read, and say so once.

        Raises `SkillStackError` where a part is one row already.
        """
        kind = torch.is_grad_enabled()
        rows = min(self._rows[kind] or size, size) // 2
        if rows < 1:
            raise SkillStackError(
                f"{self.name}: memory does not hold one text: quantize='nf4', "
                "gradient_checkpointing=True or a smaller max_length"
            )
        self._rows[kind] = rows
        what = "training" if kind else "answering"
        say_once(f"{self.name}: out of memory; batches in {what} are read {rows} texts at a time")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -------------------------------------------------------------- the trunk

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The transformer's layers, in order."""
        return trunk.layer_list(self.model)

    def layer_number(self, first: int | float | None) -> int | None:
        """`TrainingConfig.first_adapted_layer` as the number of one of this model's layers."""
        return trunk.layer_number(self.model, first)

    @property
    def first_adapted_layer(self) -> int | None:
        """Where the slot's adapter begins; None: at the first layer, so that nothing is shared."""
        return None if self._shape is None else self._shape[2]

    def inputs(
        self, texts: Sequence[str], max_length: int, together: bool = False
    ) -> list[np.ndarray] | list[Tensor]:
        """What the slot's layers read of each text: token ids (length,), or, above a trunk, its
        states (length, hidden), for which a text is run once. together: see `trunk.Kept`."""
        return self.states(self.encode(texts, max_length), self.first_adapted_layer, together)

    def states(
        self, rows: Sequence[np.ndarray], first: int | None, together: bool = False
    ) -> list[np.ndarray] | list[Tensor]:
        """What layer `first` reads of each row of token ids, (length, hidden); the rows themselves
        where that is None, or more than is kept."""
        if first is None or not len(rows):
            return list(rows)
        states, _ = self._run_trunk(rows, first, together)
        return list(rows) if states is None else states

    def pooled(self, texts: Sequence[str], max_length: int, first: int) -> np.ndarray:
        """Mean over tokens of what the layers 0 to `first` of the frozen model read, float32
        (n, first + 1, hidden). What `inputs` needs of the texts is kept on the way."""
        return self._run_trunk(self.encode(texts, max_length), first, False)[1]

    def _run_trunk(self, rows, first: int, together: bool) -> tuple[list | None, np.ndarray]:
        layers = self.layers

        def read(ids: Tensor, mask: Tensor) -> Tensor:
            arguments = {"input_ids": ids, "attention_mask": mask} | self._without_cache
            read = trunk.run_lower(self.model, layers, first, arguments)
            return torch.stack(read, 1)  # (batch, first + 1, length, hidden)

        @torch.inference_mode()
        def run(batch: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray]:
            ids, mask = training.pad(batch, self.pad_id, self.device)
            states = self._in_parts(read, ids, mask)
            weight = mask[:, None, :, None].float()
            pooled = (states.float() * weight).sum(2) / weight.sum(2)
            return states[:, -1], pooled.cpu().numpy()

        with self.without_adapter():
            return self.trunk.of(rows, first, run, training.pass_size(self.device), together)

    def embed(self, texts: Sequence[str], max_length: int = 160) -> np.ndarray:
        """Mean-pooled hidden states of the frozen model, float32 (n, layers, hidden).

        The adapter in the slot is switched off. Layers are evenly spaced from the token embeddings
        (first) to the output (last), seven at most; a narrower output (OPT-350m) ends in zeros. A
        text embedded before is not embedded again; what is kept, and returned, has float16
        precision.
        """
        texts, max_length = checked_texts(texts), self.fits(max_length)
        new = [t for t in dict.fromkeys(texts) if (t, max_length) not in self._embedded]
        held = sum(row.nbytes for row in itertools.islice(self._embedded.values(), 1))
        if held * (len(self._embedded) + len(new)) > _CACHED_EMBEDDINGS:
            self._embedded.clear()
            new = list(dict.fromkeys(texts))
        if new:
            for text, row in zip(new, self._pooled(new, max_length), strict=True):
                self._embedded[text, max_length] = row
        return np.array([self._embedded[text, max_length] for text in texts], dtype=np.float32)

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
                    out = np.zeros((len(ids), len(layers), pooled[0].shape[1]), dtype=np.float16)
                for i, layer in enumerate(pooled):
                    out[batch, i, : layer.shape[1]] = layer.cpu().numpy()
        return out

    def forget(self) -> None:
        """Empty the caches of tokens, states and embeddings, for honest timings."""
        self._tokens.clear()
        self._embedded.clear()
        self.trunk.clear()

    @contextlib.contextmanager
    def afresh(self) -> Iterator[None]:
        """A context in which nothing is known of any text, as after `forget`; what was known before
        is known again afterwards."""
        known = self._tokens, self._embedded, self.trunk
        self._tokens, self._embedded = {}, {}
        self.trunk = trunk.Kept(self.trunk.most_bytes, self.trunk.folder)
        try:
            yield
        finally:
            self._tokens, self._embedded, self.trunk = known

    # -------------------------------------------------------------- the LoRA slot

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """A context in which the model is the frozen backbone alone, whatever the slot holds and
        even if the slot is made inside."""
        self._bare += 1
        if self._bare == 1:
            self._switch()
        try:
            yield
        finally:
            self._bare -= 1
            if self._bare == 0:
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
    def attach(self, r: int, alpha: int, first: int | None = None) -> None:
        """Give the backbone one LoRA slot of that shape on all linear layers (encoders' poolers,
        which features do not come from, excluded), or on those of layer `first` and all above. One
        slot serves every frame: frames are copied in and out of it."""
        if self._shape == (r, alpha, first):
            return
        from peft import LoraConfig, PeftModel, get_peft_model

        base = self.model.unload() if isinstance(self.model, PeftModel) else self.model
        linear = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)]
        where = {"target_modules": "all-linear"}
        where["exclude_modules"] = [name for name in linear if "pooler" in name] or None
        if first is not None:
            where = self._upper(base, first)
        config = LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=0.0, task_type="FEATURE_EXTRACTION", **where
        )
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5 by a deprecated name
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # of GPT-2: it sets it right
            self.model = get_peft_model(base, config)
        self.model.eval()
        named = self.model.named_parameters()
        self._lora = {n.replace(".default.", "."): p for n, p in named if ".lora_" in n}
        self._shape = (r, alpha, first)
        for parameter in self._lora.values():
            parameter.requires_grad_(False)  # `training.trainable` alone makes it learn
        self._switch()

    @staticmethod
    def _upper(base: torch.nn.Module, first: int) -> dict:
        """The linear layers from layer `first` on, as `LoraConfig` names them."""
        from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

        layers = trunk.layer_list(base)
        names = {
            name.rsplit(".", 1)[-1]
            for layer in layers[first:]
            for name, module in layer.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D))
        }
        inside = next(name for name, module in base.named_modules() if module is layers)
        return {
            "target_modules": sorted(names),
            "layers_to_transform": list(range(first, len(layers))),
            "layers_pattern": inside.rsplit(".", 1)[-1],
        }

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
        self._check_fit(weights, where, self._shape[0])
        for name, parameter in self._lora.items():
            parameter.copy_(weights[name])

    def _check_fit(self, weights: Mapping[str, Tensor], where: str, rank: int) -> None:
        """Raise `SkillStackError` unless an adapter is one of that rank for the slot's layers."""
        if weights.keys() != self._lora.keys():
            odd = sorted(weights.keys() ^ self._lora.keys())[0]
            raise SkillStackError(f"{where}: adapter does not fit the backbone ({odd})")
        for name, parameter in self._lora.items():
            first, second = parameter.shape
            needed = (rank, second) if ".lora_A." in name else (first, rank)
            if weights[name].shape != needed:
                raise SkillStackError(
                    f"{where}: {name} is {tuple(weights[name].shape)}, the backbone needs {needed}"
                )

    def pack(self, weights: Mapping[str, Tensor], slot: tuple, rank: int, where: str) -> Tensor:
        """An adapter of that slot's shape as `adapters` takes it, padded to `rank`, on the device.

        where: names it in the error if it does not fit the backbone.
        """
        r, alpha, first = slot
        if self._shape is None or self.first_adapted_layer != first:
            self.attach(r, alpha, first)
        self._check_fit(weights, where, r)
        return pack(weights, alpha / r, self._layout(rank)).to(self.device)

    def adapters(self, packed: Sequence[Tensor], owners: Tensor, rank: int) -> Adapters:
        """Adapters of `pack`, and which of them each row of a batch has, for `features`."""
        how = self._layout(rank)
        return Adapters(how, self.first_adapted_layer, self._linear(how.places), packed, owners)

    def _layout(self, rank: int) -> Layout:
        return layout(self._lora, rank)

    def _linear(self, names: Iterable[str]) -> dict[str, torch.nn.Module]:
        """The bare linear layers of these names."""
        bare = getattr(self.model, "get_base_model", lambda: self.model)()
        layers = {name: bare.get_submodule(name) for name in names}
        return {name: getattr(layer, "base_layer", layer) for name, layer in layers.items()}

    def _slot_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The slot's live adapter, as `mixed.adding` takes it."""
        r, alpha, _ = self._shape
        pairs = {}
        for name, parameter in self._lora.items():
            module, _, which = short_name(name).rpartition(".lora_")
            part = parameter if which.startswith("A") else parameter * (alpha / r)
            pairs.setdefault(module, []).append(part[None])
        return {module: (a, b) for module, (a, b) in pairs.items()}

    def read_lora(self) -> dict[str, Tensor]:
        """A float32 copy of the slot on the CPU."""
        return {
            n: p.detach().to("cpu", torch.float32, copy=True).contiguous()
            for n, p in self._lora.items()
        }

    # -------------------------------------------------------------- as plain PEFT sees it

    def auto_class(self, prompt: str | None = None) -> str:
        """The class of transformers with which plain PEFT opens a frame: with a head of its own
        where the frame writes, or is a decoder's and transformers has a classifier for it."""
        from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

        if prompt is not None:
            return "AutoModelForCausalLM"
        classifies = type(self.model.config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        decoder = self.kind == "decoder" and classifies
        return "AutoModelForSequenceClassification" if decoder else "AutoModel"

    @functools.cached_property
    def part(self) -> str:
        """Where the model lies in the one that its folder holds, which may also see: a prefix."""
        ours = self.model.config.model_type
        saved = read_json(self.folder / "config.json", ("model_type",)) if self.folder else {}
        return "" if saved.get("model_type", ours) == ours else "language_model."

    def saved_prefix(self, prompt: str | None = None) -> str:
        """Prefix of adapter names in a frame's folder, as plain PEFT wants them there.

        With a head the bare model sits one level deeper (``model.`` for Llama, ``transformer.`` for
        GPT-2).
        """
        bare = self.auto_class(prompt) == "AutoModel"
        name = "" if bare else f"{self.model.get_base_model().base_model_prefix}."
        return f"base_model.model.{name}{self.part}"


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are read from, whether they are there or not."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    names = read_json(index, ("weight_map",))["weight_map"].values()
    return sorted({folder / str(name) for name in names})


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that a tokenizer is read from."""
    parts = () if (folder / "tokenizer.json").exists() else (*VOCABULARY, "merges.txt", "bpe.codes")
    return sorted({file for pattern in (*_TOKENIZER, *parts) for file in folder.glob(pattern)})


def folder_revision(folder: Path, weights_only: bool = False) -> str:
    """SHA-256 of what answers depend on: config, weights and tokenizer, nothing beside them."""
    files = {folder / "config.json"}
    if weights_only:
        files |= set(folder.glob("*.safetensors"))
    else:
        files |= {*weight_files(folder), *tokenizer_files(folder)}
    digests = "".join(kept_sha256(file) for file in sorted(files))
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()[:16]}"


def _without_middle(ids: list[int], room: int) -> list[int]:
    if len(ids) <= room:
        return ids
    return [*ids[: room - room // 2], *ids[len(ids) - room // 2 :]]
