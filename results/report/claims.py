"""What was published, and whether it came out here: results/REPRODUCED.md.

A claim is a difference that somebody published, and the same difference in our runs, told or not
told the task as there. It is *reproduced* if the 95 % interval of ours, over seeds and tasks, lies
above what the claim says (`least`), *not reproduced* if it lies below, and *open* if it holds that
value: then the runs are too few to tell. The interval is a bootstrap's, and Student's where there
are three to seven values. A claim of which one side was not run is *not measured*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.display import Drawn, seeds_said
from skillstack_helpers.lab.names import GREEN, GREY, ORANGE, RED
from skillstack_helpers.metrics import LEAST_VALUES, bootstrap_interval

from . import base
from .base import ANY, Table, meant, runs_of

_POWER = 2.8  # standard errors: seen four times in five at 5 % (1.96 + 0.84)


class Claim(NamedTuple):
    """One line of the page."""

    says: str
    section: str | Sequence[str]  # of the published numbers
    theirs: tuple[Mapping, Mapping | None]  # lines of it: one, or one minus another
    runs: Table | None  # None: not measured
    ours: tuple[Mapping, Mapping | None] = ({}, None)
    least: float = 0.0  # points: what the difference must be above
    why: str = ""  # where it came out otherwise, or cannot be measured


class Outcome(NamedTuple):
    """What came out, in points."""

    mean: float
    low: float
    high: float
    sees: float  # the smallest true difference that runs like these would mostly find
    verdict: str


def outcome(values: np.ndarray, least: float) -> Outcome:
    """The verdict on differences in points, one a seed and task."""
    mean, error, (low, high) = np.mean(values), np.nan, bootstrap_interval(values)
    if len(values) > 2:
        error = np.std(values, ddof=1) / len(values) ** 0.5
        if len(values) < LEAST_VALUES:
            low, high = t.interval(0.95, len(values) - 1, mean, error)
    verdict = "open"
    if low > least:
        verdict = "reproduced"
    elif high < least:
        verdict = "not reproduced"
    return Outcome(float(mean), low, high, float(_POWER * error), verdict)


def gap(rows: pd.DataFrame, sides: tuple[Mapping, Mapping | None]) -> pd.Series:
    """One side minus the other in points, paired; index: seed, preset (none where the sides name
    theirs), task."""
    first, second = (None if side is None else _points(rows, side) for side in sides)
    return first if second is None else (first - second).dropna()


def judged(runs: pd.DataFrame) -> list[tuple[Claim, pd.DataFrame, pd.Series, Outcome | None]]:
    """Every claim with the rows of `load_runs` that it is judged by, their `gap`, and what came
    out: none where a side of it was not run."""
    found = []
    for claim in CLAIMS:
        rows = runs_of(claim.runs, runs) if claim.runs else runs[:0]
        values = gap(rows, claim.ours)
        one = outcome(values.to_numpy(), claim.least) if len(values) else None
        found.append((claim, rows, values, one))
    return found


def _points(rows: pd.DataFrame, side: Mapping) -> pd.Series:
    found = rows[meant(rows, side)].assign(**({"preset": ""} if "preset" in side else {}))
    found = found.set_index(["seed", "preset", "eval_task"])["value"]
    a_task = found.index.get_level_values("eval_task") != ""
    found = found[a_task] if a_task.any() else found  # else a line is of all tasks together
    if found.index.duplicated().any():
        raise SkillStackError(f"two numbers for one seed and task: {side}")
    return 100 * found


def published(claim: Claim) -> tuple[pd.Series, list[pd.Series]]:
    """What was published, from its own numbers, a value a model, seed and task: the difference,
    and the two sides of it; one where the claim is of a single number."""
    numbers = base.published(claim.section)
    parts = [None if side is None else numbers[meant(numbers, side)] for side in claim.theirs]
    factor = [None if p is None else p["unit"].eq("").map({True: 100, False: 1}) for p in parts]
    keyed = [
        None if p is None else (p["value"].astype(float) * f).set_axis(
            pd.MultiIndex.from_frame(p[["model", "seed", "eval_task"]].astype(str))
        )
        for p, f in zip(parts, factor, strict=True)
    ]  # fmt: skip
    first, second = keyed
    if not len(first):
        raise SkillStackError(f"nothing published in {claim.section!r} for {claim.theirs[0]}")
    if second is None:
        return first, [first]
    apart = (first - second).dropna()
    if not len(apart):
        apart = first.reset_index(drop=True) - second.reset_index(drop=True)
    return apart, [first, second]


def said(claim: Claim) -> str:
    """What was published in words: the range over models and seeds."""
    apart, sides = published(claim)
    if len(sides) == 1:
        return _range(apart)
    return f"{_range(apart, '+')} ({' against '.join(map(_range, sides))})"


def _range(values: pd.Series, sign: str = "") -> str:
    ends = sorted({f"{value:{sign}.1f}" for value in (values.min(), values.max())}, key=float)
    return " to ".join(ends)


def figure(runs: pd.DataFrame) -> Drawn:
    """Every claim that was measured: the published difference, and ours with its interval."""
    measured = [(claim, one) for claim, _, _, one in judged(runs) if one]
    ax = plotting.panels(1, 1, plotting.WIDEST, 1.6 + 0.42 * len(measured))[0]
    ax.axvline(0, color="grey", lw=1, ls=":")
    looks = {"reproduced": GREEN, "not reproduced": RED, "open": ORANGE}
    for k, (claim, one) in enumerate(measured):
        apart, _ = published(claim)
        low, high = apart.min(), apart.max()
        ax.hlines(k - 0.17, low, high, color=GREY, lw=2.5)
        ax.plot([low, high], [k - 0.17] * 2, "o", color=GREY, markersize=6, **plotting.EDGE)
        if not np.isnan(one.low):
            ax.hlines(k + 0.17, one.low, one.high, color=looks[one.verdict], lw=1.8)
        ax.plot(one.mean, k + 0.17, "D", color=looks[one.verdict], markersize=6, **plotting.EDGE)
    ax.plot([], [], "o", color=GREY, label="published", markersize=6, **plotting.EDGE)
    for verdict, color in looks.items():
        ax.plot([], [], "D", color=color, label=verdict, markersize=6, **plotting.EDGE)
    plotting.name_lines(ax, ["\n".join(wrap(claim.says, 48)) for claim, _ in measured])
    ax.set_xlabel("difference (percentage points)")
    ax.grid(axis="x", alpha=0.3)
    plotting.headed(ax, "Published differences, and ours", 4)
    counts = pd.Series([one.verdict for _, one in measured]).value_counts()
    answer = f"Of {len(CLAIMS)} published differences {counts.get('reproduced', 0)} came out here "
    answer += f"too, {counts.get('not reproduced', 0)} did not, {counts.get('open', 0)} are open "
    answer += f"and {len(CLAIMS) - len(measured)} were not measured."
    alt = "A line a claim: the published difference in grey above, ours below it with its interval."
    look = "Right of zero the claim holds. Ours: 95 % interval over seeds and tasks. Published: "
    look += "lowest and highest over models and seeds, of other models."
    return Drawn(ax, answer, alt, look)


def table(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The page's table, and the ids of the runs behind it."""
    lines, used = [], []
    for claim, rows, values, one in judged(runs):
        line = {"claim": claim.says, "published (pp or %)": said(claim)}
        line |= {"here (pp)": "", "verdict": "not measured", "sees (pp)": "", "runs": ""}
        if one:
            ends = "" if np.isnan(one.low) else f" [{one.low:+.1f}, {one.high:+.1f}]"
            line["here (pp)"] = f"{one.mean:+.1f}{ends}"
            line["verdict"] = one.verdict
            line["sees (pp)"] = "" if np.isnan(one.sees) else f"{one.sees:.1f}"
            sides = [side for side in claim.ours if side is not None]
            mine = pd.concat([rows[meant(rows, side)] for side in sides])
            line["runs"] = (
                f"{claim.runs.notebook[:2]}, {', '.join(mine['preset'].unique())}, "
                f"{claim.runs.model}, "
                f"{seeds_said(values.index.get_level_values('seed').unique())}"
            )
            used += list(mine["run_id"].unique())
        lines.append(line | {"why": claim.why})
    return pd.DataFrame(lines).set_index("claim"), list(dict.fromkeys(used))


# ---------------------------------------------------------------------- the claims


def _runs(
    notebook: str, preset: str | list[str], first=ANY, router: str = "", model: str = "minilm"
) -> Table:
    return Table(notebook, preset, model, lambda found: found, first, router)


_STREAM = _runs("04_baselines", "hard8", 0.5, "hybrid_embed")
_MPNET = _runs("04_baselines", "hard8", 0.5, "hybrid_embed", "mpnet")
_SMOLLM2 = _runs("04_baselines", "hard8", 0.5, "hybrid_embed", "smollm2-135m")
_GEMMA3 = _runs("04_baselines", "hard8", 0.5, "hybrid_embed", "gemma3-270m")
_HARD12 = _runs("04_baselines", "hard12", 0.5, "hybrid_embed")
_WHOLE = _runs("04_baselines", "hard8", None)


def _of(method: str, metric: str = "routed") -> dict:
    return {"method": method, "metric": metric}


_TOLD = {method: _of(method, "final") for method in
         ("frames", "sequential", "ewc", "replay", "joint", "olora", "independent")}  # fmt: skip
_STEPS = _runs("10_reuse_or_create", "adaptive3", 0.5)
_LAST = {"metric": "accuracy", "trained_through": "qnli"}
_T5 = "measured on T5-large and the standard benchmark; here on hard8, "


def _on(model: str, runs: Table, searched: str = "here") -> tuple[Claim, ...]:
    """What was published of hard8 on Llama-3.2, on a model of ours; searched: EWC's strength."""
    return (
        Claim(
            f"{model}: the latest adapter has forgotten what saved frames keep",
            "hard8_table",
            ({"metric": "latest_drop"}, None),
            runs,
            (_TOLD["frames"], _TOLD["sequential"]),
        ),
        Claim(
            f"{model}: the routed stack answers better than EWC",
            "hard8_ewc",
            ({"method": "routed", "metric": "accuracy"}, {"method": "ewc", "metric": "accuracy"}),
            runs,
            (_of("frames"), _of("ewc")),
            why=f"EWC has a strength that was searched {searched}, and the same router",
        ),
        Claim(
            f"{model}: the routed stack answers better than joint training",
            "promising",
            ({"method": "routed", "preset": "hard8"}, {"method": "joint", "preset": "hard8"}),
            runs,
            (_of("frames"), _of("joint")),
            why="joint training has the same router here; the published one was one adapter "
            "trained for as many steps",
        ),
    )


CLAIMS = (
    *_on("hard8", _STREAM),
    Claim(
        "hard8: not told the task, the routed stack answers better than the latest adapter told it",
        "hard8_ewc",
        ({"method": "routed", "metric": "accuracy"}, {"method": "latest", "metric": "accuracy"}),
        _STREAM,
        (_of("frames"), _TOLD["sequential"]),
    ),
    Claim(
        "hard8: routing costs at most three points",
        "hard8_table",
        ({"metric": "routed"}, {"metric": "task_aware"}),
        _STREAM,
        (_of("frames"), _TOLD["frames"]),
        -3.0,
    ),
    Claim(
        "hard8: EWC forgets less than the latest adapter",
        "hard8_ewc",
        ({"method": "ewc", "metric": "accuracy"}, {"method": "latest", "metric": "accuracy"}),
        _STREAM,
        (_TOLD["ewc"], _TOLD["sequential"]),
    ),
    *_on("hard8, a larger encoder", _MPNET, "on minilm"),
    *_on("hard8, a language model", _SMOLLM2),
    *_on("hard8, a larger language model", _GEMMA3, "on minilm"),
    Claim(
        "hard12: the latest adapter has forgotten what saved frames keep",
        "hard12_table",
        ({"metric": "latest_drop"}, None),
        _HARD12,
        (_TOLD["frames"], _TOLD["sequential"]),
    ),
    Claim(
        "hard12: the routed stack answers better than joint training",
        "hard12_joint",
        ({"method": "routed"}, {"method": "joint"}),
        _HARD12,
        (_of("frames"), _of("joint")),
    ),
    Claim(
        "hard12: the routed stack answers better than EWC",
        "hard12_ewc",
        ({"method": "routed"}, {"method": "ewc", "metric": "accuracy"}),
        _HARD12,
        (_of("frames"), _of("ewc")),
    ),
    Claim(
        "hard5: in reversed order the routed stack answers better than forward",
        "not_proven_order",
        ({"method": "routed_reverse", "metric": "accuracy"},
         {"method": "routed_forward", "metric": "accuracy"}),
        _runs("04_baselines", ["hard5", "hard5_reversed"]),
        (_of("frames") | {"preset": "hard5_reversed"}, _of("frames") | {"preset": "hard5"}),
        why="one seed, five tasks",
    ),
    Claim(
        "rows never seen: the routed stack answers better than the latest adapter",
        "generalization",
        ({"method": "routed", "metric": "accuracy", "seed": ["42", "123", "7"]},
         {"method": "latest", "metric": "accuracy", "seed": ["42", "123", "7"]}),
        _runs("09_skill_generalization", "mixed8"),
        ({"split": "routed stack", "metric": "accuracy"},
         {"split": "latest adapter", "metric": "accuracy"}),
    ),
    Claim(
        "rows never seen: the routed stack answers better than the best single frame",
        "generalization",
        ({"method": "routed", "metric": "accuracy", "seed": ["42", "123", "7"]},
         {"method": "best_single_frame", "metric": "accuracy", "seed": ["42", "123", "7"]}),
        _runs("09_skill_generalization", "mixed8"),
        ({"split": "routed stack", "metric": "accuracy"},
         {"split": "best single frame", "metric": "accuracy"}),
    ),
    Claim(
        "mixed8: half of the frames answer at least as well as all (one point allowed)",
        "compression",
        ({"method": "compressed", "metric": "gain"}, None),
        _runs("06_compression", "mixed8"),
        ({"split": "chosen anchor", "metric": "routed"}, {"split": "full", "metric": "routed"}),
        -1.0,
    ),
    Claim(
        "mixed8: without the frame of AG News as well, accuracy falls",
        "boundary",
        ({"method": "compressed_without_agnews", "metric": "loss"}, None),
        _runs("06_compression", "mixed8"),
        ({"split": "anchor without agnews", "metric": "loss"}, None),
    ),
    Claim(
        "gen_mixed5: written answers, routed, are better than the latest adapter's",
        "generative",
        ({"method": "routed", "metric": "accuracy"}, {"method": "latest", "metric": "accuracy"}),
        _runs("08_generative_probe", "gen_mixed5", model="smollm2-135m"),
        ({"split": "routed stack", "metric": "written"},
         {"split": "latest adapter", "metric": "written"}),
    ),
    Claim(
        "texts dressed as another domain mislead the router",
        "not_proven_domain",
        ({"router": "hybrid_chain", "metric": "router_accuracy"},
         {"router": "hybrid_chain", "metric": "router_accuracy_confused"}),
        _runs("07_domain_confusion", "hard12"),
        ({"router": "hybrid_chain", "split": "as streamed: normal", "metric": "router_accuracy"},
         {"router": "hybrid_chain", "split": "as streamed: rewritten",
          "metric": "router_accuracy"}),
    ),
    Claim(
        "a router fitted on such texts too is misled less",
        "not_proven_domain",
        ({"router": "format_augmented", "metric": "router_accuracy_confused"},
         {"router": "hybrid_chain", "metric": "router_accuracy_confused"}),
        _runs("07_domain_confusion", "hard12"),
        ({"router": "format augmented", "split": "as streamed: rewritten, held out",
          "metric": "router_accuracy"},
         {"router": "hybrid_chain", "split": "as streamed: rewritten, held out",
          "metric": "router_accuracy"}),
    ),
    Claim(
        "words of another task mislead the router",
        "not_proven_keywords",
        ({"router": "original", "metric": "router_accuracy"},
         {"router": "original", "metric": "router_accuracy_confused"}),
        _runs("07_domain_confusion", "hard12"),
        ({"router": "hybrid_chain", "split": "as streamed: normal", "metric": "router_accuracy"},
         {"router": "hybrid_chain", "split": "as streamed: keywords",
          "metric": "router_accuracy"}),
    ),
    Claim(
        "bitstack5: locking 12 % a task forgets less than full fine-tuning",
        "headline",
        ({"method": "baseline"}, {"method": "bitstack_0.12"}),
        _runs("05_bitstack", "bitstack5"),
        ({"method": "baseline", "metric": "forgetting"},
         {"method": "bitstack_0.12", "metric": "forgetting"}),
    ),
    Claim(
        "adaptive3: one adapter reused, with gated EWC and replay, is at most two points behind an "
        "adapter for each task",
        ("step_b_v4", "step_a_retry"),
        ({"section": "step_b_v4", "metric": "avg_acc"},
         {"section": "step_a_retry", "metric": "avg_acc"}),
        _STEPS,
        ({"method": "ewc_replay"} | _LAST, {"method": "independent"} | _LAST),
        -2.0,
    ),
    Claim(
        "adaptive3: reused so, it gets better on earlier tasks (backward transfer)",
        "step_b_v4",
        ({"metric": "bwt"}, None),
        _STEPS,
        ({"method": "ewc_replay", "metric": "bwt"}, None),
    ),
    Claim(
        "standard benchmark: O-LoRA forgets less than one adapter through the stream",
        "standard_benchmark",
        ({"method": "olora"}, {"method": "sequential"}),
        _runs("04_baselines", [f"standard4_order{k}" for k in (1, 2, 3)]),
        (_TOLD["olora"], _TOLD["sequential"]),
        why="three orders of four tasks, one seed",
    ),
    Claim(
        "replay forgets less than one adapter through the stream",
        "standard_benchmark",
        ({"method": "replay"}, {"method": "sequential"}),
        _WHOLE,
        (_TOLD["replay"], _TOLD["sequential"]),
        why=_T5 + "told the task",
    ),
    Claim(
        "an adapter of its own for each task is better than one adapter through the stream",
        "standard_benchmark",
        ({"method": "independent"}, {"method": "sequential"}),
        _WHOLE,
        (_TOLD["independent"], _TOLD["sequential"]),
        why=_T5 + "told the task",
    ),
    *(
        Claim(f"standard benchmark: {label} is better than one adapter through the stream",
              "standard_benchmark", ({"method": method}, {"method": "sequential"}), None,
              why="not implemented here")
        for method, label in (("nlora", "N-LoRA"), ("pslora", "PS-LoRA"),
                              ("progressive_prompts", "Progressive Prompts"))
    ),
)  # fmt: skip
