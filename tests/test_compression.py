"""Every way to make a stack smaller: what it keeps, what it saves, and the way back."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, edit_json
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, compression
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.files import digest
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import HybridSVMRouter
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import load_task

SENTIMENT = ("imdb", "yelp", "sst2")
TASKS = ("imdb", "yelp", "qqp", "sst2", "agnews")


def load_rows(data_dir):
    return [load_task(n, 6, 40, 8, seed=0, source="folder", data_dir=data_dir) for n in TASKS]


def grown(model, rows, epochs=2):
    config = TrainingConfig(epochs=epochs, lr=1e-2, batch_size=4, lora_r=4, max_length=32, seed=3)
    stack = SkillStack(load_backbone(str(model), device="cpu"))
    for data in rows:
        stack.grow(data, config)
    return stack


def routing(rows, part=slice(0, 20)):
    texts = [text for data in rows for text in data.texts("router")[part]]
    return texts, [data.name for data in rows for _ in data.texts("router")[part]]


@pytest.fixture(scope="module")
def rows(data_dir):
    return load_rows(data_dir)


@pytest.fixture(scope="module")
def saved(model_dirs, rows, tmp_path_factory):
    stack = grown(model_dirs["bert"], rows)
    stack.save_pretrained(tmp_path_factory.mktemp("stacks") / "stack")
    return stack


@pytest.fixture
def stack(saved, tmp_path):
    """A copy on disk that a test may spoil."""
    folder = shutil.copytree(saved.frames[0].folder.parent.parent, tmp_path / "original")
    return SkillStack.from_pretrained(folder, saved.backbone)


def logits(stack, rows, name):
    data = next(data for data in rows if data.name == name)
    return digest(stack.evaluate(data).logits)


def updates(frame):
    """Per module B A alpha / r as one matrix, float64."""
    return {m: b.double() @ a.double() for m, (b, a) in frame.updates().items()}


# ------------------------------------------------------------------ dropping


def test_a_dropped_frame_is_answered_for(stack, rows, tmp_path):
    small = compression.drop(stack, "yelp", to="imdb")
    assert [f.name for f in small.frames] == ["imdb", "qqp", "sst2", "agnews"]
    assert len(stack) == 5 and not stack.dropped  # the old one is as it was
    assert "yelp" in small and small["yelp"].name == "imdb"
    texts = rows[1].texts("eval")
    redirected, direct = small.predict(texts, "yelp"), stack.predict(texts, "imdb")
    np.testing.assert_array_equal(redirected.probabilities, direct.probabilities)
    assert [f.name for f in small.chain()] == ["agnews", "sst2", "qqp", "imdb"]
    smaller = compression.drop(small, "imdb", to="sst2")
    assert smaller["yelp"].name == "sst2"  # a substitute may be dropped in its turn
    smaller.save_pretrained(tmp_path / "small")
    again = SkillStack.from_pretrained(tmp_path / "small", stack.backbone)
    again.verify()
    assert again.dropped == smaller.dropped and again.decisions == smaller.decisions
    assert [f.name for f in again.chain()] == ["agnews", "sst2", "qqp"]
    for name in ("qqp", "sst2", "agnews"):
        assert logits(again, rows, name) == stack[name].metrics["logits_sha256"]


def test_a_routed_answer_names_the_frame_that_answered(stack, rows):
    router = HybridSVMRouter().fit(*routing(rows))
    text = rows[1].texts("eval")[:1]
    assert router.predict(text)[0] == "yelp"
    assert stack.answer(text, router)["frame"][0] == "yelp"
    assert compression.drop(stack, "yelp", "imdb").answer(text, router)["frame"][0] == "imdb"


def test_a_compressed_stack_grows(stack, rows, data_dir, config):
    small = compression.drop(stack, "agnews", to="sst2")
    new = load_task("rotten_tomatoes", 6, 12, 8, seed=0, source="folder", data_dir=data_dir)
    frame = small.grow(new, dataclasses.replace(config, lora_r=4))
    assert frame.parent == "sst2"
    with pytest.raises(SkillStackError, match="'agnews' is already in the stack"):
        small.grow(rows[4], config)


def test_bad_drops(stack):
    with pytest.raises(SkillStackError, match="unknown frame 'yalp'"):
        compression.drop(stack, "yalp", to="imdb")
    with pytest.raises(SkillStackError, match="cannot substitute for itself"):
        compression.drop(stack, "yelp", to="yelp")
    small = compression.drop(stack, "yelp", to="imdb")
    for name, to in (("yelp", "sst2"), ("sst2", "yelp")):
        with pytest.raises(SkillStackError, match="'yelp' was dropped before"):
            compression.drop(small, name, to)
    merged = compression.merge(stack, ["imdb", "sst2"])
    with pytest.raises(SkillStackError, match="'imdb' holds the adapter of sst2"):
        compression.drop(merged, "imdb", to="yelp")


def circle(manifest):
    manifest["dropped"]["imdb"]["to"] = "yelp"


def nobody(manifest):
    manifest["dropped"]["yelp"]["to"] = "amazon"


def no_parent(manifest):
    del manifest["dropped"]["yelp"]["parent"]


def parents_circle(manifest):
    manifest["dropped"]["imdb"]["parent"] = "yelp"


def a_list(manifest):
    manifest["dropped"] = []


@pytest.mark.parametrize(
    "damage, message",
    [
        (circle, "no frame answers for the dropped"),
        (nobody, "no frame answers for the dropped 'yelp'"),
        (no_parent, "dropped 'yelp' has no 'parent'"),
        (parents_circle, "go in a circle"),
        (a_list, "'dropped' is \\[\\], not an object"),
    ],
)
def test_a_damaged_list_of_dropped_frames(stack, tmp_path, damage, message):
    small = compression.drop(compression.drop(stack, "yelp", "imdb"), "imdb", "sst2")
    small.save_pretrained(tmp_path / "small")
    edit_json(tmp_path / "small" / "stack.json", damage)
    with pytest.raises(SkillStackError, match=message):
        SkillStack.from_pretrained(tmp_path / "small", stack.backbone)


# ------------------------------------------------------------------ every way saves and loads

WAYS = {
    "drop": lambda s: compression.drop(s, "yelp", "imdb"),
    "lower_rank": lambda s: compression.lower_rank(s, 0.6),
    "int8": compression.int8,
    "shared_basis": lambda s: compression.shared_basis(s, 6),
    "merge, then int8": lambda s: compression.int8(compression.merge(s, SENTIMENT)),
    "drop, merge": lambda s: compression.merge(compression.drop(s, "yelp", "imdb"), SENTIMENT[::2]),
} | {way: lambda s, way=way: compression.merge(s, SENTIMENT, way) for way in compression.MERGES}
NEW_PROCESS = """
import json, sys
from conftest import *
from skillstack_helpers.files import digest
from skillstack_helpers.stack import SkillStack
root, model, data_dir = sys.argv[1:]
backbone = load_backbone(model, device="cpu")
out = {}
for folder in sorted(Path(root).iterdir()):
    stack = SkillStack.from_pretrained(folder, backbone)
    stack.verify()
    rows = [load_task(n, 6, 40, 8, seed=0, source="folder", data_dir=data_dir)
            for n in ("imdb", "yelp", "qqp", "sst2", "agnews")]
    out[folder.name] = {d.name: digest(stack.evaluate(d).logits) for d in rows}
print(json.dumps(out))
"""


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_compressed_stacks_answer_the_same_in_a_new_process(
    model_dirs, rows, data_dir, tmp_path, kind
):
    stack = grown(model_dirs[kind], rows, epochs=1)
    before = {data.name: logits(stack, rows, data.name) for data in rows}
    expected = {}
    for way, compress in WAYS.items():
        small = compress(stack)
        expected[way] = {data.name: logits(small, rows, data.name) for data in rows}
        small.save_pretrained(tmp_path / way)
        reported = sum(frame.nbytes for frame in small.frames)
        on_disk = compression.stored_bytes(tmp_path / way)
        assert on_disk.sum() == sum(p.stat().st_size for p in (tmp_path / way).rglob("*.*"))
        files = list((tmp_path / way).rglob("*.safetensors"))
        header = sum(8 + int.from_bytes(p.open("rb").read(8), "little") for p in files)
        assert reported + header == on_disk["adapters"] + on_disk["heads"]
    command = [sys.executable, "-c", NEW_PROCESS, tmp_path, model_dirs[kind], data_dir]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    untouched = {"drop": ("imdb", "qqp", "sst2", "agnews")}
    untouched |= {way: ("qqp", "agnews") for way in compression.MERGES}
    for way, names in untouched.items():
        assert {n: expected[way][n] for n in names} == {n: before[n] for n in names}
    for way in ("lower_rank", "int8", "shared_basis", "svd"):
        assert expected[way]["sst2"] != before["sst2"]
    assert {n: logits(stack, rows, n) for n in before} == before  # the old stack is as it was


def test_packed_files_are_checked(stack, tmp_path):
    compression.shared_basis(stack, 6).save_pretrained(tmp_path / "small")
    path = tmp_path / "small" / "frames" / "sst2" / "packed.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(SkillStackError, match=r"sst2/packed.safetensors was changed"):
        SkillStack.from_pretrained(tmp_path / "small", stack.backbone).verify()


# ------------------------------------------------------------------ merging


def test_svd_merge_is_the_best_low_rank_mean(stack):
    merged = compression.merge(stack, ["yelp", "imdb"], "svd")
    assert merged["yelp"].storage["shares"] == "imdb"
    one, two = updates(stack["imdb"]), updates(stack["yelp"])
    ours = updates(merged["imdb"])
    for module, mean in {m: (one[m] + two[m]) / 2 for m in one}.items():
        s = torch.linalg.svdvals(mean)
        error = torch.linalg.norm(mean - ours[module])
        torch.testing.assert_close(error, s[4:].square().sum().sqrt(), atol=1e-5, rtol=1e-3)
    for name in ("imdb", "yelp"):
        old, new = stack[name].weights().head, merged[name].weights().head
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_linear_merge_adds_the_scaled_factors(stack):
    """PEFT: each factor times the root of weight and scaling, alpha / r = 4 here."""
    merged = compression.merge(stack, ["imdb", "yelp"], "linear")
    weights = merged["imdb"].weights().lora
    scale = (0.5 * 16 / 4) ** 0.5
    for name, tensor in weights.items():
        both = stack["imdb"].weights().lora[name] + stack["yelp"].weights().lora[name]
        torch.testing.assert_close(tensor, scale * both)


def test_dare_repeats_with_its_seed_and_leaves_the_backbone_alone(stack):
    state = torch.get_rng_state()
    one, two, other = (
        compression.merge(stack, ["imdb", "yelp"], "dare_ties", seed=seed)["imdb"].weights().lora
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())
    assert list(stack.backbone.model.peft_config) == ["default"]


def test_merges_that_make_no_sense_are_refused(stack, model_dirs, rows, config, monkeypatch):
    merge = compression.merge
    with pytest.raises(SkillStackError, match=r"'imdb' and 'qqp' differ in labels: \('negative'"):
        merge(stack, ["imdb", "qqp"])
    lower = compression.lower_rank(stack, 0.5, names=["sst2"])
    with pytest.raises(SkillStackError, match=r"'imdb' and 'sst2' differ in rank, alpha .*: \(4"):
        merge(lower, ["imdb", "sst2"])
    with pytest.raises(SkillStackError, match="two frames or more"):
        merge(stack, ["imdb", "imdb"])
    with pytest.raises(SkillStackError, match="unknown merge 'mean'"):
        merge(stack, ["imdb", "yelp"], "mean")
    with pytest.raises(SkillStackError, match="density must be above 0"):
        merge(stack, ["imdb", "yelp"], "ties", density=0)
    with pytest.raises(SkillStackError, match="'imdb' has no adapter of its own to merge"):
        merge(compression.int8(stack), ["imdb", "yelp"])
    # yelp reads imdb's adapter, so imdb must not get another one, whatever its shape
    square = [dataclasses.replace(f, training=f.training | {"lora_alpha": 4}) for f in stack.frames]
    merged = merge(stack.copy(square), ["imdb", "yelp"])
    assert merged["imdb"].slot == merged["sst2"].slot
    with pytest.raises(SkillStackError, match="'imdb' has no adapter of its own to merge"):
        merge(merged, ["imdb", "sst2"])
    fewer = {n: t for n, t in stack["yelp"].weights().lora.items() if "query" not in n}
    frame = dataclasses.replace(
        stack["yelp"], _weights=stack["yelp"].weights()._replace(lora=fewer)
    )
    other = stack.copy([frame if f.name == "yelp" else f for f in stack.frames])
    with pytest.raises(SkillStackError, match="'imdb' and 'yelp' differ in targets"):
        merge(other, ["imdb", "yelp"])
    monkeypatch.setattr(stack.backbone, "quantize", "nf4")
    with pytest.raises(SkillStackError, match="frames on nf4 weights cannot be merged"):
        merge(stack, ["imdb", "yelp"])


# ------------------------------------------------------------------ fewer bytes a frame


@given(seed=st.integers(0, 2**32 - 1), energy=st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_lower_rank_keeps_the_energy_with_the_smallest_rank(saved, seed, energy):
    generator = torch.Generator().manual_seed(seed)
    old = saved["imdb"]
    lora = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in old.weights().lora.items()
    }
    frame = dataclasses.replace(old, _weights=old.weights()._replace(lora=lora))
    single = saved.copy([frame])
    lower = compression.lower_rank(single, energy)["imdb"]
    before, after = updates(frame), updates(lower)
    total = sum(float((m**2).sum()) for m in before.values())
    kept = sum(float((m**2).sum()) for m in after.values())
    assert kept >= (energy - 1e-4) * total
    squares = sum(torch.linalg.svdvals(m)[:4] ** 2 for m in before.values())
    r = lower.slot[0]
    assert float(squares[:r].sum()) / total >= energy - 1e-4
    assert r == 1 or float(squares[: r - 1].sum()) / total < energy + 1e-4
    for module in before:  # Eckart and Young: nothing of that rank is nearer
        error = torch.linalg.norm(before[module] - after[module])
        best = torch.linalg.svdvals(before[module])[r:].square().sum().sqrt()
        torch.testing.assert_close(error, best, atol=1e-3, rtol=1e-3)


def test_int8_is_within_half_a_step(stack):
    packed = compression.int8(stack)
    for frame in stack.frames:
        old, new = frame.weights().lora, packed[frame.name].weights().lora
        for name in old:
            along = 1 if ".lora_A." in name else 0
            step = old[name].abs().amax(along, keepdim=True) / 127
            assert ((old[name] - new[name]).abs() <= step / 2 + 1e-7).all()
    ratio = sum(f.nbytes for f in packed.frames) / sum(f.nbytes for f in stack.frames)
    assert ratio < 0.35  # heads stay float32, and the stand-in is narrow


def test_a_shared_basis_of_full_rank_loses_nothing(stack):
    exact = compression.shared_basis(stack, 12, names=SENTIMENT)
    assert exact.decisions[-1]["energy"] == pytest.approx(1, abs=1e-4)
    for name in SENTIMENT:
        before, after = updates(stack[name]), updates(exact[name])
        for module in before:
            torch.testing.assert_close(after[module], before[module], atol=1e-5, rtol=1e-3)
    assert exact["qqp"] is stack["qqp"]


def test_a_shared_basis_by_the_book(stack):
    """The bases are orthonormal, the cores are projections, more rank and more rounds help."""
    energies = []
    for rank in (1, 4, 8):
        small = compression.shared_basis(stack, rank)
        energies.append(small.decisions[-1]["energy"])
        packed = small["imdb"]._packed
        for name, basis in packed.items():
            if name.endswith((".U", ".V")):
                gram = basis.T @ basis if name.endswith(".U") else basis @ basis.T
                torch.testing.assert_close(gram, torch.eye(rank), atol=1e-5, rtol=0)
    assert energies == sorted(energies) and energies[0] < energies[-1] <= 1 + 1e-6
    few = compression.shared_basis(stack, 4, rounds=1).decisions[-1]["energy"]
    assert few <= compression.shared_basis(stack, 4, rounds=20).decisions[-1]["energy"] + 1e-9


def test_bad_sizes(stack):
    with pytest.raises(SkillStackError, match="energy must be above 0"):
        compression.lower_rank(stack, 0)
    with pytest.raises(SkillStackError, match=r"rank must be in 1 .. 20 for these frames, got 21"):
        compression.shared_basis(stack, 21)
    with pytest.raises(SkillStackError, match="two frames or more, got 1"):
        compression.shared_basis(stack, 1, names=["imdb"])
    with pytest.raises(SkillStackError, match="rounds must be at least 1, got 0"):
        compression.shared_basis(stack, 1, rounds=0)
    packed = compression.int8(stack)
    with pytest.raises(SkillStackError, match="frame 'imdb' is packed already"):
        compression.lower_rank(packed, names=["imdb"])
    with pytest.raises(SkillStackError, match="no frame of this stack can be changed"):
        compression.int8(packed)
    merged = compression.merge(stack, ["imdb", "yelp"])
    with pytest.raises(SkillStackError, match="frame 'imdb' is merged with others"):
        compression.lower_rank(merged, names=["yelp"])
    assert compression.lower_rank(merged)["yelp"] is merged["yelp"]  # left alone unless named


# ------------------------------------------------------------------ taking it back


def test_undo_brings_the_old_frames_back_from_disk(stack, rows, tmp_path):
    small = compression.drop(stack, "imdb", "sst2")
    small = compression.drop(small, "yelp", "sst2")
    small = compression.int8(small)
    small.save_pretrained(tmp_path / "small")
    again = SkillStack.from_pretrained(tmp_path / "small", stack.backbone)
    with pytest.raises(SkillStackError, match="no decision about frame 'amazon'"):
        compression.undo(again, "amazon")
    again = compression.undo(again, "qqp")  # int8 was done to all frames left
    again = compression.undo(again, "yelp")
    assert [f.name for f in again.frames] == ["yelp", "qqp", "sst2", "agnews"]
    again = compression.undo(again, "imdb")
    assert [f.name for f in again.frames] == list(TASKS) and not again.dropped
    again.save_pretrained(tmp_path / "again")
    reopened = SkillStack.from_pretrained(tmp_path / "again", stack.backbone)
    for frame in reopened.frames:
        assert logits(reopened, rows, frame.name) == frame.metrics["logits_sha256"]
    assert all(decision["undone"] for decision in reopened.decisions)
    with pytest.raises(SkillStackError, match="no decision about frame 'imdb' can be undone"):
        compression.undo(again, "imdb")


def test_undo_of_a_merge_and_in_order(stack, rows, tmp_path):
    merged = compression.merge(stack, ["imdb", "sst2"])
    later = compression.int8(merged)
    back = compression.undo(later, "sst2")  # the merged frames were never saved: both at once
    assert [d["undone"] for d in back.decisions] == [True, True]
    merged.save_pretrained(tmp_path / "merged")
    later = compression.undo(compression.int8(merged), "qqp")
    assert logits(later, rows, "imdb") == logits(merged, rows, "imdb")
    for one in (back, compression.undo(later, "sst2")):
        for frame in stack.frames:
            assert logits(one, rows, frame.name) == frame.metrics["logits_sha256"]
    chained = compression.drop(compression.drop(stack, "yelp", "imdb"), "imdb", "sst2")
    back = compression.undo(chained, "yelp")
    assert back["imdb"].name == "sst2" and back["yelp"].name == "yelp"
    # merged, then one of the two dropped, then the other: neither merged frame was ever saved
    gone = compression.drop(compression.merge(stack, ["imdb", "yelp"]), "yelp", "imdb")
    gone = compression.drop(gone, "imdb", "sst2")
    back = compression.undo(gone, "imdb")
    assert not back.dropped and all(d["undone"] for d in back.decisions)
    for name in ("imdb", "yelp"):
        assert logits(back, rows, name) == stack[name].metrics["logits_sha256"]


def test_undo_keeps_a_frame_and_the_adapter_it_shares_together(stack, rows, tmp_path):
    merged = compression.merge(stack, ["imdb", "yelp"])
    merged.save_pretrained(tmp_path / "merged")
    expected = logits(merged, rows, "yelp")
    dropped = compression.drop(merged, "yelp", "imdb")
    for n, later in enumerate(
        (compression.int8(dropped), compression.drop(dropped, "imdb", "sst2"))
    ):
        back = compression.undo(later, "yelp")  # it reads imdb's adapter, which must be there
        assert [d.get("undone", False) for d in back.decisions] == [False, True, True]
        back.save_pretrained(tmp_path / str(n))
        again = SkillStack.from_pretrained(tmp_path / str(n), stack.backbone)
        again.verify()
        assert logits(again, rows, "yelp") == expected


def test_a_frame_that_comes_back_is_not_the_latest(stack, config, data_dir):
    small = compression.drop(stack, "agnews", to="sst2")
    new = load_task("rotten_tomatoes", 6, 12, 8, seed=0, source="folder", data_dir=data_dir)
    small.grow(new, dataclasses.replace(config, lora_r=4))
    back = compression.undo(small, "agnews")
    assert [f.name for f in back.frames] == [*TASKS, "rotten_tomatoes"]
    assert [f.name for f in back.chain()] == [f.name for f in small.chain()]


def test_undo_wants_the_very_frame(stack, model_dirs, rows, config, tmp_path):
    small = compression.drop(stack, "yelp", "imdb")
    other = SkillStack(stack.backbone)
    for data in rows[:2]:
        other.grow(data, dataclasses.replace(config, lora_r=4, seed=9))
    with pytest.raises(SkillStackError, match="does not hold the old frame 'yelp'"):
        compression.undo(small, "yelp", original=other)
    fresh = compression.drop(other, "yelp", "imdb")
    with pytest.raises(SkillStackError, match="'yelp' was never saved: pass the original stack"):
        compression.undo(fresh, "yelp")
    assert len(compression.undo(fresh, "yelp", original=other)) == 2
    shutil.rmtree(stack.frames[0].folder.parent.parent)
    with pytest.raises(SkillStackError, match="yelp is missing"):
        compression.undo(small, "yelp")


# ------------------------------------------------------------------ looking in


def test_families(stack):
    assert compression.families(stack) == [list(SENTIMENT)]
    assert compression.families(compression.drop(stack, "yelp", "imdb")) == [["imdb", "sst2"]]


def test_a_folder_without_a_stack_has_no_size(tmp_path):
    with pytest.raises(SkillStackError, match="stack.json is missing"):
        compression.stored_bytes(tmp_path)
