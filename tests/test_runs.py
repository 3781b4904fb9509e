"""Run folders: what is recorded, resumed, locked, and told apart by what it measures."""

import dataclasses
import errno
import fcntl
import json
import math
import multiprocessing
import os
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError
from skillstack_helpers.files import write_atomic
from skillstack_helpers.heads import Evaluation
from skillstack_helpers.lab import runs
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import COLUMNS


def backbone(**changed):
    identity = {"name": "minilm", "revision": "1", "dtype": "float32", "quantization": None}
    identity |= {"kind": "encoder"} | changed
    return SimpleNamespace(
        name=identity["name"],
        quantize=identity["quantization"],
        max_positions=512,
        device=changed.get("device", "cpu"),
        identity=lambda: identity,
    )


def rows_of(name, fingerprint):
    task = SimpleNamespace(label_names=("no", "yes"))
    return SimpleNamespace(name=name, source="folder", fingerprint=fingerprint, task=task)


ROWS = [rows_of("a", "aa"), rows_of("b", "bb")]


@pytest.fixture
def settings(tmp_path):
    return RunConfig(notebook="01_train_stack", model="minilm", output_dir=str(tmp_path / "runs"))


def open_run(settings, rows=ROWS, model=None, method="stack"):
    return runs.open_run(settings, rows, model or backbone(), method)


# ------------------------------------------------------------------ recording


def test_a_number_is_recorded_once_and_read_back(settings):
    run = open_run(settings)
    where = {"trained_through": "a", "eval_task": "a"}
    assert math.isnan(run.value("accuracy", **where))
    run.record("accuracy", 0.25, **where, n=8)
    run.record("accuracy", Evaluation(0.75, [1, 0, 1], None), **where)
    run.record("depth", 3.5, unit="frames", router="hybrid_chain")
    table = runs.read_metrics(run.folder / "metrics.csv")
    assert tuple(table) == COLUMNS and len(table) == 2
    assert open_run(settings).value("accuracy", **where) == 0.75
    first = table.iloc[0]
    assert (first["run_id"], first["seed"], first["model"], first["n"]) == (run.id, 42, "minilm", 3)


def test_matrix_is_nan_where_nothing_was_measured(settings):
    run = open_run(settings)
    run.record("accuracy", 0.0, trained_through="b", eval_task="a")
    for tasks in (["a", "b"], ROWS):
        matrix = run.matrix(tasks)
        assert matrix.loc["b", "a"] == 0 and matrix.isna().sum().sum() == 3


def test_a_step_goes_on_with_the_item_it_was_at(settings):
    run, seen = open_run(settings), []
    for item in run.unfinished(ROWS, "stream"):
        seen.append(item.name)
        if item.name == "b":
            break  # interrupted in the body
    again = open_run(settings)
    seen += [item.name for item in again.unfinished(ROWS, "stream")]
    assert seen == ["a", "b", "b"]
    assert list(again.unfinished(ROWS, "stream")) == []
    assert [item.name for item in again.unfinished(ROWS, "another step")] == ["a", "b"]


def test_a_finished_run_is_closed(settings, capsys):
    run = open_run(settings)
    run.record("acc", 0.5)
    run.finish()
    before = {p.name: p.read_bytes() for p in run.folder.iterdir() if p.suffix != ".lock"}
    again = open_run(settings)
    assert again.finished and "is finished: its numbers are read" in capsys.readouterr().out
    assert list(again.unfinished(ROWS, "stream")) == []
    assert again.record("acc", 0.25) == 0.25 and again.value("acc") == 0.5
    again.finish()
    assert before == {p.name: p.read_bytes() for p in run.folder.iterdir() if p.suffix != ".lock"}


def test_a_table_is_made_once(settings):
    run = open_run(settings)
    table = pd.DataFrame({"frame": ["a", "b"], "depth": [1.0, math.nan]})
    made = run.table("routing.parquet", lambda: table)
    pd.testing.assert_frame_equal(made, table)
    pd.testing.assert_frame_equal(run.table("routing.parquet", pytest.fail), table)
    matrix = pd.DataFrame([[0.5, math.nan], [0.25, 1.0]], index=["a", "b"], columns=["a", "b"])
    run.save("matrix.csv", matrix.rename_axis("trained_through"))
    pd.testing.assert_frame_equal(run.read("matrix.csv"), matrix, check_names=False)
    run.save("train.jsonl", table)
    pd.testing.assert_frame_equal(run.read("train.jsonl"), table)


def test_facts_say_what_was_run_where(settings):
    run = open_run(settings)
    run.finish()
    facts = json.loads((run.folder / "run.json").read_text())
    for key in ("config", "commit", "dirty", "versions", "device", "seconds", "backbone", "data"):
        assert key in facts, key
    assert facts["status"] == "finished" and facts["config"]["seed"] == 42
    assert str(ROOT) not in json.dumps(facts)


def test_seconds_and_the_code_of_an_interrupted_run_are_kept(settings, monkeypatch):
    run = open_run(settings)
    run.facts["seconds"] = 100.0
    write_atomic(run.folder / "run.json", json.dumps(run.facts))
    monkeypatch.setattr(runs, "_git", lambda: {"commit": "other", "dirty": False})
    again = open_run(settings)
    again.finish()
    assert again.facts["seconds"] >= 100
    assert again.facts["commit"] == run.facts["commit"] != "other"
    assert [part["commit"] for part in again.facts["resumed"]] == ["other"]


# ------------------------------------------------------------------ which run is which


def test_the_id_names_what_was_run(settings):
    config = dataclasses.replace(settings, notebook="02_hard12", preset="hard12")
    name = runs.run_id(config, ROWS, backbone(name="meta-llama/Llama-3.2-1B"))
    assert name.startswith("02_hard12-hard12-llama_3.2_1b-stack-s42-")


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [ROWS[0]]},
        {"rows": [ROWS[0], rows_of("b", "other")]},
        {"model": backbone(revision="2")},
        {"model": backbone(dtype="bfloat16")},
        {"model": backbone(device="cuda:0")},
        {"model": backbone(quantization="nf4")},
    ],
)
def test_other_rows_or_weights_are_another_run(changed, settings, monkeypatch):
    """A finished run is never shown for what it did not measure."""
    monkeypatch.setattr(runs, "describe_device", lambda device: device)
    run = open_run(settings)
    run.record("acc", 0.5)
    run.finish()
    other = open_run(settings, **changed)
    assert not other.finished and other.folder != run.folder and other.metrics.empty


def test_where_a_run_reads_is_no_part_of_it(settings):
    moved = [SimpleNamespace(**{**vars(row), "source": "hub"}) for row in ROWS]
    ids = {runs.run_id(settings, rows, backbone()) for rows in (ROWS, moved)}
    ids.add(runs.run_id(dataclasses.replace(settings, data_dir="/else"), ROWS, backbone()))
    ids.add(runs.run_id(dataclasses.replace(settings, model="auto"), ROWS, backbone()))
    assert len(ids) == 1


def test_ids_of_committed_runs_are_what_they_measured():
    """A new parameter or another default must not move them."""
    folders = [path.parent for path in sorted((ROOT / "results" / "runs").glob("*/run.json"))]
    assert len(folders) > 90
    for folder in folders:
        facts = runs.read_facts(folder)
        identity = facts["backbone"]
        revision = {key: identity[key] for key in ("revision", "dtype", "quantization")}
        rows = {name: row["fingerprint"] for name, row in facts["data"].items()}
        config = RunConfig(**facts["config"])
        device = facts["device"].partition(":")[0]
        name = runs.hashed_id(config, facts["method"], identity["name"], revision, rows, device)
        assert name == folder.name == facts["run_id"]
        assert set(runs.read_metrics(folder / "metrics.csv")["run_id"]) == {name}


# ------------------------------------------------------------------ two at once, and damage


def _try_to_open(settings, answer):
    try:
        open_run(settings)
        answer.put("opened")
    except SkillStackError as error:
        answer.put(str(error))


def test_two_processes_cannot_work_on_one_run(settings):
    run = open_run(settings)
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    for expected in ("another process is working on", "opened"):
        other = context.Process(target=_try_to_open, args=(settings, answer))
        other.start()
        assert expected in answer.get(timeout=60)
        other.join()
        run.finish()


def test_a_run_finished_while_it_was_opened_is_finished(settings, monkeypatch):
    """What was read before the lock was taken is not believed."""
    run = open_run(settings)
    read, calls = runs.read_facts, []

    def stale(folder):
        calls.append(folder)
        facts = read(folder)
        if len(calls) == 1:
            run.finish()
        return facts

    monkeypatch.setattr(runs, "read_facts", stale)
    assert open_run(settings).finished


def test_damaged_files_are_named(settings):
    run = open_run(settings)
    run.record("acc", 0.5)
    (run.folder / "metrics.csv").write_text("run_id,value\nx")
    with pytest.raises(SkillStackError, match="metrics.csv is damaged"):
        open_run(settings)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(SkillStackError, match=r"run.json is not valid JSON .*; delete the folder"):
        open_run(settings)
    with pytest.raises(SkillStackError, match=r"matrix\.csv is missing"):
        run.read("matrix.csv")


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config = RunConfig(output_dir=str(tmp_path / "file" / "below"))
    with pytest.raises(SkillStackError, match="cannot write to"):
        open_run(config)


@pytest.mark.parametrize(
    "module, function, said",
    [(fcntl, "flock", "lock a file in"), (os, "rename", "rename a folder in")],
)
def test_a_drive_that_cannot_lock_or_rename_says_so_first(
    module, function, said, settings, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as drive:
        drive.setattr(module, function, refuse)
        with pytest.raises(SkillStackError, match=f"cannot {said} .*: No locks .*; set output_dir"):
            open_run(settings)
    run = open_run(settings)  # on a drive that can, nothing of it is left
    assert {path.name for path in run.folder.iterdir()} == {".lock", "run.json"}


# ------------------------------------------------------------------ reading


def test_runs_are_found_by_what_they_are(settings, tmp_path):
    for seed, preset in ((1, "hard8"), (2, "hard8"), (1, "mini4")):
        run = open_run(dataclasses.replace(settings, seed=seed, preset=preset))
        run.record("acc", seed / 10)
        run.finish()
    longer = open_run(dataclasses.replace(settings, epochs=9))
    longer.record("acc", 0.9)
    longer.finish()
    half = open_run(settings, model=backbone(dtype="bfloat16"))
    half.record("acc", 0.8)
    half.finish()
    open_run(dataclasses.replace(settings, seed=5)).record("acc", 0.5)  # not finished
    table = runs.load_runs(tmp_path / "runs")
    assert sorted(table["value"]) == [0.1, 0.1, 0.2, 0.8, 0.9]
    assert list(runs.load_runs(tmp_path / "runs", preset="mini4")["value"]) == [0.1]
    assert sorted(open_run(dataclasses.replace(settings, seed=1)).alike()["value"]) == [0.1, 0.2]
    assert list(half.alike()["value"]) == [0.8]
    assert runs.load_runs(tmp_path / "nowhere").empty


def test_of_several_values_of_a_methods_own_parameter_one_is_shown(settings):
    def measured(method, seed=42, **own):
        run = open_run(dataclasses.replace(settings, seed=seed, **own), method=method)
        run.record("acc", own.get("ewc_strength", 0.0))
        run.finish()
        return run

    for strength in (1.0, 2.0):
        measured("ewc", ewc_strength=strength)
    measured("ewc", seed=1, ewc_strength=1.0)  # the only one of its seed
    measured("ewc", seed=2, ewc_strength=4.0, tuned_on="clinc10")
    frames = measured("frames", ewc_strength=2.0)
    assert sorted(frames.alike()["value"]) == [1.0, 2.0, 2.0]  # the frames', and EWC's of two seeds
    assert sorted(measured("joint").alike()["value"]) == [0.0, 1.0, 2.0]  # which EWC of 42 is open
    elsewhere = measured("ewc", ewc_strength=5.0, tuned_on="clinc10")
    assert sorted(elsewhere.alike()["value"]) == [0.0, 2.0, 4.0, 5.0]
    assert sorted(frames.alike()["value"]) == [0.0, 1.0, 2.0, 2.0]


def test_budgets_fill_in_the_defaults():
    words = runs.budget({"n_train": 3, "notebook": "x"})
    assert words == runs.budget(vars(RunConfig(n_train=3, seed=9)))
    assert words.startswith("router hybrid_chain, n_train 3, n_router 256, n_eval 64")


def test_published_numbers_come_with_their_words():
    published = runs.load_published()
    assert list(published) == (
        "source section preset model method router seed eval_task metric value unit words".split()
    )
    assert not published.duplicated().any()
    for row in published.itertuples():
        number = f"{abs(float(row.value)):g}"
        found = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", row.words)
        assert number in {f"{float(text):g}" for text in found}, row


def test_published_numbers_are_verbatim_where_the_texts_are_at_hand():
    seeds = ROOT.parent / "shared" / "seeds"
    if not seeds.is_dir():
        pytest.skip("the source texts are not part of the project")
    texts = [" ".join(path.read_text(errors="replace").split()) for path in seeds.glob("*.txt")]
    published = runs.load_published()
    elsewhere = published["source"].str.contains("arXiv|uncertainty-baselines")
    for words in published.loc[~elsewhere, "words"].unique():
        assert any(words in text for text in texts), words


# ------------------------------------------------------------------ digests


def test_a_finished_run_is_read_as_it_was_finished_or_not_at_all(settings):
    run = open_run(settings)
    run.record("accuracy", 0.5, eval_task="imdb", n=2)
    run.save("rows.csv", pd.DataFrame({"a": [1.5]}))
    run.finish()
    run.save("rows.csv", pd.DataFrame({"a": [2.5]}))  # what a finished run has on file stays
    run.save("late.csv", pd.DataFrame({"a": [3.5]}))
    read = runs.read_run(run.folder)
    assert read.read("rows.csv")["a"].tolist() == [1.5]
    assert set(read.facts["sha256"]) == {"metrics.csv", "rows.csv", "late.csv"}
    for name in ("metrics.csv", "rows.csv", "late.csv", "run.json"):
        path = run.folder / name
        content = path.read_bytes()
        path.write_bytes(content.replace(b"5", b"6", 1))
        with pytest.raises(SkillStackError, match=f"{name} was changed or cut off"):
            runs.read_run(run.folder).read(name if name.endswith("csv") else "rows.csv")
        path.write_bytes(content)
    (run.folder / "rows.csv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(SkillStackError, match=r"rows.csv was changed"):
        read.read("rows.csv")
