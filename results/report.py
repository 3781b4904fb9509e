"""The tables of the README and the notebooks, made beside the runs they are of.

``python results/report.py show DIR`` prints the result tables of the finished runs below a folder;
``python results/report.py readme`` fills the README's tables from the committed runs and draws its
picture.

A table function takes rows of metrics.csv: finished runs of one notebook, preset, model and budget,
any number of seeds. It refuses to average over two presets, models or budgets, or over two runs of
one seed. Fractions are shown as percent or percentage points.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from skillstack_helpers.errors import SkillStackError, checked_name
from skillstack_helpers.files import write_atomic
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.parameters import METHODS
from skillstack_helpers.lab.runs import (
    load_published,
    load_runs,
    read_facts,
    read_metrics,
    repo_root,
)
from skillstack_helpers.metrics import bootstrap_interval, seed_range

PUBLISHED_COLUMNS = {  # of the published hard8 and hard12 tables: metric -> heading
    "latest_drop": "latest adapter's drop (pp)",
    "stack_drop": "stack's drop (pp)",
    "task_aware": "task-aware average (%)",
    "routed": "routed overall (%)",
    "router_accuracy": "router task accuracy (%)",
    "fallback": "fallback (%)",
    "depth": "depth (frames)",
}
SHOWN_AS = {"fraction": 100, "bytes": 1e-6, "count": 1e-6}  # percent or points, MB, millions

# ---------------------------------------------------------------------- what a cell says


def mean(cell: pd.DataFrame, form: str = "{:.1f}") -> str:
    """The mean of all numbers."""
    return form.format(cell["value"].mean())


def ranged(cell: pd.DataFrame, form: str = "{:.1f}") -> str:
    """Mean [lowest, highest] over seeds; the mean alone for one seed."""
    values = cell.groupby("seed")["value"].mean()
    ends = ", ".join(map(form.format, seed_range(values)))
    return form.format(values.mean()) + (f" [{ends}]" if len(values) > 1 else "")


def spread(cell: pd.DataFrame) -> str:
    """Mean ± standard deviation over seeds; the mean alone for one seed."""
    values = cell.groupby("seed")["value"].mean()
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def bootstrapped(cell: pd.DataFrame, form: str = "{:+.1f}") -> str:
    """Mean [95 % bootstrap interval] over seeds and tasks; the mean alone where they are few."""
    ends = ", ".join(map(form.format, bootstrap_interval(cell["value"])))
    return mean(cell, form) + ("" if "nan" in ends else f" [{ends}]")


def listed(cell: pd.DataFrame) -> str:
    """Every number."""
    return ", ".join(cell["value"].map("{:.1f}".format))


def seeds(cell: pd.DataFrame) -> str:
    """How many seeds."""
    return str(cell["seed"].nunique())


def number(cell: pd.DataFrame) -> float:
    """The one number, not formatted."""
    if len(cell) > 1:
        raise SkillStackError(f"{cell['metric'].iloc[0]}: one number is shown, got {len(cell)}")
    return cell["value"].item()


signed, whole = partial(ranged, form="{:+.1f}"), partial(mean, form="{:.0f}")
_RANGE = "mean [range of {} seeds]"
_OVER_SEEDS = {ranged: _RANGE, signed: _RANGE, spread: "mean ± standard deviation of {} seeds"}
_OVER_SEEDS[bootstrapped] = "differences [95 % bootstrap interval over seeds and tasks]"

# ---------------------------------------------------------------------- the two helpers


def published(sections: str | Sequence[str]) -> pd.DataFrame:
    """The published numbers of these sections, to be put beside ours and given to `summary`."""
    numbers = load_published().assign(who="published")
    return numbers[_meant(numbers, {"section": sections})]


def summary(
    numbers: pd.DataFrame,
    rows: Sequence[str],
    columns: Mapping[str, str | Mapping | tuple],
    form: Callable = ranged,
) -> pd.DataFrame:
    """Numbers, one a line as in metrics.csv, as a table of `rows` times `columns`.

    rows: the columns whose values are the index, in the order they come. columns: heading -> what
    it shows: a metric, or a mapping from columns to a value or a list of values; or a pair of that
    and the cell's form, where it is not `form`. Missing cells are empty (NaN with `number`). The
    corner (``columns.name``) says over how many seeds a range or deviation is.

    Raises `SkillStackError` for runs that must not be averaged.
    """
    _check_alike(numbers)
    factor = numbers["unit"].map(SHOWN_AS).astype(float).fillna(1)
    shown = numbers.assign(value=numbers["value"] * factor)
    lines = {key: {} for key in zip(*(shown[row] for row in rows), strict=True)}
    words = set()
    for heading, what in columns.items():
        where, how = what if isinstance(what, tuple) else (what, form)
        where = {"metric": where} if isinstance(where, str) else where
        for key, cell in shown[_meant(shown, where)].groupby([*rows], sort=False):
            if "run_id" in cell and cell.groupby("seed")["run_id"].nunique().max() > 1:
                runs = " and ".join(cell["run_id"].unique())
                raise SkillStackError(f"a table takes one run of a seed, got {runs}")
            lines[key][heading] = how(cell)
            if (over := cell["seed"].nunique()) > 1 and how in _OVER_SEEDS:
                words.add(_OVER_SEEDS[how].format(over))
    lines = [dict(zip(rows, key, strict=True)) | line for key, line in lines.items() if line]
    table = pd.DataFrame(lines, columns=[*rows, *columns]).set_index([*rows])
    table.columns.name = "; ".join(sorted(words)) or None
    return table if form is number else table.astype(object).fillna("")


def _meant(numbers: pd.DataFrame, where: Mapping) -> pd.Series:
    """Which lines have these values in these columns; a list stands for any of its values."""
    found = pd.Series(True, numbers.index)
    for column, value in where.items():
        found &= numbers[column].isin([value] if isinstance(value, str) else value)
    return found


def _check_alike(numbers: pd.DataFrame, columns=("preset", "model", "budget")) -> None:
    """An error, with what differs, if these are runs that must not be averaged; published numbers
    are no runs."""
    ours = numbers[numbers["run_id"].notna()] if "run_id" in numbers else numbers[:0]
    for column in [column for column in columns if column in ours]:
        found = [text.split(", ") for text in ours[column].dropna().unique()]
        if len(found) > 1:
            same = set.intersection(*map(set, found))
            differ = [", ".join(part for part in each if part not in same) for each in found]
            raise SkillStackError(f"a table is of one {column}, got {' and '.join(differ)}")


def _ours(numbers: pd.DataFrame, who: str = "measured here", **where) -> pd.DataFrame:
    return numbers[_meant(numbers, where)].assign(who=who)


def _less(numbers: pd.DataFrame, same: Sequence[str], **where) -> pd.Series:
    """Each value minus that of the line `where` with the same values in the columns `same`."""
    those = numbers[_meant(numbers, where)].drop_duplicates(same)[[*same, "value"]]
    those = numbers[[*same]].merge(those, "left", [*same])["value"].set_axis(numbers.index)
    return numbers["value"] - those


def _in_order(numbers: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Lines in the order of `names`, and as they came for the same name."""
    rank = {name: i for i, name in enumerate(names)}
    return numbers.sort_values(column, key=lambda values: values.map(rank), kind="stable")


def _by_seed(numbers: pd.DataFrame, columns: Mapping, over: Sequence[str]) -> pd.DataFrame:
    """A line for every seed and, where there are several runs, one for the mean of the columns
    `over`. Index: who, seed."""
    tables, index = [], ["who", "seed"]
    for _, part in numbers.groupby("who", sort=False):
        tables.append(summary(part.assign(seed=part["seed"].astype(str)), index, columns))
        if part["run_id"].nunique() > 1:
            means = {heading: columns[heading] for heading in over}
            means = summary(part.assign(line="mean"), ["who", "line"], means)
            tables.append(means.rename_axis(index))
    corner = next((table.columns.name for table in tables if table.columns.name), None)
    return pd.concat(tables).fillna("").rename_axis(columns=corner)


# ---------------------------------------------------------------------- the tables


def per_task(metrics: pd.DataFrame) -> pd.DataFrame:
    """One run's accuracy (fractions) per task, in stream order, for `plotting.task_bars`."""
    metrics = metrics[metrics["eval_task"].ne("")].assign(unit="")
    last = {"metric": "accuracy", "trained_through": metrics["eval_task"].unique()[-1:]}
    columns = {"latest adapter": last, "saved frame": "saved", "routed stack": "routed"}
    return summary(metrics, ["eval_task"], columns | {"chance": "chance"}, number)


def beside_published(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The published table's columns, in percent and percentage points: our runs first, a line
    each. Index: who, model, seed.

    metrics: of any runs; those of stacks on this preset are shown.
    """
    columns = {heading: metric for metric, heading in PUBLISHED_COLUMNS.items()}
    ours = _ours(metrics, preset=preset, method="stack", eval_task="")
    runs = [run for _, run in ours.groupby(["model", "seed", "run_id"])]
    runs = [
        *(run.assign(seed=run["seed"].astype(str)) for run in runs),
        published(f"{preset}_table"),
    ]
    tables = [summary(run, ["who", "model", "seed"], columns, number) for run in runs]
    return pd.concat(tables).astype(float)


def router_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """All routers of notebook 03, best first: mean and range over seeds; `against hybrid_svm` is
    paired: the differences of the same seeds."""
    columns = {
        "right frame, all texts": "router_accuracy",
        "right frame, mean over tasks": "router_accuracy_macro",
        "right answer": "routed",
        "ECE": "ece",
        "against hybrid_svm": "gain",
    }
    ours = metrics[metrics["eval_task"].eq("") & metrics["router"].ne("")]
    right = ours[ours["metric"].eq("router_accuracy")]
    gain = right.assign(metric="gain", value=_less(right, ["seed"], router="hybrid_svm"))
    ours = _in_order(pd.concat([ours, gain]), "router", _best_first(right))
    return summary(ours, ["router"], columns)


def _best_first(numbers: pd.DataFrame) -> pd.Index:
    return numbers.groupby("router")["value"].mean().sort_values(ascending=False).index


_PUBLISHED_PROBES = {  # section and metric -> input
    ("not_proven_domain", "router_accuracy"): "normal",
    ("not_proven_domain", "router_accuracy_confused"): "rewritten",
    ("not_proven_domain", "router_accuracy_heldout"): "rewritten, held out",
    ("not_proven_keywords", "router_accuracy_confused"): "keywords",
    ("not_proven_keywords", "router_accuracy_heldout"): "keywords, held out",
    ("not_proven_keywords", "keyword_trap_rate"): "trap rate",
}


def probe_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The published probes of the router above those of notebook 07, best first, in percent of
    right frames: mean and range over seeds. Index: who, router. Columns: the inputs, and the
    keyword-trap rate (how often the keywords' own frame is picked)."""
    theirs = published(["not_proven_domain", "not_proven_keywords"])
    theirs["metric"] = theirs.set_index(["section", "metric"]).index.map(_PUBLISHED_PROBES)
    router = theirs["router"].replace("original", "hybrid_chain")
    theirs["router"] = router.str.replace("_augmented", " augmented")
    ours = _ours(metrics, metric=["router_accuracy", "trap_rate"])
    ours = ours[ours["split"].str.startswith("as streamed: ")]
    asked, trap = ours["split"].str.removeprefix("as streamed: "), ours["metric"].eq("trap_rate")
    ours["metric"] = asked.mask(trap, asked.str.replace("keywords", "trap rate"))
    ours = _in_order(ours, "router", _best_first(ours[ours["metric"].eq("normal")]))
    columns = [*_PUBLISHED_PROBES.values(), "trap rate, held out"]
    numbers = pd.concat([theirs, ours])
    return summary(numbers, ["who", "router"], dict(zip(columns, columns, strict=True)))


def baseline_table(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """All methods of notebook 04 above the published ones: mean ± standard deviation over seeds.

    Index: who, method. Columns: final accuracy with the task given and with the router's (percent);
    BWT, forgetting and forward transfer (percentage points; the last against an independent
    adapter, mean over tasks but the first); what was trained, stored and spent; two paired
    differences from the routed stack, mean [95 % bootstrap interval] over all seeds and tasks.
    """
    columns = {
        "seeds": ({"who": "measured here"}, seeds),
        "task given (%)": "acc",
        "routed (%)": {"metric": "routed", "eval_task": ""},
        "BWT (pp)": "bwt",
        "forgetting (pp)": "forgetting",
        "FWT (pp)": "transfer",
        "trained (M)": ("trained_parameters", partial(mean, form="{:.2f}")),
        "stored (MB)": ("stored_bytes", mean),
        "learning (s)": ("learning_seconds", whole),
        "task given - routed stack (pp)": ("final, paired", bootstrapped),
        "routed - routed stack (pp)": ("routed, paired", bootstrapped),
    }
    ours = _in_order(_ours(metrics, method=METHODS), "method", METHODS)
    tasks = ours[ours["eval_task"].ne("") & ours["metric"].isin(["final", "routed"])]
    tasks = tasks.sort_values(["seed", "eval_task"], kind="stable")
    pairs = tasks.assign(metric=tasks["metric"] + ", paired")
    pairs["value"] = _less(tasks, ["seed", "eval_task"], method="frames", metric="routed")
    pairs = pairs[~_meant(pairs, {"method": "frames", "metric": "routed, paired"})]
    theirs = published([f"{preset}_ewc", f"{preset}_joint", "promising"])
    theirs = theirs[_meant(theirs, {"preset": preset, "metric": ["accuracy", "avg_forgetting"]})]
    name = theirs["model"].replace("", "Llama-3.2, four runs") + ", " + theirs["seed"]
    theirs["who"] += ": " + name.str.removesuffix(", ")
    theirs["value"] = theirs["value"].mask(theirs["metric"].eq("avg_forgetting"), lambda x: 0.0 - x)
    metric = theirs["metric"].map({"accuracy": "acc", "avg_forgetting": "bwt"})
    theirs["metric"] = metric.mask(theirs["method"].eq("routed"), "routed")
    # The published joint run has several heads too.
    names = {"latest": "sequential", "stack": "frames", "routed": "frames"}
    theirs = theirs.assign(method=theirs["method"].replace(names), eval_task="")
    numbers = pd.concat([ours, pairs.dropna(subset="value"), _transfer(ours), theirs])
    return summary(numbers, ["who", "method"], columns, spread)


def _transfer(numbers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy right after learning minus an independent adapter's, mean over tasks but the first.
    What learned all at once has a last row only, and nothing to compare."""
    learned = numbers[numbers["metric"].eq("accuracy")]
    learned = learned[learned["trained_through"].eq(learned["eval_task"])]
    tasks, by = learned["eval_task"].unique(), ["who", "method", "seed", "unit"]
    every = learned.groupby(by)["value"].transform("size").eq(len(tasks))
    gain = learned.assign(value=_less(learned, ["seed", "eval_task"], method="independent"))
    gain = gain[every & gain["eval_task"].isin(tasks[1:])].dropna(subset="value")
    return gain.groupby(by, as_index=False)["value"].mean().assign(metric="transfer")


def order_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Other streams of notebook 04 above the published ones: mean ± standard deviation over seeds.
    Index: who, stream, method; the order probe (`hard5` forward and reversed), then orders 1 to 3
    of the standard benchmark and, of methods that were run on all three, their mean.

    metrics: of one model, any presets; the probe and the orders may have a budget each.
    """
    orders = [f"standard4_order{i}" for i in (1, 2, 3)]
    probe, over_orders = ["hard5", "hard5_reversed"], "standard4, mean of the orders"
    ours = _ours(metrics, eval_task="", preset=[*probe, *orders], metric=["acc", "routed"])
    if not len(ours):
        return pd.DataFrame()
    _check_alike(ours, ["model"])
    for streams in (probe, orders):
        _check_alike(_ours(ours, preset=streams), ["budget"])
    standard = _ours(ours, preset=orders)
    standard = standard[standard.groupby("method")["preset"].transform("nunique").eq(3)]
    by = ["who", "method", "seed", "metric", "unit"]
    means = standard.groupby(by, as_index=False)["value"].mean().assign(stream=over_orders)
    runs = ours.rename(columns={"preset": "stream"}).drop(columns="budget", errors="ignore")
    papers, theirs = published("standard_benchmark"), published("not_proven_order")
    papers["who"] += ", " + papers["model"] + ": " + papers["source"].str.partition(",")[0]
    papers = papers.assign(stream=over_orders, metric="acc").sort_values(["who", "method"])
    streams = {"routed_forward": "hard5", "routed_reverse": "hard5_reversed"}
    theirs = theirs[theirs["metric"].eq("accuracy")].assign(who="published, Llama-3.2-1B")
    theirs = theirs.assign(stream=theirs["method"].map(streams), method="frames", metric="routed")
    numbers = pd.concat([runs, means, papers, theirs])
    numbers = _in_order(numbers, "stream", [*probe, *orders, over_orders])
    columns = {"seeds": ({"who": "measured here"}, seeds)}
    columns |= {"task given (%)": "acc", "routed (%)": "routed"}
    table = summary(numbers, ["who", "stream", "method"], columns, spread)
    two = table.index.get_level_values("who") == "published, Llama-3.2-1B"  # a mean of two seeds
    return table.assign(seeds=table["seeds"].mask(two, "2"))


def bitstack_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The methods of notebook 05 above the published ones: mean and range over seeds. Index: who,
    method. Columns: points lost on earlier tasks (the publication's forgetting), forgetting after
    Chaudhry et al., accuracy right after learning and at the end, share locked at the end, bytes.
    """
    columns = {
        "seeds": ("acc", seeds),
        "points lost": "final_drop",
        "forgetting (pp)": "forgetting",
        "learned (%)": "learned",
        "at the end (%)": "acc",
        "first task at the end (%)": "first_task",
        "locked (% of all)": "locked_pct",
        "stored beside heads (MB)": "stored_bytes",
    }
    last = metrics[metrics["metric"].eq("locked_pct")].groupby("run_id", sort=False).tail(1)
    ours = _ours(pd.concat([_ours(metrics, eval_task="", trained_through=""), last]))
    theirs = _published_shares(metrics)
    names = {"accuracy_final": "first_task", "locked_share": "locked_pct"}
    theirs = theirs.replace({"metric": names}).assign(who="published: " + theirs["model"])
    return summary(pd.concat([ours, theirs]), ["who", "method"], columns).sort_index(kind="stable")


def _published_shares(metrics: pd.DataFrame) -> pd.DataFrame:
    theirs = published("results_table").replace({"metric": {"avg_forgetting": "final_drop"}})
    return theirs[theirs["preset"].isin(metrics["preset"])]


def share_curve(metrics: pd.DataFrame) -> pd.DataFrame:
    """Points lost and accuracy learned against BitStack's share, for `plotting.curves`.

    metrics: as for `bitstack_table`. Columns: line (its label), share, metric (``drop`` or
    ``learned``), percent: a line per seed, and the published one.
    """
    _check_alike(metrics)
    ours, theirs = _ours(metrics, eval_task=""), _published_shares(metrics)
    ours = ours[ours["method"].str.match(r"baseline$|bitstack_")]
    ours = ours.assign(line="seed " + ours["seed"].astype(str), value=100 * ours["value"])
    # Seeds first, so that a seed has the same colour in figures with and without published lines.
    both = [ours.sort_values("line"), theirs.assign(line="published, " + theirs["model"])]
    both = pd.concat(both)
    names = {"final_drop": "drop", "learned": "learned"}
    both = both.assign(metric=both["metric"].map(names), percent=both["value"])
    both["share"] = both["method"].str.extract(r"_([\d.]+)")[0].astype(float).fillna(0.0)
    curve = both.dropna(subset="metric").sort_values("share")[
        ["line", "share", "metric", "percent"]
    ]
    return _in_order(curve, "line", both["line"].unique()).reset_index(drop=True)


def _variants(metrics: pd.DataFrame) -> pd.DataFrame:
    """The numbers of every stack that notebook 06 saved, and of each what the full stack has
    (``full_``), the difference from it (``_less``) and that as a fraction of it (``_relative``);
    ``worst`` is the largest loss of one task."""
    saved = metrics.loc[metrics["metric"].eq("total_bytes"), "split"]
    found = metrics[metrics["split"].isin(saved)]
    less = found.assign(value=_less(found, ["seed", "metric", "eval_task"], split="full"))
    full = found.assign(metric="full_" + found["metric"], value=found["value"] - less["value"])
    relative = less.assign(value=less["value"] / full["value"], unit="fraction")
    worst = less[less["metric"].eq("routed") & less["eval_task"].ne("")].sort_values("value")
    worst = worst.drop_duplicates(["seed", "split"]).assign(metric="worst", eval_task="")
    less["metric"] += "_less"
    relative["metric"] += "_relative"
    return _ours(pd.concat([found, full, less, relative, worst]), eval_task="")


def compression_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Families on one anchor, published and measured by notebook 06, seed by seed; of the change
    also mean and range over seeds. Index: who, seed."""
    columns = {
        "frames": ("full_frames", whole),
        "routed, all frames (%)": "full_routed",
        "frames left": ("frames", whole),
        "routed, compressed (%)": "routed",
        "adapter bytes (%)": ("adapter_bytes_relative", signed),
        "change (pp)": ("routed_less", signed),
    }
    theirs = published("compression").replace(
        {"metric": {"n_frames": "frames", "accuracy": "routed"}}
    )
    changes = {"adapter_memory_change": "adapter_bytes_relative", "gain": "routed_less"}
    theirs = theirs.replace({"metric": changes}).assign(who="published, one anchor (sst2)")
    theirs["metric"] = theirs["method"].map({"full": "full_", "compressed": ""}) + theirs["metric"]
    names = {"published anchor": "one anchor (sst2)", "chosen anchor": "one anchor, chosen"}
    names |= {"rule: online": "the rule, online", "rule: at the end": "the rule, at the end"}
    ours = _in_order(_ours(_variants(metrics), split=names), "split", names)
    ours["who"] += ", " + ours["split"].map(names)
    return _by_seed(pd.concat([theirs, ours]), columns, ["change (pp)"])


def boundary_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What notebook 06 loses when one more frame is taken from the compressed stack, in points. A
    published cell gives seeds 42 and 123; ours are mean and range over seeds. "by position":
    answers compared by label id, so that a frame with other labels can be right by luck, which is
    how the published numbers read."""
    columns = {
        "published: lost, overall": ("published loss", listed),
        "published: lost, own rows": ("published accuracy_change", listed),
        "lost overall": "loss",
        "lost on its own rows": "task_loss",
        "lost overall, by position": "loss_by_id",
        "lost on its own rows, by position": "task_loss_by_id",
    }
    removed, theirs = "frame removed", published("boundary")
    ours = metrics[metrics["split"].str.startswith("anchor without ")]
    ours = ours.assign(**{removed: ours["split"].str.removeprefix("anchor without ")})
    theirs = theirs.assign(**{removed: theirs["method"].str.removeprefix("compressed_without_")})
    gained = theirs["metric"].eq("accuracy_change")
    theirs = theirs.assign(
        value=theirs["value"].mask(gained, -theirs["value"]), metric="published " + theirs["metric"]
    )
    numbers = pd.concat([ours, theirs[theirs[removed].isin(ours[removed])]])
    return summary(numbers, [removed], columns)


def shrink_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Every way of notebook 06 to shrink a stack, over seeds, as numbers for `shrink_cells` and
    figures: frames, adapters, bytes (share of the full stack's), routed, change (fractions; low
    and high: the range over seeds), worst (the largest loss of one task), seeds."""
    _check_alike(metrics)
    found = _variants(metrics)
    table = found.pivot_table(index="split", columns="metric", values="value", sort=False)
    change = found[found["metric"].eq("routed_less")].groupby("split")["value"]
    table = table.join(change.agg(low="min", high="max", seeds="size"))
    table["bytes"] = 1 + table["total_bytes_relative"]
    table[["low", "high"]] = table[["low", "high"]].where(table["seeds"] > 1)
    columns = ["frames", "adapters", "bytes", "routed", "change", "low", "high", "worst", "seeds"]
    table = table.rename(columns={"routed_less": "change"})[columns]
    return table.rename_axis(index="variant", columns=None)


def shrink_cells(table: pd.DataFrame) -> pd.DataFrame:
    """`shrink_table` as a reader wants it."""

    def percent(column: str, form: str = "{:+.1f}") -> pd.Series:
        return (100 * table[column]).map(form.format)

    change, over = percent("change"), table["seeds"].max()
    cells = {
        "frames": table["frames"].map("{:.1f}".format),
        "adapters": table["adapters"].map("{:.1f}".format),
        "bytes on disk (%)": percent("bytes", "{:.1f}"),
        "routed (%)": percent("routed", "{:.1f}"),
        "change (pp)": change.where(
            table["low"].isna(), change + " [" + percent("low") + ", " + percent("high") + "]"
        ),
        "worst task (pp)": percent("worst"),
    }
    return pd.DataFrame(cells).rename_axis(columns=_RANGE.format(over) if over > 1 else None)


def generative_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Written answers, published and measured by notebook 08, seed by seed, and mean and range over
    seeds. Index: who, seed."""
    names, drop = ("latest adapter", "own frame", "routed stack"), "saved frames' drop (pp)"
    columns = {name: {"metric": "mean_written", "split": name} for name in names}
    columns |= {
        drop: "drop",
        "unreadable, own frame": {"metric": "mean_unreadable", "split": "own frame"},
        "router accuracy": "mean_router_accuracy",
    }
    theirs = published("generative").assign(seed="2 seeds")
    theirs["split"] = theirs["method"].map({"latest": names[0], "routed": names[2]})
    shown = {"accuracy": "mean_written", "avg_forgetting": "drop"}
    shown |= {"router_accuracy": "mean_router_accuracy"}
    theirs["metric"] = theirs["metric"].map(shown)
    ours = _ours(metrics, metric=["accuracy", "choice"])
    lost = ours.assign(value=_less(ours, ["seed", "eval_task"], metric="choice"), metric="drop")
    lost = lost[lost["trained_through"].eq(lost["eval_task"])]
    numbers = pd.concat([theirs, _ours(metrics), lost])
    return _by_seed(numbers, columns, [heading for heading in columns if heading != drop])


def written_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Written answers of notebook 08 per task in percent, mean over seeds: chance, latest adapter,
    own frame and the lower 95 % limits of each seed (bootstrap over its rows), routed stack, router
    accuracy."""
    columns = {
        "chance": "chance",
        "latest adapter": {"metric": "written", "split": "latest adapter"},
        "own frame": {"metric": "written", "split": "own frame"},
        "own frame, lower limits": ({"metric": "written_low", "split": "own frame"}, listed),
        "routed stack": {"metric": "written", "split": "routed stack"},
        "router accuracy": "router_accuracy",
    }
    numbers = metrics[metrics["eval_task"].ne("")]
    return summary(numbers, ["eval_task"], columns, mean).rename_axis("task")


def memory_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What examples in the prompt change in notebook 08: right answers in percent with nothing
    shown, then differences from that in points. Per task the mean over seeds; the mean over tasks
    with its 95 % bootstrap interval over seeds and tasks. Index: who, shown."""

    def written(how: Callable) -> Callable:
        forms = {"nothing": "{:.1f}"}  # else a difference, +0.0 where it is none
        return lambda cell: how(cell, forms.get(cell["shown"].iloc[0], "{:+z.1f}"))

    part = metrics[metrics["metric"].eq("memory")]
    part = part.assign(**part["split"].str.extract("(?P<who>.*): (?P<shown>.*)"))
    gain = _less(part, ["who", "seed", "eval_task"], shown="nothing")
    numbers = part.assign(value=part["value"].where(part["shown"].eq("nothing"), gain))
    columns = {task: ({"eval_task": task}, written(mean)) for task in part["eval_task"].unique()}
    return summary(numbers, ["who", "shown"], columns | {"mean": ("memory", written(bootstrapped))})


def generalization_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Unseen texts, published and measured by notebook 09: right answers and the routed stack's
    gain, seed by seed, and mean and range over seeds. Index: who, seed."""
    gain, theirs = "routed - latest (pp)", published("generalization")
    names = {"latest": "latest adapter", "routed": "routed stack"}
    names |= {"best_single_frame": "best single frame", "oracle": "oracle", "gain": gain}
    theirs = theirs[theirs["metric"].eq("accuracy")].assign(split=theirs["method"].map(names))
    groups = {"mean_all": "all tasks", "mean_seen": "seen tasks", "mean_unseen": "unseen tasks"}
    ours = _in_order(_ours(metrics, metric=groups), "metric", groups)
    ours["who"] += ", " + ours["metric"].map(groups)
    numbers = pd.concat([theirs, ours])
    gained = numbers.assign(value=_less(numbers, ["who", "seed"], split="latest adapter"))
    gained = gained[gained["split"].eq("routed stack")].assign(split=gain)
    columns = {name: {"split": name} for name in names.values()}
    return _by_seed(pd.concat([numbers, gained]), columns, list(columns))


# ---------------------------------------------------------------------- README and command line

_M, _S, _NF4 = "minilm", "smollm2-135m", "smollm2-135m nf4"
README_TABLES = {  # name -> notebook, preset, model or models, what is made of these runs
    "hard8": ("01_train_stack", "hard8", _M, partial(beside_published, preset="hard8")),
    "hard12": ("02_hard12", "hard12", _M, partial(beside_published, preset="hard12")),
    "mini4": ("01_train_stack", "mini4", [_S, _NF4], partial(beside_published, preset="mini4")),
    "routers_hard8": ("03_routers", "hard8", _M, router_table),
    "routers_hard12": ("03_routers", "hard12", _M, router_table),
    "baselines_hard8": ("04_baselines", "hard8", _M, partial(baseline_table, preset="hard8")),
    "orders": ("04_baselines", None, _M, order_table),
    "bitstack_bitstack5": ("05_bitstack", "bitstack5", _M, bitstack_table),
    "bitstack_two_task": ("05_bitstack", "two_task", _S, bitstack_table),
    "compression_mixed8": ("06_compression", "mixed8", _M, compression_table),
    "boundary_mixed8": ("06_compression", "mixed8", _M, boundary_table),
    "shrink_mixed8": ("06_compression", "mixed8", _M, lambda m: shrink_cells(shrink_table(m))),
    "probe_hard12": ("07_domain_confusion", "hard12", _M, probe_table),
    "generative_gen_mixed5": ("08_generative_probe", "gen_mixed5", _S, generative_table),
    "written_gen_mixed5": ("08_generative_probe", "gen_mixed5", _S, written_table),
    "memory_gen_mixed5": ("08_generative_probe", "gen_mixed5", _S, memory_table),
    "generalization_mixed8": ("09_skill_generalization", "mixed8", _M, generalization_table),
}


def readme_runs(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `load_runs` that a table of the README is made of."""
    notebook, preset, model, _ = README_TABLES[checked_name(name, README_TABLES, "table")]
    where = {"notebook": notebook, "model": model} | ({"preset": preset} if preset else {})
    return runs[_meant(runs, where)]


def readme_table(name: str, runs: pd.DataFrame) -> str:
    """A table of the README as Markdown; below it the runs it is of, and what is in brackets."""
    found = readme_runs(name, runs)
    table = README_TABLES[name][-1](found)
    caption = [found["notebook"].iloc[0], ", ".join(sorted(found["model"].unique()))]
    over = sorted(found["seed"].unique())
    caption += [f"seed{'s' * (len(over) > 1)} {', '.join(map(str, over))}"]
    caption += [table.columns.name] if table.columns.name else []
    table = table.reset_index()
    digits = [2 if "depth" in column else 1 for column in table]
    cells = [list(map(_cell, row, digits)) for row in table.to_numpy()]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n*{'; '.join(caption)}*"


def _cell(value, digits: int) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{digits}f}"
    return str(value)


def readme(text: str, runs: pd.DataFrame) -> str:
    """The text with every block ``<!-- table: NAME -->`` … ``<!-- end -->`` filled anew."""

    def fill(found: re.Match) -> str:
        return f"<!-- table: {found[1]} -->\n{readme_table(found[1], runs)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def show(folder: Path) -> str:
    """The result table of every finished run below a folder, and where its files are."""
    lines = []
    for path in sorted(folder.glob("**/run.json")):
        if read_facts(path.parent)["status"] != "finished":
            continue
        metrics = read_metrics(path.parent / "metrics.csv")
        table = beside_published(metrics, metrics["preset"].iloc[0])
        shown = [table.T.round(2).to_string(na_rep="-")] if len(table) else []
        lines += [path.parent.name, *shown, ""]
        figures = sorted(path.parent.glob("*.png"))
        lines += [f"results   {path.parent}", *(f"figure    {figure}" for figure in figures), ""]
    return "\n".join(lines) if lines else f"no finished run below {folder}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python results/report.py")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="print the result tables below a folder")
    command.add_argument("folder", type=Path)
    commands.add_parser("readme", help="fill the README from the committed runs")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "show":
            print(show(arguments.folder))
        else:
            path, runs = repo_root() / "README.md", load_runs()
            write_atomic(path, readme(path.read_text(encoding="utf-8"), runs))
            figure = plotting.task_bars(per_task(readme_runs("hard8", runs))).figure
            figure.savefig(repo_root() / "docs" / "hard8.png", dpi=120)
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
