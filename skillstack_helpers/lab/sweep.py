"""Notebooks over seeds and models, several at a time: ``python -m skillstack_helpers.lab.sweep``.

A job is one notebook with one set of parameters, executed by papermill in a process of its own, on
whichever of joblib's backends (loky, dask, ray). All jobs work in one output folder, which every
machine has to see. Beside the runs, ``<output_dir>/sweep/<job>`` is kept as ``.ipynb`` (as it was
executed), ``.log`` and ``.json``, the job's record: its parameters and seconds, the runs it opened
(`open_run` says so), and what it was executed with, by digest: code, rows, backbone.

A job is skipped while its record is true, asked without a kernel or a model in memory:
- code: the notebook's code cells and the package's modules, all but `NOT_MEASURING`, by SHA-256.
- rows: the fingerprints of the stream, which is loaded again. Rows that a notebook loads beside its
  stream (06, 09) are not looked at.
- backbone: revision, precision and kind of device, as they are here. Where a cluster's workers
  have other devices than the machine that starts them, they are compared with the latter's.
- every run that it opened is there and finished. A notebook that opens none is never skipped.

What is not true any more is executed again. The notebook then decides by `run_id`, which knows rows
and backbone and not the code: of a finished run it reads the numbers and measures nothing. The
table at the end says "read" of such a job. To measure with new code, delete the run's folder.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm.std import tqdm

from ..errors import SkillStackError, checked_name, did_you_mean, first_line
from ..files import file_sha256, read_json, write_atomic
from ..progress import progress
from ..tasks import find_task
from .parameters import RunConfig, placed, repo_root

NOT_MEASURING = "progress.py lab/display.py lab/names.py lab/plotting.py lab/sweep.py lab/views.py"
NOT_MEASURING = {*NOT_MEASURING.split(), "lab/widgets.py"}
NEEDS = {"dask": "distributed", "ray": "ray"}  # the module that a backend cannot do without
OPTIONS = {"seed": "--seeds", "model": "--models", "preset": "--preset"}
OPTIONS |= {"output_dir": "--output-dir"}
TRIES = 3  # of a job whose kernel was lost, and of workers that were
LOST = "Kernel died|Kernel didn't respond|Address already in use|another process is working on"
POLL = 0.5  # seconds between two looks at a process
_CHILD = "from skillstack_helpers.lab.sweep import execute; execute()"


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One notebook with one set of parameters; name: its files' in `folder`."""

    notebook: Path
    config: RunConfig  # the notebook's own parameters, and the given ones
    given: dict
    name: str

    @property
    def runs(self) -> Path:
        return placed(self.config.output_dir)

    @property
    def folder(self) -> Path:
        return self.runs / "sweep"

    def record(self) -> dict:
        """What was kept of the last time; empty where there is nothing."""
        path = self.folder / f"{self.name}.json"
        return read_json(path, ("status", "runs")) if path.exists() else {}


def plan(
    notebooks: Sequence[str],
    seeds: Sequence = (),
    models: Sequence[str] = (),
    **given: object,
) -> list[Job]:
    """The jobs, a notebook after the other, so that later ones find the stacks of the first.

    given: fields of `RunConfig` for all jobs; what is not given is as the notebook has it. Raises
    `SkillStackError` for the first thing that is wrong in any of them.
    """
    from .runs import hashed_id

    for what, values in (("notebook", notebooks), ("seed", seeds), ("model", models)):
        if twice := next((v for v in values if list(values).count(v) > 1), None):
            raise SkillStackError(f"{what} {twice} is given twice")
    fields, jobs = {f.name for f in dataclasses.fields(RunConfig)} - {"notebook"}, []
    for name in given:
        if name not in fields:
            raise SkillStackError(f"unknown parameter {name!r}{did_you_mean(name, fields)}")
    for path in map(_find, notebooks):
        own = {k: v for k, v in _own_parameters(path).items() if k in fields}
        choices = (
            [[("seed", seed)] for seed in seeds] or [[]],
            [[("model", m)] for m in models] or [[]],
        )
        for one in itertools.product(*choices):
            mine = given | dict(itertools.chain(*one))
            config = RunConfig(notebook=path.stem, **own | mine)
            for task in config.task_names:
                find_task(task, config.data_dir)
            what = {k: v for k, v in mine.items() if k != "output_dir"}
            name = hashed_id(config, "", config.model, {}, what, "")
            jobs.append(Job(path, config, mine, name))
    return jobs


def _find(name: str) -> Path:
    known = {path.stem: path for path in sorted((repo_root() / "notebooks").glob("[0-9]*.ipynb"))}
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    return known[checked_name(Path(name).name.removesuffix(".ipynb"), known, "notebook")]


def _code_cells(path: Path) -> list[tuple[str, list[str]]]:
    """Source and tags."""
    cells = [c for c in read_json(path, ("cells",))["cells"] if c["cell_type"] == "code"]
    return [("".join(c["source"]), c.get("metadata", {}).get("tags", [])) for c in cells]


def _own_parameters(path: Path) -> dict:
    """What the notebook's parameters cell assigns."""
    source = next((text for text, tags in _code_cells(path) if "parameters" in tags), "")
    assigned = [line for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in assigned}


# ---------------------------------------------------------------------- what was done before


def code_digest(notebook: Path) -> str:
    """SHA-256 of the code that decides what a notebook measures."""
    cells = json.dumps([source for source, _ in _code_cells(notebook)])
    return hashlib.sha256((cells + _package_digest()).encode()).hexdigest()


@functools.cache
def _package_digest() -> str:
    root = Path(__file__).resolve().parents[1]
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
    kept = sorted({*names, "tasks.toml"} - NOT_MEASURING)
    return json.dumps({name: file_sha256(root / name) for name in kept})


def measured_with(config: RunConfig, known: dict) -> dict:
    """The rows of a job's stream and its backbone, by content; known: those of other jobs."""
    from ..loading import identify
    from .experiment import load_stream

    budget = (config.n_train, config.n_router, config.n_eval, config.seed)
    rows = (*config.task_names, *budget, config.source, config.data_dir)
    model = (config.model, config.dtype, config.quantize, config.device)
    if rows not in known:
        known[rows] = {data.name: data.fingerprint for data in load_stream(config)}
    if model not in known:
        known[model] = identify(*model)
    return {"rows": known[rows], "backbone": known[model]}


def why_again(job: Job, record: dict, now: dict) -> str | None:
    """Why a job has to be executed, None if its record is true. now: see `measured_with`."""
    if record.get("status") not in ("done", "read"):
        return {"failed": "failed before", "running": "interrupted"}.get(
            record.get("status"), "new"
        )
    if not record["runs"]:
        return "leaves no run"
    for run in record["runs"]:
        facts = job.runs / run / "run.json"
        if not facts.exists() or read_json(facts, ("status",))["status"] != "finished":
            return f"{run} is not there, or not finished"
    if record["code"] != code_digest(job.notebook):
        return "the code changed"
    return next((f"other {key}" for key in now if record.get(key) != now[key]), None)


def estimates(jobs: Sequence[Job]) -> dict[str, tuple[float | None, float | None]]:
    """Job -> (seconds, bytes), from the finished runs of the same notebook, preset, model and
    budget, whatever the seed: a mean per method, summed. None where nothing is known; bytes are
    known where one of those runs still has its stack."""
    from .runs import budget, read_facts

    found: dict[tuple, dict] = {}
    for folder in {job.runs for job in jobs}:
        for path in sorted(folder.glob("*/run.json")):
            facts = read_facts(path.parent)
            if facts["status"] != "finished":
                continue
            config, models = facts["config"], {facts["config"].get("model")}
            files = [file for file in path.parent.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files), (path.parent / "stack").exists()
            for model in models | {facts.get("backbone", {}).get("name")}:
                key = (folder, config.get("notebook"), config.get("preset"), model, budget(config))
                methods = found.setdefault(key, {})
                methods.setdefault(facts["method"], []).append((facts.get("seconds", 0.0), *size))
    told = {}
    for job in jobs:
        c = job.config
        methods = found.get((job.runs, c.notebook, c.preset, c.model, budget(vars(c))), {})
        seconds = [_mean([one[0] for one in each]) for each in methods.values()]
        sizes = [_mean([one[1] for one in each]) for each in methods.values()]
        kept = any(one[2] for each in methods.values() for one in each)
        told[job.name] = (sum(seconds) if seconds else None, sum(sizes) if kept else None)
    return told


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------------- a job, where it runs


def work(job: dict) -> None:
    """Execute a job, again where its kernel was lost, and write its record: on a worker, in any
    process. Returns early, leaving it to be done, once the file `job["alive"]` is gone."""
    if os.getpid() != job["driver"] and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    path, start = Path(job["record"]), time.time()
    path.with_suffix(".log").write_bytes(b"")
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    kept = {key: job[key] for key in ("sweep", "parameters", "code", "rows", "backbone")}
    kept |= {"status": "running", "started": started, "tries": 0, "runs": []}
    while kept["status"] in ("running", "lost") and kept["tries"] < TRIES:
        kept |= {"status": "running", "tries": kept["tries"] + 1}
        write_atomic(path, json.dumps(kept, indent=1) + "\n")
        time.sleep(2 * (kept["tries"] - 1))  # for what the last kernel held
        outcome = _attempt(job)
        if outcome is None:
            return
        kept |= outcome
    kept["status"] = "failed" if kept["status"] == "lost" else kept["status"]
    kept["runs"] = [run for run in kept["runs"] if Path(run, "run.json").exists()]
    facts = [read_json(Path(run, "run.json")) for run in kept["runs"]]
    if facts and kept["status"] == "done" and all(f.get("finished", "~") < started for f in facts):
        kept["status"] = "read"
    kept["runs"] = [Path(run).name for run in kept["runs"]]
    write_atomic(
        path, json.dumps(kept | {"seconds": round(time.time() - start, 1)}, indent=1) + "\n"
    )


def _attempt(job: dict) -> dict | None:
    """What came of one execution; None if it was ended because nobody waits for it any more."""
    path, alive, parent = Path(job["record"]), Path(job["alive"]), os.getppid()
    opened, outcome = (path.parent / f".{path.stem}.{part}" for part in ("runs", "outcome"))
    opened.unlink(missing_ok=True), outcome.unlink(missing_ok=True)
    env = os.environ | job["env"] | {"SKILLSTACK_OPENED": str(opened)}
    how = {"env": env, "cwd": job["cwd"], "start_new_session": True, "stdin": subprocess.PIPE}
    with path.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-c", _CHILD]
        child = subprocess.Popen(command, stdout=log, stderr=log, **how)
    try:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(job | {"outcome": str(outcome)}).encode() + b"\n")
            child.stdin.flush()
        while child.poll() is None:
            if os.getppid() != parent:  # the sweep was killed, and this is a worker of it
                os._exit(1)
            if not alive.exists():
                return None
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL)
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()  # which ends it, see `execute`
        child.wait()
    runs = opened.read_text().splitlines() if opened.exists() else []
    said = {"status": "lost", "error": f"the process ended with {child.returncode}", "cell": None}
    said = read_json(outcome) if outcome.exists() else said
    opened.unlink(missing_ok=True), outcome.unlink(missing_ok=True)
    return said | {"runs": list(dict.fromkeys(runs))}


def execute() -> None:
    """A job's own process: papermill, for as long as the standard input is open.

    So it ends with the process that started it, however that ended; a kernel ends with papermill.
    """
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    import papermill
    from papermill.exceptions import PapermillExecutionError

    said = {"status": "done", "cell": None, "error": None}
    executed = str(Path(job["record"]).with_suffix(".ipynb"))
    try:
        papermill.execute_notebook(job["notebook"], executed, job["parameters"], progress_bar=False)
    except PapermillExecutionError as error:
        line = f"{error.ename}: {first_line(ValueError(error.evalue))}"
        said = {"status": "failed", "cell": error.exec_count, "error": line}
    except Exception as error:
        line = f"{type(error).__name__}: {first_line(error)}"
        said = {"status": "failed", "cell": None, "error": line}
    if said["status"] == "failed" and re.search(LOST, said["error"]):
        said["status"] = "lost"
    write_atomic(Path(job["outcome"]), json.dumps(said))


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
    known, todo, sweep = {}, {}, uuid.uuid4().hex
    for job in progress(jobs, "look for what is done", "job"):
        now = measured_with(job.config, known)
        if why_again(job, job.record(), now):
            todo[job] = now
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None and address is None:
        threads = str(max(1, cpu_count() // workers))
    common = {"sweep": sweep, "cwd": os.getcwd(), "driver": os.getpid()}
    common |= {"env": {"OMP_NUM_THREADS": threads} if threads else {}}
    calls = []
    for job, now in todo.items():
        job.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(job.folder / ".gitignore", "*\n")
        alive = job.folder / f".alive-{sweep}"
        alive.touch()
        call = common | now | {"notebook": str(job.notebook), "code": code_digest(job.notebook)}
        call |= {"parameters": job.given, "alive": str(alive)}
        calls.append(call | {"record": str(job.folder / f"{job.name}.json")})
    ended = threading.Event()
    told = {name: seconds for name, (seconds, _) in estimates(list(todo)).items()}
    shown = threading.Thread(target=_show, args=(list(todo), told, sweep, workers or 1, ended))
    shown.start()
    try:
        _drive(calls, workers or -1, lambda: _backend(backend, address, workers or -1, gpus))
    except KeyboardInterrupt:
        print("stopped: what was running goes on where it was, next time", flush=True)
    finally:
        for call in calls:
            Path(call["alive"]).unlink(missing_ok=True)
        ended.set()
        shown.join()
    records = {job: job.record() for job in jobs}
    left = {job: {"status": "left"} for job in todo if not _over(records[job], sweep)}
    skipped = {job: records[job] | {"status": "skipped"} for job in jobs if job not in todo}
    return {job.name: (left | skipped).get(job, records[job]) for job in jobs}


def _over(record: dict, sweep: str) -> bool:
    return record.get("sweep") == sweep and record["status"] not in ("running", "lost")


def _drive(calls: list[dict], workers: int, backend: Callable) -> None:
    """Have all calls made; with other workers where some were lost, as long as jobs end."""
    lost = 0
    while calls and lost < TRIES:
        why = "they were ended"
        try:
            with backend():
                Parallel(batch_size=1, pre_dispatch="n_jobs")(delayed(work)(c) for c in calls)
        except SkillStackError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
        records = {c["record"]: Path(c["record"]) for c in calls}
        left = [c for c in calls if not (records[c["record"]].exists()
                and _over(read_json(records[c["record"]]), c["sweep"]))]  # fmt: skip
        if left:
            print(f"workers were lost ({why}): {len(left)} jobs go on", flush=True)
        lost, calls = (lost + 1 if len(left) == len(calls) else 0), left


@contextlib.contextmanager
def _backend(name: str, address: str | None, workers: int, gpus: float) -> Iterator[None]:
    """joblib's backend, and a cluster of this machine's where there is no address."""
    if name == "dask":
        from distributed import Client, LocalCluster

        how = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with contextlib.ExitStack() as stack:
            try:
                where = address or stack.enter_context(LocalCluster(**how))
                client = stack.enter_context(Client(where))
            except (OSError, ValueError) as error:
                raise SkillStackError(
                    f"cannot reach Dask at {address}: {first_line(error)}"
                ) from None
            resources = {"resources": {"GPU": gpus}} if gpus else {}
            with parallel_config("dask", n_jobs=workers, client=client, **resources):
                yield
    elif name == "ray":
        import ray
        from ray.util.joblib import register_ray

        here = {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, **({} if address else here))
        except (ConnectionError, ValueError) as error:
            raise SkillStackError(f"cannot reach Ray at {address}: {first_line(error)}") from None
        register_ray()
        try:
            with parallel_config("ray", n_jobs=workers, ray_remote_args={"num_gpus": gpus}):
                yield
        finally:
            ray.shutdown()
    else:
        with parallel_config("loky", n_jobs=workers):
            yield


# ---------------------------------------------------------------------- what is shown


def _show(jobs: list[Job], told: dict, sweep: str, workers: int, ended: threading.Event) -> None:
    """A line for each job that ends; at a terminal also one, kept up to date, for those that run."""
    over: dict[Job, dict] = {}
    bar, done = tqdm(total=len(jobs), bar_format="{desc}", disable=None, leave=False), not jobs
    while not done:
        done = ended.wait(2 * POLL)  # and then a last look
        records = {job: job.record() for job in jobs if job not in over}
        running = {j: r for j, r in records.items() if r.get("sweep") == sweep}
        new = {job: record for job, record in running.items() if _over(record, sweep)}
        over |= new
        running = [job for job in running if job not in new]
        left = _time_left([j for j in jobs if j not in over], over, told, records)
        left = None if left is None else left / max(1, min(workers, len(jobs) - len(over)))
        names = ", ".join(job.name.rpartition("-")[0] for job in running)
        what = f"; running {names}; {_about(left)} left" if running else ""
        for number, (job, record) in enumerate(new.items(), len(over) - len(new) + 1):
            line = f"{number}/{len(jobs)} {job.name}: {record['status']}"
            line += f" in {_about(record['seconds'])}"
            tqdm.write(line + (what if number == len(over) else ""))
        bar.set_description_str(f"{len(over)}/{len(jobs)}{what}"[:120])
    bar.close()


def _time_left(jobs: list[Job], over: dict, told: dict, records: dict) -> float | None:
    """Seconds of work that are left, by this sweep's own jobs or earlier runs; None: not known."""

    def kind(job: Job) -> tuple:
        return job.config.notebook, job.config.preset, job.config.model

    total = 0.0
    for job in jobs:
        like = [
            r["seconds"] for j, r in over.items() if kind(j) == kind(job) and r["status"] == "done"
        ]
        seconds = sum(like) / len(like) if like else told[job.name]
        if seconds is None:
            return None
        began = records[job].get("started") if records[job].get("status") == "running" else None
        spent = time.time() - datetime.fromisoformat(began).timestamp() if began else 0
        total += max(0.0, seconds - spent)
    return total


def _about(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    minutes = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 120 else minutes


def _table(rows: list[tuple]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, map(str, row), widths)).rstrip() for row in rows)


def dry_run(jobs: Sequence[Job], workers: int) -> str:
    """What would be executed, how long and how large, by earlier runs; starts nothing."""
    known, told, rows = {}, estimates(jobs), [("job", "why", "time", "disk")]
    for job in jobs:
        record = job.record()
        why = why_again(job, record, measured_with(job.config, known) if record else {})
        seconds, size = told[job.name]
        disk = "unknown" if size is None else f"{size / 1e6:.1f} MB"
        rows.append((job.name, *((why, _about(seconds), disk) if why else ("skipped", "", ""))))
    left = [told[row[0]] for row in rows[1:] if row[1] != "skipped"]
    sums = [sum(one[i] for one in left if one[i] is not None) for i in (0, 1)]
    least = ["at least " if any(one[i] is None for one in left) else "about " for i in (0, 1)]
    seconds = max([sums[0] / workers, *(one[0] or 0.0 for one in left)])
    line = f"{len(left)} of {len(jobs)} jobs would run: {least[0]}{_about(seconds)} with {workers} "
    return f"{_table(rows)}\n{line}at a time, {least[1]}{sums[1] / 1e6:.0f} MB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="skillstack sweep", description="Notebooks over seeds and models."
    )
    parser.add_argument("notebooks", nargs="+", help="02_hard12, or a path")
    parser.add_argument("--seeds", nargs="+", default=[])
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--preset")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--output-dir")
    parser.add_argument("--jobs", help="at a time; a cluster's default is all it has")
    parser.add_argument("--backend", default="loky")
    parser.add_argument("--address", help="of a running Dask scheduler or Ray cluster")
    parser.add_argument("--gpus-per-run", type=float, default=0, help="dask (resource GPU), ray")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run, how long, how large"
    )
    asked = parser.parse_args(argv)
    try:
        raise SystemExit(_main(asked))
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


def _main(asked: argparse.Namespace) -> int:
    from papermill.cli import _resolve_type

    checked_name(asked.backend, ("loky", *NEEDS), "backend")
    if asked.backend in NEEDS and importlib.util.find_spec(NEEDS[asked.backend]) is None:
        raise SkillStackError(
            f"backend {asked.backend!r} is not installed: pip install -e '.[{asked.backend}]'"
        )
    if asked.backend == "loky" and (asked.address or asked.gpus_per_run):
        raise SkillStackError("--address and --gpus-per-run need --backend dask or ray")
    jobs = _resolve_type(asked.jobs or ("None" if asked.address else "1"))
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise SkillStackError(f"--jobs must be an integer of at least 1, got {asked.jobs!r}")
    given = {name: _resolve_type(value) for name, value in asked.p}
    if twice := next((name for name in given if name in OPTIONS), None):
        raise SkillStackError(f"-p {twice}: give it as {OPTIONS[twice]}")
    given |= {k: v for k, v in (("preset", asked.preset), ("output_dir", asked.output_dir)) if v}
    todo = plan(asked.notebooks, list(map(_resolve_type, asked.seeds)), asked.models, **given)
    if asked.dry_run:
        print(dry_run(todo, jobs or 1))
        return 0
    ended = run(todo, jobs, asked.backend, asked.address, asked.gpus_per_run)
    rows = [("job", "status", "time", "cell", "error")]
    for job in todo:
        record = ended[job.name]
        failed = record["status"] == "failed"
        seconds = _about(record["seconds"]) if "seconds" in record else ""
        rows.append(
            (
                job.name,
                record["status"],
                seconds,
                *((record["cell"], record["error"]) if failed else ("", "")),
            )
        )
    print(_table(rows))
    counts = {one["status"]: 0 for one in ended.values()}
    for one in ended.values():
        counts[one["status"]] += 1
    print(", ".join(f"{number} {status}" for status, number in counts.items()), end="; ")
    print(f"notebooks, logs and records: {todo[0].folder}")
    return 130 if "left" in counts else int("failed" in counts)


def console() -> None:
    """The command ``skillstack``."""
    if sys.argv[1:2] != ["sweep"]:
        raise SystemExit("usage: skillstack sweep NOTEBOOK ... (skillstack sweep --help)")
    main(sys.argv[2:])


if __name__ == "__main__":
    from skillstack_helpers.lab import sweep  # so that workers find its functions by name

    sweep.main()
