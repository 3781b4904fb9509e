"""What runs keep of every answer, and whether their numbers follow from it."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import edit_json

from skillstack_helpers.answers import Answers
from skillstack_helpers.heads import Evaluation
from skillstack_helpers.lab import comparison, predictions, writing
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import Run, budget, placed, read_facts, read_run

KEPT = (predictions.FILE, "probe.parquet")
COMMITTED = {path.parent.name: path.parent for name in KEPT
             for path in sorted(placed("results/runs").glob(f"*/{name}"))}  # fmt: skip

# ------------------------------------------------------------------ from rows to metrics.csv


def right(said, frames):
    """Whether the frame named for each text finds the right label: at least and at most, (n, 2),
    since two labels may be equally probable in half precision. Who was not asked is wrong."""
    names, number = said.label_names, {name: k for k, name in enumerate(said.label_names)}
    own = said.logits[np.arange(len(frames)), [number[frame] for frame in frames]]
    best = own == own.max(1, keepdims=True)
    places = {frame: {label: k for k, label in enumerate(names[frame])} for frame in names}
    pairs = zip(frames, said.truth, strict=True)
    at = np.array([places[frame].get(label, -1) for frame, label in pairs])
    most = (at >= 0) & best[np.arange(len(at)), at]
    return np.stack([most & (best.sum(1) == 1), most], axis=1)


def recorded(run, **where):
    """Recorded values by task; "" is the whole run."""
    found = run.metrics[(run.metrics[list(where)] == list(where.values())).all(axis=1)]
    return found.set_index("eval_task")["value"].rename(", ".join(where.values()))


def routing(run):
    """Where each text was sent; of notebook 04's methods by the router of the saved frames."""
    if run.config.notebook != "04_baselines" or run.method == "frames":
        return run.read("routing.parquet")

    def of(facts):
        return facts["data"], facts["backbone"], facts["config"]["seed"], budget(facts["config"])

    others = run.folder.parent.glob(f"04_baselines-{run.config.preset}-*-frames-*")
    (frames,) = [folder for folder in others if of(read_facts(folder)) == of(run.facts)]
    return read_run(frames).read("routing.parquet")


def of_answers(run):
    """What follows from predictions.parquet: values, the texts' tasks, whether each is right."""
    kept, notebook = predictions.read(run), run.config.notebook[:2]
    said, asked = kept["eval"], []  # where it is recorded, and the frame that answers each text
    own, last = said.tasks, {"metric": "accuracy", "trained_through": list(run.facts["data"])[-1]}
    if notebook in ("01", "02"):
        asked = [({"metric": metric}, own) for metric in ("saved", "task_aware")]
        asked += [({"metric": "routed"}, routing(run)["frame"])]
    elif notebook == "03":
        for column, frames in routing(run).filter(like="_frame").items():
            asked += [({"metric": "routed", "router": column.removesuffix("_frame")}, frames)]
    elif notebook == "04" and run.method.endswith("_union"):  # told nothing, and routed nowhere
        asked = [(last, said.most_sure()), ({"metric": "routed"}, said.most_sure())]
    elif notebook == "04":
        asked = [(last, own), ({"metric": "acc"}, own)]
        asked += [({"metric": "routed"}, routing(run)["frame"])]
    elif notebook in ("05", "10"):
        asked = [(last, own), ({"metric": "acc"}, own)]
    elif notebook == "06":
        asked = [({"metric": "routed", "split": "full"}, routing(run)["frame"])]
    elif notebook == "08":
        asked = [({"metric": "choice", "split": "own frame"}, own)]
    elif notebook == "09":
        asked = [({"metric": "accuracy", "split": "routed stack"}, routing(run)["frame"])]
        for frame, values in run.read("transfer.csv", index_col=0).iterrows():
            yield values, said.tasks, right(said, [frame] * len(own))
    exact = notebook == "04" and run.method in ("frames", "ewc", "joint")  # of the rows as kept
    for where, frames in asked:
        is_right = said.right(frames) if exact else right(said, frames)
        yield recorded(run, **where), said.tasks, is_right
    if exact:  # to fit the mixtures of all takes long
        mixed = said.mixed(kept["router"].mixture(), comparison.chances(routing(run)))
        yield recorded(run, metric="mixed"), said.tasks, mixed


def of_tables(run):
    """The same of notebook 07's probe, and of what notebook 08 read of written answers."""
    if run.config.notebook.startswith("07"):
        probe = run.read("probe.parquet")
        for (name, setting, condition), rows in probe.groupby(["router", "setting", "condition"]):
            where = {"router": name, "split": f"{setting}: {condition}"}
            found = rows["frame"] == rows["task"]
            value = recorded(run, metric="router_accuracy_macro", **where)
            yield value, rows["task"], found
            for column, metric in (("wears", "wears_rate"), ("trap", "trap_rate")):
                value = recorded(run, metric=metric, **where)
                if column in rows and len(value):
                    yield value, [""] * len(rows), rows["frame"] == rows[column]
    if run.config.notebook.startswith("08"):
        written = run.read("routing.parquet")
        for who in ("own frame", "latest adapter", "routed stack"):
            value = recorded(run, metric="written", split=who)
            yield value, written["task"], written[who] == written["truth"]
        value = recorded(run, metric="router_accuracy")
        yield value, written["task"], written["frame"] == written["task"]


def differing(run) -> list[str]:
    """What metrics.csv says and the rows that were kept do not."""
    answers = of_answers(run) if (run.folder / predictions.FILE).exists() else ()
    compared = [*answers, *of_tables(run)]
    wrong = [] if compared else ["nothing is compared"]
    for values, tasks, is_right in compared:
        limits = pd.DataFrame(np.asarray(is_right, dtype=float))
        limits = limits.groupby(np.asarray(tasks), sort=False).mean()
        limits.loc[""] = limits.mean()
        wrong += [] if len(values) else [f"{values.name}: not recorded"]
        for task, value in values.items():
            low, high = limits.loc[task].min(), limits.loc[task].max()
            if not low - 1e-9 <= value <= high + 1e-9:
                where = f"{values.name}, {task or 'all tasks'}"
                wrong.append(f"{where}: {value:.6f}, by its rows {low:.6f} to {high:.6f}")
    return wrong


# ------------------------------------------------------------------ the committed runs


@pytest.mark.parametrize("run_id", COMMITTED)
def test_a_committed_run_says_what_follows_from_the_rows_it_kept(run_id):
    """Anybody can compute it again without a model: told the task, routed and mixed."""
    wrong = differing(read_run(COMMITTED[run_id]))
    assert not wrong, f"{run_id}: metrics.csv differs from the rows beside it: {'; '.join(wrong)}"


ALTERED = {  # table -> its run, and what is done to it
    predictions.FILE: ("04_baselines-hard8-minilm-frames-", "label", lambda ids: [1 - ids[0]]),
    "routing.parquet": ("04_baselines-hard8-minilm-frames-", "frame", lambda names: names[::-1]),
    "probe.parquet": ("07_domain_confusion-", "frame", lambda names: names[names != names[0]][:1]),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_table_is_seen(name, tmp_path):
    """One row, of two labels or sent to another frame; of the routes the order."""
    run_id, column, change = ALTERED[name]
    source = next(path for known, path in COMMITTED.items() if known.startswith(run_id))
    folder = shutil.copytree(source, tmp_path / source.name)
    edit_json(folder / "run.json", lambda facts: facts.pop("sha256", None))  # not by its digest
    table = pd.read_parquet(folder / name)
    made = change(table[column].to_numpy())
    table.loc[: len(made) - 1, column] = made
    table.to_parquet(folder / name)
    assert differing(read_run(folder))


# ------------------------------------------------------------------ how they are kept


@pytest.fixture
def run(tmp_path, stream):
    run = Run(tmp_path, RunConfig(), "stack", "minilm")
    run.facts = {"data": {data.name: {} for data in stream}}
    return run


def test_heads_are_kept_on_the_rows_of_their_task(run, stream):
    rng, said = np.random.default_rng(0), {}
    for data in stream:
        scores = rng.normal(size=(len(data.eval), len(data.task.label_names))).astype(np.float32)
        labels = scores.argmax(1)
        said[data.name] = Evaluation((labels == data.labels("eval")).mean(), labels, scores)
    predictions.keep_told(run, stream, said)
    kept = predictions.read(run)["eval"]
    assert kept.mean(kept.right()).to_dict() == {name: e.accuracy for name, e in said.items()}
    asked = np.isfinite(kept.logits).any(2)
    assert (asked == (kept.tasks[:, None] == np.array(list(said), dtype=object))).all()


def test_what_frames_said_is_kept_with_who_answered_and_nobody_is_asked_again(
    run, stack, stream, monkeypatch
):
    answers, others = Answers.of(stream, "eval"), Answers.of(stream, "router", slice(4))
    picked = np.roll(answers.tasks, 5)
    right = answers.right(stack, picked)
    others.right(stack, "imdb", others.tasks == "imdb")
    monkeypatch.setattr(stack, "predict", pytest.fail)
    predictions.keep(run, answers, stack, picked, held_back=others)
    kept, routes = predictions.read(run), run.read("routing.parquet")
    assert routes["task"].tolist() == list(answers.tasks) and list(routes) == ["task", "frame"]
    np.testing.assert_array_equal(kept["eval"].right(routes["frame"]), right)
    asked = np.isfinite(kept["held_back"].logits).any(2)
    assert asked.sum(0).tolist() == [4, 0, 0]
    run.facts["status"], stamp = "finished", (run.folder / predictions.FILE).stat().st_mtime_ns
    predictions.keep(run, answers, stack, answers.tasks)  # a finished run is left as it is
    assert (run.folder / predictions.FILE).stat().st_mtime_ns == stamp
    assert run.read("routing.parquet").equals(routes)


def test_tasks_without_a_frame_have_their_labels_from_the_run(run, stack, stream):
    answers = Answers.of(stream, "eval")
    predictions.keep(run, answers, stack.copy(stack.frames[:2]))
    said = predictions.read(run)["eval"]
    assert said.truth.tolist() == answers.label_names.tolist()
    assert list(said.label_names) == ["imdb", "agnews"]


def test_what_was_read_is_kept_task_by_task_and_once(run, stream):
    for data in [*stream, stream[-1]]:  # interrupted after the last one was written
        read = writing.truth(data).copy()
        read[0] = writing.UNREADABLE
        writing.keep_read(run, data, np.array([data.name] * len(read)), {"own frame": read})
    table = run.read("routing.parquet")
    assert list(table) == ["task", "truth", "frame", "own frame"]
    assert table["task"].tolist() == [data.name for data in stream for _ in range(len(data.eval))]
    assert table["own frame"].ne(table["truth"]).groupby(table["task"]).sum().eq(1).all()
