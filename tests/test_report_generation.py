import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, rows

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab.runs import load_runs

sys.path.insert(0, str(ROOT / "results"))
from report import generalization, generation, pages


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


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


# ------------------------------------------------------------------ figures by hand


def run_of(metrics, **files):
    mine = metrics[metrics["seed"].eq(42)]
    how = {"alike": lambda: metrics, "metrics": mine, "folder": Path("runs/r42")}
    return SimpleNamespace(read=lambda name: files[name[:-4]], **how)


def test_bars_have_whiskers_over_both_seeds_and_the_answer_says_who_is_ahead():
    numbers = generative_rows()
    high = numbers[numbers["metric"].eq("written_low")]
    high = high.assign(metric="written_high", value=high["value"] + 0.4)
    drawn = generation.tasks(run_of(pd.concat([numbers, high])))
    assert drawn.answer == (
        "The saved frames write 65.0 % correct answers, the routed stack, which is told nothing, "
        "55.0 % and the latest adapter, which is told the task, 45.0 %; the routed stack is ahead "
        "of it in 2 of 2 seeds. Clearly above chance in every seed (lower 95 % limit): agnews."
    )
    ax = drawn.figure
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([45, 45, 65, 65, 55, 55])
    ends = [s[:, 1] for c in ax.collections for s in c.get_segments() if len(s) == 2]
    assert sum(end == pytest.approx([45, 95]) for end in ends) == 2  # of the saved frames
    assert ax.get_ylabel().endswith("(%)") and set(drawn.seeds) == {42, 7}
    texts = {text.get_text(): text.xy[1] for text in ax.texts}
    assert texts == {"55": pytest.approx(55)}  # the routed stack's has no interval here


def test_the_matrix_says_what_is_lost_by_choice():
    numbers = generative_rows()
    equal = numbers[numbers["metric"].eq("choice")].assign(metric="logits_bit_equal", value=1.0)
    matrix = pd.DataFrame([[0.8, np.nan], [0.5, 0.7]], ["imdb", "agnews"], ["imdb", "agnews"])
    drawn = generation.matrix(run_of(pd.concat([numbers, equal]), matrix=matrix))
    assert drawn.answer == (
        "Choosing among the label words, the latest adapter ends -30.0 points from what it had "
        "learned of earlier tasks, lowest on imdb (-30.0); the saved frames lose 0.0, and 2 of 2 "
        "give the same log probabilities to the last bit."
    )
    assert all("prompt" in ax.get_xlabel() for ax in drawn.figure.axes)


def memories(tasks=("imdb", "agnews"), questions=8):
    """Answers of a frame and of the bare backbone: the right memory helps the one and not the
    other, half of the time on agnews."""
    lines = []
    for who in generation.ASKED:
        for task in tasks:
            for row in range(questions):
                half = task == "imdb" or row % 2 == 0
                right = {"nothing": 0, "right memory": int(half and who == "bare backbone")}
                right |= {"wrong memory": 0, "random": int(task == "imdb" and row == 0)}
                lines += [(who, shown, task, row, value) for shown, value in right.items()]
    return pd.DataFrame(lines, columns=["who", "shown", "task", "row", "right"])


def test_gains_are_paired_over_the_questions_of_all_seeds():
    answers = pd.concat([memories().assign(seed=seed) for seed in (42, 7)])
    gains = generation.memory_gains(answers)
    assert gains.loc[("bare backbone", "right memory", "imdb")].tolist() == [0, 1, 1, 1]
    half = gains.loc[("bare backbone", "right memory", "agnews")]
    assert half["gain"] == 0.5 and 0.2 < half["low"] < 0.5 < half["high"] < 0.8
    assert gains.loc[("own frame", "wrong memory", "imdb"), "gain"] == 0


def test_cells_that_may_be_nothing_are_hatched():
    answers, tables = memories(), []
    for (who, shown, task), part in answers.groupby(["who", "shown", "task"], sort=False):
        on = {"split": f"{who}: {shown}", "eval_task": task, "preset": "gen_mixed5"}
        tables += [
            rows("generative", "memory", [part["right"].mean()], **on | {"seed": s, "run_id": r})
            for s, r in ((42, "r42"), (7, "r7"))
        ]
    run = run_of(pd.concat(tables))
    run.read_alike = lambda name: [(42, answers), (7, answers)]
    drawn = generation.memory(run)
    frame, bare = drawn.figure.axes
    assert drawn.answer == (
        "Two examples from the memory of the right frame change the accuracy of the saved frames "
        "by +0.0 points and that of the bare backbone by +75.0; from the memory of a wrong frame "
        "by +0.0 and +0.0; random examples by +6.2 and +6.2 (means over tasks)."
    )
    labels = [tick.get_text() for tick in frame.get_yticklabels()]
    assert labels == ["nothing (%)", *map(generation.name, generation.SHOWN)]
    hatched = {tuple(np.add(box.get_xy(), 0.5).astype(int)) for box in bare.patches}
    assert (0, 1) not in hatched and (1, 1) not in hatched  # sure: the right memory
    assert {(0, 2), (1, 2), (0, 3), (1, 3)} <= hatched  # 2 of 16 may be chance
    assert len(frame.patches) == 9  # nothing is sure, and means of four numbers have no interval
    numbers = [text.get_text() for text in bare.texts]
    assert numbers[:3] == ["+100", "+50", "+75"] and numbers[-3:] == ["0", "0", "0"]


def test_published_and_measured_stand_side_by_side():
    numbers = generative_rows()
    router = rows("generative", "mean_router_accuracy", [0.9, 0.8], preset="gen_mixed5")
    router = router.assign(seed=[42, 7], run_id=["r42", "r7"])
    drawn = generation.beside_published(run_of(pd.concat([numbers, router])))
    assert drawn.answer == (
        "Routed stack minus latest adapter is +10.0 points here and +15.5 in the publication; the "
        "router finds the right frame for 85.0 % of the texts here, 96.7 % there."
    )
    marks = {line.get_label(): line.get_xdata() for line in drawn.figure.lines}
    assert marks["published"] == pytest.approx([60.3, 75.8, 96.7, 0])
    assert marks["measured here"] == pytest.approx([45, 55, 85, 5])
    assert "Lines" in drawn.look


def test_unreadable_answers_are_said_by_display_names():
    run = SimpleNamespace(value=lambda metric, split: {"own frame": 0.25}.get(split, 0.0))
    words = generation.unreadable(run)
    assert words.endswith("latest adapter 0.0 %, saved frames 25.0 % and routed stack 0.0 %.")
