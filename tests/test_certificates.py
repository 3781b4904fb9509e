import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import beta

from skillstack_helpers import certificates
from skillstack_helpers.certificates import left_of, router_digest
from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.routers import HybridChainRouter, load_router, make_router, save_router
from skillstack_helpers.stack import SkillStack


def routing(stream):
    texts = [text for data in stream for text in data.texts("router")]
    return texts, [data.name for data in stream for _ in data.texts("router")]


@pytest.fixture(scope="module")
def two(model_dirs, stream, config_of_module):
    from skillstack_helpers.loading import load_backbone

    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    for data in stream[:2]:
        stack.grow(data, config_of_module)
    return stack


@pytest.fixture(scope="module")
def config_of_module():
    from skillstack_helpers.config import TrainingConfig

    return TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3)


def test_a_frame_more_changes_no_logits_and_every_other_answer_is_counted(
    two, stream, config_of_module
):
    asked = [text for data in stream[:2] for text in data.texts("eval")]
    router = HybridChainRouter().fit(*routing(stream[:2]))
    before = two.certify(asked, router)
    assert json.loads(json.dumps(before)) == before and "since" not in before
    assert sum(facts["answered"] for facts in before["frames"].values()) == len(asked)
    answers = two.answer(asked, router)
    assert before["answers"]["frame"] == list(answers["frame"])
    assert before["answers"]["label_name"] == list(answers["label_name"])

    grown = two.copy()
    grown.grow(stream[2], config_of_module)
    later = HybridChainRouter().fit(*routing(stream))
    since = grown.certify(asked, later, since=before)["since"]
    now = grown.answer(asked, later)
    changed = np.flatnonzero(now["label_name"] != answers["label_name"])
    assert since["changed"] == changed.tolist() and since["answers_changed"] == len(changed)
    assert since["other_frame"] == (now["frame"] != answers["frame"]).sum()
    k, n = len(changed), len(asked)
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    assert since["interval_95"] == pytest.approx([low, beta.ppf(0.975, k + 1, n - k)])
    assert not since["same_router"]
    assert since["frames_gone"] == since["frames_changed"] == since["logits_changed"] == []
    # With the router as it was nothing at all changes.
    same = grown.certify(asked, router, since=before)["since"]
    assert same["answers_changed"] == same["other_frame"] == 0 and same["same_router"]


def test_a_frame_that_is_another_one_is_named(two, stream, config_of_module):
    asked = stream[0].texts("eval")
    router = HybridChainRouter().fit(*routing(stream[:2]))
    before = two.certify(asked, router)
    other = SkillStack(two.backbone)
    other.grow(stream[1], config_of_module)  # from a new adapter
    frames = [two.frames[0], other.frames[0]]
    since = two.copy(frames).certify(stream[0].texts("eval"), router, before)["since"]
    assert since["frames_changed"] == [stream[1].name]
    assert since["logits_changed"] in ([], [stream[1].name])
    since = two.copy(two.frames[:1]).certify(
        asked, HybridChainRouter().fit(*routing(stream[:1])), before
    )["since"]
    assert since["frames_gone"] == [stream[1].name]


def test_a_second_process_finds_the_same(two, stream, tmp_path, data_dir):
    asked = [text for data in stream[:2] for text in data.texts("eval")]
    router = HybridChainRouter().fit(*routing(stream[:2]))
    save_router(router, tmp_path / "router")
    two.copy().save_pretrained(tmp_path / "stack")
    (tmp_path / "before.json").write_text(json.dumps(two.certify(asked, router)))
    (tmp_path / "texts.json").write_text(json.dumps(asked))
    code = """
import json, sys
from skillstack_helpers import SkillStack, load_backbone, load_router
folder, model = sys.argv[1:]
stack = SkillStack.from_pretrained(f"{folder}/stack", load_backbone(model, device="cpu"))
router = load_router(f"{folder}/router")
texts = json.load(open(f"{folder}/texts.json"))
print(json.dumps(stack.certify(texts, router, since=f"{folder}/before.json")["since"]))
"""
    command = [sys.executable, "-c", code, str(tmp_path), two.backbone.name]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    since = json.loads(said.splitlines()[-1])
    assert since["answers_changed"] == 0 and since["same_router"]
    assert since["frames_changed"] == since["logits_changed"] == since["frames_gone"] == []


@pytest.mark.parametrize("name", ["hybrid_svm", "hybrid_chain", "centroid", "gate", "trunk"])
def test_digests_of_routers(name, two, stream, tmp_path):
    texts, names = routing(stream[:2])
    router = make_router(name, backbone=two.backbone).fit(texts, names)
    once = router_digest(router)
    assert once == router_digest(make_router(name, backbone=two.backbone).fit(texts, names))
    again = load_router(save_router(router, tmp_path), backbone=two.backbone)
    assert router_digest(again) == once
    fewer = make_router(name, backbone=two.backbone).fit(texts[:-1], names[:-1])
    assert router_digest(fewer) != once


def test_bad_certificates_are_one_line(two, stream, tmp_path):
    asked = stream[0].texts("eval")
    router = HybridChainRouter().fit(*routing(stream[:2]))
    before = two.certify(asked, router)
    with pytest.raises(SkillStackError, match="the certificate is about other texts"):
        two.certify(asked[:-1], router, before)
    with pytest.raises(SkillStackError, match="the certificate is not a certificate"):
        two.certify(asked, router, {"frames": {}})
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(SkillStackError, match=r"c\.json"):
        two.certify(asked, router, tmp_path / "c.json")


# ------------------------------------------------------------------ removal


@pytest.fixture
def three(two, stream, config_of_module, tmp_path):
    """A chain of three frames, saved, with a router that knows them."""
    stack = two.copy()
    stack.grow(stream[2], config_of_module)
    stack.save_pretrained(tmp_path / "stack")
    save_router(HybridChainRouter().fit(*routing(stream)), tmp_path / "stack" / "routers" / "chain")
    return stack, tmp_path / "stack"


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_leaf_goes_and_nothing_else_changes(three, stream):
    stack, folder = three
    name, before = stream[2].name, everything(folder)
    kept = [stack.predict(stream[0].texts("eval"), f.name).probabilities for f in stack.frames[:2]]
    certificate = stack.remove(name)
    assert certificate["descendants"] == [] and certificate["trained_anew"] == {}
    now = everything(folder)
    gone = before.keys() - now.keys()
    assert gone == {p for p in before if p.startswith((f"frames/{name}/", "routers/"))}
    assert all(now[p] == before[p] for p in now if p != "stack.json")
    again = SkillStack.from_pretrained(folder, stack.backbone)
    for one in (stack, again):
        assert name not in one and len(one.frames) == 2
        with pytest.raises(SkillStackError, match=f"frame '{name}' was removed"):
            one[name]
        said = [one.predict(stream[0].texts("eval"), f.name).probabilities for f in one.frames]
        assert all((a == b).all() for a, b in zip(kept, said, strict=True))
    again.verify()
    assert left_of(folder, certificate) == []
    (folder / "copy").write_bytes(before[f"frames/{name}/adapter_model.safetensors"])
    assert left_of(folder, json.loads(json.dumps(certificate))) == [str(folder / "copy")]


def test_heirs_are_listed_and_stay(three, stream):
    stack, folder = three
    root, *others = [data.name for data in stream]
    certificate = stack.remove(root)
    assert certificate["descendants"] == others
    again = SkillStack.from_pretrained(folder, stack.backbone)
    assert [f.name for f in again.frames] == others == [f.name for f in again.chain()][::-1]
    assert root in (folder / "stack.json").read_text() and not (folder / "frames" / root).exists()


def test_heirs_are_learned_anew_as_if_the_task_had_never_been(three, stream, config_of_module):
    stack, folder = three
    root, middle, leaf = stream
    never = SkillStack(stack.backbone)
    never.frames = [stack.frames[0]]
    certificate = stack.remove(middle.name, retrain={leaf.name: leaf})
    assert certificate["trained_anew"] == {leaf.name: f"{leaf.name}-2"}
    again = SkillStack.from_pretrained(folder, stack.backbone)
    assert again[leaf.name].name == f"{leaf.name}-2" and again[leaf.name].parent == root.name
    assert [f.name for f in again.frames] == [root.name, f"{leaf.name}-2"]
    assert left_of(folder, certificate) == []
    assert not (folder / "frames" / leaf.name).exists()
    again.grow(middle, config_of_module, name="more")  # the chain goes on
    again.save_pretrained(folder)
    assert len(SkillStack.from_pretrained(folder, stack.backbone)) == 3


def test_whom_the_removed_frame_answered_for_goes_too(three, stream):
    stack, folder = three
    leaf = stream[2].name
    stack.dropped["other"] = {"to": leaf, "parent": None}
    stack.save_pretrained(folder)
    stack.remove(leaf)
    again = SkillStack.from_pretrained(folder, stack.backbone)
    for one in (stack, again):
        assert "other" not in one
        with pytest.raises(SkillStackError, match="frame 'other' was removed"):
            one["other"]


def test_the_last_frame_can_go_and_a_kill_in_between_brings_nothing_back(
    three, stream, monkeypatch
):
    stack, folder = three
    names = [data.name for data in stream]
    stack.remove(names[2])
    monkeypatch.setattr(certificates, "_sweep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stack.remove(names[1])
    assert (folder / "frames" / names[1]).exists()
    again = SkillStack.from_pretrained(folder, stack.backbone)
    assert names[1] not in again and not (folder / "frames" / names[1]).exists()
    monkeypatch.undo()
    again.remove(names[0])
    assert len(SkillStack.from_pretrained(folder, stack.backbone)) == 0


def test_what_cannot_be_removed_is_said_before_anything_is_touched(three, stream, monkeypatch):
    stack, folder = three
    before = everything(folder)
    with pytest.raises(SkillStackError, match="unknown frame 'imbd'"):
        stack.remove("imbd")
    with pytest.raises(SkillStackError, match=f"retrain has no rows of {stream[2].name}"):
        stack.remove(stream[1].name, retrain={})

    def full(*_, **__):
        raise SkillStackError("no space")

    monkeypatch.setattr(SkillStack, "grow", full)
    with pytest.raises(SkillStackError, match="no space"):
        stack.remove(stream[1].name, retrain={stream[2].name: stream[2]})
    assert everything(folder) == before and len(stack.frames) == 3


@pytest.mark.parametrize("name", ["gate", "centroid", "trunk", "profile"])
def test_a_router_that_forgot_is_one_that_never_saw(name, two, stream, tmp_path):
    texts, names = routing(stream)
    gone = stream[1].name
    theirs = [t for t, n in zip(texts, names, strict=True) if n == gone]
    rest = [(t, n) for t, n in zip(texts, names, strict=True) if n != gone]
    router = make_router(name, backbone=two.backbone).fit(texts, names).remove(gone, theirs)
    never = make_router(name, backbone=two.backbone).fit(*zip(*rest, strict=True))
    asked = [text for data in stream for text in data.texts("eval")]
    assert list(router.classes_) == list(never.classes_)
    assert np.abs(router.decision_function(asked) - never.decision_function(asked)).max() <= 1e-8
    saved = load_router(save_router(router, tmp_path), backbone=two.backbone)
    assert (saved.decision_function(asked) == router.decision_function(asked)).all()
    router.partial_fit(theirs, [gone] * len(theirs))
    assert list(router.classes_)[-1] == gone


def test_routers_that_cannot_forget_say_so(two, stream):
    texts, names = routing(stream[:2])
    with pytest.raises(SkillStackError, match="HybridChainRouter cannot forget a frame: fit it"):
        HybridChainRouter().fit(texts, names).remove(names[0])
    trunk = make_router("trunk", backbone=two.backbone).fit(texts, names)
    with pytest.raises(SkillStackError, match="pass them, texts="):
        trunk.remove(names[0])
    with pytest.raises(SkillStackError, match=f"these are not the .* texts of '{names[0]}'"):
        trunk.remove(names[0], texts[1:])
    gate = make_router("gate", backbone=two.backbone).fit(texts, names)
    with pytest.raises(SkillStackError, match="knows no frame 'x'"):
        gate.remove("x")
    with pytest.raises(SkillStackError, match="nothing would be left"):
        gate.remove(names[0]).remove(names[-1])
