"""Many adapters in one pass: each row as under its own adapter alone."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, compression, mixed
from skillstack_helpers import stack as stack_module
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack

# ------------------------------------------------------------------ by hand


def test_a_packed_adapter_by_hand():
    """A = [1 2], B = [3, 4], scaled by 2, in a layout of rank 2: B A x = 2 (x1 + 2 x2) [3, 4]."""
    name = "base_model.model.layer"
    lora = {
        f"{name}.lora_A.weight": torch.tensor([[1.0, 2.0]]),
        f"{name}.lora_B.weight": torch.tensor([[3.0], [4.0]]),
    }
    how = mixed.layout(lora, rank=2)
    assert how.size == 2 * (2 + 2) and list(how.places) == ["layer"]
    packed = mixed.pack(lora, 2.0, how)
    assert packed.tolist() == [1, 2, 0, 0, 6, 0, 8, 0]  # A (2, 2), then B (2, 2)
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    nothing = torch.zeros(how.size)
    owners = torch.tensor([1, 0])
    adapters = mixed.Adapters(how, None, {"layer": layer}, [packed, nothing], owners)
    x = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]])
    with mixed.adapted(adapters, owners):
        assert layer(x).tolist() == [[[0, 0]], [[18, 24]]]
    with mixed.adapted(adapters, owners[1:]):  # one adapter for the whole part
        assert layer(x).tolist() == [[[18, 24]], [[18, 24]]]
    assert layer(x).tolist() == [[[0, 0]], [[0, 0]]]  # nothing stays behind


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    asked=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_of_any_owners_and_ranks(ranks, asked, flat, seed):
    """flat: a model that hands its layers all tokens of a batch in a row (OPT)."""
    draw = torch.Generator().manual_seed(seed)
    asked, tokens, name = [k % len(ranks) for k in asked], 3, "base_model.model.a.b"
    loras = [
        {
            f"{name}.lora_A.weight": torch.randn(r, 5, generator=draw),
            f"{name}.lora_B.weight": torch.randn(2, r, generator=draw),
        }
        for r in ranks
    ]
    layer, x = torch.nn.Linear(5, 2), torch.randn(len(asked), tokens, 5, generator=draw)
    how = mixed.layout(loras[0], max(ranks))
    owners = torch.tensor(asked)
    packed = [mixed.pack(lora, 0.5, how) for lora in loras]
    adapters = mixed.Adapters(how, None, {"a.b": layer}, packed, owners)
    with torch.no_grad():
        plain = layer(x)
        with mixed.adapted(adapters, owners):
            found = layer(x.flatten(0, 1) if flat else x).view(len(asked), tokens, 2)
        for row, k in enumerate(asked):
            a, b = (loras[k][f"{name}.lora_{part}.weight"] for part in "AB")
            torch.testing.assert_close(found[row], plain[row] + 0.5 * x[row] @ a.T @ b.T)


# ------------------------------------------------------------------ of a stack


def alone(stack, texts, frame, head=None):
    """Probabilities under the slot, which plain PEFT runs."""
    under = stack.activate(frame, head)
    scores = under.scores(texts, stack[frame].training["max_length"])
    return torch.from_numpy(scores).softmax(1).numpy()


def pairs(stream):
    """Every text of the stream with every frame."""
    texts = [text for data in stream for text in data.texts("eval")]
    names = [data.name for data in stream]
    return [t for t in texts for _ in names], names * len(texts)


def agrees(stack, stream):
    texts, names = pairs(stream)
    found = stack.predict(texts, names)
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        expected = alone(stack, [texts[i] for i in rows], name)
        classes = expected.shape[1]
        np.testing.assert_allclose(found.probabilities[rows, :classes], expected, atol=1e-5)
        assert not found.probabilities[rows, classes:].any()  # heads of other sizes
        np.testing.assert_array_equal(found.labels[rows], expected.argmax(1))
        labels = [stack[name].label_names[k] for k in expected.argmax(1)]
        assert list(found.label_names[rows]) == labels


def test_every_text_of_every_frame_in_one_call(stack, stream):
    agrees(stack, stream)


def test_frames_of_different_rank(stack, stream):
    small = compression.lower_rank(stack, 0.3, ["agnews"])
    small = compression.lower_rank(small, 0.7, ["qqp"])
    assert len({frame.slot[0] for frame in small.frames}) > 1
    agrees(small, stream)
    agrees(compression.int8(stack), stream)


def test_a_head_for_each_text(stack, stream):
    texts = stream[0].texts("eval")
    heads = ["imdb", "qqp"] * (len(texts) // 2)
    found = stack.predict(texts, "agnews", heads).probabilities
    for head in ("imdb", "qqp"):
        rows = [i for i, other in enumerate(heads) if other == head]
        expected = alone(stack, [texts[i] for i in rows], "agnews", head)
        np.testing.assert_allclose(found[rows], expected, atol=1e-5)


def test_parts_that_memory_asks_for(stack, stream):
    """A batch that is read in parts keeps each row with its own adapter."""
    texts, names = pairs(stream)
    whole = stack.predict(texts, names).probabilities
    stack.backbone._rows[False] = 3
    np.testing.assert_allclose(stack.predict(texts, names).probabilities, whole, atol=1e-6)


def test_one_pass_whatever_the_frames(stack, stream, monkeypatch):
    """As many forward passes as batches of similar length, not one for every frame."""
    texts, names = pairs(stream)
    passes, forward = [], stack.backbone.model.forward
    stack.activate("imdb")  # the slot is there
    forward = stack.backbone.model.forward

    def counting(*args, **kwargs):
        passes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(stack.backbone.model, "forward", counting)
    stack.predict(texts, names)
    assert sum(passes) == len(texts) and len(passes) == -(-len(texts) // 16)


def test_few_adapters_are_kept(stack, stream, monkeypatch):
    texts, names = pairs(stream)
    before = stack.predict(texts, names).probabilities
    one = next(iter(stack._packed.values())).nbytes
    assert len(stack._packed) == 3
    monkeypatch.setattr(stack_module, "PACKED_BYTES", 2 * one)
    stack._packed.clear()
    np.testing.assert_array_equal(stack.predict(texts, names).probabilities, before)
    assert 0 < sum(adapter.nbytes for adapter in stack._packed.values()) <= 2 * one


def test_an_adapter_that_does_not_fit(stack):
    frame = stack.frames[1]
    lora = dict(frame.weights().lora)
    name = next(iter(lora))
    odd = frame.with_adapter(frame.storage, {k: v for k, v in lora.items() if k != name})
    broken = stack.copy([stack.frames[0], odd])
    with pytest.raises(SkillStackError, match="agnews: adapter does not fit the backbone"):
        broken.predict(["one", "two"], ["imdb", "agnews"])
    wide = frame.with_adapter(frame.storage, lora | {name: torch.zeros(4, 99)})
    with pytest.raises(SkillStackError, match=r"agnews: .* is \(4, 99\), the backbone needs"):
        stack.copy([wide]).predict(["one"], "agnews")


@pytest.mark.parametrize("first", [None, 1])
def test_four_bits(first, tmp_path, stream, config):
    folder = save_tiny_model(tmp_path / "llama", "llama")
    backbone = load_backbone(str(folder), device="cpu", quantize="nf4")
    stack = SkillStack(backbone)
    for data in stream[:2]:
        stack.grow(data, dataclasses.replace(config, first_adapted_layer=first))
    agrees(stack, stream[:2])


def test_no_text_at_all(stack):
    found = stack.predict([], [])
    assert found.probabilities.shape == (0, 0) and len(found.labels) == 0
    assert stack.predict([], "imdb").label_names.shape == (0,)
