"""Notebooks over seeds and models, several at a time: ``python -m skillstack_helpers.lab.sweep``.

A job is one notebook with one set of parameters, executed by papermill in a process of its own, on
whichever of joblib's backends (see `jobs`). All work in one output folder, which every machine has
to see. In it ``sweep/<job>`` is kept: ``.ipynb`` (as executed), ``.log`` and ``.json``, the job's
record: its parameters and seconds, the runs it opened (`open_run` tells), and what it was executed
with, by digest: code, rows, backbone. A job is skipped while its record is true, which is asked
without a kernel or a model in memory:
- code: the notebook's code cells and the package's modules, all but `NOT_MEASURING`, by SHA-256.
- rows: the fingerprints of the stream, which is loaded again. Rows that a notebook loads beside its
  stream (06, 09) are not looked at.
- backbone: revision, precision and kind of device, as they are here; on a cluster that is the
  machine that starts the jobs.
- every run that it opened is there and finished. A notebook that opens none is never skipped.

What is not true any more is executed again. The notebook then decides by `run_id`, which knows rows
and backbone and not the code: of a finished run it reads the numbers and measures nothing. The
table at the end says "read" of such a job. To measure with new code, delete the run's folder.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from joblib import cpu_count
from tqdm.std import tqdm

from ..errors import SkillStackError, checked_name, did_you_mean
from ..files import file_sha256, read_json, write_atomic
from ..progress import progress
from ..tasks import find_task
from .jobs import NEEDS, drive, over
from .parameters import RunConfig, placed, repo_root

NOT_MEASURING = {"progress.py"} | {
    f"lab/{name}.py" for name in "display jobs names plotting sweep views widgets".split()
}
OPTIONS = {"seed": "--seeds", "model": "--models", "preset": "--preset"}
OPTIONS |= {"output_dir": "--output-dir"}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One notebook with one set of parameters."""

    notebook: Path
    config: RunConfig  # the notebook's own parameters, and the given ones
    given: dict
    name: str  # of its files

    @property
    def runs(self) -> Path:
        return placed(self.config.output_dir)

    @property
    def path(self) -> Path:
        return self.runs / "sweep" / f"{self.name}.json"

    def record(self) -> dict:
        """What was kept of the last time; empty where there is nothing."""
        return read_json(self.path, ("status", "runs")) if self.path.exists() else {}

    @property
    def kind(self) -> tuple:
        """What jobs have in common that take about as long."""
        return self.runs, self.config.notebook, self.config.preset, self.config.model


def plan(
    notebooks: Sequence[str], seeds: Sequence = (), models: Sequence[str] = (), **given: object
) -> list[Job]:
    """The jobs, a notebook after the other, so that later ones find the stacks of the first.

    given: fields of `RunConfig` for all jobs; what is not given is as the notebook has it. Raises
    `SkillStackError` for the first thing that is wrong in any of them.
    """
    from .runs import hashed_id

    fields, jobs = {f.name for f in dataclasses.fields(RunConfig)} - {"notebook"}, []
    for name in given:
        if name not in fields:
            raise SkillStackError(f"unknown parameter {name!r}{did_you_mean(name, fields)}")
    paths = [_find(name) for name in notebooks]
    stems = [path.stem for path in paths]
    for what, values in (("notebook", stems), ("seed", seeds), ("model", models)):
        if twice := next((value for value in values if list(values).count(value) > 1), None):
            raise SkillStackError(f"{what} {twice} is given twice")
    over_all = [[{"seed": seed} for seed in seeds] or [{}], [{"model": m} for m in models] or [{}]]
    for path, seed, model in itertools.product(paths, *over_all):
        own = {name: value for name, value in _own_parameters(path).items() if name in fields}
        mine = given | seed | model
        config = RunConfig(notebook=path.stem, **own | mine)
        for task in config.task_names:
            find_task(task, config.data_dir)
        what = {name: value for name, value in mine.items() if name != "output_dir"}
        name = hashed_id(config, "", config.model, {}, what, "")
        jobs.append(Job(path, config, mine, name))
    return jobs


def _find(name: str) -> Path:
    known = {path.stem: path for path in sorted((repo_root() / "notebooks").glob("[0-9]*.ipynb"))}
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    return known[checked_name(Path(name).name.removesuffix(".ipynb"), known, "notebook")]


def _code_cells(notebook: Path) -> list[tuple[str, list[str]]]:
    """Source and tags."""
    cells = [c for c in read_json(notebook, ("cells",))["cells"] if c["cell_type"] == "code"]
    return [("".join(c["source"]), c.get("metadata", {}).get("tags", [])) for c in cells]


def _own_parameters(notebook: Path) -> dict:
    """What the parameters cell assigns."""
    source = next((text for text, tags in _code_cells(notebook) if "parameters" in tags), "")
    assigned = [line for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in assigned}


# ---------------------------------------------------------------------- what was done before


def code_digest(notebook: Path) -> str:
    """SHA-256 of the code that decides what a notebook measures."""
    cells = [source for source, _ in _code_cells(notebook)]
    return hashlib.sha256(json.dumps([cells, package_digests()]).encode()).hexdigest()


@functools.cache
def package_digests() -> dict[str, str]:
    """File -> SHA-256, of all in the package that measures."""
    root = Path(__file__).resolve().parents[1]
    names = {path.relative_to(root).as_posix() for path in root.rglob("*.py")} | {"tasks.toml"}
    return {name: file_sha256(root / name) for name in sorted(names - NOT_MEASURING)}


def measured_with(config: RunConfig, known: dict) -> dict:
    """The rows of a job's stream and its backbone, by content; known: those of other jobs."""
    from ..loading import identify
    from .experiment import load_stream

    rows = (config.task_names, config.n_train, config.n_router, config.n_eval, config.seed)
    rows += (config.source, config.data_dir)
    model = (config.model, config.dtype, config.quantize, config.device)
    if rows not in known:
        known[rows] = {data.name: data.fingerprint for data in load_stream(config)}
    if model not in known:
        known[model] = identify(*model)
    return {"rows": known[rows], "backbone": known[model]}


def why_again(job: Job, record: dict, now: dict) -> str | None:
    """Why a job has to be executed, None if its record is true. now: see `measured_with`."""
    before = record.get("status", "new")
    if before not in ("done", "read"):
        return {"failed": "failed before", "running": "interrupted"}.get(before, before)
    for run in record["runs"]:
        facts = job.runs / run / "run.json"
        if not facts.exists() or read_json(facts, ("status",))["status"] != "finished":
            return f"{run} is not there, or not finished"
    if record["code"] != code_digest(job.notebook):
        return "the code changed"
    other = (f"other {key}" for key in now if record[key] != now[key])
    return next(other, None if record["runs"] else "it leaves no run")


def estimates(jobs: Sequence[Job]) -> dict[str, tuple[float | None, float | None]]:
    """Job -> (seconds, bytes), from the finished runs of the same notebook, preset, model and
    budget, whatever the seed: a mean per method, summed. None where nothing is known; bytes are
    known where one of those runs still has its stack."""
    from .runs import budget, read_facts

    found, told = collections.defaultdict(lambda: collections.defaultdict(list)), {}
    for path in sorted(path for runs in {j.runs for j in jobs} for path in runs.glob("*/run.json")):
        facts = read_facts(path.parent)
        if facts["status"] == "finished":
            config = facts["config"]
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
            one = (facts.get("seconds", 0.0), size, (path.parent / "stack").exists())
            for model in {config.get("model"), facts.get("backbone", {}).get("name")}:
                kind = (path.parents[1], config.get("notebook"), config.get("preset"), model)
                found[kind, budget(config)][facts["method"]].append(one)
    for job in jobs:
        methods = found.get((job.kind, budget(vars(job.config))), {}).values()
        seconds, size = (sum(sum(r[i] for r in m) / len(m) for m in methods) for i in (0, 1))
        kept = any(run[2] for method in methods for run in method)
        told[job.name] = (seconds if methods else None, size if kept else None)
    return told


# ---------------------------------------------------------------------- all jobs


def run(
    jobs: Sequence[Job],
    workers: int | None = 1,
    backend: str = "loky",
    address: str | None = None,
    gpus: float = 0,
) -> dict[str, dict]:
    """Execute the jobs whose records are not true; job -> its record, of which the status may also
    be "skipped" or "left".

    workers: how many at a time, None for all that a cluster has. backend: joblib's; address: of a
    running Dask scheduler or Ray cluster, else one is started here. A job fails for itself alone,
    workers that are lost are replaced, and Ctrl-C ends what is running.
    """
    known, calls, sweep = {}, {}, uuid.uuid4().hex
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None and address is None:
        threads = str(max(1, cpu_count() // (workers or 1)))
    common = {"sweep": sweep, "cwd": os.getcwd(), "driver": os.getpid()}
    common |= {"env": {"OMP_NUM_THREADS": threads} if threads else {}}
    for job in progress(jobs, "look for what is done", "job"):
        now = measured_with(job.config, known)
        if why_again(job, job.record(), now):
            call = now | {"notebook": str(job.notebook), "code": code_digest(job.notebook)}
            call |= {"record": str(job.path), "alive": str(job.path.with_name(f".alive-{sweep}"))}
            calls[job] = common | call | {"parameters": job.given}
    told = {name: seconds for name, (seconds, _) in estimates(list(calls)).items()}
    print(f"{len(calls)} of {len(jobs)} jobs run, with {workers or 'all'} workers", flush=True)
    for job, call in calls.items():
        job.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(job.path.with_name(".gitignore"), "*\n")
        Path(call["alive"]).touch()
        if not job.record():
            write_atomic(job.path, json.dumps({"status": "new", "runs": []}) + "\n")
    ended = threading.Event()
    shown = threading.Thread(target=_show, args=(list(calls), told, sweep, workers or 1, ended))
    shown.start()
    try:
        drive(list(calls.values()), workers or -1, backend, address, gpus)
    except KeyboardInterrupt:
        print("stopped: what was running goes on where it was, next time", flush=True)
    finally:
        for call in calls.values():
            Path(call["alive"]).unlink(missing_ok=True)
        ended.set()
        shown.join()
    records = {job: job.record() for job in jobs}
    for job in jobs:
        if job not in calls:
            records[job] |= {"status": "skipped"}
        elif not over(records[job], sweep):
            records[job] = {"status": "left"}
    return {job.name: record for job, record in records.items()}


def _show(jobs: list[Job], told: dict, sweep: str, workers: int, ended: threading.Event) -> None:
    """A line for each job that ends; at a terminal also one, kept up to date, of what runs."""
    done, took, last = {}, collections.defaultdict(list), not jobs
    bar = tqdm(total=len(jobs), bar_format="{desc}", disable=None, leave=False)
    while not last:
        last = ended.wait(1.0)  # and then one more look
        records = {job: job.record() for job in jobs if job not in done}
        records = {job: r for job, r in records.items() if r.get("sweep") == sweep}
        new = {job: record for job, record in records.items() if over(record, sweep)}
        for job, record in new.items():
            done[job] = record
            took[job.kind] += [record["seconds"]] * (record["status"] == "done")
            line = f"{job.name}: {record['status']} in {about(record['seconds'])}"
            tqdm.write(f"{len(done)}/{len(jobs)} {line}")
        left = [_left(job, told, took, records) for job in jobs if job not in done]
        rest = None if None in left else sum(left) / max(1, min(workers, len(left)))
        names = ", ".join(job.name.rpartition("-")[0] for job in records if job not in new)
        line = f"{len(done)}/{len(jobs)}, {about(rest)} left; running {names}"
        bar.set_description_str(line[:120])
        if new and names and bar.disable:
            print(line, flush=True)
    bar.close()


def _left(job: Job, told: dict, took: dict, records: dict) -> float | None:
    """Seconds that a job still takes, by this sweep's own jobs or earlier runs; None: not known."""
    like = took.get(job.kind)
    seconds = sum(like) / len(like) if like else told[job.name]
    if seconds is None or job not in records:
        return seconds
    spent = time.time() - datetime.fromisoformat(records[job]["started"]).timestamp()
    return max(0.0, seconds - spent)


def about(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "unknown time"
    longer = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 120 else longer


def _table(rows: list[tuple]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, map(str, row), widths)).rstrip() for row in rows)


def dry_run(jobs: Sequence[Job], workers: int) -> str:
    """What would be executed, how long and how large, by earlier runs; starts nothing."""
    known, told, rows, left = {}, estimates(jobs), [("job", "why", "time", "disk")], []
    for job in progress(jobs, "look for what is done", "job"):
        record, (seconds, size) = job.record(), told[job.name]
        why = why_again(job, record, measured_with(job.config, known) if record else {})
        disk = "unknown" if size is None else f"{size / 1e6:.1f} MB"
        rows.append((job.name, *((why, about(seconds), disk) if why else ("skipped", "", ""))))
        left += [(seconds, size)] if why else []
    least = ["at least" if any(one[i] is None for one in left) else "about" for i in (0, 1)]
    seconds, size = (sum(one[i] or 0 for one in left) for i in (0, 1))
    seconds = max([seconds / workers, *(one[0] or 0 for one in left)])
    line = f"{len(left)} of {len(jobs)} jobs would run: {least[0]} {about(seconds)} with {workers}"
    return f"{_table(rows)}\n{line} at a time, {least[1]} {size / 1e6:.0f} MB"


# ---------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="skillstack sweep")
    add = parser.add_argument
    add("notebooks", nargs="+", help="02_hard12, or a path")
    add("--seeds", nargs="+", default=[])
    add("--models", nargs="+", default=[])
    add("--preset")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add("--output-dir")
    add("--jobs", help="how many at a time; 1, on a running cluster all it has")
    add("--backend", default="loky", help="loky, dask or ray")
    add("--address", help="of a running Dask scheduler or Ray cluster")
    add("--gpus-per-run", type=float, default=0, help="of Ray's, or of Dask's resource GPU")
    add("--dry-run", action="store_true", help="say what would run, how long and how large")
    try:
        raise SystemExit(_main(parser.parse_args(argv)))
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


def _main(asked: argparse.Namespace) -> int:
    backend = checked_name(asked.backend, ("loky", *NEEDS), "backend")
    if backend in NEEDS and importlib.util.find_spec(NEEDS[backend]) is None:
        extra = f"pip install -e '.[{backend}]'"
        raise SkillStackError(f"backend {backend!r} is not installed: {extra}")
    if importlib.util.find_spec("papermill") is None:
        raise SkillStackError("papermill is missing: pip install papermill ipykernel")
    from papermill.cli import _resolve_type as typed  # as `papermill -p` reads values

    if backend == "loky" and (asked.address or asked.gpus_per_run):
        raise SkillStackError("--address and --gpus-per-run need --backend dask or ray")
    workers = typed(asked.jobs or ("None" if asked.address else "1"))
    if workers is not None and (type(workers) is not int or workers < 1):
        raise SkillStackError(f"--jobs must be an integer of at least 1, got {asked.jobs!r}")
    given = {name: typed(value) for name, value in asked.p}
    if twice := next((name for name in given if name in OPTIONS), None):
        raise SkillStackError(f"-p {twice}: give it as {OPTIONS[twice]}")
    given |= {k: v for k, v in (("preset", asked.preset), ("output_dir", asked.output_dir)) if v}
    jobs = plan(asked.notebooks, [typed(seed) for seed in asked.seeds], asked.models, **given)
    if asked.dry_run:
        print(dry_run(jobs, workers or 1))
        return 0
    records = run(jobs, workers, backend, asked.address, asked.gpus_per_run)
    rows = [("job", "status", "time", "cell", "error")]
    for name, record in records.items():
        seconds = about(record["seconds"]) if "seconds" in record else ""
        rows.append(
            (name, record["status"], seconds, record.get("cell", ""), record.get("error", ""))
        )
    counts = collections.Counter(record["status"] for record in records.values())
    print(_table(rows))
    print(", ".join(f"{number} {status}" for status, number in counts.items()), end="; ")
    print(f"notebooks, logs and records: {jobs[0].path.parent}")
    return 130 if counts["left"] else int(counts["failed"] > 0)


def console() -> None:
    """The command ``skillstack``."""
    if sys.argv[1:2] != ["sweep"]:
        raise SystemExit("usage: skillstack sweep NOTEBOOK ... (skillstack sweep --help)")
    main(sys.argv[2:])


if __name__ == "__main__":
    main()
