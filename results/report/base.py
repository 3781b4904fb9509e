"""What the tables and figures of every topic are made with.

A table takes rows of metrics.csv: finished runs of one notebook, preset, model and budget, any
number of seeds. It refuses to average over two presets, models or budgets, or over two runs of one
seed. Fractions are shown as percent or percentage points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import pandas as pd

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.lab.display import Drawn
from skillstack_helpers.lab.runs import Run, load_published, placed, read_run, tuned_on
from skillstack_helpers.metrics import bootstrap_interval, seed_range

SHOWN_AS = {"fraction": 100, "bytes": 1e-6, "count": 1e-6}  # percent or points, MB, millions


ANY = "any"  # first_adapted_layer: whatever it is
# Bars of the latest adapter, the saved frames and the routed stack, a group a task.
BARS = "Three bars for every task: latest adapter, saved frames, routed stack; chance is dotted."
BARS_LOOK = "Blue above red is what forgetting costs; blue above green is what the router costs."


class Table(NamedTuple):
    """A table of a results page, and the committed runs that it is of."""

    notebook: str
    preset: str | Sequence[str]
    model: str | Sequence[str]
    make: Callable[[pd.DataFrame], pd.DataFrame]  # of rows of `load_runs`
    first: float | str | None = None  # first_adapted_layer
    router: str = ""  # of the runs, where several were used
    methods: Sequence[str] = ()  # of the runs, where not all are shown
    tuned: str = ""  # ANY: runs with what was searched on another stream, too
    seeds: Sequence[int] = ()  # of the runs, where not all are shown
    rows: str = ""  # ANY: runs that learned the routing rows, too


class Figure(NamedTuple):
    """A figure of the gallery, and the committed run that it is of, with those that are alike."""

    notebook: str
    preset: str
    model: str
    draw: Callable[[Run], Drawn]
    question: str
    method: str = ""  # of the run, where a notebook makes a run per method
    first: float | None = None  # first_adapted_layer
    router: str = ""  # of the runs, where several were used


def runs_of(entry: Table | Figure, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `load_runs` that a table or a figure is made of."""
    where = {column: getattr(entry, column) for column in ("notebook", "preset", "model")}
    found = runs[meant(runs, where)]
    budget = found["budget"].str
    recipe = pd.Series(True, found.index)
    if getattr(entry, "rows", "") != ANY:
        recipe &= budget.contains("train_on_router False")
    if entry.first != ANY:
        recipe &= budget.endswith(f"first_adapted_layer {entry.first}")
    if entry.router:
        recipe &= budget.startswith(f"router {entry.router},")
    if getattr(entry, "tuned", "") != ANY:
        recipe &= tuned_on(found["own"]).eq("")
    if getattr(entry, "methods", ()):
        recipe &= found["method"].isin(entry.methods)
    if getattr(entry, "seeds", ()):
        recipe &= found["seed"].isin(entry.seeds)
    found = found[recipe]
    if not len(found):
        raise SkillStackError(f"no run of {entry.notebook} on {entry.preset}")
    return found


def first_run(found: pd.DataFrame) -> Run:
    """The run with seed 42 among rows of `load_runs`, else the first."""
    first = found.sort_values("seed", key=lambda s: s.ne(42), kind="stable")["run_id"].iloc[0]
    return read_run(placed("results/runs") / first)


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


def every(cell: pd.DataFrame) -> str:
    """Every number."""
    return ", ".join(cell["value"].map("{:.1f}".format))


def number(cell: pd.DataFrame) -> float:
    """The one number, not formatted."""
    if len(cell) > 1:
        raise SkillStackError(f"{cell['metric'].iloc[0]}: one number is shown, got {len(cell)}")
    return cell["value"].item()


signed, whole = partial(ranged, form="{:+.1f}"), partial(mean, form="{:.0f}")
RANGE = "mean [range of {} seeds]"
_OVER_SEEDS = {ranged: RANGE, signed: RANGE, spread: "mean ± standard deviation of {} seeds"}
_OVER_SEEDS[bootstrapped] = "differences [95 % bootstrap interval over seeds and tasks]"


_published = cache(load_published)  # a dozen files, for every table and claim


def published(sections: str | Sequence[str]) -> pd.DataFrame:
    """The published numbers of these sections, to be put beside ours and given to `summary`."""
    numbers = _published().assign(who="published")
    return numbers[meant(numbers, {"section": sections})]


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
    check_alike(numbers)
    factor = numbers["unit"].map(SHOWN_AS).astype(float).fillna(1)
    shown = numbers.assign(value=numbers["value"] * factor)
    lines = {key: {} for key in zip(*(shown[row] for row in rows), strict=True)}
    words = {}  # what is said of the seeds -> how many there are
    for heading, what in columns.items():
        where, how = what if isinstance(what, tuple) else (what, form)
        where = {"metric": where} if isinstance(where, str) else where
        for key, cell in shown[meant(shown, where)].groupby([*rows], sort=False):
            if "run_id" in cell and cell.groupby("seed")["run_id"].nunique().max() > 1:
                runs = " and ".join(cell["run_id"].unique())
                raise SkillStackError(f"a table takes one run of a seed, got {runs}")
            lines[key][heading] = how(cell)
            if (over := cell["seed"].nunique()) > 1 and how in _OVER_SEEDS:
                words.setdefault(_OVER_SEEDS[how], set()).add(over)
    lines = [dict(zip(rows, key, strict=True)) | line for key, line in lines.items() if line]
    table = pd.DataFrame(lines, columns=[*rows, *columns]).set_index([*rows])
    said = [say.format(counts(over)) for say, over in words.items()]
    table.columns.name = "; ".join(sorted(said)) or None
    return table if form is number else table.astype(object).fillna("")


def counts(numbers: set[int]) -> str:
    """``7``, ``2 or 3``, ``5 to 7``."""
    ends = sorted({min(numbers), max(numbers)})
    return (" to " if len(numbers) > 2 else " or ").join(map(str, ends))


def figures(
    numbers: pd.DataFrame,
    rows: Sequence[str],
    columns: Mapping[str, str | Mapping],
    value: Callable[[pd.DataFrame], float] = lambda cell: cell["value"].mean(),
) -> pd.DataFrame:
    """`summary` as numbers to draw, means unless told otherwise; NaN where there is none."""
    table = summary(numbers, rows, columns, value)
    return table.apply(pd.to_numeric, errors="coerce")


def over_seeds(cell: pd.DataFrame) -> tuple[float, float]:
    """Lowest and highest seed."""
    return seed_range(cell.groupby("seed")["value"].mean())


def over_pairs(cell: pd.DataFrame) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of all numbers."""
    return bootstrap_interval(cell["value"])


def with_ends(
    numbers: pd.DataFrame,
    rows: Sequence[str],
    columns: Mapping[str, str | Mapping],
    ends: Callable[[pd.DataFrame], tuple[float, float]] = over_seeds,
) -> list[pd.DataFrame]:
    """What a figure with intervals is drawn from, three tables of `figures`: means, lower ends,
    upper ends."""
    low, high = (lambda cell, end=end: ends(cell)[end] for end in (0, 1))
    means = figures(numbers, rows, columns)
    return [means, *(figures(numbers, rows, columns, end) for end in (low, high))]


def seeds_of(found: pd.DataFrame) -> list[int]:
    """The seeds of these numbers, for the caption of a figure."""
    return found["seed"].unique().tolist()


def ends_said(found: pd.DataFrame, what: str = "Bars") -> str:
    """What the intervals of a figure over seeds are, where it has any."""
    return f" {what}: lowest and highest seed." if found["seed"].nunique() > 1 else ""


def forgotten_said(drop: float, lost: pd.Series, kept: float) -> str:
    """What the latest adapter and the frames lose on earlier tasks (mean drop, points), and on
    which of them the adapter lost most (lost: points, by task)."""
    return (
        f"The latest adapter loses {drop:.1f} points on earlier tasks, most on {lost.idxmin()} "
        f"({lost.min():+.1f}); the saved frames lose {kept:.1f}."
    )


def files(run: Run, name: str) -> pd.DataFrame:
    """A file of the run and of those that are alike, one below the other, with the seed."""
    parts = [table.assign(seed=seed) for seed, table in run.read_alike(name)]
    return pd.concat(parts, ignore_index=True)


def crossed(texts: pd.Series, frames: pd.Series, order: Sequence[str]) -> pd.DataFrame:
    """How many texts of each task (rows) go to each frame (columns), in this order."""
    counts = pd.crosstab(texts, frames)
    return counts.reindex(index=order, columns=order, fill_value=0)


def meant(numbers: pd.DataFrame, where: Mapping) -> pd.Series:
    """Which lines have these values in these columns; a list stands for any of its values."""
    found = pd.Series(True, numbers.index)
    for column, value in where.items():
        found &= numbers[column].isin([value] if isinstance(value, str) else value)
    return found


def check_alike(numbers: pd.DataFrame, columns=("preset", "model", "dtype", "budget")) -> None:
    """An error, with what differs, if these are runs that must not be averaged; published numbers
    are no runs."""
    ours = numbers[numbers["run_id"].notna()] if "run_id" in numbers else numbers[:0]
    for column in [column for column in columns if column in ours]:
        found = [text.split(", ") for text in ours[column].dropna().unique()]
        if len(found) > 1:
            same = set.intersection(*map(set, found))
            differ = [", ".join(part for part in each if part not in same) for each in found]
            raise SkillStackError(f"a table is of one {column}, got {' and '.join(differ)}")


def measured(numbers: pd.DataFrame, who: str = "measured here", **where) -> pd.DataFrame:
    return numbers[meant(numbers, where)].assign(who=who)


def minus(numbers: pd.DataFrame, same: Sequence[str], **where) -> pd.Series:
    """Each value minus that of the line `where` with the same values in the columns `same`."""
    those = numbers[meant(numbers, where)].drop_duplicates(same)[[*same, "value"]]
    those = numbers[[*same]].merge(those, "left", [*same])["value"].set_axis(numbers.index)
    return numbers["value"] - those


def chance(run: Run) -> pd.Series:
    """Accuracy by chance of every task whose rows the run read, fractions."""
    return pd.Series({task: 1 / len(names) for task, names in run.labels.items()})


def in_order(numbers: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Lines in the order of `names`, and as they came for the same name."""
    rank = {name: i for i, name in enumerate(names)}
    return numbers.sort_values(column, key=lambda values: values.map(rank), kind="stable")


def by_seed(numbers: pd.DataFrame, columns: Mapping, over: Sequence[str]) -> pd.DataFrame:
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
