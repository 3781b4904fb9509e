"""Write what a run measured, read it back, and set it beside the published numbers.

A run is a folder ``<output_dir>/<run_id>/``: run.json (what was run, where, on which rows),
metrics.csv (tidy, one measured number a row), matrix.csv, routing.parquet and train.jsonl. Every
file is replaced in one step, so a killed run leaves whole files and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from . import SkillStackError
from .config import RunConfig
from .metrics import bootstrap_interval

COLUMNS = (
    "run_id",
    "seed",
    "model",
    "preset",
    "method",
    "router",
    "trained_through",
    "eval_task",
    "split",
    "metric",
    "value",
    "unit",
    "n",
)
# The columns of the published hard8 and hard12 tables: metric -> heading.
PUBLISHED_COLUMNS = {
    "latest_drop": "latest adapter's drop (pp)",
    "stack_drop": "stack's drop (pp)",
    "task_aware": "task-aware average (%)",
    "routed": "routed overall (%)",
    "router_accuracy": "router task accuracy (%)",
    "fallback": "fallback (%)",
    "depth": "depth (frames)",
}


def repo_root() -> Path:
    """The checkout this package is installed from (``pip install -e``), else the working
    directory."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").exists() else Path.cwd()


class Run:
    """One run's folder; made by `open_run`."""

    def __init__(self, folder: Path, config: RunConfig, method: str, facts: dict, lock):
        self.folder, self.config, self.method = folder, config, method
        self.facts, self._lock = facts, lock
        self._before, self._start = facts.get("seconds", 0.0), time.perf_counter()
        path = folder / "metrics.csv"
        self.metrics = read_metrics(path) if path.exists() else pd.DataFrame(columns=COLUMNS)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return self.facts["status"] == "finished"

    @property
    def stack_dir(self) -> Path:
        """Where the run keeps its frames."""
        return self.folder / "stack"

    def check_data(self, stream: Sequence) -> None:
        """Note the rows (`TaskData`) the run works on; an error if it was begun on others."""
        rows = {d.name: {"source": d.source, "fingerprint": d.fingerprint} for d in stream}
        before = self.facts.setdefault("data", rows)
        for name in rows:
            if before.get(name) != rows[name]:
                raise SkillStackError(
                    f"{self.folder} was begun on other rows of {name}; delete it, or set another "
                    "output_dir"
                )
        self._write_facts()

    def record(
        self,
        metric: str,
        value: float,
        *,
        unit: str = "fraction",
        trained_through: str = "",
        eval_task: str = "",
        split: str = "eval",
        router: str = "",
        n: int = 0,
    ) -> float:
        """Add or replace one measured number and write metrics.csv; returns the value."""
        model = " ".join(filter(None, (self.config.model, self.config.quantize)))
        row = dict(run_id=self.id, seed=self.config.seed, model=model)
        row |= dict(preset=self.config.preset, method=self.method, router=router)
        row |= dict(trained_through=trained_through, eval_task=eval_task, split=split)
        row |= dict(metric=metric, value=float(value), unit=unit, n=int(n))
        keys = ["router", "trained_through", "eval_task", "split", "metric"]
        same = (self.metrics[keys] == [row[key] for key in keys]).all(axis=1)
        rows = [*self.metrics[~same].to_dict("records"), row]
        self.metrics = pd.DataFrame(rows, columns=COLUMNS)
        self.save("metrics.csv", self.metrics)
        return float(value)

    def accuracy(self, trained_through: str, eval_task: str) -> float:
        """One cell of the accuracy matrix, NaN where it was not measured."""
        table = self.metrics
        cell = table[
            table["metric"].eq("accuracy")
            & table["trained_through"].eq(trained_through)
            & table["eval_task"].eq(eval_task)
        ]
        return float(cell["value"].iloc[0]) if len(cell) else math.nan

    def has(self, trained_through: str, eval_task: str) -> bool:
        """Whether that cell of the accuracy matrix was measured, now or before an interruption."""
        return not math.isnan(self.accuracy(trained_through, eval_task))

    def matrix(self, tasks: Sequence[str]) -> pd.DataFrame:
        """acc[i, j] as fractions: rows trained through, columns evaluated on, NaN if missing."""
        cells = [[self.accuracy(i, j) for j in tasks] for i in tasks]
        return pd.DataFrame(cells, index=pd.Index(tasks, name="trained_through"), columns=tasks)

    def save(self, name: str, table: pd.DataFrame) -> None:
        """Write a table beside metrics.csv: .csv, .parquet or .jsonl by its name."""
        index = not isinstance(table.index, pd.RangeIndex)
        if name.endswith(".parquet"):
            content = table.to_parquet(index=index)
        elif name.endswith(".jsonl"):
            content = table.to_json(orient="records", lines=True)
        else:
            content = table.to_csv(index=index, lineterminator="\n")
        self._write(name, content)

    def read(self, name: str) -> pd.DataFrame:
        """Read such a table back."""
        path = self.folder / name
        if not path.exists():
            raise SkillStackError(f"{path} is missing")
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
        return pd.read_csv(path, index_col=0 if name == "matrix.csv" else None)

    def finish(self, backbone) -> None:
        """Write where and on what it ran, and mark the run finished."""
        self.facts |= {"backbone": backbone.identity(), "device": describe_device(backbone.device)}
        self.facts |= {"status": "finished", "finished": _now()}
        self._write_facts()

    def _write_facts(self) -> None:
        self.facts["seconds"] = round(self._before + time.perf_counter() - self._start, 1)
        self._write("run.json", json.dumps(self.facts, indent=1) + "\n")

    def _write(self, name: str, content: str | bytes) -> None:
        try:
            write_atomic(self.folder / name, content)
        except OSError as error:
            raise SkillStackError(f"cannot write {self.folder / name}: {explain(error)}") from None


def open_run(config: RunConfig, method: str = "stack") -> Run:
    """The folder of this run: new, interrupted (it goes on), or finished (nothing is left to do).

    Raises `SkillStackError` if the folder cannot be written or another process works in it.
    """
    import filelock

    folder = repo_root() / config.output_dir / config.run_id(method)
    path = folder / "run.json"
    if path.exists():
        facts = read_facts(folder)
        if facts["status"] == "finished":
            return Run(folder, config, method, facts, None)
    else:
        facts = {"run_id": folder.name, "status": "running", "started": _now()}
    facts |= {"config": config.identity(method), "method": method, "versions": versions(), **_git()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", is_singleton=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SkillStackError(f"another process is working on {folder}") from None
    except OSError as error:
        raise SkillStackError(f"cannot write to {folder}: {explain(error)}") from None
    for stale in folder.glob(".tmp-*"):  # left behind by a killed process
        stale.unlink()
    run = Run(folder, config, method, facts, lock)
    run._write_facts()
    return run


# ---------------------------------------------------------------------- reading


def read_facts(folder: Path) -> dict:
    """run.json of a run's folder."""
    path = Path(folder) / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["status"], facts["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SkillStackError(f"{path} is missing or damaged; delete the folder") from None
    return facts


def read_metrics(path: Path) -> pd.DataFrame:
    """One metrics.csv."""
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype={"seed": int})
        table["value"] = pd.to_numeric(table["value"].replace("", "nan"))
        return table[list(COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise SkillStackError(f"{path} is damaged: {error}") from None


def load_runs(folder: str | Path = "results/runs") -> pd.DataFrame:
    """The metrics of all finished runs below a folder, one table."""
    root = repo_root() / folder
    finished = [
        path.parent
        for path in sorted(root.glob("*/run.json"))
        if read_facts(path.parent)["status"] == "finished"
    ]
    tables = [read_metrics(path / "metrics.csv") for path in finished]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def find_stack(config: RunConfig) -> Path | None:
    """A finished run's stack, trained with the same parameters, or None.

    What comes after training (the router, its rows, the evaluation rows) may differ, so that
    notebook 03 reads the frames that notebook 02 trained.
    """
    later = {"notebook", "router", "threshold", "n_router", "n_eval"}

    def trained(identity: dict) -> dict:
        return {key: value for key, value in identity.items() if key not in later}

    for path in sorted((repo_root() / config.output_dir).glob("*/stack/stack.json")):
        if not (path.parent.parent / "run.json").exists():
            continue
        facts = read_facts(path.parent.parent)
        same = trained(facts.get("config", {})) == trained(config.identity())
        if facts["status"] == "finished" and same:
            return path.parent
    return None


def over_seeds(metrics: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, 95 % bootstrap interval and number of seeds of `value` for each group.

    metrics: rows as in metrics.csv; by: the columns that make a group. Columns: mean, low, high,
    seeds; one seed has no interval (NaN).
    """
    rows = {}
    for key, group in metrics.groupby(list(by), sort=False):
        values = group.groupby("seed")["value"].mean().to_numpy()
        low, high = bootstrap_interval(values)
        key = key if len(by) > 1 else key[0]
        rows[key] = {"mean": values.mean(), "low": low, "high": high, "seeds": len(values)}
    table = pd.DataFrame.from_dict(rows, "index", columns=["mean", "low", "high", "seeds"])
    return table.rename_axis(list(by)) if rows else table


def load_reference() -> pd.DataFrame:
    """Every published number, with source and the words it was published under."""
    files = sorted((repo_root() / "results" / "reference").glob("*.csv"))
    if not files:
        raise SkillStackError(f"no published numbers in {repo_root() / 'results' / 'reference'}")
    return pd.concat([pd.read_csv(f, keep_default_na=False) for f in files], ignore_index=True)


def per_task(metrics: pd.DataFrame) -> pd.DataFrame:
    """One run's accuracy (fractions) per task, in stream order, for `plotting.task_bars`."""
    metrics = metrics[metrics["eval_task"].ne("")]
    tasks = list(dict.fromkeys(metrics["eval_task"]))
    latest = metrics[metrics["metric"].eq("accuracy") & metrics["trained_through"].eq(tasks[-1])]
    columns = {"latest adapter": latest}
    for label, metric in (("saved frame", "saved"), ("routed stack", "routed"), ("chance",) * 2):
        columns[label] = metrics[metrics["metric"].eq(metric)]
    table = {label: rows.set_index("eval_task")["value"] for label, rows in columns.items()}
    return pd.DataFrame(table).reindex(tasks)


def beside_published(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The published table's columns, in percent and percentage points: our runs first.

    metrics: rows as in metrics.csv of one or several runs. Index: who, model, seed.
    """
    ours = metrics[
        metrics["metric"].isin(PUBLISHED_COLUMNS)
        & metrics["preset"].eq(preset)
        & metrics["method"].eq("stack")
        & metrics["eval_task"].eq("")
    ]
    ours = ours.assign(
        who="measured here",
        value=ours["value"].where(ours["unit"].ne("fraction"), ours["value"] * 100),
    )
    ours = ours.assign(seed=ours["seed"].astype(str))
    published = load_reference()
    published = published[
        published["section"].eq(f"{preset}_table") & published["metric"].isin(PUBLISHED_COLUMNS)
    ].assign(who="published")
    published["value"] = pd.to_numeric(published["value"])
    published["run_id"] = ""
    key = ["who", "model", "seed", "run_id"]  # a run is a row: two runs are never averaged
    rows = pd.concat([ours, published])[[*key, "metric", "value"]]
    order = rows[key].drop_duplicates()
    table = rows.pivot(index=key, columns="metric", values="value")
    table = table.reindex(pd.MultiIndex.from_frame(order)).droplevel("run_id")
    table = table.reindex(columns=list(PUBLISHED_COLUMNS)).rename(columns=PUBLISHED_COLUMNS)
    table.columns.name = None
    return table


# Where the published numbers of notebook 07's probes stand: section, router and metric.
_DOMAIN, _KEYWORDS = "not_proven_domain", "not_proven_keywords"
_PUBLISHED_PROBES = {
    "hybrid_chain": {
        "normal": (_DOMAIN, "hybrid_chain", "router_accuracy"),
        "rewritten": (_DOMAIN, "hybrid_chain", "router_accuracy_confused"),
        "keywords": (_KEYWORDS, "original", "router_accuracy_confused"),
    },
    "format augmented": {
        "normal": (_DOMAIN, "format_augmented", "router_accuracy"),
        "rewritten": (_DOMAIN, "format_augmented", "router_accuracy_confused"),
        "rewritten, held out": (_DOMAIN, "format_augmented", "router_accuracy_heldout"),
    },
    "keyword augmented": {
        "keywords": (_KEYWORDS, "keyword_augmented", "router_accuracy_confused"),
        "keywords, held out": (_KEYWORDS, "keyword_augmented", "router_accuracy_heldout"),
        "trap rate": (_KEYWORDS, "keyword_augmented", "keyword_trap_rate"),
    },
}
_CONDITIONS = ("normal", "rewritten", "rewritten, held out", "keywords", "keywords, held out")


def probe_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The published probes of the router above ours, in percent of right frames.

    metrics: rows of finished runs of notebook 07 on one preset and model. Index: who, router.
    Columns: the inputs, and the keyword-trap rate (how often the keywords' own frame is picked).
    Measured cells: mean over seeds with a 95 % bootstrap interval.
    """
    source = load_reference().set_index(["section", "router", "metric"])["value"]
    cells = {
        ("published", router, column): f"{float(source[key]):.1f}"
        for router, columns in _PUBLISHED_PROBES.items()
        for column, key in columns.items()
    }
    streamed = metrics[metrics["split"].str.startswith("as streamed: ")]
    found = streamed[streamed["metric"].isin(["router_accuracy", "trap_rate"])]
    for (router, split, metric), row in over_seeds(found, ["router", "split", "metric"]).iterrows():
        column = split.partition(": ")[2]
        if metric == "trap_rate":
            column = column.replace("keywords", "trap rate")
        cells["measured here", router, column] = _interval(row)
    columns = [*_CONDITIONS, "trap rate", "trap rate, held out"]
    table = pd.Series(cells).unstack().reindex(columns=columns).fillna("")
    normal = found[found["split"].str.endswith(": normal")].groupby("router")["value"].mean()
    ours = [("measured here", router) for router in normal.sort_values(ascending=False).index]
    table = table.reindex([*(("published", router) for router in _PUBLISHED_PROBES), *ours])
    table.index.names = ["who", "router"]
    return table


def router_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """All routers of notebook 03, in percent: mean over seeds with a 95 % bootstrap interval.

    metrics: rows of finished runs of notebook 03 on one preset and model. `against hybrid_svm` is
    paired: the same seeds, their differences.
    """
    headings = {
        "router_accuracy": "right frame, all texts",
        "router_accuracy_macro": "right frame, mean over tasks",
        "routed": "right answer",
        "ece": "ECE",
    }
    metrics = metrics[metrics["eval_task"].eq("") & metrics["router"].ne("")]
    found = metrics[metrics["metric"].isin(headings)]
    cells = {
        (router, headings[metric]): _interval(row)
        for (metric, router), row in over_seeds(found, ["metric", "router"]).iterrows()
    }
    found = found[found["metric"].eq("router_accuracy")]
    reference = found[found["router"].eq("hybrid_svm")].set_index("seed")["value"]
    gain = found.assign(value=found["value"] - found["seed"].map(reference))
    for router, row in over_seeds(gain, ["router"]).iterrows():
        cells[router, "against hybrid_svm"] = _interval(row)
    table = pd.Series(cells).unstack()
    table = table.reindex(columns=[*headings.values(), "against hybrid_svm"])
    table.index.name = "router"
    order = found.groupby("router")["value"].mean().sort_values(ascending=False).index
    return table.loc[order].fillna("")


# method in results/reference -> method here; the published joint run is a multi-head one too
_PUBLISHED_METHODS = {"latest": "sequential", "ewc": "ewc", "stack": "frames", "joint": "joint"}
_PUBLISHED_METHODS["routed"] = "frames"


def baseline_table(metrics: pd.DataFrame, preset: str) -> pd.DataFrame:
    """All methods of notebook 04 beside the published ones, over seeds: mean ± standard deviation.

    metrics: rows of finished runs of notebook 04 on one preset and model. Index: who, method.
    Columns: final accuracy with the task given and with the router's (percent); BWT, forgetting and
    forward transfer (percentage points; the last against an independent adapter, mean over tasks
    but the first); two paired differences from the routed stack, mean [95 % bootstrap interval]
    over all seeds and tasks; what was trained, stored and spent.
    """
    from .baselines import METHODS

    seeds = ["method", "seed"]
    whole = metrics[metrics["eval_task"].eq("")]
    summary = whole.pivot_table(index=seeds, columns="metric", values="value", sort=False)
    learned = metrics[metrics["metric"].eq("accuracy")]
    learned = learned[learned["trained_through"].eq(learned["eval_task"])]
    learned = learned.pivot_table(index=seeds, columns="eval_task", values="value", sort=False)
    if "independent" in learned.index.get_level_values(0):
        gain = (learned - learned.loc["independent"]).iloc[:, 1:].mean(axis=1)
        # What learned all at once has a last row only, and nothing to compare.
        summary["transfer"] = gain.where(learned.notna().all(axis=1))
    per_task = metrics[metrics["eval_task"].ne("") & metrics["metric"].isin(["final", "routed"])]
    per_task = per_task.set_index(["metric", *seeds, "eval_task"])["value"].sort_index()
    rows = {}
    for method in [name for name in METHODS if name in set(metrics["method"])]:
        mine = summary.loc[[method]]
        row = {"seeds": str(len(mine))}
        for heading, (metric, scale, digits) in _BASELINE_COLUMNS.items():
            row[heading] = _spread(scale * mine[metric], digits) if metric in mine else ""
        for heading, (metric, scale, digits) in _COST_COLUMNS.items():
            if metric in mine:
                row[heading] = f"{scale * mine[metric].mean():.{digits}f}"
        for heading, metric in _PAIRED_COLUMNS.items():
            if method in per_task[metric].index and (method, metric) != ("frames", "routed"):
                pairs = per_task[metric, method] - per_task["routed", "frames"]
                low, high = bootstrap_interval(pairs.dropna())
                row[heading] = f"{100 * pairs.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        rows["measured here", method] = row
    table = pd.DataFrame.from_dict(rows, "index").astype(object)
    published = load_reference()
    published = published[
        published["preset"].eq(preset)
        & published["section"].isin([f"{preset}_ewc", f"{preset}_joint", "promising"])
        & published["metric"].isin(["accuracy", "avg_forgetting"])
    ]
    for (model, seed), group in published.groupby(["model", "seed"], sort=False):
        for method in dict.fromkeys(group["method"]):
            value = group[group["method"].eq(method)].set_index("metric")["value"]
            name = _PUBLISHED_METHODS[method]
            who = f"published: {model or 'Llama-3.2, four runs'}, {seed}".rstrip(", ")
            if (who, name) not in table.index:
                table.loc[(who, name), :] = ""
            heading = "routed (%)" if method == "routed" else "task given (%)"
            table.loc[(who, name), heading] = value["accuracy"]
            if "avg_forgetting" in value:
                table.loc[(who, name), "BWT (pp)"] = f"{0.0 - float(value['avg_forgetting']):.1f}"
    table.index = pd.MultiIndex.from_tuples(table.index, names=["who", "method"])
    return table.fillna("")


_BITSTACK_COLUMNS = {  # heading -> metric, factor
    "points lost": ("final_drop", 100),
    "forgetting (pp)": ("forgetting", 100),
    "learned (%)": ("learned", 100),
    "at the end (%)": ("acc", 100),
    "first task at the end (%)": ("first_task", 100),
    "locked (% of all)": ("locked_pct", 1),
    "stored beside heads (MB)": ("stored_bytes", 1e-6),
}


def bitstack_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """The methods of notebook 05 above the published ones: mean [95 % interval] over seeds.

    metrics: rows of finished runs of notebook 05 on one preset and model. Index: who, method.
    Columns: points lost on earlier tasks (the publication's forgetting), forgetting after Chaudhry
    et al., accuracy right after learning and at the end, share locked at the end, bytes.
    """
    last = metrics[metrics["metric"].eq("locked_pct")].groupby("run_id", sort=False).tail(1)
    whole = metrics[metrics["eval_task"].eq("") & metrics["trained_through"].eq("")]
    found = over_seeds(pd.concat([whole, last]), ["method", "metric"])
    rows = {}
    for method in dict.fromkeys(metrics["method"]):
        row = {"seeds": str(int(found.loc[method, "acc"]["seeds"]))}
        for heading, (metric, scale) in _BITSTACK_COLUMNS.items():
            known = (method, metric) in found.index
            row[heading] = _interval(found.loc[method, metric], scale) if known else ""
        rows["measured here", method] = row
    published = load_reference()
    published = published[published["section"].eq("results_table")]
    published = published[published["preset"].isin(metrics["preset"])]
    headings = {"avg_forgetting": "points lost", "accuracy_final": "first task at the end (%)"}
    headings |= {"locked_share": "locked (% of all)"}
    for row in published.itertuples():
        if row.metric in headings:
            cells = rows.setdefault((f"published: {row.model}", row.method), {})
            cells[headings[row.metric]] = row.value
    table = pd.DataFrame.from_dict(rows, "index").fillna("")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["who", "method"])
    return table.sort_index(kind="stable")


def compression_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Families on one anchor, published and measured, seed by seed and over seeds.

    metrics: rows of finished runs of notebook 06 on one preset and model. Index: who, seed.
    """
    columns = ["frames", "routed, all frames (%)", "frames left", "routed, compressed (%)"]
    columns += ["adapter bytes (%)", "change (pp)"]
    published = load_reference()
    published = published[published["section"].eq("compression")]
    cell = published.set_index(["seed", "method", "metric"])["value"]
    rows = {}
    for seed in dict.fromkeys(published["seed"]):
        row = []
        for method in ("full", "compressed"):
            row.append(f"{float(cell[seed, method, 'n_frames']):.0f}")
            row.append(f"{float(cell[seed, method, 'accuracy']):.1f}")
        for metric in ("adapter_memory_change", "gain"):
            row.append(f"{float(cell[seed, 'compressed', metric]):+.1f}")
        rows["published, one anchor (sst2)", str(seed)] = row
    found = _variants(metrics)
    ours = {"published anchor": "one anchor (sst2)", "chosen anchor": "one anchor, chosen"}
    ours |= {"rule: online": "the rule, online", "rule: at the end": "the rule, at the end"}
    for split, word in ours.items():
        part = found[found["split"].eq(split)]
        for row in part.itertuples():
            cells = [f"{row.full_frames:.0f}", f"{100 * row.full_routed:.1f}", f"{row.frames:.0f}"]
            cells += [f"{100 * row.routed:.1f}"]
            cells += [f"{100 * (row.adapter_bytes / row.full_adapter_bytes - 1):+.1f}"]
            rows[f"measured here, {word}", str(row.seed)] = [*cells, f"{100 * row.change:+.1f}"]
        if len(part) > 1:
            change = _interval(over_seeds(part.assign(value=part["change"]), ["split"]).iloc[0])
            rows[f"measured here, {word}", "mean"] = [""] * 5 + [change]
    table = pd.DataFrame.from_dict(rows, "index", columns=columns)
    table.index = pd.MultiIndex.from_tuples(table.index, names=["who", "seed"])
    return table


def boundary_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What is lost when one more frame is taken from the compressed stack, in points.

    metrics: as for `compression_table`. A published cell gives seeds 42 and 123; ours are means
    with a 95 % interval. "by position": answers compared by label id, so that a frame with other
    labels can be right by luck, which is how the published numbers read.
    """
    reference = load_reference()
    published = reference[reference["section"].eq("boundary")]
    per_seed = metrics[metrics["split"].str.startswith("anchor without ")]
    names = {"loss": "lost overall", "task_loss": "lost on its own rows"}
    names |= {f"{name}_by_id": f"{heading}, by position" for name, heading in names.items()}
    rows = {}
    for split in dict.fromkeys(per_seed["split"]):
        gone = split.removeprefix("anchor without ")
        theirs = published[published["method"].eq(f"compressed_without_{gone}")]
        row = {}
        for metric, heading in (("loss", "overall"), ("accuracy_change", "own rows")):
            values = theirs.loc[theirs["metric"].eq(metric), "value"].astype(float)
            values = values if metric == "loss" else -values
            row[f"published: lost, {heading}"] = ", ".join(f"{value:.1f}" for value in values)
        part = per_seed[per_seed["split"].eq(split)]
        for metric, heading in names.items():
            mine = part[part["metric"].eq(metric)]
            row[heading] = _interval(over_seeds(mine, ["split"]).iloc[0]) if len(mine) else ""
        rows[gone] = row
    table = pd.DataFrame.from_dict(rows, "index")
    table.index.name = "frame removed"
    return table


def shrink_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Every way to shrink a stack: bytes on disk, routed accuracy, and what changed, over seeds.

    metrics: as for `compression_table`. Numbers, for `shrink_cells` and figures: frames, adapters,
    bytes (share of the full stack's), routed, change with low and high, worst (the largest loss of
    one task), seeds.
    """
    found = _variants(metrics)
    rows = {}
    for split, part in found.groupby("split", sort=False):
        change = over_seeds(part.assign(value=part["change"]), ["split"]).iloc[0]
        rows[split] = {
            "frames": part["frames"].mean(),
            "adapters": part["adapters"].mean(),
            "bytes": (part["total_bytes"] / part["full_total_bytes"]).mean(),
            "routed": part["routed"].mean(),
            "change": change["mean"],
            "low": change["low"],
            "high": change["high"],
            "worst": part["worst"].mean(),
            "seeds": change["seeds"],
        }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("variant")


def shrink_cells(table: pd.DataFrame) -> pd.DataFrame:
    """`shrink_table` as a reader wants it."""
    change = table[["change", "low", "high"]].set_axis(["mean", "low", "high"], axis=1)
    return pd.DataFrame(
        {
            "frames": table["frames"].map("{:.1f}".format),
            "adapters": table["adapters"].map("{:.1f}".format),
            "bytes on disk (%)": (100 * table["bytes"]).map("{:.1f}".format),
            "routed (%)": (100 * table["routed"]).map("{:.1f}".format),
            "change (pp)": [_interval(row) for _, row in change.iterrows()],
            "worst task (pp)": (100 * table["worst"]).map("{:+.1f}".format),
        }
    )


def _variants(metrics: pd.DataFrame) -> pd.DataFrame:
    """A row per seed and variant of notebook 06: its numbers, and the full stack's beside them."""
    saved = metrics.loc[metrics["metric"].eq("total_bytes"), "split"]
    whole = metrics[metrics["eval_task"].eq("") & metrics["split"].isin(saved)]
    table = whole.pivot_table(index=["seed", "split"], columns="metric", values="value", sort=False)
    full = table.xs("full", level="split")
    columns = ["frames", "adapter_bytes", "total_bytes", "routed"]
    beside = full[columns].add_prefix("full_")
    table = table.join(beside, on="seed")
    tasks = metrics[metrics["metric"].eq("routed") & metrics["eval_task"].ne("")]
    tasks = (
        tasks[tasks["split"].isin(saved)]
        .set_index(["seed", "split", "eval_task"])["value"]
        .sort_index()
    )
    own = tasks.xs("full", level="split")
    loss = tasks - own.reindex(tasks.index.droplevel("split")).to_numpy()
    table["worst"] = loss.groupby(level=["seed", "split"]).min()
    table["change"] = table["routed"] - table["full_routed"]
    return table.reset_index()


def generalization_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Unseen texts, published and measured: percent of right answers, and the routed stack's gain.

    metrics: rows of finished runs of notebook 09 on one preset and model. Index: who, seed.
    """
    names = {"latest": "latest adapter", "routed": "routed stack"}
    names |= {"best_single_frame": "best single frame", "oracle": "oracle"}
    published = load_reference()
    published = published[published["section"].eq("generalization")]
    published = published[published["metric"].eq("accuracy")]
    cells = {}
    for row in published.itertuples():
        cells["published", str(row.seed), names[row.method]] = float(row.value)
    whole = metrics[metrics["metric"].str.startswith("mean_")]
    for row in whole.itertuples():
        group = row.metric.removeprefix("mean_")
        cells[f"measured here, {group} tasks", str(row.seed), row.split] = 100 * row.value
    table = pd.Series(cells).unstack().reindex(columns=list(names.values()))
    gain = "routed - latest (pp)"
    table[gain] = table["routed stack"] - table["latest adapter"]
    shown = table.map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
    for who, part in table.groupby(level=0, sort=False):
        if who != "published" and len(part) > 1:
            spread = {
                name: _interval(pd.Series([values.mean(), *bootstrap_interval(values)],
                                          index=["mean", "low", "high"]), 1)
                for name, values in part.items()
            }  # fmt: skip
            shown.loc[(who, "mean"), :] = spread
    order = {"published": 0, "measured here, all tasks": 1, "measured here, seen tasks": 2}
    shown.index.names = ["who", "seed"]
    return shown.sort_index(level="who", key=lambda s: s.map(order).fillna(3), kind="stable")


def generative_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Written answers, published and measured, in percent. Index: who, seed.

    metrics: rows of finished runs of notebook 08 on one preset and model.
    """
    names = ["latest adapter", "own frame", "routed stack"]
    published = load_reference()
    published = published[published["section"].eq("generative")]
    value = published.set_index(["method", "metric"])["value"].astype(float)
    cells = {
        "latest adapter": f"{value['latest', 'accuracy']:.1f}",
        "routed stack": f"{value['routed', 'accuracy']:.1f}",
        "saved frames' drop (pp)": f"{value['stack', 'avg_forgetting']:.1f}",
        "router accuracy": f"{value['routed', 'router_accuracy']:.1f}",
    }
    rows = {("published", "2 seeds"): cells}
    whole = metrics[metrics["eval_task"].eq("") & metrics["trained_through"].eq("")]
    wanted = {("mean_written", who): who for who in names}
    wanted |= {("mean_unreadable", "own frame"): "unreadable, own frame"}
    wanted |= {("mean_router_accuracy", "eval"): "router accuracy"}
    for (metric, split), heading in wanted.items():
        part = whole[whole["metric"].eq(metric) & whole["split"].eq(split)]
        for row in part.itertuples():
            rows.setdefault(("measured here", str(row.seed)), {})[heading] = (
                f"{100 * row.value:.1f}"
            )
        if part["seed"].nunique() > 1:
            interval = _interval(over_seeds(part, ["metric"]).iloc[0])
            rows.setdefault(("measured here", "mean"), {})[heading] = interval
    accuracy = metrics[metrics["metric"].isin(["accuracy", "choice"])]
    learned = accuracy[accuracy["trained_through"].eq(accuracy["eval_task"])]
    learned = learned.set_index(["seed", "eval_task"])["value"]
    kept = accuracy[accuracy["metric"].eq("choice")].set_index(["seed", "eval_task"])["value"]
    for seed, drop in (learned - kept).groupby("seed").mean().items():
        rows["measured here", str(seed)]["saved frames' drop (pp)"] = f"{100 * drop:.1f}"
    columns = [*names, "saved frames' drop (pp)", "unreadable, own frame", "router accuracy"]
    table = pd.DataFrame.from_dict(rows, "index").reindex(columns=columns).fillna("")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["who", "seed"])
    return table


def written_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Written answers per task in percent, mean over seeds: chance, latest adapter, own frame and
    the lower 95 % limits of each seed (bootstrap over its rows), routed stack, router accuracy.

    metrics: as in `generative_table`.
    """
    here = metrics[metrics["eval_task"].ne("")]
    tasks = list(dict.fromkeys(here["eval_task"]))

    def mean(metric: str, split: str) -> pd.Series:
        part = here[here["metric"].eq(metric) & here["split"].eq(split)]
        return 100 * part.groupby("eval_task")["value"].mean()

    low = here[here["metric"].eq("written_low") & here["split"].eq("own frame")]
    limits = (100 * low.set_index(["eval_task", "seed"])["value"]).map("{:.1f}".format)
    columns = {
        "chance": mean("chance", "eval"),
        "latest adapter": mean("written", "latest adapter"),
        "own frame": mean("written", "own frame"),
        "own frame, lower limits": limits.groupby("eval_task", sort=False).agg(", ".join),
        "routed stack": mean("written", "routed stack"),
        "router accuracy": mean("router_accuracy", "eval"),
    }
    return pd.DataFrame(columns).loc[tasks].rename_axis("task")


def memory_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """What examples in the prompt change: right answers in percent with nothing shown, then
    differences from that in points. Per task the mean over seeds; the mean over tasks with its
    95 % bootstrap interval over seeds and tasks.

    metrics: as in `generative_table`. Index: who, shown.
    """
    part = metrics[metrics["metric"].eq("memory")]
    value = part.set_index(["split", "seed", "eval_task"])["value"]
    rows = {}
    for split in dict.fromkeys(part["split"]):
        who, shown = split.split(": ")
        gain = 100 * (
            value[split] if shown == "nothing" else value[split] - value[f"{who}: nothing"]
        )
        form = "{:.1f}" if shown == "nothing" else "{:+.1f}"
        means = gain.groupby("eval_task", sort=False).mean()
        numbers = pd.Series([*means, gain.mean(), *bootstrap_interval(gain)]).round(1) + 0.0
        *cells, mean, low, high = numbers.map(form.format)
        cells = dict(zip(means.index, cells, strict=True)) | {"mean": f"{mean} [{low}, {high}]"}
        rows[who, shown] = cells
    table = pd.DataFrame.from_dict(rows, "index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["who", "shown"])
    return table


def share_curve(metrics: pd.DataFrame) -> pd.DataFrame:
    """Points lost and accuracy learned against BitStack's share, for `plotting.curves`.

    metrics: as for `bitstack_table`. Columns: line (its label), share, metric (``drop`` or
    ``learned``), percent: a line per seed, and the published one.
    """
    whole = metrics[metrics["eval_task"].eq("") & metrics["trained_through"].eq("")]
    here = whole[whole["method"].str.match(r"baseline$|bitstack_")]
    names = {"final_drop": "drop", "learned": "learned"}
    here = here[here["metric"].isin(names)]
    ours = pd.DataFrame(
        {
            "line": "seed " + here["seed"].astype(str),
            "share": here["method"].str.extract(r"_([\d.]+)")[0].astype(float).fillna(0.0),
            "metric": here["metric"].map(names),
            "percent": 100 * here["value"],
        }
    )
    published = load_reference()
    published = published[
        published["section"].eq("results_table")
        & published["metric"].eq("avg_forgetting")
        & published["preset"].isin(metrics["preset"])
    ]
    theirs = pd.DataFrame(
        {
            "line": "published, " + published["model"],
            "share": published["method"].str.extract(r"_([\d.]+)")[0].astype(float).fillna(0.0),
            "metric": "drop",
            "percent": pd.to_numeric(published["value"]),
        }
    )
    # Seeds first, so that a seed has the same colour in figures with and without published lines.
    order = ["line", "share"]
    return pd.concat([ours.sort_values(order), theirs.sort_values(order)], ignore_index=True)


def order_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Other streams of notebook 04 beside the published ones, percent, mean ± deviation over seeds.

    metrics: rows of finished runs on one model. Index: who, stream, method; the order probe
    (`hard5` forward and reversed), then orders 1 to 3 of the standard benchmark and their mean.
    """
    streams = ["hard5", "hard5_reversed", *(f"standard4_order{i}" for i in (1, 2, 3))]
    whole = metrics[metrics["eval_task"].eq("") & metrics["preset"].isin(streams)]
    columns = {"task given (%)": "acc", "routed (%)": "routed"}
    whole = whole[whole["metric"].isin(columns.values())]
    standard = whole[whole["preset"].str.startswith("standard4")]
    complete = standard.groupby("method")["preset"].transform("nunique").ge(3)
    mean = standard[complete].assign(preset="standard4, mean of the orders")
    rows = {}
    for part in (whole, mean):
        part = part.groupby(["preset", "method", "seed", "metric"], sort=False)["value"].mean()
        for (stream, method), group in part.groupby(level=[0, 1], sort=False):
            row = {"seeds": str(group.index.get_level_values("seed").nunique())}
            for heading, metric in columns.items():
                row[heading] = _spread(100 * group[group.index.isin([metric], level=3)], 1)
            rows["measured here", stream, method] = row
    if not rows:
        return pd.DataFrame()
    reference = load_reference()
    for row in reference[reference["section"].eq("standard_benchmark")].itertuples():
        who = f"published, {row.model}: {row.source.split(',')[0]}"
        rows[who, "standard4, mean of the orders", row.method] = {"task given (%)": row.value}
    order = reference[reference["section"].eq("not_proven_order")]
    for row in order[order["metric"].eq("accuracy")].itertuples():
        stream = "hard5_reversed" if "reverse" in row.method else "hard5"
        rows["published, Llama-3.2-1B", stream, "frames"] = {"routed (%)": row.value, "seeds": "2"}
    table = pd.DataFrame.from_dict(rows, "index").fillna("")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["who", "stream", "method"])
    rank = {name: i for i, name in enumerate([*streams, "standard4, mean of the orders"])}
    return table.sort_index(level="stream", key=lambda s: s.map(rank), kind="stable")


_BASELINE_COLUMNS = {  # heading -> metric, factor, digits
    "task given (%)": ("acc", 100, 1),
    "routed (%)": ("routed", 100, 1),
    "BWT (pp)": ("bwt", 100, 1),
    "forgetting (pp)": ("forgetting", 100, 1),
    "FWT (pp)": ("transfer", 100, 1),
}
_COST_COLUMNS = {  # the same for every seed, or nearly
    "trained (M)": ("trained_parameters", 1e-6, 2),
    "stored (MB)": ("stored_bytes", 1e-6, 1),
    "learning (s)": ("learning_seconds", 1, 0),
}
_PAIRED_COLUMNS = {  # minus the routed stack
    "task given - routed stack (pp)": "final",
    "routed - routed stack (pp)": "routed",
}


def _spread(values: pd.Series, digits: int) -> str:
    """Mean ± standard deviation over seeds; the mean alone for one seed."""
    values = values.dropna()
    if not len(values):
        return ""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def _interval(row: pd.Series, scale: float = 100) -> str:
    """A row of `over_seeds`, in percent by default: mean [low, high]."""
    mean, low, high = scale * row[["mean", "low", "high"]]
    return f"{mean:.1f}" if math.isnan(low) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


# ---------------------------------------------------------------------- the machine and files


def versions() -> dict[str, str]:
    """The versions that decide what a run gives."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def describe_device(device: str) -> str:
    """The processor that did the work, e.g. ``cpu: AMD EPYC, 2 threads``."""
    import torch

    if device.startswith("cuda"):
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found.group(1) if found else model
    except OSError:
        pass
    return f"{device}: {model}, {torch.get_num_threads()} threads"


def _git() -> dict:
    def git(*words: str) -> str:
        command = ["git", "-C", str(repo_root()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # What runs leave under results/ does not make the code another one.
        dirty = bool(git("status", "--porcelain", "--", ".", ":(exclude)results"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def explain(error: OSError) -> str:
    """An operating-system error in plain words."""
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)


def sync(path: Path) -> None:
    """Make sure a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; an error that names it if it is missing."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else explain(error)
        raise SkillStackError(f"{path} {reason}") from None
    return total.hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step that survives a crash: all of the content or the old file."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, aside = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes it private
        os.replace(aside, path)
        sync(path.parent)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- command line


def show(folder: Path) -> str:
    """The result table of every finished run below a folder, and where its files are."""
    lines = []
    for path in sorted(folder.glob("**/run.json")):
        if read_facts(path.parent)["status"] != "finished":
            continue
        metrics = read_metrics(path.parent / "metrics.csv")
        table = beside_published(metrics, metrics["preset"].iloc[0])
        lines += [path.parent.name, table.T.round(2).to_string(na_rep="-"), ""]
        figures = sorted(path.parent.glob("*.png"))
        lines += [f"results   {path.parent}", *(f"figure    {figure}" for figure in figures), ""]
    return "\n".join(lines) if lines else f"no finished run below {folder}"


def readme_tables(name: str) -> str:
    """A table of the README as Markdown, from the committed runs: a preset's published columns,
    ``routers_<preset>``, ``probe_<preset>``, ``baselines_<preset>``, ``bitstack_<preset>``,
    ``compression_<preset>``, ``boundary_<preset>``, ``shrink_<preset>``,
    ``generalization_<preset>``, ``generative_<preset>``, ``written_<preset>``,
    ``memory_<preset>`` or ``orders``."""
    runs = load_runs()
    kind, _, preset = name.partition("_")
    if kind == "routers":
        here = runs["preset"].eq(preset) & runs["method"].eq("routers")
        table = router_table(runs[here])
    elif kind == "baselines":
        here = runs["preset"].eq(preset) & runs["run_id"].str.startswith("04_baselines-")
        table = baseline_table(runs[here], preset)
    elif kind == "bitstack":
        here = runs["preset"].eq(preset) & runs["run_id"].str.startswith("05_bitstack-")
        table = bitstack_table(runs[here])
    elif kind in ("compression", "boundary", "shrink"):
        here = runs[runs["preset"].eq(preset) & runs["method"].eq("compression")]
        tables = {"compression": compression_table, "boundary": boundary_table}
        table = tables[kind](here) if kind in tables else shrink_cells(shrink_table(here))
    elif kind == "generalization":
        here = runs["preset"].eq(preset) & runs["method"].eq("generalization")
        table = generalization_table(runs[here])
    elif kind in ("generative", "written", "memory"):
        here = runs["preset"].eq(preset) & runs["method"].eq("generative")
        tables = {"generative": generative_table, "written": written_table, "memory": memory_table}
        table = tables[kind](runs[here])
    elif name == "orders":
        table = order_table(runs[runs["run_id"].str.startswith("04_baselines-")])
    elif kind == "probe":
        table = probe_table(runs[runs["preset"].eq(preset) & runs["method"].eq("probe")])
    else:
        table = beside_published(runs[runs["preset"].eq(name)], name)
    table = table.reset_index()
    digits = [2 if "depth" in column else 1 for column in table]
    cells = [list(map(_cell, row, digits)) for row in table.to_numpy()]
    rows = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value, digits: int) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{digits}f}"
    return str(value)


def readme(text: str) -> str:
    """README text with every block ``<!-- table: PRESET -->`` … ``<!-- end -->`` filled anew."""

    def fill(found: re.Match) -> str:
        return f"<!-- table: {found[1]} -->\n{readme_tables(found[1])}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def _readme_picture(path: Path) -> None:
    from . import plotting

    runs = load_runs()
    run = runs[runs["preset"].eq("hard8") & runs["model"].eq("minilm") & runs["seed"].eq(42)]
    run = run[run["method"].eq("stack")]
    if len(run):
        plotting.task_bars(per_task(run)).figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m skillstack_helpers.results")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="print the result tables below a folder")
    command.add_argument("folder", type=Path)
    commands.add_parser("readme", help="fill the README from the committed runs")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "show":
            print(show(arguments.folder))
        else:
            path = repo_root() / "README.md"
            write_atomic(path, readme(path.read_text(encoding="utf-8")))
            _readme_picture(repo_root() / "docs" / "hard8.png")
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
