import numpy as np
import pytest
from conftest import edit_arrays
from scipy.stats import binom

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.routers import load_router, save_router
from skillstack_helpers.routers.gate import GateRouter

SIZE = 8


class StandIn:
    """A backbone whose text "t 17" has a state drawn around topic t, always the same."""

    name = "stand-in"

    def layer_number(self, first):
        return 1

    def pooled(self, texts, max_length, first):
        return np.array([[np.zeros(SIZE), self.state(text)] for text in texts], np.float32).reshape(
            len(texts), 2, SIZE
        )

    def state(self, text):
        topic = np.random.default_rng(list(text.split()[0].encode())).normal(size=SIZE)
        return 2 * topic + np.random.default_rng(list(text.encode())).normal(size=SIZE)


def texts(topic, start, stop):
    return [f"{topic} {i}" for i in range(start, stop)]


def fitted(*topics, n=128, **parameters):
    gate = GateRouter(StandIn(), **parameters)
    for topic in topics:
        gate.partial_fit(texts(topic, 0, n), [topic] * n)
    return gate


def test_distances_and_p_values_by_hand():
    gate = fitted("a", n=6)
    (region,) = gate.regions
    rows = gate.features(texts("a", 0, 6)).astype(float)
    reference, others = rows[::2], rows[1::2]
    inverse = np.linalg.inv(region.whitening @ region.whitening.T)
    assert np.allclose(region.mean, reference.mean(0))
    far = [d @ np.linalg.inv(inverse) @ d for d in others - reference.mean(0)]
    assert np.allclose(region.calibration, np.sort(far))
    new = gate.strangeness(["a 7", "b 1"])[:, 0]
    expected = [(1 + np.sum(np.array(far) >= one)) / 4 for one in new]
    assert gate.p_values(["a 7", "b 1"])[:, 0].tolist() == pytest.approx(expected)
    # A group of one is drawn from itself and the calibration texts: the same p-value.
    assert gate.together(["a 7"]) == pytest.approx(gate.p_values(["a 7"])[0], abs=0.05)


@pytest.mark.parametrize("size", [1, 2, 8, 24])
def test_known_texts_are_called_novel_as_seldom_as_said_at_any_number_of_frames(size):
    topics = [f"topic{k}" for k in range(size)]
    gate = fitted(*topics, alpha=0.1)
    asked = texts("topic0", 1000, 1600)
    novel = gate.route(asked)["fallback"].to_numpy()
    # 0.1 holds over calibration sets too; of one set of 64 the rate is beta distributed.
    assert novel.mean() <= 0.2
    strangers = gate.route(texts("far", 0, 100))["fallback"].to_numpy()
    assert strangers.mean() > 0.9


def test_the_rate_holds_on_average_over_calibration_sets():
    rates = [
        fitted(f"t{k}", n=40, alpha=0.1).route(texts(f"t{k}", 40, 140))["fallback"].mean()
        for k in range(40)
    ]
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / 40**0.5


def test_a_handful_of_texts_finds_what_one_does_not_and_calls_no_more_known_ones_novel():
    gate = fitted("a", "b")

    def novel(topic, n, groups=200):
        starts = range(1000, 1000 + n * groups, n)
        return np.mean([gate.together(texts(topic, s, s + n)).max() < 0.05 for s in starts])

    for n in (1, 4, 16):
        assert binom.cdf(200 * novel("a", n) - 1, 200, 0.05) < 0.999
    assert novel("other", 16) == 1


def test_a_new_frame_leaves_the_others_to_the_last_bit_and_root_first_every_accepted_answer():
    asked = [text for topic in "abcd" for text in texts(topic, 500, 600)]
    gate = fitted("a", "b", root_first=True, alpha=0.1)
    before, routes = gate.p_values(asked), gate.route(asked)
    for topic in "cde":
        gate.partial_fit(texts(topic, 0, 64), [topic] * 64)
        assert (gate.p_values(asked)[:, :2] == before).all()
        now = gate.route(asked)
        accepted = ~routes["fallback"]
        assert (now["frame"] == routes["frame"])[accepted].all() and accepted.sum() > 150
    # As a joint fit of all, in whatever order the texts come.
    both = texts("a", 0, 128) + texts("b", 0, 128)
    joint = GateRouter(StandIn()).fit(both, ["a"] * 128 + ["b"] * 128)
    assert (joint.p_values(asked) == before).all()


def test_the_best_or_the_first_that_accepts():
    scores = np.log([[0.06, 0.5], [0.01, 0.02], [0.01, 0.5]])
    gate, first = fitted("a", "b", n=8), fitted("a", "b", n=8, root_first=True)
    assert list(gate.route_scores(scores)["frame"]) == ["b", "b", "b"]
    assert list(first.route_scores(scores)["frame"]) == ["a", "b", "b"]
    assert list(gate.route_scores(scores)["fallback"]) == [False, True, False]


def test_saved_and_loaded_it_says_the_same(tmp_path):
    gate = fitted("a", "b", n=9)
    save_router(gate, tmp_path)
    again = load_router(tmp_path, backbone=StandIn())
    asked = ["a 77", "b 77", "c 1"]
    assert (again.decision_function(asked) == gate.decision_function(asked)).all()
    assert (again.together(asked) == gate.together(asked)).all()
    again.partial_fit(texts("c", 0, 9), ["c"] * 9)
    assert list(again.classes_) == ["a", "b", "c"]
    for change in ({"ends_": [5, 17]}, {"ends_": [2, 18]}, {"features_": [[np.nan] * SIZE] * 18}):
        other = tmp_path / "other"
        save_router(gate, other)

        def changed(arrays, change=change):
            arrays |= {key: np.array(value, arrays[key].dtype) for key, value in change.items()}

        edit_arrays(other / "router.safetensors", changed)
        with pytest.raises(SkillStackError, match="router.safetensors is damaged"):
            load_router(other, backbone=StandIn())


def test_too_few_texts_and_another_backbone_are_one_line():
    with pytest.raises(SkillStackError, match="a gate needs 3 texts of a frame, 'a' has 2"):
        fitted("a", n=2)
    with pytest.raises(SkillStackError, match="no texts to test together"):
        fitted("a", n=4).together([])
    gate = fitted("a", n=4)
    gate.features_ = gate.features_[:, :5]
    with pytest.raises(SkillStackError, match="fitted on 5 features, stand-in gives 8"):
        gate.predict(["a 1"])
    # Texts that are all alike have no spread, and are known.
    same = GateRouter(StandIn(), alpha=0.5).fit(["a 1"] * 6, ["a"] * 6)
    assert list(same.route(["a 1", "b 1"])["fallback"]) == [False, True]
