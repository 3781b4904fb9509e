"""BitStack on a tiny local model: what is locked, and that nothing moves it."""

import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import warnings
import weakref
from collections import UserDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from skillstack_helpers import SkillStackError
from skillstack_helpers import bitstack as module
from skillstack_helpers.bitstack import BitStack, kth_largest, pack, unpack, zero_locked
from skillstack_helpers.files import NO_SEAL, sealed


class Tiny(torch.nn.Module):
    """Body (square and not), norm, embedding and head, with a loss when labels are given."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.wte = torch.nn.Embedding(7, 5)
        self.body = torch.nn.Linear(5, 5)
        self.up = torch.nn.Linear(5, 3)
        self.ln_f = torch.nn.LayerNorm(3)
        self.score = torch.nn.Linear(3, 2)

    def forward(self, ids, labels=None):
        x = self.ln_f(self.up(torch.tanh(self.body(self.wte(ids).mean(1)))))
        logits = self.score(x)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def batches(n=4, seed=0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        batch = {"ids": torch.randint(7, (6, 4), generator=generator)}
        if labels:
            batch["labels"] = torch.randint(2, (6,), generator=generator)
        yield batch


def train(model, optimizer, n=6, seed=1, accumulate=1, clip=None):
    for i, batch in enumerate(batches(n, seed)):
        model(**batch)["loss"].backward()
        if (i + 1) % accumulate == 0:
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()


def locked_weights(bitstack):
    parameters = dict(bitstack.model.named_parameters())
    return {n: parameters[n].detach()[mask].clone() for n, mask in bitstack.masks.items()}


def assert_kept(bitstack, before):
    after = locked_weights(bitstack)
    assert before and all(torch.equal(before[n], after[n][: len(before[n])]) for n in before)


# ------------------------------------------------------------------ bits and thresholds


@given(st.lists(st.booleans(), max_size=70))
def test_packing_is_reversible_and_takes_a_bit_each(values):
    mask = torch.tensor(values, dtype=torch.bool)
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-len(values) // 8)
    assert unpack(bits, mask.shape).tolist() == values


def test_packing_keeps_the_shape_and_the_order():
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
    assert pack(mask).tolist() == [1, 3]  # bits 0; 8 and 9
    assert torch.equal(unpack(pack(mask), mask.shape), mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (8,), (1,), (2, 3, 4)])
def test_zeroing_is_masked_fill_in_any_layout(dtype, shape):
    torch.manual_seed(0)
    values, mask = torch.randn(shape).to(dtype), torch.rand(shape) < 0.5
    turned = torch.randn(shape[::-1]).to(dtype).T if len(shape) == 2 else values.clone()
    for tensor in (values, turned):
        expected = tensor.masked_fill(mask, 0.0)
        zero_locked(tensor, pack(mask))
        assert torch.equal(tensor, expected)


floats = st.floats(0, 2.0**100, width=32)


@given(st.lists(st.lists(floats, max_size=30), min_size=1, max_size=4), st.data())
def test_threshold_is_that_of_all_values_sorted(lists, data):
    values = sorted((v for one in lists for v in one), reverse=True)
    if values:
        k = data.draw(st.integers(1, len(values)))
        tensors = [torch.tensor(one, dtype=torch.float32) for one in lists]
        assert kth_largest(tensors, k) == np.float32(values[k - 1])


# ------------------------------------------------------------------ what is locked


def test_the_top_share_of_the_gradients_is_locked():
    model = Tiny()
    named = dict(model.named_parameters())
    eligible = ["body.weight", "body.bias", "up.weight", "up.bias"]
    sums = {name: torch.zeros_like(named[name]) for name in eligible}
    for batch in batches(3):
        model.zero_grad()
        model(**batch)["loss"].backward()
        for name in eligible:
            sums[name] += named[name].grad.abs()
    model.zero_grad()
    bitstack = BitStack(model, sparsity=0.25)
    stats = bitstack.update(batches(9), n_batches=3)
    total = sum(s.numel() for s in sums.values())
    assert stats["eligible"] == total == 25 + 5 + 15 + 3
    assert stats["locked"] == round(0.25 * total) == 12
    order = torch.cat([s.flatten() for s in sums.values()]).sort(descending=True).values
    for name, mask in bitstack.masks.items():
        assert mask.dtype == torch.bool and mask.shape == named[name].shape
        assert torch.equal(mask, sums[name] >= order[11])
    assert stats["locked_pct"] == pytest.approx(100 * 12 / stats["total"])
    assert stats["frozen_pct"] == 25 and stats["free"] == total - 12
    assert all(p.grad is None for p in model.parameters())


SIZES = dict(
    vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
)
LLAMA = SIZES | dict(intermediate_size=24, num_key_value_heads=1, head_dim=8)
GPT = dict(vocab_size=60, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
ARCHITECTURES = {  # config class -> settings
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "DistilBert": dict(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "Albert": SIZES | dict(embedding_size=8, intermediate_size=24),
    "Electra": SIZES | dict(embedding_size=8, intermediate_size=24),
    "MPNet": SIZES,
    "DebertaV2": SIZES | dict(relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "ModernBert": SIZES | dict(intermediate_size=24),
    "GPT2": GPT,
    "GPTNeo": dict(vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, pad_token_id=0)
    | dict(attention_types=[[["global"], 2]]),
    "GPTNeoX": SIZES | dict(intermediate_size=24),
    "GPTJ": GPT | dict(rotary_dim=4),
    "OPT": SIZES | dict(ffn_dim=24, word_embed_proj_dim=8),
    "Bloom": dict(vocab_size=60, hidden_size=16, n_layer=2, n_head=2, pad_token_id=0),
    "Falcon": SIZES,
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": LLAMA,
    "Gemma2": LLAMA,
    "Phi": LLAMA,
    "Phi3": LLAMA,
    "StableLm": LLAMA,
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_in_transformers_models_only_linear_layers_of_the_body_are_eligible(kind):
    """Whatever the names: neither embeddings nor norms nor poolers nor heads."""
    import transformers
    from transformers.pytorch_utils import Conv1D

    config = getattr(transformers, f"{kind}Config")(**ARCHITECTURES[kind])
    autos = [transformers.AutoModelForSequenceClassification]
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        autos.append(transformers.AutoModelForCausalLM)
    for auto in autos:
        with torch.device("meta"):
            model = auto.from_config(config)
        eligible = {id(p) for p in BitStack(model)._eligible.values()}
        linear = {
            name: {id(p) for p in part.parameters(recurse=False)}
            for name, part in model.named_modules()
            if isinstance(part, (torch.nn.Linear, Conv1D))
        }
        assert eligible <= set().union(*linear.values())
        layers = [ids for name, ids in linear.items() if re.search(r"\.\d+\.", name)]
        assert len(layers) >= 4 and set().union(*layers) <= eligible  # nothing else is left out
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert end is None or not eligible & {id(p) for p in end.parameters()}
        head = {id(p) for p in model.parameters()} - {id(p) for p in model.base_model.parameters()}
        assert not eligible & head and not any(
            "pooler" in name for name in BitStack(model)._eligible
        )


def test_a_norm_or_an_embedding_of_ones_own_is_known_by_its_class():
    from transformers import BertConfig, BertModel

    class MyRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(16))

    class SineEmbedding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = torch.nn.Linear(16, 16)

    model = BertModel(BertConfig(**SIZES))
    before = set(BitStack(model)._eligible)
    model.encoder.layer[0].extra = MyRMSNorm()
    model.encoder.layer[0].where = SineEmbedding()
    model.encoder.register_parameter("mask_emb", torch.nn.Parameter(torch.zeros(16)))
    assert set(BitStack(model)._eligible) == before
    model.encoder.layer[0].adapter = torch.nn.Linear(16, 16)
    more = {"encoder.layer.0.adapter.weight", "encoder.layer.0.adapter.bias"}
    assert set(BitStack(model)._eligible) == before | more


def test_within_another_module_a_transformers_model_is_seen_as_one():
    from transformers import BertConfig, BertForSequenceClassification

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # The name of a head, but it is a whole model.
            self.classifier = BertForSequenceClassification(BertConfig(**SIZES))
            self.score = torch.nn.Linear(2, 2)
            self.own = torch.nn.Embedding(3, 2)

    model = Wrapped()
    inside = {f"classifier.{name}" for name in BitStack(model.classifier)._eligible}
    assert set(BitStack(model)._eligible) == inside | {"own.weight"}


def test_exclude_can_be_chosen():
    assert "body.weight" not in BitStack(Tiny(), exclude=[r"^body\."])._eligible
    every = {name for name, _ in Tiny().named_parameters()}
    assert set(BitStack(Tiny(), exclude=[])._eligible) == every
    published = BitStack(Tiny(), 0.12, ["wte", "wpe", "ln_f"])  # heads are named by the caller
    assert set(published._eligible) == {n for n in every if n[:3] not in ("wte", "ln_")}
    with pytest.raises(SkillStackError, match="no parameter is eligible"):
        BitStack(Tiny(), exclude=["."])


def test_a_plain_exclude_is_a_part_of_the_name_as_it_stands():
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(12))
    left = {n for n, _ in model.named_parameters()} - BitStack(
        model, 0.1, ["s.1."]
    )._eligible.keys()
    assert left == {"layers.1.weight", "layers.1.bias"}  # the dot is no joker: not layers.11
    assert len(BitStack(model, 0.1, ["Layers"])._eligible) == 24  # nor is L an l
    assert len(BitStack(model, 0.1, [r"(layers)\.1\d?\."])._eligible) == 24 - 6  # 1, 10 and 11


@pytest.mark.parametrize("exclude", ["score", [3], 5, ["("], [None]], ids=str)
def test_a_bad_exclude_is_one_line(exclude):
    with pytest.raises(SkillStackError, match="^exclude.*[(sN35]"):
        BitStack(Tiny(), exclude=exclude)


def test_masks_accumulate_and_each_task_can_be_read_back():
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.3)
    bitstack.update(batches(seed=0), task="one")
    first = {n: m.clone() for n, m in bitstack.masks.items()}
    train(model, torch.optim.SGD(model.parameters(), lr=0.5))
    bitstack.update(batches(seed=5), task="two")
    for name, mask in bitstack.masks.items():
        one = bitstack.task_masks("one").get(name, torch.zeros_like(mask))
        two = bitstack.task_masks("two").get(name, torch.zeros_like(mask))
        assert torch.equal(one, first.get(name, torch.zeros_like(mask)))
        assert not (one & two).any() and torch.equal(one | two, mask)
    assert any(mask.any() for mask in bitstack.task_masks("two").values())
    with pytest.raises(SkillStackError, match="unknown task 'three'"):
        bitstack.task_masks("three")


def test_updating_is_deterministic_and_leaves_gradients_and_mode_alone():
    model = Tiny().train()
    model.body.eval()  # a frozen part, say
    next_batch = next(batches(1, seed=9))
    model(**next_batch)["loss"].backward()
    held = {n: p.grad.clone() for n, p in model.named_parameters()}
    one, two = BitStack(model), BitStack(model)
    one.update(batches())
    two.update(batches())
    assert model.training and not model.body.training and model.up.training
    assert all(torch.equal(p.grad, held[n]) for n, p in model.named_parameters())
    assert all(torch.equal(m, two.masks[n]) for n, m in one.masks.items())


# ------------------------------------------------------------------ it stays locked


OPTIMIZERS = {
    "adamw with decay": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adam with l2": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5),
    "sgd with momentum and decay": lambda p: torch.optim.SGD(
        p, lr=0.5, momentum=0.9, weight_decay=0.1
    ),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip": 0.1}], ids=str)
def test_locked_weights_are_bit_equal_without_restore(name, options):
    model = Tiny()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)  # moments that know the weights from before they were locked
    bitstack = BitStack(model, sparsity=0.4)
    bitstack.update(batches())
    before = locked_weights(bitstack)
    free = {n: p.detach()[~bitstack.masks[n]].clone() for n, p in bitstack._eligible.items()
            if n in bitstack.masks}  # fmt: skip
    train(model, optimizer, **options)
    assert_kept(bitstack, before)
    parameters = dict(model.named_parameters())
    assert any(not torch.equal(v, parameters[n][~bitstack.masks[n]]) for n, v in free.items())


def test_without_the_hooks_decay_would_move_them():
    """The test above can fail: closed, the same training moves what was locked."""
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.4)
    bitstack.update(batches())
    before = locked_weights(bitstack)
    bitstack.close()
    assert bitstack.handles == []
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    after = locked_weights(bitstack)
    assert not all(torch.equal(before[n], after[n]) for n in before)


def test_mixed_precision():
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    bitstack = BitStack(model, sparsity=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        bitstack.update(batches())
    before = locked_weights(bitstack)
    for batch in batches(6, seed=2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert_kept(bitstack, before)


def test_half_precision_weights():
    model = Tiny().to(torch.bfloat16)
    bitstack = BitStack(model, sparsity=0.4)
    bitstack.update(batches())
    before = locked_weights(bitstack)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    assert_kept(bitstack, before)


def test_gradients_of_locked_weights_are_zero_and_hooks_are_counted():
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.4)
    bitstack.update(batches())
    assert sum(bitstack.hook_calls.values()) == 0
    for _ in range(2):
        model.zero_grad()
        model(**next(batches(1, seed=3)))["loss"].backward()
    assert bitstack.hook_calls == dict.fromkeys(bitstack.masks, 2)
    assert len(bitstack.handles) == len(bitstack.masks) == len(bitstack._eligible) == 4
    moving = 0.0
    for name, mask in bitstack.masks.items():
        gradient = bitstack._eligible[name].grad
        assert (gradient[mask] == 0).all()
        moving += gradient.abs().sum()
    assert moving > 0


def test_restore_is_exact():
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.4)
    bitstack.update(batches())
    before = locked_weights(bitstack)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    bitstack.restore()
    assert_kept(bitstack, before)


@pytest.mark.parametrize("callback", [False, True])
def test_the_trainer_needs_no_callback_and_takes_one(model_dirs, tmp_path, callback):
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(model_dirs["bert"])
    rows = [{"input_ids": [2 + i, 3, 4], "labels": i % 2} for i in range(8)]
    batch = {"input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]]), "labels": torch.tensor([0, 1])}
    bitstack = BitStack(model, sparsity=0.3)
    bitstack.update([batch])
    before = locked_weights(bitstack)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, weight_decay=0.3, learning_rate=0.1, report_to=[],
        per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    callbacks = [bitstack.callback()] if callback else None
    Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
    assert_kept(bitstack, before)


def test_the_callback_restores_after_a_step():
    bitstack = BitStack(Tiny(), sparsity=0.4)
    bitstack.update(batches())
    before, control = locked_weights(bitstack), object()
    with torch.no_grad():
        bitstack.model.body.weight.add_(1.0)
    assert bitstack.callback().on_step_end(None, None, control, model=None) is control
    assert_kept(bitstack, before)


def test_other_models_are_left_alone_and_hooks_die_with_their_stack():
    one, other = Tiny(), Tiny()
    bitstack = BitStack(one, sparsity=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bitstack.update(batches())
    start = other.body.weight.detach().clone()
    train(other, torch.optim.SGD(other.parameters(), lr=0.5))
    assert not torch.equal(other.body.weight, start)
    held = weakref.ref(bitstack)
    start = one.body.weight.detach().clone()
    del bitstack
    gc.collect()
    assert held() is None
    train(one, torch.optim.SGD(one.parameters(), lr=0.5))
    assert not torch.equal(one.body.weight, start)


# ------------------------------------------------------------------ the published contract


class Words(torch.nn.Module):
    """A classifier in transformers' manner that is none of theirs: mean of embeddings, one layer,
    head; it takes no token types."""

    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(11, 6, sparse=sparse)
        self.layer = torch.nn.Linear(6, 6)
        self.score = torch.nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.score(torch.relu(self.layer(self.embed(input_ids).mean(1))))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def word_batches(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(11, (5, 4), generator=generator)
        more = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        yield {"input_ids": ids, **more, "labels": torch.randint(3, (5,), generator=generator)}


def test_what_code_for_the_published_class_asks_for():
    model = Words()
    bitstack = BitStack(model, 0.3)
    assert bitstack.masks == bitstack.frozen == bitstack.hook_calls == {} and not bitstack.handles
    stats = bitstack.update(list(word_batches(5)), 3)
    # An embedding of a plain module is a layer like others; the head is not.
    assert list(bitstack.masks) == ["embed.weight", "layer.weight", "layer.bias"]
    assert len(bitstack.handles) == len(bitstack.masks)
    assert stats["locked"] == round(0.3 * (66 + 36 + 6)) == 32 and stats["total"] == 108 + 21
    assert stats["eligible"] == 108 and stats["frozen_pct"] == pytest.approx(100 * 32 / 108)
    named = dict(model.named_parameters())
    for name, mask in bitstack.masks.items():
        assert torch.equal(bitstack.frozen.get(name, torch.empty(0)), named[name][mask])
    before = locked_weights(bitstack)
    model(
        **{k: v for k, v in next(word_batches()).items() if k != "token_type_ids"}
    ).loss.backward()
    assert sum(bitstack.hook_calls.values()) == 3
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5).step()
    assert_kept(bitstack, before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.5)
    bitstack.restore()
    assert_kept(bitstack, before)
    assert bitstack.update(word_batches(seed=1))["locked"] >= 32
    assert bitstack.tasks == ["task1", "task2"]
    assert len(bitstack.handles) == len(bitstack.masks) == 3


def test_sparse_gradients_of_an_embedding():
    dense, sparse = Words(), Words(sparse=True)
    stacks = [BitStack(model, 0.3) for model in (dense, sparse)]
    for bitstack in stacks:
        bitstack.update(word_batches())
    masks = [bitstack.masks for bitstack in stacks]
    assert masks[0]["embed.weight"].any()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    before = locked_weights(stacks[1])
    sparse(next(word_batches())["input_ids"], labels=torch.ones(5).long()).loss.backward()
    gradient = sparse.embed.weight.grad
    assert gradient.is_sparse and not gradient.to_dense()[masks[1]["embed.weight"]].any()
    assert gradient.to_dense().any()
    torch.optim.SparseAdam([sparse.embed.weight], lr=0.1).step()
    assert_kept(stacks[1], before)


# ------------------------------------------------------------------ what batches may be


def test_a_model_that_takes_any_keyword_gets_all_but_token_types():
    seen = []

    class Open(Words):
        def forward(self, input_ids, labels=None, **kwargs):
            seen.append(set(kwargs))
            return super().forward(input_ids, labels=labels)

    BitStack(Open()).update([{**next(word_batches()), "weight": 1.0}])
    assert seen == [{"attention_mask", "weight"}]


def test_peft_shells_take_what_the_model_inside_takes():
    import peft
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(**ARCHITECTURES["DistilBert"])
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_lin"])
    model = peft.get_peft_model(DistilBertForSequenceClassification(config), lora)
    bitstack = BitStack(model, 0.5)
    assert all("lora_" in name for name in bitstack._eligible) and len(bitstack._eligible) == 4
    batch = {**next(word_batches()), "labels": torch.tensor([0, 1, 0, 1, 0])}
    assert bitstack.update([batch | {"idx": torch.arange(5)}])["locked"] > 0
    before = locked_weights(bitstack)
    del batch["token_type_ids"]
    for _ in range(3):
        model(**batch).loss.backward()
        torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5).step()
    assert_kept(bitstack, before)


def test_batches_of_tokenizers_and_collators():
    from transformers import BatchEncoding

    expected = BitStack(Words())
    expected.update(word_batches())
    for kind in (BatchEncoding, UserDict):
        bitstack = BitStack(Words())
        bitstack.update([kind(batch) for batch in word_batches()])
        assert all(torch.equal(mask, bitstack.masks[n]) for n, mask in expected.masks.items())


def test_everything_in_a_batch_moves_to_the_models_device():
    Pair = namedtuple("Pair", "left right")
    one, moved = torch.ones(2), []
    batch = {"a": one, "b": [one, (one, "text")], "c": {"d": Pair(one, 3)}, "e": 1.5}
    batch = module._moved(batch, torch.device("meta"))
    tensors = [batch["a"], batch["b"][0], batch["b"][1][0], batch["c"]["d"].left]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch["b"][1][1] == "text" and batch["c"]["d"].right == 3 and batch["e"] == 1.5

    class Watched:
        def to(self, device):
            moved.append(device)
            return one.long()

    given = {"input_ids": torch.ones(5, 4).long(), "attention_mask": [{"x": Watched()}]}
    BitStack(Words()).update([given | {"labels": torch.ones(5).long()}])
    assert moved == [torch.device("cpu")]


def test_masks_follow_the_model_to_another_device(tmp_path):
    model = Words()
    bitstack = BitStack(model, 0.3)
    bitstack.update(word_batches())
    model.to("meta")
    bitstack.restore()
    masks = {**bitstack.masks, **bitstack.task_masks("task1")}
    assert masks and all(mask.device.type == "meta" for mask in masks.values())
    assert bitstack._task_bits[0]["layer.weight"].device.type == "cpu"  # nothing is lost
    loaded = BitStack.load(bitstack.save(tmp_path / "masks"), Words())
    assert loaded.stats() == bitstack.stats()


# ------------------------------------------------------------------ checkpoints


class Deep(torch.nn.Module):
    """Four layers and one that is used twice, once within a checkpoint and once outside."""

    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.first = torch.nn.Linear(5, 5)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(5, 5) for _ in range(3))
        self.twice = torch.nn.Linear(5, 5)
        self.score = torch.nn.Linear(5, 1)

    def forward(self, x, labels=None):
        x = self.twice(torch.tanh(self.first(x)))
        for layer in [*self.layers, self.twice]:
            if self.reentrant is None:
                x = torch.tanh(layer(x))
            else:
                x = checkpoint(lambda x, f=layer: f(x).tanh(), x, use_reentrant=self.reentrant)
        return {"loss": (self.score(x)[:, 0] - labels).square().mean()}


def deep_batches(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(6, 5, generator=generator)
        yield {"x": x, "labels": torch.randn(6, generator=generator)}


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_within_checkpoints_are_ranked_like_others(reentrant):
    plain, checked = Deep(), Deep(reentrant)
    stacks = [BitStack(model, 0.4) for model in (plain, checked)]
    for seed in range(2):  # the second time over locked weights
        for bitstack in stacks:
            next_batch = next(deep_batches(1, seed=9))
            bitstack.model(**next_batch)["loss"].backward()
            held = {n: p.grad.clone() for n, p in bitstack.model.named_parameters()}
            calls = dict(bitstack.hook_calls)
            bitstack.update(deep_batches(seed=seed))
            assert all(torch.equal(p.grad, held[n]) for n, p in bitstack.model.named_parameters())
            assert bitstack.hook_calls == calls
            bitstack.model.zero_grad()
    one, two = (bitstack._scores(deep_batches(), 3) for bitstack in stacks)
    for name, score in one.items():
        torch.testing.assert_close(score, two[name])
        assert score.any() and torch.equal(stacks[0].masks[name], stacks[1].masks[name])
    before = locked_weights(stacks[1])
    optimizer = torch.optim.AdamW(checked.parameters(), lr=0.1, weight_decay=0.5)
    for batch in deep_batches():
        checked(**batch)["loss"].backward()
        assert not any(checked.get_parameter(n).grad[m].any() for n, m in stacks[1].masks.items())
        optimizer.step()
    assert_kept(stacks[1], before)


# ------------------------------------------------------------------ wrapped, moved, replaced


@contextlib.contextmanager
def wrapped(how, model):
    """The model within a wrapper, the masks' names before it."""
    if how == "compiled":
        yield torch.compile(model, backend="eager"), "_orig_mod."
    elif how == "a part compiled":
        model.body = torch.compile(model.body, backend="eager")
        yield model, ""
    elif how == "data parallel":
        yield torch.nn.DataParallel(model), "module."
    else:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield torch.nn.parallel.DistributedDataParallel(model), "module."
        finally:
            torch.distributed.destroy_process_group()


WRAPPERS = ["compiled", "a part compiled", "data parallel", "distributed"]


@pytest.mark.parametrize("how", WRAPPERS)
def test_wrapped_models_lock_the_same_and_share_files_with_plain_ones(how, tmp_path):
    plain = BitStack(Tiny(), sparsity=0.4)
    plain.update(batches())
    with wrapped(how, Tiny()) as (model, prefix):
        bitstack = BitStack(model, sparsity=0.4)
        bitstack.update([{**batch, "token_type_ids": batch["ids"]} for batch in batches()])
        assert set(bitstack.masks) <= {name for name, _ in model.named_parameters()}
        assert all(name.startswith(prefix) for name in bitstack.masks)
        by_name = {bitstack._names[name]: mask for name, mask in bitstack.masks.items()}
        assert by_name.keys() == plain.masks.keys()
        assert all(torch.equal(mask, by_name[name]) for name, mask in plain.masks.items())
        before = locked_weights(bitstack)
        train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
        assert_kept(bitstack, before)
        assert sum(bitstack.hook_calls.values()) == 4 * 6

        loaded = BitStack.load(plain.save(tmp_path / "plain"), model)
        assert [*loaded.masks] == [*bitstack.masks] and loaded.stats() == plain.stats()
        other = Tiny(seed=3)
        loaded = BitStack.load(bitstack.save(tmp_path / "wrapped"), other)
        assert all(torch.equal(mask, loaded.masks[name]) for name, mask in plain.masks.items())
        for name, mask in loaded.masks.items():
            assert torch.equal(other.get_parameter(name)[mask], plain._eligible[name][mask])


def test_ranks_lock_the_same(monkeypatch):
    """What the other rank adds to the scores decides here too."""
    with wrapped("distributed", Tiny()) as (model, _):

        def add_other_rank(score, group=None):
            score[..., 0] += 1e3  # the first column of body and up, the first bias of each

        monkeypatch.setattr(torch.distributed, "all_reduce", add_other_rank)
        bitstack = BitStack(model, sparsity=0.2)
        assert bitstack.update(batches())["locked"] == round(0.2 * 48) == 5 + 3 + 2
        assert all(mask[..., 0].all() for mask in bitstack.masks.values())


def test_replaced_parameters_are_locked_in_their_turn():
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.4)
    bitstack.update(batches())
    before = locked_weights(bitstack)
    model.load_state_dict(Tiny(seed=5).state_dict(), assign=True)  # new parameters, other weights
    bitstack.restore()
    assert_kept(bitstack, before)
    model.load_state_dict({n: p + 1 for n, p in model.state_dict().items()}, assign=True)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    assert_kept(bitstack, before)
    model(**next(batches(1)))["loss"].backward()
    for name, mask in bitstack.masks.items():
        assert not model.get_parameter(name).grad[mask].any()
    model.body = torch.nn.Linear(5, 4)
    with pytest.raises(SkillStackError, match="body.weight has another shape than when"):
        bitstack.restore()


def test_a_stack_may_become_garbage_in_the_middle_of_a_step():
    kept = BitStack(Tiny(), sparsity=0.4)
    kept.update(batches())
    before, gone = locked_weights(kept), [BitStack(Tiny(), sparsity=0.4) for _ in range(3)]
    for bitstack in gone:
        bitstack.update(batches())
    optimizer = torch.optim.AdamW(kept.model.parameters(), lr=0.1, weight_decay=0.5)
    optimizer.register_step_post_hook(lambda *_: gone.clear())
    del bitstack
    train(kept.model, optimizer)
    assert_kept(kept, before)


def test_a_part_frozen_for_a_while():
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.4)
    model.body.requires_grad_(False)
    bitstack.update(batches(), task="one")
    assert not bitstack.masks["body.weight"].any() and not model.body.weight.requires_grad
    model.body.requires_grad_(True)
    bitstack.update(batches(), task="two")
    mask = bitstack.masks["body.weight"]
    model.body.requires_grad_(False)
    model.body.requires_grad_(True)
    model(**next(batches(1)))["loss"].backward()
    gradient = model.body.weight.grad
    assert mask.any() and not gradient[mask].any() and gradient[~mask].any()


def test_tied_weights_and_names_of_transformers_survive_a_file(tmp_path):
    from transformers import GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**ARCHITECTURES["GPTNeoX"]))
    ids = torch.randint(60, (4, 6))
    bitstack = BitStack(model, 0.3)
    bitstack.update([{"input_ids": ids, "labels": ids}])
    assert "gpt_neox.embed_in.weight" not in bitstack.masks
    loaded = BitStack.load(bitstack.save(tmp_path / "masks"), GPTNeoXForCausalLM(model.config))
    assert loaded.stats() == bitstack.stats() and loaded.exclude == bitstack.exclude
    from transformers import GPT2Config

    tied = GPT2LMHeadModel(GPT2Config(**GPT))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert not any("wte" in name or "lm_head" in name for name in BitStack(tied)._eligible)


# ------------------------------------------------------------------ capacity and bad input


def test_sparsity_zero_locks_nothing_and_one_locks_all():
    model = Tiny()
    nothing = BitStack(model, sparsity=0)
    assert nothing.update(batches())["locked"] == 0
    assert len(nothing.masks) == 4 and not any(mask.any() for mask in nothing.masks.values())
    everything = BitStack(model, sparsity=1)
    with pytest.warns(
        UserWarning, match="100 % of the eligible parameters are locked after 'task1'"
    ):
        stats = everything.update(batches())
    assert stats["locked"] == stats["eligible"] and stats["frozen_pct"] == 100
    with pytest.raises(SkillStackError, match="no capacity left for 'task2': all 48 eligible"):
        everything.update(batches())
    assert everything.tasks == ["task1"]


def test_a_warning_comes_before_the_end():
    bitstack = BitStack(Tiny(), sparsity=0.92)
    with pytest.warns(UserWarning, match="92 % of the eligible .* little is left"):
        bitstack.update(batches())


class LossPerRow(Tiny):
    def forward(self, ids, labels=None):
        return {"loss": super().forward(ids)["logits"][:, 0]}


class NoGradient(Tiny):
    def forward(self, ids, labels=None):
        return {"loss": self.score.weight.sum()}  # the head is excluded


@pytest.mark.parametrize(
    "model, data, words",
    [
        (Tiny(), list(batches(labels=False)), "no loss for a batch of ids: are the labels missing"),
        (Tiny(), [], "the dataloader gave no batch"),
        (Tiny(), [(1, 2)], 'batches must be mappings .* got tuple: .* {"input_ids": ...'),
        (Tiny(), [torch.ones(2)], "batches must be mappings .* got Tensor"),
        (
            Tiny(),
            [{"ids": torch.ones(2, 3).long(), "label": 1, "idx": 2}],
            r"no loss for a batch of ids \(the model does not take label, idx\): are the labels",
        ),
        (
            Tiny(),
            [{"input_ids": 1, "labels": 2}],
            "the model needs 'ids', .* has input_ids, labels",
        ),
        (LossPerRow(), list(batches()), r"the loss must be one number, got shape \(6,\)"),
        (NoGradient(), list(batches()), "no gradient reached an eligible parameter"),
    ],
)
def test_bad_batches_are_one_line_and_change_nothing(model, data, words):
    bitstack = BitStack(model.train())
    with pytest.raises(SkillStackError, match=words):
        bitstack.update(data)
    assert bitstack.tasks == [] and bitstack.masks == {} and model.training


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), "0.1", None])
def test_bad_sparsity(sparsity):
    with pytest.raises(SkillStackError, match="sparsity must be in"):
        BitStack(Tiny(), sparsity=sparsity)


def test_no_gradient_is_the_published_error_too():
    model, thawed = Tiny(), Tiny()
    frozen, none = BitStack(model), BitStack(NoGradient())
    model.requires_grad_(False)
    for bitstack, data in ((frozen, batches()), (none, batches()), (BitStack(thawed), [])):
        with pytest.raises(RuntimeError) as raised:
            bitstack.update(data)
        assert isinstance(raised.value, SkillStackError) and bitstack.handles == []
    with torch.no_grad():  # around the caller: no reason to find none
        assert BitStack(thawed, 0.5).update(batches())["locked"] == 24


def test_gradients_that_are_not_finite_lock_nothing():
    model = Tiny()
    with torch.no_grad():
        model.up.weight.fill_(float("inf"))
    bitstack = BitStack(model)
    with pytest.raises(SkillStackError, match="not finite|no gradient"):
        bitstack.update(batches())
    assert bitstack.masks == {}


def test_a_task_has_one_mask():
    bitstack = BitStack(Tiny(), sparsity=0.1)
    bitstack.update(batches(), task="imdb")
    with pytest.raises(SkillStackError, match="'imdb' has a mask already"):
        bitstack.update(batches(), task="imdb")
    with pytest.raises(SkillStackError, match="n_batches must be at least 1"):
        bitstack.update(batches(), n_batches=0)


# ------------------------------------------------------------------ one bit, on disk too


class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(400, 251)  # 100,651 parameters

    def forward(self, x, labels):
        return {"loss": self.body(x).square().mean() * labels}


def test_masks_take_one_bit_a_parameter_in_memory_and_on_disk(tmp_path):
    bitstack = BitStack(Wide(), sparsity=0.01)
    bitstack.update([{"x": torch.randn(4, 400), "labels": 1.0}])
    stats = bitstack.stats()
    assert stats["mask_bytes"] == pytest.approx(stats["eligible"] / 8, rel=0.01)
    assert stats["task_mask_bytes"] == stats["mask_bytes"]
    held = [bitstack._bits, *bitstack._task_bits]
    assert all(bits.dtype == torch.uint8 for one in held for bits in one.values())
    size = bitstack.save(tmp_path / "masks.safetensors").stat().st_size
    assert size < stats["eligible"] / 8 + stats["value_bytes"] + 2_000


def test_saved_and_loaded_it_goes_on_the_same(tmp_path):
    model = Tiny()
    bitstack = BitStack(model, sparsity=0.2)
    bitstack.update(batches(seed=0), task="one")
    train(model, torch.optim.SGD(model.parameters(), lr=0.5))
    bitstack.update(batches(seed=4), task="two")
    path = bitstack.save(tmp_path / "masks.safetensors")
    other = Tiny(seed=3)  # other weights: the locked ones are written in
    loaded = BitStack.load(path, other)
    assert loaded.tasks == ["one", "two"] and loaded.sparsity == 0.2
    for name, mask in bitstack.masks.items():
        assert torch.equal(mask, loaded.masks[name])
        assert torch.equal(bitstack._eligible[name][mask], loaded._eligible[name][mask])
        assert torch.equal(
            bitstack.task_masks("two").get(name, ~mask & mask),
            loaded.task_masks("two").get(name, ~mask & mask),
        )
    before = locked_weights(loaded)
    train(other, torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.5))
    assert_kept(loaded, before)


def test_damaged_or_foreign_files_are_one_line(tmp_path):
    bitstack = BitStack(Tiny(), sparsity=0.2)
    bitstack.update(batches())
    path = bitstack.save(tmp_path / "masks.safetensors")
    with pytest.raises(SkillStackError, match="is missing"):
        BitStack.load(tmp_path / "none", Tiny())
    with pytest.raises(SkillStackError, match="belongs to another model: body.bias has another"):
        BitStack.load(path, Wide())
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SkillStackError, match="holds no BitStack"):
        BitStack.load(path, Tiny())
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(SkillStackError, match="holds no BitStack"):
        BitStack.load(tmp_path / "other", Tiny())


MASK, VALUES = "0:body.weight", "values:body.weight"
DAMAGE = {  # to what the file says and to its tensors
    "unknown name": lambda f, t: t.update({"0:body.wait": t.pop(MASK)}),
    "no values": lambda f, t: t.pop(VALUES),
    "fewer values": lambda f, t: t.update({VALUES: t[VALUES][:-1]}),
    "more values": lambda f, t: t.update({VALUES: torch.cat([t[VALUES]] * 2)}),
    "short mask": lambda f, t: t.update({MASK: t[MASK][:-1]}),
    "long mask": lambda f, t: t.update({MASK: torch.cat([t[MASK]] * 2)}),
    "mask of floats": lambda f, t: t.update({MASK: t[MASK].float()}),
    "a task less": lambda f, t: f.update(tasks=[]),
    "no tasks": lambda f, t: f.pop("tasks"),
    "tasks a number": lambda f, t: f.update(tasks=1),
    "shapes a list": lambda f, t: f.update(shapes=[]),
    "bad pattern": lambda f, t: f.update(exclude=["("]),
    "bad sparsity": lambda f, t: f.update(sparsity=2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line_and_leaves_the_model_alone(tmp_path, damage):
    bitstack = BitStack(Tiny(), sparsity=0.5)
    bitstack.update(batches())
    path = bitstack.save(tmp_path / "masks.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["bitstack"])
    tensors = safetensors.torch.load_file(path)
    DAMAGE[damage](facts, tensors)
    facts = json.dumps(facts | {"seal": NO_SEAL})  # whoever did it has sealed it
    path.write_bytes(sealed(safetensors.torch.save(tensors, {"bitstack": facts})))
    model = Tiny(seed=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(SkillStackError, match=re.escape(str(path))) as raised:
        BitStack.load(path, model)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(bitstack.model is model for bitstack in module._LOCKING)


SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_bitstack import BitStack, Tiny, batches
bitstack = BitStack(Tiny(), sparsity=0.2)
bitstack.update(batches())
bitstack.save(sys.argv[1])
print("saved", flush=True)
while True:
    bitstack.save(sys.argv[1])
"""


def test_killed_while_saving_the_masks_are_whole(tmp_path):
    path = tmp_path / "masks.safetensors"
    command = [sys.executable, "-c", SAVER, str(path), str(ROOT / "tests")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"saved\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    expected = BitStack(Tiny(), sparsity=0.2)
    expected.update(batches())
    loaded = BitStack.load(path, Tiny())
    assert all(torch.equal(mask, loaded.masks[n]) for n, mask in expected.masks.items())
