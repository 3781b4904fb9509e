import numpy as np
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.svm import LinearSVC

from skillstack_helpers import SkillStackError
from skillstack_helpers.routers import (
    ROUTERS,
    HybridChainRouter,
    HybridSVMRouter,
    LatestRouter,
    OracleRouter,
    RandomRouter,
    make_router,
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


@pytest.mark.parametrize("name", ROUTERS)
def test_interface(name, corpus):
    texts, names = corpus
    router = make_router(name, threshold=0.1, seed=1)
    assert router.fit(texts, names) is router
    assert router.frames_ == ORDER
    scores = router.decision_function(texts)
    assert scores.shape == (len(texts), 3)
    routes = router.route(texts)
    assert list(routes) == ["frame", "score", "depth", "fallback"]
    assert (router.predict(texts) == routes["frame"]).all()
    assert (clone(router).fit(texts, names).predict(texts) == routes["frame"]).all()


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


def test_routers_beat_chance_on_held_out_texts(corpus):
    texts, names = corpus
    truth = np.array(names[1::2])
    for router in (HybridSVMRouter(), HybridChainRouter()):
        picked = router.fit(texts[::2], names[::2]).predict(texts[1::2])
        assert (picked == truth).mean() > 0.6


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


def test_fit_forgets_the_fit_before(corpus):
    texts, names = corpus
    router = HybridChainRouter().fit(texts, names).fit(texts[:80], names[:80])
    assert router.frames_ == ["zeta", "alpha"]
    assert set(router.predict(texts)) <= {"zeta", "alpha"}


@pytest.mark.parametrize("name", ["hybrid_svm", "hybrid_chain", "latest", "random"])
def test_strange_texts_have_finite_repeatable_scores(name, corpus):
    router = make_router(name).fit(*corpus)
    strange = ["", "x", "word1 " * 20_000, "日本語のテキスト", "😀🎉", "\ud800", "\x00"]
    scores = router.decision_function(strange)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, router.decision_function(strange))
    assert len(router.route([])) == 0


def test_bad_input(corpus):
    with pytest.raises(SkillStackError, match="2 texts but 1 frame names"):
        HybridSVMRouter().fit(["a", "b"], ["x"])
    with pytest.raises(SkillStackError, match="at least one text"):
        HybridSVMRouter().fit([], [])
    with pytest.raises(SkillStackError, match="got None"):
        HybridSVMRouter().fit(*corpus).predict([None])
    with pytest.raises(SkillStackError, match="got one string"):
        HybridSVMRouter().fit(*corpus).predict("a text")
    with pytest.raises(SkillStackError, match=r"unknown router 'svm'"):
        make_router("svm")
    with pytest.raises(SkillStackError, match="hold no words"):
        HybridSVMRouter().fit(["", ""], ["x", "y"])
