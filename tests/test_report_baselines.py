"""Tables and figures of the baselines, by hand and from the committed runs."""

import re
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import COLUMNS, load_runs
from skillstack_helpers.tasks import TASKS

sys.path.insert(0, str(ROOT / "results"))
from report import base, baselines, pages

ROUTED, MIXED = "routed − routed stack (pp)", "mixed − mixed stack (pp)"


@pytest.fixture(scope="module")
def committed():
    return load_runs(notebook="04_baselines")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def method_rows(method, values, seed, preset="hard8"):
    """Rows of notebooks 04 and 05: (metric, trained_through, eval_task) -> a fraction."""
    row = dict.fromkeys(COLUMNS, "") | {"model": "minilm", "split": "eval", "n": 1}
    row |= {"run_id": f"{preset}-{method}-{seed}", "seed": seed, "preset": preset}
    row |= {"method": method, "unit": "fraction"}
    keys = ("metric", "trained_through", "eval_task")
    lines = [row | dict(zip(keys, k, strict=True)) | {"value": v} for k, v in values.items()]
    return pd.DataFrame(lines, columns=COLUMNS)


def baselines_of_two_seeds(copies=1):
    """Two tasks; `copies` of each other's rows make enough pairs for an interval."""
    tables = []
    for seed in range(1, 1 + 2 * copies):
        up = 0.1 * (seed % 2 == 0)
        frames = {("accuracy", "a", "a"): 0.8, ("accuracy", "b", "b"): 0.7 + up}
        frames |= {("acc", "", ""): 0.75, ("routed", "", ""): 0.6 + up}
        frames |= {("routed", "", "a"): 0.5, ("routed", "", "b"): 0.7, ("bwt", "", ""): 0.0}
        frames |= {("mixed", "", "a"): 0.6, ("mixed", "", "b"): 0.7, ("mixed", "", ""): 0.65}
        alone = {("accuracy", "a", "a"): 0.8, ("accuracy", "b", "b"): 0.5}
        alone[("acc", "", "")] = 0.65
        ewc = {("accuracy", "a", "a"): 0.8, ("accuracy", "b", "b"): 0.6}
        ewc |= {("acc", "", ""): 0.5 + up, ("bwt", "", ""): -0.2, ("final", "", "a"): 0.4}
        ewc |= {("final", "", "b"): 0.6, ("routed", "", "a"): 0.4, ("routed", "", "b"): 0.5}
        ewc |= {("mixed", "", "a"): 0.5, ("mixed", "", "b"): 0.6}
        joint = {("accuracy", "b", "b"): 0.9, ("acc", "", ""): 0.8}  # a last row only
        named = {"frames": frames, "independent": alone, "ewc": ewc, "joint": joint}
        for method, values in named.items():
            tables.append(method_rows(method, values, seed))
    return pd.concat(tables)


# ------------------------------------------------------------------ tables by hand


def test_accuracy_table_by_hand():
    numbers = baselines_of_two_seeds()
    search = method_rows("search", {("validation", "", ""): 0.5}, 1)  # no method to be shown
    table = baselines.accuracy_table(pd.concat([numbers, search]), "hard8")
    ours = table.loc["measured here"]
    assert list(ours.index) == ["frames", "joint", "independent", "ewc"]
    assert ours.loc["joint", "FWT (pp)"] == "" and ours.loc["joint", "BWT (pp)"] == ""
    assert ours.loc["frames", "routed (%)"] == "65.0 ± 7.1"  # 60 and 70
    assert ours.loc["ewc", "told the task (%)"] == "55.0 ± 7.1"
    assert ours.loc["ewc", "BWT (pp)"] == "-20.0 ± 0.0"
    # transfer: right after learning b, minus the independent adapter on b; a is the first task
    assert ours.loc["frames", "FWT (pp)"] == "25.0 ± 7.1"
    assert ours.loc["ewc", "FWT (pp)"] == "10.0 ± 0.0"
    assert table.columns.name == (
        "differences [95 % bootstrap interval over seeds and tasks]; "
        "mean ± standard deviation of 2 seeds"
    )
    published = table.loc["published: Llama-3.2-1B, seed 42"]
    assert published.loc["ewc", "told the task (%)"] == "57.9"
    assert published.loc["ewc", "BWT (pp)"] == "-27.5"
    assert published.loc["frames", "routed (%)"] == "83.2"
    joint = table.loc[("published: Llama-3.2, four runs, mean", "joint")]
    assert joint["told the task (%)"] == "77.8"
    assert not table.isna().any().any()


def test_differences_are_paired_over_seeds_and_tasks():
    table = baselines.accuracy_table(baselines_of_two_seeds(copies=2), "hard8")
    ours = table.loc["measured here"]
    # mixed 0.5 - 0.6 and 0.6 - 0.7; routed 0.4 - 0.5 and 0.5 - 0.7
    assert ours.loc["ewc", MIXED] == "-10.0 [-10.0, -10.0]"
    assert ours.loc["frames", "mixed (%)"] == "65.0 ± 0.0"
    low, high = map(float, re.search(r"^-15\.0 \[(.+), (.+)\]", ours.loc["ewc", ROUTED]).groups())
    assert -20 < low < -15 < high < -10
    assert ours.loc["frames", ROUTED] == ""
    few = baselines.accuracy_table(baselines_of_two_seeds(), "hard8").loc["measured here"]
    assert few.loc["ewc", ROUTED] == "-15.0"  # four pairs make no interval


def test_cost_table_by_hand():
    sizes = method_rows("ewc", {("stored_bytes", "", ""): 2.5e6}, 1).assign(unit="bytes")
    trained = method_rows("ewc", {("trained_parameters", "", ""): 5e5}, 1).assign(unit="count")
    spent = method_rows("ewc", {("learning_seconds", "", ""): 61.4}, 1).assign(unit="s")
    speed = [
        method_rows("ewc", {("answer_ms", "", ""): ms}, seed).assign(unit="ms")
        for seed, ms in ((1, 5.0), (2, 6.0), (3, 90.0))  # the third on a busy machine
    ]
    table = baselines.cost_table(pd.concat([sizes, trained, spent, *speed]))
    assert table.loc["ewc"].tolist() == ["0.50", "2.5", "61", "6.0", "", "routing texts"]


def test_order_tables_by_hand():
    assert baselines.orders(baselines_of_two_seeds()) == []  # hard8 is no other stream
    runs = [
        method_rows("olora", {("acc", "", ""): value}, 42, f"standard4_order{i}")
        for i, value in ((1, 0.4), (2, 0.5), (3, 0.9))
    ]
    for preset, value in (("hard5", 0.7), ("hard5_reversed", 0.8)):
        runs.append(method_rows("frames", {("routed", "", ""): value}, 42, preset))
    probe, standard = baselines.orders(pd.concat(runs))
    assert standard.loc[("measured here", "olora"), "mean, told the task (%)"] == "60.0"
    assert standard.loc[("measured here", "olora"), "order 3 (%)"] == "90.0"
    published = standard["mean, told the task (%)"].droplevel("who")
    assert published["pslora"] == "79.6" and published["independent"] == "70.0"
    assert probe["reversed, routed (%)"].tolist() == ["80.0", "89.2"]
    (two,) = baselines.orders(pd.concat(runs[:2]))  # the mean wants all three orders
    assert two.loc[("measured here", "olora"), "mean, told the task (%)"] == ""


def test_the_eight_orders_are_of_what_all_that_were_run_have():
    upper = "router hybrid_embed, first_adapted_layer 0.5"
    runs = [
        method_rows("frames", {("routed", "", ""): value}, seed, preset).assign(budget=upper)
        for preset, seed, value in (
            ("hard8", 42, 0.7), ("hard8", 7, 0.1), ("hard8_order2", 42, 0.8),
            ("hard8_order5", 42, 0.9),
        )
    ]  # fmt: skip
    other = method_rows("ewc", {("routed", "", ""): 0.5}, 42).assign(budget=upper)
    chain = method_rows("frames", {("routed", "", ""): 0.2}, 42).assign(budget="router other")
    table = baselines.eight_table(pd.concat([*runs, other, chain]))
    assert table["routed (%)"].to_dict() == {"frames": "80.0 ± 10.0 [70.0, 90.0]"}
    assert table.columns.name.endswith("over 3 orders, seed 42")
    (also,) = baselines.orders(pd.concat([*runs, other, chain]))
    assert also.equals(table)
    assert baselines.orders(pd.concat([*runs[:2], other, chain])) == []


def test_the_root_and_what_each_part_is_worth():
    def run(method, values, setup, seed):
        made = method_rows(method, values, seed).assign(budget=setup, tasks="a, b")
        made["run_id"] += setup
        return made

    chain = "router hybrid_chain, first_adapted_layer None"
    upper = "router hybrid_embed, first_adapted_layer 0.5"
    tables = []
    for seed in (1, 2):
        start = {("routed", "", "a"): 0.5, ("routed", "", "b"): 0.7, ("routed", "", ""): 0.6}
        more = {("routed", "", "a"): 0.6, ("routed", "", "b"): 0.7, ("routed", "", ""): 0.65}
        more |= {("mixed", "", "a"): 0.7, ("mixed", "", "b"): 0.8, ("mixed", "", ""): 0.75}
        more[("final", "", "a")] = 0.5 + 0.1 * seed
        tables += [run("frames", start, chain, seed), run("frames", more, upper, seed)]
    tables.append(run("second_look", more, upper, 2))
    every = pd.concat(tables)
    root = baselines.root_table(every[every["budget"].eq(upper)])
    assert root.loc["frames"].to_list() == ["65.0 ± 7.1", "60.0 ± 0.0", "70.0 ± 0.0"]
    table = baselines.ablation_table(every)
    assert list(table.index) == [
        ("all layers, hybrid_chain", "frames"),
        ("upper half, hybrid_embed", "frames"),
        ("upper half, hybrid_embed", "second_look"),
    ]
    assert list(table["routed (%)"]) == ["60.0", "65.0", "65.0"]
    assert list(table["seeds"]) == ["1, 2", "1, 2", "2"]
    gain = table["mixed − first line (pp)"]
    assert gain.iloc[0] == "" and gain.iloc[1].startswith("+15.0")


def test_methods_on_few_of_the_seeds_are_left_out():
    frames = [method_rows("frames", {("acc", "", ""): 0.8}, seed) for seed in range(5)]
    some = [method_rows("ewc", {("acc", "", ""): 0.7}, seed) for seed in range(3)]
    few = [method_rows("replay", {("acc", "", ""): 0.9}, seed) for seed in range(2)]
    table = baselines.accuracy_table(pd.concat([*frames, *some, *few]), "hard8")
    assert list(table.loc["measured here"].index) == ["frames", "ewc"]


def three_models():
    """On `minilm` the stack is 10 points ahead of EWC, on `mpnet` 20, and of a third nobody knows
    the size."""
    models = {"mpnet": 0.4, "minilm": 0.5, "somebody/else": 0.1}
    parts = [two_methods(0.6, other).assign(model=model) for model, other in models.items()]
    parts.append(two_methods(0.6, 0.3, "sequential").assign(model="minilm"))
    parts = [part.assign(run_id=part["run_id"] + part["model"]) for part in parts]
    more = {"notebook": "04_baselines", "tasks": "imdb, agnews", "own": ""}
    table = pd.concat(parts).drop_duplicates().assign(**more)
    table["dtype"] = table["model"].map({"mpnet": "bfloat16"}).fillna("float32")
    rates = table["model"].map({"mpnet": "0.001"}).fillna("None")
    return table.assign(budget="n_train 8, lr " + rates + ", epochs 3")


def test_growth_is_told_of_models_whose_size_is_known_the_smallest_first():
    table = baselines.growth_table(three_models())
    assert list(table.index) == ["minilm", "mpnet, bfloat16"]
    assert list(table["mixed − EWC (pp)"]) == ["+10.0 [+10.0, +10.0]", "+20.0 [+20.0, +20.0]"]
    assert list(table["latest adapter forgets (pp)"]) == ["+30.0 [+30.0, +30.0]", ""]
    assert list(table["seeds"]) == ["1, 2, 3, 4"] * 2
    fewer = three_models().query("method != 'ewc' or seed < 3")
    few = baselines.growth_table(fewer)["seeds"]
    assert few["minilm"] == "1, 2, 3, 4 (EWC: 1, 2)"


def test_a_precision_is_compared_with_the_first_on_the_seeds_that_both_have():
    first = two_methods(0.6, 0.5, seeds=range(1, 6)).assign(model="a", dtype="bfloat16")
    other = two_methods(0.5, 0.5).assign(model="a nf4", dtype="bfloat16")
    other["run_id"] += " nf4"
    table = baselines.precision_table(pd.concat([other, first]))
    assert list(table.index) == [
        ("a, bfloat16", "frames"),
        ("a, bfloat16", "ewc"),
        ("a nf4, bfloat16", "frames"),
        ("a nf4, bfloat16", "ewc"),
    ]
    apart = list(table["mixed − first (pp)"])
    assert apart == ["", "", "-10.0 [-10.0, -10.0]", "+0.0 [+0.0, +0.0]"]
    assert table.columns.name.endswith("deviation of 4 seeds")


def test_what_was_tuned_here_and_there_is_compared_on_the_seeds_that_have_both():
    here = two_methods(0.6, 0.5).assign(own="")
    there = two_methods(0.6, 0.4, seeds=(1, 2)).query("method == 'ewc'")
    there = there.assign(own="tuned_on clinc10, ewc_strength 9.0", run_id=there["run_id"] + "t")
    table = baselines.tuned_table(pd.concat([here, there]))
    assert list(table.index) == [("two_task", "two_task"), ("two_task", "clinc10")]
    assert list(table["mixed (%)"]) == ["50.0 ± 0.0", "40.0 ± 0.0"]
    assert list(table["mixed − mixed stack (pp)"]) == ["-10.0", "-20.0"]  # four pairs: no interval
    assert list(table["seeds"]) == ["1, 2"] * 2


def test_what_learned_the_routing_rows_too_is_compared_with_a_stack_that_did():
    few = two_methods(0.6, 0.5).assign(budget="train_on_router False")
    more = two_methods(0.8, 0.6).assign(budget="train_on_router True")
    more["run_id"] += "more"
    every = pd.concat([few, more]).assign(notebook="04_baselines", own="")
    entry = base.Table("04_baselines", "two_task", "minilm", baselines.rows_table, base.ANY)
    assert not base.runs_of(entry, every)["run_id"].str.endswith("more").any()
    table = baselines.rows_table(base.runs_of(entry._replace(rows=base.ANY), every))
    lines = [(rows, method) for rows in ("training rows", "training and routing rows")
             for method in ("frames", "ewc")]  # fmt: skip
    assert list(table.index) == lines
    assert list(table["mixed (%)"]) == [f"{v}.0 ± 0.0" for v in (60, 50, 80, 60)]
    apart = ["", "-10.0 [-10.0, -10.0]", "", "-20.0 [-20.0, -20.0]"]
    assert list(table["mixed − mixed stack (pp)"]) == apart


def test_every_method_is_in_the_table_of_the_seed_that_all_were_run_on():
    frames = [method_rows("frames", {("acc", "", ""): 0.8}, seed) for seed in range(5)]
    others = [method_rows(m, {("acc", "", ""): 0.7}, 3) for m in ("ewc_online", "joint_wide")]
    every = pd.concat([*frames, *others]).assign(notebook="04_baselines", own="")
    every["budget"] = "router hybrid_embed, train_on_router False, first_adapted_layer 0.5"
    entry = baselines.TABLES["baselines_once"]._replace(seeds=(3,))
    table = entry.make(base.runs_of(entry, every))
    assert list(table.index) == ["frames", "joint_wide", "ewc_online"]
    assert list(table["told the task (%)"]) == ["80.0", "70.0", "70.0"]


def test_coverage_is_of_methods_that_were_calibrated():
    rows = [
        method_rows("frames", {("acc", "", ""): 0.8, ("coverage", "", ""): 0.91}, seed)
        for seed in (1, 2)
    ]
    rows.append(method_rows("tfidf", {("acc", "", ""): 0.7}, 1))
    table = baselines.coverage_table(pd.concat(rows))
    assert list(table.index) == ["frames"]
    assert table.loc["frames", "90 % label sets hold (%)"] == "91.0 ± 0.0"


def test_the_probe_and_the_orders_may_have_a_budget_each_but_not_one_order():
    runs = [
        method_rows("olora", {("acc", "", ""): 0.5}, 42, preset).assign(budget=budget)
        for preset, budget in (
            ("hard5", "n_train 48"),
            ("standard4_order1", "n_train 8"),
            ("standard4_order2", "n_train 16"),
        )
    ]
    assert len(baselines.orders(pd.concat(runs[:2]))) == 2
    with pytest.raises(SkillStackError, match="one budget, got n_train 8 and n_train 16"):
        baselines.orders(pd.concat(runs))


def test_what_lies_beside_a_run_with_another_budget_is_left_alone(monkeypatch):
    """A notebook shows the streams that were run like its own, whatever else the folder holds."""
    runs = [
        method_rows("frames", {("routed", "", ""): value}, 42, preset).assign(
            notebook="04_baselines", budget=budget, dtype=dtype, own=""
        )
        for preset, budget, dtype, value in (
            ("hard5", "n_train 8", "float32", 0.5),
            ("hard5_reversed", "n_train 8", "float32", 0.6),
            ("hard5", "n_train 48", "float32", 0.7),
            ("hard5", "n_train 8", "bfloat16", 0.8),
        )
    ]
    every = pd.concat(runs, ignore_index=True)

    def load_runs(_, **where):
        return every[(every[list(where)] == list(where.values())).all(axis=1)]

    monkeypatch.setattr(baselines, "load_runs", load_runs)
    for metrics in (every, every[every["budget"].eq("n_train 8")]):
        with pytest.raises(SkillStackError, match="a table is of one"):
            baselines.orders(metrics)
    same = baselines.beside(run_of(runs[0]), "model", "dtype", "budget")
    (probe,) = baselines.orders(same)
    assert list(probe.loc["measured here", "forward, routed (%)"]) == ["50.0"]
    assert list(probe.loc["measured here", "reversed, routed (%)"]) == ["60.0"]


@pytest.mark.parametrize("column", ["model", "budget", "run"])
@pytest.mark.parametrize(
    "make",
    [
        lambda numbers: baselines.accuracy_table(numbers, "hard8"),
        lambda numbers: base.with_ends(numbers, ["method"], {"told": "acc"}),
    ],
)
def test_two_models_two_budgets_and_two_runs_of_a_seed_are_never_averaged(make, column):
    numbers = baselines_of_two_seeds().assign(budget="lr None, n_eval 16")
    second = numbers.assign(run_id=numbers["run_id"] + "b", value=0.0)
    other = {"model": {"model": "Llama"}, "budget": {"budget": "lr None, n_eval 64"}, "run": {}}
    make(numbers)
    words = {"model": "minilm and Llama", "budget": "n_eval 16 and n_eval 64"}
    with pytest.raises(SkillStackError, match=words.get(column, "one run of a seed, got")):
        make(pd.concat([numbers, second.assign(**other[column])]))


# ------------------------------------------------------------------ figures by hand


def run_of(numbers, preset="two_task", **files):
    """What a figure is drawn from: the run of the saved frames, with those that are alike."""
    config = RunConfig(preset=preset)
    labels = {name: TASKS[name].label_names for name in config.task_names}
    read = {"alike": lambda: numbers, "read": lambda name: files[name[:-4]]}
    return SimpleNamespace(**read, config=config, labels=labels)


def two_methods(frames, other, method="ewc", seeds=(1, 2, 3, 4)):
    """Saved frames and another method on two tasks: told, routed and mixed are the same."""
    tables = []
    for seed in seeds:
        for name, value in (("frames", frames), (method, other)):
            values = {(metric, "", ""): value for metric in ("acc", "routed", "mixed")}
            for task in ("imdb", "agnews"):
                values |= {(m, "", task): value for m in ("final", "routed", "mixed")}
                values[("accuracy", "agnews", task)] = value
            values[("accuracy", "imdb", "imdb")] = value
            tables.append(method_rows(name, values, seed, "two_task"))
    return pd.concat(tables)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize(
    "frames, other, words",
    [
        (0.6, 0.7, "frames mixed. With the same router, ahead of it: EWC (70.0). Mixed the same"),
        (0.6, 0.4, "Mixed the same way, ahead of it: none; closest behind: EWC (40.0)."),
    ],
)
def test_the_methods_figure_says_who_is_ahead(frames, other, words):
    drawn = baselines.methods(run_of(two_methods(frames, other)))
    assert words in drawn.answer and drawn.seeds == [1, 2, 3, 4]
    told = ["told the task", "told nothing: routed", "told nothing: mixed"]
    assert legend(drawn.figure) == ["mixed stack", *told]
    labels = [t.get_text() for t in drawn.figure.get_yticklabels()]
    assert labels == ["EWC", "saved frames"][:: 1 if other > frames else -1]
    start = drawn.figure.get_xlim()[0]
    assert f"starts at {start:.0f}" in drawn.figure.get_xlabel() and start <= 100 * other


def test_who_is_closest_behind_may_differ_routed_and_mixed():
    third = two_methods(0.6, 0.5, "joint").query("method == 'joint'").reset_index(drop=True)
    third.loc[third["metric"].eq("routed"), "value"] = 0.3
    answer = baselines.methods(run_of(pd.concat([two_methods(0.6, 0.4), third]))).answer
    assert "ahead of it: none; closest behind: EWC (40.0). Mixed the same way" in answer
    assert answer.endswith("closest behind: joint training (50.0).")


@pytest.mark.parametrize(
    "other, words",
    [
        (0.7, "With the same router, ahead of the stack: EWC (+10.0); not to be told"),
        (0.6, "not to be told from it: EWC (+0.0); behind it: 0 of 1."),
        (0.5, "ahead of the stack: none; not to be told from it: none; behind it: 1 of 1."),
    ],
)
def test_the_differences_figure_says_which_intervals_leave_zero_out(other, words):
    drawn = baselines.differences(run_of(two_methods(0.6, other)))
    assert words in drawn.answer
    assert "mean over 8 pairs" in drawn.figure.get_xlabel()
    fewer = two_methods(0.6, 0.5, "joint", seeds=(1, 2)).query("method == 'joint'")
    drawn = baselines.differences(run_of(pd.concat([two_methods(0.6, other), fewer])))
    assert "mean over 4 or 8 pairs" in drawn.figure.get_xlabel()


def test_the_differences_of_few_pairs_are_told_from_nothing():
    drawn = baselines.differences(run_of(two_methods(0.6, 0.9, seeds=(1,))))
    assert "not to be told from it: EWC (+30.0)" in drawn.answer


@pytest.mark.parametrize(
    "other, color, words",
    [
        (0.7, 1, "Ahead of the mixed stack: EWC; behind it: none; not to be told from it: none."),
        (0.6, 0, "not to be told from it: EWC."),
        (0.5, -1, "behind it: EWC;"),
    ],
)
def test_a_line_is_coloured_only_where_its_interval_leaves_zero_out(other, color, words):
    drawn = baselines.verdicts(run_of(two_methods(0.6, other)))
    assert words in drawn.answer
    bands = [patch.get_facecolor()[:3] for patch in drawn.figure.patches]
    expected = {1: plotting.mix_white(plotting.BLUE), -1: plotting.mix_white(plotting.RED)}
    colored = [band for band in bands if band != (1.0, 1.0, 1.0)]
    assert colored == [pytest.approx(expected.get(color))] * abs(color)
    shown = [text.get_text() for text in drawn.figure.texts]
    assert f"{100 * other:.1f}" in shown and "60.0" in shown


def test_of_few_pairs_no_line_is_coloured():
    drawn = baselines.verdicts(run_of(two_methods(0.6, 0.9, seeds=(1,))))
    assert "not to be told from it: EWC" in drawn.answer


def test_the_stream_figure_shows_equal_lines_and_names_those_without_one():
    numbers = two_methods(0.6, 0.6)
    joint = two_methods(0.6, 0.9, "joint").query("method == 'joint' and trained_through != 'imdb'")
    drawn = baselines.stream(run_of(pd.concat([numbers, joint])))
    lines = drawn.figure.lines
    assert [line.get_label() for line in lines] == ["saved frames", "EWC"]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()  # one does not hide the other
    assert "No line: joint training" in drawn.look
    assert "between 60.0 % (" in drawn.answer


def test_the_search_figure_marks_what_was_chosen_and_says_where_the_grid_ends():
    table = [("ewc", 1.0, 0.6, 0.5), ("ewc", 10.0, 0.6, 0.7), ("ewc", 100.0, 0.5, 0.5)]
    table += [("olora", 0.5, 0.6, 0.6), ("olora", 5.0, 0.6, 0.5)]
    table = pd.DataFrame(table, columns=["method", "strength", "learned", "final"])
    numbers = method_rows("search_ewc", {("validation", "", ""): 0.7}, 42).assign(n=200)
    run = run_of(numbers, search=table)
    run.id = "hard8-search_ewc-42"
    drawn = baselines.search(run)
    assert "EWC is best at a strength of 10 (70.0 % at the end of the stream)." in drawn.answer
    assert "O-LoRA is best at a strength of 0.5 (60.0 %" in drawn.answer
    assert drawn.answer.count("at the edge") == 1
    one, other = drawn.figure.axes
    chosen = [
        [li.get_xdata()[0] for li in ax.lines if li.get_label() == "chosen"] for ax in (one, other)
    ]
    assert chosen == [[10.0], [0.5]]
    title = drawn.figure.get_suptitle()
    assert title == "Searched on two_task with all training rows, judged on 200 routing rows"
    run = run_of(numbers.assign(n=0), search=table)  # as earlier versions left it
    run.id = "hard8-search_ewc-42"
    title = baselines.search(run).figure.get_suptitle()
    assert "a quarter of the training rows, judged on 128 routing rows" in title


def test_the_tasks_figure_sets_the_routers_cost_beside_forgetting():
    numbers = two_methods(0.8, 0.5, "sequential")
    here = numbers["metric"].eq("routed") & numbers["eval_task"].eq("agnews")
    numbers.loc[here & numbers["method"].eq("frames"), "value"] = 0.7
    here = numbers["metric"].eq("final") & numbers["eval_task"].eq("imdb")
    numbers.loc[here & numbers["method"].eq("sequential"), "value"] = 0.2
    drawn = baselines.tasks(run_of(numbers))
    assert "the router costs most on agnews (-10.0 points)" in drawn.answer
    assert "forgetting on imdb (-60.0)" in drawn.answer
    ax = drawn.figure
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert rows == ["routed stack", "saved frames", "latest adapter", "chance"]
    assert [t.get_text() for t in ax.texts[:3]] == ["80.0", "70.0", "75.0"]
    assert [t.get_text() for t in ax.texts[-3:]] == ["50.0", "25.0", "37.5"]


def test_the_cost_figure_adds_the_router_to_all_that_need_it():
    tables = []
    sizes = {"frames": 4e6, "tfidf_union": 9e6, "lda_union": 7e6, "sequential": 1e6}
    for method, size in sizes.items():
        values = {("stored_bytes", "", ""): size}
        values |= {("router_bytes", "", ""): 6e6} if method == "frames" else {}
        tables.append(method_rows(method, values, 1, "two_task").assign(unit="bytes"))
    drawn = baselines.cost(run_of(pd.concat(tables)))
    assert "saved frames take 4.0 MB and their router 6.0 MB" in drawn.answer
    assert "least: latest adapter (1.0 MB); most: TF-IDF, all labels (9.0 MB)" in drawn.answer
    sums = {t.get_text() for t in drawn.figure.texts}
    assert sums == {"4.0 + 6.0", "1.0 + 6.0", "9.0", "7.0"}


def test_bars_tell_what_the_latest_adapter_lost_of_each_task():
    found = two_methods(0.6, 0.3, "sequential", seeds=(1, 2))
    kept = [method_rows("frames", {("bwt", "", ""): 0.0}, seed, "two_task") for seed in (1, 2)]
    routed = found["method"].eq("frames") & found["metric"].eq("routed")
    found.loc[routed & found["eval_task"].eq("imdb") & found["seed"].eq(2), "value"] = 0.4
    drawn = baselines.bars(run_of(pd.concat([found, *kept])))
    assert drawn.answer == (
        "The latest adapter loses 30.0 points on earlier tasks, most on imdb (-30.0); the saved "
        "frames lose 0.0."
    )
    heights = [bar.get_height() for bar in drawn.figure.patches]
    assert heights == pytest.approx([30, 30, 60, 60, 50, 60])
    assert "Lines: lowest and highest seed." in drawn.look and drawn.seeds == [1, 2]


def test_the_growth_figure_names_models_and_seeds(monkeypatch):
    found = three_models()
    longer = found.assign(value=0.0, budget="n_train 8, lr None, epochs 9")  # is left out
    both = pd.concat([longer, found], ignore_index=True)
    monkeypatch.setattr(baselines, "load_runs", lambda _, **where: both)
    drawn = baselines.growth(run_of(found[found["model"].eq("minilm")]))
    assert drawn.answer == (
        "Of 2 models, the mixed stack is ahead of EWC on 2 and behind on 0, ahead of joint "
        "training on 0 and behind on 0; with one frame a text it is ahead of EWC on 2 and behind "
        "on 0, ahead of joint training on 0 and behind on 0. "
        "The latest adapter forgets, in points: +30.0 on minilm. Mixed stack minus EWC: "
        "+10.0 on minilm and +20.0 on mpnet. Mixed stack minus joint training: none."
    )
    assert drawn.models == ("minilm, seeds 1, 2, 3, 4", "mpnet, bfloat16, seeds 1, 2, 3, 4")
    assert drawn.seeds == [1, 2, 3, 4]
    left, right = drawn.figure.axes
    assert [text.get_text() for text in left.texts] == ["minilm"]
    assert list(right.lines[0].get_xdata()) == [22.7, 109.5]


# ------------------------------------------------------------------ from the committed runs


@pytest.mark.parametrize("name", baselines.TABLES)
def test_tables_of_the_committed_runs_have_at_most_eight_columns(name, committed):
    entry = baselines.TABLES[name]
    table = entry.make(base.runs_of(entry, committed))
    who = "who" in table.index.names
    ours = table.loc["measured here"] if who else table
    assert len(ours) and ours.index.nlevels + ours.shape[1] <= 8


def test_the_stack_of_the_committed_table_is_the_mean_of_its_runs(committed):
    found = base.runs_of(baselines.TABLES["baselines_accuracy"], committed)
    table = baselines.accuracy_table(found, "hard8").loc["measured here"]
    for metric, column in (("routed", "routed (%)"), ("mixed", "mixed (%)")):
        stack = found[found["method"].eq("frames") & found["metric"].eq(metric)]
        stack = stack.loc[stack["eval_task"].eq(""), "value"]
        assert len(stack) >= 2
        assert table.loc["frames", column].startswith(f"{100 * stack.mean():.1f} ")


@pytest.mark.parametrize("name", baselines.FIGURES)
def test_figures_of_the_committed_runs_have_titles_and_their_numbers(name, committed):
    drawn, _ = pages.draw(name, committed)
    figure = getattr(drawn.figure, "figure", drawn.figure)
    assert figure.get_size_inches()[0] <= plotting.WIDEST
    assert any(ax.get_title("left") for ax in figure.axes)
    least = {"baselines_search": 0, "orders_hard8": 1}.get(name, 2)
    assert len(drawn.seeds) == least if least < 2 else len(drawn.seeds) >= 2
    verdicts = ("verdicts", "hard12", "mpnet", "smollm2", "gemma3")
    verdicts = [f"baselines_{one}" for one in verdicts]
    assert re.search(r"\d\.\d", drawn.answer) or name in verdicts
    assert not re.search(r"\d", drawn.alt) and "nan" not in drawn.answer
