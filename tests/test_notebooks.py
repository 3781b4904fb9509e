"""The notebooks as users run them: through papermill, interrupted, and with bad parameters."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, edit_json

from skillstack_helpers.lab import runs
from skillstack_helpers.lab.parameters import METHODS, ROUTERS

sys.path.insert(0, str(ROOT / "results"))
from report import baselines, generation, streams

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
ENV["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
TINY = {"n_train": 4, "n_router": 16, "n_eval": 4, "epochs": 1, "max_length": 32}


def cells_twice(name, out, parameters) -> Path:
    """The notebook with its cells from the parameters on once more, for another seed."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    tags = [c.metadata.get("tags", []) for c in notebook.cells]
    first = next(i for i, tag in enumerate(tags) if "parameters" in tag)
    again = [nbformat.v4.new_code_cell(c.source) for c in notebook.cells[first:]
             if c.cell_type == "code"]  # fmt: skip
    lines = [f"{key} = {value!r}" for key, value in parameters.items()]
    again.insert(1, nbformat.v4.new_code_cell("\n".join([*lines, "seed = 7"])))
    notebook.cells += again
    path = out / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def papermill(name, out, cwd=ROOT / "notebooks", data_dir=None, twice=False, **parameters):
    given = TINY | {"output_dir": str(out / "runs")} | parameters
    path = ROOT / "notebooks" / f"{name}.ipynb"
    path = cells_twice(name, out, given) if twice else path
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [os.path.relpath(path, cwd), str(out / "out.ipynb")]
    for key, value in given.items():
        command += ["-p", key, str(value)]
    env = ENV | {"OMP_NUM_THREADS": "1"}  # as the committed run: sums are added in one order
    if data_dir:
        env["SKILLSTACK_DATA"] = str(data_dir)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def figures(out: Path) -> int:
    """How many figures the executed notebook shows; an error if it wrote to stderr."""
    notebook = nbformat.read(out / "out.ipynb", as_version=4)
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    return sum("image/png" in o.get("data", {}) for o in outputs)


def printed(out: Path) -> str:
    cells = nbformat.read(out / "out.ipynb", as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


def said(out: Path) -> str:
    """The sentences that the executed notebook shows."""
    cells = nbformat.read(out / "out.ipynb", as_version=4).cells
    shown = [
        o.get("data", {}).get("text/markdown", "") for c in cells for o in c.get("outputs", [])
    ]
    return "\n".join(map("".join, shown))


def shown_tables(out: Path) -> str:
    """The tables that the executed notebook shows, HTML."""
    cells = nbformat.read(out / "out.ipynb", as_version=4).cells
    shown = [o.get("data", {}).get("text/html", "") for c in cells for o in c.get("outputs", [])]
    return "\n".join(map("".join, shown))


def the_run(out: Path, seed: int = 42, name: str = "") -> Path:
    (path,) = (out / "runs").glob(f"{name}*-s{seed}-*/run.json")
    assert runs.read_facts(path.parent)["status"] == "finished"
    return path.parent


def test_a_committed_run_is_measured_again(tmp_path):
    """mini4 on minilm: real text, the same numbers as with the code of version 0.1."""
    name = "01_train_stack"
    (committed,) = (ROOT / "results" / "runs").glob(f"{name}-mini4-minilm-stack-s42-*")
    config = runs.read_facts(committed)["config"]
    given = {k: config[k] for k in ("preset", "model", "n_train", "n_router", "n_eval", "epochs")}
    given |= {"max_length": config["max_length"], "source": "embedded"}
    done = papermill(name, tmp_path, ROOT, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    run = the_run(tmp_path)
    assert run.name == committed.name and figures(tmp_path) == 3
    pd.testing.assert_frame_equal(numbers(run), numbers(committed))
    expected = json.loads((committed / "run.json").read_text())
    assert runs.read_facts(run)["versions"].keys() == expected["versions"].keys()
    for file in ("metrics.csv", "matrix.csv", "routing.parquet", "train.jsonl"):
        assert (run / file).stat().st_size > 50, file


@pytest.mark.parametrize(
    "name, cwd, preset, drawn",  # for a stream that was published there is a figure more
    [("01_train_stack", ROOT, "adaptive3", 3), ("02_hard12", ROOT / "notebooks", "hard12", 4)],
)
def test_notebook_runs_and_leaves_what_it_says(
    name, cwd, preset, drawn, tmp_path, data_dir, model_dirs
):
    given = {"model": str(model_dirs["bert"]), "lora_r": 4, "preset": preset}
    done = papermill(name, tmp_path, cwd, data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert figures(tmp_path) == 2 * drawn
    for run in (the_run(tmp_path), the_run(tmp_path, 7)):
        for file in ("metrics.csv", "matrix.csv", "routing.parquet", "train.jsonl"):
            assert (run / file).stat().st_size > 50, file
        assert len(list(run.glob("*.png"))) == drawn
        metrics = runs.read_metrics(run / "metrics.csv")
        value = metrics[metrics["eval_task"].eq("")].set_index("metric")["value"]
        assert value["stack_drop"] == 0
        assert metrics.loc[metrics["metric"].eq("logits_bit_equal"), "value"].eq(1).all()
        assert set(streams.COLUMNS) <= set(value.index)
    # finished: read, not measured again
    stamp = (run / "metrics.csv").stat().st_mtime_ns
    done = papermill(name, tmp_path, cwd, data_dir, seed=7, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is finished: its numbers are read" in printed(tmp_path) and figures(tmp_path) == drawn
    answers = json.loads((run / "answers.json").read_text())
    assert len(answers) == drawn and said(tmp_path).count(answers[0]) == 2  # first, and at the end
    assert (run / "metrics.csv").stat().st_mtime_ns == stamp


def test_routers_notebook_reuses_a_stack_and_compares(tmp_path, model_dirs, data_dir):
    given = {"preset": "adaptive3", "model": str(model_dirs["bert"]), "lora_r": 4}
    for name, shown in (("03_routers", 7), ("07_domain_confusion", 4)):
        done = papermill(name, tmp_path, data_dir=data_dir, twice=True, **given)
        assert done.returncode == 0, done.stderr[-3000:]
        assert figures(tmp_path) == 2 * shown
        for seed in (42, 7):
            run = the_run(tmp_path, seed, name)
            assert len(list(run.glob("*.png"))) == shown
            assert (run / "stack").exists() == (name == "03_routers")  # 07 found the stack of 03
            metrics = runs.read_metrics(run / "metrics.csv")
            assert not metrics["value"].isna().any()
            assert set(metrics["router"]) >= set(ROUTERS)
    stack = the_run(tmp_path, 42, "03_routers") / "stack"
    given = {"stack_dir": str(stack), "data_dir": str(data_dir)}
    done = papermill("11_inspect_frames", tmp_path, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert figures(tmp_path) == 7
    widget = "application/vnd.jupyter.widget-view+json"
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert widget in notebook.cells[-1].outputs[-1]["data"]
    assert (stack / "routers" / "hybrid_chain" / "router.json").exists()


def test_baselines_notebook_runs_all_methods_and_resumes(tmp_path, model_dirs, data_dir):
    given = {"preset": "adaptive3", "model": str(model_dirs["bert"]), "lora_r": 4}
    some = papermill("04_baselines", tmp_path, data_dir=data_dir, methods="replay,ewc", **given)
    assert some.returncode == 0, some.stderr[-3000:]
    found = list((tmp_path / "runs").glob("*/metrics.csv"))
    methods = {p: runs.read_facts(p.parent)["method"] for p in found}
    assert set(methods.values()) == {"frames", "sequential", "replay", "ewc", "search"}
    # The search goes on for O-LoRA; what was run is read.
    before = {p: p.stat().st_mtime_ns for p in found if methods[p] != "search"}
    done = papermill("04_baselines", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())  # read, not run again
    table = runs.load_runs(tmp_path / "runs")
    methods = set(METHODS) - {"generative_replay"}
    for _, mine in table.groupby("seed"):
        assert set(mine["method"]) == methods | {"search"}
        updates = mine[mine["metric"].eq("updates")].set_index("method")["value"]
        assert updates.drop(["tfidf", "tfidf_union", "joint"]).nunique() == 1
    assert set(table["seed"]) == {42, 7} and not table["value"].isna().any()
    shown = baselines.accuracy_table(table, "adaptive3")
    assert set(shown.loc["measured here"].index) == methods
    assert figures(tmp_path) == 2 * 6
    text = printed(tmp_path)
    assert "generative replay is left out" in text and "is an encoder" in text
    answers = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/answers.json")]
    assert len(answers) == 2 and all(len(each) == 6 for each in answers)  # a run of each seed
    assert all(f"- {answer}" in said(tmp_path) for each in answers for answer in each[1:])


def test_bitstack_notebook_runs_every_share(tmp_path, model_dirs, data_dir):
    given = {"preset": "two_task", "model": str(model_dirs["bert"]), "lora_r": 4}
    done = papermill("05_bitstack", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    table = runs.load_runs(tmp_path / "runs")
    shares = [f"bitstack_{share}" for share in ("0.05", "0.10", "0.12", "0.15", "0.20")]
    assert not table["value"].isna().any() and set(table["seed"]) == {42, 7}
    for _, mine in table.groupby("seed"):
        assert set(mine["method"]) == {"baseline", *shares, "ewc", "frames"}
        frozen = mine[mine["metric"].eq("frozen_pct") & mine["trained_through"].eq("imdb")]
        frozen = frozen.set_index("method")["value"]
        assert [round(frozen[name], 1) for name in shares] == [5, 10, 12, 15, 20]
    assert figures(tmp_path) == 2 * 2
    assert re.search(r"bit-equal after the step</th>\s*<td[^>]*>yes<", shown_tables(tmp_path))
    assert said(tmp_path).count("Stored beside the heads: saved frames") == 2


def test_compression_notebook_shrinks_and_decides(tmp_path, model_dirs, data_dir):
    given = {"model": str(model_dirs["bert"]), "lora_r": 4, "n_held_back": 16, "max_loss_pp": 50.0}
    done = papermill("06_compression", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (42, 7):
        run = the_run(tmp_path, seed)
        assert len(list(run.glob("*.png"))) == 5 and not (run / "variants").exists()
        assert (run / "compressed" / "stack.json").exists()
        metrics = runs.read_metrics(run / "metrics.csv")
        assert not metrics["value"].isna().any()
        assert metrics.loc[metrics["metric"].eq("logits_bit_equal"), "value"].eq(1).all()
        frames = metrics[metrics["metric"].eq("frames")].set_index("split")["value"]
        assert frames["full"] == 8 and frames["published anchor"] == frames["chosen anchor"] == 4
        size = metrics[metrics["metric"].eq("total_bytes")].set_index("split")["value"]
        assert (size.drop("full") < size["full"]).all()
    assert "is back, its logits bit-equal: True" in printed(tmp_path)
    assert figures(tmp_path) == 2 * 5
    assert "frames that the rule left alone have the same logits" in said(tmp_path)
    # tasks without a sibling: nothing to merge, and nothing breaks
    other = tmp_path / "other"
    other.mkdir()
    done = papermill("06_compression", other, data_dir=data_dir, preset="adaptive3", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = pd.read_csv(the_run(other) / "decisions.csv")
    assert set(kept["kind"]) == {"keep"}
    assert "The rule changed nothing: no other frame has these labels." in said(other)
    assert figures(other) == 2


def test_generalization_notebook_asks_unseen_tasks(tmp_path, model_dirs, data_dir):
    given = {"model": str(model_dirs["bert"]), "lora_r": 4}
    done = papermill("09_skill_generalization", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (42, 7):
        run = the_run(tmp_path, seed)
        assert len(list(run.glob("*.png"))) == 3
        transfer = pd.read_csv(run / "transfer.csv", index_col=0)
        assert list(transfer)[8:] == ["movies", "products", "editorials", "tweets", "drug_rating"]
        assert (transfer.loc["agnews"].drop("agnews") == 0).all()  # no word for anything else
        metrics = runs.read_metrics(run / "metrics.csv")
        means = metrics[metrics["metric"].eq("mean_all")].set_index("split")["value"]
        assert means["oracle"] >= means.max()
        routes = pd.read_csv(run / "routes.csv", index_col=0)
        assert (routes.sum(axis=1) - 1).abs().max() < 1e-9
        answers = json.loads((run / "answers.json").read_text())
        assert len(answers) == 4 and "the router gives away" in answers[-1]
        assert all(answer in said(tmp_path) for answer in answers)
    assert figures(tmp_path) == 2 * 3
    assert "best frame per task" in shown_tables(tmp_path)


def test_generative_notebook_writes_and_remembers(tmp_path, decoders, data_dir):
    model = shutil.copytree(decoders["llama"], tmp_path / "llama")
    room = {"max_position_embeddings": 256}  # for the examples before a text
    edit_json(model / "config.json", lambda fields: fields.update(room))
    given = {"model": str(model), "lora_r": 4, "max_length": 60, "lr": 0.01}
    done = papermill("08_generative_probe", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (42, 7):
        run = the_run(tmp_path, seed)
        assert len(list(run.glob("*.png"))) == 4
        metrics = runs.read_metrics(run / "metrics.csv")
        assert not metrics["value"].isna().any()
        assert metrics.loc[metrics["metric"].eq("logits_bit_equal"), "value"].eq(1).all()
        memory = pd.read_csv(run / "memory.csv")
        assert set(memory["shown"]) == {"nothing", "right memory", "wrong memory", "random"}
        assert len(memory) == 2 * 4 * (4 * 4 + 8)  # who, shown, half of the rows of five tasks
        table = generation.generative_table(metrics)
        assert table.loc[("published", "2 seeds"), "routed stack (%)"] == "75.8"
        assert table.loc[("measured here", str(seed)), "right frame (%)"]
        answers = json.loads((run / "answers.json").read_text())
        assert len(answers) == 5 and "label word" in answers[-1]
        assert all(answer in said(tmp_path) for answer in answers)
    assert figures(tmp_path) == 2 * 4
    assert "memory of the right frame" in shown_tables(tmp_path)


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"sede": 1}, "unknown parameter 'sede' (did you mean 'seed'?)"),
        ({"seed": "abc"}, "seed must be an integer, got 'abc'"),
        ({"preset": "hard9"}, "unknown preset 'hard9'"),
        ({"n_train": 100000}, "asks for more than there is"),
        ({"model": "./no_such_folder"}, "model folder ./no_such_folder does not exist"),
    ],
)
def test_bad_parameter_is_one_line_and_leaves_nothing(parameters, words, tmp_path, data_dir):
    defaults = {"preset": "adaptive3", "model": "minilm"}
    done = papermill("01_train_stack", tmp_path, data_dir=data_dir, **(defaults | parameters))
    assert done.returncode != 0
    (line,) = {row for row in done.stderr.splitlines() if row.startswith("SkillStackError: ")}
    assert words in line
    assert not list((tmp_path / "runs").glob("*/metrics.csv"))
    assert not list((tmp_path / "runs").glob("*/stack"))


# ------------------------------------------------------------------ kill -9

CELLS = """
import json as _json
import sys as _sys

import matplotlib

matplotlib.use("Agg")
display = print
for _cell in _json.load(open(_sys.argv[1]))["cells"]:
    if _cell["cell_type"] == "code":
        exec("".join(_cell["source"]), globals())
        if "parameters" in _cell["metadata"].get("tags", []):
            globals().update(_json.loads(_sys.argv[2]))
"""


def start(output_dir, model, data_dir) -> subprocess.Popen:
    """The notebook's cells as one plain process, so that kill -9 hits all of it."""
    parameters = TINY | {
        "preset": "adaptive3",
        "model": str(model),
        "data_dir": str(data_dir),
        "output_dir": str(output_dir),
        "lora_r": 4,
        "lr": 5e-3,
        "n_train": 16,
        "epochs": 8,
    }
    notebook = ROOT / "notebooks" / "01_train_stack.ipynb"
    command = [sys.executable, "-c", CELLS, str(notebook), json.dumps(parameters)]
    env = ENV | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(process, condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            raise AssertionError(process.stdout.read().decode()[-3000:])
        time.sleep(0.002)
    raise AssertionError("the moment to kill never came")


def numbers(run: Path) -> pd.DataFrame:
    table = runs.read_metrics(run / "metrics.csv").drop(columns="run_id")
    return table.sort_values(list(table.columns[:9])).reset_index(drop=True)


def test_killed_at_any_moment_it_goes_on_to_the_same_numbers(tmp_path, model_dirs, data_dir):
    whole = start(tmp_path / "whole", model_dirs["bert"], data_dir)
    output = whole.communicate()[0].decode()
    assert whole.returncode == 0, output[-3000:]
    (expected,) = (tmp_path / "whole").iterdir()

    run = tmp_path / "killed" / expected.name
    frames = run / "stack" / "frames"

    def saving(name):
        return lambda: any(p.name.startswith(f".tmp-{name}-") for p in frames.glob("*"))

    def measured(task):
        path = run / "metrics.csv"
        return lambda: path.exists() and f",{task},eval,saved," in path.read_text()

    moments = [
        lambda: (run / "run.json").exists(),
        saving("sst2"),  # a frame half written
        lambda: (frames / "sst2").exists(),  # whole, perhaps not yet listed
        saving("mrpc"),
        lambda: (frames / "mrpc").exists(),
        measured("mrpc"),  # in the middle of the last measurements
    ]
    stamps = {}
    for moment in moments:
        process = start(tmp_path / "killed", model_dirs["bert"], data_dir)
        wait_for(process, moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in frames.glob("[a-z]*/frame.json"):
            stamp = path.stat().st_mtime_ns
            assert stamps.setdefault(path, stamp) == stamp, f"{path} was written twice"
    last = start(tmp_path / "killed", model_dirs["bert"], data_dir)
    output = last.communicate()[0].decode()
    assert last.returncode == 0, output[-3000:]

    assert len(stamps) == 3
    listed = json.loads((run / "stack" / "stack.json").read_text())["frames"]
    assert [entry["name"] for entry in listed] == ["sst2", "mrpc", "qnli"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    pd.testing.assert_frame_equal(numbers(run), numbers(expected))
    assert (run / "matrix.csv").read_text() == (expected / "matrix.csv").read_text()
    assert (run / "train.jsonl").read_text() == (expected / "train.jsonl").read_text()
    for name in ("sst2", "mrpc", "qnli"):
        file = Path("stack") / "frames" / name / "adapter_model.safetensors"
        assert (run / file).read_bytes() == (expected / file).read_bytes()
    assert not list(run.rglob(".tmp-*"))


# ------------------------------------------------------------------ the setup cell

PIP = """
import json, os, sys
with open(os.environ["STUB_LOG"], "a") as log:
    print(json.dumps([os.getcwd(), sys.argv[1:]]), file=log)
sys.exit(int(os.environ.get("STUB_FAILS", 0)))
"""
AFTER = """
import importlib.util, json, sys
suite = importlib.util.find_spec("skillstack_helpers")
print(json.dumps(suite and suite.origin))
"""


def set_up(cwd, tmp_path, isolated=True, **more):
    """Run the setup cell as a program, with a pip that only notes what it is asked.

    isolated: without site-packages, so that the package is missing. Returns (where the package is
    found afterwards or None, what pip was asked, exit status, stderr).
    """
    stub = tmp_path / "stub" / "pip"
    stub.mkdir(parents=True, exist_ok=True)
    (stub / "__init__.py").touch()
    (stub / "__main__.py").write_text(PIP)
    log = tmp_path / "pip.log"
    log.write_text("")
    cell = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
    env = os.environ | {"PYTHONPATH": str(stub.parent), "STUB_LOG": str(log)} | more
    env.setdefault("SKILLSTACK_REPO", "/nowhere")
    command = [sys.executable, *(["-S"] if isolated else []), "-c", cell + AFTER]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    found = json.loads(done.stdout) if done.stdout else None
    return found and Path(found).parent.parent, asked, done.returncode, done.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A small repository to clone from: the files that the setup cell touches."""
    folder = tmp_path_factory.mktemp("origin")
    for name in ("skillstack_helpers/__init__.py", "requirements.txt", "requirements-embedded.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "empty").touch()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


INSTALLS = [
    ["install", "--quiet", "-r", "requirements.txt"],
    ["install", "--quiet", "--no-deps", "-r", "requirements-embedded.txt"],
]


@pytest.mark.parametrize(
    "platform", [{"COLAB_RELEASE_TAG": "x"}, {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, {}],
    ids=["Colab", "Kaggle", "elsewhere"],
)  # fmt: skip
def test_setup_fetches_and_installs_where_the_package_is_missing(
    platform, repository, tmp_path
):  # fmt: skip
    work = tmp_path / "content"
    work.mkdir()
    platform = platform | {"SKILLSTACK_REPO": str(repository)}
    found, asked, status, error = set_up(work, tmp_path, STUB_FAILS="1", **platform)
    assert status and "CalledProcessError" in error and not found  # and it can be run again:
    found, asked, status, error = set_up(work, tmp_path, **platform)
    assert (found, status) == (work / "skillstack", 0), error
    assert asked == [[str(work / "skillstack"), arguments] for arguments in INSTALLS]
    # Ranges only: the platform's own torch stays.
    assert not re.search("(?m)^torch|==", (repository / "requirements.txt").read_text())


def test_setup_uses_the_clone_that_the_notebook_stands_in(repository, tmp_path):
    found, asked, status, error = set_up(repository / "notebooks", tmp_path)
    assert (found, status) == (repository, 0), error
    assert asked == [[str(repository), arguments] for arguments in INSTALLS]
    assert not list(repository.rglob("skillstack"))


def test_setup_does_nothing_where_the_package_is_installed(tmp_path):
    found, asked, status, error = set_up(tmp_path, tmp_path, isolated=False, PYTHONPATH=str(ROOT))
    assert (found, asked, status) == (ROOT, [], 0), error
    assert not list(tmp_path.glob("skillstack"))


def test_the_setup_cell_is_the_same_everywhere():
    cells = {nbformat.read(path, as_version=4).cells[1].source for path in NOTEBOOKS}
    assert len(cells) == 1


# ------------------------------------------------------------------ form


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert notebook.cells[0].cell_type == "markdown"
    assert all(word in notebook.cells[0].source for word in ("Question", "expect", "Run time"))
    following = notebook.cells[notebook.cells.index(tagged[0]) + 1]
    assert "RunConfig.from_notebook" in following.source and path.stem in following.source
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells)
    code = [len(c.source.splitlines()) for c in notebook.cells[2:] if c.cell_type == "code"]
    code = [n for n, c in zip(code, [c for c in notebook.cells[2:] if c.cell_type == "code"],
                              strict=True) if c not in tagged]  # fmt: skip
    assert np.median(code) <= 10 and max(code) <= 40
    assert not any("run.finished" in c.source for c in notebook.cells)
