import copy
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, edit_json

from skillstack_helpers import SkillStackError, frames, training
from skillstack_helpers import stack as stack_module
from skillstack_helpers.files import aside, digest, file_sha256, locked
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import HybridChainRouter
from skillstack_helpers.stack import SkillStack


@pytest.fixture(scope="module")
def grown(model_dirs, stream, tmp_path_factory):
    """A stack of three frames, saved; tests that change it work on a copy."""
    from skillstack_helpers.config import TrainingConfig

    config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3)
    backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
    stack = SkillStack(backbone)
    for data in stream:
        stack.grow(data, config)
    stack.save_pretrained(tmp_path_factory.mktemp("stacks") / "stack")
    return stack


@pytest.fixture
def folder(grown, tmp_path):
    return shutil.copytree(grown.frames[0].folder.parent.parent, tmp_path / "stack")


# ------------------------------------------------------------------ the chain


def test_chain_links_latest_to_root(grown):
    assert [f.name for f in grown.chain()] == ["qqp", "agnews", "imdb"]
    assert [f.parent for f in grown.frames] == [None, "imdb", "agnews"]
    assert len(grown) == 3 and "agnews" in grown and "yelp" not in grown
    with pytest.raises(SkillStackError, match=r"unknown frame 'agnew' \(did you mean 'agnews'\?\)"):
        grown["agnew"]


def test_frames_are_immutable(grown):
    frame = grown["imdb"]
    with pytest.raises(AttributeError):
        frame.name = "other"
    with pytest.raises(TypeError):
        frame.metrics["accuracy"] = 1.0
    with pytest.raises(TypeError):
        frame.weights().lora["x"] = torch.zeros(1)


def test_old_frames_answer_bit_equal_after_every_later_task(grown, stream):
    for data in stream:
        assert digest(grown.evaluate(data).logits) == grown[data.name].metrics["logits_sha256"]


def test_the_latest_adapter_is_another_one(grown, stream):
    """Were the adapter not trained on, the test above would prove nothing."""
    own = grown.evaluate(stream[0]).logits
    latest = grown.evaluate(stream[0], frame="qqp", head="imdb").logits
    assert own.shape == latest.shape and np.abs(own - latest).max() > 1e-3


def test_adapter_starts_at_the_parent_and_the_head_is_new(model_dirs, stream, config):

    still = dataclasses.replace(config, lr=1e-12)
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    first, second = stack.grow(stream[0], config), stack.grow(stream[1], still)
    for name, tensor in first.weights().lora.items():
        torch.testing.assert_close(second.weights().lora[name], tensor, atol=1e-8, rtol=0)
    assert second.weights().head["weight"].shape == (4, 32)
    assert second.weights().head["weight"].std() < 0.05


def test_growing_repeats_to_the_last_bit(model_dirs, stream, config, grown):
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    for data in stream[:2]:
        stack.grow(data, config)
        assert stack[data.name].metrics == grown[data.name].metrics
        assert stack[data.name].losses == grown[data.name].losses


def test_opened_and_saved_elsewhere_without_being_used(model_dirs, folder, tmp_path):
    backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
    SkillStack.from_pretrained(folder, backbone).save_pretrained(tmp_path / "copy")
    for path in sorted(folder.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "copy" / path.relative_to(folder)).read_bytes()


def test_a_frame_learns_probabilities_in_place_of_labels(backbone, stream, config):
    """Certain ones are the labels; uncertain ones leave it unsure; of others nothing is made."""
    data = stream[1]
    one_hot = np.eye(4)[data.labels("train")]
    labelled, certain, unsure = (SkillStack(backbone) for _ in range(3))
    labelled.grow(data, config)
    certain.grow(data, config, targets=one_hot)
    unsure.grow(data, config, targets=np.full_like(one_hot, 0.25))
    logits = [stack.evaluate(data).logits for stack in (labelled, certain, unsure)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
    assert abs(logits[2] - logits[0]).max() > 0.01
    for wrong in (one_hot[1:], one_hot[:, :2], 2 * one_hot):
        with pytest.raises(SkillStackError, match=r"targets must be \(24, 4\), rows summing to 1"):
            SkillStack(backbone).grow(data, config, targets=wrong)


def test_two_stacks_share_one_backbone(grown, stream, config):
    other = SkillStack(grown.backbone)
    other.grow(stream[1], config)
    assert digest(grown.evaluate(stream[0]).logits) == grown["imdb"].metrics["logits_sha256"]
    assert digest(other.evaluate(stream[1]).logits) == other["agnews"].metrics["logits_sha256"]


def test_grow_refuses_what_does_not_fit(grown, stream, config):

    with pytest.raises(SkillStackError, match="'imdb' is already in the stack"):
        grown.grow(stream[0], config)
    task = dataclasses.replace(stream[0].task, name="../up")
    with pytest.raises(SkillStackError, match=r"frame name '../up' must match"):
        grown.grow(dataclasses.replace(stream[0], task=task), config)
    task = dataclasses.replace(stream[0].task, name="fresh")
    with pytest.raises(SkillStackError, match="a chain keeps one LoRA shape"):
        grown.grow(dataclasses.replace(stream[0], task=task), dataclasses.replace(config, lora_r=2))
    assert len(grown) == 3


# ------------------------------------------------------------------ answers


def test_predict_with_one_frame_and_with_many(grown, stream):
    texts = [*stream[0].texts("eval")[:3], *stream[1].texts("eval")[:3]]
    names = ["imdb"] * 3 + ["agnews"] * 3
    mixed = grown.predict(texts, frame=names)
    assert mixed.probabilities.shape == (6, 4)
    np.testing.assert_allclose(mixed.probabilities.sum(1), 1, atol=1e-6)
    assert (mixed.probabilities[:3, 2:] == 0).all()
    for part, name in ((slice(0, 3), "imdb"), (slice(3, 6), "agnews")):
        alone = grown.predict(texts[part], frame=name)
        assert (alone.labels == mixed.labels[part]).all()
        assert set(mixed.label_names[part]) <= set(grown[name].label_names)
    assert len(grown.predict([], frame="imdb").labels) == 0
    with pytest.raises(SkillStackError, match="6 texts but 5 frame names"):
        grown.predict(texts, frame=names[:5])
    with pytest.raises(SkillStackError, match="texts must be strings"):
        grown.predict([None], frame="imdb")


def test_predict_under_another_frames_head(grown, stream):
    first, last = stream[0], stream[-1]
    texts = first.texts("eval")
    latest = grown.evaluate(first, frame=last.name, head=first.name)
    answers = grown.predict(texts, last.name, head=first.name)
    np.testing.assert_array_equal(answers.labels, latest.labels)
    assert set(answers.label_names) <= set(first.task.label_names)
    with pytest.raises(SkillStackError, match="texts but 1 frame names"):
        grown.predict(texts, last.name, head=[first.name])


def test_answer_through_a_router(grown, stream):
    texts = [text for data in stream for text in data.texts("router")]
    names = [data.name for data in stream for _ in data.texts("router")]
    answers = grown.answer(texts, HybridChainRouter().fit(texts, names))
    assert list(answers) == [
        "frame", "label", "label_name", "probability", "router_score", "depth", "fallback",
        "asked",
    ]  # fmt: skip
    assert (answers["frame"] == names).mean() > 0.9
    assert answers["probability"].between(0.2, 1).all()
    asked = grown.predict(texts, frame=list(answers["frame"]))
    assert list(answers["label"]) == list(asked.labels)


def test_label_sets_hold_the_right_label_as_often_as_said(grown, stream, folder, backbone):
    texts = [text for data in stream for text in data.texts("router")]
    labels = [k for data in stream for k in data.labels("router")]
    names = [data.name for data in stream for _ in data.texts("router")]
    told = SimpleNamespace(  # who is never wrong
        classes_=np.array([frame.name for frame in grown.frames], dtype=object),
        decision_function=lambda asked: np.array(
            [[float(names[texts.index(t)] == f.name) for f in grown.frames] for t in asked]
        ),
    )
    told.route_scores = lambda scores: pd.DataFrame(
        {"frame": told.classes_[scores.argmax(1)], "score": 1.0, "depth": 1.0, "fallback": False}
    )
    for coverage in (0.5, 0.9):
        answers = grown.answer(texts, told, coverage=coverage)
        true = [grown[n].label_names[k] for n, k in zip(names, labels, strict=True)]
        held = [t in one for t, one in zip(true, answers["label_set"], strict=True)]
        for name in told.classes_:  # of the very rows it was calibrated on: never fewer
            assert np.mean([h for h, n in zip(held, names, strict=True) if n == name]) >= coverage
        assert (answers["abstains"] == (answers["label_set"].map(len) != 1)).all()
        assert list(answers)[-2:] == ["label_set", "abstains"]
    frame = grown.frames[0]
    n = names.count(frame.name)
    assert len(frame.calibration) == n
    own = 1 - grown.predict(texts[:n], frame.name).probabilities[np.arange(n), labels[:n]]
    assert np.allclose(np.sort(own), frame.calibration, atol=2e-6)
    again = SkillStack.from_pretrained(folder, grown.backbone)
    assert again.frames[0].calibration == frame.calibration
    assert again.answer(texts, told, coverage=0.9)["label_set"].tolist() == (
        grown.answer(texts, told, coverage=0.9)["label_set"].tolist()
    )
    with pytest.raises(SkillStackError, match="it goes without mix"):
        grown.answer(texts, told, mix="own", coverage=0.9)
    with pytest.raises(SkillStackError, match="coverage must be between 0 and 1, got 9"):
        grown.answer(texts, told, coverage=9)


def test_rows_that_were_trained_on_do_not_calibrate(stream, backbone, config):
    data = stream[0]
    learned = dataclasses.replace(data, router=data.train)
    stack = SkillStack(backbone)
    assert stack.grow(learned, config).calibration == ()
    router = HybridChainRouter().fit(data.texts("router"), [data.name] * len(data.router))
    with pytest.raises(SkillStackError, match=f"frame '{data.name}' was not calibrated"):
        stack.answer(["a text"], router, coverage=0.9)


def test_evaluate_needs_a_head_that_fits(grown, stream):
    with pytest.raises(SkillStackError, match=r"has 2 classes, task 'agnews' has 4: pass head="):
        grown.evaluate(stream[1], frame="qqp")


# ------------------------------------------------------------------ saved and loaded

NEW_PROCESS = """
import json, sys
from conftest import *
from skillstack_helpers.files import digest
from skillstack_helpers.stack import SkillStack
folder, model, data_dir = sys.argv[1:]
stack = SkillStack.from_pretrained(folder, load_backbone(model, device="cpu"))
rows = {n: load_task(n, 6, 12, 8, seed=0, source="folder", data_dir=data_dir)
        for n in ("imdb", "agnews", "qqp")}
print(json.dumps({n: digest(stack.evaluate(d).logits) for n, d in rows.items()}))
"""


def test_bit_equal_in_a_new_process(grown, folder, model_dirs, data_dir):
    command = [sys.executable, "-c", NEW_PROCESS, folder, model_dirs["bert"], data_dir]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    digests = json.loads(done.stdout.splitlines()[-1])
    assert digests == {f.name: f.metrics["logits_sha256"] for f in grown.frames}


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_plain_peft_opens_a_frame(model_dirs, stream, config, tmp_path, kind):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForSequenceClassification

    stack = SkillStack(load_backbone(str(model_dirs[kind]), device="cpu"))
    for data in stream[:2]:
        stack.grow(data, config)
    stack.save_pretrained(tmp_path / "stack")
    for data in stream[:2]:
        folder = tmp_path / "stack" / "frames" / data.name
        tokens = stack.backbone.tokenizer(
            data.texts("eval"), truncation=True, max_length=32, padding=True, return_tensors="pt"
        )
        inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        if kind == "bert":
            plain = PeftModel.from_pretrained(AutoModel.from_pretrained(model_dirs[kind]), folder)
            with torch.inference_mode():
                hidden = plain.eval()(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            head = load_file(folder / "head.safetensors")
            logits = 16 * mean @ head["weight"].T + head["bias"]
        else:
            base = AutoModelForSequenceClassification.from_pretrained(
                model_dirs[kind], num_labels=len(data.task.label_names)
            )
            plain = PeftModel.from_pretrained(base, folder).eval()
            with torch.inference_mode():
                logits = plain(**inputs).logits
        ours = stack.evaluate(data).logits
        np.testing.assert_allclose(logits.numpy(), ours, atol=2e-5, rtol=1e-4)
    reopened = SkillStack.from_pretrained(tmp_path / "stack", stack.backbone)
    assert digest(reopened.evaluate(stream[0]).logits) == stack["imdb"].metrics["logits_sha256"]


def test_saving_again_writes_nothing_and_growing_on_writes_one_frame(
    folder, grown, stream, config, model_dirs
):
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "frames").rglob("*")}
    stack.save_pretrained(folder)
    assert {p: p.stat().st_mtime_ns for p in (folder / "frames").rglob("*")} == stamps

    task = dataclasses.replace(stream[0].task, name="fourth")
    stack.grow(dataclasses.replace(stream[0], task=task), config)
    stack.save_pretrained(folder)
    changed = {p for p in (folder / "frames").rglob("*") if stamps.get(p) != p.stat().st_mtime_ns}
    assert all("fourth" in str(path) for path in changed) and changed
    assert [f.name for f in SkillStack.from_pretrained(folder, grown.backbone).frames][-1] == (
        "fourth"
    )


def test_another_stack_is_never_overwritten(folder, grown, stream, config):
    other = SkillStack(grown.backbone)
    other.grow(stream[1], config)
    with pytest.raises(SkillStackError, match="holds another stack"):
        other.save_pretrained(folder)

    again = SkillStack(grown.backbone)
    again.grow(stream[0], dataclasses.replace(config, seed=9))
    (folder / "stack.json").unlink()
    with pytest.raises(SkillStackError, match="frames are never overwritten"):
        again.save_pretrained(folder)


# ------------------------------------------------------------------ damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "file",
    [
        "stack.json",
        "frames/agnews/frame.json",
        "frames/agnews/adapter_model.safetensors",
        "frames/agnews/adapter_config.json",
        "frames/agnews/head.safetensors",
    ],
)
@pytest.mark.parametrize("harm", [truncate, flip, os.unlink])
def test_damage_is_an_error_that_names_the_file(folder, grown, file, harm):
    """When `verify` is called, and else when the file is first used, which only plain PEFT does
    with adapter_config.json; other frames answer as before."""
    harm(folder / file)

    def refused(use):
        with pytest.raises(SkillStackError) as caught:
            use(SkillStack.from_pretrained(folder, grown.backbone))
        assert file in str(caught.value) and "\n" not in str(caught.value)

    refused(SkillStack.verify)
    if not file.endswith("adapter_config.json"):
        refused(lambda stack: stack.predict(["class1 of the"], "agnews"))
    if file != "stack.json":
        SkillStack.from_pretrained(folder, grown.backbone).predict(["class1 of the"], "imdb")


def test_edited_manifest(folder, grown):
    def rehash():
        path = folder / "frames" / "agnews" / "frame.json"
        digest = file_sha256(path)
        edit_json(folder / "stack.json", lambda f: f["frames"][1].update(sha256=digest))

    for change, words in [
        (
            lambda f: f["frames"][0].update(name="../imdb"),
            "'name' is '../imdb', not a frame's name",
        ),
        (lambda f: f.update(schema_version=99), "has schema 99"),
        (lambda f: f.pop("backbone"), "has no 'backbone'"),
        (lambda f: f["backbone"].update(revision="1"), "made with backbone revision '1'"),
        (lambda f: f["backbone"].update(dtype="bfloat16"), "backbone dtype 'bfloat16'"),
        (lambda f: f["frames"].append(f["frames"][0]), "name 'imdb' is taken"),
        (lambda f: f["frames"].reverse(), "does not come before it"),
        (lambda f: f.update(frames={"imdb": 1}), "'frames' is {'imdb': 1}, not a list"),
    ]:
        before = (folder / "stack.json").read_text()
        edit_json(folder / "stack.json", change)
        with pytest.raises(SkillStackError) as caught:
            SkillStack.from_pretrained(folder, grown.backbone).verify()
        assert words in str(caught.value)
        (folder / "stack.json").write_text(before)

    path = folder / "frames" / "agnews" / "frame.json"
    edit_json(path, lambda f: f["sha256"].update({"../../../secret": "0"}))
    rehash()
    with pytest.raises(SkillStackError, match="lists a file outside"):
        SkillStack.from_pretrained(folder, grown.backbone).verify()


def test_symbolic_link_out_of_the_stack_is_refused(folder, grown, tmp_path):
    inside = folder / "frames" / "agnews"
    outside = tmp_path / "agnews"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(SkillStackError, match="missing or not a plain folder"):
        SkillStack.from_pretrained(folder, grown.backbone)


def test_verify_finds_changes_on_disk_and_in_memory(folder, grown, model_dirs, stream, config):
    stack = SkillStack(grown.backbone)
    frame = stack.grow(stream[0], config)
    stack.save_pretrained(folder.parent / "other")
    stack.verify()
    next(iter(frame.weights().lora.values())).add_(1)
    with pytest.raises(SkillStackError, match="'imdb' was changed in memory"):
        stack.verify()
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    stack.verify()
    path = folder / "frames" / "imdb" / "frame.json"
    before = path.read_text()
    edit_json(path, lambda f: f["metrics"].update(accuracy=1.0))
    with pytest.raises(SkillStackError, match="frame.json was changed"):
        stack.verify()
    path.write_text(before)
    flip(folder / "frames" / "qqp" / "head.safetensors")
    with pytest.raises(SkillStackError, match="head.safetensors was changed"):
        stack.verify()


def test_full_disk_leaves_the_saved_frames_whole(folder, grown, stream, config, monkeypatch):

    stack = SkillStack.from_pretrained(folder, grown.backbone)
    task = dataclasses.replace(stream[0].task, name="fourth")
    stack.grow(dataclasses.replace(stream[0], task=task), config)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(frames, "sync", full)
        with pytest.raises(SkillStackError, match="cannot save the stack .*: the disk is full"):
            stack.save_pretrained(folder)
    assert sorted(p.name for p in (folder / "frames").iterdir()) == ["agnews", "imdb", "qqp"]
    assert len(SkillStack.from_pretrained(folder, grown.backbone)) == 3
    stack.save_pretrained(folder)  # space again
    assert len(SkillStack.from_pretrained(folder, grown.backbone)) == 4


def test_really_full_disk(grown, tmp_path):
    """A file system of 64 KiB, where this process may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        stack = SkillStack(grown.backbone)
        stack.frames = list(grown.frames)
        with pytest.raises(SkillStackError, match="the disk is full"):
            stack.save_pretrained(place / "stack")
        left = [p.name for p in (place / "stack" / "frames").iterdir()]
        assert not [name for name in left if name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_whole_frame_that_was_not_yet_listed_is_kept(folder, grown):
    edit_json(folder / "stack.json", lambda f: f["frames"].pop())
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    assert [f.name for f in stack.frames] == ["imdb", "agnews", "qqp"]


def test_first_frame_survives_a_kill_before_it_is_listed(
    model_dirs, stream, config, tmp_path, monkeypatch
):
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    stack.grow(stream[0], config)
    write, calls = stack_module.write_atomic, []

    def killed_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stack_module, "write_atomic", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            stack.save_pretrained(tmp_path / "stack")
    found = SkillStack.from_pretrained(tmp_path / "stack", stack.backbone)
    assert [f.name for f in found.frames] == ["imdb"]
    found.save_pretrained(tmp_path / "stack")
    assert "imdb" in (tmp_path / "stack" / "stack.json").read_text()


def test_leftovers_of_a_killed_save_are_cleared(folder, grown):
    theirs = folder / "project" / ".tmp-precious"
    theirs.mkdir(parents=True)
    (folder / ".tmp-own").write_text("{")
    for there in (folder, folder / "frames"):
        aside(there).mkdir()
        aside(there).write_text("{")
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    stack.save_pretrained(folder)
    assert not list(folder.rglob("*.tmp")) and theirs.exists() and (folder / ".tmp-own").exists()


def test_no_pickle_anywhere(folder):
    names = {p.name for p in folder.rglob("*") if p.is_file()}
    assert {p.rsplit(".")[-1] for p in names - {".lock"}} == {"json", "safetensors"}


def test_a_saved_stack_keeps_no_weights_that_could_not_be_let_go(folder, grown, stream):
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    stack.evaluate(stream[0])
    assert all(frame._weights is None for frame in (*stack.frames, *grown.frames))
    assert stack["imdb"].nbytes == grown["imdb"].nbytes > 0


# ------------------------------------------------------------------ adopted, copied, asked


def test_whole_but_unlisted_frames_come_back_in_their_order(model_dirs, data_dir, config, tmp_path):
    """imdb -> yelp -> amazon: by name the last would come first, and be left out."""
    from skillstack_helpers.tasks import load_task

    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    for name in ("imdb", "yelp", "amazon"):
        stack.grow(load_task(name, 4, 4, 4, 0, "folder", data_dir), config)
    stack.save_pretrained(tmp_path / "stack")
    edit_json(tmp_path / "stack" / "stack.json", lambda fields: fields.update(frames=[]))
    found = SkillStack.from_pretrained(tmp_path / "stack", stack.backbone)
    assert [frame.name for frame in found.frames] == ["imdb", "yelp", "amazon"]


def test_a_copy_grows_alone(model_dirs, stream, config):
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    stack.grow(stream[0], config)
    one, two = copy.deepcopy(stack), stack.copy()
    one.grow(stream[1], config)
    two.decisions.append({"kind": "keep"})
    assert len(stack) == len(two) == 1 and len(one) == 2 and not stack.decisions
    assert one.backbone is two.backbone is stack.backbone and one.frames[0] is stack.frames[0]


def test_to_predict_reads_files_once_and_draws_no_random_numbers(folder, grown, monkeypatch):
    stack, read = SkillStack.from_pretrained(folder, grown.backbone), []
    load = frames._load_tensors
    monkeypatch.setattr(frames, "_load_tensors", lambda p, *a: read.append(p.name) or load(p, *a))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    stack.predict(["class1 of the"], "imdb")
    assert torch.rand(1) == expected
    assert sorted(read) == ["adapter_model.safetensors", "head.safetensors"]


def test_a_string_is_not_a_list_of_texts(grown):
    with pytest.raises(SkillStackError, match="got one string"):
        grown.predict("abc", "imdb")


def test_training_takes_training_fields_alone(grown):
    """And a frame notes them, with its rows and their budget."""

    from skillstack_helpers.config import TrainingConfig

    for frame in grown.frames:
        assert set(frame.training) == {f.name for f in dataclasses.fields(TrainingConfig)}
        assert frame.data["n_train"] == 6 and len(frame.data["train_fingerprint"]) == 64


def test_an_interrupted_training_leaves_the_stack_as_it_was(
    model_dirs, stream, config, monkeypatch
):
    def interrupt(batches, *_):
        yield next(iter(batches))
        raise KeyboardInterrupt

    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    stack.grow(stream[0], config)
    before = stack.evaluate(stream[0]).logits
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "progress", interrupt)
        stack.grow(stream[1], config)
    assert len(stack) == 1
    assert not any(p.requires_grad for p in stack.backbone.model.parameters())
    np.testing.assert_array_equal(stack.evaluate(stream[0]).logits, before)
    assert stack.grow(stream[1], config).parent == "imdb"


# ------------------------------------------------------------------ saved by version 0.1


def test_a_stack_saved_by_version_0_1_opens_and_answers_the_same(tmp_path):
    from skillstack_helpers.lab.experiment import load_rows
    from skillstack_helpers.routers import load_router

    saved = Path(__file__).parent / "version_0_1"
    expected = json.loads((saved / "expected.json").read_text())
    model = shutil.copytree(saved / "model", tmp_path / "model")
    backbone = load_backbone(str(model), device="cpu")
    for folder, key in (("stack", "probabilities"), ("int8", "int8")):
        stack = SkillStack.from_pretrained(saved / folder, backbone)
        stack.verify()
        for name, probabilities in expected[key].items():
            answered = stack.predict(expected["texts"], name).probabilities
            np.testing.assert_allclose(answered, probabilities, atol=1e-5)
    for name in ("hybrid_chain", "centroid"):
        router = load_router(saved / "stack" / "routers" / name, backbone=backbone)
        assert set(router.predict(expected["texts"])) <= {"imdb", "agnews"}
    router = load_router(saved / "stack" / "routers" / "hybrid_chain")
    np.testing.assert_allclose(router.decision_function(expected["texts"]), expected["scores"])
    assert list(router.predict(expected["texts"])) == expected["routed"]
    with pytest.raises(SkillStackError, match="data|rows"):  # they are not here, and it says so
        load_rows(SkillStack.from_pretrained(saved / "stack", backbone)["imdb"], tmp_path)
    stack = SkillStack.from_pretrained(saved / "stack", backbone)
    again = stack.save_pretrained(tmp_path / "again")
    SkillStack.from_pretrained(again, backbone).verify()


# ------------------------------------------------------------------ several processes


def renamed(frame, name, parent):
    """The frame as another process may have learned it."""
    fresh = dict(folder=None, sha256={}, listed=None, _weights=frame.weights())
    return dataclasses.replace(frame, name=name, parent=parent, **fresh)


def test_what_another_process_has_added_is_taken_in(folder, grown):
    ours = SkillStack.from_pretrained(folder, grown.backbone)
    theirs = SkillStack.from_pretrained(folder, grown.backbone)
    theirs.frames.append(renamed(grown["imdb"], "theirs", "qqp"))
    theirs.save_pretrained(folder)
    ours.frames.append(renamed(grown["agnews"], "ours", "qqp"))
    ours.save_pretrained(folder)
    names = ["imdb", "agnews", "qqp", "theirs", "ours"]
    assert [frame.name for frame in ours.frames] == names
    again = SkillStack.from_pretrained(folder, grown.backbone)
    again.verify()
    assert [frame.name for frame in again.frames] == names
    answer = again.predict(["class1 of the"], "theirs").probabilities
    assert np.array_equal(answer, grown.predict(["class1 of the"], "imdb").probabilities)
    theirs.save_pretrained(folder)  # nothing of its own is new
    assert [frame.name for frame in theirs.frames] == names


def test_two_frames_of_one_name_are_not_mixed(folder, grown):
    ours, theirs = (SkillStack.from_pretrained(folder, grown.backbone) for _ in range(2))
    for stack, frame in ((theirs, "imdb"), (ours, "agnews")):
        stack.frames.append(renamed(grown[frame], "new", "qqp"))
    theirs.save_pretrained(folder)
    before = (folder / "stack.json").read_bytes()
    with pytest.raises(SkillStackError, match="another process has saved a frame 'new'"):
        ours.save_pretrained(folder)
    assert (folder / "stack.json").read_bytes() == before


def test_a_stack_that_others_made_smaller_is_opened_again_first(folder, grown):
    ours, theirs = (SkillStack.from_pretrained(folder, grown.backbone) for _ in range(2))
    theirs.remove("qqp")
    ours.frames.append(renamed(grown["imdb"], "new", "agnews"))
    with pytest.raises(SkillStackError, match="open the stack again"):
        ours.save_pretrained(folder)
    assert "qqp" not in SkillStack.from_pretrained(folder, grown.backbone)


def test_a_smaller_stack_does_not_take_frames_back_in(folder, grown):
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    with pytest.raises(SkillStackError, match="holds another stack"):
        stack.copy(stack.frames[:2]).save_pretrained(folder)
    assert len(SkillStack.from_pretrained(folder, grown.backbone)) == 3


def test_a_frame_whose_parent_is_missing_is_named(folder, grown, capsys):
    other = SkillStack(grown.backbone)
    other.frames = [renamed(grown["imdb"], "root", None), renamed(grown["imdb"], "child", "root")]
    other.save_pretrained(folder.parent / "other")
    shutil.copytree(folder.parent / "other" / "frames" / "child", folder / "frames" / "child")
    assert len(SkillStack.from_pretrained(folder, grown.backbone)) == 3
    assert "child is a whole frame, but no part of the stack: its parent 'root' is missing" in (
        capsys.readouterr().out
    )


def test_one_process_writes_at_a_time(folder, grown, monkeypatch):
    monkeypatch.setattr(stack_module, "locked", lambda place: locked(place, seconds=0.1))
    code = (
        "import sys, time; from pathlib import Path; from skillstack_helpers.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    stack = SkillStack.from_pretrained(folder, grown.backbone)
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(SkillStackError, match="another process is writing to"):
            stack.save_pretrained(folder)
        assert len(SkillStack.from_pretrained(folder, grown.backbone)) == 3  # readers do not wait
    finally:
        other.kill()
        other.wait()
    stack.save_pretrained(folder)  # a killed process leaves no lock behind
