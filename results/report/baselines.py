"""The stack beside what one would do otherwise: notebook 04."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, listed, seeds_said
from skillstack_helpers.lab.names import SIZES, name, style
from skillstack_helpers.lab.parameters import METHODS
from skillstack_helpers.lab.runs import Run, load_runs, read_run, tuned_on
from skillstack_helpers.metrics import bootstrap_interval
from skillstack_helpers.tasks import PRESETS

from .base import (
    ANY,
    BARS,
    BARS_LOOK,
    Figure,
    Table,
    bootstrapped,
    chance,
    check_alike,
    counts,
    ends_said,
    figures,
    forgotten_said,
    in_order,
    mean,
    meant,
    measured,
    minus,
    over_pairs,
    published,
    seeds_of,
    spread,
    summary,
    whole,
    with_ends,
)

TOLD, NOT_TOLD, MIXED = "told the task", "told nothing: routed", "told nothing: mixed"
_KEPT = {  # what must be kept of the rows, beside weights, to learn the next task
    "routing texts": ("frames", "sequential", "independent", "ewc", "ewc_online", "olora"),
    "routing texts, all training rows": ("joint", "joint_wide", "joint_shared"),
    "routing texts, a buffer of rows": ("replay", "ewc_replay"),
    "routing texts, written texts": ("generative_replay",),
    "routing texts, none else": ("tfidf",),
    "all training rows": ("tfidf_union",),
    "routing texts, sums": ("lda",),
    "sums": ("lda_union",),
}
_FORGETS = "latest adapter forgets (pp)"
_AHEAD = {
    (how, method): f"{how} − {name(method)} (pp)"
    for how in ("mixed", "routed")
    for method in ("ewc", "joint")
}
_OF_FRAMES = ("frames", "second_look", "merged", "distilled")
DASHES = ["-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 4))]

# ---------------------------------------------------------------------- tables


def accuracy_table(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """All methods of notebook 04 above the published ones: mean ± standard deviation over seeds.

    Index: who, method. Columns: accuracy at the end, told the task, with the router's head, and
    with all heads mixed (percent); BWT and forward transfer (percentage points; the latter against
    an independent adapter, mean over tasks but the first); paired differences from the stack,
    routed from routed and mixed from mixed, mean [95 % bootstrap interval] over seeds and tasks.
    """
    columns = {
        name("acc"): "acc",
        name("routed"): {"metric": "routed", "eval_task": ""},
        name("mixed"): {"metric": "mixed", "eval_task": ""},
        name("bwt"): "bwt",
        "FWT (pp)": "transfer",
        "routed − routed stack (pp)": ("routed, paired", bootstrapped),
        "mixed − mixed stack (pp)": ("mixed, paired", bootstrapped),
    }
    ours = _ours(metrics)
    theirs = published([f"{preset}_ewc", f"{preset}_joint", "promising"])
    theirs = theirs[meant(theirs, {"preset": preset, "metric": ["accuracy", "avg_forgetting"]})]
    which = theirs["model"].replace("", "Llama-3.2, four runs") + ", "
    which += theirs["seed"].str.replace(r"^(?=\d)", "seed ", regex=True)
    theirs["who"] += ": " + which.str.removesuffix(", ")
    theirs["value"] = theirs["value"].mask(theirs["metric"].eq("avg_forgetting"), lambda x: 0.0 - x)
    metric = theirs["metric"].map({"accuracy": "acc", "avg_forgetting": "bwt"})
    theirs["metric"] = metric.mask(theirs["method"].eq("routed"), "routed")
    # The published joint run has several heads too.
    names = {"latest": "sequential", "stack": "frames", "routed": "frames"}
    theirs = theirs.assign(method=theirs["method"].replace(names), eval_task="")
    numbers = pd.concat([ours, _paired(ours), _transfer(ours), theirs])
    return summary(numbers, ["who", "method"], columns, spread)


def cost_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What each method of notebook 04 trained, keeps, spent and takes to answer, means over seeds
    (of the milliseconds the median). Index: method."""
    columns = {
        "trained (millions)": ("trained_parameters", partial(mean, form="{:.2f}")),
        "stored (MB)": ("stored_bytes", mean),
        "learning (s)": ("learning_seconds", whole),
        "answer, routed (ms)": ("answer_ms", median),
        "answer, mixed (ms)": ("mixed_ms", median),
    }
    ours = _ours(metrics)
    table = summary(ours, ["method"], columns)
    kept = {method: words for words, methods in _KEPT.items() for method in methods}
    table["rows kept to learn on"] = [kept.get(method, "") for method in table.index]
    return table.rename_axis(columns="means over seeds")


def root_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The first task of the stream, at its end: mean ± standard deviation over seeds. A column for
    what a method is told; index: method."""
    ours = _ours(metrics)
    root = ours["tasks"].str.split(", ").str[0]
    columns = {name(m): {"metric": metric, "unit": "fraction"} for m, metric in
               (("acc", "final"), ("routed", "routed"), ("mixed", "mixed"))}  # fmt: skip
    return summary(ours[ours["eval_task"].eq(root)], ["method"], columns, spread)


def ablation_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What each part of the stack is worth: frames from notebook 04 with adapters on all layers or
    the upper half, two routers, and what was made of them afterwards. Index: layers and router,
    method; means over the seeds of the line. The difference is from the first line, routed, on the
    same task and seed: mean [95 % bootstrap interval]."""
    ours = metrics[metrics["method"].isin(_OF_FRAMES)]
    upper = ours["budget"].str.endswith(f"first_adapted_layer {_UPPER}")
    router = ours["budget"].str.extract(r"router (\w+)", expand=False)
    setup = np.where(upper, "upper half, ", "all layers, ") + router
    ours = in_order(ours.assign(stack=setup, budget=""), "method", METHODS)
    ours = ours.sort_values("stack", kind="stable")
    first = {"stack": "all layers, hybrid_chain", "method": "frames", "metric": "routed"}
    cells = ours[ours["eval_task"].ne("") & ours["metric"].eq("mixed")]
    both = pd.concat([cells, ours[meant(ours, first) & ours["eval_task"].ne("")]])
    cells = both.assign(value=minus(both, ["seed", "eval_task"], **first))
    cells = cells[cells["metric"].eq("mixed")].dropna(subset="value").assign(metric="gain")
    columns = {name(m): {"metric": m, "eval_task": ""} for m in ("routed", "mixed")}
    columns |= {
        "answer, routed (ms)": ("answer_ms", median),
        "answer, mixed (ms)": ("mixed_ms", median),
        "mixed − first line (pp)": ("gain", bootstrapped),
    }
    table = summary(pd.concat([ours, cells]), ["stack", "method"], columns, mean)
    lines = ours.groupby(["stack", "method"])
    table["seeds"] = [_seeds(lines.get_group(line)) for line in table.index]
    return table


def _seeds(found: pd.DataFrame) -> str:
    """The seeds of these numbers, for a table's cell."""
    return ", ".join(map(str, sorted(seeds_of(found))))


def _fewer(found: pd.DataFrame) -> str:
    """The methods of a model that were run on some of its seeds only, and on which."""
    every = set(seeds_of(found))
    by = found.groupby("method", sort=False, observed=True)
    few = [f"{name(method)}: {_seeds(one)}" for method, one in by if set(seeds_of(one)) != every]
    return f" ({'; '.join(few)})" if few else ""


def growth_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What is forgotten, and how far the stack is ahead, on one backbone after another: mean
    [95 % bootstrap interval] over seeds and tasks, paired. Index: model, the smallest first."""
    found = _grown(metrics)
    lines = []
    for model, one in found.groupby("model", sort=False):
        cells = {what: bootstrapped(cell) for what, cell in one.groupby("what", sort=False)}
        line = {"model": _precise(one), "parameters (millions)": f"{SIZES[model]:.0f}"}
        lines.append(line | cells)
        lines[-1]["seeds"] = _seeds(one) + _fewer(one)
    return pd.DataFrame(lines).set_index("model").fillna("")


def _grown(metrics: pd.DataFrame) -> pd.DataFrame:
    """Differences in points, one a model, seed and task, by what they are of (`what`), of models
    whose size is known, the smallest first."""
    pairs = {_FORGETS: ("sequential", "final")}
    pairs |= {what: (method, how) for (how, method), what in _AHEAD.items()}
    parts = []
    for model in sorted(set(metrics["model"]) & set(SIZES), key=SIZES.get):
        mine = _ours(metrics[metrics["model"].eq(model)])
        check_alike(mine)
        apart = _paired(mine)
        for what, (method, metric) in pairs.items():
            cells = apart[apart["method"].eq(method) & apart["metric"].eq(f"{metric}, paired")]
            parts.append(cells.assign(what=what, value=-100 * cells["value"]))
    return pd.concat(parts, ignore_index=True)


def _precise(found: pd.DataFrame) -> str:
    """The model of a table's rows, with its precision where that is not the usual one."""
    dtypes = [dtype for dtype in found["dtype"].unique() if dtype != "float32"]
    return ", ".join([found["model"].iloc[0], *dtypes])


def precision_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The stack on one backbone in one precision after another, on the seeds that all have: mean ±
    standard deviation over seeds; the difference is from the first, mixed, on the same task and
    seed. Index: model, method."""
    ours = in_order(measured(metrics, method=METHODS), "method", METHODS)
    have = ours.groupby("seed")["model"].transform("nunique")
    ours = ours[have.eq(ours["model"].nunique())].sort_values("model", kind="stable")
    first = {"model": ours["model"].iloc[0], "metric": "mixed"}
    cells = ours[ours["eval_task"].ne("") & ours["metric"].eq("mixed")]
    apart = minus(cells, ["seed", "eval_task", "method"], **first)
    cells = cells.assign(value=apart, metric="apart")[~meant(cells, first)]
    columns = {name(m): {"metric": m, "eval_task": ""} for m in ("acc", "routed", "mixed")}
    columns |= {name("bwt"): "bwt", "mixed − first (pp)": ("apart", bootstrapped)}
    tables = {
        _precise(part): summary(part, ["method"], columns, spread)
        for _, part in pd.concat([ours, cells]).groupby("model", sort=False)
    }
    *_, last = tables.values()  # which has differences to speak of
    return pd.concat(tables, names=["model"]).rename_axis(columns=last.columns.name)


def tuned_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Methods with something to search, tuned on the stream they are judged on and on another one:
    mean ± standard deviation over the seeds that both have, and the paired difference from the
    stack, mean [95 % bootstrap interval]. Index: stream, tuned on."""
    tables, columns = [], {"value": ("searched", partial(mean, form="{:g}"))}
    columns |= {name(m): {"metric": m, "eval_task": ""} for m in ("acc", "mixed")}
    columns |= {name("bwt"): "bwt", "mixed − mixed stack (pp)": ("mixed, paired", bootstrapped)}
    for stream, ours in metrics.groupby("preset", sort=False):
        ours = ours.assign(who=tuned_on(ours["own"]).replace("", stream))
        both = ours[ours["method"].eq("ewc")].groupby("seed")["who"].nunique()
        ours = ours[ours["seed"].isin(both.index[both.gt(1)])]
        pairs = _paired(ours)
        ewc = pd.concat([part[part["method"].eq("ewc")] for part in (ours, pairs)])
        table = summary(ewc, ["preset", "who"], columns, spread)
        table["seeds"] = _seeds(ewc)
        tables.append(table)
    return pd.concat(tables).rename_axis(["stream", "tuned on"])


def rows_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """`once_table` of methods that learned the training rows, and of those that learned the routing
    rows too, each against the stack that learned the same. Index: rows, method."""
    more = metrics["budget"].str.contains("train_on_router True")
    tables = {"training rows": metrics[~more], "training and routing rows": metrics[more]}
    tables = {rows: once_table(part) for rows, part in tables.items()}
    table = pd.concat(tables, names=["learned", "method"])
    return table.drop(columns="routed − routed stack (pp)")


def once_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """`accuracy_table` of a seed that all methods were run on, with nothing published beside it.
    Index: method."""
    table = accuracy_table(metrics, "hard8").xs("measured here")
    return table.loc[:, table.ne("").any()]


def coverage_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """How many label sets, made for 90 % right after a task was learned, still hold the right label
    at the end of the stream, told the task; mean ± standard deviation over seeds. Index: method."""
    columns = {
        name("acc"): "acc",
        name("coverage"): {"metric": "coverage", "eval_task": ""},
        name("set_size"): ("set_size", mean),
    }
    ours = _ours(metrics)
    with_sets = ours.loc[ours["metric"].eq("coverage"), "method"].unique()
    return summary(ours[ours["method"].isin(with_sets)], ["method"], columns, spread)


def median(cell: pd.DataFrame) -> str:
    """Of what other work on the machine may have slowed down."""
    return f"{cell['value'].median():.1f}"


def _ours(metrics: pd.DataFrame) -> pd.DataFrame:
    """What was measured here, without methods on less than half of the stack's seeds: their means
    would be over other rows."""
    ours = in_order(measured(metrics, method=METHODS), "method", METHODS)
    seeds = ours.groupby("method")["seed"].transform("nunique")
    return ours[2 * seeds >= ours.loc[ours["method"].eq("frames"), "seed"].nunique()]


def _paired(ours: pd.DataFrame) -> pd.DataFrame:
    """Differences from the stack on the same task and seed, each metric (told the task ``final``,
    ``routed``, ``mixed``) from the stack's own (``routed, paired`` and so on)."""
    tasks = ours[ours["eval_task"].ne("") & ours["metric"].isin(["final", "routed", "mixed"])]
    tasks = tasks.sort_values(["seed", "eval_task"], kind="stable")
    pairs = tasks.assign(metric=tasks["metric"] + ", paired")
    pairs["value"] = minus(tasks, ["seed", "eval_task", "metric"], method="frames")
    pairs = pairs[pairs["method"].ne("frames")].dropna(subset="value")
    return in_order(pairs, "method", METHODS)


def _transfer(numbers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy right after learning minus an independent adapter's, mean over tasks but the first.
    What learned all at once has a last row only, and nothing to compare."""
    learned = numbers[numbers["metric"].eq("accuracy")]
    learned = learned[learned["trained_through"].eq(learned["eval_task"])]
    tasks, by = learned["eval_task"].unique(), ["who", "method", "seed", "unit"]
    every = learned.groupby(by)["value"].transform("size").eq(len(tasks))
    gain = learned.assign(value=minus(learned, ["seed", "eval_task"], method="independent"))
    gain = gain[every & gain["eval_task"].isin(tasks[1:])].dropna(subset="value")
    return gain.groupby(by, as_index=False)["value"].mean().assign(metric="transfer")


def probe_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The order probe, `hard5` forward and reversed, above the published one: mean ± standard
    deviation over seeds. Index: who, method. Empty if neither was run."""
    ours = _streams(metrics, ["hard5", "hard5_reversed"])
    theirs, routes = published("not_proven_order"), ("routed_forward", "routed_reverse")
    theirs = theirs[theirs["metric"].eq("accuracy") & theirs["method"].isin(routes)]
    streams = theirs["method"].map(dict(zip(routes, ("hard5", "hard5_reversed"), strict=True)))
    theirs = theirs.assign(stream=streams, method="frames", metric="routed")
    columns = {
        f"{word}, {name(metric)}": {"metric": metric, "stream": stream}
        for word, stream in (("forward", "hard5"), ("reversed", "hard5_reversed"))
        for metric in ("acc", "routed")
    }
    numbers = pd.concat([ours, theirs])
    return summary(numbers, ["who", "method"], columns, spread) if len(ours) else ours


def standard_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Orders 1 to 3 of the standard benchmark above the published means: mean ± standard deviation
    over seeds. Index: who, method. The mean is of methods that were run on all three orders. Empty
    if none was run."""
    orders = [f"standard4_order{i}" for i in (1, 2, 3)]
    ours = _streams(metrics, orders)
    if not len(ours):
        return ours
    whole = ours[ours.groupby(["method", "seed"])["stream"].transform("nunique").eq(3)]
    by = ["who", "method", "seed", "metric", "unit"]
    means = whole.groupby(by, as_index=False)["value"].mean().assign(stream="mean")
    theirs = published("standard_benchmark").assign(stream="mean", metric="acc")
    theirs["who"] += ": " + theirs["model"] + ", " + theirs["source"].str.partition(",")[0]
    theirs = theirs.sort_values(["who", "method"])
    columns = {f"order {i} (%)": {"metric": "acc", "stream": orders[i - 1]} for i in (1, 2, 3)}
    ways = ("acc", "routed", "mixed")
    columns |= {f"mean, {name(way)}": {"metric": way, "stream": "mean"} for way in ways}
    return summary(pd.concat([ours, means, theirs]), ["who", "method"], columns, spread)


def eight_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """`hard8` in up to eight orders: mean ± standard deviation over orders [lowest, highest] of
    each method's mean over tasks. Index: method. Empty if one order alone was run."""
    columns = {name(metric): metric for metric in ("acc", "routed", "mixed")}
    found = _eight(metrics)
    if not len(found):
        return found
    table = summary(found.drop(columns="run_id"), ["method"], columns, over_orders)
    over = f"{found['stream'].nunique()} orders, seed {_seeds(found)}"
    return table.rename_axis(columns=f"mean ± standard deviation [lowest, highest] over {over}")


def over_orders(cell: pd.DataFrame) -> str:
    """Mean ± standard deviation [lowest, highest] over orders, of the means over seeds."""
    values = cell.groupby("stream")["value"].mean()
    ends = f"[{values.min():.1f}, {values.max():.1f}]"
    return f"{values.mean():.1f} ± {values.std():.1f} {ends}"


def _eight(metrics: pd.DataFrame) -> pd.DataFrame:
    """Accuracies at the end of `hard8` in each order that was run, of the methods and seeds that
    all of these orders have."""
    others = metrics[metrics["preset"].isin(_EIGHT[1:])]
    if not len(others):
        return others
    found = _streams(metrics[metrics["budget"].isin(others["budget"])], _EIGHT)
    have = found.groupby(["method", "seed"])["stream"].transform("nunique")
    return found[have.eq(found["stream"].nunique())]


def _streams(metrics: pd.DataFrame, presets: list[str]) -> pd.DataFrame:
    """Accuracies at the end on streams that may stand side by side: of one model, precision and
    budget."""
    found = measured(metrics, eval_task="", preset=presets, metric=["acc", "routed", "mixed"])
    check_alike(found, ["model", "dtype", "budget"])
    return in_order(found.rename(columns={"preset": "stream"}), "method", METHODS)


def orders(metrics: pd.DataFrame) -> list[pd.DataFrame]:
    """The tables of other streams that were run."""
    made = (eight_table(metrics), probe_table(metrics), standard_table(metrics))
    return [table for table in made if len(table)]


# ---------------------------------------------------------------------- figures


def methods(run: Run) -> Drawn:
    """All methods at the end of the stream, told the task and routed."""
    found = _ours(run.alike())
    columns = {TOLD: "acc", NOT_TOLD: "routed", MIXED: "mixed"}
    whole = found[found["eval_task"].eq("")]
    means, low, high = _drawn(with_ends(whole, ["method"], columns))
    stack = means.loc[name("frames")]
    answer = f"Told nothing, the stack answers {stack[NOT_TOLD]:.1f} % correctly with one frame a "
    answer += f"text, and {stack[MIXED]:.1f} % with its frames mixed. "
    for words, column in (("With the same router", NOT_TOLD), ("Mixed the same way", MIXED)):
        others = means[column].drop(name("frames")).dropna().sort_values(ascending=False)
        ahead, behind = others[others > stack[column]], others[others <= stack[column]]
        answer += f"{words}, ahead of it: {_with(ahead)}"
        answer += f"; closest behind: {_with(behind[:1])}. " if len(behind) else ". "
    start = _start(low.fillna(means).min(axis=None))
    words = f"accuracy at the end, mean over tasks (%); the axis starts at {start}"
    title = "What each method still answers after the whole stream"
    ax = plotting.pairs(means, words, title, low, high, (stack[MIXED], "mixed stack"))
    ax.set_xlim(left=start)
    alt = "A line for each method with three marks, told the task, routed and mixed, and their "
    alt += "ranges; a dashed line marks the mixed stack."
    look = (
        "Compare like with like: filled marks are told the task, hollow ones use the head that one "
        "router picks, half-filled ones all heads with the same labels, mixed the same way. "
        "Bars: lowest and highest seed."
    )
    return Drawn(ax, answer.strip(), alt, look, seeds_of(found))


def differences(run: Run) -> Drawn:
    """Differences from the stack, paired over seeds and tasks."""
    pairs = _paired(_ours(run.alike()))
    columns = {NOT_TOLD: "routed, paired", MIXED: "mixed, paired"}
    means, low, high = _drawn(with_ends(pairs, ["method"], columns, over_pairs))
    sentences = []
    for words, column in (("With the same router", NOT_TOLD), ("Mixed the same way", MIXED)):
        others = means[column].dropna()
        ahead = others[low.loc[others.index, column] > 0]
        behind = others[high.loc[others.index, column] < 0]
        level = others.drop([*ahead.index, *behind.index])
        sentence = f"{words}, ahead of the stack: {_with(ahead, '+.1f')}"
        sentence += f"; not to be told from it: {_with(level, '+.1f')}; "
        sentences.append(f"{sentence}behind it: {len(behind)} of {len(others)}.")
    n = counts(set(pairs.groupby(["method", "metric"]).size())) if len(pairs) else 0
    title = "How far each method is from the stack"
    words = f"difference (points), mean over {n} pairs of seed and task"
    line, fills = (0, "mixed stack"), ("none", "bottom")
    ax = plotting.pairs(means, words, title, low, high, line, fills)
    alt = "A line for each method with its difference from the stack, routed and mixed, each with "
    alt += "its interval; a dashed line marks no difference."
    look = "Routed (hollow) is compared with the routed stack, mixed (half-filled) with the mixed "
    look += "stack. Bars: 95 % "
    look += "bootstrap interval over seeds and tasks; left of the line the stack is ahead."
    return Drawn(ax, " ".join(sentences), alt, look, seeds_of(pairs))


def verdicts(run: Run) -> Drawn:
    """The table that decides: what each method answers, forgets, keeps and spends."""
    found = _ours(run.alike())
    pairs, best = _paired(found), "mixed, paired"
    ends = figures(
        pairs[pairs["metric"].eq(best)], ["method"], {"pp": best}, lambda cell: over_pairs(cell)[0]
    )
    highs = figures(
        pairs[pairs["metric"].eq(best)], ["method"], {"pp": best}, lambda cell: over_pairs(cell)[1]
    )
    alone = pairs[~pairs["method"].isin(ends.index) & pairs["metric"].eq("routed, paired")]
    cells = {
        "told\n(%)": ("acc", mean),
        "routed\n(%)": ({"metric": "routed", "eval_task": ""}, mean),
        "mixed\n(%)": ({"metric": "mixed", "eval_task": ""}, mean),
        "BWT\n(pp)": ("bwt", mean),
        "stored\n(MB)": ("stored_bytes", mean),
        "learning\n(s)": ("learning_seconds", whole),
        "answer\n(ms)": ("answer_ms", median),
        "mixed\n(ms)": ("mixed_ms", median),
    }
    ahead = pd.Series(0, index=list(dict.fromkeys(found["method"])))
    ahead[ends.index[ends["pp"] > 0]], ahead[highs.index[highs["pp"] < 0]] = 1, -1
    for method, one in alone.groupby("method"):  # told nothing, and nothing to mix
        low, high = over_pairs(one)
        ahead[method] = 1 if low > 0 else -1 if high < 0 else 0
    table = summary(found, ["method"], cells)
    best = pd.to_numeric(table["mixed\n(%)"].mask(table["mixed\n(%)"].eq(""), table["routed\n(%)"]))
    table = table.loc[best.sort_values(ascending=False, kind="stable").index]
    said = {1: "ahead of the mixed stack", -1: "behind it", 0: "not to be told from it"}
    ax = plotting.verdicts(
        table.rename(index=name), ahead.rename(index=name), "What each method does and costs", said
    )
    counts = {k: [name(m) for m in ahead.index[ahead.eq(k)] if m != "frames"] for k in said}
    answer = "; ".join(f"{said[k]}: {listed(who)}" for k, who in counts.items())
    alt = "A table: a line for each method, in the order of its mixed accuracy, with accuracies, "
    alt += "backward transfer, megabytes, seconds to learn and milliseconds to answer."
    look = "A line is coloured where the 95 % bootstrap interval of its difference from the mixed "
    look += "stack (mixed where it has heads to mix, paired over seeds and tasks) excludes zero."
    return Drawn(ax, answer[0].upper() + answer[1:] + ".", alt, look, seeds_of(found))


def search(run: Run) -> Drawn:
    """Accuracy on validation rows against what was searched; run: one of the searches, which are
    shown with those of its seed that are alike."""
    alike = run.alike()
    mine = alike["method"].str.startswith("search") & alike["seed"].eq(run.config.seed)
    others = alike.loc[mine & alike["run_id"].ne(run.id), "run_id"].unique()
    tables = [read_run(run.folder.parent / other).read("search.csv") for other in others]
    table = pd.concat([run.read("search.csv"), *tables], ignore_index=True)
    on = run.config.tuned_on or run.config.preset
    n = alike.loc[mine & alike["metric"].eq("validation"), "n"].min()
    share = "all" if n else "a quarter of the"
    n = n or 64 * len(PRESETS.get(on, run.config.task_names))  # earlier searches did not note it
    searched = list(table["method"].unique())
    axes = plotting.panels(1, len(searched), plotting.WIDEST, 3.8, sharey=True)
    moments = {"final": "at the end of the stream", "learned": "right after its task"}
    least = table[["final", "learned"]].min(axis=None)
    start = _start(100 * (least - 1.96 * math.sqrt(least * (1 - least) / n)))
    sentences = []
    for ax, method in zip(axes, searched, strict=True):
        part = table[table["method"].eq(method)].sort_values("strength")
        long = part.rename(columns=moments).melt("strength", moments.values(), "moment", "share")
        half = 1.96 * np.sqrt(long["share"] * (1 - long["share"]) / n)
        long = long.assign(low=100 * (long["share"] - half), high=100 * (long["share"] + half))
        long["percent"] = 100 * long["share"]
        what = "learning rate" if method == "joint_wide" else "strength of the penalty"
        words = (what, f"validation accuracy (%), axis from {start}")
        how = {"by": "moment", "legend": False, "xscale": "log"}
        plotting.curves(long, "strength", "percent", *words, ax=ax, title=name(method), **how)
        ax.lines[1].set(linestyle="--", markerfacecolor="none", markersize=9)  # equals show both
        best = part.loc[part["final"].idxmax()]
        ax.axvline(best["strength"], color="black", ls=":", zorder=0, label="chosen")
        ax.set_ylim(bottom=start)
        edge = best["strength"] in (part["strength"].min(), part["strength"].max())
        sentence = f"{name(method)} is best at a {what.split(' of')[0]} of {best['strength']:g} "
        sentence += f"({100 * best['final']:.1f} % at the end of the stream"
        sentences.append(sentence + (", at the edge of what was searched)." if edge else ")."))
    axes[-1].set_ylabel(axes[-1].get_ylabel() if len(axes) == 1 else "")
    title = f"Searched on {on} with {share} training rows, judged on {n} "
    figure = plotting.over_all(axes, f"{title}routing rows")
    plotting.legend_below(axes)
    alt = "A panel for each method: accuracy right after each task and at the end of the stream "
    alt += "against what was searched; a dotted line marks the value that was chosen."
    look = "A stronger penalty keeps more of the old tasks and learns less of the new ones. Bands: "
    look += f"95 % binomial interval of {n} validation rows; one seed."
    return Drawn(figure, " ".join(sentences), alt, look)


def stream(run: Run) -> Drawn:
    """Mean accuracy on the tasks learned so far, over the stream."""
    found, order = _ours(run.alike()), list(run.config.task_names)
    after = ["second_look", "merged", "distilled"]  # what the stack becomes when the stream is over
    cells = found[found["metric"].eq("accuracy") & ~found["method"].isin(after)]
    tables = with_ends(cells, ["method", "trained_through"], {"percent": "accuracy"})
    table = pd.concat([part["percent"] for part in tables], axis=1, keys=["percent", "low", "high"])
    table = table.reset_index()
    table = table.assign(step=table["trained_through"].map(order.index) + 1)
    one_by_one = table.groupby("method")["step"].transform("size") > 1
    absent = [name(method) for method in table.loc[~one_by_one, "method"].unique()]
    table = table[one_by_one].assign(method=table["method"].map(name))
    end = table[table["step"].eq(len(order))].set_index("method")["percent"]
    end = end.sort_values(ascending=False)
    answer = (
        f"After {len(order)} tasks, told the task, the accuracy is between {end.iloc[0]:.1f} % "
    )
    answer += f"({end.index[0]}) and {end.iloc[-1]:.1f} % ({end.index[-1]})."
    start = _start(table[["percent", "low"]].min(axis=None))
    words = ("tasks learned so far", f"mean accuracy on them (%), axis from {start}")
    how = {"by": "method", "legend": False}
    title = "Accuracy on all tasks so far, told the task"
    ax = plotting.curves(table, "step", "percent", *words, title=title, **how)
    for line, dash in zip(ax.lines, DASHES, strict=False):  # so that equal lines show both
        line.set_linestyle(dash)
    ax.legend(**plotting.BESIDE)
    ax.set_xticks(range(1, len(order) + 1))
    ax.set_ylim(bottom=start)
    alt = "A line for each method that learns task after task: mean accuracy on the tasks so far."
    look = "The tasks differ in difficulty, so the lines move together; a method that falls away "
    look += "from the saved frames forgets. Bands: lowest and highest seed."
    if absent:
        look += f" No line: {listed(absent)}, for all tasks are learned at once there."
    return Drawn(ax, answer, alt, look, seeds_of(found))


def tasks(run: Run) -> Drawn:
    """Accuracy on every task at the end, told the task, and of the routed stack."""
    found, order = _ours(run.alike()), list(run.config.task_names)
    columns = {task: {"metric": "final", "eval_task": task} for task in order}
    routed = {task: {"metric": "routed", "eval_task": task} for task in order}
    stack = found[found["method"].eq("frames")]
    table = figures(found, ["method"], columns).rename(index=name)
    routed = figures(stack, ["method"], routed).set_axis(["routed stack"])
    table = pd.concat([routed, table]) / 100
    lost = 100 * (table.loc[["routed stack", name("sequential")]] - table.loc[name("frames")])
    where, most = lost.idxmin(axis=1), lost.min(axis=1)
    answer = f"Against the saved frames, the router costs most on {where.iloc[0]} "
    answer += f"({most.iloc[0]:+.1f} points), forgetting on {where.iloc[1]} ({most.iloc[1]:+.1f})."
    title = "Accuracy at the end of the stream (%)"
    ax = plotting.task_grid(table, chance(run), title)
    alt = "A heat map: rows the methods, columns the tasks and their mean; the last row is chance."
    look = "The first row is told nothing, all others are told the task. White is chance."
    return Drawn(ax, answer, alt, look, seeds_of(found))


def bars(run: Run) -> Drawn:
    """Accuracy on every task at the end: latest adapter, saved frames, routed stack."""
    found, order = _ours(run.alike()), list(run.config.task_names)
    columns = {
        name("sequential"): {"method": "sequential", "metric": "final"},
        name("frames"): {"method": "frames", "metric": "final"},
        "routed stack": {"method": "frames", "metric": "routed"},
    }
    tables = with_ends(found[found["eval_task"].isin(order)], ["eval_task"], columns)
    means, low, high = (table.loc[order] / 100 for table in tables)
    lost = 100 * (means[name("sequential")] - means[name("frames")])[:-1]  # since it was learned
    kept = figures(found, ["method"], {"pp": "bwt"}).loc["frames", "pp"]
    answer = forgotten_said(-lost.mean(), lost, 0.0 - kept)
    seeds = seeds_of(found)
    ends = {"low": low, "high": high} if len(seeds) > 1 else {}
    ax = plotting.task_bars(means.assign(chance=chance(run)), **ends)
    return Drawn(ax, answer, BARS, BARS_LOOK + ends_said(found, "Lines"), seeds)


def cost(run: Run) -> Drawn:
    """Bytes to keep, and the router's that come on top where the task is not told."""
    found = _ours(run.alike())
    by = {"stored": "stored_bytes", "router": "router_bytes"}
    table = figures(found, ["method"], by).rename(index=name)
    router = table["router"].max()
    alone = [name(m) for rows, methods in _KEPT.items() if "routing" not in rows for m in methods]
    needs = pd.Series(router, table.index).mask(table.index.isin(alone), 0.0)
    size = table["stored"].loc[(table["stored"] + needs).sort_values(kind="stable").index]
    needs = needs[size.index]
    ax = plotting.panels(1, 1, plotting.WIDEST, 1.5 + 0.34 * len(size))[0]
    colors = [style(label, k)["color"] for k, label in enumerate(size.index)]
    places, how = range(len(size)), {"edgecolor": "#333333", "linewidth": 0.6, "height": 0.66}
    ax.barh(places, size, color=colors, **how)
    words = "the router, where the task is not told"
    bars = ax.barh(places, needs, left=size, color="white", hatch="///", label=words, **how)
    sums = zip(size, needs, strict=True)
    sums = [f"{own:.1f} + {more:.1f}" if more else f"{own:.1f}" for own, more in sums]
    ax.bar_label(bars, sums, fontsize=plotting.SMALL, padding=3)
    plotting.name_lines(ax, size.index)
    ax.margins(x=0.15)
    ax.set_xlabel("MB kept after the last task, adapters, heads and what the method adds to them")
    plotting.headed(ax, "What must be kept")
    answer = (
        f"The saved frames take {size[name('frames')]:.1f} MB and their router {router:.1f} MB; "
    )
    least, most = size.idxmin(), size.idxmax()
    answer += f"least: {least} ({size[least]:.1f} MB); most: {most} ({size[most]:.1f} MB)."
    alt = "A bar for each method: the megabytes it keeps, and behind them those of the router."
    look = "All but a classifier over all labels need the router when they are not told the task. "
    look += "Joint training needs all rows again for every new task; they are not counted."
    return Drawn(ax, answer, alt, look, seeds_of(found))


def growth(run: Run) -> Drawn:
    """What is forgotten, and how far the stack is ahead, against the size of the backbone: of all
    models on which the same was run, and what was published of forgetting."""

    def spent(runs: pd.DataFrame) -> pd.Series:  # without the learning rate, which is the model's
        return runs["budget"].str.replace(r"\blr [^,]+", "", regex=True)

    found = beside(run, "preset", "tasks")
    grown = _grown(found[spent(found).isin(spent(run.alike()))])
    parts = grown.groupby(["what", "model"], sort=False)["value"]
    lines = [(*of, values.mean(), *bootstrap_interval(values)) for of, values in parts]
    lines = pd.DataFrame(lines, columns=["what", "model", "mean", "low", "high"])
    axes = plotting.panels(1, 2, plotting.WIDEST, 4.2)
    titles = ("What the latest adapter forgets", "How far the mixed stack is ahead")
    shown = {_FORGETS: (0, "sequential")}
    shown |= {what: (1, method) for (how, method), what in _AHEAD.items() if how == "mixed"}
    sentences = {}
    for what, (panel, method) in shown.items():
        one, ax = style(name(method)) | {"linestyle": "none"}, axes[panel]
        mine = lines[lines["what"].eq(what)]
        at = [SIZES[model] * (1.06 if method == "joint" else 1) for model in mine["model"]]
        ax.vlines(at, mine["low"], mine["high"], color=one["color"], lw=1.6)
        ax.plot(at, mine["mean"], markersize=7, **one, **plotting.EDGE)
        if what == _FORGETS:
            how = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "rotation": 90}
            for model, high in zip(mine["model"], mine["high"], strict=True):
                ax.annotate(model, (SIZES[model], high), **how, size=plotting.SMALL)
        means = zip(mine["model"], mine["mean"], strict=True)
        sentences[what] = listed(f"{value:+.1f} on {model}" for model, value in means)
    theirs = published(f"{run.config.preset}_table")
    theirs = theirs[theirs["metric"].eq("latest_drop")]
    at = [SIZES[f"meta-llama/{model}-Instruct"] for model in theirs["model"]]
    how = style("published") | {"linestyle": "none", "markersize": 7, "label": "published"}
    axes[0].plot(at, theirs["value"].astype(float), **how, **plotting.EDGE)
    for ax, title in zip(axes, titles, strict=True):
        ax.axhline(0, color="grey", lw=1, ls=":")
        ax.set(xscale="log", xlabel="parameters of the backbone (millions)")
        ticks = (30, 100, 300, 1000, 3000)
        ax.set_xticks(ticks, ticks)
        ax.minorticks_off()
        ax.set_xlim(15, 5000)
        plotting.headed(ax, title, 2)
    axes[0].set_ylabel("percentage points")
    answer = f"Of {grown['model'].nunique()} models, the mixed stack is {_won(lines, 'mixed')}; "
    answer += f"with one frame a text it is {_won(lines, 'routed')}. The latest adapter forgets, "
    answer += f"in points: {sentences.pop(_FORGETS)}."
    for what, said in sentences.items():
        answer += f" Mixed stack minus {name(shown[what][1])}: {said}."
    alt = "Two panels over the number of parameters: what the latest adapter forgets, beside "
    alt += "published runs, and the mixed stack's lead over EWC and joint training."
    look = (
        "Bars: 95 % bootstrap interval over seeds and tasks. Published: Llama-3.2, one run each, "
    )
    look += "with adapters on all layers."
    by = grown.groupby("model", sort=False)
    models = tuple(f"{_precise(one)}, {seeds_said(seeds_of(one))}{_fewer(one)}" for _, one in by)
    return Drawn(axes[0].figure, answer, alt, look, seeds_of(run.alike()), models)


def _won(lines: pd.DataFrame, how: str) -> str:
    """On how many models (a line each, low to high) the stack is ahead of EWC and of joint
    training, and behind."""
    said = []
    for method in ("ewc", "joint"):
        mine = lines[lines["what"].eq(_AHEAD[how, method])]
        won, lost = (mine["low"] > 0).sum(), (mine["high"] < 0).sum()
        said.append(f"ahead of {name(method)} on {won} and behind on {lost}")
    return ", ".join(said)


def eight(run: Run) -> Drawn:
    """`hard8` in each order that was run."""
    found = _eight(beside(run, "model", "dtype", "budget"))
    orders = {preset: f"order {k}" for k, preset in enumerate(_EIGHT, 1)}
    orders = {preset: orders[preset] for preset in orders if preset in set(found["stream"])}
    shown = set(found[["method", "metric"]].itertuples(index=False, name=None))
    lines = [(m, way) for way in ("mixed", "routed", "acc") for m in _ORDERED if (m, way) in shown]
    cells = found.groupby(["method", "metric", "stream"])["value"].mean().unstack("stream")
    table = cells.loc[lines, list(orders)].rename(columns=orders)
    table.index = [f"{name(method)}, {name(way).removesuffix(' (%)')}" for method, way in lines]
    title = f"What the order of the tasks changes, {len(orders)} orders"
    ax = plotting.dots(table, "accuracy at the end, mean over tasks (%)", title=title)
    best = 100 * table[[way == "mixed" for _, way in lines]]
    ends = [f"{k} {row.min():.1f} to {row.max():.1f} %" for k, row in best.iterrows()]
    answer = f"From the worst of {len(orders)} orders to the best: {'; '.join(ends)}."
    if ("ewc", "mixed") in lines:
        stack, n = cells.loc[("frames", "mixed"), list(orders)], len(orders)
        ahead, better = (stack > cells.loc[("ewc", "mixed")]).sum(), (stack > stack.iloc[0]).sum()
        best = f"{better} orders suit" if better > 1 else f"{'one' if better else 'no'} order suits"
        first = f"Mixed, the stack is ahead of EWC in {ahead} of {n} orders, and {best} it better "
        answer = f"{first}than the published one. {answer}"
    alt = "A line for each method and way to answer, on it a mark for each order of the tasks."
    look = (
        "The same tasks and rows in every order; a mark is one of them. The wider a line's marks "
    )
    look += "lie apart, the more the order matters."
    return Drawn(ax, answer, alt, look, seeds_of(found))


def beside(run: Run, *same: str) -> pd.DataFrame:
    """Runs of the notebook that are the same in these columns of `load_runs`, none tuned on
    another stream."""
    mine = run.alike()
    same = {column: mine[column].iloc[0] for column in ("notebook", *same)}
    found = load_runs(run.config.output_dir, **same)
    return found[tuned_on(found["own"]).eq("")]


def _drawn(tables: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Means and their ends with display names, the best method first: mixed, or routed where there
    is nothing to mix."""
    best = tables[0][MIXED].fillna(tables[0][NOT_TOLD])
    order = best.sort_values(ascending=False, kind="stable").index
    return [table.loc[order].rename(index=name) for table in tables]


def _start(least: float) -> int:
    """Where an axis starts that holds the least value of a figure, in percent."""
    return max(0, 10 * math.floor((least - 2) / 10))


def _with(values: pd.Series, form: str = ".1f") -> str:
    return listed(f"{label} ({value:{form}})" for label, value in values.items())


# ---------------------------------------------------------------------- what is committed

_HARD8 = ("04_baselines", "hard8", "minilm")
_HARD12 = ("04_baselines", "hard12", "minilm")
_UPPER = 0.5  # adapters on the upper half of the layers
_NOW = (_UPPER, "hybrid_embed")
_EIGHT = ["hard8", *(f"hard8_order{k}" for k in range(2, 9))]
_LEARNED = ("frames", "sequential", "joint", "ewc")
_ORDERED = ("frames", "second_look", "ewc", "sequential")
_ORDERS = [f"standard4_order{i}" for i in (1, 2, 3)]
_PROBE = ["hard5", "hard5_reversed"]
TABLES = {
    "baselines_accuracy": Table(*_HARD8, partial(accuracy_table, preset="hard8"), *_NOW),
    "baselines_cost": Table(*_HARD8, cost_table, *_NOW),
    "baselines_root": Table(*_HARD8, root_table, *_NOW),
    "baselines_ablation": Table(*_HARD8, ablation_table, ANY, methods=_OF_FRAMES),
    "baselines_hard12": Table(*_HARD12, partial(accuracy_table, preset="hard12"), *_NOW),
    "baselines_coverage": Table(*_HARD12, coverage_table, *_NOW),
    "baselines_clinc10": Table(
        "04_baselines", "clinc10", "minilm", partial(accuracy_table, preset="clinc10"), *_NOW
    ),
    "baselines_growth": Table(
        "04_baselines", "hard8", list(SIZES), growth_table, *_NOW, methods=_LEARNED
    ),
    "baselines_rows": Table(*_HARD8, rows_table, *_NOW, methods=_LEARNED, seeds=(42,), rows=ANY),
    "baselines_tuned": Table(*_HARD8, tuned_table, *_NOW, methods=("frames", "ewc"), tuned=ANY),
    "baselines_once": Table(*_HARD8, once_table, *_NOW, seeds=(42,)),
    "baselines_all_layers": Table(
        *_HARD8, partial(accuracy_table, preset="hard8"), None, "hybrid_chain"
    ),
    "orders_hard8": Table(
        "04_baselines", _EIGHT, "minilm", eight_table, *_NOW, methods=_ORDERED, seeds=(42,)
    ),
    "orders_hard5": Table("04_baselines", _PROBE, "minilm", probe_table),
    "orders_standard": Table("04_baselines", _ORDERS, "minilm", standard_table, *_NOW),
}
_ASKED = {
    "verdicts": (verdicts, "Who answers best, and at what price?"),
    "differences": (differences, "Which differences from the stack are real?"),
    "methods": (methods, "How does the stack compare with what one would do otherwise?"),
    "stream": (stream, "Which methods hold their accuracy as tasks are added?"),
    "tasks": (tasks, "On which tasks do the methods differ?"),
    "cost": (cost, "What must each method keep?"),
}
FIGURES = {
    f"baselines_{name}": Figure(*_HARD8, draw, question, "frames", *_NOW)
    for name, (draw, question) in _ASKED.items()
}
FIGURES["baselines_hard12"] = Figure(
    *_HARD12, verdicts, "And with twelve tasks, four of them about pairs?", "frames", *_NOW
)
FIGURES["mpnet_tasks"] = Figure(
    "04_baselines", "hard8", "mpnet", bars, "What is left of eight tasks on a model of the "
    "published level?", "frames", *_NOW
)  # fmt: skip
FIGURES["baselines_growth"] = Figure(
    *_HARD8, growth, "Does it grow with the model?", "frames", *_NOW
)
FIGURES["orders_hard8"] = Figure(
    *_HARD8, eight, "Does the order of the tasks matter?", "frames", *_NOW
)
for key, model, question in (
    ("baselines_mpnet", "mpnet", "And on a model five times the size?"),
    ("baselines_smollm2", "smollm2-135m", "And on a language model?"),
    ("baselines_gemma3", "gemma3-270m", "And on a language model twice its size?"),
):
    where = ("04_baselines", "hard8", model)
    TABLES[key] = Table(*where, partial(accuracy_table, preset="hard8"), *_NOW)
    FIGURES[key] = Figure(*where, verdicts, question, "frames", *_NOW)
TABLES["baselines_smollm2_hard12"] = Table(
    "04_baselines", "hard12", "smollm2-135m", partial(accuracy_table, preset="hard12"), *_NOW
)
TABLES["baselines_nf4"] = Table(
    "04_baselines", "hard8", ["smollm2-135m", "smollm2-135m nf4"], precision_table, *_NOW,
    methods=("frames", "sequential"), seeds=(42,),
)  # fmt: skip
FIGURES["baselines_search"] = Figure(
    *_HARD8, search, "What does each method need to be at its best?", "search_ewc", *_NOW
)
