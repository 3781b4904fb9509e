"""BitStack on a tiny local model: what is locked, and that nothing moves it."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import _global_optimizer_post_hooks

from skillstack_helpers import SkillStackError
from skillstack_helpers.bitstack import BitStack, kth_largest, pack, unpack, zero_locked


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


def test_heads_embeddings_and_norms_are_left_out_in_the_usual_models(model_dirs):
    from transformers import AutoModelForSequenceClassification

    for kind in ("bert", "llama", "gpt2"):
        model = AutoModelForSequenceClassification.from_pretrained(model_dirs[kind])
        names = set(BitStack(model)._eligible)
        left = {n for n, _ in model.named_parameters()} - names
        assert names and left
        words = ("embed", "wte", "wpe", "norm", "ln_", "score", "classifier", "pooler")
        assert not [n for n in names if any(word in n.lower() for word in words)]
        assert not [n for n in left if "mlp" in n or "attn" in n or "attention.self" in n]


def test_exclude_can_be_chosen():
    assert "body.weight" not in BitStack(Tiny(), exclude=[r"^body\."])._eligible
    assert "score.weight" in BitStack(Tiny(), exclude=[])._eligible
    with pytest.raises(SkillStackError, match="no parameter is eligible"):
        BitStack(Tiny(), exclude=["."])


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
    assert bitstack.hook_calls == 0
    model(**next(batches(1, seed=3)))["loss"].backward()
    assert bitstack.hook_calls == len(bitstack._eligible) == 4
    assert len(bitstack.handles) == 5
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


def test_the_trainer_needs_no_callback(model_dirs, tmp_path):
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
    Trainer(model, arguments, train_dataset=rows).train()
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


# ------------------------------------------------------------------ capacity and bad input


def test_sparsity_zero_locks_nothing_and_one_locks_all():
    model = Tiny()
    nothing = BitStack(model, sparsity=0)
    assert nothing.update(batches())["locked"] == 0 and nothing.masks == {}
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


class NoGradient(Tiny):
    def forward(self, ids, labels=None):
        return {"loss": self.score.weight.sum()}  # the head is excluded


@pytest.mark.parametrize(
    "model, data, words",
    [
        (Tiny(), list(batches(labels=False)), "no loss for a batch of ids: are the labels missing"),
        (Tiny(), [], "the dataloader gave no batch"),
        (Tiny(), [(1, 2)], "batches must be mappings .* got tuple"),
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
    with pytest.raises(SkillStackError, match="belongs to another model: body.bias differs"):
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
    safetensors.torch.save_file(tensors, path, {"bitstack": json.dumps(facts)})
    model = Tiny(seed=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer_hooks = len(_global_optimizer_post_hooks)
    with pytest.raises(SkillStackError, match=re.escape(str(path))) as raised:
        BitStack.load(path, model)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert len(_global_optimizer_post_hooks) == optimizer_hooks


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
