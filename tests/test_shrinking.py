"""What notebook 06 measures of every smaller stack, against the same by hand."""

import numpy as np
import pytest

from skillstack_helpers import SkillStackError, compression, pruning
from skillstack_helpers.answers import Answers
from skillstack_helpers.lab import experiment, runs, shrinking
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.loading import load_backbone


@pytest.fixture(scope="module")
def bench(model_dirs, data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shrinking")
    config = RunConfig(
        preset="mixed8", model=str(model_dirs["bert"]), data_dir=str(data_dir), epochs=1,
        n_train=4, n_router=12, n_eval=4, lora_r=4, max_length=32, lr=5e-3, router="hybrid_svm",
        output_dir=str(folder),
    )  # fmt: skip
    backbone = load_backbone(config.model, device="cpu")
    stream = experiment.load_stream(config, n_router=24)
    stream = [data for data in stream if data.name in ("imdb", "amazon", "qqp")]
    run = runs.open_run(config, stream, backbone, method="compression")
    stack = experiment.open_or_train(config, stream, backbone, run.stack_dir)
    return shrinking.Bench(run, stack, stream)


def test_a_stack_is_measured_as_it_is_on_disk(bench):
    small = compression.int8(bench.stack)
    full = bench.measure("full", bench.stack)
    line = bench.measure("int8", small)
    assert full.startswith("full stack: 3 frames, 100.0 % of the bytes, ")
    correct = bench.evaluated.right(small, bench.router.predict(bench.evaluated.texts))
    by_task, on = bench.evaluated.accuracy(correct), {"router": "hybrid_svm", "split": "int8"}
    assert bench.run.value("routed", **on) == pytest.approx(by_task.mean())
    for task in bench.tasks:
        assert bench.run.value("routed", eval_task=task, **on) == by_task[task]
    size = compression.stored_bytes(bench.folder / "int8")
    assert bench.run.value("total_bytes", **on) == size.sum()
    assert bench.run.value("adapter_bytes", **on) == size["adapters"]
    assert bench.run.value("frames", **on) == bench.run.value("adapters", **on) == 3
    share = 100 * size.sum() / bench.run.value("total_bytes", router="hybrid_svm", split="full")
    assert line.startswith(f"int8: 3 frames, {share:.1f} % of the bytes") and share < 100
    bench.clear()
    assert not bench.folder.exists()


def test_a_merged_adapter_counts_once_and_on_a_basis_each_core_counts(bench):
    on = {"router": "hybrid_svm"}
    bench.measure("full", bench.stack)
    bench.measure("basis", compression.shared_basis(bench.stack, 4))
    assert bench.run.value("adapters", split="basis", **on) == 3
    bench.measure("merge: svd", compression.merge(bench.stack, ["imdb", "amazon"]))
    assert bench.run.value("adapters", split="merge: svd", **on) == 2
    assert bench.run.value("frames", split="merge: svd", **on) == 3


def test_a_stack_that_is_read_back_otherwise_is_refused(bench, monkeypatch):
    monkeypatch.setattr(shrinking, "weights_digest", id)
    with pytest.raises(SkillStackError, match="is not what was saved"):
        bench.measure("full", bench.stack)


def test_one_too_few_is_the_loss_by_name_and_by_position(bench):
    gone, on = bench.tasks[0], {"router": "hybrid_svm", "split": f"anchor without {bench.tasks[0]}"}
    line = bench.one_too_few(bench.stack, gone)
    sent = bench.fit(bench.tasks[1:]).predict(bench.evaluated.texts)
    assert gone not in sent
    own = bench.evaluated.tasks == gone
    for ending, ids in (("", False), ("_by_id", True)):
        before = bench.evaluated.right(bench.stack, bench.picks, label_ids=ids)
        after = bench.evaluated.right(bench.stack, sent, label_ids=ids)
        lost = before[own].mean() - after[own].mean()
        assert bench.run.value(f"task_loss{ending}", **on) == pytest.approx(lost)
        means = bench.evaluated.accuracy(before) - bench.evaluated.accuracy(after)
        assert bench.run.value(f"loss{ending}", **on) == pytest.approx(means.mean())
    lost = 100 * bench.run.value("task_loss", **on)
    assert line == f"without {gone}: {lost:.1f} points lost on its own task"


def test_substitutes_are_never_the_frame_that_is_gone_and_get_all_texts(bench):
    table = bench.substitutes(bench.tasks[:2])
    assert list(table["removed"].unique()) == bench.tasks[:2]
    assert (table["removed"] != table["frame"]).all()
    np.testing.assert_allclose(table.groupby("removed")["share"].sum(), 1)
    on = {"router": "hybrid_svm", "split": f"full without {bench.tasks[1]}"}
    assert np.isfinite(bench.run.value("task_loss", eval_task=bench.tasks[1], **on))


def test_the_router_sees_the_first_routing_rows_only(bench):
    assert len(bench.stream[0].router) == 24 and bench.run.config.n_router == 12
    first = [t for data in bench.stream for t in data.texts("router")[:12]]
    other = experiment.fit_router(
        "hybrid_svm", bench.stream, bench.stack, rows=slice(12), threshold=0.0, seed=42
    )
    assert (bench.router.predict(first) == other.predict(first)).all()
    assert (bench.picks == other.predict(bench.evaluated.texts)).all()


def test_decisions_are_a_line_each_and_keep_no_folders(bench):
    rows = Answers.of(bench.stream, "router")
    made = pruning.prune(bench.stack, bench.router, rows, rows)
    table = shrinking.decision_table({"at the end": made, "again": made})
    assert table["rule"].tolist()[:: len(made.decisions)] == ["at the end", "again"]
    assert len(table) == 2 * len(made.decisions) and "replaced" not in table
    assert table["frames"].map(type).eq(str).all()
