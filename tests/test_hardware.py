import copy
import dataclasses

import numpy as np
import pytest
import torch

from skillstack_helpers import SkillStackError, baselines, hardware, training
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.heads import LinearHead, PromptHead, classification_loss, instruction
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack

GIB = hardware.GIB


@pytest.fixture(autouse=True)
def said():
    hardware.say_once.cache_clear()


def a_gpu(monkeypatch, capability=(8, 0), free=(16,), built=("sm_70", "sm_80", "compute_90")):
    """A machine with GPUs of that kind, each with so many GiB free, as far as torch is asked."""
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(cuda, "get_device_name", lambda device=None: "Tesla X")
    monkeypatch.setattr(cuda, "get_arch_list", lambda: list(built))
    room = {"cuda": free[0]} | {f"cuda:{i}": g for i, g in enumerate(free)}
    monkeypatch.setattr(hardware, "free_bytes", lambda device: room[device] * GIB)


def llama(**settings):
    """The config of a Llama with about a billion parameters."""
    from transformers import LlamaConfig

    size = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=128_256)
    return LlamaConfig(**size, num_attention_heads=32, num_key_value_heads=8, **settings)


# ------------------------------------------------------------------ device and precision


@pytest.mark.parametrize(
    "capability, built, runs",
    [
        ((6, 0), ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"], False),  # Kaggle's P100
        ((7, 5), ["sm_70", "sm_80"], True),  # a later one of the same major version
        ((7, 5), ["sm_80"], False),
        ((8, 9), ["sm_80", "sm_90"], True),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # compiled when it is loaded
        ((9, 0), ["sm_90a"], True),
        ((9, 0), ["gfx90a"], True),  # AMD: not ours to judge
    ],
)
def test_which_gpus_a_torch_was_built_for(capability, built, runs, monkeypatch):
    a_gpu(monkeypatch, capability, built=built)
    assert (hardware.gpu_refusal("cuda") is None) == runs


def test_a_gpu_without_kernels_is_one_line(monkeypatch, capsys):
    a_gpu(monkeypatch, (6, 0), built=["sm_70", "sm_80"])
    assert hardware.pick_device("auto") == "cpu"
    (line,) = capsys.readouterr().out.splitlines()
    assert "no kernels for the GPU Tesla X (sm_60, built for sm_70, sm_80)" in line
    assert "GPU T4 x2" in line and line.endswith("the CPU is used")
    with pytest.raises(SkillStackError, match="no kernels for the GPU Tesla X"):
        load_backbone("minilm", device="cuda")


def test_a_device_that_is_not_there(monkeypatch):
    with pytest.raises(SkillStackError, match="'cuda' is not there"):
        hardware.pick_device("cuda")
    with pytest.raises(SkillStackError, match="'mps' is not there"):
        hardware.pick_device("mps")
    a_gpu(monkeypatch)
    assert [hardware.pick_device(d) for d in ("auto", "cuda:0", "cpu")] == ["cuda", "cuda:0", "cpu"]
    with pytest.raises(SkillStackError, match="'cuda:1' is not there"):
        hardware.pick_device("cuda:1")


@pytest.mark.parametrize(
    "capability, config, expected",
    [
        ((8, 0), llama(), "bfloat16"),
        ((7, 5), llama(), "float16"),
        ((6, 1), llama(), "float32"),
        ((9, 0), llama().__class__(), "bfloat16"),
        ((9, 0), llama(head_dim=64).__class__(num_hidden_layers=1, vocab_size=99), "float32"),
    ],
)
def test_precision_by_hardware(capability, config, expected, monkeypatch):
    a_gpu(monkeypatch, capability)
    assert hardware.suitable_dtype("cuda", "decoder", config) == expected
    assert hardware.suitable_dtype("cuda", "encoder", config) == "float32"
    assert hardware.suitable_dtype("cpu", "decoder", config) == "float32"


def test_gemma_is_not_float16(monkeypatch):
    from transformers import Gemma3TextConfig

    a_gpu(monkeypatch, (7, 5))
    assert hardware.suitable_dtype("cuda", "decoder", Gemma3TextConfig()) == "float32"
    a_gpu(monkeypatch, (8, 0))
    assert hardware.suitable_dtype("cuda", "decoder", Gemma3TextConfig()) == "bfloat16"


# ------------------------------------------------------------------ memory


def test_parameters_are_counted_without_the_model(model_dirs):
    model = load_backbone(str(model_dirs["llama"]), device="cpu").model
    total, linear = hardware.count_parameters(model.config)
    assert total == sum(p.numel() for p in model.parameters())
    assert linear == sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    assert hardware.weight_bytes((10, 8), "float16", None) == 20
    assert hardware.weight_bytes((10, 8), "float16", "nf4") == 2 * 2 + 8 * 0.5625


def test_a_model_goes_where_it_fits(monkeypatch, capsys):
    place = lambda *how: hardware.place("big", llama(), *how, "cuda")  # noqa: E731
    a_gpu(monkeypatch, free=(16,))
    assert place("float32", None) is None and hardware.place("big", None, "", None, "cpu") is None
    a_gpu(monkeypatch, free=(4, 4))
    assert place("float32", None) == "auto" and place("float16", None) is None
    assert capsys.readouterr().out == "big does not fit on one GPU and is spread over 2\n"
    a_gpu(monkeypatch, free=(2.5,))
    with pytest.raises(SkillStackError, match=r"5\.3 GiB in float32, 2\.5 GiB are free.*='nf4' ne"):
        place("float32", None)
    a_gpu(monkeypatch, free=(1,))
    with pytest.raises(SkillStackError, match="choose a smaller model"):
        place("float32", "nf4")


def test_the_device_map_reaches_transformers(model_dirs, monkeypatch):
    """A spread model is one with accelerate's hooks; it is made here on the CPU alone."""
    from accelerate import dispatch_model
    from transformers import AutoModel

    from skillstack_helpers import loading

    load, maps = AutoModel.from_pretrained, []

    def spread(*args, device_map, **kwargs):
        maps.append(device_map)
        model, report = load(*args, **kwargs)
        return dispatch_model(model, {"": "cpu"}, force_hooks=True), report

    plain = load_backbone(str(model_dirs["llama"]), device="cpu")
    monkeypatch.setattr(loading, "place", lambda *_: "auto")
    monkeypatch.setattr(AutoModel, "from_pretrained", spread)
    hooked = load_backbone(str(model_dirs["llama"]), device="cpu", gradient_checkpointing=True)
    assert maps == ["auto"] and hooked.model._hf_hook is not None
    assert np.array_equal(hooked.embed(["the of"]), plain.embed(["the of"]))
    assert torch.equal(gradients(hooked)[0], gradients(plain)[0])


def test_what_will_not_fit_is_said_before_training(monkeypatch, capsys, backbone):
    big = dataclasses.replace(backbone, name="big", device="cuda", dtype="float16")
    config = TrainingConfig()
    monkeypatch.setattr(type(big), "max_positions", 4096)
    big.model = torch.nn.Module()
    big.model.config = llama()
    a_gpu(monkeypatch, free=(8,))
    hardware.advise(big, config)
    assert capsys.readouterr().out == ""
    a_gpu(monkeypatch, free=(2,))
    hardware.advise(big, config)
    hardware.advise(big, config)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("big: batches of 8 texts of up to 160 tokens keep about 3.1 GiB")
    assert "quantize='nf4' or gradient_checkpointing=True (about 0.3 GiB) needs less" in line
    hardware.advise(dataclasses.replace(big, quantize="nf4", gradient_checkpointing=True), config)
    assert capsys.readouterr().out == ""
    hardware.advise(dataclasses.replace(big, device="cpu"), config)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------ gradient checkpointing


def gradients(backbone, rows=8):
    """LoRA gradients of one batch under a slot that is the same every time, and the bytes that
    autograd kept for them."""
    backbone.attach(4, 8)
    torch.manual_seed(3)
    for parameter in backbone.lora_parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    head = LinearHead(backbone, ("no", "yes"))
    ids = backbone.encode([f"class{i % 2} of the and" + " the" * i for i in range(rows)], 32)
    loss = classification_loss([head], ids, np.arange(rows) % 2, np.zeros(rows, dtype=int))
    parameters, kept = list(backbone.lora_parameters.values()), []

    def keep(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with training.trainable(parameters):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step = loss(np.arange(rows))
        step.backward()
        return torch.cat([p.grad.flatten() for p in parameters]), sum(kept)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(kind, model_dirs):
    plain = load_backbone(str(model_dirs[kind]), device="cpu")
    lean = load_backbone(str(model_dirs[kind]), device="cpu", gradient_checkpointing=True)
    assert np.array_equal(plain.embed(["class1 of the"]), lean.embed(["class1 of the"]))
    (expected, kept), (found, fewer) = gradients(plain), gradients(lean)
    assert torch.equal(found, expected) and expected.abs().max() > 0
    assert fewer < kept / 2
    assert not any(module.training for module in lean.model.modules())  # no dropout


def test_a_copy_of_a_checkpointed_model_is_its_own(model_dirs, stream):
    lean = load_backbone(str(model_dirs["bert"]), device="cpu", gradient_checkpointing=True)
    config = TrainingConfig(epochs=1, batch_size=4, max_length=32)
    before = copy.deepcopy(lean.model.state_dict())
    tuned, plain = (
        baselines.FineTuning(b, config).learn(stream[0])
        for b in (lean, load_backbone(str(model_dirs["bert"]), device="cpu"))
    )
    assert tuned == plain and tuned[0] != tuned[-1]
    assert all(torch.equal(before[n], p) for n, p in lean.model.state_dict().items())


def test_gradient_checkpointing_identifies_no_run():
    assert RunConfig(gradient_checkpointing=True).identity() == {}


# ------------------------------------------------------------------ batches that do not fit


def limited(backbone, rows, where="forward"):
    """A backbone whose memory holds so many rows of a batch, no more; counts what it refused."""
    refused, read = [], backbone.model.forward  # before a slot is attached, which may be another

    def check(n):
        if n > rows:
            refused.append(n)
            raise torch.OutOfMemoryError("CUDA out of memory")

    def forward(*args, **kwargs):
        n = len(kwargs["input_ids"])
        if where == "forward" or not torch.is_grad_enabled():
            check(n)
        output = read(*args, **kwargs)
        if where == "backward" and output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda _: check(n))
        return output

    backbone.model.forward = forward
    return refused


def learned(backbone, learner, stream):
    learner = learner(backbone, TrainingConfig(epochs=2, batch_size=8, max_length=32, lr=1e-3))
    losses = [learner.learn(data) for data in stream[:2]]
    return losses, learner._adapter, learner.evaluate(stream[0])


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "learner", [baselines.Sequential, baselines.GatedEWCReplay, baselines.EWC, baselines.OLoRA]
)
def test_a_batch_that_does_not_fit_is_split(learner, where, model_dirs, stream, capsys):
    """The same rows, losses and parameters, replayed rows and penalties included."""
    whole, parts = (load_backbone(str(model_dirs["bert"]), device="cpu") for _ in range(2))
    refused = limited(parts, 3, where)
    expected, found = (learned(backbone, learner, stream) for backbone in (whole, parts))
    assert refused and max(refused) >= 8
    np.testing.assert_allclose(np.concatenate(found[0]), np.concatenate(expected[0]), rtol=2e-4)
    for name, weights in expected[1].items():
        torch.testing.assert_close(found[1][name], weights, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(found[2].logits, expected[2].logits, atol=1e-3)
    lines = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert lines == [line for line in dict.fromkeys(lines)]
    assert any("in training are read 2 texts at a time" in line for line in lines)


def test_written_answers_are_split_by_rows_and_weighted_by_tokens(decoders, stream):
    """Label words of one and of two tokens: no mean over parts would be right."""
    results = []
    for rows in (99, 3):
        backbone = load_backbone(str(decoders["llama"]), device="cpu")
        refused = limited(backbone, rows)
        backbone.attach(4, 8)
        torch.manual_seed(0)
        backbone.reset_lora()
        data = stream[2]
        head = PromptHead(backbone, data.task.label_names, instruction(data.task))
        config = TrainingConfig(epochs=1, batch_size=8, max_length=64, lr=1e-3)
        head.train(data, config, np.random.default_rng(0))
        assert bool(refused) == (rows == 3)
        results.append(torch.cat([p.flatten() for p in backbone.lora_parameters.values()]))
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-5)


def test_one_text_that_does_not_fit_is_one_line(model_dirs, stream):
    backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
    limited(backbone, 0)
    with pytest.raises(SkillStackError, match="does not hold one text: quantize='nf4'"):
        SkillStack(backbone).grow(stream[0], TrainingConfig(max_length=32))
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_random_numbers_are_drawn_once_for_a_batch_that_is_tried_again():
    weight, drawn, failed = torch.zeros(1), [], []

    def loss(rows):
        drawn.append(rng.random())
        if len(drawn) == 2:
            raise torch.OutOfMemoryError
        return (weight - 1).square().sum()

    rng = np.random.default_rng(0)
    config = TrainingConfig(epochs=3, batch_size=1)
    training.train(loss, [weight], [1], config, rng, lr=0.1, split=failed.append)
    assert drawn[1] == drawn[2] and len({*drawn}) == 3 and failed == [1]


# ------------------------------------------------------------------ float16


def test_float16_keeps_float32_parameters(model_dirs, stream):
    backbone = load_backbone(str(model_dirs["llama"]), "float16", device="cpu")
    stack = SkillStack(backbone)
    frame = stack.grow(stream[0], TrainingConfig(epochs=1, batch_size=4, max_length=32))
    assert next(backbone.model.parameters()).dtype == torch.float16
    assert {p.dtype for p in backbone.lora_parameters.values()} == {torch.float32}
    assert frame.weights().head["weight"].dtype == torch.float32
    assert np.isfinite(frame.losses).all() and backbone.identity()["dtype"] == "float16"


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def scaled_gradients(backbone, factor, scale):
    """LoRA gradients of a loss as small as `factor` makes it, computed at a scale of it."""
    backbone.attach(4, 8)
    torch.manual_seed(3)
    for parameter in backbone.lora_parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    head = LinearHead(backbone, ("no", "yes"))
    ids = backbone.encode([f"class{i % 2} of the and" for i in range(8)], 32)
    loss = classification_loss([head], ids, np.arange(8) % 2, np.zeros(8, dtype=int))
    parameters = list(backbone.lora_parameters.values())
    with training.trainable(parameters):
        (loss(np.arange(8)) * factor * scale).backward()
        return torch.cat([p.grad.flatten() for p in parameters]) / scale


def test_scaled_float16_gradients_are_those_of_float32(model_dirs):
    single, half = (
        load_backbone(str(model_dirs["llama"]), dtype, device="cpu")
        for dtype in ("float32", "float16")
    )
    small = 2.0**-12  # of the loss, as late in training
    expected = scaled_gradients(single, small, 1)
    plain, scaled = (scaled_gradients(half, small, scale) for scale in (1, 2.0**16))
    assert relative_error(scaled, expected) < 0.02 < 0.2 < relative_error(plain, expected)
    assert (plain == 0).float().mean() > 0.05 > (scaled == 0).float().mean()


def test_float16_training_follows_float32(model_dirs, stream):
    frames = []
    for dtype in ("float32", "float16"):
        stack = SkillStack(load_backbone(str(model_dirs["llama"]), dtype, device="cpu"))
        config = TrainingConfig(epochs=12, batch_size=12, max_length=32, lr=5e-3)
        frames.append(stack.grow(stream[0], config))
    np.testing.assert_allclose(frames[1].losses, frames[0].losses, atol=0.05)
    assert frames[0].losses[0] - frames[0].losses[-1] > 0.1  # something was learned


def test_a_step_that_overflows_is_made_again_at_a_lower_scale():
    """Gradients are cut to float16's range, as in a float16 model."""
    weight, seen = torch.zeros(2), []

    def loss(rows):
        narrow = weight.half()  # its gradient passes through float16
        value = (40 * (narrow - 1)).float().square().mean()
        seen.append(value.item())
        return value

    config, rng = TrainingConfig(epochs=40, batch_size=1), np.random.default_rng(0)
    losses = training.train(loss, [weight], [1], config, rng, lr=0.1, half=True)
    assert len(losses) == 40 < len(seen) and losses[-1] < losses[0] / 10
    assert seen[0] == seen[1]  # no step was made in between


def test_gradients_that_overflow_at_every_scale_are_one_line():
    weight = torch.zeros(2)

    def loss(rows):
        return (weight.half() * 300).square().sum().float() * 300 + weight.sum() * float("inf")

    config, rng = TrainingConfig(epochs=1, batch_size=1), np.random.default_rng(0)
    with pytest.raises(SkillStackError, match="overflow float16 at every scale.*'float32'"):
        training.train(loss, [weight], [1], config, rng, lr=0.1, half=True)
    assert weight.tolist() == [0, 0] and weight.grad is None


def test_answers_that_overflow_are_no_answers(model_dirs):
    backbone = load_backbone(str(model_dirs["llama"]), "float16", device="cpu")
    head = LinearHead(backbone, ("no", "yes"))
    head.scores(["the of"], 32)
    backbone.model.norm.weight.fill_(60_000.0)
    with pytest.raises(SkillStackError, match="not finite in float16: load it with dtype='float"):
        head.scores(["the of"], 32)


def test_the_fisher_information_does_not_vanish_in_float16(model_dirs, stream):
    config = TrainingConfig(epochs=1, batch_size=4, max_length=32)
    found = {}
    for dtype in ("float32", "float16"):
        backbone = load_backbone(str(model_dirs["llama"]), dtype, device="cpu")
        learner = baselines.EWC(backbone, config)
        learner.learn(stream[0])
        ((found[dtype], _),) = learner.anchors
    assert relative_error(found["float16"], found["float32"]) < 0.05


def test_full_fine_tuning_of_a_float16_model_is_float32(model_dirs, stream):
    backbone = load_backbone(str(model_dirs["llama"]), "float16", device="cpu")
    learner = baselines.FineTuning(backbone, TrainingConfig(epochs=1, max_length=32), sparsity=0.1)
    learner.learn(stream[0])
    assert {p.dtype for p in learner.backbone.model.parameters()} == {torch.float32}
    assert next(backbone.model.parameters()).dtype == torch.float16


# ------------------------------------------------------------------ one stack, two precisions


def test_a_stack_opens_in_another_precision_when_asked(model_dirs, stream, tmp_path, capsys):
    config = TrainingConfig(epochs=3, batch_size=4, lr=5e-3, max_length=32)
    single, half = (
        load_backbone(str(model_dirs["llama"]), dtype, device="cpu")
        for dtype in ("float32", "bfloat16")
    )
    stack = SkillStack(single)
    stack.grow(stream[0], config)
    folder = stack.save_pretrained(tmp_path / "stack")
    for open_ in (SkillStack.from_pretrained, SkillStack.open):
        with pytest.raises(SkillStackError, match=r"dtype 'float32', .*any_precision=True"):
            open_(folder, half)
    capsys.readouterr()
    other = SkillStack.open(folder, half, any_precision=True)
    assert capsys.readouterr().out == f"{folder}: trained in float32, used in bfloat16\n"
    texts = stream[0].texts("eval")
    one, two = (s.predict(texts, "imdb") for s in (stack, other))
    assert (one.labels == two.labels).mean() > 0.9
    np.testing.assert_allclose(two.probabilities, one.probabilities, atol=0.05)
    assert not np.array_equal(two.probabilities, one.probabilities)

    frame = other.copy().grow(stream[1], config)  # resumed
    assert frame.training["dtype"] == "bfloat16" and frame.training["quantization"] is None
    assert "dtype" not in stack["imdb"].training
    other.grow(stream[1], config)
    other.save_pretrained(folder)
    again = SkillStack.from_pretrained(folder, single)  # still a float32 stack
    assert again["agnews"].training["dtype"] == "bfloat16" and capsys.readouterr().out == ""
    assert "dtype" not in again.grow(stream[2], config).training


def test_another_model_is_refused_in_any_precision(model_dirs, stream, tmp_path):
    stack = SkillStack(load_backbone(str(model_dirs["llama"]), device="cpu"))
    folder = stack.save_pretrained(tmp_path / "stack")
    other = load_backbone(str(model_dirs["bert"]), device="cpu")
    with pytest.raises(SkillStackError, match="backbone revision"):
        SkillStack.from_pretrained(folder, other, any_precision=True)
