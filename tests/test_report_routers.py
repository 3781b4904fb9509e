"""Tables and figures of the routers: notebooks 03 and 07."""

import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, rows

matplotlib.use("Agg")
sys.path.insert(0, str(ROOT / "results"))
from report import base, routers

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.runs import load_runs, placed, read_run


def run_of(notebook):
    """The committed run with seed 42 on hard12."""
    (path,) = placed("results/runs").glob(f"{notebook}-hard12-minilm-*-s42-*")
    return read_run(path)


@pytest.fixture(scope="module")
def compared():
    return run_of("03_routers")


@pytest.fixture(scope="module")
def attacked():
    return run_of("07_domain_confusion")


def texts(drawn):
    """Every text in a figure."""
    figure = getattr(drawn.figure, "figure", drawn.figure)
    figure.canvas.draw()
    found = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip()]
    return {t.get_text() for t in found}


# ------------------------------------------------------------------ tables


def test_probe_table_sets_published_beside_measured():
    condition = {"router": "hybrid_chain", "split": "as streamed: rewritten"}
    found = rows("probe", "router_accuracy", [0.5, 0.6], **condition)
    best = rows("probe", "router_accuracy", [0.9, 0.9], router="x", split="as streamed: normal")
    trap = rows("probe", "trap_rate", [0.1, 0.2], router="x")
    trap["split"] = "as streamed: keywords, held out"
    table = routers.probe_table(
        pd.concat([found, found.assign(split="as streamed: normal"), best, trap])
    )
    picked = "frame of the keywords picked (%)"
    assert table.loc[("published", "hybrid_chain"), "rewritten"] == "47.5"
    assert table.loc[("measured here", "hybrid_chain"), "rewritten"] == "55.0 [50.0, 60.0]"
    assert table.loc[("published", "keyword augmented"), picked] == "0.4"
    assert table.loc[("published", "hybrid_chain"), picked] == ""
    assert table.loc[("measured here", "x"), f"{picked}, held out"] == "15.0 [10.0, 20.0]"
    assert list(table.loc["measured here"].index) == ["x", "hybrid_chain"]  # the best first


def test_router_table_pairs_the_seeds():
    one = rows("routers", "router_accuracy", [0.8, 0.9], router="hybrid_svm")
    other = rows("routers", "router_accuracy", [0.9, 1.0], router="scaffold_blind")
    table = routers.router_table(pd.concat([one, other]))
    assert list(table.index) == ["scaffold_blind", "hybrid_svm"]
    gain = "right frame, against hybrid_svm (pp)"
    assert table.loc["scaffold_blind", gain] == "+10.0 [+10.0, +10.0]"
    assert table.loc["hybrid_svm", "right frame (%)"] == "85.0 [80.0, 90.0]"
    assert table.shape[1] < 8


MADE = {
    routers.router_table: {"router": "hybrid_svm"},
    routers.probe_table: {"router": "hybrid_svm", "split": "as streamed: normal"},
}


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("column", ["model", "budget"])
def test_tables_refuse_two_models_and_two_budgets(make, column):
    numbers = rows("m", "router_accuracy", [0.8], **MADE[make]).assign(budget="lr None, n_eval 16")
    second = numbers.assign(run_id="r0b", value=0.0)
    mine, other = {"model": ("minilm", "Llama-3.2-1B"), "budget": ("n_eval 16", "n_eval 64")}[
        column
    ]
    second[column] = numbers[column].str.replace(mine, other)
    make(numbers)
    with pytest.raises(SkillStackError, match=f"one {column}, got {mine} and {other}$"):
        make(pd.concat([numbers, second]))


def test_tables_refuse_two_runs_of_one_seed():
    numbers = rows("routers", "router_accuracy", [0.8], router="hybrid_svm")
    with pytest.raises(SkillStackError, match="one run of a seed, got r0 and r9"):
        routers.router_table(pd.concat([numbers, numbers.assign(run_id="r9", value=0.1)]))


def test_tables_of_the_committed_runs():
    runs = load_runs()
    for name, entry in routers.TABLES.items():
        where = {"notebook": entry.notebook, "preset": entry.preset, "model": entry.model}
        table = entry.make(runs[base.meant(runs, where)])
        assert len(table) >= 8, name
        assert (table.shape[1] + 1) <= 8, name  # with the router


# ------------------------------------------------------------------ what figures are drawn from


def test_pooled_reliability_by_hand():
    """Two seeds with 10 and 30 texts in a bin; a bin of nine is left out."""
    lines = [(0.5, 0.4, 10, 0), (0.9, 1.0, 9, 0), (0.7, 0.8, 30, 1), (np.nan, np.nan, 0, 1)]
    curves = pd.DataFrame(lines, columns=["confidence", "accuracy", "n", "seed"]).assign(router="a")
    (line,) = routers.pooled(curves).to_dict("records")
    assert line["n"] == 40
    assert line["confidence"] == pytest.approx(65) and line["accuracy"] == pytest.approx(70)
    assert 50 < line["low"] < 70 < line["high"] < 85


def test_curves_have_ends_only_over_several_runs():
    table = routers._curve(pd.Series([1.0, 3.0, 5.0]), pd.Series([64, 64, 128]), "a")
    assert table["mean"].tolist() == [2.0, 5.0] and table["of"].eq("a").all()
    assert table.loc[0, ["low", "high"]].tolist() == [1.0, 3.0]
    assert table.loc[1, ["low", "high"]].isna().all()


# ------------------------------------------------------------------ figures


def test_every_figure_has_a_title_and_is_drawn_from_all_seeds(compared, attacked):
    for name, entry in routers.FIGURES.items():
        if entry.preset == "hard12":
            run = compared if entry.notebook == "03_routers" else attacked
            drawn = entry.draw(run)
            figure = getattr(drawn.figure, "figure", drawn.figure)
            titles = [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center")]
            assert any(titles), name
            assert figure.get_size_inches()[0] <= plotting.WIDEST, name
            assert sorted(drawn.seeds) == sorted(set(run.alike()["seed"])), name
            assert not any(c.isdigit() for c in drawn.alt), name
            matplotlib.pyplot.close(figure)


def test_compared_says_who_is_ahead(compared):
    drawn, found = routers.compared(compared), compared.alike()
    found = found[found["eval_task"].eq("")].groupby(["metric", "router"])["value"].mean() * 100
    right = found["router_accuracy"].drop("oracle")
    assert f"{right.idxmax()} finds the right frame most often ({right.max():.1f} %" in drawn.answer
    assert f"{found['routed_micro']['oracle']:.1f} % with an oracle" in drawn.answer
    labels = [t.get_text() for t in drawn.figure.get_yticklabels()]
    assert labels[0] == right.idxmax() and set(labels) == set(right.index)
    assert {"oracle: correct answer", "chance (right frame)"} <= texts(drawn)


def test_the_threshold_of_the_run_is_marked(compared):
    drawn = routers.thresholds(compared)
    assert "threshold of the run (0)" in texts(drawn)
    for ax in drawn.figure.axes:
        assert any(list(line.get_xdata()) == [0.0, 0.0] for line in ax.lines)
    assert "visits 6.8 of 12 frames" in drawn.answer


def test_reliability_has_a_square_panel_for_each_router(compared):
    drawn = routers.reliability(compared)
    used = [ax for ax in drawn.figure.axes if ax.axison]
    assert len(used) == 6 and all(ax.get_aspect() == 1 for ax in used)
    errors = compared.alike().query("metric == 'ece'").groupby("router")["value"].mean() * 100
    assert {f"{router}: ECE {value:.1f}" for router, value in errors.items()} <= texts(drawn)
    assert f"{errors.min():.1f} points with {errors.idxmin()}" in drawn.answer


def test_learning_and_cost_are_of_the_tables(compared):
    drawn = routers.learning(compared)
    table = routers.files(compared, "learning.csv")
    assert len(table) == 2 * len(compared.read("learning.csv"))
    ends = table[table["router"].eq("hybrid_svm")].groupby("n_router")["accuracy"].mean() * 100
    assert f"from {ends.iloc[0]:.1f} to {ends.iloc[-1]:.1f} %" in drawn.answer.replace("goes ", "")
    assert {"chance", "budget of this run"} <= texts(drawn)
    drawn = routers.cost(compared)
    most = routers.files(compared, "cost.csv").query("frames == 64")
    seconds = most.groupby("router")["fit_seconds"].mean()
    assert f"{seconds.min():.3g} ({seconds.idxmin()})" in drawn.answer
    assert {*compared.read("cost.csv")["router"], "Fitting", "Routing one text"} <= texts(drawn)


def test_confusion_is_the_difference_of_two_routers(compared, monkeypatch):
    drawn = routers.confusion(compared)
    shown = drawn.figure.axes[1].images[0]
    assert shown.norm.vmin == -shown.norm.vmax
    assert np.abs(shown.get_array().sum(axis=1)).max() < 1e-9  # what one row gains another loses
    assert "scaffold_blind finds the right frame more often on 6 of 12 tasks" in drawn.answer
    found = compared.alike()
    monkeypatch.setattr(compared, "alike", lambda: found)
    default = replace(compared.config, router="hybrid_chain")  # beside the best of the others
    monkeypatch.setattr(compared, "config", default)
    assert "Against hybrid_chain, hybrid_embed finds" in routers.confusion(compared).answer


def test_misrouted_counts_answers(compared, monkeypatch):
    table = pd.DataFrame(
        [
            ("imdb", "imdb", True, True),
            ("sst2", "imdb", True, False),
            ("sst2", "imdb", True, True),
            ("sst2", "agnews", False, True),
        ],
        columns=["task", "scaffold_blind_frame", "scaffold_blind_right", "oracle_right"],
    ).assign(seed=1)
    monkeypatch.setattr(routers, "files", lambda run, file: table)
    drawn = routers.misrouted(compared)
    assert "3 of 4 texts" in drawn.answer and "67 % of them" in drawn.answer
    assert {"2 of 2", "0 of 1", "sst2 → imdb", "sst2 → agnews"} <= texts(drawn)
    monkeypatch.setattr(routers, "files", lambda run, file: table[:1])
    drawn = routers.misrouted(compared)
    assert drawn.answer == "scaffold_blind sends 0 of 1 texts to another frame."
    assert "no text was misrouted" in texts(drawn)


def test_the_attacks_grid_has_the_best_in_bold_and_the_published_rows(attacked):
    drawn = routers.attacks(attacked)
    labels = [t.get_text() for t in drawn.figure.get_yticklabels()]
    assert labels[-3:] == [f"published: {r}" for r in
                           ("hybrid_chain", "format augmented", "keyword augmented")]  # fmt: skip
    table = routers._grid(attacked.alike(), "as streamed")
    bold = {t.get_text() for t in drawn.figure.texts if t.get_fontweight() == "bold"}
    assert bold == {f"{value:.1f}" for value in table.max()}
    worst = table.min(axis=1)
    assert f"worst case is {worst.idxmax()} ({worst.max():.1f} %)" in drawn.answer
    assert "(published: 47.5 and 67.4)" in drawn.answer


def test_points_lost_are_against_the_routers_own_normal_accuracy(attacked):
    drawn = routers.lost(attacked)
    table = routers._grid(attacked.alike(), "as streamed")
    change = table["rewritten"] - table["normal"]
    image = drawn.figure.images[0]
    assert image.norm.vmin == -image.norm.vmax == -35
    assert f"changes by {change['format augmented']:+.1f} points" in drawn.answer
    labels = [t.get_text() for t in drawn.figure.get_yticklabels()]
    assert image.get_array()[labels.index("hybrid_svm"), 0] == pytest.approx(change["hybrid_svm"])


def test_formats_and_lengths(attacked):
    drawn = routers.formatted(attacked)
    table = routers._grid(attacked.alike(), "formatted")
    assert f"finds {table.loc['hybrid_svm', 'normal']:.1f} % of the frames" in drawn.answer
    assert {"own format", "another's format", "held-out format"} <= texts(drawn)
    drawn = routers.lengths(attacked)
    probe = routers.files(attacked, "probe.parquet")
    short = probe[probe["setting"].eq("as streamed") & probe["router"].eq("hybrid_svm")]
    short = short[short["condition"].eq("keywords") & short["words"].lt(20)]
    cell = f"{100 * (short['frame'] == short['task']).mean():.1f}  (n = {len(short)})"
    assert cell in texts(drawn)


def test_sentences_of_the_conclusions(compared, attacked):
    found = compared.alike().query("metric == 'routed'").groupby("router")["value"].mean() * 100
    sentence = routers.conclusion(compared)
    assert f"the oracle answers {found['oracle']:.1f} % correctly" in sentence
    for router, value in found.drop("oracle").items():
        assert (router in sentence) == (value >= found["oracle"] - 1)
    traps = attacked.alike().query("metric == 'trap_rate' and split == 'as streamed: keywords'")
    traps = traps.groupby("router")["value"].mean() * 100
    assert f"{traps.min():.1f} % of the texts by {traps.idxmin()}" in routers.traps(attacked)
