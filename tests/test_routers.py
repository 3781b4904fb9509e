import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import edit_json
from scipy.special import softmax
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.svm import LinearSVC

from skillstack_helpers import SkillStackError
from skillstack_helpers.backbones import load_backbone
from skillstack_helpers.config import RunConfig
from skillstack_helpers.frames import SkillStack
from skillstack_helpers.metrics import calibration_error
from skillstack_helpers.routers import (
    ROUTERS,
    ArrowRouter,
    CentroidRouter,
    HybridChainRouter,
    HybridEmbedRouter,
    HybridSVMRouter,
    LatestRouter,
    OracleRouter,
    ProfileRouter,
    RandomRouter,
    ScaffoldBlindRouter,
    cut_formats,
    fit_temperature,
    format_patterns,
    learn_formats,
    load_router,
    make_router,
    save_router,
    split_pieces,
    walk,
)

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
    config = RunConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3)
    for data, name in zip(stream, ORDER, strict=True):
        renamed = dataclasses.replace(data.task, name=name)
        stack.grow(dataclasses.replace(data, task=renamed), config)
    return {"backbone": backbone, "stack": stack}


@pytest.mark.parametrize("name", ROUTERS)
def test_interface(name, corpus, live):
    texts, names = corpus
    router = make_router(name, threshold=0.1, seed=1, **live)
    assert router.fit(texts, names) is router
    assert router.frames_ == ORDER
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
    assert np.array_equal(router.decision_function(texts[1::2]), theirs)


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


def test_bounds(corpus):
    texts, names = corpus
    assert (OracleRouter().fit(texts, names).predict(texts) == names).all()
    assert (LatestRouter().fit(texts, names).predict(texts) == "mid").all()
    picked = RandomRouter(seed=1).fit(texts, names).predict(texts)
    assert set(picked) == set(ORDER)
    assert 0.15 < (picked == names).mean() < 0.55
    assert (RandomRouter(seed=2).fit(texts, names).predict(texts) != picked).any()
    assert (RandomRouter(seed=1).fit(texts, names).predict(texts[5:9]) == picked[5:9]).all()
    with pytest.raises(SkillStackError, match="oracle was not told"):
        OracleRouter().fit(texts, names).predict(["never seen"])


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
    router = ProfileRouter(**given, k=3, threshold=2.0).fit(texts, names)
    later = [t if i % 30 < 3 else "class0" for i, t in enumerate(texts)]
    again = ProfileRouter(**given, k=3).fit(later, names)
    assert np.array_equal(router.profiles_, again.profiles_)  # only the first three are read
    other = ProfileRouter(live["backbone"], k=3).fit(texts, names)
    assert np.array_equal(other.profiles_[:2], router.profiles_[:2])
    assert not np.allclose(other.profiles_[2], router.profiles_[2])
    assert router.route(texts)["fallback"].all()  # no confidence exceeds 1
    assert ProfileRouter(**given, temperature=0.5).fit(texts, names).temperature_ == 0.5


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


@pytest.mark.parametrize("name", ["centroid", "profile", "arrow", "latest", "random"])
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


def test_temperature_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    drawn = [rng.choice(ORDER, p=row) for row in softmax(logits / 0.5, axis=1)]
    assert fit_temperature(logits, ORDER, drawn) == pytest.approx(0.5, rel=0.08)
    two = [rng.choice(ORDER[:2], p=row) for row in softmax(logits[:, :2] / 2, axis=1)]
    assert fit_temperature(logits[:, :2], ORDER[:2], two) == pytest.approx(2, rel=0.2)


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
    dressed = [form[name] + text for text, name in zip(texts, names, strict=True)]
    router = ScaffoldBlindRouter(live["backbone"]).fit(dressed[::2], names[::2])
    for other in ORDER:
        swapped = [form[other] + text for text in texts[1::2]]
        assert router.content(swapped) == router.content(dressed[1::2])
        ours = router.decision_function(swapped) - router.decision_function(dressed[1::2])
        assert np.abs(ours).max() <= router.format_trust + 1e-9  # the costume is worth no more
    plain = HybridSVMRouter().fit(dressed[::2], names[::2])  # reads the format as well
    assert not np.allclose(
        plain.decision_function(swapped), plain.decision_function(dressed[1::2]), atol=0.1
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
    assert {p.suffix for p in (tmp_path / "r").iterdir()} == {".json", ".safetensors"}
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
    path, arrays = tmp_path / "router.json", tmp_path / "arrays.safetensors"
    good, bytes_ = path.read_text(), arrays.read_bytes()

    def refused(words):
        with pytest.raises(SkillStackError, match=words) as caught:
            load_router(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        path.write_text(good)
        arrays.write_bytes(bytes_)

    arrays.write_bytes(bytes_[:-1])
    refused("arrays.safetensors was changed")
    arrays.unlink()
    refused("arrays.safetensors")
    path.write_text(good[:40])
    refused("router.json is damaged")
    edit_json(path, lambda f: f.update(router="os.system"))
    refused("not a router of this version")
    edit_json(path, lambda f: f["parameters"].update(unknown=1))
    refused("router.json is damaged")
    edit_json(path, lambda f: f["state"].update(__class__="x"))
    refused("unexpected '__class__'")
    edit_json(path, lambda f: f["state"].update(frames_=3))
    refused("frames_")
    path.write_text(json.dumps([1]))
    refused("router.json is damaged")
    assert load_router(tmp_path).frames_ == ORDER
    with pytest.raises(SkillStackError, match="missing|No such file"):
        load_router(tmp_path / "nowhere")


def test_fit_forgets_the_fit_before(corpus):
    texts, names = corpus
    router = HybridChainRouter().fit(texts, names).fit(texts[:80], names[:80])
    assert router.frames_ == ["zeta", "alpha"]
    assert set(router.predict(texts)) <= {"zeta", "alpha"}


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "oracle"])
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
