"""Which router finds the frame, and what attacks do to it: notebooks 03 and 07."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, listed
from skillstack_helpers.lab.names import name, style
from skillstack_helpers.lab.runs import Run

from .base import (
    Figure,
    Table,
    crossed,
    ends_said,
    figures,
    files,
    in_order,
    measured,
    minus,
    published,
    seeds_of,
    signed,
    summary,
    with_ends,
)

DEFAULT, PLAIN = "hybrid_chain", "hybrid_svm"  # the walk, and the scores that it walks over
FEWEST = 10  # texts; shares of fewer are not drawn
LENGTHS = {"under 20": 0, "20 to 39": 20, "40 to 79": 40, "80 and more": 80}  # words, from

# ---------------------------------------------------------------------- tables


def router_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """All routers of notebook 03, best first: mean and range over seeds; the difference from
    `hybrid_svm` is paired: of the same seeds."""
    ours = _whole(metrics)
    right = ours[ours["metric"].eq("router_accuracy")]
    gain = right.assign(metric="gain", value=minus(right, ["seed"], router=PLAIN))
    ours = in_order(pd.concat([ours, gain]), "router", _best_first(right))
    shown = ["router_accuracy", "router_accuracy_macro", "routed_micro", "routed"]
    columns = {name(metric): metric for metric in [*shown, "stray_answered", "ece"]}
    columns[f"right frame, against {PLAIN} (pp)"] = ("gain", signed)
    return summary(ours, ["router"], columns)


def _whole(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics[metrics["eval_task"].eq("") & metrics["router"].ne("")]


def _best_first(numbers: pd.DataFrame) -> pd.Index:
    return numbers.groupby("router")["value"].mean().sort_values(ascending=False).index


_PUBLISHED_PROBES = {  # section and metric -> input
    ("not_proven_domain", "router_accuracy"): "normal",
    ("not_proven_domain", "router_accuracy_confused"): "rewritten",
    ("not_proven_domain", "router_accuracy_heldout"): "rewritten, held out",
    ("not_proven_keywords", "router_accuracy_confused"): "keywords",
    ("not_proven_keywords", "router_accuracy_heldout"): "keywords, held out",
    ("not_proven_keywords", "keyword_trap_rate"): name("trap_rate"),
}
INPUTS = [*_PUBLISHED_PROBES.values()][:-1]
ATTACKS = INPUTS[1:]


def probe_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The routers of notebook 07, best first, and the published probes, in percent of right
    frames: mean and range over seeds. Index: who, router. Columns: the inputs, and how often the
    frame of the added keywords is picked."""
    numbers = pd.concat([_probes(metrics), _published_probes()])
    columns = [*_PUBLISHED_PROBES.values(), f"{name('trap_rate')}, held out"]
    return summary(numbers, ["who", "router"], dict(zip(columns, columns, strict=True)))


def _published_probes() -> pd.DataFrame:
    """The published numbers, with the inputs they are of as metric."""
    theirs = published(["not_proven_domain", "not_proven_keywords"])
    theirs["metric"] = theirs.set_index(["section", "metric"]).index.map(_PUBLISHED_PROBES)
    router = theirs["router"].replace("original", DEFAULT)
    return theirs.assign(router=router.str.replace("_augmented", " augmented"))


def _probes(metrics: pd.DataFrame, setting: str = "as streamed") -> pd.DataFrame:
    """Our numbers of a setting, with the inputs they are of as metric, the best router first."""
    ours = measured(metrics, metric=["router_accuracy", "trap_rate"])
    ours = ours[ours["split"].str.startswith(f"{setting}: ")]
    asked, trap = ours["split"].str.partition(": ")[2], ours["metric"].eq("trap_rate")
    ours["metric"] = asked.mask(trap, asked.str.replace("keywords", name("trap_rate")))
    return in_order(ours, "router", _best_first(ours[ours["metric"].eq("normal")]))


# ---------------------------------------------------------------------- figures of notebook 03


def compared(run: Run) -> Drawn:
    """Right frames and correct answers of every router."""
    found = _whole(run.alike())
    found = in_order(found, "router", _best_first(found[found["metric"].eq("router_accuracy")]))
    columns = {"right frame": "router_accuracy", "correct answer": "routed_micro"}
    tables = with_ends(found, ["router"], columns)
    oracle = tables[0].loc["oracle", "correct answer"]
    means, low, high = (table.drop(index="oracle") for table in tables)
    title = f"Routers on {run.config.preset}: the right frame, and the correct answer"
    words = "share of all texts (%)"
    ax = plotting.pairs(means, words, title, low, high, (oracle, "oracle"))
    level, how = 100 / _frames(run), {"color": "black", "ls": ":", "lw": 1, "zorder": 0}
    ax.axvline(level, label="chance (right frame)", **how)
    ax.set_xlim(0, 102)
    ax.lines[0].set_label("oracle: correct answer")
    ax.legend(ncols=4, **plotting.ABOVE)
    frame, answer = means["right frame"], means["correct answer"]
    best = frame.idxmax()
    told = f"{best} finds the right frame most often ({frame[best]:.1f} % of the texts, {PLAIN} "
    told += f"{frame[PLAIN]:.1f} %). Correct answers: {answer[answer.idxmax()]:.1f} % with "
    told += f"{answer.idxmax()}, {answer[PLAIN]:.1f} % with {PLAIN}, {oracle:.1f} % with an oracle "
    told += "that is told the task."
    alt = "A line for each router with two marks, right frames and correct answers; a dashed line "
    alt += "marks the correct answers of the oracle."
    look = "The gap from a hollow mark to the dashed line is what routing costs in answers; it is "
    look += "smaller than the share of misrouted texts."
    gap = oracle - answer
    look = look if (gap < 100 - frame).all() else look.partition(";")[0] + "."
    return Drawn(ax, told, alt, f"{look}{ends_said(found)}", seeds_of(found))


def reliability(run: Run) -> Drawn:
    """Confidence against right frames, a panel each router."""
    found, curves = _whole(run.alike()), files(run, "reliability.csv")
    routers = list(curves["router"].unique())
    columns = 3
    rows = -(-len(routers) // columns)
    how = {"sharex": True, "sharey": True}
    axes = plotting.panels(rows, columns, plotting.WIDEST, 1 + 2.7 * rows, **how)
    errors = found[found["metric"].eq("ece")].groupby("router")["value"].mean() * 100
    binned = pooled(curves)
    for ax, router in zip(axes, routers, strict=False):
        part = binned[binned["router"].eq(router)]
        color = style(router)["color"]
        ax.plot([0, 100], [0, 100], color="black", ls=":", lw=1)
        ax.vlines(part["confidence"], part["low"], part["high"], color="#555555", lw=1)
        area = (300 * part["n"] / binned["n"].max()).clip(lower=8)
        edge = {"edgecolors": "#333333", "linewidths": 0.6, "zorder": 3}
        ax.scatter(part["confidence"], part["accuracy"], area, color, **edge)
        ax.set(xlim=(0, 105), ylim=(0, 105), aspect="equal")
        ticks = range(0, 101, 25)
        ax.set(xticks=ticks, yticks=ticks)
        ax.grid(alpha=0.3)
        plotting.titled(ax, f"{router}: ECE {errors[router]:.1f}")
    for ax in axes[len(routers) :]:
        ax.axis("off")
    title = f"Is a router right as often as it is sure? ({run.config.preset})"
    figure = plotting.over_all(axes, title)
    figure.supxlabel("confidence of the router (%)", fontsize=plotting.SMALL)
    figure.supylabel("right frame (%)", fontsize=plotting.SMALL)
    raw = found[found["metric"].eq("ece_uncalibrated")].groupby("router")["value"].mean() * 100
    best, worst = errors.idxmin(), errors.idxmax()
    answer = f"Confidence and share of right frames differ by {errors[best]:.1f} points with {best}"
    answer += f" (expected calibration error) up to {errors[worst]:.1f} with {worst}; before the "
    answer += f"temperature is fitted, by {raw.min():.1f} to {raw.max():.1f}."
    alt = "A panel for each router: share of right frames against confidence, in ten bins; a "
    alt += "dotted diagonal marks perfect calibration."
    look = f"A mark's area is its number of texts, bins of fewer than {FEWEST} are left out; bars: "
    look += "95 % binomial interval. Below the diagonal the router is too sure. hybrid_chain walks "
    look += "over the scores of hybrid_svm and has no confidence of its own."
    return Drawn(figure, answer, alt, look, seeds_of(found))


def pooled(curves: pd.DataFrame) -> pd.DataFrame:
    """Reliability curves of all seeds as one, in percent, with the ends of a binomial interval;
    bins of fewer than `FEWEST` texts are left out."""
    step = curves.groupby(["router", "seed"]).cumcount()
    curves = curves.assign(bin=step).fillna(0.0)
    sums = {c: curves[c] * curves["n"] for c in ("confidence", "accuracy")}
    sums = curves.assign(**sums).groupby(["router", "bin"], sort=False)[[*sums, "n"]].sum()
    sums = sums[sums["n"] >= FEWEST].reset_index()
    pairs = zip(sums["accuracy"].round().astype(int), sums["n"].astype(int), strict=True)
    ends = [binomtest(k, n).proportion_ci(method="wilson") for k, n in pairs]
    shares = {c: 100 * sums[c] / sums["n"] for c in ("confidence", "accuracy")}
    low, high = ([100 * end[i] for end in ends] for i in (0, 1))
    return sums.assign(**shares, low=low, high=high)


def thresholds(run: Run) -> Drawn:
    """The walk of the default router at every threshold."""
    found, table = _whole(run.alike()), files(run, "thresholds.csv")
    axes = plotting.panels(1, 2, plotting.WIDEST, 3.6)
    shown = {"right frame": "accuracy", "fallback": "fallback"}
    texts = pd.concat(_curve(100 * table[c], table["threshold"], k) for k, c in shown.items())
    words = "threshold (margin)"
    how = {"by": "of", "legend": False}
    title = f"{DEFAULT}: right frames and fallbacks"
    plotting.curves(texts, "x", "mean", words, "texts (%)", axes[0], title=title, **how)
    depth = _curve(table["depth"], table["threshold"], "depth")
    title = f"{DEFAULT}: length of the walk"
    plotting.curves(depth, "x", "mean", words, "frames visited, mean", axes[1], title=title, **how)
    plain = 100 * _mean(found, "router_accuracy", PLAIN)
    how = {"color": style(PLAIN)["color"], "ls": "--", "zorder": 0}
    axes[0].axhline(plain, label=f"right frame, {PLAIN}", **how)
    for ax, top in zip(axes, (105, _frames(run) + 0.5), strict=True):
        label = f"threshold of the run ({run.config.threshold:g})"
        ax.axvline(run.config.threshold, color="black", ls=":", zorder=0, label=label)
        ax.set_ylim(-0.02 * top, top)
        ax.set_xticks(np.linspace(-1, 1, 5))
    plotting.legend_below(axes[:1])
    right = texts[texts["of"].eq("right frame")].set_index("x")["mean"]
    here = {m: _mean(found, m, DEFAULT) for m in ("router_accuracy", "depth", "fallback")}
    answer = f"At a threshold of {run.config.threshold:g} the walk visits {here['depth']:.1f} of "
    answer += f"{_frames(run)} frames on average and finds the right one for "
    answer += f"{100 * here['router_accuracy']:.1f} % of the texts; {100 * here['fallback']:.0f} % "
    answer += f"are fallbacks. The best threshold of {len(right)} is {right.idxmax():+.1f} "
    answer += f"({right.max():.1f} %), and {PLAIN} finds {plain:.1f} % without a walk."
    alt = "Two panels against the threshold: right frames and fallbacks, and frames visited; a "
    alt += "dotted line marks the threshold of the run."
    look = "A low threshold stops at a frame that is too late, a high one falls back to the best "
    look += f"score of all.{ends_said(found, 'Bands')}"
    return Drawn(axes[0].figure, answer, alt, look, seeds_of(found))


def learning(run: Run) -> Drawn:
    """Right frames against the number of routing texts."""
    found, table = _whole(run.alike()), files(run, "learning.csv")
    routers = table["router"].unique()
    parts = [table[table["router"].eq(router)] for router in routers]
    parts = zip(routers, parts, strict=True)
    curves = pd.concat(_curve(100 * p["accuracy"], p["n_router"], r) for r, p in parts)
    words = ("routing texts per task", "right frame (%)")
    title = f"How many routing texts does a router need? ({run.config.preset})"
    how = {"by": "of", "title": title, "xscale": "log", "legend": False}
    ax = plotting.curves(curves, "x", "mean", *words, **how)
    ax.axhline(100 / _frames(run), color="black", ls=":", lw=1, label="chance", zorder=0)
    ax.axvline(run.config.n_router, color="#888888", lw=1, label="budget of this run", zorder=0)
    ax.set_ylim(0, 104)
    ax.legend(**plotting.BESIDE)
    wide = curves.pivot(index="x", columns="of", values="mean")
    best, (least, most) = wide.iloc[-1].idxmax(), (wide.index[0], wide.index[-1])
    usual = wide[PLAIN].get(run.config.n_router, np.nan)  # a small budget is not among the sizes
    answer = f"From {least} to {most} routing texts per task, {PLAIN} goes from "
    answer += f"{wide[PLAIN].iloc[0]:.1f} to {wide[PLAIN].iloc[-1]:.1f} % right frames, "
    others = [each for each in (best, run.config.router) if each in wide and each != PLAIN]
    ends = (f"{o} from {wide[o].iloc[0]:.1f} to {wide[o].iloc[-1]:.1f}" for o in others)
    answer += f"{listed(dict.fromkeys(ends))}." if others else "the best of all."
    enough = wide.index[wide[best] >= usual]
    if best != PLAIN and len(enough):
        answer += f" {best} needs {enough[0]} for what {PLAIN} finds with {run.config.n_router} "
        answer += f"({usual:.1f} %)."
    alt = "A line for each router that reads routing texts: right frames against their number."
    look = (
        f"Above the line of {PLAIN} is what hidden states add. Not drawn: {DEFAULT}, which walks "
    )
    look += f"over the scores of {PLAIN}, and arrow, which reads no routing texts."
    return Drawn(ax, answer, alt, look + ends_said(found, "Bands"), seeds_of(found))


def cost(run: Run) -> Drawn:
    """Seconds of fitting and milliseconds a text against the number of frames."""
    found, table = _whole(run.alike()), files(run, "cost.csv")
    both = table.groupby(["router", "frames"], sort=False)[["fit_seconds", "predict_ms"]]
    means = both.mean().reset_index()
    axes = plotting.panels(1, 2, plotting.WIDEST, 4)
    panels = {
        "fit_seconds": ("Fitting", "seconds"),
        "predict_ms": ("Routing one text", "milliseconds"),
    }
    how = {"by": "router", "legend": False, "xscale": "log", "yscale": "log"}
    for ax, (column, (title, unit)) in zip(axes, panels.items(), strict=True):
        words = ("frames (label splits)", f"{unit} (log scale)")
        plotting.curves(means, "frames", column, *words, ax, title=title, **how)
        ax.yaxis.set_major_formatter("{x:g}")
        plotting.end_labels(ax)
    most = means["frames"].max()
    last = means[means["frames"].eq(most)].set_index("router")
    first = means[means["frames"].eq(means["frames"].min())].set_index("router")
    fit, text = last["fit_seconds"], last["predict_ms"]
    answer = f"With {most} frames, fitting takes {fit.min():.3g} ({fit.idxmin()}) to "
    answer += f"{fit.max():.3g} seconds ({fit.idxmax()}), and routing one text "
    answer += f"{text.min():.3g} ({text.idxmin()}) to {text.max():.3g} ms ({text.idxmax()}). With "
    few = first.loc[text.idxmax(), "predict_ms"]
    answer += f"{means['frames'].min()} frames, {text.idxmax()} takes {few:.3g} ms a text."
    alt = "Two panels against the number of frames, both axes logarithmic: seconds to fit a router "
    alt += "and milliseconds to route one text, a line for each router, labelled at its end."
    look = "Routers that embed texts cost what the backbone costs, whatever the number of frames. "
    look += "A frame is a label of a task, or a part of its texts; nothing is embedded in advance. "
    look += "arrow needs trained frames and ends earlier. One pass per seed on one machine"
    if found["seed"].nunique() > 1:
        apart = (both.max() / both.min()).max().max()
        look += f"; the same measurement differs by up to a factor of {apart:.1f}"
    return Drawn(axes[0].figure, answer, alt, f"{look}.", seeds_of(found))


def confusion(run: Run) -> Drawn:
    """Where the default router sends each task's texts, and what another does differently."""
    routing, order = files(run, "routing.parquet"), list(run.config.task_names)
    other = run.config.router if run.config.router != DEFAULT else _ahead(run)
    shares = {}
    for router in (DEFAULT, other):
        counts = crossed(routing["task"], routing[f"{router}_frame"], order)
        shares[router] = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    change = shares[other] - shares[DEFAULT]
    size = (max(6.5, 1.8 + 0.48 * len(order)), 3 + 0.56 * len(order))
    one, two = plotting.panels(2, 1, *size)
    how = {"form": "{:.0f}", "numbers": shares[DEFAULT].where(shares[DEFAULT] >= 0.5)}
    title = f"{DEFAULT}: where each task's texts go"
    plotting.heatmap(shares[DEFAULT], title, "share of the row (%)", one, **how)
    span = 10 * np.ceil(max(change.abs().max(axis=None), 1) / 10)
    how = {"form": "{:+z.0f}", "numbers": change.where(change.abs() >= 0.5)}
    how |= {"limits": (-span, span), "cmap": plotting.DIVERGING}
    title = f"What {other} does differently"
    plotting.heatmap(change, title, "points of the row", two, **how)
    for ax in (one, two):
        ax.set_ylabel("task of the text")
    two.set_xlabel("frame picked")
    own = pd.Series(np.diag(change), order)
    answer = f"Against {DEFAULT}, {other} finds the right frame more often on {(own > 0).sum()} of "
    answer += f"{len(own)} tasks and less often on {(own < 0).sum()}"
    ends = {own.idxmax(): own.max(), own.idxmin(): own.min()}
    ends = [f"{task} {points:+.1f} points" for task, points in ends.items() if points]
    answer += f": {', '.join(ends)}." if ends else "."
    alt = "Two heat maps, rows the task of the text, columns the frame picked: shares of the "
    alt += "default router, and the difference of another one."
    look = (
        "On the diagonal of the lower map blue is won; beside it red is a confusion that is gone "
    )
    look += "and blue one that is new."
    return Drawn(one.figure, answer, alt, look, sorted(routing["seed"].unique()))


def misrouted(run: Run) -> Drawn:
    """The most frequent confusions of the chosen router, and how many answers they cost."""
    routing, router = files(run, "routing.parquet"), run.config.router
    away = routing[routing["task"] != routing[f"{router}_frame"]]
    pairs = away.groupby(away["task"] + " → " + away[f"{router}_frame"])
    pairs = pairs.agg(correct=(f"{router}_right", "sum"), texts=("task", "size"))
    pairs = pairs.sort_values(["texts", "correct"], ascending=False, kind="stable").head(12)
    ax = plotting.panels(1, 1, 7.6, 1.6 + 0.3 * max(3, len(pairs)))[0]
    parts = {"answered correctly all the same": pairs["correct"]}
    parts["answered incorrectly"] = pairs["texts"] - pairs["correct"]
    places, left = range(len(pairs)), 0
    for one in plotting.styles(parts) if len(pairs) else []:
        how = {"color": one["color"], "edgecolor": "#333333", "linewidth": 0.6}
        bars = ax.barh(places, parts[one["label"]], left=left, label=one["label"], **how)
        left = left + parts[one["label"]]
    if len(pairs):
        sums = [f"{c} of {n}" for c, n in zip(pairs["correct"], pairs["texts"], strict=True)]
        ax.bar_label(bars, sums, fontsize=plotting.SMALL, padding=3)
        ax.legend(ncols=2, **plotting.ABOVE)
    else:
        how = {"ha": "center", "va": "center", "fontsize": plotting.SMALL}
        ax.text(0.5, 0.5, "no text was misrouted", transform=ax.transAxes, **how)
    ax.set_yticks(places, pairs.index)
    ax.set_ylim(max(3, len(pairs)) - 0.4, -0.6)
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.set_xlabel("texts sent to another frame (count)")
    title = f"{router}: its most frequent confusions, and what they cost"
    ax.set_title(title, fontsize=plotting.TITLE, loc="left", pad=26)
    answer = f"{router} sends {len(away)} of {len(routing):,} texts to another frame"
    if len(away):
        share, own = away[f"{router}_right"].mean(), away["oracle_right"].mean()
        answer += f"; {100 * share:.0f} % of them are answered correctly all the same. Their own "
        answer += f"frames would have answered {100 * own:.0f} %"
    alt = "A bar for each pair of task and picked frame: how many of its texts are answered "
    alt += "correctly and incorrectly."
    look = "A confusion inside a family of tasks costs few answers, one with another label set "
    look += "costs all. An answer is correct when the name of its label is."
    return Drawn(ax, f"{answer}.", alt, look, sorted(routing["seed"].unique()))


def conclusion(run: Run) -> str:
    """What routers lose in answers, a sentence: those that are within a point of the oracle."""
    found = _whole(run.alike())
    answers = found[found["metric"].eq("routed")].groupby("router")["value"].mean() * 100
    near = answers.drop("oracle")[lambda a: a >= answers["oracle"] - 1]
    near = near.sort_values(ascending=False)
    told = f"As a mean over tasks, the oracle answers {answers['oracle']:.1f} % correctly; "
    told += "within a point of it: "
    told += listed(f"{router} ({value:.1f} %)" for router, value in near.items())
    return f"{told}."


# ---------------------------------------------------------------------- figures of notebook 07


def attacks(run: Run) -> Drawn:
    """Right frames of every router under every attack, and the published ones."""
    found = run.alike()
    table = _grid(found, "as streamed")
    theirs = figures(_published_probes(), ["router"], {c: c for c in INPUTS})
    theirs = theirs.rename(index="published: {}".format)
    both = pd.concat([table, theirs]) / 100
    title = "Right frame (%): texts as they come, and under attack"
    ax = plotting.grid(both, title, cell=(0.95, 0.32))
    plotting.bold_best(ax, table)
    ax.axhline(len(table) - 0.5, color="#555555", lw=1.5)
    worst = table.min(axis=1)
    answer = f"As they come, {table['normal'].idxmax()} finds most frames "
    answer += f"({table['normal'].max():.1f} %). Best in its worst case is {worst.idxmax()} "
    answer += f"({worst.max():.1f} %); {DEFAULT} falls from {table.loc[DEFAULT, 'normal']:.1f} to "
    answer += f"{table.loc[DEFAULT, 'rewritten']:.1f} % on rewritten texts and to "
    answer += f"{table.loc[DEFAULT, 'keywords']:.1f} % with keywords (published: "
    theirs = theirs.loc[f"published: {DEFAULT}"]
    answer += f"{theirs['rewritten']:.1f} and {theirs['keywords']:.1f})."
    alt = "A heat map: rows the routers and the published ones, columns the attacks."
    look = "Bold is our best in a column. Below the line: published, with other templates and "
    look += f"models. Chance is {100 / _frames(run):.1f} %."
    return Drawn(ax, answer, alt, look + _apart(found, "as streamed"), seeds_of(found))


def lost(run: Run) -> Drawn:
    """Points that every router loses under every attack."""
    found = run.alike()
    table = _grid(found, "as streamed")
    change = table[[c for c in ATTACKS if c in table]].sub(table["normal"], axis=0)
    change = change.loc[change.min(axis=1).sort_values(ascending=False).index]
    span = max(35, 5 * np.ceil(-change.min(axis=None) / 5))
    title = "Points lost under attack"
    label = "points against normal texts"
    ax = plotting.grid(change / 100, title, unit=label, span=span, cell=(1.05, 0.32))
    shown = {"format augmented": "rewritten", "keyword augmented": "keywords"}
    answer = f"{change.index[0]} loses least in its worst case ({change.iloc[0].min():+.1f} points"
    answer += f"), {DEFAULT} {change.loc[DEFAULT].min():+.1f}. "
    for router, own in shown.items():
        other = next(attack for attack in shown.values() if attack != own)
        answer += f"{router.capitalize()} routing changes by {change.loc[router, own]:+.1f} points "
        answer += f"under the attack it was trained on ({own}) and by "
        answer += f"{change.loc[router, other]:+.1f} under the other ({other}). "
    alt = "A heat map: rows the routers, columns the attacks, cells the points lost."
    look = "The row with the least red is hardest to mislead; a router that finds few frames has "
    look += "little to lose. Only the two augmented ones have seen attacked texts."
    return Drawn(ax, answer.strip(), alt, look, seeds_of(found))


def formatted(run: Run) -> Drawn:
    """Right frames where every task has a format of its own."""
    found = run.alike()
    table = _grid(found, "formatted")
    table = table.rename(columns={"normal": "own format", "rewritten": "another's format"})
    table = table.rename(columns={"rewritten, held out": "held-out format"})
    title = "Right frame (%) where every task has a format of its own"
    ax = plotting.grid(table / 100, title, cell=(1.3, 0.36))
    plotting.bold_best(ax, table)
    first, swapped = table.columns[:2]
    best = table[swapped].idxmax()
    answer = f"When texts have the format of their own task, {PLAIN} finds "
    answer += f"{table.loc[PLAIN, first]:.1f} % of the frames; in another task's format "
    answer += f"{table.loc[PLAIN, swapped]:.1f} %. Best there is {best} with "
    answer += (
        f"{table.loc[best, swapped]:.1f} % ({table.loc[best, first]:.1f} % in the own format)."
    )
    alt = "A heat map: rows four routers, columns the format of the text."
    look = "The routing texts have one format per task, so that the format alone gives the task "
    look += "away. Bold is the best in a column."
    return Drawn(ax, answer, alt, look + _apart(found, "formatted"), seeds_of(found))


def lengths(run: Run) -> Drawn:
    """Right frames by the length of the text as asked, with the number of texts."""
    probe = files(run, "probe.parquet")
    probe = probe[probe["setting"].eq("as streamed")]
    limits = [*LENGTHS.values(), np.inf]
    length = pd.cut(probe["words"], limits, right=False, labels=list(LENGTHS))
    probe = probe.assign(length=length, right=probe["frame"].eq(probe["task"]))
    some = list(dict.fromkeys([PLAIN, "hybrid_embed", run.config.router]))
    axes = plotting.panels(len(some), 1, 7.6, 0.8 + 1.9 * len(some), sharex=True)
    by = ["router", "condition", "length"]
    cells = probe.groupby(by, observed=False)["right"].agg(["mean", "size"])
    filled = cells["size"].unstack().ge(FEWEST).any()
    shown, shares = list(filled.index[filled]) or list(LENGTHS), {}
    for router, ax in zip(some, axes, strict=True):
        part = cells.loc[router]
        counts = part["size"].unstack().reindex(index=INPUTS, columns=shown)
        right = part["mean"].unstack().reindex(index=INPUTS, columns=shown)
        shares[router] = 100 * right.where(counts >= FEWEST)
        plotting.heatmap(shares[router], router, "%", ax, numbers=shares[router], bar=False)
        for text in ax.texts:
            column, row = text.get_position()
            text.set_text(f"{text.get_text()}  (n = {counts.iat[row, column]:,})")
        ax.label_outer()
    axes[-1].set_xlabel("words in the text as asked")
    plotting.color_bar(axes[0].images[0], axes, "right frame (%)", shrink=0.6)
    worst = {router: table.drop("normal").min() for router, table in shares.items()}
    parts = [
        f"{router} {low.iloc[0]:.1f} and {low.iloc[-1]:.1f} %"
        for router, low in worst.items()
        if low.notna().all()
    ]
    answer = f"Right frames of attacked texts of {shown[0]} and of {shown[-1]} words, each router "
    answer += f"under its worst attack: {listed(parts) if parts else 'too few texts to say'}."
    alt = "A heat map for each of three routers: rows the attacks, columns the length of the text."
    look = "Five keywords are much of a phrase and little of a film review. A cell counts all "
    look += f"seeds' texts (n); cells of fewer than {FEWEST} are empty."
    return Drawn(axes[0].figure, answer, alt, look, sorted(probe["seed"].unique()))


def traps(run: Run) -> str:
    """How often the frame of the added keywords is picked, a sentence."""
    found = run.alike()
    found = found[found["metric"].eq("trap_rate") & found["split"].eq("as streamed: keywords")]
    rates = 100 * found.groupby("router")["value"].mean().sort_values()
    shown = dict.fromkeys([rates.index[0], run.config.router, DEFAULT, rates.index[-1]])
    parts = (f"{rates[router]:.1f} % of the texts by {router}" for router in shown)
    return f"The frame whose keywords were added is picked for {listed(parts)}."


# ---------------------------------------------------------------------- what they are made from


def _frames(run: Run) -> int:
    return len(run.config.task_names)


def _curve(values: pd.Series, x: pd.Series, of: str) -> pd.DataFrame:
    """Mean, lowest and highest of the values at each x, for `plotting.curves`; NaN ends where
    there is one value each."""
    values = values.groupby(x)
    table = values.agg(["mean", "min", "max"]).set_axis(["mean", "low", "high"], axis=1)
    table.loc[values.size() < 2, ["low", "high"]] = np.nan
    return table.rename_axis("x").reset_index().assign(of=of)


def _mean(found: pd.DataFrame, metric: str, router: str) -> float:
    """The mean over seeds."""
    return found.loc[found["metric"].eq(metric) & found["router"].eq(router), "value"].mean()


def _ahead(run: Run) -> str:
    """The router that finds the right frame most often."""
    found = _whole(run.alike())
    found = found[found["metric"].eq("router_accuracy")]
    return next(r for r in _best_first(found) if r not in ("oracle", DEFAULT))


def _grid(metrics: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Right frames in percent, mean over seeds: routers, the best first, times inputs."""
    ours = _probes(metrics, setting)
    asked = [each for each in INPUTS if each in set(ours["metric"])]
    return figures(ours, ["router"], {each: each for each in asked})


def _apart(metrics: pd.DataFrame, setting: str) -> str:
    """How far the seeds of a cell are apart, where there are several."""
    ours = _probes(metrics, setting)
    ours = ours[ours["metric"].isin(INPUTS)]
    _, low, high = with_ends(ours, ["router"], {each: each for each in ours["metric"].unique()})
    apart = (high - low).max(axis=None)
    return "" if np.isnan(apart) else f" A cell's seeds differ by up to {apart:.1f} points."


# ---------------------------------------------------------------------- what is committed

_8, _12 = ("03_routers", "hard8", "minilm"), ("03_routers", "hard12", "minilm")
_ATTACKED = ("07_domain_confusion", "hard12", "minilm")
TABLES = {
    "routers_hard8": Table(*_8, router_table),
    "routers_hard12": Table(*_12, router_table),
    "probe_hard12": Table(*_ATTACKED, probe_table),
}
FIGURES = {
    "routers_compared": Figure(*_12, compared, "Which router finds the right frame?"),
    "routers_compared_hard8": Figure(*_8, compared, "Is it the same router on eight tasks?"),
    "routers_confusion": Figure(*_12, confusion, "Which tasks does a better router tell apart?"),
    "routers_misrouted": Figure(*_12, misrouted, "What does a misrouted text cost?"),
    "routers_reliability": Figure(*_12, reliability, "Can a router's confidence be trusted?"),
    "routers_thresholds": Figure(*_12, thresholds, "Does the threshold of the walk matter?"),
    "routers_learning": Figure(*_12, learning, "How many routing texts does a router need?"),
    "routers_cost": Figure(*_12, cost, "What does a router cost with many frames?"),
    "attacks_lost": Figure(*_ATTACKED, lost, "What does each router lose under attack?"),
    "attacks": Figure(*_ATTACKED, attacks, "Does the router follow the content or the form?"),
    "attacks_formatted": Figure(
        *_ATTACKED, formatted, "And where every task has a format of its own?"
    ),
    "attacks_lengths": Figure(*_ATTACKED, lengths, "Are short texts easier to misroute?"),
}
