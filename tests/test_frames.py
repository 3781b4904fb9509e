"""What is read of a stack on disk, when, and how much of it is kept."""

import dataclasses
import gc
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import edit_json

from skillstack_helpers import SkillStackError, compression, frames
from skillstack_helpers import stack as stack_module
from skillstack_helpers.files import digest
from skillstack_helpers.frames import ADAPTER, Frame, ListedFrame, read_frame
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack

TEXT = ["class1 of the"]


def multiplied(stack: SkillStack, folder, n: int) -> SkillStack:
    """The one frame of a stack n times over, each a child of the one before, in a folder."""
    stack.save_pretrained(folder)
    first = stack.frames[0]
    for i in range(1, n):
        place = folder / "frames" / f"skill{i:03}"
        place.mkdir()
        for file in first.sha256:
            os.link(first.folder / file, place / file)
        own = dataclasses.replace(first, name=place.name, parent=stack.frames[-1].name)
        facts = {"schema_version": frames.SCHEMA} | own.facts() | {"sha256": dict(first.sha256)}
        (place / "frame.json").write_text(json.dumps(facts))
        stack.frames.append(read_frame(place))
    stack.save_pretrained(folder)
    return stack


@pytest.fixture(scope="module")
def one(model_dirs, stream, tmp_path_factory):
    from skillstack_helpers.config import TrainingConfig

    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3)
    stack.grow(stream[0], config)
    return stack


@pytest.fixture(scope="module")
def thousand(one, tmp_path_factory):
    """The folder of a stack of 1,000 frames, to be left as it is."""
    folder = tmp_path_factory.mktemp("many") / "stack"
    multiplied(one.copy(), folder, 1000)
    return folder


@pytest.fixture
def few(one, tmp_path):
    return multiplied(one.copy(), tmp_path / "stack", 8).frames[0].folder.parents[1]


@pytest.fixture
def read(monkeypatch):
    """The frames of which anything has been read, in order, each file once a reading."""
    seen = []

    def noting(work):
        def noted(path, *arguments):
            if path.parents[1].name == "frames" and not path.parent.name.startswith("."):
                seen.append(path.parent.name)
            return work(path, *arguments)

        return noted

    for name in ("read_json", "file_sha256", "_load_tensors", "_tensor_bytes"):
        monkeypatch.setattr(frames, name, noting(getattr(frames, name)))
    return seen


def named(stream, name):
    task = dataclasses.replace(stream[0].task, name=name)
    return dataclasses.replace(stream[0], task=task)


def flip(path):
    """Change a file where it is."""
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))


# ------------------------------------------------------------------ reading when asked


def test_a_thousand_frames_are_opened_without_reading_one_and_answer_by_reading_one(
    thousand, one, read
):
    stack = SkillStack.from_pretrained(thousand, one.backbone)
    assert len(stack) == len(stack.copy()) == 1000
    assert "skill777" in stack and "other" not in stack
    assert stack["skill777"] is stack.frames[777] and stack.frames[-1].name == "skill999"
    with pytest.raises(SkillStackError, match="did you mean 'skill123'"):
        stack["skil123"]
    assert not read
    answered = stack.predict(TEXT, "skill777").probabilities
    assert set(read) <= {"imdb", "skill777"} and read.count("skill777") <= 4
    np.testing.assert_array_equal(answered, one.predict(TEXT, "imdb").probabilities)
    before = len(read)
    stack.predict([*TEXT, *TEXT], ["skill777", "skill777"])
    assert len(read) == before


def test_growing_and_saving_one_more_reads_its_parent_and_the_first_alone(
    thousand, one, stream, config, read, tmp_path
):
    folder = shutil.copytree(thousand, tmp_path / "stack", copy_function=os.link)
    stack = SkillStack.from_pretrained(folder, one.backbone)
    read.clear()
    frame = stack.grow(named(stream, "newest"), config)
    assert frame.parent == "skill999" and set(read) <= {"imdb", "skill999"}
    read.clear()
    stack.save_pretrained(folder)
    stack.save_pretrained(folder)
    assert set(read) <= {"imdb"}
    again = SkillStack.from_pretrained(folder, one.backbone)
    assert len(again) == 1001 and again.frames[-1].facts() == frame.facts()


def test_a_frame_written_but_not_listed_is_adopted_without_reading_the_others(
    thousand, one, stream, config, read, tmp_path, monkeypatch
):
    folder = shutil.copytree(thousand, tmp_path / "stack", copy_function=os.link)
    stack = SkillStack.from_pretrained(folder, one.backbone)
    stack.grow(named(stream, "newest"), config)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stack_module, "write_atomic", killed)
        stack.save_pretrained(folder)
    read.clear()
    found = SkillStack.from_pretrained(folder, one.backbone)
    assert set(read) == {"newest"} and found.frames[-1].name == "newest" and len(found) == 1001
    assert "newest" not in (folder / "stack.json").read_text()
    found.save_pretrained(folder)
    assert set(read) <= {"imdb", "newest"} and "newest" in (folder / "stack.json").read_text()


def test_a_listed_frame_is_a_frame(few, one, read):
    stack = SkillStack.from_pretrained(few, one.backbone)
    frame, known = stack.frames[3], {stack.frames[3]: "it"}
    assert type(frame) is ListedFrame and isinstance(frame, Frame) and not read
    assert dataclasses.replace(frame, seconds=1.0).training == read_frame(frame.folder).training
    assert type(frame) is Frame and known[frame] == "it" and stack.frames[3] is frame
    assert frame.prompt is None and "skill003" in repr(frame)
    other = stack.frames[4]
    (other.folder / "frame.json").rename(few / "aside")
    for _ in range(2):
        with pytest.raises(SkillStackError, match="skill004/frame.json is missing"):
            assert other.task
    (few / "aside").rename(other.folder / "frame.json")
    assert other.task == "imdb"  # it was only away


def test_sizes_are_told_without_reading_weights(few, one, monkeypatch):
    stack = SkillStack.from_pretrained(few, one.backbone)
    monkeypatch.setattr(frames, "_load_tensors", None)
    assert stack["skill005"].nbytes == one.frames[0].nbytes
    (stack["skill006"].folder / ADAPTER).unlink()
    with pytest.raises(SkillStackError, match="skill006/adapter_model.safetensors is missing"):
        assert stack["skill006"].nbytes


# ------------------------------------------------------------------ what changed on disk


def test_a_changed_frame_is_noticed_when_it_is_first_used(few, one):
    path = few / "frames" / "skill002" / "frame.json"
    edit_json(path, lambda fields: fields["metrics"].update(accuracy=1.0))
    stack = SkillStack.from_pretrained(few, one.backbone)
    stack.predict(TEXT, "skill003")  # which knows nothing of its parent
    for use in (
        lambda: stack["skill002"].metrics,
        lambda: stack.predict(TEXT, "skill002"),
        stack.chain,
        stack.verify,
    ):
        with pytest.raises(
            SkillStackError, match=r"skill002/frame.json was changed or cut off \(SHA-256"
        ):
            use()


def test_a_file_changed_where_it_is_changes_no_frame_in_use(few, one, monkeypatch):
    path = few / "frames" / "skill002" / ADAPTER
    path.write_bytes(shutil.copy(path, few / "aside").read_bytes())
    path.unlink()
    (few / "aside").rename(path)  # no link to the others any more
    stack = SkillStack.from_pretrained(few, one.backbone)
    before = stack.predict(TEXT, "skill002").probabilities
    kept = {name: digest(t.numpy()) for name, t in stack["skill002"].weights().lora.items()}
    flip(path)
    now = {name: digest(t.numpy()) for name, t in stack["skill002"].weights().lora.items()}
    assert now == kept
    np.testing.assert_array_equal(stack.predict(TEXT, "skill002").probabilities, before)
    with pytest.raises(SkillStackError, match="skill002/adapter_model.safetensors was changed"):
        stack.verify()
    monkeypatch.setattr(frames, "RESIDENT", 0)
    stack["skill001"].weights()  # and skill002's are let go
    with pytest.raises(SkillStackError, match="skill002/adapter_model.safetensors was changed"):
        stack["skill002"].weights()


def test_a_frame_that_shares_an_adapter_checks_the_one_it_reads(
    model_dirs, stream, config, tmp_path
):
    backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
    stack = SkillStack(backbone)
    for name in ("first", "imdb", "yelp"):
        stack.grow(named(stream, name), config)
    folder = compression.merge(stack, ["imdb", "yelp"]).save_pretrained(tmp_path / "stack")
    expected = SkillStack.from_pretrained(folder, backbone).predict(TEXT, "yelp").probabilities
    path = folder / "frames" / "imdb" / "frame.json"
    before = path.read_text()
    edit_json(path, lambda fields: fields.update(seconds=0))
    with pytest.raises(SkillStackError, match="imdb/frame.json was changed"):
        SkillStack.from_pretrained(folder, backbone).predict(TEXT, "yelp")
    path.write_text(before)
    opened = SkillStack.from_pretrained(folder, backbone)
    np.testing.assert_array_equal(opened.predict(TEXT, "yelp").probabilities, expected)
    flip(path.with_name(ADAPTER))
    with pytest.raises(SkillStackError, match="imdb/adapter_model.safetensors was changed"):
        SkillStack.from_pretrained(folder, backbone).predict(TEXT, "yelp")


def test_a_stack_that_another_one_took_the_place_of_is_not_mixed_with_it(
    few, one, stream, config, tmp_path
):
    stack = SkillStack.from_pretrained(few, one.backbone)
    stack.grow(named(stream, "newest"), config)
    path = few / "frames" / "skill001" / "frame.json"
    edit_json(path, lambda fields: fields.update(seconds=0))
    listed = read_frame(path.parent).listed
    edit_json(few / "stack.json", lambda fields: fields["frames"][1].update(sha256=listed))
    with pytest.raises(SkillStackError, match="holds another stack"):
        stack.save_pretrained(few)
    assert not (few / "frames" / "newest").exists()


def test_frames_that_are_gone_are_written_again_where_they_are_known(one, tmp_path):
    stack = one.copy()
    stack.save_pretrained(tmp_path / "stack")
    shutil.rmtree(tmp_path / "stack")
    stack.save_pretrained(tmp_path / "stack")
    again = SkillStack.from_pretrained(tmp_path / "stack", one.backbone)
    again.verify()
    assert again.frames[0].facts() == one.frames[0].facts()


# ------------------------------------------------------------------ what is kept


def test_weights_are_kept_within_a_bound_those_used_last_the_longest(few, one, read, monkeypatch):
    stack = SkillStack.from_pretrained(few, one.backbone)
    size = sum(t.nbytes for part in one.frames[0].weights() for t in part.values())
    monkeypatch.setattr(frames, "RESIDENT", 3 * size + size // 2)
    for frame in stack.frames:
        frame.weights()
        assert sum(kept for _, kept in frames._resident.values()) <= frames.RESIDENT
    assert [f for f in stack.frames if f in frames._resident] == stack.frames[-3:]
    stack.frames[5].weights()
    read.clear()
    stack.frames[0].weights()
    assert set(read) == {"imdb"}
    assert [f.name for f in frames._resident] == ["skill007", "skill005", "imdb"]
    read.clear()
    for i in (7, 5, 0):
        stack.frames[i].weights()
    assert not read
    monkeypatch.setattr(frames, "RESIDENT", size // 2)
    assert stack.frames[1].weights().lora and not len(frames._resident)  # larger than the bound


def test_weights_are_let_go_with_their_stack(few, one):
    stack = SkillStack.from_pretrained(few, one.backbone)
    for frame in stack.frames:
        frame.weights()
    assert {f.name for f in frames._resident} >= {f.name for f in stack.frames}
    folder = stack.frames[0].folder.parent
    del stack, frame
    gc.collect()
    assert not [f for f in frames._resident if f.folder.parent == folder]


def test_no_file_stays_mapped_and_kept_weights_are_verified_too(few, one):
    stack = SkillStack.from_pretrained(few, one.backbone)
    weights = stack["skill004"].weights()
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps:
            assert str(few) not in maps.read()
    stack.verify()
    with torch.no_grad():
        next(iter(weights.lora.values())).add_(1)
    with pytest.raises(SkillStackError, match="'skill004' was changed in memory"):
        stack.verify()
