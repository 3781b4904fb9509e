"""The trunk: states run once per text, bit-equal wherever they are needed again, within bounds."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import edit_json, save_tiny_model

from skillstack_helpers import SkillStackError, trunk
from skillstack_helpers.baselines import EWC, Independent, Joint, OLoRA, Replay, Sequential
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.files import digest
from skillstack_helpers.hardware import say_once
from skillstack_helpers.heads import instruction
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack


@pytest.fixture
def above(config):
    return dataclasses.replace(config, first_adapted_layer=1)


@pytest.fixture
def runs(monkeypatch):
    """How many texts were run through the trunk, and which."""
    ran, run_lower = [], trunk.run_lower

    def counting(model, layers, first, arguments):
        ids, mask = arguments["input_ids"], arguments["attention_mask"]
        ran.extend(tuple(row[: int(m.sum())].tolist()) for row, m in zip(ids, mask, strict=True))
        return run_lower(model, layers, first, arguments)

    monkeypatch.setattr(trunk, "run_lower", counting)
    return ran


def rows(stream, *splits):
    return sum(len(getattr(data, split)) for data in stream for split in splits)


# ------------------------------------------------------------------ which layers


@pytest.mark.parametrize(("first", "number"), [(None, None), (1, 1), (0.5, 1), (0.4, 1)])
def test_layers_by_number_and_by_fraction(backbone, first, number):
    assert backbone.layer_number(first) == number


@pytest.mark.parametrize("first", [2, 7, 0.1, 0.9])
def test_a_layer_that_is_not_there(backbone, first, stream, config):
    with pytest.raises(SkillStackError, match=rf"first_adapted_layer={first} is layer"):
        SkillStack(backbone).grow(stream[0], dataclasses.replace(config, first_adapted_layer=first))


@pytest.mark.parametrize("first", [0, -1, 0.0, 1.0, 1.5, "0.5", True])
def test_no_layer_at_all(first):
    with pytest.raises(SkillStackError, match="first_adapted_layer must be"):
        TrainingConfig(first_adapted_layer=first)


def test_models_whose_layers_are_one(tmp_path):
    from transformers import AlbertConfig, AlbertModel

    size = dict(hidden_size=16, embedding_size=8, intermediate_size=16, num_attention_heads=2)
    model = AlbertModel(AlbertConfig(vocab_size=20, num_hidden_layers=3, **size))
    with pytest.raises(SkillStackError, match=r"albert has no list of 3 layers"):
        trunk.layer_number(model, 1)


# ------------------------------------------------------------------ what is run


def test_a_text_is_run_once(backbone, stream, above, runs):
    """Through epochs, frames, methods, the accuracy matrix and answers."""
    stack = SkillStack(backbone)
    for data in stream:
        stack.grow(data, dataclasses.replace(above, epochs=3))
    for frame in stack.frames:
        for data in stream:
            stack.evaluate(data, frame=frame.name, head=data.name)
    learner = Sequential(backbone, above)
    for data in stream:
        learner.learn(data)
        learner.evaluate(data)
    texts = [text for data in stream for text in data.texts("eval")]
    stack.predict(texts, "agnews")
    assert len(runs) == len(set(runs)) == rows(stream, "train", "router", "eval")
    backbone.pooled(texts, above.max_length, 1)
    assert len(runs) == len(set(runs))


def test_states_are_what_transformers_calls_hidden_states(backbone):
    texts = ["good class1", "bad of the and a class0 word", "good"]
    ids = backbone.encode(texts, 32)
    states, pooled = backbone.states(ids, 1), backbone.pooled(texts, 32, 1)
    for row, state, mean in zip(ids, states, pooled, strict=True):
        one = torch.from_numpy(row.astype(np.int64))[None]
        with torch.no_grad():
            hidden = backbone.model(one, output_hidden_states=True).hidden_states
        torch.testing.assert_close(state, hidden[1][0], atol=1e-6, rtol=1e-5)
        for depth in (0, 1):
            np.testing.assert_allclose(mean[depth], hidden[depth][0].mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_to_train_on_states_is_to_train_the_whole_model(kind, model_dirs, stream, above):
    """Without room for states the lower layers are run with every batch."""
    losses = []
    for most in (1 << 30, 0):
        backbone = load_backbone(str(model_dirs[kind]), device="cpu")
        backbone.trunk.most_bytes = most
        frame = SkillStack(backbone).grow(stream[1], above)
        losses.append(frame.losses)
    np.testing.assert_allclose(*losses, atol=1e-5)
    assert len({round(loss, 3) for loss in losses[0]}) > 1


def test_states_learned_while_answering_can_be_trained_on(backbone, stream, above):
    stack = SkillStack(backbone)
    stack.grow(stream[0], above)
    stack.predict(stream[1].texts("train"), "imdb")  # inside torch.inference_mode
    assert stack.grow(stream[1], above).losses


def test_a_frame_that_writes_trains_on_states(decoders, stream, above, runs):
    config = dataclasses.replace(above, max_length=60)
    losses = []
    for first in (1, None):
        stack = SkillStack(load_backbone(str(decoders["llama"]), device="cpu"))
        config = dataclasses.replace(config, first_adapted_layer=first)
        stack.grow(stream[0], config, instruction(stream[0].task))
        losses.append(stack.frames[0].losses[0])
        assert len(runs) == len(set(runs)) > 0
    np.testing.assert_allclose(*losses, atol=1e-5)  # B is zero at first: the same model


# ------------------------------------------------------------------ to the last bit


def test_what_was_run_before_changes_no_bit(model_dirs, stream, above):
    """A stack that goes on in another process, where other texts were run with these."""
    losses = []
    for disturbed in (False, True):
        backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
        if disturbed:
            backbone.attach(above.lora_r, above.lora_alpha, 1)
            mixed = stream[1].texts("train")[::2] + stream[0].texts("train")[1:]
            backbone.inputs(mixed, above.max_length)
            backbone.inputs(stream[0].texts("eval")[3:], above.max_length)
        stack = SkillStack(backbone)
        frames = [stack.grow(data, above) for data in stream[:2]]
        losses.append([(f.losses, f.metrics["logits_sha256"]) for f in frames])
    assert losses[0] == losses[1]


KILLED = """
import os, signal, sys
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task
import torch
torch.set_num_threads(1)
model, data_dir, folder, killed = sys.argv[1:]
config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3,
                        first_adapted_layer=1)
stack = SkillStack.open(folder, load_backbone(model, device="cpu"))
for name in ("imdb", "agnews", "qqp"):
    if name in stack:
        continue
    data = load_task(name, 6, 12, 8, seed=0, source="folder", data_dir=data_dir)
    stack.grow(data, config)
    if killed and name == killed:
        os.kill(os.getpid(), signal.SIGKILL)  # trained, not saved
    stack.save_pretrained(folder)
"""


def test_a_killed_stream_goes_on_to_the_same_bits(model_dirs, data_dir, tmp_path):
    def run(folder, killed):
        command = [sys.executable, "-c", KILLED, str(model_dirs["bert"]), str(data_dir)]
        return subprocess.run([*command, str(folder), killed], capture_output=True).returncode

    assert run(tmp_path / "whole", "") == 0
    assert run(tmp_path / "broken", "agnews") == -signal.SIGKILL
    assert run(tmp_path / "broken", "qqp") == -signal.SIGKILL
    assert run(tmp_path / "broken", "") == 0
    for name in ("imdb", "agnews", "qqp"):
        files = [tmp_path / one / "frames" / name / "adapter_model.safetensors"
                 for one in ("whole", "broken")]  # fmt: skip
        assert files[0].read_bytes() == files[1].read_bytes()


def test_saved_and_opened(backbone, model_dirs, stream, above, config, tmp_path):
    stack = SkillStack(backbone)
    stack.grow(stream[0], above)
    stack.save_pretrained(tmp_path / "stack")
    opened = SkillStack.from_pretrained(
        tmp_path / "stack", load_backbone(str(model_dirs["bert"]), device="cpu")
    )
    assert opened.first_adapted_layer == 1
    evaluated = opened.evaluate(stream[0])
    assert digest(evaluated.logits) == stack["imdb"].metrics["logits_sha256"]
    with pytest.raises(SkillStackError, match=r"has .*first adapted layer\) \(4, 16, 1\), .*None"):
        opened.grow(stream[1], config)
    manifest = tmp_path / "stack" / "stack.json"
    edit_json(manifest, lambda fields: fields.update(first_adapted_layer=None))
    other = SkillStack.from_pretrained(tmp_path / "stack", backbone)
    with pytest.raises(SkillStackError, match=r"first_adapted_layer is 1, stack.json has None"):
        other.predict(["good"], "imdb")
    edit_json(manifest, lambda fields: fields.update(first_adapted_layer="1"))
    with pytest.raises(SkillStackError, match=r"stack.json: 'first_adapted_layer' is '1', not"):
        SkillStack.from_pretrained(tmp_path / "stack", backbone)
    before = digest(opened.grow(stream[1], above).weights().head["weight"].numpy())
    assert before == digest(stack.grow(stream[1], above).weights().head["weight"].numpy())


# ------------------------------------------------------------------ baselines


@pytest.mark.parametrize("method", [Sequential, Independent, EWC, Replay, OLoRA])
def test_methods_train_above_the_same_trunk(method, backbone, stream, above, runs):
    learner = method(backbone, above)
    for data in stream:
        learner.learn(data)
    assert len(runs) == len(set(runs)) == rows(stream, "train", "router")  # calibrated on these
    assert {n for n in learner._adapter if ".layer.0." in n} == set()
    trained = learner.trained_parameters - sum(
        p.numel() for head in learner.heads.values() for p in head.parameters()
    )
    whole = method(backbone, dataclasses.replace(above, first_adapted_layer=None))
    for data in stream:
        whole.learn(data)
    heads = sum(p.numel() for head in whole.heads.values() for p in head.parameters())
    assert 2 * trained == whole.trained_parameters - heads  # half of the layers


def test_sequential_is_the_latest_frame_to_the_last_bit(backbone, stream, above):
    stack, learner = SkillStack(backbone), Sequential(backbone, above)
    for data in stream:
        stack.grow(data, above)
    for data in stream:
        learner.learn(data)
    ours = stack.evaluate(stream[0], frame="qqp", head="imdb").logits
    assert digest(ours) == digest(learner.evaluate(stream[0]).logits)


def test_joint_runs_each_text_once(backbone, stream, above, runs):
    Joint(backbone, above).learn(stream)
    assert len(runs) == len(set(runs)) == rows(stream, "train", "router")  # calibrated on these


# ------------------------------------------------------------------ bounds


def test_no_more_is_kept_than_allowed(backbone, stream, above):
    kept = backbone.trunk
    backbone.attach(above.lora_r, above.lora_alpha, 1)
    sizes = []
    for data in stream:
        backbone.inputs(data.texts("train"), above.max_length)
        sizes.append(kept.nbytes)
    kept.clear()
    kept.most_bytes = sizes[0] + (sizes[1] - sizes[0])
    for data in stream:
        states = backbone.inputs(data.texts("train"), above.max_length)
        assert kept.nbytes <= kept.most_bytes
        assert isinstance(states[0], torch.Tensor)
    # What was driven out is run again, beside what is still there.
    again = backbone.inputs(stream[2].texts("train") + stream[0].texts("train"), above.max_length)
    one = backbone.inputs(stream[0].texts("train")[:1], above.max_length)[0]
    torch.testing.assert_close(again[len(stream[2].train)][: len(one)], one)


def test_more_than_is_kept_is_said_once_and_works(backbone, stream, above, capsys):
    say_once.cache_clear()
    backbone.trunk.most_bytes = 1000
    stack = SkillStack(backbone)
    stack.grow(stream[0], above)
    lines = [line for line in capsys.readouterr().out.splitlines() if "trunk's states" in line]
    assert len(lines) == 2 and "trunk_dir" in lines[0]  # of the training and evaluation texts
    assert np.isfinite(stack.predict(stream[0].texts("eval"), "imdb").probabilities).all()


def test_states_in_a_folder(model_dirs, stream, above, tmp_path):
    memory, disk = (load_backbone(str(model_dirs["bert"]), device="cpu") for _ in range(2))
    disk.trunk.folder, disk.trunk.most_bytes = tmp_path / "states", 20_000  # of pooled states alone
    frames = [SkillStack(one).grow(stream[1], above) for one in (memory, disk)]
    assert frames[0].losses == frames[1].losses
    assert frames[0].metrics["logits_sha256"] == frames[1].metrics["logits_sha256"]
    assert disk.trunk.nbytes <= 20_000 < memory.trunk.nbytes
    assert list((tmp_path / "states").iterdir()) == []  # gone when the process is


def test_half_precision_is_kept_as_it_is(tmp_path, stream, above):
    folder = save_tiny_model(tmp_path / "llama", "llama")
    backbone = load_backbone(str(folder), device="cpu", dtype="bfloat16")
    stack = SkillStack(backbone)
    stack.grow(stream[0], above)
    states = backbone.inputs(stream[0].texts("eval"), above.max_length)
    assert states[0].dtype == torch.bfloat16
    ids = backbone.encode(stream[0].texts("eval"), above.max_length)
    from skillstack_helpers.training import pad

    with torch.inference_mode():
        whole = backbone.features(*pad(ids, 0, "cpu"))
        upper = backbone.features(*pad(states, 0, "cpu"))
    torch.testing.assert_close(upper, whole, atol=0.05, rtol=0.05)


def test_gradient_checkpointing_changes_nothing(model_dirs, stream, above):
    losses = []
    for lean in (False, True):
        backbone = load_backbone(
            str(model_dirs["llama"]), device="cpu", gradient_checkpointing=lean
        )
        losses.append(SkillStack(backbone).grow(stream[1], above).losses)
    assert losses[0] == losses[1]
