"""Sweeps: what is executed, skipped, tried again and ended; real kernels and workers are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, edit_json

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.lab import jobs, runs, sweep

PARAMETERS = (
    'seed = 42\npreset = "two_task"\nmodel = "minilm"\nn_train = 4\nn_router = 8\nn_eval = 4'
)
# Opens a run as `open_run` does, without torch; says which processes it runs in, and does as the
# file trouble-<seed> says, once.
CODE = """
import json, os, signal
from datetime import datetime, timezone
from pathlib import Path

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

run = Path(output_dir) / f"tiny-{seed}"
with open(os.environ["SKILLSTACK_OPENED"], "a") as opened:
    opened.write(f"{run}\\n")
run.mkdir(parents=True, exist_ok=True)
done = (run / "run.json").exists()
half = run / "half.txt"
half.write_text(half.read_text() + "again" if half.exists() else "once")
processes = {"kernel": os.getpid(), "papermill": os.getppid(), "worker": parent(os.getppid())}
processes["threads"] = os.environ.get("OMP_NUM_THREADS")
(run / "processes.tmp").write_text(json.dumps(processes))
(run / "processes.tmp").rename(run / "processes.json")
trouble = Path(output_dir) / f"trouble-{seed}"
what = trouble.read_text() if trouble.exists() else ""
if what and what != "error":
    trouble.unlink()
if what in processes:
    os.kill(processes[what], signal.SIGKILL)
if what:
    input_never_comes = signal.pause() if what != "error" else None
"""
LAST = """
if what == "error":
    raise ValueError(f"seed {seed} is unlucky\\nmore about it")
if not done:
    config = {"notebook": "tiny", "preset": preset, "model": model, "n_train": n_train}
    config |= {"n_router": n_router, "n_eval": n_eval}
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = {"run_id": run.name, "status": "finished", "finished": finished, "seconds": 3600.0}
    facts |= {"config": config, "method": "stack", "value": seed * n_train}
    (run / "run.json").write_text(json.dumps(facts))
"""


@pytest.fixture
def place(tmp_path, data_dir, model_dirs):
    """A notebook, its rows and its model, all of them to be changed."""
    (tmp_path / "runs").mkdir()
    for name in ("imdb", "agnews"):
        shutil.copytree(data_dir / name, tmp_path / "data" / name)
    shutil.copytree(model_dirs["bert"], tmp_path / "bert")
    new = nbformat.v4
    cells = [new.new_code_cell(text) for text in (PARAMETERS, CODE, LAST)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    return tmp_path


def words(place, *more, notebook="tiny.ipynb") -> list[str]:
    given = ["-p", "data_dir", str(place / "data"), "--output-dir", str(place / "runs")]
    return [str(place / notebook), "--models", str(place / "bert"), *given, *map(str, more)]


def start(place, *more) -> subprocess.Popen:
    """A sweep in a process of its own, to be stopped."""
    command = [sys.executable, "-m", "skillstack_helpers.lab.sweep", *words(place, *more)]
    how = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # A shell's background jobs, and all below them, ignore Ctrl-C.
    how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=place, **how)


@pytest.fixture
def swept(place, capsys, monkeypatch):
    """Runs a sweep here; returns its exit code and what it says."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def call(*more, **kwargs) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            sweep.main(words(place, *more, **kwargs))
        return ended.value.code, capsys.readouterr().out

    return call


def told(capsys, place, *more) -> str:
    """What --dry-run says."""
    with pytest.raises(SystemExit) as ended:
        sweep.main(words(place, *more, "--dry-run"))
    assert not ended.value.code
    return capsys.readouterr().out


def trouble(place, **what):
    for seed, kind in what.items():
        (place / "runs" / f"trouble-{seed[1:]}").write_text(kind)


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def facts(place, seed) -> dict:
    return json.loads((place / "runs" / f"tiny-{seed}" / "run.json").read_text())


def counts(said: str) -> str:
    return said.splitlines()[-1].partition(";")[0]


def test_done_failed_skipped_and_why_again(place, swept, capsys):
    asked = ("--seeds", 1, 2)
    trouble(place, s2="error")
    nothing_known = "2 of 2 jobs would run: at least 0 s with 1 at a time, at least 0 MB"
    assert nothing_known in told(capsys, place, *asked)
    code, said = swept(*asked, "--jobs", 2)
    assert code == 1 and counts(said) == "1 done, 1 failed", said
    (row,) = [line for line in said.splitlines() if line.endswith("is unlucky")]
    assert row.split()[1] == "failed" and row.endswith("4     ValueError: seed 2 is unlucky")
    processes = [json.loads(p.read_text()) for p in place.glob("runs/*/processes.json")]
    assert len({p["papermill"] for p in processes}) == 2
    assert {p["threads"] for p in processes} == {str(max(1, sweep.cpu_count() // 2))}
    executed = [nbformat.read(p, 4) for p in place.glob("runs/sweep/*.ipynb")]
    assert len(executed) == 2 and (place / "runs" / "sweep" / ".gitignore").read_text() == "*\n"

    trouble(place, s2="")
    code, said = swept(*asked)
    assert code == 0 and counts(said) == "1 skipped, 1 done", said
    assert facts(place, 2)["value"] == 8
    code, said = swept("--seeds", 1, "-p", "epochs", 5)  # another job: its run is there and is read
    assert code == 0 and counts(said) == "1 read", said
    assert (place / "runs/tiny-1/half.txt").read_text() == "onceagain"

    assert "0 of 2 jobs would run" in told(capsys, place, *asked)
    edit_json(place / "tiny.ipynb", lambda nb: nb["cells"].insert(0, nb["cells"][1] | {
        "cell_type": "markdown"}))  # fmt: skip
    assert "0 of 2 jobs would run" in told(capsys, place, *asked)
    before = (place / "tiny.ipynb").read_text()
    edit_json(place / "tiny.ipynb", lambda nb: nb["cells"][-1].update(source="1"))
    assert told(capsys, place, *asked).count("the code changed") == 2
    (place / "tiny.ipynb").write_text(before)
    path = place / "bert" / "config.json"
    before = path.read_text()
    edit_json(path, lambda config: config.update(layer_norm_eps=1e-5))
    assert told(capsys, place, *asked).count("other backbone") == 2
    path.write_text(before)
    path = place / "data" / "imdb" / "train.parquet"
    table = pd.read_parquet(path)
    table.assign(text=table["text"] + " x").to_parquet(path)
    assert told(capsys, place, *asked).count("other rows") == 2
    table.to_parquet(path)
    assert "0 of 2 jobs would run" in told(capsys, place, *asked)
    edit_json(place / "runs/tiny-1/run.json", lambda run: run.update(status="running"))
    shutil.rmtree(place / "runs/tiny-2")
    said = told(capsys, place, *asked)
    assert "tiny-1 is not there, or not finished" in said and "tiny-2 is not there" in said


def test_modules_that_measure_are_code():
    digests = sweep.package_digests()
    assert {"training.py", "lab/runs.py", "routers/base.py", "tasks.toml"} <= digests.keys()
    package = Path(sweep.__file__).parents[1]
    assert all((package / name).exists() for name in sweep.NOT_MEASURING)
    assert not sweep.NOT_MEASURING & digests.keys()


def test_time_and_size_come_from_earlier_runs_of_the_same_budget(place, capsys):
    def earlier(seed, method, seconds, size, **config):
        folder = place / "runs" / f"tiny-{method}-{seed}"
        (folder / "stack").mkdir(parents=True)
        (folder / "stack" / "weights").write_bytes(b"0" * size)
        config = {"notebook": "tiny", "preset": "two_task", "model": str(place / "bert")} | config
        config |= {"n_router": 8, "n_eval": 4}
        facts = {"run_id": folder.name, "status": "finished", "seconds": seconds, "method": method}
        (folder / "run.json").write_text(json.dumps(facts | {"config": config}))

    earlier(8, "ewc", 1000.0, 2_000_000, n_train=4)
    earlier(9, "ewc", 3000.0, 4_000_000, n_train=4)
    earlier(8, "joint", 1600.0, 1_000_000, n_train=4)
    earlier(8, "olora", 9999.0, 9_000_000, n_train=5)  # another budget
    said = told(capsys, place, "--seeds", 1, 2, "--jobs", 2)
    assert said.count("new  60 min  4.0 MB") == 2
    assert "2 of 2 jobs would run: about 60 min with 2 at a time, about 8 MB" in said
    assert "about 2.0 h with 1" in told(capsys, place, "--seeds", 1, 2)
    assert not (place / "runs" / "sweep").exists()


def test_killed_kernels_processes_and_workers_lose_nothing(place, swept):
    trouble(place, s1="kernel", s2="papermill", s3="worker")
    code, said = swept("--seeds", 1, 2, 3, "--jobs", 2)
    assert code == 0 and counts(said) == "3 done", said
    assert "a worker was lost (TerminatedWorkerError" in said
    for seed in (1, 2, 3):
        assert facts(place, seed)["value"] == 4 * seed  # as the uninterrupted ones
        assert (place / f"runs/tiny-{seed}/half.txt").read_text().startswith("onceagain")


@pytest.mark.parametrize("backend, module", jobs.NEEDS.items())
def test_a_cluster_loses_a_worker_and_no_job(backend, module, place, swept):
    pytest.importorskip(module, reason=f"pip install -e '.[{backend}]'")
    trouble(place, s2="worker")
    code, said = swept("--seeds", 1, 2, 3, "--jobs", 2, "--backend", backend)
    assert code == 0 and counts(said) == "3 done", said
    assert [facts(place, seed)["value"] for seed in (1, 2, 3)] == [4, 8, 12]
    assert (place / "runs/tiny-2/half.txt").read_text() == "onceagain"


@pytest.mark.parametrize(
    "workers, by", [(2, signal.SIGINT), (1, signal.SIGINT), (2, signal.SIGKILL)]
)
def test_a_stopped_sweep_leaves_no_process_and_goes_on(place, swept, workers, by):
    trouble(place, s1="wait", s2="wait")
    process = start(place, "--seeds", 1, 2, "--jobs", workers)
    there = [place / f"runs/tiny-{seed}/processes.json" for seed in (1, 2)[:workers]]
    try:
        wait_for(lambda: all(path.exists() for path in there) or process.poll() is not None)
    finally:
        process.send_signal(by)
        said = process.communicate()[0]
    assert process.returncode == (130 if by == signal.SIGINT else -by), said
    if by == signal.SIGINT:
        assert counts(said) == "2 left" and "Traceback" not in said, said
    pids = [json.loads(p.read_text())[name] for p in there for name in ("kernel", "papermill")]
    wait_for(lambda: all(map(gone, pids)))
    if by == signal.SIGKILL:
        trouble(place, s1="", s2="")
        code, said = swept("--seeds", 1, 2, "--jobs", workers)
        assert code == 0 and counts(said) == "2 done", said


def test_a_real_notebook_says_which_runs_it_opened(place, swept):
    tiny = "--preset two_task --seeds 5 -p n_train 4 -p n_router 16 -p n_eval 4 -p epochs 1"
    tiny = [*tiny.split(), "-p", "max_length", "32", "-p", "lora_r", "4"]
    code, said = swept(*tiny, notebook=ROOT / "notebooks" / "01_train_stack.ipynb")
    assert code == 0 and counts(said) == "1 done", said
    (record,) = (json.loads(p.read_text()) for p in place.glob("runs/sweep/*.json"))
    (folder,) = place.glob("runs/01*")
    assert record["runs"] == [folder.name] and runs.read_facts(folder)["status"] == "finished"
    backbone = runs.read_facts(folder)["backbone"]
    same = ("revision", "dtype", "quantization")
    assert [record["backbone"][key] for key in same] == [backbone[key] for key in same]
    rows = {name: row["fingerprint"] for name, row in runs.read_facts(folder)["data"].items()}
    assert record["rows"] == rows


@pytest.mark.parametrize(
    "more, line",
    [
        (["02_hrd12"], "unknown notebook '02_hrd12' (did you mean '02_hard12'?)"),
        (["--preset", "hard9"], "unknown preset 'hard9' (did you mean 'hard8'?)"),
        (["-p", "epoch", "2"], "unknown parameter 'epoch' (did you mean 'epochs'?)"),
        (["-p", "epochs", "two"], "epochs must be an integer, got 'two'"),
        (["-p", "seed", "2"], "-p seed: give it as --seeds"),
        (["--seeds", "1", "1"], "seed 1 is given twice"),
        (["--seeds", "one"], "seed must be an integer, got 'one'"),
        (["--jobs", "0"], "--jobs must be an integer of at least 1, got '0'"),
        (["--backend", "dusk"], "unknown backend 'dusk' (did you mean 'dask'?)"),
        (["--gpus-per-run", "1"], "--address and --gpus-per-run need --backend dask or ray"),
        (["-p", "n_train", "1000", "--preset", "hard12"], "asks for more than there is"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(more, line, tmp_path, data_dir, capsys):
    more = ["04_baselines", *more] if more[0].startswith("-") else more
    given = ["--output-dir", str(tmp_path), "-p", "data_dir", str(data_dir), "--models", "minilm"]
    with pytest.raises(SystemExit) as ended:
        sweep.main([*more, *given])
    assert str(ended.value).startswith("error: ") and line in str(ended.value)
    assert "\n" not in str(ended.value) and not list(tmp_path.iterdir())


def test_a_backend_that_is_missing_names_its_extra(monkeypatch):
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match=r"backend 'ray' is not installed: pip install -e '\.\[ray\]'"
    ):
        sweep.main(["04_baselines", "--backend", "ray"])


def test_notebooks_by_name_file_or_path_one_after_the_other(data_dir):
    names = ["04_baselines", "02_hard12.ipynb", str(ROOT / "notebooks" / "01_train_stack.ipynb")]
    planned = sweep.plan(names, [42, 7], ["minilm"], data_dir=str(data_dir), preset="hard8")
    stems = [job.notebook.stem for job in planned]
    assert stems == [s for s in ("04_baselines", "02_hard12", "01_train_stack") for _ in "ab"]
    assert [job.config.seed for job in planned] == [42, 7] * 3
    assert planned[2].config.n_train == 64  # as the notebook has it
    assert planned[0].name.startswith("04_baselines-hard8-minilm-s42-")
    assert len({job.name for job in planned}) == 6
    with pytest.raises(SkillStackError, match="notebook 04_baselines is given twice"):
        sweep.plan(["04_baselines", "04_baselines"])


def test_the_console_command_dispatches(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["skillstack", "sweep", "04_baselines", "--jobs", "0"])
    with pytest.raises(SystemExit, match="--jobs must be"):
        sweep.console()
    monkeypatch.setattr(sys, "argv", ["skillstack"])
    with pytest.raises(SystemExit, match="usage: skillstack sweep"):
        sweep.console()
