import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, rows

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab.names import name
from skillstack_helpers.lab.runs import COLUMNS, load_runs, read_run

sys.path.insert(0, str(ROOT / "results"))
from report import base, pages, streams


@pytest.fixture(scope="module")
def committed():
    return load_runs()


# ------------------------------------------------------------------ what a cell says


def cells(*values, metric="x"):
    return rows("m", metric, values, router="a")


def test_over_seeds_the_range_is_shown_and_called_so():
    """Two or three seeds carry no 95 % interval."""
    for n, values, expected in (
        (2, (0.1, 0.2), "15.0 [10.0, 20.0]"),
        (3, (0.2, 0.4, 0.9), "50.0 [20.0, 90.0]"),
    ):
        table = base.summary(cells(*values), ["router"], {"heading": "x"})
        assert table.loc["a", "heading"] == expected
        assert table.columns.name == f"mean [range of {n} seeds]"
    alone = base.summary(cells(0.2), ["router"], {"heading": "x"})
    assert alone.loc["a", "heading"] == "20.0" and alone.columns.name is None


def test_the_range_does_not_shrink_with_many_seeds_as_an_interval_would():
    table = base.summary(cells(*[0.5] * 19, 0.0, 1.0), ["router"], {"heading": "x"})
    assert table.loc["a", "heading"] == "50.0 [0.0, 100.0]"


def test_many_pairs_have_a_bootstrap_interval_and_few_have_none():
    many = pd.concat([rows("m", "x", [0.1, 0.3], eval_task=task) for task in "abcdef"])
    text = base.bootstrapped(many.assign(value=100 * many["value"]))
    low, high = map(float, re.fullmatch(r"\+20\.0 \[\+(.+), \+(.+)\]", text).groups())
    assert 10 < low < 20 < high < 30
    assert base.bootstrapped(cells(10.0, 20.0)) == "+15.0"


def test_missing_numbers_are_empty_cells_and_units_are_shown_as_people_read_them():
    numbers = pd.concat([cells(0.5), cells(2e6, metric="size").assign(unit="bytes")])
    columns = {"right (%)": "x", "size (MB)": "size", "nothing": "unknown"}
    assert base.summary(numbers, ["router"], columns).loc["a"].tolist() == ["50.0", "2.0", ""]


# ------------------------------------------------------------------ what is never averaged


def test_tables_refuse_two_runs_of_one_seed():
    run = rows("stack", "saved", [0.5], eval_task="imdb")
    other = run.assign(seed=7, run_id="r7")
    with pytest.raises(SkillStackError, match="saved: one number is shown, got 2"):
        streams.per_task(pd.concat([run, other]))


def test_a_second_model_leaves_the_pages_as_they_are(committed):
    """A first run of another model on a stream of a page is not mixed into its table."""
    llama = committed[committed["preset"].eq("hard12")].assign(model="Llama-3.2-1B", value=0.0)
    both = pd.concat([committed, llama], ignore_index=True)
    for table in ("hard12", "routers_hard12", "probe_hard12"):
        assert pages.table_block(table, both) == pages.table_block(table, committed)


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
    table = streams.per_task(pd.concat([*parts, rows("stack", "routed", [0.1])]))
    assert list(table.index) == ["imdb", "agnews"]
    assert table.loc["imdb"].tolist() == [0.4, 0.8, 0.7, 0.5]
    assert table.loc["agnews"].tolist() == [0.9, 0.8, 0.7, 0.25]
    assert list(table) == ["latest adapter", "saved frames", "routed stack", "chance"]


def test_published_rows_stand_beside_ours():
    ours = pd.concat([rows("stack", metric, [0.5]) for metric in streams.COLUMNS])
    ours = ours.assign(seed=42)
    ours.loc[ours["metric"].eq("depth"), ["value", "unit"]] = [2.5, "frames"]
    table = streams.beside_published(ours, "hard12")
    assert list(table) == list(map(name, streams.COLUMNS))
    assert table.loc[("measured here", "minilm", "42")].squeeze().tolist() == [50] * 6 + [2.5]
    two = streams.beside_published(pd.concat([ours, ours.assign(run_id="r2", value=0)]), "hard12")
    assert two.loc[("measured here", "minilm", "42")][name("routed")].tolist() == [50, 0]
    published = table.loc[("published", "Llama-3.2-1B", "42")].squeeze().tolist()
    assert published == [36.5, 0.0, 80.3, 79.3, 88.7, 16.8, 5.40]
    assert np.isnan(table.loc[("published", "Llama-3.2-3B", "42"), "depth (frames)"].item())
    assert len(streams.beside_published(pd.DataFrame(columns=COLUMNS), "hard8")) == 4


# ------------------------------------------------------------------ what is said


def test_the_answers_of_a_stream_are_its_own_numbers():
    (folder,) = (ROOT / "results" / "runs").glob("01_train_stack-hard8-minilm-stack-s42-*")
    run = read_run(folder)
    table, matrix = streams.per_task(run.metrics), run.read("matrix.csv").to_numpy()
    drop = 100 * np.mean(np.diag(matrix)[:-1] - matrix[-1, :-1])
    assert f"loses {drop:.1f} points" in streams.matrix(run).answer
    right = 100 * table["saved frames"].mean()
    assert f"the saved frames answer {right:.1f} % correctly" in streams.tasks(run).answer
    routes = run.read("routing.parquet")
    own = 100 * (routes["frame"] == routes["task"]).mean()
    assert f"right frame for {own:.1f} %" in streams.confusion(run).answer
    assert "23.6 to 35.2 in the 4 published runs" in streams.pattern(run).answer


def test_show_tells_a_newcomer_five_lines_the_pictures_and_what_is_next(tmp_path):
    folder = pages.committed("demo4")
    text = pages.show(folder)
    told, _, rest = text.partition("\n\n")
    assert len(told.splitlines()) == 5 and "chance in brackets" in told
    assert "4 of 4 answer with the same logits" in told
    assert rest.count("picture") == 3 and "next      make inspect" in rest
    assert pages.show(tmp_path).startswith("no finished run below")


def test_no_skill_of_the_demo_stays_at_chance():
    metrics = read_run(pages.committed("demo4")).metrics
    table = streams.per_task(metrics)
    n = metrics[metrics["metric"].eq("saved")].set_index("eval_task")["n"]
    spread = np.sqrt(table["saved frames"] * (1 - table["saved frames"]) / n)
    assert (table["saved frames"] - 1.96 * spread > table["chance"]).all()


def test_a_wrong_folder_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{")
    command = [sys.executable, ROOT / "results" / "report", "show", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "run.json" in done.stderr
