import sys

import pandas as pd
import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab.runs import load_runs

sys.path.insert(0, str(ROOT / "results"))
from report import generalization, generation, pages
from test_report import rows


def generalization_rows():
    tables = []
    for seed, up in ((42, 0.0), (7, 0.1)):
        same = {"seed": seed, "run_id": f"r{seed}", "preset": "mixed8"}
        for split, value in (("latest adapter", 0.3), ("routed stack", 0.6), ("oracle", 0.8)):
            for metric in ("mean_unseen", "mean_all"):
                tables.append(rows("generalization", metric, [value + up], split=split, **same))
    return pd.concat(tables)


def test_generalization_table_by_hand():
    table = generalization.generalization_table(generalization_rows())
    assert table.loc[("published", "mean"), generalization.GAIN] == "37.8"  # 91.5 - 53.7
    ours = table.loc["unseen tasks"]
    assert list(ours.index) == ["7", "42", "mean"]
    assert ours.loc["7", "routed stack (%)"] == "70.0"
    assert ours.loc["7", "best single frame (%)"] == ""
    assert ours.loc["mean", "routed stack (%)"] == "65.0 [60.0, 70.0]"
    assert ours.loc["mean", generalization.GAIN] == "30.0 [30.0, 30.0]"


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
    table = generation.generative_table(generative_rows())
    assert table.loc[("published", "2 seeds"), "latest adapter (%)"] == "60.3"
    assert list(table["saved frames' drop (pp)"]) == ["0.0", "10.0", "0.0", ""]
    assert table.loc[("measured here", "mean"), "saved frames (%)"] == "65.0 [60.0, 70.0]"
    table = generation.written_table(generative_rows())
    assert list(table.index) == ["imdb", "agnews"] and list(table["chance (%)"]) == ["50.0", "25.0"]
    assert table.loc["imdb", "saved frames (%)"] == "65.0"
    assert table.loc["imdb", "saved frames, lower limit of each seed (%)"] == "45.0, 55.0"


def test_memory_table_by_hand():
    numbers = generative_rows()
    table = generation.memory_table(numbers)
    assert list(table.index) == [("own frame", "nothing"), ("own frame", "right memory")]
    assert list(table.iloc[1][["imdb", "agnews"]]) == ["+10.0", "-15.0"]
    assert table.iloc[1]["mean"] == "-2.5"  # four differences make no interval
    copies = [numbers.assign(seed=numbers["seed"] + k, run_id=f"r{k}") for k in (0, 1, 2)]
    copies = [part.assign(run_id=part["run_id"] + part["seed"].astype(str)) for part in copies]
    table = generation.memory_table(pd.concat(copies))
    assert table.iloc[0]["mean"] == "50.0 [50.0, 50.0]"
    assert table.iloc[1]["mean"].startswith("-2.5 [-")


TABLES = {
    generation.generative_table: lambda: generative_rows(),
    generation.written_table: lambda: generative_rows(),
    generation.memory_table: lambda: generative_rows(),
    generalization.generalization_table: lambda: generalization_rows(),
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


@pytest.fixture(scope="module")
def committed():
    return load_runs()


FIGURES = [name for name in pages.FIGURES if name.startswith("general") or name.startswith("gener")]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_from_the_committed_runs(name, committed):
    drawn, caption = pages.draw(name, committed)
    assert any(c.isdigit() for c in drawn.answer) and drawn.alt.endswith(".")
    assert "seed" in caption and "evaluation rows per class" in caption
