"""Who notices that nothing fits: notebook 10."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn
from skillstack_helpers.lab.names import name, style
from skillstack_helpers.lab.parameters import ALPHA
from skillstack_helpers.lab.runs import Run

from .base import (
    Figure,
    Table,
    ends_said,
    files,
    first_run,
    in_order,
    measured,
    published,
    seeds_of,
    spread,
    summary,
)

POLICIES = {
    "loop": "the loop",
    "tolerant": "the loop, 5 points allowed",
    "create": "always create",
    "reuse": "always reuse",
    "oracle": "oracle",
}
KINDS = {True: "near", False: "far"}
RULES = {"softmax": "the largest softmax", "entropy": "the entropy", "margin": "the margin"}
_NOTE = "near: another known task has the same labels, so that its frame could be reused"

# ---------------------------------------------------------------------- tables


def scores_table(run: Run) -> pd.DataFrame:
    """Every score on single texts, a task left out at a time; means over tasks and seeds, percent.
    Index: score. Columns: AUROC and FPR95 far and near, what is called novel at the limits."""
    found = files(run, "left_out.csv")
    columns = {}
    for near, kind in sorted(KINDS.items()):
        mine = found[found["near"].eq(near)].groupby("score", sort=False)
        if len(mine):
            columns[f"AUROC, {kind} (%)"] = 100 * mine["auroc"].mean()
            columns[f"FPR95, {kind} (%)"] = 100 * mine["fpr95"].mean()
            columns[f"{kind} texts called novel (%)"] = 100 * mine["detected"].mean()
    known = found.groupby("score", sort=False)["false_novel"].mean()
    columns["known texts called novel (%)"] = 100 * known
    table = pd.DataFrame(columns).map("{:.1f}".format)
    table.columns.name = _NOTE
    return table


def drift_table(run: Run) -> pd.DataFrame:
    """How many texts of earlier tasks a router sends elsewhere because a task was added; means over
    steps and seeds, percent. Index: router."""
    found = files(run, "drift.csv")
    weighted = found[["moved", "moved_right"]].mul(found["n"], axis=0).assign(
        n=found["n"], router=found["router"]
    )  # fmt: skip
    sums = weighted.groupby("router", sort=False).sum()
    table = 100 * sums[["moved", "moved_right"]].div(sums["n"], axis=0)
    names = {"moved": "sent elsewhere (%)", "moved_right": "of these rightly before (%)"}
    return table.rename(columns=names).map("{:.2f}".format)


def steps_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Steps A and B of the adaptive learner, measured and published: mean ± standard deviation over
    seeds. Index: who, method."""
    steps = ["independent", "ewc_replay", "sequential", "generative_replay"]
    ours = in_order(measured(metrics, method=steps), "method", steps)
    theirs = published(["step_b_v4", "step_a_retry"])
    names = {"single_lora_reuse": "ewc_replay", "new_lora_per_task": "independent"}
    theirs = theirs.assign(method=theirs["method"].map(names), eval_task="", unit="fraction")
    theirs["metric"] = theirs["metric"].replace("avg_acc", "acc")
    theirs["who"] += ": Gemma-2B"
    columns = {name("acc"): {"metric": "acc", "eval_task": ""}}
    columns[name("bwt")] = {"metric": "bwt", "eval_task": ""}
    return summary(pd.concat([ours, theirs]), ["who", "method"], columns, spread)


def loops_table(run: Run) -> pd.DataFrame:
    """Every policy on every stream, means over tasks and seeds. Index: stream, policy."""
    found = files(run, "loops.csv")
    found["policy"] = found["policy"].map(POLICIES)
    by = found.groupby(["stream", "policy"], sort=False)
    table = 100 * by[["accuracy", "unanswered"]].mean()
    streams = list(dict.fromkeys(found["stream"]))
    order = [(s, p) for s in streams for p in POLICIES.values() if (s, p) in table.index]
    table = table.loc[order]
    table["frames"], table["MB"] = by["frames"].mean(), by["bytes"].mean() / 1e6
    best = table["accuracy"].xs(POLICIES["oracle"], level="policy")
    table["regret"] = table.index.get_level_values("stream").map(best) - table["accuracy"]
    names = {"accuracy": "correct (%)", "unanswered": "not answered (%)", "regret": "regret (pp)"}
    return table.rename(columns=names).map("{:.1f}".format)


def scope_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Texts that no task owns, and tasks left out in turn, and what was published; means
    over seeds, percent. Index: who, score."""
    columns = {
        "out of scope: noticed where 95 % in scope pass (%)": "oos_recall",
        "out of scope: AUROC (%)": "oos_auroc",
        "a task left out: AUROC (%)": "auroc",
        "known texts called novel (%)": "false_novel",
    }
    scores = metrics.loc[metrics["metric"].eq("oos_recall"), "split"].unique()
    ours = measured(metrics[metrics["split"].isin(scores)]).rename(columns={"split": "score"})
    theirs = published("out_of_scope").rename(columns={"method": "score"})
    theirs["who"] += ": " + theirs["model"] + ", fine-tuned on all intents"
    return summary(pd.concat([ours, theirs]), ["who", "score"], columns)


def odd_table(run: Run) -> pd.DataFrame:
    """What the loop decides about odd batches, of this run's seed. Index: batch."""
    return run.read("odd.csv").fillna("").set_index("batch")


# ---------------------------------------------------------------------- figures


def most_confident(frames: int) -> float:
    """The largest softmax over cosines in [-1, 1] that a router of so many profiles can have: one
    of 1, all others -1.

    >>> round(most_confident(2), 2), most_confident(13) < 0.4 < most_confident(12)
    (0.88, True)
    """
    return float(1 / (1 + (frames - 1) * np.exp(-2)))


def slide(run: Run) -> Drawn:
    """Softmax confidence and the p-value's false alarms against the number of known tasks."""
    found = files(run, "slide.csv")
    over = found.groupby("size")[["confidence", "reused", "false_novel"]]
    mean, low, high = (100 * part for part in (over.mean(), over.min(), over.max()))
    left, right = plotting.panels(1, 2, plotting.WIDEST, 3.8)
    words = "tasks in the pool"

    def lines(column: str, label: str) -> pd.DataFrame:
        ends = {"percent": mean[column], "low": low[column], "high": high[column]}
        return pd.DataFrame(ends).reset_index().assign(what=label)

    table = lines("confidence", "largest softmax over cosines")
    bound = 100 * table["size"].map(most_confident)
    most = table.assign(percent=bound, low=bound, high=bound, what="most it could ever be")
    how = {"by": "what", "xscale": "log", "legend": False}
    plotting.curves(pd.concat([table, most]), "size", "percent", words, "confidence (%)", left,
                    title="The published confidence", **how)  # fmt: skip
    left.lines[1].set_linestyle("--")
    left.axhline(40, color="black", ls=":", label="reuse above it, as published")
    left.set_ylim(0, 100)
    novel = lines("false_novel", "known texts called novel")
    plotting.curves(novel, "size", "percent", words, "known texts called novel (%)", right,
                    title="The conformal p-value", **how)  # fmt: skip
    right.axhline(100 * ALPHA, color="grey", ls="-.", label=f"α = {ALPHA:g}, asked for")
    right.set_ylim(0, 10)
    for ax in (left, right):
        ax.legend(loc="upper right", fontsize=plotting.SMALL)
    sizes = mean.index
    last = mean["reused"].gt(0).pipe(lambda s: s.index[s].max()) if mean["reused"].any() else None
    answer = f"The published confidence falls from {mean['confidence'].iloc[0]:.0f} % with "
    answer += f"{sizes[0]} tasks to {mean['confidence'].iloc[-1]:.0f} % with {sizes[-1]}; "
    answer += f"beyond {last} no text passes 40 %. " if last else "no text passes 40 %. "
    answer += f"The p-value calls at most {mean['false_novel'].max():.1f} % of known texts novel."
    alt = "Two panels against the number of tasks: softmax confidence falling below the dotted "
    alt += "threshold, with the most it could be, dashed; and the share of known texts that the "
    alt += "p-value calls novel, below the level asked for."
    look = "Left, a softmax over cosines must fall with every profile: dashed, the most that any "
    look += "profiles could give. Right, the share of known texts that are called novel at "
    look += f"α = {ALPHA:g}." + ends_said(found, "Bands")
    return Drawn(left.figure, answer, alt, look, seeds_of(found))


def thresholds(run: Run) -> Drawn:
    """Thresholds on the published confidence that stay and that adapt, beside the p-value."""
    found = files(run, "slide.csv")
    mean = 100 * found.groupby("size").mean()
    words = "tasks in the pool"
    panels = {
        "fixed": ("Set with the first tasks, and kept", "known texts called novel (%)"),
        "adapted": ("Set anew at every size", "known texts called novel (%)"),
        "detected": ("Set anew: what it finds", "unknown texts called novel (%)"),
    }
    axes = plotting.panels(1, 3, plotting.WIDEST, 3.8)
    for ax, (which, (title, ylabel)) in zip(axes, panels.items(), strict=True):
        lines = {said: mean[f"{rule}_{which}"] for rule, said in RULES.items()}
        lines["p-value"] = mean["detected" if which == "detected" else "false_novel"]
        table = pd.concat(
            pd.DataFrame({"size": mean.index, "percent": each.to_numpy(), "what": what})
            for what, each in lines.items()
        ).dropna()
        how = {"by": "what", "xscale": "log", "legend": False, "title": title}
        plotting.curves(table, "size", "percent", words, ylabel, ax, **how)
        if which != "detected":
            ax.axhline(100 * ALPHA, color="black", ls=":", label="α, what was asked for")
        ax.set_ylim(-3, 103)
    plotting.legend_below(axes)
    last = mean.index[-1]
    rest = mean["detected"].dropna().index[-1]
    best = max(RULES, key=lambda rule: mean.loc[rest, f"{rule}_detected"])
    answer = f"Kept as set with {mean.index[0]} tasks, a threshold on the largest softmax calls "
    answer += f"{mean.loc[last, 'softmax_fixed']:.0f} % of known texts novel with {last} tasks; "
    answer += f"set anew, {mean.loc[last, 'softmax_adapted']:.1f} %. With {rest} tasks "
    answer += f"{RULES[best]} then finds {mean.loc[rest, f'{best}_detected']:.0f} % of the texts "
    answer += f"of unknown tasks, the p-value {mean.loc[rest, 'detected']:.0f} %."
    alt = "Three panels against the number of tasks: false alarms of thresholds that are kept, "
    alt += "false alarms of thresholds that adapt, and what the latter detect."
    look = "Left, a kept threshold breaks as the pool grows; middle, one that adapts does not. "
    look += "Right, the share of texts of parts outside the pool that is found; a part with the "
    look += "same task in the pool counts as unknown too. Means over seeds."
    return Drawn(axes[0].figure, answer, alt, look, seeds_of(found))


def left_out(run: Run) -> Drawn:
    """AUROC of every score on texts of a task that was left out, far and near."""
    found = files(run, "left_out.csv").assign(kind=lambda t: t["near"].map(KINDS))
    mean = found.groupby(["score", "kind"])["auroc"].mean().unstack()
    per = found.groupby(["score", "kind", "task"])["auroc"].mean()
    low, high = (per.groupby(["score", "kind"]).agg(end).unstack() for end in ("min", "max"))
    order = mean["far" if "far" in mean else "near"].sort_values(ascending=False).index
    mean, low, high = (part.loc[order] for part in (mean, low, high))
    ax = plotting.dots(mean, "AUROC (%), mean over tasks left out", None,
                       "Who tells texts of an unknown task from known ones", low, high)  # fmt: skip
    ax.axvline(50, color="grey", lw=1, ls=":")
    best = order[0]
    answer = (
        f"On single texts of far tasks {best} tells best ({100 * mean.loc[best].iloc[0]:.0f} % "
    )
    answer += "AUROC"
    if "near" in mean:
        answer += f"; of near ones {100 * mean.loc[best, 'near']:.0f} %, which is no better than "
        answer += "guessing" if mean.loc[best, "near"] < 0.55 else "which is more than guessing"
    answer += ")."
    alt = "A line for each score with marks for far and near tasks and the range over tasks."
    look = "Far: no known task has these labels. Near: one has, so that calling a text known is no "
    look += "mistake. Bars: lowest and highest task. Dotted: guessing."
    return Drawn(ax, answer, alt, look, seeds_of(found))


def groups(run: Run) -> Drawn:
    """How often several texts of a task are called novel, with it known and unknown."""
    found = files(run, "groups.csv").assign(kind=lambda t: t["near"].map(KINDS))
    tests = list(found["test"].unique())
    axes = plotting.panels(1, len(tests), plotting.WIDEST, 3.6, sharey=True)
    detected = found.groupby(["test", "kind", "texts"])["detected"].mean()
    known = found.groupby(["test", "texts"])["false_novel"].mean()
    for ax, test in zip(axes, tests, strict=True):
        rows = [
            *((n, 100 * v, f"unknown, {kind}") for (kind, n), v in detected[test].items()),
            *((n, 100 * v, "known") for n, v in known[test].items()),
        ]
        table = pd.DataFrame(rows, columns=["texts", "percent", "what"])
        how = {"by": "what", "xscale": "log", "legend": False}
        plotting.curves(table, "texts", "percent", "texts at once", "groups called novel (%)", ax,
                        title=test, **how)  # fmt: skip
        ax.axhline(100 * ALPHA, color="black", ls=":", label="α, what was asked for")
        ax.set_ylim(-3, 103)
    for ax in axes[1:]:
        ax.set_ylabel("")
    plotting.legend_below(axes)
    sizes = sorted(found["texts"].unique())
    size = 16 if 16 in sizes else sizes[-1]
    kind = "far" if "far" in detected["together"].index else "near"
    answer = f"{size} texts of a {kind} task together are called novel in "
    answer += f"{100 * detected['together', kind, size]:.1f} % of draws, of a known one in "
    answer += f"{100 * known['together', size]:.1f} %."
    alt = "A panel a test: the share of groups called novel against the number of texts."
    look = "Known must stay below the dotted line; unknown should rise. Means over tasks."
    figure = plotting.over_all(axes, "Several texts of one task, tested together")
    return Drawn(figure, answer, alt, look, seeds_of(found))


def price(run: Run) -> Drawn:
    """Routing drift against accuracy of every router: what it costs that answers never change."""
    found = files(run, "drift.csv")
    seeds = seeds_of(found)
    moved = 100 * found.assign(w=found["moved"] * found["n"]).groupby(["router", "seed"]).pipe(
        lambda by: by["w"].sum() / by["n"].sum()
    )  # fmt: skip
    last = found[found["tasks"].eq(found["tasks"].max())]
    right = 100 * last.set_index(["router", "seed"])["right"]
    ax = plotting.panels(1, 1, plotting.WIDEST, 4.2)[0]
    order = list(found["router"].unique())
    ends = pd.DataFrame({"x": moved, "y": right})
    mean, low, high = (getattr(ends.groupby("router"), end)() for end in ("mean", "min", "max"))
    for one in plotting.styles(order):
        x, y = mean.loc[one["label"]]
        bar = {"color": one["color"], "lw": 1.6, "zorder": 1}
        ax.hlines(y, low["x"][one["label"]], high["x"][one["label"]], **bar)
        ax.vlines(x, low["y"][one["label"]], high["y"][one["label"]], **bar)
        ax.plot(x, y, linestyle="none", markersize=9, **one, **plotting.EDGE)
    ax.set_xlabel("texts sent elsewhere when a task is added (%)")
    ax.set_ylabel("texts sent to their own frame, all tasks known (%)")
    ax.grid(alpha=0.3)
    ax.margins(0.1)
    ax.legend(**plotting.BESIDE)
    plotting.titled(ax, "What stable answers cost")
    first, free = mean.loc["gate, root first"], mean.loc["gate"]
    best = mean["y"].drop(["gate", "gate, root first"]).idxmax()
    answer = f"With the oldest frame first {first['x']:.1f} % of the texts move when a task is "
    answer += f"added, and {first['y']:.1f} % end at their own frame; of the same router without "
    answer += f"that rule {free['x']:.1f} and {free['y']:.1f} %, of {best} {mean['x'][best]:.1f} "
    answer += f"and {mean['y'][best]:.1f} %."
    alt = "A mark a router: the share of texts that move against the share that is right."
    look = "Up and to the left is better. What moves with the oldest frame first is texts that no "
    look += "frame had accepted." + ends_said(found)
    return Drawn(ax, answer, alt, look, seeds)


def bandit(run: Run) -> Drawn:
    """What a router learns that is told only whether its answer was right."""
    found = files(run, "bandit.csv")
    blocks = found.groupby(["block", "seed"])[["texts", "right"]].mean().groupby("block")
    mean, low, high = blocks.mean(), blocks["right"].min(), blocks["right"].max()
    table = pd.DataFrame(
        {"texts": mean["texts"], "percent": 100 * mean["right"], "low": 100 * low,
         "high": 100 * high, "what": "bandit, while it learns"}
    )  # fmt: skip
    ax = plotting.panels(1, 1, plotting.WIDEST, 3.8)[0]
    how = {"by": "what", "title": "Routing by feedback on answers alone", "legend": False}
    plotting.curves(table, "texts", "percent", "texts answered so far", "right answers (%)", ax,
                    **how)  # fmt: skip
    alike = run.alike()
    ends = alike[alike["method"].eq(run.method) & alike["metric"].eq("right_answers")]
    who = ends.groupby("split")["value"].mean()
    said = {"bandit": "bandit, afterwards", "gate": "gate", "told": "told the task",
            "any": "a frame at random"}  # fmt: skip
    for (key, label), line in zip(said.items(), ("--", "-.", ":", (0, (1, 4))), strict=True):
        color = plotting.styles(["", *said.values()])[list(said).index(key) + 1]["color"]
        ax.axhline(100 * who[key], color=color, ls=line, label=label)
    ax.legend(**plotting.BESIDE)
    answer = f"After {mean['texts'].iloc[-1]:.0f} texts, each answered and marked right or wrong, "
    answer += f"a bandit sends texts to frames that answer {100 * who['bandit']:.1f} % rightly; "
    answer += f"the gate, which read whose texts they are, {100 * who['gate']:.1f} %, and told the "
    answer += f"task {100 * who['told']:.1f} %."
    alt = "The share of right answers against the texts answered, with lines for the other ways."
    look = "Lines that lie flat are on the evaluation rows." + ends_said(found, "Band")
    return Drawn(ax, answer, alt, look, seeds_of(found))


def loops(run: Run) -> Drawn:
    """Accuracy against the frames that were created, a panel a stream."""
    found = files(run, "loops.csv")
    seeds = seeds_of(found)
    by = found.groupby(["stream", "policy", "seed"], sort=False)
    ends = by[["accuracy", "frames"]].mean().groupby(["stream", "policy"], sort=False)
    mean, low, high = ends.mean(), ends.min(), ends.max()
    streams = list(mean.index.get_level_values("stream").unique())
    axes = plotting.panels(1, len(streams), plotting.WIDEST, 3.6, sharey=True)
    sentences = []
    for ax, stream in zip(axes, streams, strict=True):
        for place, policy in enumerate(POLICIES):
            if (stream, policy) not in mean.index:
                continue
            at = mean.loc[(stream, policy)]
            how = style(POLICIES[policy], place)
            ax.plot(at["frames"], 100 * at["accuracy"], linestyle="none", markersize=9, **how)
            bars = [100 * part.loc[(stream, policy), "accuracy"] for part in (low, high)]
            ax.vlines(at["frames"], *bars, color=how["color"], lw=1.6)
        ax.set_xlabel("frames created")
        ax.grid(alpha=0.3)
        ax.margins(0.2)
        ax.set_xlim(mean.loc[stream, "frames"].min() - 1, mean.loc[stream, "frames"].max() + 1)
        plotting.titled(ax, stream)
        ax.xaxis.get_major_locator().set_params(integer=True)
        loop, best = (mean.loc[(stream, who)] for who in ("loop", "oracle"))
        sentences.append(
            f"{stream}: {loop['frames']:.1f} of {best['frames']:.0f} frames, "
            f"{100 * (best['accuracy'] - loop['accuracy']):.1f} points behind the oracle"
        )
    axes[0].set_ylabel("correct answers (%), told nothing")
    plotting.legend_below(axes)
    alt = "A panel a stream: correct answers against the number of frames created, a mark a policy."
    look = "Up and to the left is better. The oracle is told the task when it learns and answers."
    answer = "The loop, by stream: " + "; ".join(sentences) + "."
    return Drawn(axes[0].figure, answer, alt, look + ends_said(found), seeds)


def of_scope(run: Run) -> str:
    """What came out on texts that no task owns, a sentence; nothing where there are none."""
    recall = run.value("oos_recall", split="relative Mahalanobis")
    if np.isnan(recall):
        return ""
    best = run.metrics[run.metrics["metric"].eq("oos_recall")].sort_values("value").iloc[-1]
    return (
        f"Of texts out of scope, {100 * best['value']:.1f} % are noticed where 95 % of the texts "
        f"in scope pass ({best['split']}); by the p-value "
        f"{100 * run.value('oos_recall', split='p-value'):.1f} %."
    )


# ---------------------------------------------------------------------- what is committed

_NOTEBOOK, _FIRST = "10_reuse_or_create", 0.5


def _of_files(make: Callable[[Run], pd.DataFrame]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A table of a run's files, as one of the rows of `load_runs`."""
    return lambda found: make(first_run(found))


def _table(preset: str, make: Callable, *methods: str) -> Table:
    return Table(_NOTEBOOK, preset, "minilm", make, _FIRST, methods=methods)


def _figure(preset: str, draw: Callable, question: str, method: str) -> Figure:
    return Figure(_NOTEBOOK, preset, "minilm", draw, question, method, _FIRST)


TABLES = {
    "reuse_scores": _table("hard12", _of_files(scores_table), "novelty"),
    "reuse_drift": _table("hard12", _of_files(drift_table), "novelty"),
    "reuse_clinc10": _table("clinc10", scope_table, "novelty"),
    "reuse_loops": _table("mixed8", _of_files(loops_table), "loops"),
    "reuse_odd": _table("adaptive3", _of_files(odd_table), "frames"),
    "reuse_steps": _table("adaptive3", steps_table, "independent", "ewc_replay", "sequential"),
}
FIGURES = {
    "reuse_groups": _figure(
        "hard12", groups, "How many texts does it take to know that a task is new?", "novelty"
    ),
    "reuse_slide": _figure(
        "hard12", slide, "Why does the published confidence never say «reuse»?", "slide"
    ),
    "reuse_thresholds": _figure(
        "hard12", thresholds, "Do thresholds that adapt to the pool help?", "slide"
    ),
    "reuse_left_out": _figure(
        "hard12", left_out, "Which score tells a new task's texts from known ones?", "novelty"
    ),
    "reuse_price": _figure(
        "hard12", price, "What does it cost that an answer never changes?", "novelty"
    ),
    "reuse_loops": _figure(
        "mixed8", loops, "Can a learner that is told no task names save frames?", "loops"
    ),
    "reuse_bandit": _figure(
        "adaptive3", bandit, "Is it enough to be told that an answer was right?", "frames"
    ),
}
