"""Where a sweep's jobs run: a process for each notebook, on workers of joblib's backends.

A call is a dict of plain values (see `sweep.run`): what to execute and where its record is written.
Light to import, since every worker and every notebook's process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from joblib import Parallel, delayed, parallel_config

from ..errors import SkillStackError, first_line
from ..files import read_json, write_atomic

NEEDS = {"dask": "distributed", "ray": "ray"}  # the module that a backend cannot do without
TRIES = 3  # of a job whose kernel was lost, and of workers that are lost before any job ends
LOST = "Kernel died|Kernel didn't respond|Address already in use|another process is working on"
POLL = 0.5  # seconds between two looks at a process
_EXECUTE = "from skillstack_helpers.lab.jobs import execute; execute()"


def over(record: dict, sweep: str) -> bool:
    """Whether this sweep has come to an end with a job."""
    return record.get("sweep") == sweep and record["status"] != "running"


def drive(calls: list[dict], workers: int, backend: str, address: str | None, gpus: float) -> None:
    """Have all calls made; on new workers where some were lost, as long as that gets on.

    workers: -1 for all that a cluster has. Raises `SkillStackError` where it cannot be reached.
    """
    lost = 0
    while calls and lost < TRIES:
        why = "it was ended"
        try:
            with _backend(backend, workers, address, gpus):
                Parallel(batch_size=1, pre_dispatch="n_jobs")(delayed(work)(c) for c in calls)
        except SkillStackError:
            raise
        except Exception as error:  # each backend has its own for a worker that is gone
            why = f"{type(error).__name__}: {first_line(error)}"
        left = [call for call in calls if not over(read_json(Path(call["record"])), call["sweep"])]
        lost = lost + 1 if len(left) == len(calls) else 0
        if left:
            print(f"a worker was lost ({why}): {len(left)} jobs go on", flush=True)
        calls = left


@contextlib.contextmanager
def _backend(name: str, workers: int, address: str | None, gpus: float) -> Iterator[None]:
    """joblib's backend, on a cluster of this machine's own where there is no address."""
    with contextlib.ExitStack() as stack:
        more, there = {}, 0
        try:
            if name == "dask":
                from distributed import Client, LocalCluster

                here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
                where = address or stack.enter_context(LocalCluster(**here))
                more["client"] = client = stack.enter_context(Client(where))
                more |= {"resources": {"GPU": gpus}} if gpus else {}
                each = client.scheduler_info()["workers"].values() if gpus else ()
                there = max((one["resources"].get("GPU", 0) for one in each), default=0)
            elif name == "ray":
                import ray
                from ray.util.joblib import register_ray

                here = {} if address else {"num_cpus": workers, "include_dashboard": False}
                ray.init(address=address or "local", log_to_driver=False, **here)
                stack.callback(ray.shutdown)
                register_ray()
                more["ray_remote_args"] = {"num_gpus": gpus}
                there = ray.cluster_resources().get("GPU", 0)
            if gpus and gpus > there:
                raise ValueError(f"a worker has {there:g} GPUs, --gpus-per-run is {gpus:g}")
        except Exception as error:  # either has many of its own for a cluster that is not there
            at = f"at {address}" if address else "on this machine"
            raise SkillStackError(f"{name} {at}: {first_line(error)}") from None
        stack.enter_context(parallel_config(name, n_jobs=workers, **more))
        yield


def work(call: dict) -> None:
    """Execute a job, again where its kernel was lost, and write its record: on any worker.

    Returns early, with the job left to be done, once the file `alive` is gone.
    """
    if os.getpid() != call["driver"] and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    path, start, now = Path(call["record"]), time.time(), datetime.now(timezone.utc)
    record = {key: call[key] for key in ("sweep", "parameters", "code", "rows", "backbone")}
    record |= {"started": now.isoformat(timespec="seconds"), "runs": []}
    path.with_suffix(".log").write_bytes(b"")
    for tries in range(1, TRIES + 1):
        time.sleep(2 * (tries - 1))  # for what the last kernel held
        record |= {"status": "running", "tries": tries}
        write_atomic(path, json.dumps(record, indent=1) + "\n")
        outcome = _attempt(call)
        if outcome is None:
            return
        record |= outcome
        if not record.pop("lost", False):
            break
    opened = [Path(run) for run in record["runs"] if Path(run, "run.json").exists()]
    finished = [read_json(run / "run.json").get("finished") or "~" for run in opened]
    if opened and record["status"] == "done" and max(finished) < record["started"]:
        record["status"] = "read"  # it had been measured before
    record |= {"runs": [run.name for run in opened], "seconds": round(time.time() - start, 1)}
    write_atomic(path, json.dumps(record, indent=1) + "\n")


def _attempt(call: dict) -> dict | None:
    """What came of one execution; None if it was ended because nobody waits for it any more."""
    path, parent = Path(call["record"]), os.getppid()
    opened, outcome = (path.parent / f".{path.stem}.{part}" for part in ("runs", "outcome"))
    for file in (opened, outcome):
        file.unlink(missing_ok=True)
    env = os.environ | call["env"] | {"SKILLSTACK_OPENED": str(opened)}
    how = {"env": env, "cwd": call["cwd"], "start_new_session": True, "stdin": subprocess.PIPE}
    with path.with_suffix(".log").open("ab") as log:
        how |= {"stdout": log, "stderr": log}
        child = subprocess.Popen([sys.executable, "-c", _EXECUTE], **how)
    try:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(call | {"outcome": str(outcome)}).encode() + b"\n")
            child.stdin.flush()
        while child.poll() is None:
            if os.getppid() != parent:  # the sweep was killed, and this is a worker of it
                os._exit(1)
            if not Path(call["alive"]).exists():
                return None
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL)
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()  # which ends it, see `execute`
        child.wait()
    said = {"status": "failed", "error": f"its process ended with {child.returncode}", "cell": ""}
    said = read_json(outcome) if outcome.exists() else said | {"lost": True}
    said["runs"] = list(dict.fromkeys(opened.read_text().splitlines())) if opened.exists() else []
    for file in (opened, outcome):
        file.unlink(missing_ok=True)
    return said


def execute() -> None:
    """A job's own process: papermill, for as long as the standard input is open.

    So it ends with the process that started it, however that ended; a kernel ends with papermill.
    """
    call = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    import papermill
    from papermill.exceptions import PapermillExecutionError

    given, executed = call["parameters"], str(Path(call["record"]).with_suffix(".ipynb"))
    said = {"status": "done", "error": "", "cell": ""}
    try:
        papermill.execute_notebook(call["notebook"], executed, given, progress_bar=False)
    except PapermillExecutionError as error:
        line = f"{error.ename}: {first_line(ValueError(error.evalue))}"
        said = {"status": "failed", "error": line, "cell": error.exec_count}
    except Exception as error:  # of papermill, nbclient or ZMQ
        line = f"{type(error).__name__}: {first_line(error)}"
        said = {"status": "failed", "error": line, "cell": ""}
    said["lost"] = said["status"] == "failed" and bool(re.search(LOST, said["error"]))
    write_atomic(Path(call["outcome"]), json.dumps(said))
