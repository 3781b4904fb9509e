import numpy as np
import pytest
from conftest import edit_arrays, edit_json
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.routers import HybridEmbedRouter, HybridSVMRouter, load_router, save_router
from skillstack_helpers.routers import ngrams as module
from skillstack_helpers.routers.ngrams import NgramTfidf, _Kept, count_ngrams, hash_strings

KINDS = [
    ("word", (1, 2), True),
    ("char_wb", (3, 5), True),
    ("word", (1, 2), False),
    ("char", (2, 5), False),
    ("char", (1, 3), True),
    ("char_wb", (1, 4), False),
    ("word", (2, 3), True),
]
# Few letters, so that n-grams come again; white space of every kind, marks, letters that change
# their number or their neighbours when they become small, an emoji, halves of one.
LETTERS = "aabAB_9  \n\t\r\x0b\x1c\x85\xa0\u2028\u3000.,-'ßİΣσé\u0301ǅ中\u200d😀\ud83d\ude00\x00"
TEXTS = st.lists(st.text(st.sampled_from(LETTERS), max_size=30), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", _Kept(1 << 20))


def peer(analyzer, ngram_range, lowercase):
    return TfidfVectorizer(
        analyzer=analyzer, ngram_range=ngram_range, lowercase=lowercase, sublinear_tf=True
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(seen=TEXTS, unseen=TEXTS)
def test_values_are_scikit_learns(kind, seen, unseen):
    theirs, ours = peer(*kind), NgramTfidf(*kind)
    try:
        expected = theirs.fit_transform(seen)
    except ValueError:
        with pytest.raises(ValueError, match="empty vocabulary"):
            ours.fit(seen)
        return
    rows = ours.fit_transform(seen)
    hashes = hash_strings(theirs.get_feature_names_out())
    order = np.argsort(hashes)
    assert np.array_equal(hashes[order], ours.hashes_)
    assert np.allclose(theirs.idf_[order], ours.idf_, rtol=0, atol=1e-12)
    for mine, other in ((rows, expected), (ours.transform(unseen), theirs.transform(unseen))):
        assert mine.dtype == np.float64 and mine.has_sorted_indices
        assert abs(mine - other[:, order]).max() < 1e-12
        assert mine.nnz == other.nnz


def test_a_text_alone_is_the_text_among_others(monkeypatch):
    texts = ["so it goes", "", "so what", "it  goes\non", "a", "\ud83d"]
    vectorizer = NgramTfidf("char", (2, 5)).fit(texts)
    together = vectorizer.transform(texts).toarray()
    monkeypatch.setattr(module, "_KEPT", _Kept(0))  # nothing is kept: all is read anew
    monkeypatch.setattr(module, "_CHUNK", 4)  # a text a chunk
    apart = np.vstack([vectorizer.transform([text]).toarray() for text in texts])
    assert np.array_equal(apart, together)
    assert np.array_equal(vectorizer.transform(texts).toarray(), together)
    assert not module._KEPT.held
    assert vectorizer.transform([]).shape == (0, together.shape[1])


def test_a_text_is_read_once_for_all_of_a_kind(monkeypatch):
    read = []

    def counting(texts, *kind):
        read.extend(texts)
        return count_ngrams(texts, *kind)

    monkeypatch.setattr(module, "count_ngrams", counting)
    texts = ["one text", "another text", "one text"]
    routers = [HybridSVMRouter().fit(texts, [0, 1, 0]) for _ in range(2)]
    assert sorted(read) == ["another text"] * 2 + ["one text"] * 2  # by words and by letters
    for router in routers:
        router.predict(["one text", "a third"])
    assert len(read) == 6
    HybridEmbedRouter()._vectorizers()[0].fit(texts)  # with upper case: another kind
    assert len(read) == 8


def test_what_is_kept_is_bounded_and_the_latest():
    kept = _Kept(20_000)
    texts = [f"text {i} " + "word " * 10 for i in range(50)]
    kind = ("char", 2, 5, False)
    for text in texts:
        kept.read([text], kind)
        assert 0 < kept.held <= 20_000
        kept.read([texts[0]], kind)  # asked again and again: stays
    held = [text for text, _ in kept._rows]
    assert texts[0] in held and texts[-1] in held and texts[1] not in held
    rows = kept.read(texts, kind)
    for (hashes, counts), (expected, times) in zip(rows, count_ngrams(texts, *kind), strict=True):
        assert np.array_equal(hashes, expected) and np.array_equal(counts, times)


def test_hashes_never_change():
    """Saved routers hold them."""
    hashes = hash_strings(["a", " ab", "so it", "😀", ""])
    assert [f"{h:016x}" for h in hashes.tolist()] == [
        "7bcde602ff00b503",
        "34afb588109f91d3",
        "857a6ead3b663393",
        "fe7d2e2cbee60d6d",
        "0000000000000000",
    ]


def test_it_is_a_vectorizer_of_scikit_learn():
    vectorizer = clone(NgramTfidf("char_wb", (3, 5), lowercase=False))
    assert vectorizer.get_params()["ngram_range"] == (3, 5)
    with pytest.raises(ValueError, match="not fitted"):
        vectorizer.transform(["x"])
    for wrong in (("char_wb", (4, 5)), ("char", (3, 2)), ("char", (0, 2))):
        with pytest.raises(ValueError, match="n-grams of"):
            NgramTfidf(*wrong).fit(["some text"])
    texts, names = ["a dull film", "a fine film", "the bank cut", "its shares fell"], [0, 0, 1, 1]
    pipeline = clone(HybridSVMRouter().make_pipeline()).fit(texts, names)
    ours = HybridSVMRouter().fit(texts, names).decision_function(["shares of a bank"])[:, 1]
    assert np.allclose(pipeline.decision_function(["shares of a bank"]), ours, atol=1e-10)


# ------------------------------------------------------------------ saved


@pytest.fixture
def fitted():
    texts = [f"{word} film number {i}" for i in range(4) for word in ("a dull", "Two fine", "the")]
    return HybridSVMRouter().fit(texts, ["dull", "fine", "the"] * 4), texts


def test_no_letter_of_a_text_is_saved(fitted, tmp_path):
    router, texts = fitted
    save_router(router, tmp_path)
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"film" not in files and b"number" not in files
    loaded = load_router(tmp_path)
    assert np.array_equal(loaded.decision_function(texts), router.decision_function(texts))
    assert np.array_equal(loaded.coef_, router.coef_)


def test_routers_saved_with_their_terms_load(fitted, tmp_path):
    """As version 0.4 wrote them: the terms in JSON, in the alphabet's order."""
    router, texts = fitted
    save_router(router, tmp_path / "new")
    pipeline = router.make_pipeline().fit(texts, ["dull", "fine", "the"] * 4)
    vectorizers = [v for _, v in pipeline[0].transformer_list]
    arrays = {f"vectorizers_/{i}": v.idf_ for i, v in enumerate(vectorizers)}
    arrays |= {"coef_": pipeline[-1].coef_, "intercept_": pipeline[-1].intercept_}
    terms = [v.get_feature_names_out().tolist() for v in vectorizers]

    path = tmp_path / "new" / "router.safetensors"

    def older():
        def change(held):
            held.clear()
            held.update({key: np.ascontiguousarray(value) for key, value in arrays.items()})

        edit_arrays(path, change, lambda f: f["state"].update(vectorizers_=terms))

    older()
    loaded = load_router(tmp_path / "new")
    expected = pipeline.decision_function(texts)
    assert np.allclose(loaded.decision_function(texts), expected, rtol=0, atol=1e-10)
    again = load_router(save_router(loaded, tmp_path / "again"))  # saved anew: hashes
    assert np.array_equal(again.decision_function(texts), loaded.decision_function(texts))
    terms[0][1] = terms[0][0]
    older()
    with pytest.raises(
        SkillStackError, match=r"router.safetensors is damaged: the n-grams' hashes"
    ):
        load_router(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vectorizers_/0/hashes", lambda a: a[::-1]),
        ("vectorizers_/0/hashes", lambda a: a.astype(np.int64)),
        ("vectorizers_/0/hashes", lambda a: a[:-1]),
        ("vectorizers_/1/hashes", lambda a: None),
        ("vectorizers_/1", lambda a: a[None]),
        ("vectorizers_/1", lambda a: None),
        ("vectorizers_/2", lambda a: np.ones(3)),
        ("coef_", lambda a: a[:, :-1]),
        ("coef_", lambda a: a[:2]),
        ("coef_", lambda a: None),
        ("vectorizers_", lambda a: [3]),
        ("vectorizers_", lambda a: ["so", "on"]),
        ("vectorizers_", lambda a: 7),
    ],
)
def test_malformed_arrays_are_refused(fitted, tmp_path, name, change):
    save_router(fitted[0], tmp_path)

    def changed(here):
        if name in here or name == "vectorizers_/2":
            if (value := change(here.get(name))) is None:
                del here[name]
            else:
                here[name] = value

    path = tmp_path / "router.safetensors"
    if name == "vectorizers_":
        edit_json(path, lambda fields: changed(fields["state"]))
    else:
        edit_arrays(path, changed)
    with pytest.raises(SkillStackError, match=r"router\.safetensors is damaged"):
        load_router(tmp_path)
