"""Where runs are kept: a folder each, written so that it can be killed, resumed and read back.

``<output_dir>/<run_id>/``: run.json (what was run, where, on which rows), metrics.csv (tidy, one
measured number a row) and the tables beside it. Every file is replaced in one step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from io import BytesIO, StringIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import filelock
import pandas as pd

from ..config import TrainingConfig
from ..errors import SkillStackError, first_line
from ..files import (
    OBJECT,
    TEXT,
    aside,
    check_fields,
    explain,
    file_sha256,
    read_bytes,
    read_json,
    sealed_json,
    sweep,
    sync,
    versions,
    write_or_say,
)
from ..progress import progress
from ..tasks import TASKS, TaskData
from .display import Drawn, png, seeds_said, show_picture, show_sentences
from .parameters import RunConfig, own, placed, repo_root

if TYPE_CHECKING:  # figures are drawn from runs without torch
    from ..backbones import Backbone

TABLES = (".csv", ".parquet", ".jsonl")  # beside run.json, which has their digests at the end
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

# What is read of run.json.
_FACTS = {"status": TEXT, "run_id": TEXT, "config": OBJECT, "method": TEXT, "data": OBJECT}
_FACTS |= {"device": TEXT, "backbone": OBJECT, "sha256": OBJECT}


class Run:
    """One run's folder; made by `open_run`. Of a finished run nothing changes but its figures.

    model: the backbone as tables name it.
    """

    def __init__(self, folder: Path, config: RunConfig, method: str, model: str):
        self.folder, self.config, self.method, self.model = folder, config, method, model
        self.answers: list[str] = []  # of the figures drawn
        self.facts: dict = {}
        self.metrics = pd.DataFrame(columns=COLUMNS)
        self._start = time.perf_counter()

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return self.facts.get("status") == "finished"

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Task -> label names, of all whose rows the run read."""
        names = {name: rows.get("labels") for name, rows in self.facts["data"].items()}
        return {n: tuple(some or TASKS[n].label_names) for n, some in names.items()}

    @property
    def stack_dir(self) -> Path:
        """Where the run keeps its frames."""
        return self.folder / "stack"

    def unfinished(self, items: Iterable, step: str) -> Iterator:
        """The items (names, or what has a name) that this step of the run has not been through,
        behind a progress bar.

        An item counts when the loop's body has run to its end, so that an interrupted run goes on
        with the item it was at; of a finished run nothing is left.
        """
        done = self.facts.setdefault("done", {}).setdefault(step, [])
        left = [] if self.finished else [item for item in items if _name(item) not in done]
        for item in progress(left, step):
            yield item
            done.append(_name(item))
            self._write_facts()

    def record(
        self,
        metric: str,
        value,
        *,
        unit: str = "fraction",
        trained_through: str = "",
        eval_task: str = "",
        split: str = "eval",
        router: str = "",
        n: int | None = None,
    ) -> float:
        """Add or replace one measured number and write metrics.csv; returns the value.

        value: a number, or an `Evaluation`, of which accuracy and number of rows are kept. What a
        finished run has on file stays.
        """
        n = len(value.labels) if n is None and hasattr(value, "labels") else n or 0
        value = float(getattr(value, "accuracy", value))
        if self.finished:
            return value
        row = dict(run_id=self.id, seed=self.config.seed, model=self.model)
        row |= dict(preset=self.config.preset, method=self.method, router=router)
        row |= dict(trained_through=trained_through, eval_task=eval_task, split=split)
        row |= dict(metric=metric, value=value, unit=unit, n=int(n))
        keys = ["router", "trained_through", "eval_task", "split", "metric"]
        same = (self.metrics[keys] == [row[key] for key in keys]).all(axis=1)
        rows = [*self.metrics[~same].to_dict("records"), row]
        self.metrics = pd.DataFrame(rows, columns=COLUMNS)
        self.save("metrics.csv", self.metrics)
        return value

    def value(self, metric: str, **where: str) -> float:
        """One recorded number; where: values of columns, by default those of the whole run (no
        task). NaN where it was not measured."""
        where = {"trained_through": "", "eval_task": ""} | where | {"metric": metric}
        found = self.metrics[(self.metrics[list(where)] == list(where.values())).all(axis=1)]
        return float(found["value"].iloc[0]) if len(found) else math.nan

    def matrix(self, tasks: Sequence[str | TaskData]) -> pd.DataFrame:
        """acc[i, j] as fractions: rows trained through, columns evaluated on, NaN if missing."""
        tasks = [_name(task) for task in tasks]
        cells = [
            [self.value("accuracy", trained_through=i, eval_task=j) for j in tasks] for i in tasks
        ]
        return pd.DataFrame(cells, index=pd.Index(tasks, name="trained_through"), columns=tasks)

    def table(
        self, name: str, make: Callable[[], pd.DataFrame], index_col: int | None = None
    ) -> pd.DataFrame:
        """The run's table of that name: read, or made, written and read."""
        if not (self.folder / name).exists():
            self.save(name, make())
        return self.read(name, index_col)

    def save(self, name: str, table: pd.DataFrame) -> None:
        """Write a table beside metrics.csv: .csv, .parquet or .jsonl by its name. What a finished
        run has on file stays."""
        if self.finished and name in self.facts.get("sha256", {}):
            return
        index = not isinstance(table.index, pd.RangeIndex)
        if name.endswith(".parquet"):
            content = table.to_parquet(index=index, compression="zstd")
        elif name.endswith(".jsonl"):
            content = table.to_json(orient="records", lines=True)
        else:
            content = table.to_csv(index=index, lineterminator="\n")
        self._write(name, content)
        if self.finished:
            self._write_facts()

    def read(self, name: str, index_col: int | None = None) -> pd.DataFrame:
        """Read such a table back."""
        return _read_table(self.folder / name, index_col, self.facts)

    def figure(self, name: str, drawn: Drawn) -> None:
        """Keep a figure as <name>.png, and show it with its caption."""
        content = png(drawn.figure)
        self._write(f"{name}.png", content)
        self.answers.append(drawn.answer)
        show_picture(content, drawn.alt, self.caption(drawn))

    def caption(self, drawn: Drawn) -> str:
        """What to look at in a figure of this run, and what it was measured on."""
        config, (device, _, _) = self.config, self.facts["device"].partition(":")
        rows = f"{config.n_train} training and {config.n_eval} evaluation rows per class"
        if drawn.models:  # each says its own seeds and precision
            facts = [*drawn.models, rows, device]
        else:
            facts = [self.model, seeds_said(drawn.seeds or [config.seed]), rows]
            facts.append(f"{device}, {self.facts['backbone']['dtype']}")
        return f"{drawn.look} {'; '.join([config.preset, *facts])}."

    def conclude(self, *more: str) -> None:
        """Show what came out: the answers of the figures, and more sentences. They are kept, and
        shown when the finished run is opened again."""
        self._write("answers.json", json.dumps([*self.answers, *more]) + "\n")
        show_sentences([*self.answers, *more])

    def alike(self) -> pd.DataFrame:
        """The metrics of all finished runs of this notebook on the same preset, model, dtype and
        budget, whatever seed and method; with rows from the same source, and of this method and
        seed this run alone. Of a method with parameters of its own, of several runs of a seed the
        one with this run's; none that was tuned on another stream."""
        same = {"preset": self.config.preset, "model": self.model}
        same |= {"dtype": self.facts["backbone"]["dtype"]}
        same |= {"notebook": self.config.notebook, "budget": budget(vars(self.config))}
        same |= {"tasks": ", ".join(self.facts["data"]), "source": _source(self.facts["data"])}
        found = load_runs(self.config.output_dir, **same)
        mine = found["method"].map(lambda method: own(vars(self.config), method))
        found = found[tuned_on(found["own"]).eq(tuned_on(mine))]
        twin = found["method"].eq(self.method) & found["seed"].eq(self.config.seed)
        found = found[~twin | found["run_id"].eq(self.id)]
        several = found.groupby(["method", "seed"])["run_id"].transform("nunique").gt(1)
        return found[~several | found["own"].eq(mine[found.index])]

    def read_alike(self, name: str, index_col: int | None = None) -> list[tuple[int, pd.DataFrame]]:
        """The table of that name of every run that is alike and of this method, with the seed."""
        alike = self.alike()
        runs = alike.loc[alike["method"].eq(self.method), ["run_id", "seed"]].drop_duplicates()
        folders = [(seed, self.folder.parent / run) for run, seed in runs.itertuples(index=False)]
        return [(s, _read_table(f / name, index_col, read_facts(f))) for s, f in folders]

    def finish(self) -> None:
        """Mark the run finished and let others open it."""
        if not self.finished:
            self.facts |= {"status": "finished", "finished": _now()}
            self._write_facts()
            self._lock.release()

    def _write_facts(self) -> None:
        spent, self._start = time.perf_counter() - self._start, time.perf_counter()
        self.facts["seconds"] = round(self.facts.get("seconds", 0.0) + spent, 1)
        if self.finished:
            tables = sorted(p for p in self.folder.iterdir() if p.suffix in TABLES)
            self.facts["sha256"] = {path.name: file_sha256(path) for path in tables}
        self._write("run.json", sealed_json(self.facts))

    def _write(self, name: str, content: str | bytes) -> None:
        write_or_say(self.folder / name, content)


def open_run(
    config: RunConfig, stream: Sequence[TaskData], backbone: Backbone, method: str = "stack"
) -> Run:
    """The folder of this run: new, interrupted (it goes on), or finished (nothing is left to do).

    A run is what it measures: parameters, rows and backbone by content, not by path. On other rows
    or weights it is another run. Raises `SkillStackError` if the folder cannot be written, locked
    or renamed in, or another process works in it.
    """
    folder = placed(config.output_dir) / run_id(config, stream, backbone, method)
    if asks := os.environ.get("SKILLSTACK_OPENED"):  # a sweep: which runs does the notebook open?
        with open(asks, "a") as opened:
            opened.write(f"{folder}\n")
    run = Run(folder, config, method, _model(backbone))
    path = folder / "run.json"
    if not path.exists() or read_facts(folder)["status"] != "finished":
        step = "write to"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
            step = "lock a file in"
            run._lock = filelock.FileLock(folder / ".lock", is_singleton=True)
            run._lock.acquire(timeout=0)
            step = "rename a folder in"
            _rename_a_folder(folder)
        except filelock.Timeout:
            raise SkillStackError(f"another process is working on {folder}") from None
        except OSError as error:
            reason = f"cannot {step} {folder}: {explain(error)}"
            remedy = "set output_dir to a folder on this machine's own disk"
            raise SkillStackError(f"{reason}; {remedy}") from None
    if path.exists():
        run.facts = read_facts(folder)  # behind the lock: it may have been finished meanwhile
        if (folder / "metrics.csv").exists():
            run.metrics = read_metrics(folder / "metrics.csv", run.facts)
        if run.finished:
            print(f"{run.id} is finished: its numbers are read. To measure again, delete")
            print(f"{folder} or set another output_dir.")
            if (folder / "answers.json").exists():
                show_sentences(read_json(folder / "answers.json"))
            return run
    code = {"started": _now(), "versions": versions(), **_git()}
    if run.facts:
        run.facts.setdefault("resumed", []).append(code)
    else:
        fields = {k: v for k, v in vars(config).items() if k not in ("data_dir", "output_dir")}
        run.facts = {"run_id": folder.name, "status": "running", "config": fields}
        run.facts |= {"method": method, **code, "data": _rows(stream)}
        # The config's max_length is what was asked for; no text is longer than `max_positions`.
        model = backbone.identity() | {"max_positions": backbone.max_positions}
        run.facts |= {"backbone": model, "device": describe_device(backbone.device)}
    sweep(folder, locked=True)
    run._write_facts()
    return run


def _rename_a_folder(folder: Path) -> None:
    """As a frame does when it is saved: a mounted drive that cannot says so before training."""
    one, other = aside(folder), aside(folder)
    one.mkdir()
    try:
        sync(one)
        os.rename(one, other)
        other.rmdir()
    except BaseException:
        shutil.rmtree(one, ignore_errors=True)
        raise


def run_id(
    config: RunConfig, stream: Sequence[TaskData], backbone: Backbone, method: str = "stack"
) -> str:
    """``<notebook>-<preset>-<model>-<method>-s<seed>-<hash8>``; what is measured makes the hash."""
    revision = {key: backbone.identity()[key] for key in ("revision", "dtype", "quantization")}
    rows = {name: row["fingerprint"] for name, row in _rows(stream).items()}
    device = backbone.device.partition(":")[0]
    return hashed_id(config, method, _model(backbone).split()[0], revision, rows, device)


def hashed_id(
    config: RunConfig, method: str, model: str, revision: Mapping, rows: Mapping, device: str
) -> str:
    """The id from its parts."""
    what = {"config": config.identity(method), "backbone": revision, "rows": rows, "device": device}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    model = re.sub(r"[^a-z0-9_.]+", "_", model.split("/")[-1].lower())
    parts = (config.notebook, config.preset, model, method, f"s{config.seed}", digest)
    return "-".join(part for part in parts if part)


def _rows(stream: Sequence[TaskData]) -> dict:
    return {
        data.name: {"source": data.source, "fingerprint": data.fingerprint}
        | ({} if data.name in TASKS else {"labels": data.task.label_names})
        for data in stream
    }


def _source(rows: Mapping) -> str:
    return ", ".join(sorted({row["source"] for row in rows.values()}))


def _name(item) -> str:
    return str(getattr(item, "name", item))


def _model(backbone: Backbone) -> str:
    """The backbone as it is named in tables: of a folder the last part, with its quantization."""
    name = backbone.name
    name = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
    return " ".join(filter(None, (name, backbone.quantize)))


# ---------------------------------------------------------------------- reading


def read_facts(folder: Path) -> dict:
    """run.json of a run's folder."""
    try:
        path = Path(folder) / "run.json"
        facts = read_json(path, ("status", "run_id", "config"))
        check_fields(str(path), facts, _FACTS, ("data", "method", "sha256", "device", "backbone"))
        return facts
    except SkillStackError as error:
        raise SkillStackError(f"{error}; delete the folder") from None


def _read_table(path: Path, index_col: int | None, facts: Mapping) -> pd.DataFrame:
    content = BytesIO(read_bytes(path, facts.get("sha256", {}).get(path.name)))
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(content)
        if path.suffix == ".jsonl":
            return pd.read_json(content, lines=True)
        return pd.read_csv(content, index_col=0 if path.name == "matrix.csv" else index_col)
    except (OSError, ValueError) as error:  # pyarrow's and pandas' own are kinds of these
        raise SkillStackError(f"{path} is damaged: {first_line(error)}") from None


def read_metrics(path: Path, facts: Mapping = MappingProxyType({})) -> pd.DataFrame:
    """One metrics.csv; facts: the run's, which have its digest once it is finished."""
    content = BytesIO(read_bytes(path, facts.get("sha256", {}).get(path.name)))
    try:
        table = pd.read_csv(content, keep_default_na=False, dtype={"seed": int})
        table["value"] = pd.to_numeric(table["value"].replace("", "nan"))
        return table[list(COLUMNS)]
    except (ValueError, KeyError) as error:
        raise SkillStackError(f"{path} is damaged: {first_line(error)}") from None


def read_run(folder: str | Path) -> Run:
    """A finished run as it was kept, without its backbone."""
    folder = placed(folder)
    facts = read_facts(folder)
    metrics = read_metrics(folder / "metrics.csv", facts)
    try:
        config = RunConfig(**facts["config"], output_dir=str(folder.parent))
    except (SkillStackError, TypeError) as error:
        raise SkillStackError(f"{folder / 'run.json'}: {error}") from None
    run = Run(folder, config, facts["method"], metrics["model"].iloc[0])
    run.facts, run.metrics = facts, metrics
    return run


def load_runs(folder: str | Path = "results/runs", **where: str) -> pd.DataFrame:
    """The metrics of all finished runs below a folder, one table; where: values of its columns.

    Columns: those of metrics.csv, notebook, budget (what was spent on training and rows, see
    `budget`; only runs of one model, dtype and budget may be averaged), dtype of the backbone,
    source of the rows, tasks, and the method's own parameters (see `parameters.own`).
    """
    columns = [*COLUMNS, "notebook", "budget", "source", "tasks", "own", "dtype"]
    tables = [pd.DataFrame(columns=columns)]
    for path in sorted(placed(folder).glob("*/run.json")):
        facts = read_facts(path.parent)
        more = {"notebook": facts["config"].get("notebook", "")}
        more |= {"budget": budget(facts["config"]), "source": _source(facts.get("data", {}))}
        more |= {"tasks": ", ".join(facts.get("data", {}))}
        more |= {"own": own(facts["config"], facts.get("method", ""))}
        more |= {"dtype": facts.get("backbone", {}).get("dtype", "")}
        # run.json tells most runs that are not meant, without reading their metrics.
        known = more | {"preset": facts["config"].get("preset")}
        meant = all(known[column] == where[column] for column in known.keys() & where.keys())
        if facts["status"] == "finished" and meant:
            tables.append(read_metrics(path.parent / "metrics.csv", facts).assign(**more))
    table = pd.concat(tables[1:] or tables, ignore_index=True)
    return table[(table[list(where)] == list(where.values())).all(axis=1)] if where else table


def tuned_on(parameters: pd.Series) -> pd.Series:
    """The stream that runs with these own parameters were tuned on, "" for their own."""
    return parameters.str.extract(r"^tuned_on (\w+)", expand=False).fillna("")


def budget(config: Mapping) -> str:
    """What a run spends on training and rows, and who routes, in words; missing parameters have
    their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    names = ["router", "n_train", "n_router", "n_eval", "n_held_back", "train_on_router"]
    names += [f.name for f in dataclasses.fields(TrainingConfig) if f.name != "seed"]
    return ", ".join(f"{name} {({**defaults, **config})[name]}" for name in names)


def load_published() -> pd.DataFrame:
    """Every published number, with its source and the words it was published under."""
    folder = files("skillstack_helpers") / "published"
    paths = sorted(p for p in folder.iterdir() if p.name.endswith(".csv"))
    tables = [pd.read_csv(StringIO(p.read_text("utf-8")), keep_default_na=False) for p in paths]
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------------- the machine


def describe_device(device: str) -> str:
    """The processor that does the work, e.g. ``cpu: AMD EPYC, 2 threads``."""
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
        # What runs leave under results/runs does not make the code another one.
        dirty = bool(git("status", "--porcelain", "--", ".", ":(exclude)results/runs"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
