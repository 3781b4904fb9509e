import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import beta

from skillstack_helpers.certificates import router_digest
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
