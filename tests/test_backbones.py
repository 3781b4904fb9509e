import numpy as np
import pytest
import torch

from skillstack_helpers import SkillStackError, backbones, training
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack

TEXTS = ["class0 of the", "a class1 and in it was", "", "row unknown words only here"]


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_features_ignore_padding(model_dirs, kind):
    backbone = load_backbone(str(model_dirs[kind]), device="cpu")
    assert backbone.kind == ("encoder" if kind == "bert" else "decoder")
    ids = backbone.encode(TEXTS, 32)
    with torch.inference_mode():
        together = backbone.features(*training.pad(ids, backbone.pad_id, "cpu"))
        alone = [backbone.features(*training.pad([row], backbone.pad_id, "cpu")) for row in ids]
    assert together.shape == (4, 32) and together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_encoder_features_are_the_scaled_normalized_mean(model_dirs, backbone):
    from transformers import AutoModel

    ids = backbone.encode(["class0 of the"], 32)
    inputs, mask = training.pad(ids, backbone.pad_id, "cpu")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(model_dirs["bert"])(inputs).last_hidden_state[0]
        features = backbone.features(inputs, mask)[0]
    mean = hidden.numpy().mean(0)
    expected = 16 * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_each_text_is_tokenized_once(backbone):
    calls = []
    tokenizer = backbone.tokenizer

    def counting(texts, **options):
        calls.extend(texts)
        return tokenizer(texts, **options)

    backbone.tokenizer = counting
    backbone.encode(["one", "two", "one"], 16)
    backbone.encode(["two", "three"], 16)
    assert sorted(calls) == ["one", "three", "two"]


def test_cut_at_max_length_and_strings_only(backbone):
    assert len(backbone.encode(["of the and " * 50], 16)[0]) == 16
    with pytest.raises(SkillStackError, match="texts must be strings, got 7"):
        backbone.encode(["a", 7], 16)


def test_slot_has_lora_on_all_linear_layers_and_nothing_else_trains(backbone):
    backbone.attach(4, 8)
    shapes = {name: tuple(p.shape) for name, p in backbone.lora_parameters.items()}
    a = next(n for n in shapes if "intermediate.dense.lora_A" in n)
    assert shapes[a] == (4, 32) and shapes[a.replace("lora_A", "lora_B")] == (48, 4)
    assert len(shapes) == 2 * 2 * 6  # two layers, six linear maps each, A and B
    assert not any("pooler" in name for name in shapes)
    trainable = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trainable)


def test_slot_can_change_its_rank(backbone):
    backbone.attach(4, 8)
    backbone.attach(2, 8)
    assert {p.shape[0] for n, p in backbone.lora_parameters.items() if "lora_A" in n} == {2}
    assert sum(".lora_" in n for n, _ in backbone.model.named_parameters()) == 24


def test_misfit_adapter_is_refused(backbone):
    backbone.attach(4, 8)
    weights = backbone.read_lora()
    name = next(iter(weights))
    with pytest.raises(SkillStackError, match="somewhere: adapter does not fit"):
        backbone.write_lora({n: t for n, t in weights.items() if n != name}, "somewhere")
    with pytest.raises(SkillStackError, match="the backbone needs"):
        backbone.write_lora(weights | {name: torch.zeros(1, 1)}, "somewhere")


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nf4_trains_after_an_evaluation(model_dirs, stream, config, kind, dtype):
    """bitsandbytes' repacking at the first evaluation used to cut the gradients off silently."""
    pytest.importorskip("bitsandbytes")
    backbone = load_backbone(str(model_dirs[kind]), dtype, "nf4", "cpu")
    layers = [m for m in backbone.model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(layers) >= 12
    stack = SkillStack(backbone)
    stack.grow(stream[0], config)  # ends with an evaluation
    stack.grow(stream[1], config)
    assert np.isfinite(stack.frames[1].losses).all()
    first, second = (frame.weights().lora for frame in stack.frames)
    lowest = [name for name in first if "layers.0." in name or "layer.0." in name]
    assert lowest and all(not torch.equal(first[n], second[n]) for n in lowest)
    assert stack.evaluate(stream[0]).accuracy == stack["imdb"].metrics["accuracy"]


def test_nf4_gradient_is_that_of_the_dequantized_model(model_dirs):
    """The gradient below a 4-bit layer, before and after an evaluation."""
    pytest.importorskip("bitsandbytes")
    backbone = load_backbone(str(model_dirs["llama"]), "float32", "nf4", "cpu")
    backbone.attach(4, 8)
    ids = training.pad(backbone.encode(TEXTS[:2], 32), backbone.pad_id, "cpu")
    name = next(n for n in backbone.lora_parameters if "layers.0" in n and "lora_B" in n)
    parameter = backbone.lora_parameters[name].requires_grad_(True)

    def gradient():
        parameter.grad = None
        backbone.features(*ids).square().sum().backward()
        return parameter.grad.clone()

    before = gradient()
    with torch.inference_mode():
        backbone.features(*ids)
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(), before)


def test_embed_pools_the_frozen_model_and_each_text_once(backbone, monkeypatch):
    backbone.attach(4, 8)
    before = backbone.embed(["class1 of the", "to"])
    assert before.shape == (2, 3, 32) and before.dtype == np.float32  # 2 layers and the input
    with torch.no_grad():
        for parameter in backbone.lora_parameters.values():
            parameter += 1.0  # an adapter that would change everything
    monkeypatch.setattr(backbone, "_pooled", lambda *_: pytest.fail("embedded again"))
    assert np.array_equal(backbone.embed(["to", "to"])[1], before[1])
    monkeypatch.undo()
    backbone.forget()
    assert np.array_equal(backbone.embed(["class1 of the", "to"]), before)
    ids = torch.from_numpy(backbone.encode(["to"], 64)[0].astype(np.int64))[None]
    with torch.inference_mode(), backbone.without_adapter():
        last = backbone.model(input_ids=ids).last_hidden_state.mean(1)[0].numpy()
    assert np.allclose(before[1, -1], last, atol=2e-3)  # kept with float16 precision


def test_half_an_emoji_is_read(backbone):
    assert np.isfinite(backbone.embed(["\ud83d", ""])).all()


# ------------------------------------------------------------------ the slot and other positions


def test_without_adapter_holds_for_a_slot_that_is_made_inside(backbone):
    before = backbone.embed(["class1 of"])
    ids = torch.from_numpy(backbone.encode(["class1 of"], 64)[0].astype(np.int64))[None]
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        frozen = backbone.features(ids, mask)
    with backbone.without_adapter(), torch.no_grad():
        backbone.attach(4, 8)
        for parameter in backbone.lora_parameters.values():
            parameter += 1.0
        assert torch.equal(backbone.features(ids, mask), frozen)
    with torch.inference_mode():
        assert not torch.equal(backbone.features(ids, mask), frozen)
    backbone.forget()
    assert np.array_equal(backbone.embed(["class1 of"]), before)
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_roberta_counts_positions_from_its_padding_token(tmp_path, model_dirs):
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    AutoTokenizer.from_pretrained(model_dirs["bert"]).save_pretrained(tmp_path)
    size = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    config = RobertaConfig(**size, vocab_size=200, max_position_embeddings=34, pad_token_id=1)
    RobertaModel(config).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), device="cpu")
    assert backbone.max_positions == 32
    assert np.isfinite(backbone.embed(["the " * 50])).all()
    assert len(backbone.encode(["the " * 50], 33)[0]) == 32


def test_the_token_cache_keeps_to_its_size(backbone, monkeypatch):
    monkeypatch.setattr(backbones, "_CACHED_TEXTS", 10)
    for i in range(30):
        backbone.encode([f"the {i}"], 8)
        backbone.encode([f"of {i}"], 8, middle=True)
        assert len(backbone._tokens) <= 10


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors"])
def test_the_revision_of_a_folder_is_what_answers_depend_on(file, model_dirs, tmp_path):
    import shutil

    folder = shutil.copytree(model_dirs["bert"], tmp_path / "model")
    first = load_backbone(str(folder), device="cpu")
    (folder / "README.md").write_text("other words")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    other = load_backbone(str(moved), device="cpu")
    assert other.revision == first.revision and other.differs_from(first.identity()) is None
    if file == "model.safetensors":
        first.model.embeddings.word_embeddings.weight.data += 1
        first.model.save_pretrained(folder)
    else:  # the same words with other ids; another field
        text = (folder / file).read_text()
        text = text.replace('"of"', '"fo"') if file == "tokenizer.json" else text + " "
        (folder / file).write_text(text)
    changed = load_backbone(str(folder), device="cpu")
    assert changed.differs_from(other.identity()) == "revision"


def test_a_slot_made_in_inference_mode_can_be_switched_and_trained(backbone):
    with torch.inference_mode():
        backbone.attach(4, 8)
    with backbone.without_adapter():
        pass
    assert not any(p.is_inference() for p in backbone.lora_parameters.values())
