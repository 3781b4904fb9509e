import dataclasses
import hashlib
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import edit_json
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.base import clone, is_classifier
from sklearn.ensemble import VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.svm import LinearSVC
from sklearn.utils import estimator_checks, get_tags

from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.metrics import calibration_error
from skillstack_helpers.routers import (
    ROUTERS,
    ArrowRouter,
    CentroidRouter,
    HybridChainRouter,
    HybridEmbedRouter,
    HybridSVMRouter,
    ProfileRouter,
    ScaffoldBlindRouter,
    fit_temperature,
    load_router,
    make_router,
    save_router,
    walk,
)
from skillstack_helpers.routers.scaffold_blind import (
    cut_formats,
    format_patterns,
    learn_formats,
    split_pieces,
)
from skillstack_helpers.stack import SkillStack

ORDER = ["zeta", "alpha", "mid"]  # stack order, on purpose not the alphabet's


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    words = {name: [f"{name}{i}" for i in range(30)] for name in ORDER}
    shared = [f"word{i}" for i in range(40)]
    texts, names = [], []
    for name in ORDER:
        for _ in range(40):
            own = rng.choice(words[name], rng.integers(0, 3))  # none at all: hard to tell
            texts.append(" ".join([*own, *rng.choice(shared, 8)]))
            names.append(name)
    return texts, names


@pytest.fixture(scope="module")
def live(model_dirs, stream):
    """A tiny backbone and a stack whose frames have the corpus' names."""
    backbone = load_backbone(str(model_dirs["bert"]), device="cpu")
    stack = SkillStack(backbone)
    config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3)
    for data, name in zip(stream, ORDER, strict=True):
        renamed = dataclasses.replace(data.task, name=name)
        stack.grow(dataclasses.replace(data, task=renamed), config)
    return {"backbone": backbone, "stack": stack}


@pytest.mark.parametrize("name", ROUTERS)
def test_interface(name, corpus, live):
    texts, names = corpus
    router = make_router(name, threshold=0.1, seed=1, **live)
    assert router.fit(texts, names) is router
    assert router.frames_ == ORDER and list(router.classes_) == ORDER
    assert router.score(texts, names) == (router.predict(texts) == np.array(names)).mean()
    scores = router.decision_function(texts)
    assert scores.shape == (len(texts), 3)
    routes = router.route(texts)
    assert list(routes) == ["frame", "score", "depth", "fallback"]
    assert (router.predict(texts) == routes["frame"]).all()
    assert (clone(router).fit(texts, names).predict(texts) == routes["frame"]).all()
    probabilities = router.predict_proba(texts)
    assert probabilities.shape == scores.shape and np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == scores.argmax(1)).all()


def test_hybrid_svm_is_a_plain_pipeline_to_the_last_prediction(corpus):
    texts, names = corpus
    plain = Pipeline(
        [
            (
                "features",
                FeatureUnion(
                    [
                        ("word", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
                        (
                            "char",
                            TfidfVectorizer(
                                analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True
                            ),
                        ),
                    ]
                ),
            ),
            ("svm", LinearSVC(random_state=0)),
        ]
    ).fit(texts[::2], names[::2])
    router = HybridSVMRouter().fit(texts[::2], names[::2])
    assert (router.predict(texts[1::2]) == plain.predict(texts[1::2])).all()
    columns = [list(plain.classes_).index(name) for name in ORDER]
    theirs = plain.decision_function(texts[1::2])[:, columns]
    assert np.allclose(router.decision_function(texts[1::2]), theirs, rtol=0, atol=1e-10)


def test_routers_beat_chance_on_held_out_texts(corpus, live):
    texts, names = corpus
    truth = np.array(names[1::2])
    given = {"backbone": live["backbone"]}
    embedding = (HybridEmbedRouter(**given), ScaffoldBlindRouter(**given))
    for router in (HybridSVMRouter(), HybridChainRouter(), *embedding):
        picked = router.fit(texts[::2], names[::2]).predict(texts[1::2])
        assert (picked == truth).mean() > 0.6


def test_walk_by_hand():
    chosen, depth, fallback = walk(np.array([[0.9, 0.2], [0.9, -1], [-2, -1]]), 0.0)
    assert chosen.tolist() == [1, 0, 1] and depth.tolist() == [1, 2, 2]
    assert fallback.tolist() == [False, False, True]


class FixedScores(HybridChainRouter):
    def _fit(self, texts, names):
        self.fitted_ = True

    def decision_function(self, texts):
        # Columns: oldest, middle, latest.
        return np.array([[0.9, 0.2, 0.1], [0.9, 0.3, -0.1], [0.2, -1, -1], [-0.3, -0.1, -0.2]])


def test_chain_walk_by_hand():
    texts = ["a", "b", "c", "d"]
    routes = FixedScores(threshold=0.0).fit(texts[:3], ORDER).route(texts)
    # The latest frame answers first even where an older one scores higher.
    assert list(routes["frame"]) == ["mid", "alpha", "zeta", "alpha"]
    assert list(routes["depth"]) == [1, 2, 3, 3]
    assert list(routes["fallback"]) == [False, False, False, True]
    assert list(routes["score"]) == [0.1, 0.3, 0.2, -0.1]
    strict = FixedScores(threshold=0.25).fit(texts[:3], ORDER).route(texts)
    assert list(strict["frame"]) == ["zeta", "alpha", "zeta", "alpha"]
    assert list(strict["depth"]) == [3, 2, 3, 3]
    assert list(strict["fallback"]) == [False, False, True, True]


def test_threshold_extremes(corpus):
    texts, names = corpus
    latest = HybridChainRouter(threshold=-1e9).fit(texts, names).route(texts)
    assert (latest["frame"] == "mid").all() and (latest["depth"] == 1).all()
    nobody = HybridChainRouter(threshold=1e9).fit(texts, names).route(texts)
    assert nobody["fallback"].all()
    assert (nobody["frame"] == HybridSVMRouter().fit(texts, names).predict(texts)).all()


def test_two_frames_and_one_frame(corpus):
    texts, names = corpus
    two = HybridChainRouter().fit(texts[:80], names[:80])
    scores = two.decision_function(texts[:80])
    assert scores.shape == (80, 2) and np.array_equal(scores[:, 0], -scores[:, 1])
    assert (two.predict(texts[:40]) == "zeta").mean() > 0.8
    one = HybridChainRouter().fit(texts[:40], names[:40])
    assert (one.predict(texts) == "zeta").all()


@pytest.fixture(scope="module")
def themed():
    """Sentences of words the tiny backbone knows: each frame has its own few."""
    rng = np.random.default_rng(1)
    own = {name: [f"class{3 * i + k}" for k in range(3)] for i, name in enumerate(ORDER)}
    texts, names = [], []
    for name in ORDER:
        for _ in range(30):
            words = [*rng.choice(own[name], 4), *rng.choice("the of a to in it".split(), 5)]
            rng.shuffle(words)
            texts.append(" ".join(words))
            names.append(name)
    return texts, names


@pytest.mark.parametrize("name", ["centroid", "profile", "hybrid_embed", "scaffold_blind"])
def test_embeddings_find_the_theme(name, themed, live):
    texts, names = themed
    router = make_router(name, **live).fit(texts[::2], names[::2])
    assert (router.predict(texts[1::2]) == np.array(names[1::2])).mean() > 0.6


def test_centroid_by_hand(live, themed):
    texts, names = themed
    router = CentroidRouter(live["backbone"]).fit(texts, names)
    embedded = live["backbone"].embed(texts)[:, -1]
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    means = np.stack([unit[np.array(names) == name].mean(0) for name in ORDER])
    cosine = unit @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    assert np.allclose(router.decision_function(texts), cosine, atol=1e-6)


def test_profile_reads_description_and_k_examples(live, themed):
    texts, names = themed
    given = {"backbone": live["backbone"], "descriptions": {"mid": "class6 class7"}}
    router = ProfileRouter(**given, k=3, min_confidence=2.0).fit(texts, names)
    later = [t if i % 30 < 3 else "class0" for i, t in enumerate(texts)]
    again = ProfileRouter(**given, k=3).fit(later, names)
    assert np.array_equal(router.profiles_, again.profiles_)  # only the first three are read
    other = ProfileRouter(live["backbone"], k=3).fit(texts, names)
    assert np.array_equal(other.profiles_[:2], router.profiles_[:2])
    assert not np.allclose(other.profiles_[2], router.profiles_[2])
    assert router.route(texts)["fallback"].all()  # no confidence exceeds 1
    assert ProfileRouter(**given, temperature=0.5).fit(texts, names).temperature_ == 0.5


def test_learned_profiles_are_surer_and_still_slide(corpus, live, tmp_path):
    texts, names = corpus
    how = {"backbone": live["backbone"], "temperature": 1.0, "lr": 1.0}
    still, learned = (ProfileRouter(epochs=n, **how).fit(texts, names) for n in (0, 5))
    own = np.arange(3)

    def sure(router):  # of the tasks that it was learned from
        return softmax(router.tasks_ @ router.profiles_.T, axis=1)[own, own]

    assert (sure(learned) > sure(still)).all()
    assert np.allclose(np.linalg.norm(learned.profiles_, axis=1), 1)
    assert (learned.predict_proba(texts).max(1) <= 1 / (1 + 2 * np.exp(-2)) + 1e-6).all()
    again = load_router(save_router(learned, tmp_path), backbone=live["backbone"])
    for one in (learned, again):  # saved whole: what is learned next is the same
        one.partial_fit(["new texts", "of a fourth"], ["more"] * 2)
    assert np.array_equal(again.profiles_, learned.profiles_) and len(again.frames_) == 4
    with pytest.raises(SkillStackError, match="learned profiles hold the frame"):
        learned.remove("more")


def test_arrow_prototype_is_the_top_right_singular_vector(live, corpus):
    from peft.tuners.lora.arrow import ArrowLoraLinearLayer

    router = ArrowRouter(live["stack"], delta=False).fit(*corpus)
    frame = live["stack"]["alpha"]
    for module, rows in router.prototypes_.items():
        a = frame.weights().lora[f"{module}.lora_A.weight"]
        b = frame.weights().lora[f"{module}.lora_B.weight"]
        expected = torch.linalg.svd(b @ a)[2][0]
        assert abs(float(expected @ torch.from_numpy(rows[1]))) > 1 - 1e-4
    layer = ArrowLoraLinearLayer.__new__(ArrowLoraLinearLayer)
    torch.nn.Module.__init__(layer)
    layer.rng_seed = 0
    theirs = layer.top_right_singular_vec_from_BA(a, b, iters=500)  # PEFT's power iteration
    assert abs(float(theirs @ torch.from_numpy(rows[1]))) > 0.99


def test_arrow_reads_no_routing_text(live, corpus):
    texts, names = corpus
    router = ArrowRouter(live["stack"]).fit(texts, names)
    other = ArrowRouter(live["stack"]).fit(texts[::-1], sorted(names, key=ORDER.index))
    assert np.array_equal(router.decision_function(texts), other.decision_function(texts))
    scores = router.decision_function(texts)
    assert np.allclose(scores.sum(1), 1, atol=1e-5)  # means of softmaxes


@pytest.mark.parametrize("name", ["centroid", "profile", "arrow"])
def test_partial_fit_equals_fit(name, corpus, live):
    texts, names = corpus
    whole = make_router(name, **live).fit(texts, names)
    router = make_router(name, **live).fit(texts[:80], names[:80])
    assert router.partial_fit(texts[80:], names[80:]) is router
    assert router.frames_ == ORDER
    assert np.allclose(router.decision_function(texts), whole.decision_function(texts), atol=1e-6)
    with pytest.raises(SkillStackError, match="'mid' is already in the router"):
        router.partial_fit(texts[80:], names[80:])


def test_partial_fit_is_refused_where_old_texts_are_needed(corpus):
    router = HybridSVMRouter().partial_fit(*corpus)  # a first fit is fine
    before = router.decision_function(["word1"])
    with pytest.raises(SkillStackError, match="cannot add a frame without the old texts"):
        router.partial_fit(["x"], ["new"])
    assert np.array_equal(router.decision_function(["word1"]), before)


def test_partial_fit_adds_every_frame_or_none(live, corpus):
    texts, names = corpus
    router = ArrowRouter(live["stack"]).fit(texts[:40], names[:40])
    with pytest.raises(SkillStackError, match="unknown frame 'nobody'"):
        router.partial_fit(["x", "y"], ["alpha", "nobody"])
    assert router.partial_fit(texts[40:], names[40:]).decision_function(texts).shape == (120, 3)


def test_temperature_by_hand():
    # Three of four rows are the best score's: softmax must be 3/4 there.
    two = np.tile([2.0, 0.0], (4, 1))
    assert fit_temperature(two, ORDER[:2], ["zeta"] * 3 + ["alpha"]) == pytest.approx(2 / np.log(3))
    three = np.tile([0.0, 0.0, 2.0], (8, 1))  # e^(2/T) / (e^(2/T) + 2) = 3/4
    names = ["mid"] * 6 + ["zeta", "alpha"]
    assert fit_temperature(three, ORDER, names) == pytest.approx(2 / np.log(6))
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    drawn = [rng.choice(ORDER, p=row) for row in softmax(logits / 0.5, axis=1)]
    assert fit_temperature(logits, ORDER, drawn) == pytest.approx(0.5, rel=0.08)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.05, 20), st.floats(-5, 5))
def test_temperature_scales_with_the_scores(seed, frames, scale, shift):
    rng = np.random.default_rng(seed)
    scores, names = rng.normal(size=(60, frames)), rng.integers(frames, size=60)
    scores[np.arange(60), names] += 0.5
    once = fit_temperature(scores, range(frames), names)
    again = fit_temperature(scale * scores + shift, range(frames), names)
    if 1e-2 < once < 1e2:  # the best one lies inside the bounds, not at an end
        assert again == pytest.approx(scale * once, rel=1e-4)
    order = rng.permutation(frames)
    assert fit_temperature(scores[:, order], order, names) == pytest.approx(once, rel=1e-4)


def test_calibration_helps(corpus):
    texts, names = corpus
    router = HybridSVMRouter().fit(texts[::2], names[::2])
    own = np.array([ORDER.index(name) for name in names[1::2]])
    scores = router.decision_function(texts[1::2])
    calibrated = calibration_error(router.predict_proba(texts[1::2]), own)
    assert calibrated < calibration_error(softmax(scores, axis=1), own)


# ------------------------------------------------------------------ scaffolds

FORMATTED = [f"Question 1: how is {word}?\nQuestion 2: why {word}?" for word in "abcdefghij"]


def test_formats_are_learned_and_cut():
    texts = [*FORMATTED, *"one two. three four. five six. seven. eight. nine. ten.".split(". ")]
    names = ["pair"] * 10 + ["bare"] * 7
    formats = learn_formats(texts, names, 0.9)
    begins = ["Question 1 : how is", "Question 2 : why"]
    assert formats["pair"] == {"begin": begins, "end": []}
    assert formats["bare"] == {"begin": [], "end": []}
    assert cut_formats(FORMATTED[0], format_patterns(formats)) == (
        "a?\na?",
        {("begin", cut) for cut in begins},
    )
    all_scaffold = "Question 1: how is\n"
    assert cut_formats(all_scaffold, format_patterns(formats)) == (
        all_scaffold,
        {("begin", begins[0])},
    )
    assert cut_formats("Questionable 1: how is it", format_patterns(formats)) == (
        "Questionable 1: how is it",
        set(),
    )


def test_punctuation_and_few_texts_are_no_format():
    nothing = {"a": {"begin": [], "end": []}}
    assert learn_formats(["so it goes ."] * 4, ["a"] * 4, 0.9) == nothing
    ends = [f"{word} {word}x ." for word in "abcdefgh"]
    assert learn_formats(ends, ["a"] * 8, 0.9) == nothing
    said = [f"{word} or not, yes or no" for word in "abcdefgh"]
    formats = learn_formats(said, ["a"] * 8, 0.9)
    assert formats["a"]["end"] == ["or not , yes or no"]
    assert cut_formats("so or not, yes or no", format_patterns(formats))[0] == "so"


def test_pieces():
    text = "A line: more. So what? [tags]\nThe end"
    assert split_pieces(text) == ["A line:", "more.", "So what?", "[tags]", "The end"]
    assert split_pieces("") == [""] and split_pieces("one") == ["one"]


def test_scaffold_blind_is_not_moved_by_a_learned_format(themed, live):
    texts, names = themed
    form = {name: f"{name.upper()} form {i}: " for i, name in enumerate(ORDER)}
    formatted = [form[name] + text for text, name in zip(texts, names, strict=True)]
    router = ScaffoldBlindRouter(live["backbone"]).fit(formatted[::2], names[::2])
    for other in ORDER:
        swapped = [form[other] + text for text in texts[1::2]]
        assert router.content(swapped) == router.content(formatted[1::2])
        ours = router.decision_function(swapped) - router.decision_function(formatted[1::2])
        assert np.abs(ours).max() <= router.format_trust + 1e-9  # the format is worth no more
    plain = HybridSVMRouter().fit(formatted[::2], names[::2])  # reads the format as well
    assert not np.allclose(
        plain.decision_function(swapped), plain.decision_function(formatted[1::2]), atol=0.1
    )


def test_scaffold_blind_takes_texts_of_one_piece_and_very_few(live):
    short = [f"class{i % 3} of row{i}" for i in range(1010)]  # no text has two pieces
    names = [ORDER[i % 3] for i in range(1010)]
    router = ScaffoldBlindRouter(live["backbone"]).fit(short, names)
    assert np.isfinite(router.decision_function(short[:9])).all()
    two = ScaffoldBlindRouter(live["backbone"]).fit(short[:6], names[:6])  # two texts a frame
    assert two.temperature_ == 1.0 and np.isfinite(two.decision_function(short[:6])).all()


def test_scaffold_blind_keeps_most_of_a_text(themed, live):
    texts, names = themed
    router = ScaffoldBlindRouter(live["backbone"]).fit(texts, names)
    long = ". ".join(texts[:6])
    for text in (long, "x", "", "a. b. c. d"):
        (content,) = router.content([text])
        assert len(content.split()) >= 0.4 * len(text.split())


# ------------------------------------------------------------------ disk


@pytest.mark.parametrize("name", ROUTERS)
def test_saved_and_loaded_scores_the_same_bits(name, corpus, live, tmp_path):
    texts, names = corpus
    router = make_router(name, threshold=0.2, seed=5, **live).fit(texts, names)
    save_router(router, tmp_path / "r")
    assert {p.suffix for p in (tmp_path / "r").iterdir()} == {".safetensors"}
    loaded = load_router(tmp_path / "r", **live)
    assert np.array_equal(router.decision_function(texts), loaded.decision_function(texts))
    assert loaded.route(texts).equals(router.route(texts))
    assert np.array_equal(loaded.predict_proba(texts), router.predict_proba(texts))


def test_a_router_opens_in_a_new_process_without_torch(corpus, tmp_path):
    router = HybridChainRouter().fit(*corpus)
    save_router(router, tmp_path)
    code = (
        "import sys; from skillstack_helpers.routers import load_router\n"
        f"print(load_router({str(tmp_path)!r}).predict(['zeta1 zeta2'])[0], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["zeta", "False"]


def test_untrusted_folders(corpus, tmp_path):
    save_router(HybridSVMRouter().fit(*corpus), tmp_path)
    path = tmp_path / "router.safetensors"
    good = path.read_bytes()

    def refused(words):
        with pytest.raises(SkillStackError, match=words) as caught:
            load_router(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        path.write_bytes(good)

    path.write_bytes(good[:-1])
    refused("router.safetensors was changed")
    path.unlink()
    refused("router.safetensors is missing")
    path.write_bytes(good[:40])
    refused("router.safetensors holds no router")
    edit_json(path, lambda f: f.update(router="os.system"))
    refused("not a router of this version")
    edit_json(path, lambda f: f["parameters"].update(unknown=1))
    refused("router.safetensors is damaged")
    edit_json(path, lambda f: f["state"].update(__class__="x"))
    refused("unexpected '__class__'")
    for names in (3, [], ["zeta", 1], [None], [1.5]):
        edit_json(path, lambda f, names=names: f["state"].update(frames_=names))
        refused("frames_")
    edit_json(path, lambda f: f["state"]["vectorizers_"].append(["more"]))
    refused("router.safetensors is damaged")
    edit_json(path, lambda f: f.pop("schema_version"))
    refused("router.safetensors has no 'schema_version'")
    assert load_router(tmp_path).frames_ == ORDER
    with pytest.raises(SkillStackError, match="router.safetensors is missing"):
        load_router(tmp_path / "nowhere")


def test_fit_forgets_the_fit_before(corpus):
    texts, names = corpus
    router = HybridChainRouter().fit(texts, names).fit(texts[:80], names[:80])
    assert router.frames_ == ["zeta", "alpha"]
    assert set(router.predict(texts)) <= {"zeta", "alpha"}


@pytest.mark.parametrize("name", ROUTERS)
def test_strange_texts_have_finite_repeatable_scores(name, corpus, live):
    router = make_router(name, **live).fit(*corpus)
    strange = ["", "x", "word1 " * 20_000, "日本語のテキスト", "😀🎉", "\ud800", "\x00"]
    scores = router.decision_function(strange)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, router.decision_function(strange))
    live["backbone"].forget()
    one_by_one = np.concatenate([router.decision_function([text]) for text in strange])
    assert np.allclose(one_by_one, scores, atol=1e-3)
    assert len(router.route([])) == 0 and router.predict_proba([]).shape == (0, 3)


def test_bad_input(corpus):
    with pytest.raises(SkillStackError, match="2 texts but 1 frame names"):
        HybridSVMRouter().fit(["a", "b"], ["x"])
    with pytest.raises(SkillStackError, match="at least one text"):
        HybridSVMRouter().fit([], [])
    with pytest.raises(SkillStackError, match="got None"):
        HybridSVMRouter().fit(*corpus).predict([None])
    with pytest.raises(SkillStackError, match="got one string"):
        HybridSVMRouter().fit(*corpus).predict("a text")
    with pytest.raises(SkillStackError, match="pass backbone="):
        CentroidRouter().fit(*corpus)
    with pytest.raises(SkillStackError, match=r"unknown router 'svm'"):
        make_router("svm")
    with pytest.raises(SkillStackError, match="hold no words"):
        HybridSVMRouter().fit(["", ""], ["x", "y"])
    with pytest.raises(SkillStackError, match=r"unknown router parameter 'threshhold'.*threshold"):
        make_router("hybrid_svm", threshhold=0.1)
    with pytest.raises(SkillStackError, match="got None"):
        HybridSVMRouter().fit(None, None)


# ------------------------------------------------------------------ scikit-learn

CHECKS = """check_estimator_cloneable check_estimator_repr check_estimator_tags_renamed
check_valid_tag_types check_no_attributes_set_in_init check_mixin_order
check_do_not_raise_errors_in_init_or_set_params check_parameters_default_constructible
check_get_params_invariance
check_set_params check_estimators_unfitted""".split()  # the others fit on arrays of numbers


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ROUTERS)
def test_scikit_learns_own_checks(name, check):
    router = make_router(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(estimator_checks, check)(type(router).__name__, router)


def test_tags():
    tags = get_tags(HybridChainRouter())
    assert is_classifier(HybridChainRouter()) and tags.target_tags.required and tags.requires_fit
    assert tags.input_tags.string and not tags.input_tags.two_d_array


@pytest.mark.parametrize("name", ROUTERS)
def test_a_clone_shares_backbone_and_stack(name, live):
    router = make_router(name, descriptions={"mid": "x"}, **live)
    copied = clone(router)
    assert copied is not router and not hasattr(copied, "frames_")
    assert copied.get_params() == router.get_params()  # the models by identity
    assert "backbone" not in copied.get_params() or copied.backbone is live["backbone"]
    copied.set_params(**{key: None for key in copied.get_params()})
    assert router.get_params() != copied.get_params()


def test_cross_validation_is_the_loop_by_hand(corpus):
    texts, names = np.array(corpus[0]), np.array(corpus[1])
    ours, chances = [], np.empty((len(texts), 3))
    for train, test in StratifiedKFold(3).split(texts, names):
        router = HybridChainRouter(threshold=-0.2).fit(texts[train], names[train])
        ours.append((router.predict(texts[test]) == names[test]).mean())
        chances[test] = router.predict_proba(texts[test])
    given = {"estimator": HybridChainRouter(threshold=-0.2), "X": list(texts), "cv": 3}
    assert cross_val_score(**given, y=names).tolist() == ours
    # Labels are encoded there, so columns come in the order of the alphabet.
    theirs = cross_val_predict(**given, y=names, method="predict_proba")
    assert np.allclose(theirs, chances[:, np.argsort(ORDER)], atol=0.05)
    assert np.mean(np.sort(ORDER)[theirs.argmax(1)] == names) > 0.6


def test_scorers_of_probabilities_take_integers(corpus):
    texts, frames = np.array(corpus[0]), np.array([ORDER.index(name) for name in corpus[1]])
    likely, areas = [], []
    for train, test in StratifiedKFold(3).split(texts, frames):
        chances = HybridSVMRouter().fit(texts[train], frames[train]).predict_proba(texts[test])
        likely.append(-log_loss(frames[test], chances))
        areas.append(roc_auc_score(frames[test], chances, multi_class="ovr"))
    given = {"estimator": HybridSVMRouter(), "X": texts, "y": frames, "cv": 3}
    assert np.allclose(cross_val_score(**given, scoring="neg_log_loss"), likely)
    assert np.allclose(cross_val_score(**given, scoring="roc_auc_ovr"), areas)
    assert np.mean(areas) > 0.8


def test_grid_search_over_C_and_threshold(corpus):
    texts, names = corpus
    grid = {"C": [1e-4, 1.0], "threshold": [0.0, -1e9]}  # the latter answers with the latest
    search = GridSearchCV(HybridChainRouter(), grid, cv=3).fit(texts, names)
    accuracy = search.cv_results_["mean_test_score"]
    assert search.best_params_["threshold"] == 0.0 and search.best_score_ == accuracy.max() > 0.6
    assert np.allclose(accuracy[[1, 3]], 1 / 3)
    assert list(search.classes_) == ORDER
    same = HybridChainRouter(**search.best_params_).fit(texts, names)
    assert np.array_equal(search.decision_function(texts), same.decision_function(texts))


def test_grid_search_over_a_router_with_a_backbone(themed, live):
    texts, names = themed
    search = GridSearchCV(CentroidRouter(live["backbone"]), {"max_length": [4, 32]}, cv=3)
    search.fit(texts, names)
    assert search.best_estimator_.backbone is live["backbone"]
    assert search.best_params_["max_length"] == 32 and search.best_score_ > 0.6


def test_routers_vote(corpus):
    texts, names = np.array(corpus[0]), np.array(corpus[1])
    both = [("svm", HybridSVMRouter()), ("chain", HybridChainRouter())]
    vote = VotingClassifier(both, voting="soft").fit(texts[::2], names[::2])
    assert vote.score(texts[1::2], names[1::2]) > 0.6


# ------------------------------------------------------------------ defects


@pytest.mark.parametrize("name", ROUTERS)
def test_iterators_are_read_once(name, corpus, live):
    texts, names = corpus
    router = make_router(name, **live).fit(iter(texts), (name for name in names))
    assert router.frames_ == ORDER
    assert list(router.predict(t for t in texts[:7])) == list(router.predict(texts[:7]))
    assert router.predict_proba(iter(texts[:7])).shape == (7, 3)


def test_integers_are_names_that_count_up():
    rng = np.random.default_rng(5)
    frames = [k for k in range(12) for _ in range(12)]
    texts = [" ".join(rng.choice([f"own{k}", *"abcdefgh"], 5)) + f" own{k}x" for k in frames]
    named = HybridSVMRouter().fit(texts, [f"frame{k:02}" for k in frames])
    for kind in (int, np.int64):
        router = HybridSVMRouter().fit(texts, [kind(k) for k in frames])
        assert router.frames_ == list(range(12)) and router.classes_.dtype == np.int64
        assert np.array_equal(router.decision_function(texts), named.decision_function(texts))
        assert router.temperature_ == named.temperature_  # 2.21 before: columns sorted as text
    assert router.score(texts, frames) == named.score(texts, [f"frame{k:02}" for k in frames])
    back = HybridSVMRouter().fit(texts[::-1], frames[::-1])
    assert back.frames_ == list(range(12))


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "arrow"])
def test_integers_are_saved(name, corpus, live, tmp_path):
    texts, frames = corpus[0], [ORDER.index(name) for name in corpus[1]]
    router = make_router(name, **live).fit(texts, frames)
    loaded = load_router(save_router(router, tmp_path), **live)
    assert loaded.frames_ == [0, 1, 2]
    assert loaded.route(texts).equals(router.route(texts))


@pytest.mark.parametrize("names", [[None] * 3, [1.5] * 3, [True] * 3, ["a", "b", 3], [1, 2, "c"]])
def test_other_frame_names_are_refused(names, live):
    with pytest.raises(SkillStackError, match="frame names must be strings .or all integers"):
        HybridSVMRouter().fit(["x", "y", "z"], names)
    with pytest.raises(SkillStackError, match="must be one per text, got 'abc'"):
        HybridSVMRouter().fit(["x", "y", "z"], "abc")
    router = CentroidRouter(live["backbone"]).fit(["x", "y"], ["a", "b"])
    with pytest.raises(SkillStackError, match="got 2"):
        router.partial_fit(["z"], [2])
    with pytest.raises(SkillStackError, match="at least one text"):
        router.partial_fit([], [])
    assert router.frames_ == ["a", "b"]


@pytest.mark.parametrize("name", ROUTERS)
def test_scores_of_another_width_are_refused(name, corpus, live):
    router = make_router(name, **live).fit(*corpus)
    scores = router.decision_function(corpus[0])
    assert router.route_scores(scores.tolist()).equals(router.route(corpus[0]))
    for wrong in (scores[:, :2], np.hstack([scores, scores]), scores[0]):
        with pytest.raises(SkillStackError, match=r"scores must be \(texts, 3 frames\), got"):
            router.route_scores(wrong)


def test_threshold_is_the_margin_of_the_walk_alone(live, themed):
    profile = make_router("profile", threshold=0.0, **live)
    assert profile.min_confidence == 0.4
    profile.set_params(temperature=1e6).fit(*themed)  # every frame as likely as another
    assert profile.route(themed[0])["fallback"].all()
    assert make_router("hybrid_chain", threshold=0.3).threshold == 0.3
    assert [n for n in ROUTERS if "threshold" in make_router(n).get_params()] == ["hybrid_chain"]


@pytest.mark.parametrize("name", ["centroid", "profile", "hybrid_embed", "scaffold_blind"])
def test_max_length_is_where_embedding_routers_cut(name, themed, live):
    texts, names = themed
    asked = []

    class Watched:  # what the router asks of the backbone
        def __getattr__(self, attribute):
            return getattr(live["backbone"], attribute)

        def embed(self, texts, max_length=None):
            asked.append(max_length)
            return live["backbone"].embed(texts, max_length)

        def encode(self, texts, max_length):
            asked.append(max_length)
            return live["backbone"].encode(texts, max_length)

    router = make_router(name, backbone=Watched(), max_length=6).fit(texts, names)
    router.decision_function(texts[:3])
    assert set(asked) == {6}
    assert make_router(name).max_length == 160


def test_pieces_are_measured_as_far_as_they_are_embedded(themed, live):
    router = ScaffoldBlindRouter(live["backbone"], max_length=6).fit(*themed)
    _, tokens = router._embed_pieces([["the of a"], ["the of a and to in it that"]])
    assert tokens.tolist() == [3, 6]
    router.set_params(max_length=160)  # more than the 64 positions of the tiny model
    assert router._embed_pieces([["the of " * 90]])[1].tolist() == [64]


# ------------------------------------------------------------------ routers of version 0.1


@pytest.mark.parametrize("name", ROUTERS)
def test_parameters_of_version_0_1_load(name, corpus, live, tmp_path):
    texts, names = corpus
    router = make_router(name, min_confidence=0.9, **live).fit(texts, names)
    save_router(router, tmp_path)

    def older(fields):
        parameters = fields["parameters"]
        parameters.pop("max_length", None)
        if "min_confidence" in parameters:
            parameters["threshold"] = parameters.pop("min_confidence")

    edit_json(tmp_path / "router.safetensors", older)
    loaded = load_router(tmp_path, **live)
    assert loaded.get_params() == router.get_params()
    assert loaded.route(texts).equals(router.route(texts))


def write_router(folder, router, parameters, state, arrays):
    content = safetensors.numpy.save(arrays)
    fields = {"schema_version": 1, "router": router, "parameters": parameters, "state": state}
    fields["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "arrays.safetensors").write_bytes(content)
    (folder / "router.json").write_text(json.dumps(fields))


def test_a_file_written_by_hand(tmp_path):
    state = {"frames_": ["old", "new"], "temperature_": 0.5, "vectorizers_": [["aa"], [" bb"]]}
    arrays = {"coef_": np.array([[2.0, 0.0], [0.0, 3.0]]), "intercept_": np.array([-1.0, 0.5])}
    arrays |= {"vectorizers_/0": np.ones(1), "vectorizers_/1": np.ones(1)}
    write_router(tmp_path, "hybrid_chain", {"C": 1.0, "threshold": 0.7}, state, arrays)
    router = load_router(tmp_path)
    assert router.decision_function(["aa", "bb", "aa bb"]).tolist() == [
        [1, 0.5],
        [-1, 3.5],
        [1, 3.5],
    ]
    assert list(router.predict(["aa", "bb", "c"])) == ["old", "new", "new"]
    assert router.route(["aa", "bb", "c"])["fallback"].tolist() == [False, False, True]
    assert np.allclose(router.predict_proba(["aa"]), softmax([[2, 1]], axis=1))


def test_only_our_routers_are_saved(corpus, tmp_path):
    with pytest.raises(SkillStackError, match="FixedScores is none of hybrid_svm"):
        save_router(FixedScores().fit(*corpus), tmp_path)
    assert not list(tmp_path.iterdir())
