import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import ANSWERS, edit_json, save_tiny_model

from skillstack_helpers import SkillStackError, compression, generation, training
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.files import digest
from skillstack_helpers.frames import read_frame
from skillstack_helpers.heads import PromptHead, instruction
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import HybridSVMRouter
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task

TASKS = ("imdb", "qqp")


@pytest.fixture(scope="module")
def rows(data_dir):
    return [load_task(n, 8, 20, 6, seed=0, source="folder", data_dir=data_dir) for n in TASKS]


CONFIG = TrainingConfig(epochs=3, lr=2e-2, batch_size=4, lora_r=4, max_length=48, seed=3)


def grow(folder, rows):
    stack = SkillStack(load_backbone(str(folder), device="cpu"))
    for data in rows:
        stack.grow(data, CONFIG, prompt=instruction(data.task))
    return stack


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def stack(request, decoders, rows, tmp_path_factory):
    stack = grow(decoders[request.param], rows)
    stack.save_pretrained(tmp_path_factory.mktemp("stacks") / "stack")
    return stack


@pytest.fixture(scope="module")
def plain(stack):
    """The first frame as plain transformers and PEFT open it, without a line of ours."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(stack.backbone.name)
    return PeftModel.from_pretrained(base, stack.frames[0].folder).eval()


def head_of(stack, data):
    return PromptHead(stack.backbone, data.task.label_names, stack[data.name].prompt)


def prompts_of(stack, data):
    return head_of(stack, data).encode(data.texts("eval"), CONFIG.max_length)


# ------------------------------------------------------------------ learning


def test_the_loss_is_on_the_answer_only(decoders, rows):
    """The first step's loss is that of transformers itself with the prompt's labels masked."""
    from transformers import AutoModelForCausalLM

    backbone = load_backbone(str(decoders["llama"]), device="cpu")
    data = rows[1]  # the word for not_duplicate, "not duplicate", is two tokens
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=len(data.train))
    frame = SkillStack(backbone).grow(data, config, prompt=instruction(data.task))
    head = PromptHead(backbone, data.task.label_names, instruction(data.task))
    prompts = head.encode(data.texts("train"), 48)
    answers = [head.answer_ids(data.task.label_names[k]) for k in data.labels("train")]
    assert {len(answer) for answer in answers} == {2, 3}
    ids, mask = training.pad(
        [np.concatenate(p) for p in zip(prompts, answers, strict=True)], 0, "cpu"
    )
    labels = torch.full_like(ids, -100)
    for i, (one, other) in enumerate(zip(prompts, answers, strict=True)):
        labels[i, len(one) : len(one) + len(other)] = torch.from_numpy(other).long()
    model = AutoModelForCausalLM.from_pretrained(decoders["llama"])
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert frame.losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_frames_learn_and_link(stack, rows):
    losses = stack["imdb"].losses  # random embeddings under a frozen output layer: not much
    assert np.mean(losses[-4:]) < 0.97 * np.mean(losses[:4])
    for data in rows:
        frame = stack[data.name]
        assert frame.weights().head == {} and frame.prompt == instruction(data.task)
    assert [frame.name for frame in stack.chain()] == ["qqp", "imdb"]


# ------------------------------------------------------------------ answering


def test_writing_is_what_plain_transformers_writes(stack, plain, rows):
    tokenizer = stack.backbone.tokenizer
    ours = generation.generate(stack, rows[0].texts("eval"), "imdb", max_new_tokens=5)
    theirs = []
    for row in prompts_of(stack, rows[0]):  # one by one, no padding
        ids = torch.from_numpy(row).long()[None]
        out = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        theirs.append(tokenizer.decode(out[0, len(row) :], skip_special_tokens=True))
    assert ours == theirs
    assert len(set(len(row) for row in prompts_of(stack, rows[0]))) > 1  # there was padding


def test_choice_scores_are_the_answers_log_probabilities(stack, plain, rows):
    labels = ("negative", "positive", "not duplicate")
    stack.activate("imdb")
    head = PromptHead(stack.backbone, labels, stack["imdb"].prompt)
    texts = rows[0].texts("eval")[:4]
    scores = head.scores(texts, CONFIG.max_length)
    for i, row in enumerate(head.encode(texts, CONFIG.max_length)):
        for k, label in enumerate(labels):
            answer = torch.from_numpy(head.answer_ids(label)).long()
            ids = torch.cat([torch.from_numpy(row).long(), answer])[None]
            with torch.inference_mode():
                logs = plain(input_ids=ids).logits[0].log_softmax(-1)
            at = torch.arange(len(row) - 1, len(row) - 1 + len(answer))
            assert scores[i, k] == pytest.approx(logs[at, answer].sum().item(), abs=1e-4)


def test_batch_size_changes_nothing(stack, rows):
    texts = rows[0].texts("eval")
    head = stack.activate("imdb")
    scores = [head.scores(texts, CONFIG.max_length, batch_size=size) for size in (1, 5, 32)]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-4)
    written = [generation.generate(stack, texts, "imdb", batch_size=size) for size in (1, 5, 32)]
    assert written[0] == written[1] == written[2]


def test_a_frame_writes_the_same_after_another_had_the_slot(stack, rows):
    texts = rows[0].texts("eval")
    first = generation.generate(stack, texts, "imdb")
    scores = digest(stack.evaluate(rows[0]).logits)
    other = generation.generate(stack, texts, "qqp", head="imdb")
    stack.evaluate(rows[1])
    assert generation.generate(stack, texts, "imdb") == first
    assert (
        digest(stack.evaluate(rows[0]).logits) == scores == stack["imdb"].metrics["logits_sha256"]
    )
    assert generation.generate(stack, texts, "qqp", head="imdb") == other


def test_saved_and_loaded_frames_answer_the_same(stack, rows, tmp_path):
    again = SkillStack.from_pretrained(stack.frames[0].folder.parent.parent, stack.backbone)
    again.verify()
    for data in rows:
        assert again[data.name].prompt == stack[data.name].prompt
        assert digest(again.evaluate(data).logits) == stack[data.name].metrics["logits_sha256"]
    small = compression.int8(stack)
    small.save_pretrained(tmp_path / "small")
    reopened = SkillStack.from_pretrained(tmp_path / "small", stack.backbone)
    for data in rows:
        assert digest(reopened.evaluate(data).logits) == digest(small.evaluate(data).logits)


def test_routers_and_answers_work_as_with_heads(stack, rows):
    texts = [text for data in rows for text in data.texts("router")]
    names = [data.name for data in rows for _ in data.texts("router")]
    router = HybridSVMRouter().fit(texts, names)
    asked = [rows[0].texts("eval")[0], rows[1].texts("eval")[0]]
    answer = stack.answer(asked, router)
    assert list(answer["frame"]) == ["imdb", "qqp"]
    assert set(answer["label_name"]) <= {"negative", "positive", "not_duplicate", "duplicate"}
    prediction = stack.predict(asked, frame=["imdb", "qqp"])
    np.testing.assert_allclose(prediction.probabilities.sum(1), 1, atol=1e-5)


def test_heads_and_prompts_in_one_stack(decoders, rows):
    stack = SkillStack(load_backbone(str(decoders["llama"]), device="cpu"))
    stack.grow(rows[0], CONFIG)
    stack.grow(rows[1], CONFIG, prompt=instruction(rows[1].task))
    for data in rows:
        assert digest(stack.evaluate(data).logits) == stack[data.name].metrics["logits_sha256"]
    with pytest.raises(SkillStackError, match="'imdb' has a head and writes nothing"):
        generation.generate(stack, ["a text"], "imdb")


# ------------------------------------------------------------------ prompts


def test_a_long_text_loses_its_middle_and_nothing_else(stack):
    backbone = stack.backbone
    head = PromptHead(backbone, ("good", "bad"), "Choose : {text} Label :")
    text = "good " + "the " * 200 + "Question : class3 ?"
    (row,) = head.encode([text], 30)
    words = backbone.tokenizer.decode(row).split()
    assert len(row) == 30
    assert words[:3] == ["Choose", ":", "good"]
    assert words[-6:] == ["Question", ":", "class3", "?", "Label", ":"]
    (short,) = head.encode(["good bad"], 30)
    assert backbone.tokenizer.decode(short).split() == "Choose : good bad Label :".split()


def test_context_stands_before_the_text_with_room_of_its_own(stack):
    backbone = stack.backbone
    head = PromptHead(backbone, ("good", "bad"), "Choose : {text} Label :")
    context = ["bad Label : negative", "the " * 500]
    one, two = head.encode(["good", "good"], 30, context)
    words = backbone.tokenizer.decode(one).split()
    assert words == "Choose : bad Label : negative good Label :".split()
    assert len(two) == 5 + 30


def test_retrieval_finds_the_similar_text_and_puts_it_last():
    memory = ["cats sleep all day", "stocks fell in london", "dogs bark at cats"]
    (context,) = generation.retrieve(memory, ["a", "b", "c"], ["stocks rose in london"], k=2)
    assert context.endswith("stocks fell in london\nLabel: b\n\n")
    (cut,) = generation.retrieve(memory, ["a", "b", "c"], ["stocks"], k=1, words=2)
    assert cut == "stocks fell\nLabel: b\n\n"
    with pytest.raises(SkillStackError, match=r"k must be in 1 \.\. 3 texts in memory, got 4"):
        generation.retrieve(memory, ["a", "b", "c"], ["x"], k=4)


def test_answers_are_read_and_not_guessed():
    labels = ("not duplicate", "duplicate")
    written = [
        "Duplicate.",
        " not duplicate",
        "not",
        "not_duplicate!",
        "duplicates",
        "",
        "a duplicate",
    ]
    assert generation.read_answers(written, labels).tolist() == [1, 0, -1, 0, -1, -1, -1]
    topics = ("Business & Finance", "Business")
    written = ["business & finance\nText:", "Business news", "busy"]
    assert generation.read_answers(written, topics).tolist() == [0, 1, -1]


# ------------------------------------------------------------------ bad input


def test_who_cannot_write_is_told_so(model_dirs, decoders, rows, tmp_path):
    prompt = instruction(rows[0].task)
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    no_end = load_backbone(str(model_dirs["gpt2"]), device="cpu")
    untied = save_tiny_model(tmp_path / "untied", "llama", ANSWERS, tie_word_embeddings=False)
    for backbone, words in (
        (no_end, "has no end token"),
        (load_backbone(str(untied), device="cpu"), "has an output layer of its own"),
    ):
        with pytest.raises(SkillStackError, match=words):
            SkillStack(backbone).grow(rows[0], CONFIG, prompt=prompt)
    stack.backbone.tokenizer.eos_token = "[UNK]"
    with pytest.raises(SkillStackError, match="is an encoder and cannot write"):
        stack.grow(rows[0], CONFIG, prompt=prompt)
    able = SkillStack(load_backbone(str(decoders["llama"]), device="cpu"))
    with pytest.raises(SkillStackError, match=r"needs one place \{text\}"):
        able.grow(rows[0], CONFIG, prompt="Label:")
    short = dataclasses.replace(CONFIG, max_length=24)
    with pytest.raises(SkillStackError, match=r"max_length=24 leaves \d+ tokens for the text"):
        able.grow(rows[0], short, prompt=prompt)
    assert not able.frames
    with pytest.raises(SkillStackError, match="texts must be strings"):
        grow(decoders["llama"], rows[:1]).predict([None], "imdb")


def test_a_damaged_prompt_is_named(decoders, rows, tmp_path):
    stack = grow(decoders["llama"], rows[:1])
    stack.save_pretrained(tmp_path / "stack")
    path = tmp_path / "stack" / "frames" / "imdb" / "frame.json"
    assert json.loads(path.read_text())["prompt"].count("{text}") == 1
    edit_json(path, lambda fields: fields.update(prompt="no place"))
    with pytest.raises(SkillStackError, match="frame.json was changed"):
        SkillStack.from_pretrained(tmp_path / "stack", stack.backbone).verify()
    with pytest.raises(SkillStackError, match="'prompt' is 'no place', not .* a text with one pla"):
        read_frame(path.parent)
