"""Models one brings: per architecture a small random one, made here from its config, grows a stack,
is saved and opened, opened with plain PEFT, embedded and routed.

What is tried per model stands in `docs/models.md`: a mark there is a check here that must pass, a
dash one that must fail.
"""

import dataclasses
import json
import re
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import FILLER, ROOT

from skillstack_helpers import SkillStackError, TrainingConfig, sharing, training
from skillstack_helpers.files import digest
from skillstack_helpers.hardware import say_once
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import load_router, make_router, save_router
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task

POSITIONS = 64
SIZE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=POSITIONS,
)
GROUPED = SIZE | dict(num_key_value_heads=1)
GEMMA = GROUPED | dict(head_dim=16)
SHORT = dict(sliding_window=16)  # shorter than the texts
FROM_PAD = SIZE | dict(max_position_embeddings=POSITIONS + 2, pad_token_id=1)  # RoBERTa's way
DEBERTA = SIZE | dict(relative_attention=True, pos_att_type=["p2c", "c2p"])
VISION = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    image_size=16,
    patch_size=8,
)
MODELS = {  # row of the page -> (model_type, what its config says)
    "BERT": ("bert", SIZE),
    "RoBERTa": ("roberta", FROM_PAD),
    "XLM-R": ("xlm-roberta", FROM_PAD),
    "DistilBERT": (
        "distilbert",
        dict(dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=POSITIONS),
    ),
    "ALBERT": ("albert", SIZE | dict(embedding_size=16)),
    "ELECTRA": ("electra", SIZE | dict(embedding_size=16)),
    "MPNet": ("mpnet", FROM_PAD),
    "DeBERTa-v2": ("deberta-v2", DEBERTA),
    "DeBERTa-v3": (
        "deberta-v2",
        DEBERTA
        | dict(share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm")
        | dict(position_biased_input=False, type_vocab_size=0),
    ),
    "ModernBERT": ("modernbert", SIZE | dict(global_attn_every_n_layers=2, local_attention=16)),
    "GPT-2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS)),
    "GPT-NeoX": ("gpt_neox", SIZE),
    "OPT": ("opt", SIZE | dict(ffn_dim=48, word_embed_proj_dim=32)),
    "OPT-350m": (
        "opt",
        SIZE | dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    ),
    "BLOOM": ("bloom", dict(hidden_size=32, n_layer=2, n_head=2)),
    "Falcon": ("falcon", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)),
    "Phi-3": ("phi3", SIZE),
    "Llama": ("llama", GROUPED),
    "Mistral": ("mistral", GROUPED | SHORT),
    "Qwen2": ("qwen2", GROUPED),
    "Qwen3": ("qwen3", GEMMA),
    "Gemma": ("gemma", GEMMA),
    "Gemma 2": ("gemma2", GEMMA | SHORT),
    "Gemma 3, text": ("gemma3_text", GEMMA | SHORT),
    "Gemma 3, text and images": (
        "gemma3",
        dict(text_config=GEMMA | SHORT, vision_config=VISION, mm_tokens_per_image=4),
    ),
    "SmolLM3": ("smollm3", GROUPED | dict(no_rope_layers=[1, 0])),
    "LFM2": ("lfm2", GROUPED | dict(layer_types=["conv", "full_attention"])),
}
ROUTERS = ("hybrid_embed", "scaffold_blind", "centroid", "profile", "arrow")
CONFIG = TrainingConfig(epochs=1, lr=5e-3, batch_size=8, lora_r=2, lora_alpha=4)  # 160 tokens
LONG = "of the and " * 50  # than the models have positions for
PAGE = ROOT / "docs" / "models.md"


def save_model(folder, model_type, settings):
    """A random model as the hub has it, with the head it was trained with, and its tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        PreTrainedTokenizerFast,
    )

    pad = settings.get("pad_token_id", 0)
    special = ["[PAD]", "[END]"] if pad == 0 else ["[END]", "[PAD]"]
    words = " ".join([*FILLER, "class", *(f"{name}word" for name in ("imdb", "agnews"))])
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator([words], 400, 1, show_progress=False, special_tokens=special)
    names = dict(pad_token="[PAD]", eos_token="[END]", unk_token="[END]")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **names).save_pretrained(folder)
    ids = dict(vocab_size=tokenizer.get_vocab_size(), pad_token_id=pad)
    ids |= dict(eos_token_id=1 - pad, bos_token_id=1 - pad)
    if "text_config" in settings:
        settings = settings | {"text_config": settings["text_config"] | ids}
        settings |= dict(image_token_index=5, boi_token_index=6, eoi_token_index=7)
    else:
        settings = ids | settings
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**settings)
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    classes = MODEL_FOR_MASKED_LM_MAPPING if masked else MODEL_FOR_CAUSAL_LM_MAPPING
    model = classes[type(config)](config)
    for name, parameter in model.named_parameters():  # as trained ones: no bias is 0, no norm 1
        torch.nn.init.normal_(parameter, float("norm" in name.lower()), 0.08)
    model.save_pretrained(folder)


class Grown(NamedTuple):
    """A stack of two frames on a small model, saved."""

    model: object  # folder
    stack: SkillStack
    saved: object  # folder
    stream: list

    @property
    def texts(self):
        return [text for data in self.stream for text in data.texts("router")]

    @property
    def names(self):
        return [data.name for data in self.stream for _ in data.texts("router")]


@pytest.fixture(scope="module")
def two_tasks(data_dir):
    """Tasks with 2 and 4 classes, which reads as 12 and 16 rows."""
    return [load_task(n, 6, 8, 6, seed=0, source="folder", data_dir=data_dir)
            for n in ("imdb", "agnews")]  # fmt: skip


@pytest.fixture(scope="module")
def grown(request, two_tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder / "model", *MODELS[request.param])
    stack = SkillStack(load_backbone(str(folder / "model"), device="cpu"))
    for data in two_tasks:
        stack.grow(data, CONFIG)
    saved = stack.save_pretrained(folder / "stack")
    return Grown(folder / "model", stack, saved, two_tasks)


def grows(grown):
    """Every layer of the slot learned, nothing else did, and the first frame answers as it did,
    whatever the texts it is asked with."""
    stack, backbone = grown.stack, grown.stack.backbone
    first, second = stack.frames
    assert np.isfinite(first.losses + second.losses).all()
    for name, tensor in first.weights().lora.items():
        assert tensor.abs().max() > 0, f"{name} has no gradient"
        assert not torch.equal(tensor, second.weights().lora[name])
    layers = [m for m in backbone.model.base_model.model.modules() if hasattr(m, "lora_A")]
    assert len(layers) == len(first.weights().lora) / 2 >= 7  # ALBERT shares them
    assert backbone.hidden_size == first.weights().head["weight"].shape[1]
    assert digest(stack.evaluate(grown.stream[0]).logits) == first.metrics["logits_sha256"]
    head, ids = stack.activate("imdb"), backbone.encode(grown.texts, 64)
    with torch.inference_mode():
        together = backbone.features(*training.pad(ids, backbone.pad_id, "cpu"))
        alone = [backbone.features(*training.pad([row], backbone.pad_id, "cpu")) for row in ids]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert together.shape == (len(ids), backbone.hidden_size) and together.std(0).max() > 1e-3
    assert head.layer(together).isfinite().all()
    assert np.isfinite(stack.predict([LONG], frame="imdb").probabilities).all()
    assert backbone.max_positions >= POSITIONS  # BLOOM has no end, Falcon a default


def reloads(grown):
    """Opened on a model that is loaded anew, both frames answer bit-equal."""
    backbone = load_backbone(str(grown.model), device="cpu")
    stack = SkillStack.from_pretrained(grown.saved, backbone)
    for data in reversed(grown.stream):
        measured = stack[data.name].metrics["logits_sha256"]
        assert digest(stack.evaluate(data).logits) == measured


def opens_with_peft(grown):
    """`transformers` and PEFT alone give the frame's answers, without a warning."""
    from peft import PeftConfig, PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForSequenceClassification

    encoder = grown.stack.backbone.kind == "encoder"
    for data in grown.stream:
        folder = grown.saved / "frames" / data.name
        classifies = PeftConfig.from_pretrained(folder).task_type == "SEQ_CLS"
        if classifies:
            base = AutoModelForSequenceClassification.from_pretrained(
                grown.model, num_labels=len(data.task.label_names)
            )
        else:
            base = AutoModel.from_pretrained(grown.model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", FutureWarning)
            plain = PeftModel.from_pretrained(base, folder).eval()
        answers = []
        for text in data.texts("eval"):
            cut = dict(truncation=True, max_length=grown.stack[data.name].training["max_length"])
            ids = grown.stack.backbone.tokenizer(text, **cut, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                out = plain(input_ids=ids, attention_mask=torch.ones_like(ids))
            if classifies:
                answers.append(out.logits[0])
                continue
            head, hidden = load_file(folder / "head.safetensors"), out.last_hidden_state[0]
            mean = 16 * torch.nn.functional.normalize(hidden.mean(0), dim=0)
            features = mean if encoder else hidden[-1]
            answers.append(head["weight"] @ features + head.get("bias", 0))
        ours = grown.stack.evaluate(data).logits
        np.testing.assert_allclose(torch.stack(answers).numpy(), ours, atol=1e-4, rtol=1e-3)


def embeds(grown):
    """Layers from the token embeddings to the output, of the frozen model."""
    backbone, texts = grown.stack.backbone, grown.texts[:3]
    grown.stack.activate("agnews")
    backbone.forget()
    found = backbone.embed(texts)
    assert len(found) == 3 and found.shape[1] >= 2 and np.isfinite(found).all()
    assert found.std(axis=0).max(axis=-1).min() > 1e-3  # every layer tells texts apart
    for text, row in zip(texts, found, strict=True):
        backbone.forget()
        np.testing.assert_allclose(backbone.embed([text])[0], row, atol=2e-3, rtol=2e-3)
        ids = torch.from_numpy(backbone.encode([text], 64)[0].astype(np.int64))[None]
        with torch.inference_mode(), backbone.without_adapter():
            out = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        last = out.last_hidden_state[0].mean(0).numpy()
        if last.shape == row[-1].shape:  # not below OPT-350m's projection
            np.testing.assert_allclose(row[-1], last, atol=5e-3, rtol=5e-3)


def routes(grown, tmp_path):
    """Every router that reads the model is fitted, answers the same once loaded, and is asked
    through the stack."""
    stack, backbone = grown.stack, grown.stack.backbone
    for name in ROUTERS:
        router = make_router(name, backbone=backbone, stack=stack).fit(grown.texts, grown.names)
        scores = router.decision_function(grown.texts)
        assert np.isfinite(scores).all() and scores.std() > 0
        if name == "hybrid_embed":
            assert (router.predict(grown.texts) == grown.names).mean() > 0.9
        if name == "arrow":
            modules = {n.rsplit(".lora_", 1)[0] for n in stack.frames[0].weights().lora}
            assert router.prototypes_.keys() == modules
        save_router(router, tmp_path / name)
        loaded = load_router(tmp_path / name, backbone=backbone, stack=stack)
        assert np.array_equal(loaded.decision_function(grown.texts), scores)
        assert set(stack.answer(grown.texts[:4], loaded)["frame"]) <= {"imdb", "agnews"}


def mixes(grown):
    """A batch whose rows ask different frames gives what each frame gives alone."""
    stack = grown.stack
    mixed = stack.predict(grown.texts, grown.names).probabilities
    for name in ("imdb", "agnews"):
        rows = [i for i, other in enumerate(grown.names) if other == name]
        texts, head = [grown.texts[i] for i in rows], stack.activate(name)
        alone = torch.from_numpy(head.scores(texts, 160)).softmax(1).numpy()
        np.testing.assert_allclose(mixed[rows, : alone.shape[1]], alone, atol=1e-5)
        assert not mixed[rows, alone.shape[1] :].any()


def shares_a_trunk(grown, tmp_path):
    """Frames above layer 1 of 2: the trunk's states give the answers of the whole model, training
    on them is training, the stack is saved, opened, and opened with plain PEFT."""
    above = dataclasses.replace(CONFIG, first_adapted_layer=1)
    backbone = load_backbone(str(grown.model), device="cpu")
    stack = SkillStack(backbone)
    for data in grown.stream:
        stack.grow(data, above)
    assert stack.first_adapted_layer == 1
    adapted = {int(re.search(r"\.(\d+)\.", n)[1]) for n in stack.frames[0].weights().lora}
    assert adapted == {1}
    head = stack.activate("agnews")
    ids = backbone.encode(grown.texts, 64)
    states = backbone.inputs(grown.texts, 64)
    assert all(s.shape == (len(i), s.shape[1]) for s, i in zip(states, ids, strict=True))
    with torch.inference_mode():
        whole = head.layer(backbone.features(*training.pad(ids, backbone.pad_id, "cpu")))
        upper = head.layer(backbone.features(*training.pad(states, backbone.pad_id, "cpu")))
    torch.testing.assert_close(upper, whole, atol=1e-5, rtol=1e-4)
    assert whole.std(0).max() > 1e-3
    saved = stack.save_pretrained(tmp_path / "stack")
    mixes(Grown(grown.model, stack, saved, grown.stream))
    opens_with_peft(Grown(grown.model, stack, saved, grown.stream))
    reloads(Grown(grown.model, stack, saved, grown.stream))


@pytest.mark.parametrize("grown", ["RoBERTa", "Phi-3", "LFM2"], indirect=True)
def test_the_model_card_opens_it_with_peft(grown, monkeypatch):
    """The card's code for an encoder, a decoder, and one that transformers has no classifier of."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_: str(grown.saved))
    monkeypatch.chdir(grown.model.parent)
    frame, scope = grown.stack["agnews"], {}
    card = sharing._plain_peft(frame, grown.stack.backbone, "user/name")
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1], scope)
    ours = grown.stack.activate("agnews").scores([scope["text"]], 160)[0]
    np.testing.assert_allclose(scope["logits"].numpy(), ours, atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------ shorter than the texts


def test_texts_are_cut_to_the_positions_of_the_model(two_tasks, tmp_path, capsys):
    """bertweet has 128 positions, the published max_length is 160; here 64 and 160."""
    save_model(tmp_path / "model", *MODELS["RoBERTa"])
    backbone = load_backbone(str(tmp_path / "model"), device="cpu")
    say_once.cache_clear()
    assert backbone.max_positions == POSITIONS
    stack = SkillStack(backbone)
    rows = two_tasks[0].train
    data = dataclasses.replace(two_tasks[0], train=rows.assign(text=rows["text"] + LONG))
    frame = stack.grow(data, CONFIG)
    stack.predict([LONG], frame="imdb")
    assert len(backbone.encode([LONG], 160)[0]) == POSITIONS
    said = capsys.readouterr().out.splitlines()
    line = f"{tmp_path / 'model'} has 64 positions: texts are cut there, not at max_length=160"
    assert said == [line]
    assert frame.training["max_length"] == POSITIONS  # what was done
    again = SkillStack(backbone).grow(data, dataclasses.replace(CONFIG, max_length=POSITIONS))
    assert dict(again.training) == dict(frame.training) and again.losses == frame.losses


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("model_type", "reason"),
    {
        "convbert": "reads padding",
        "fnet": "reads padding",
        "funnel": "reads padding",
        "ibert": "integer model",
        "mobilebert": "reads padding",
        "nystromformer": "reads padding",
        "squeezebert": "convolutional model",
    }.items(),
)
def test_models_that_a_frame_would_not_fit_are_refused(model_type, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(SkillStackError, match=f"{model_type} .*{reason}"):
        load_backbone(str(tmp_path), device="cpu")


# ------------------------------------------------------------------ the page


COLUMNS = {
    "grow": grows,
    "reload": reloads,
    "plain PEFT": opens_with_peft,
    "embed": embeds,
    "routers": routes,
    "mixed": mixes,
    "trunk": shares_a_trunk,
}


def page_table():
    """Row -> column -> mark, of the table of the page."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head[2:], row[2:], strict=True)) for row in rows}


def test_the_page_has_a_row_for_every_model_that_is_tried():
    table = page_table()
    assert list(table) == list(MODELS)
    for row in table.values():
        assert list(row) == list(COLUMNS)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("grown", MODELS, indirect=True)
def test_model(grown, column, request, tmp_path):
    check = COLUMNS[column]
    extra = (tmp_path,) if check in (routes, shares_a_trunk) else ()
    row = request.node.callspec.params["grown"]
    mark = page_table()[row][column]
    assert mark in ("✓", "–")
    if mark == "✓":
        check(grown, *extra)
    else:  # the page says that it cannot
        with pytest.raises(Exception, match=r"."):
            check(grown, *extra)
