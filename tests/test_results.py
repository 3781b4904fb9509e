import dataclasses
import json
import math
import multiprocessing
import os
import re

import pandas as pd
import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError, results
from skillstack_helpers.config import RunConfig
from skillstack_helpers.results import COLUMNS, PUBLISHED_COLUMNS, open_run


@pytest.fixture
def settings(tmp_path):
    return RunConfig(notebook="01_train_stack", model="minilm", output_dir=str(tmp_path / "runs"))


class FakeBackbone:
    device = "cpu"

    def identity(self):
        return {"name": "minilm"}


def test_a_number_is_recorded_once_and_read_back(settings):
    run = open_run(settings)
    assert math.isnan(run.accuracy("imdb", "imdb")) and not run.has("imdb", "imdb")
    run.record("accuracy", 0.25, trained_through="imdb", eval_task="imdb", n=8)
    run.record("accuracy", 0.75, trained_through="imdb", eval_task="imdb", n=8)
    run.record("depth", 3.5, unit="frames", router="hybrid_chain")
    table = results.read_metrics(run.folder / "metrics.csv")
    assert tuple(table) == COLUMNS and len(table) == 2
    assert open_run(settings).accuracy("imdb", "imdb") == 0.75
    first = table.iloc[0]
    assert (first["run_id"], first["seed"], first["model"]) == (settings.run_id(), 42, "minilm")


def test_matrix_is_nan_where_nothing_was_measured(settings):
    run = open_run(settings)
    run.record("accuracy", 0.0, trained_through="b", eval_task="a")
    matrix = run.matrix(["a", "b"])
    assert matrix.loc["b", "a"] == 0 and matrix.isna().sum().sum() == 3


def test_facts_say_what_was_run_where(settings):
    run = open_run(settings)
    assert not run.finished
    run.finish(FakeBackbone())
    facts = json.loads((run.folder / "run.json").read_text())
    for key in ("config", "commit", "dirty", "versions", "device", "seconds", "backbone"):
        assert key in facts, key
    assert facts["status"] == "finished" and facts["config"]["seed"] == 42
    assert str(ROOT) not in json.dumps(facts)
    assert open_run(settings).finished


def test_seconds_add_up_over_interruptions(settings):
    run = open_run(settings)
    run.facts["seconds"] = 100.0
    results.write_atomic(run.folder / "run.json", json.dumps(run.facts))
    again = open_run(settings)
    again.finish(FakeBackbone())
    assert again.facts["seconds"] >= 100


def test_other_rows_are_refused(settings, stream):
    import dataclasses

    open_run(settings).check_data(stream)
    open_run(settings).check_data(stream)
    changed = [dataclasses.replace(stream[0], fingerprint="other"), *stream[1:]]
    with pytest.raises(SkillStackError, match="was begun on other rows of imdb"):
        open_run(settings).check_data(changed)


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
    other = context.Process(target=_try_to_open, args=(settings, answer))
    other.start()
    assert "another process is working on" in answer.get(timeout=60)
    other.join()
    assert run.folder.exists()


def test_damaged_files_are_named(settings):
    run = open_run(settings)
    run.record("acc", 0.5)
    (run.folder / "metrics.csv").write_text("run_id,value\nx")
    with pytest.raises(SkillStackError, match="metrics.csv is damaged"):
        open_run(settings)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(SkillStackError, match="run.json is missing or damaged"):
        open_run(settings)
    with pytest.raises(SkillStackError, match=r"matrix\.csv is missing"):
        run.read("matrix.csv")


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config = RunConfig(output_dir=str(tmp_path / "file" / "below"))
    with pytest.raises(SkillStackError, match="cannot write to"):
        open_run(config)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    results.write_atomic(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        results.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_tables_keep_their_shape(settings):
    run = open_run(settings)
    table = pd.DataFrame({"frame": ["a", "b"], "depth": [1.0, math.nan]})
    run.save("routing.parquet", table)
    pd.testing.assert_frame_equal(run.read("routing.parquet"), table)
    matrix = pd.DataFrame([[0.5, math.nan], [0.25, 1.0]], index=["a", "b"], columns=["a", "b"])
    run.save("matrix.csv", matrix.rename_axis("trained_through"))
    pd.testing.assert_frame_equal(run.read("matrix.csv"), matrix, check_names=False)


# ------------------------------------------------------------------ the published numbers


def test_reference_holds_every_number_with_its_words():
    reference = results.load_reference()
    assert list(reference) == (
        "source section preset model method router seed eval_task metric value unit words".split()
    )
    assert not reference.duplicated().any()
    for row in reference.itertuples():
        number = f"{abs(float(row.value)):g}"
        found = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", row.words)
        assert number in {f"{float(text):g}" for text in found}, row


def test_reference_is_verbatim_where_the_texts_are_at_hand():
    seeds = ROOT.parent / "shared" / "seeds"
    if not seeds.is_dir():
        pytest.skip("the source texts are not part of the project")
    texts = [" ".join(path.read_text(errors="replace").split()) for path in seeds.glob("*.txt")]
    reference = results.load_reference()
    for words in reference[~reference["source"].str.contains("arXiv")]["words"].unique():
        assert any(words in text for text in texts), words


def test_published_rows_stand_beside_ours():
    ours = pd.DataFrame(
        [("r", 42, "minilm", "hard12", "stack", "", "", "", "eval", m, 0.5, "fraction", 1)
         for m in PUBLISHED_COLUMNS],
        columns=COLUMNS,
    )  # fmt: skip
    ours.loc[ours["metric"].eq("depth"), ["value", "unit"]] = [2.5, "frames"]
    table = results.beside_published(ours, "hard12")
    assert list(table) == list(PUBLISHED_COLUMNS.values())
    assert table.loc[("measured here", "minilm", "42")].tolist() == [50] * 6 + [2.5]
    two = results.beside_published(pd.concat([ours, ours.assign(run_id="r2", value=0)]), "hard12")
    assert two.loc[("measured here", "minilm", "42")]["routed overall (%)"].tolist() == [50, 0]
    published = table.loc[("published", "Llama-3.2-1B", "42")].tolist()
    assert published == [36.5, 0.0, 80.3, 79.3, 88.7, 16.8, 5.40]
    assert math.isnan(table.loc[("published", "Llama-3.2-3B", "42"), "depth (frames)"])


def probe_rows(method, metric, values, **columns):
    rows = [
        dict(
            zip(COLUMNS, ("r", seed, "minilm", "hard12", method, "", "", "", "eval"), strict=False)
        )
        | {"metric": metric, "value": value, "unit": "fraction", "n": 1, **columns}
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_over_seeds_by_hand():
    table = results.over_seeds(probe_rows("probe", "x", [0.2, 0.4, 0.9], router="a"), ["router"])
    (row,) = table.to_dict("records")
    assert row["mean"] == pytest.approx(0.5) and row["seeds"] == 3
    assert row["low"] == pytest.approx(0.2) and row["high"] == pytest.approx(0.9)  # three values
    one = results.over_seeds(probe_rows("probe", "x", [0.2], router="a"), ["router"])
    assert math.isnan(one["low"].item())


def test_probe_table_sets_published_beside_measured():
    condition = {"router": "hybrid_chain", "split": "as streamed: rewritten"}
    rows = probe_rows("probe", "router_accuracy", [0.5, 0.6], **condition)
    normal = rows.assign(split="as streamed: normal")
    table = results.probe_table(pd.concat([rows, normal]))
    assert table.loc[("published", "hybrid_chain"), "rewritten"] == "47.5"
    assert table.loc[("measured here", "hybrid_chain"), "rewritten"] == "55.0 [50.0, 60.0]"
    assert table.loc[("published", "keyword augmented"), "trap rate"] == "0.4"
    assert table.loc[("published", "hybrid_chain"), "trap rate"] == ""


def test_router_table_pairs_the_seeds():
    rows = [
        probe_rows("routers", "router_accuracy", [0.8, 0.9], router="hybrid_svm"),
        probe_rows("routers", "router_accuracy", [0.9, 1.0], router="scaffold_blind"),
    ]
    table = results.router_table(pd.concat(rows))
    assert list(table.index) == ["scaffold_blind", "hybrid_svm"]
    assert table.loc["scaffold_blind", "against hybrid_svm"] == "10.0 [10.0, 10.0]"
    assert table.loc["hybrid_svm", "right frame, all texts"] == "85.0 [80.0, 90.0]"


def method_rows(method, values, seed, preset="hard8"):
    """Rows of notebook 04: values maps (metric, trained_through, eval_task) to a fraction."""
    rows = [
        (f"04_baselines-{method}-{seed}", seed, "minilm", preset, method, "", through, task, "eval",
         metric, value, "fraction", 4)
        for (metric, through, task), value in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def baselines_of_two_seeds():
    tables = []
    for seed, up in ((1, 0.0), (2, 0.1)):
        frames = {("accuracy", "a", "a"): 0.8, ("accuracy", "b", "b"): 0.7 + up}
        frames |= {("acc", "", ""): 0.75, ("routed", "", ""): 0.6 + up}
        frames |= {("routed", "", "a"): 0.5, ("routed", "", "b"): 0.7, ("bwt", "", ""): 0.0}
        alone = {("accuracy", "a", "a"): 0.8, ("accuracy", "b", "b"): 0.5}
        alone[("acc", "", "")] = 0.65
        ewc = {("accuracy", "a", "a"): 0.8, ("accuracy", "b", "b"): 0.6}
        ewc |= {("acc", "", ""): 0.5 + up, ("bwt", "", ""): -0.2, ("final", "", "a"): 0.4}
        ewc |= {("final", "", "b"): 0.6, ("routed", "", "a"): 0.4, ("routed", "", "b"): 0.5}
        joint = {("accuracy", "b", "b"): 0.9, ("acc", "", ""): 0.8}  # a last row only
        named = {"frames": frames, "independent": alone, "ewc": ewc, "joint": joint}
        for method, values in named.items():
            tables.append(method_rows(method, values, seed))
    return pd.concat(tables)


def test_baseline_table_by_hand():
    table = results.baseline_table(baselines_of_two_seeds(), "hard8")
    ours = table.loc["measured here"]
    assert list(ours.index) == ["frames", "joint", "independent", "ewc"]
    assert ours.loc["joint", "FWT (pp)"] == "" and ours.loc["joint", "BWT (pp)"] == ""
    assert ours.loc["frames", "routed (%)"] == "65.0 ± 7.1"  # 60 and 70
    assert ours.loc["ewc", "task given (%)"] == "55.0 ± 7.1"
    assert ours.loc["ewc", "BWT (pp)"] == "-20.0 ± 0.0"
    # transfer: right after learning b, minus the independent adapter on b; a is the first task
    assert (
        ours.loc["frames", "FWT (pp)"] == "25.0 ± 7.1" and ours.loc["ewc", "FWT (pp)"][:4] == "10.0"
    )
    # pairs over seeds and tasks: task given 0.4 - 0.5 and 0.6 - 0.7; routed 0.4 - 0.5, 0.5 - 0.7
    given, routed = ours.loc[
        "ewc", ["task given - routed stack (pp)", "routed - routed stack (pp)"]
    ]
    assert given == "-10.0 [-10.0, -10.0]"
    assert routed.startswith("-15.0 [-") and ours.loc["frames", "routed - routed stack (pp)"] == ""
    published = table.loc["published: Llama-3.2-1B, 42"]
    assert published.loc["ewc", "task given (%)"] == 57.9
    assert published.loc["ewc", "BWT (pp)"] == "-27.5"
    assert published.loc["frames", "routed (%)"] == 83.2
    assert table.loc[("published: Llama-3.2, four runs, mean", "joint"), "task given (%)"] == 77.8
    assert not table.isna().any().any()


def test_order_table_by_hand():
    assert not len(results.order_table(baselines_of_two_seeds()))  # hard8 is no other stream
    runs = [
        method_rows("olora", {("acc", "", ""): value}, 42, f"standard4_order{i}")
        for i, value in ((1, 0.4), (2, 0.5), (3, 0.9))
    ]
    for preset, value in (("hard5", 0.7), ("hard5_reversed", 0.8)):
        runs.append(method_rows("frames", {("routed", "", ""): value}, 42, preset))
    table = results.order_table(pd.concat(runs))
    mean = table.xs("standard4, mean of the orders", level="stream")
    assert mean.loc[("measured here", "olora"), "task given (%)"] == "60.0"
    published = mean["task given (%)"].droplevel("who")
    assert published["pslora"] == 79.6 and published["independent"] == 70.0
    probe = table.xs("frames", level="method")["routed (%)"]
    assert probe["measured here", "hard5_reversed"] == "80.0"
    assert probe["published, Llama-3.2-1B", "hard5_reversed"] == 89.2
    two = results.order_table(pd.concat(runs[:2]))  # the mean wants all three orders
    assert "measured here" not in two.xs("standard4, mean of the orders", level="stream").index


def bitstack_rows():
    tables = []
    for method, drop in (("baseline", 0.2), ("bitstack_0.10", 0.1)):
        for seed, up in ((1, 0.0), (2, 0.02)):
            values = {("final_drop", "", ""): drop + up, ("acc", "", ""): 0.5}
            values |= {("learned", "", ""): 0.6, ("first_task", "", ""): 0.7}
            if method != "baseline":
                values |= {("locked_pct", "imdb", ""): 3.0, ("locked_pct", "yahoo", ""): 6.0}
            tables.append(method_rows(method, values, seed, "bitstack5"))
    return pd.concat(tables)


def test_bitstack_table_by_hand():
    table = results.bitstack_table(bitstack_rows())
    assert table.loc[("measured here", "baseline"), "points lost"] == "21.0 [20.0, 22.0]"
    ours = table.loc["measured here", "bitstack_0.10"]
    assert ours["locked (% of all)"] == "6.0 [6.0, 6.0]" and ours["seeds"] == "2"  # the last task's
    assert table.loc[("published: gpt2", "baseline"), "points lost"] == 14.5
    assert table.loc[("published: gpt2", "bitstack_0.12"), "first task at the end (%)"] == 73.2
    assert not table.isna().any().any()


def test_share_curve_by_hand():
    curve = results.share_curve(bitstack_rows())
    lost = curve[curve["metric"].eq("drop")].set_index(["line", "share"])["percent"]
    assert lost["seed 2", 0.0] == pytest.approx(22) and lost["seed 1", 0.1] == pytest.approx(10)
    assert lost["published, gpt2", 0.0] == 14.5 and lost["published, gpt2", 0.12] == 3.8


def compression_rows():
    tables = []
    whole = {"frames": (8, 4), "total_bytes": (200, 100), "adapter_bytes": (160, 80)}
    whole |= {"adapters": (8, 4), "routed": (0.75, 0.76)}
    tasks = {"imdb": (0.7, 0.9), "agnews": (0.8, 0.62)}
    for seed, up in ((42, 0.0), (123, 0.02)):
        for k, split in enumerate(("full", "published anchor", "rule: online")):
            values = {metric: pair[min(k, 1)] for metric, pair in whole.items()}
            values["routed"] += up * k
            rows = [("", metric, value) for metric, value in values.items()]
            rows += [(task, "routed", pair[min(k, 1)]) for task, pair in tasks.items()]
            for task, metric, value in rows:
                columns = {"seed": seed, "split": split, "eval_task": task, "preset": "mixed8"}
                tables.append(probe_rows("compression", metric, [value], **columns))
        for metric, value in (("loss", 0.1), ("task_loss", 0.4), ("loss_by_id", 0.05)):
            columns = {"seed": seed, "split": "anchor without qqp", "preset": "mixed8"}
            tables.append(probe_rows("compression", metric, [value + up], **columns))
    return pd.concat(tables)


def test_compression_table_by_hand():
    table = results.compression_table(compression_rows())
    ours = table.loc["measured here, one anchor (sst2)"]
    assert ours.loc["42"].tolist() == ["8", "75.0", "4", "76.0", "-50.0", "+1.0"]
    assert ours.loc["mean", "change (pp)"] == "2.0 [1.0, 3.0]"
    assert table.loc["published, one anchor (sst2)"].loc["123", "change (pp)"] == "+1.5"
    assert set(table.index.get_level_values("who")) == {
        "published, one anchor (sst2)",
        "measured here, one anchor (sst2)",
        "measured here, the rule, online",
    }


def test_boundary_and_shrink_tables_by_hand():
    boundary = results.boundary_table(compression_rows())
    (row,) = boundary.to_dict("records")
    assert row["published: lost, overall"] == "0.4, 2.0"
    assert row["published: lost, own rows"] == "18.8, 27.3"
    assert row["lost overall"] == "11.0 [10.0, 12.0]" and row["lost on its own rows"][:4] == "41.0"
    shrunk = results.shrink_table(compression_rows())
    anchor = shrunk.loc["published anchor"]
    assert anchor["bytes"] == 0.5 and anchor["change"] == pytest.approx(0.02)
    assert anchor["worst"] == pytest.approx(-0.18) and anchor["seeds"] == 2
    assert list(shrunk.index) == ["full", "published anchor", "rule: online"]
    cells = results.shrink_cells(shrunk)
    assert cells.loc["published anchor", "bytes on disk (%)"] == "50.0"
    assert cells.loc["published anchor", "worst task (pp)"] == "-18.0"


def test_generalization_table_by_hand():
    tables = []
    for seed, up in ((42, 0.0), (7, 0.1)):
        for split, value in (("latest adapter", 0.3), ("routed stack", 0.6), ("oracle", 0.8)):
            columns = {"seed": seed, "split": split, "preset": "mixed8"}
            rows = probe_rows("generalization", "mean_unseen", [value + up], **columns)
            tables.append(rows)
    table = results.generalization_table(pd.concat(tables))
    assert table.loc[("published", "mean"), "routed - latest (pp)"] == "37.8"  # 91.5 - 53.7
    ours = table.loc["measured here, unseen tasks"]
    assert ours.loc["7", "routed stack"] == "70.0" and ours.loc["7", "best single frame"] == ""
    assert ours.loc["mean", "routed stack"] == "65.0 [60.0, 70.0]"
    assert ours.loc["mean", "routed - latest (pp)"] == "30.0 [30.0, 30.0]"


def test_tables_of_written_answers_by_hand():
    def row(seed, metric, value, task="", split="eval", after=""):
        columns = {"seed": seed, "split": split, "preset": "gen_mixed5"}
        places = {"eval_task": task, "trained_through": after}
        return probe_rows("generative", metric, [value], **columns).assign(**places)

    rows = []
    for seed, up in ((42, 0.0), (7, 0.1)):
        for who, value in (("latest adapter", 0.4), ("own frame", 0.6), ("routed stack", 0.5)):
            rows.append(row(seed, "mean_written", value + up, split=who))
            rows += [row(seed, "written", value + up, task, who) for task in ("imdb", "agnews")]
        for task, chance in (("imdb", 0.5), ("agnews", 0.25)):
            rows.append(row(seed, "chance", chance, task))
            rows.append(row(seed, "router_accuracy", 1.0, task))
            rows.append(row(seed, "written_low", 0.45 + up, task, "own frame"))
            rows.append(row(seed, "accuracy", 0.8, task, after=task))
            rows.append(row(seed, "choice", 0.8 - up, task, "own frame"))
            rows.append(row(seed, "memory", 0.5, task, "own frame: nothing"))
        rows.append(row(seed, "memory", 0.6, "imdb", "own frame: right memory"))
        rows.append(row(seed, "memory", 0.4 - up, "agnews", "own frame: right memory"))
    measured = pd.concat(rows)
    table = results.generative_table(measured)
    assert table.loc[("published", "2 seeds"), "latest adapter"] == "60.3"
    assert list(table["saved frames' drop (pp)"]) == ["0.0", "0.0", "10.0", ""]
    assert table.loc[("measured here", "mean"), "own frame"] == "65.0 [60.0, 70.0]"
    table = results.written_table(measured)
    assert list(table.index) == ["imdb", "agnews"] and list(table["chance"]) == [50, 25]
    assert table.loc["imdb", "own frame"] == pytest.approx(65)
    assert table.loc["imdb", "own frame, lower limits"] == "45.0, 55.0"
    table = results.memory_table(measured)
    assert list(table.index) == [("own frame", "nothing"), ("own frame", "right memory")]
    assert table.iloc[0]["mean"] == "50.0 [50.0, 50.0]"
    assert list(table.iloc[1][["imdb", "agnews"]]) == ["+10.0", "-15.0"]
    assert table.iloc[1]["mean"].startswith("-2.5 [")


def test_find_stack_wants_the_same_training(tmp_path):
    config = RunConfig(notebook="02_hard12", model="minilm", output_dir=str(tmp_path))
    folder = tmp_path / config.run_id() / "stack"
    folder.mkdir(parents=True)
    (folder / "stack.json").write_text("{}")
    facts = {"run_id": "x", "status": "running", "config": config.identity()}
    (folder.parent / "run.json").write_text(json.dumps(facts))
    other = dataclasses.replace(config, notebook="03_routers", n_eval=8, router="arrow")
    assert results.find_stack(other) is None  # not finished
    (folder.parent / "run.json").write_text(json.dumps(facts | {"status": "finished"}))
    assert results.find_stack(other) == folder
    assert results.find_stack(dataclasses.replace(other, seed=7)) is None
    assert results.find_stack(dataclasses.replace(other, n_train=7)) is None


# ------------------------------------------------------------------ what is committed

RUNS = sorted((ROOT / "results" / "runs").glob("*/run.json"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_committed_run_is_finished_clean_and_consistent(path):
    facts = results.read_facts(path.parent)
    if facts["status"] != "finished":
        pytest.skip("a run of yours in progress")
    config = RunConfig(**facts["config"])
    assert path.parent.name == facts["run_id"] == config.run_id(facts["method"])
    assert facts["commit"] and facts["dirty"] is False
    metrics = results.read_metrics(path.parent / "metrics.csv")
    assert not metrics["value"].isna().any()
    for table in path.parent.glob("*.parquet"):
        assert not {"text", "text_pair"} & set(pd.read_parquet(table))
    if facts["method"] != "stack":
        return
    matrix = pd.read_csv(path.parent / "matrix.csv", index_col=0).to_numpy()
    drop = metrics.loc[metrics["metric"].eq("latest_drop"), "value"].item()
    expected = (matrix.diagonal()[:-1] - matrix[-1, :-1]).mean()
    assert drop == pytest.approx(expected, abs=1e-9)


def test_readme_tables_are_built_from_the_committed_runs():
    text = (ROOT / "README.md").read_text()
    assert "<!-- table: hard8 -->" in text and "<!-- table: hard12 -->" in text
    assert results.readme(text) == text
