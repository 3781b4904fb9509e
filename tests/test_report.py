import math
import re
import sys

import pandas as pd
import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab.runs import COLUMNS, load_runs

sys.path.insert(0, str(ROOT / "results"))
import report


@pytest.fixture(scope="module")
def committed():
    return load_runs()


def rows(method, metric, values, **columns):
    """Rows of metrics.csv, a value for each of the seeds 0, 1, ..."""
    row = dict.fromkeys(COLUMNS, "") | {"model": "minilm", "preset": "hard12", "split": "eval"}
    row |= {"method": method, "metric": metric, "unit": "fraction", "n": 1}
    return pd.DataFrame(
        [
            row | {"run_id": f"r{seed}", "seed": seed, "value": value, **columns}
            for seed, value in enumerate(values)
        ],
        columns=COLUMNS,
    )


# ------------------------------------------------------------------ what a cell says


def cells(*values, metric="x"):
    return rows("m", metric, values, router="a")


def test_over_seeds_the_range_is_shown_and_called_so():
    """Two or three seeds carry no 95 % interval."""
    for n, values, expected in (
        (2, (0.1, 0.2), "15.0 [10.0, 20.0]"),
        (3, (0.2, 0.4, 0.9), "50.0 [20.0, 90.0]"),
    ):
        table = report.summary(cells(*values), ["router"], {"heading": "x"})
        assert table.loc["a", "heading"] == expected
        assert table.columns.name == f"mean [range of {n} seeds]"
    alone = report.summary(cells(0.2), ["router"], {"heading": "x"})
    assert alone.loc["a", "heading"] == "20.0" and alone.columns.name is None


def test_the_range_does_not_shrink_with_many_seeds_as_an_interval_would():
    table = report.summary(cells(*[0.5] * 19, 0.0, 1.0), ["router"], {"heading": "x"})
    assert table.loc["a", "heading"] == "50.0 [0.0, 100.0]"


def test_many_pairs_have_a_bootstrap_interval_and_few_have_none():
    many = pd.concat([rows("m", "x", [0.1, 0.3], eval_task=task) for task in "abcdef"])
    text = report.bootstrapped(many.assign(value=100 * many["value"]))
    low, high = map(float, re.fullmatch(r"\+20\.0 \[\+(.+), \+(.+)\]", text).groups())
    assert 10 < low < 20 < high < 30
    assert report.bootstrapped(cells(10.0, 20.0)) == "+15.0"


def test_missing_numbers_are_empty_cells_and_units_are_shown_as_people_read_them():
    numbers = pd.concat([cells(0.5), cells(2e6, metric="size").assign(unit="bytes")])
    columns = {"right (%)": "x", "size (MB)": "size", "nothing": "unknown"}
    assert report.summary(numbers, ["router"], columns).loc["a"].tolist() == ["50.0", "2.0", ""]


# ------------------------------------------------------------------ what is never averaged

TABLES = {
    report.router_table: lambda: rows("routers", "router_accuracy", [0.8], router="hybrid_svm"),
    report.probe_table: lambda: rows(
        "probe", "router_accuracy", [0.5], router="hybrid_svm", split="as streamed: normal"
    ),
    report.generative_table: lambda: generative_rows(),
    report.written_table: lambda: generative_rows(),
    report.memory_table: lambda: generative_rows(),
    report.generalization_table: lambda: generalization_rows(),
}


@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("column", ["model", "budget"])
def test_tables_refuse_two_models_and_two_budgets(make, column):
    """The second one stands for the first Llama run of a stream that minilm ran before."""
    mine, other = {"model": ("minilm", "Llama-3.2-1B"), "budget": ("n_eval 16", "n_eval 64")}[
        column
    ]
    numbers = TABLES[make]().assign(budget="lr None, n_eval 16")
    second = numbers.assign(run_id=numbers["run_id"] + "b", value=0.0)
    second[column] = numbers[column].str.replace(mine, other)
    make(numbers)
    with pytest.raises(SkillStackError, match=f"one {column}, got {mine} and {other}$"):
        make(pd.concat([numbers, second]))


def test_tables_refuse_two_runs_of_one_seed():
    numbers = TABLES[report.router_table]()
    with pytest.raises(SkillStackError, match="one run of a seed, got r0 and r9"):
        report.router_table(pd.concat([numbers, numbers.assign(run_id="r9", value=0.1)]))
    run = rows("stack", "saved", [0.5], eval_task="imdb")
    other = run.assign(seed=7, run_id="r7")
    with pytest.raises(SkillStackError, match="saved: one number is shown, got 2"):
        report.per_task(pd.concat([run, other]))


def test_a_second_model_leaves_the_readme_as_it_is(committed):
    """A first run of another model on a stream of the README is not mixed into its table."""
    llama = committed[committed["preset"].eq("hard12")].assign(model="Llama-3.2-1B", value=0.0)
    both = pd.concat([committed, llama], ignore_index=True)
    for name in ("hard12", "routers_hard12", "probe_hard12"):
        assert report.readme_table(name, both) == report.readme_table(name, committed)


def test_an_unknown_table_is_one_line(committed):
    with pytest.raises(SkillStackError, match="unknown table 'hard9'"):
        report.readme_table("hard9", committed)


# ------------------------------------------------------------------ tables by hand


def test_per_task_is_in_the_order_of_the_stream():
    parts = []
    for k, task in enumerate(("imdb", "agnews")):
        parts.append(rows("stack", "saved", [0.8], eval_task=task))
        parts.append(rows("stack", "routed", [0.7], eval_task=task))
        parts.append(rows("stack", "chance", [0.5 / (k + 1)], eval_task=task))
        for through in ("imdb", "agnews")[k:]:
            value = [0.9 if through == task else 0.4]
            parts.append(rows("stack", "accuracy", value, eval_task=task, trained_through=through))
    table = report.per_task(pd.concat([*parts, rows("stack", "routed", [0.1])]))
    assert list(table.index) == ["imdb", "agnews"]
    assert table.loc["imdb"].tolist() == [0.4, 0.8, 0.7, 0.5]
    assert table.loc["agnews"].tolist() == [0.9, 0.8, 0.7, 0.25]
    assert list(table) == ["latest adapter", "saved frame", "routed stack", "chance"]


def test_published_rows_stand_beside_ours():
    ours = pd.concat([rows("stack", metric, [0.5]) for metric in report.PUBLISHED_COLUMNS])
    ours = ours.assign(seed=42)
    ours.loc[ours["metric"].eq("depth"), ["value", "unit"]] = [2.5, "frames"]
    table = report.beside_published(ours, "hard12")
    assert list(table) == list(report.PUBLISHED_COLUMNS.values())
    assert table.loc[("measured here", "minilm", "42")].squeeze().tolist() == [50] * 6 + [2.5]
    two = report.beside_published(pd.concat([ours, ours.assign(run_id="r2", value=0)]), "hard12")
    assert two.loc[("measured here", "minilm", "42")]["routed overall (%)"].tolist() == [50, 0]
    published = table.loc[("published", "Llama-3.2-1B", "42")].squeeze().tolist()
    assert published == [36.5, 0.0, 80.3, 79.3, 88.7, 16.8, 5.40]
    assert math.isnan(table.loc[("published", "Llama-3.2-3B", "42"), "depth (frames)"].item())
    assert len(report.beside_published(pd.DataFrame(columns=COLUMNS), "hard8")) == 4


def test_probe_table_sets_published_beside_measured():
    condition = {"router": "hybrid_chain", "split": "as streamed: rewritten"}
    found = rows("probe", "router_accuracy", [0.5, 0.6], **condition)
    best = rows("probe", "router_accuracy", [0.9, 0.9], router="x", split="as streamed: normal")
    trap = rows("probe", "trap_rate", [0.1, 0.2], router="x")
    trap["split"] = "as streamed: keywords, held out"
    table = report.probe_table(
        pd.concat([found, found.assign(split="as streamed: normal"), best, trap])
    )
    assert table.loc[("published", "hybrid_chain"), "rewritten"] == "47.5"
    assert table.loc[("measured here", "hybrid_chain"), "rewritten"] == "55.0 [50.0, 60.0]"
    assert table.loc[("published", "keyword augmented"), "trap rate"] == "0.4"
    assert table.loc[("published", "hybrid_chain"), "trap rate"] == ""
    assert table.loc[("measured here", "x"), "trap rate, held out"] == "15.0 [10.0, 20.0]"
    assert list(table.loc["measured here"].index) == ["x", "hybrid_chain"]  # the best first


def test_router_table_pairs_the_seeds():
    table = report.router_table(
        pd.concat(
            [
                rows("routers", "router_accuracy", [0.8, 0.9], router="hybrid_svm"),
                rows("routers", "router_accuracy", [0.9, 1.0], router="scaffold_blind"),
            ]
        )
    )
    assert list(table.index) == ["scaffold_blind", "hybrid_svm"]
    assert table.loc["scaffold_blind", "against hybrid_svm"] == "10.0 [10.0, 10.0]"
    assert table.loc["hybrid_svm", "right frame, all texts"] == "85.0 [80.0, 90.0]"


def generalization_rows():
    tables = []
    for seed, up in ((42, 0.0), (7, 0.1)):
        same = {"seed": seed, "run_id": f"r{seed}", "preset": "mixed8"}
        for split, value in (("latest adapter", 0.3), ("routed stack", 0.6), ("oracle", 0.8)):
            for metric in ("mean_unseen", "mean_all"):
                tables.append(rows("generalization", metric, [value + up], split=split, **same))
    return pd.concat(tables)


def test_generalization_table_by_hand():
    table = report.generalization_table(generalization_rows())
    assert table.loc[("published", "mean"), "routed - latest (pp)"] == "37.8"  # 91.5 - 53.7
    ours = table.loc["measured here, unseen tasks"]
    assert list(ours.index) == ["42", "7", "mean"]
    assert ours.loc["7", "routed stack"] == "70.0" and ours.loc["7", "best single frame"] == ""
    assert ours.loc["mean", "routed stack"] == "65.0 [60.0, 70.0]"
    assert ours.loc["mean", "routed - latest (pp)"] == "30.0 [30.0, 30.0]"


def generative_rows():
    def row(seed, metric, value, task="", split="eval", after=""):
        columns = {"seed": seed, "run_id": f"r{seed}", "split": split, "preset": "gen_mixed5"}
        columns |= {"eval_task": task, "trained_through": after}
        return rows("generative", metric, [value], **columns)

    tables = []
    for seed, up in ((42, 0.0), (7, 0.1)):
        for who, value in (("latest adapter", 0.4), ("own frame", 0.6), ("routed stack", 0.5)):
            tables.append(row(seed, "mean_written", value + up, split=who))
            tables += [row(seed, "written", value + up, task, who) for task in ("imdb", "agnews")]
        for task, chance in (("imdb", 0.5), ("agnews", 0.25)):
            tables.append(row(seed, "chance", chance, task))
            tables.append(row(seed, "router_accuracy", 1.0, task))
            tables.append(row(seed, "written_low", 0.45 + up, task, "own frame"))
            tables.append(row(seed, "accuracy", 0.8, task, after=task))
            tables.append(row(seed, "accuracy", 0.1, task, after="a later task"))
            tables.append(row(seed, "choice", 0.8 - up, task, "own frame"))
            tables.append(row(seed, "memory", 0.5, task, "own frame: nothing"))
        tables.append(row(seed, "memory", 0.6, "imdb", "own frame: right memory"))
        tables.append(row(seed, "memory", 0.4 - up, "agnews", "own frame: right memory"))
    return pd.concat(tables)


def test_tables_of_written_answers_by_hand():
    table = report.generative_table(generative_rows())
    assert table.loc[("published", "2 seeds"), "latest adapter"] == "60.3"
    assert list(table["saved frames' drop (pp)"]) == ["0.0", "0.0", "10.0", ""]
    assert table.loc[("measured here", "mean"), "own frame"] == "65.0 [60.0, 70.0]"
    table = report.written_table(generative_rows())
    assert list(table.index) == ["imdb", "agnews"] and list(table["chance"]) == ["50.0", "25.0"]
    assert table.loc["imdb", "own frame"] == "65.0"
    assert table.loc["imdb", "own frame, lower limits"] == "45.0, 55.0"


def test_memory_table_by_hand():
    numbers = generative_rows()
    table = report.memory_table(numbers)
    assert list(table.index) == [("own frame", "nothing"), ("own frame", "right memory")]
    assert list(table.iloc[1][["imdb", "agnews"]]) == ["+10.0", "-15.0"]
    assert table.iloc[1]["mean"] == "-2.5"  # four differences make no interval
    copies = [numbers.assign(seed=numbers["seed"] + k, run_id=f"r{k}") for k in (0, 1, 2)]
    copies = [part.assign(run_id=part["run_id"] + part["seed"].astype(str)) for part in copies]
    table = report.memory_table(pd.concat(copies))
    assert table.iloc[0]["mean"] == "50.0 [50.0, 50.0]"
    assert table.iloc[1]["mean"].startswith("-2.5 [-")


# ------------------------------------------------------------------ what is committed


def test_readme_tables_are_built_from_the_committed_runs(committed):
    text = (ROOT / "README.md").read_text()
    assert "<!-- table: hard8 -->" in text and "<!-- table: hard12 -->" in text
    assert report.readme(text, committed) == text


def test_each_readme_table_names_its_runs_and_what_its_brackets_are(committed):
    assert report.readme_table("routers_hard8", committed).endswith("*03_routers; minilm; seed 42*")
    for name in report.README_TABLES:
        table, caption = report.readme_table(name, committed).split("\n\n")
        found = report.readme_runs(name, committed)
        assert all(model in caption for model in found["model"].unique()), name
        over_seeds = name not in ("baselines_hard8", "written_gen_mixed5", "memory_gen_mixed5")
        bracketed = over_seeds and re.search(r"\d \[", table)
        assert bool(bracketed) == ("range of" in caption), name


def test_the_readme_calls_no_range_over_seeds_a_95_percent_interval():
    text = (ROOT / "README.md").read_text()
    for words in re.findall(r"[^.:;]*95 %[^.:;]*", text):
        words = " ".join(words.split())
        assert re.search("seeds and tasks|each seed's rows|upper 95 % bound", words), words


def test_show_prints_a_run_beside_the_published_ones():
    (folder,) = (ROOT / "results" / "runs").glob("01_train_stack-hard8-minilm-stack-s42-*")
    text = report.show(folder)
    assert text.startswith(folder.name) and str(folder) in text
    assert re.search(r"router task accuracy \(%\) +89\.14 +82\.60", text)
    assert report.show(ROOT / "tests").startswith("no finished run below")


def test_a_wrong_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SystemExit, match="error: .*run.json"):
        report.main(["show", str(tmp_path)])
