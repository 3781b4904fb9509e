"""Streams and stacks as notebooks open them; no stack is taken for another."""

import dataclasses
import shutil

import pandas as pd
import pytest
from conftest import edit_json, write_folder

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import experiment
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.loading import load_backbone


@pytest.fixture(scope="module")
def settings(model_dirs, data_dir, tmp_path_factory):
    return RunConfig(
        preset="adaptive3", model=str(model_dirs["bert"]), data_dir=str(data_dir), epochs=1,
        n_train=4, n_router=12, n_eval=4, lora_r=4, max_length=32, lr=5e-3,
        output_dir=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(settings):
    from pathlib import Path

    backbone = load_backbone(settings.model, device="cpu")
    stream = experiment.load_stream(settings)
    folder = Path(settings.output_dir) / "one-run" / "stack"
    return experiment.open_or_train(settings, stream, backbone, folder), stream, folder


def test_a_trained_stack_is_found_and_not_trained_again(settings, trained, monkeypatch, tmp_path):
    stack, stream, folder = trained
    assert experiment.find_stack(settings, stream, stack.backbone) == folder
    others = dataclasses.replace(settings, n_eval=2, n_router=6, router="centroid")
    again = experiment.load_stream(others)  # frames have not seen routing and evaluation rows
    monkeypatch.setattr(type(stack), "grow", lambda *_: pytest.fail("trained again"))
    opened = experiment.open_or_train(others, again, stack.backbone, tmp_path / "new")
    assert [f.name for f in opened.frames] == ["sst2", "mrpc", "qnli"]


def test_the_best_parent_is_asked_for_and_its_stack_is_taken_for_no_chain(
    settings, trained, monkeypatch, tmp_path
):
    stack, stream, _ = trained
    monkeypatch.setattr(
        experiment, "best_parent", lambda s, _: (s.frames and s.frames[0].name) or None
    )
    here = str(tmp_path / "runs")
    best = dataclasses.replace(settings, parent="best", output_dir=here)
    folder = tmp_path / "runs" / "best" / "stack"
    made = experiment.open_or_train(best, stream, stack.backbone, folder)
    assert [frame.parent for frame in made.frames] == [None, "sst2", "sst2"]
    chain = dataclasses.replace(settings, output_dir=here)
    assert experiment.find_stack(chain, stream, stack.backbone) is None
    assert best.identity() == chain.identity() | {"parent": "best"}
    with pytest.raises(SkillStackError, match="unknown parent 'bets' .did you mean 'best'"):
        dataclasses.replace(settings, parent="bets")


def test_a_stack_trained_otherwise_is_not_taken(settings, trained, tmp_path, model_dirs):
    stack, stream, _ = trained

    def found(config=settings, rows=stream, backbone=stack.backbone, prompt=None):
        return experiment.find_stack(config, rows, backbone, prompt)

    for field, value in dict(seed=1, epochs=2, lr=1e-3, max_length=16, lora_alpha=4).items():
        assert found(dataclasses.replace(settings, **{field: value})) is None, field
    assert found(rows=stream[:2]) is None and found(rows=stream[::-1]) is None
    assert found(prompt=lambda task: "{text}") is None
    other = load_backbone(str(model_dirs["gpt2"]), device="cpu")
    assert found(backbone=other) is None
    # Another data folder with the same budget: other rows, some of them perhaps today's test rows.
    names = [data.name for data in stream]
    elsewhere = write_folder(tmp_path / "data", names[::-1])
    config = dataclasses.replace(settings, data_dir=str(elsewhere))
    assert found(config, experiment.load_stream(config)) is None
    more = dataclasses.replace(settings, train_on_router=True)  # more of the same rows
    assert found(more, experiment.load_stream(more)) is None


def test_a_stack_of_version_0_1_is_found_by_all_its_rows(settings, trained, tmp_path):
    stack, stream, folder = trained
    config = dataclasses.replace(settings, output_dir=str(tmp_path))
    old = shutil.copytree(folder, tmp_path / "old" / "stack")
    from skillstack_helpers.files import file_sha256

    for k, data in enumerate(stream):
        path = old / "frames" / data.name / "frame.json"
        edit_json(path, lambda fields: fields["data"].pop("train_fingerprint"))
        digest = file_sha256(path)
        edit_json(old / "stack.json", lambda f, k=k, d=digest: f["frames"][k].update(sha256=d))
    assert experiment.find_stack(config, stream, stack.backbone) == old
    fewer = experiment.load_stream(dataclasses.replace(config, n_eval=2))
    assert experiment.find_stack(config, fewer, stack.backbone) is None  # it cannot be known


def test_the_rows_of_a_frame_are_found_again_or_refused(settings, trained, tmp_path):
    stack, stream, _ = trained
    rows = experiment.load_rows(stack["mrpc"], settings.data_dir)
    assert rows.fingerprint == stream[1].fingerprint
    pd.testing.assert_frame_equal(rows.eval, stream[1].eval)
    elsewhere = write_folder(tmp_path / "data", ["qnli", "mrpc"])
    with pytest.raises(SkillStackError, match="rows of 'mrpc' found here are not those"):
        experiment.load_rows(stack["mrpc"], elsewhere)


def test_a_stack_opens_where_its_model_has_moved_to(saved, tmp_path, model_dirs):
    folder = shutil.copytree(saved, tmp_path / "stack")
    edit_json(folder / "stack.json", lambda m: m["backbone"].update(name="/moved/away"))
    with pytest.raises(SkillStackError, match="model folder /moved/away does not exist"):
        experiment.open_stack(folder)
    here = load_backbone(str(model_dirs["bert"]), device="cpu")
    assert experiment.open_stack(folder, {"here": here}).backbone is here


def test_a_model_of_unknown_origin_is_not_loaded(saved, tmp_path, model_dirs, monkeypatch):
    loaded, load = [], experiment.load_backbone
    monkeypatch.setattr(experiment, "load_backbone", lambda *of: loaded.append(of[0]) or load(*of))
    own = str(model_dirs["bert"])
    folder = shutil.copytree(saved, tmp_path / "stack")
    for name in (own, "some/model", "auto", "../minilm"):
        edit_json(folder / "stack.json", lambda m, name=name: m["backbone"].update(name=name))
        with pytest.raises(SkillStackError, match=f"model '{name}' is neither packaged nor .*--m"):
            experiment.open_stack(folder, {}, models=[])
    assert not loaded
    backbones: dict = {}
    assert len(experiment.open_stack(saved, backbones, models=["other", own])) == 3
    assert len(experiment.open_stack(folder, backbones, models=[])) == 3  # it is loaded already
    assert loaded == [own]
    edit_json(folder / "stack.json", lambda m: m["backbone"].update(name="minilm", revision="x"))
    with pytest.raises(SkillStackError, match="was made with backbone"):
        experiment.open_stack(folder, {}, models=[])
    assert loaded == [own, "minilm"]


def test_finding_and_opening(saved, tmp_path):
    root = saved.parent
    assert experiment.find_stacks(root) == [saved] and experiment.newest_stack(root) == saved
    backbones: dict = {}
    one, two = (experiment.open_stack(saved, backbones) for _ in range(2))
    assert len(one) == 3 and one.backbone is two.backbone and len(backbones) == 1
    with pytest.raises(SkillStackError, match="no saved stack below"):
        experiment.newest_stack(tmp_path)
    with pytest.raises(SkillStackError, match=r"stack\.json is missing"):
        experiment.open_stack(tmp_path)


def test_routers_are_fitted_where_there_are_none_and_saved_when_asked(saved, data_dir, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "stack")
    stack = experiment.open_stack(folder)
    before = experiment.stack_routers(stack, folder)
    assert list(before) == ["hybrid_chain", "centroid"]
    shutil.rmtree(folder / "routers")
    fitted = experiment.stack_routers(stack, folder, data_dir=data_dir)
    assert list(fitted) == ["hybrid_chain", "centroid"] and not (folder / "routers").exists()
    experiment.stack_routers(stack, folder, data_dir=data_dir, more=["profile"], save=True)
    kept = [path.name for path in sorted((folder / "routers").iterdir())]
    assert kept == ["centroid", "hybrid_chain", "profile"]
    texts = ["class1 of the", "agnewsword"]
    assert list(fitted["hybrid_chain"].predict(texts)) == list(
        before["hybrid_chain"].predict(texts)
    )


def test_a_stream_in_a_table(trained):
    table = experiment.stream_table(trained[1])
    assert table.loc["mrpc", ["classes", "train", "router", "eval"]].tolist() == [2, 8, 12, 8]
