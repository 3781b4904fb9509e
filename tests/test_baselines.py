"""Every method by hand-worked numbers, and none of them silently a no-op."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch.nn.utils import parameters_to_vector

from skillstack_helpers import SkillStackError, backbones, baselines, heads, training
from skillstack_helpers.baselines import (
    EWC,
    FineTuning,
    FrozenLDA,
    GatedEWCReplay,
    GenerativeReplay,
    Independent,
    Joint,
    OLoRA,
    Replay,
    ReservoirBuffer,
    Sequential,
    TfidfLogistic,
    diagonal_fisher,
)
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack


def learned(learner, stream):
    for data in stream:
        learner.learn(data)
    return learner


def vector(learner):
    return parameters_to_vector(list(learner._adapter.values()))


# ------------------------------------------------------------------ sequential, independent


def test_sequential_is_the_stacks_latest_adapter(backbone, stream, config):
    stack, learner = SkillStack(backbone), Sequential(backbone, config)
    for data in stream:
        stack.grow(data, config)
        learner.learn(data)
        latest = stack[data.name].weights()
        assert all(torch.equal(latest.lora[n], p) for n, p in learner._adapter.items())
        assert torch.equal(latest.head["weight"], learner.heads[data.name].layer.weight)
    first = stream[0]
    ours = learner.evaluate(first)
    theirs = stack.evaluate(first, frame=stream[-1].name, head=first.name)
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    assert ours.accuracy == theirs.accuracy
    names = learner.predict(first.texts("eval"), [first.name] * len(first.eval))
    assert list(names) == [first.task.label_names[k] for k in ours.labels]


def test_learners_may_take_turns_on_one_backbone(backbone, stream, config):
    alone = learned(OLoRA(backbone, config), stream)
    one, two = Sequential(backbone, config), OLoRA(backbone, config)
    for data in stream:
        two.learn(data)
        one.learn(data)
        one.evaluate(stream[0])
    assert torch.equal(vector(alone), vector(two))


def test_independent_forgets_nothing_and_starts_anew(backbone, stream, config):
    learner = Independent(backbone, config)
    learner.learn(stream[0])
    before = learner.evaluate(stream[0]).logits
    learner._evaluated.clear()
    learned(learner, stream[1:])
    np.testing.assert_array_equal(learner.evaluate(stream[0]).logits, before)
    # the second adapter is what a learner gets that never saw the first task
    other = Independent(backbone, config)
    other.heads["gone"] = torch.nn.Linear(32, 2)  # so that the seed of the second task is used
    other.learn(stream[1])
    assert all(
        torch.equal(p, learner._adapters[stream[1].name][n]) for n, p in other._adapter.items()
    )
    one = Sequential(backbone, config)
    one.learn(stream[0])
    assert learner._adapter_size() == 3 * one._adapter_size()


# ------------------------------------------------------------------ logits of all heads


def check_asked(learner, texts, tolerance=0.0):
    """Only what was asked about is said, and that as if all had been."""
    asked = np.random.default_rng(0).random((len(texts), 3)) < 0.5
    some, whole = learner.logits(texts, asked), learner.logits(texts)
    assert (np.isnan(some).all(2) == ~asked).all() and not np.isnan(some[asked]).any()
    np.testing.assert_allclose(some[asked], whole[asked], rtol=tolerance, atol=tolerance)
    assert np.isnan(learner.logits(texts, np.zeros_like(asked))).all()


def check_logits(learner, stream):
    """Every head's own scores, -inf elsewhere."""
    texts = [*stream[0].texts("eval"), *stream[1].texts("eval")]
    logits = learner.logits(texts)
    assert logits.shape == (len(texts), 3, 4) and logits.dtype == np.float32
    assert list(learner.label_names) == [data.name for data in stream]
    for k, data in enumerate(stream):
        own = learner._head(data.name).scores(texts, learner.config.max_length)
        classes = len(data.task.label_names)
        np.testing.assert_allclose(logits[:, k, :classes], own, rtol=1e-4, atol=1e-5)
        assert (logits[:, k, classes:] == -np.inf).all()
        assert learner.label_names[data.name] == tuple(data.task.label_names)
        named = [data.task.label_names[best] for best in logits[:, k].argmax(1)]
        assert list(learner.predict(texts, [data.name] * len(texts))) == named
    assert learner.logits([]).shape == (0, 3, 4)
    check_asked(learner, texts, 1e-5)


@pytest.mark.parametrize("method", [Sequential, Independent, Replay, OLoRA, FineTuning])
def test_logits_are_those_of_every_head(method, backbone, stream, config):
    config = dataclasses.replace(config, epochs=1)
    check_logits(learned(method(backbone, config), stream), stream)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_logits_of_heads_without_bias(kind, model_dirs, stream, config):
    decoder = load_backbone(str(model_dirs[kind]), device="cpu")
    config = dataclasses.replace(config, epochs=1)
    check_logits(learned(Sequential(decoder, config), stream), stream)


@pytest.mark.parametrize("method", [Sequential, Independent])
@pytest.mark.parametrize("first", [None, 1])
def test_one_adapter_reads_a_text_once_and_others_what_they_are_asked(
    method, first, backbone, stream, config, monkeypatch
):
    config = dataclasses.replace(config, epochs=1, first_adapted_layer=first)
    learner = learned(method(backbone, config), stream)
    read, features = [], backbones.Backbone.features

    def spy(self, inputs, mask, lora=None):
        read.append(len(inputs))
        return features(self, inputs, mask, lora)

    monkeypatch.setattr(backbones.Backbone, "features", spy)
    texts = stream[0].texts("eval")
    for asked in (None, np.arange(3 * len(texts)).reshape(-1, 3) % 2 == 0):
        learner.logits(texts, asked)
        apart = 3 * len(texts) if asked is None else asked.sum()
        assert sum(read) == (len(texts) if method is Sequential else apart)
        read.clear()


def test_logits_before_anything_was_learned(backbone, config):
    with pytest.raises(SkillStackError, match="no task was learned: call learn first"):
        Sequential(backbone, config).logits(["a"])


# ------------------------------------------------------------------ Fisher and EWC


class TwoParameters:
    """log p(y | x) of two classes, logits (a x, b x), on two rows x = 1, 2."""

    x = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def __init__(self, a=0.0, b=0.0):
        self.a = torch.tensor([a], dtype=torch.float64, requires_grad=True)
        self.b = torch.tensor([b], dtype=torch.float64, requires_grad=True)

    def __call__(self, rows):
        x = self.x[torch.as_tensor(rows)]
        return torch.stack([self.a * x, self.b * x], 1).log_softmax(-1)

    def fisher(self, labels, estimator):
        torch.set_default_dtype(torch.float64)
        try:
            given = ([self.a, self.b], np.array(labels), estimator)
            return diagonal_fisher(self, *given).numpy()
        finally:
            torch.set_default_dtype(torch.float32)


# d log p(0) / da = x (1 - p0), d log p(1) / da = -x p0. At a = b, p0 = 1/2: all are +-x / 2.
# exact = empirical: mean of x²/4 over x = 1, 2: (1 + 4) / 8 = 0.625, for a and for b.
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_fisher_by_hand_where_all_labels_weigh_the_same(estimator):
    np.testing.assert_allclose(TwoParameters().fisher([0, 1], estimator), [0.625, 0.625])


def test_fisher_by_hand_where_they_differ():
    # a - b = ln 3, x = 1: p0 = 3/4; x = 2: p0 = 9/10.
    model = TwoParameters(a=np.log(3.0))
    # exact: E[g²] = x² p0 p1: (3/16 + 4 * 9/100) / 2
    np.testing.assert_allclose(model.fisher([0, 0], "exact"), [(3 / 16 + 0.36) / 2] * 2)
    # empirical, labels 0 and 1: (1/4)² and (2 * 9/10)²
    np.testing.assert_allclose(model.fisher([0, 1], "empirical"), [(1 / 16 + 3.24) / 2] * 2)


def test_penalty_is_zero_before_a_step_and_above_zero_after(backbone, stream, config):
    learner = EWC(backbone, config, strength=10.0)
    learner.learn(stream[0])
    assert len(learner.anchors) == 1 and learner.anchors[0][0].max() > 0
    learner._activate(stream[0].name)
    assert learner.penalty() == 0
    seen = []
    before = learner.penalty
    learner.penalty = lambda: seen.append(float(before().detach())) or before()
    learner.learn(stream[1])
    assert seen[0] == 0 and all(value > 0 for value in seen[1:]) and len(seen) > 2


def test_penalty_by_hand(backbone, stream, config):
    learner = EWC(backbone, config, strength=3.0)
    learner.learn(stream[0])
    learner._activate(stream[0].name)
    fisher, anchor = learner.anchors[0]
    name = next(iter(backbone.lora_parameters))
    with torch.no_grad():
        backbone.lora_parameters[name].view(-1)[1] += 0.5  # the second parameter of all
    expected = 0.5 * 3.0 * fisher[1] * 0.25
    torch.testing.assert_close(learner.penalty(), expected, rtol=1e-3, atol=0)
    learner.anchors.append((2 * fisher, anchor))  # another task, the same place: three times
    torch.testing.assert_close(learner.penalty(), 3 * expected, rtol=1e-3, atol=0)


def test_in_the_loss_and_in_the_gradient_are_the_same(backbone, stream, config):
    one = learned(EWC(backbone, config, strength=50.0), stream)
    two = learned(EWC(backbone, config, strength=50.0, gamma_gain=float("inf")), stream)
    torch.testing.assert_close(vector(one), vector(two), rtol=1e-3, atol=1e-5)
    none = learned(EWC(backbone, config, strength=0.0), stream)
    assert (vector(one) - vector(none)).norm() > 100 * (vector(one) - vector(two)).norm()
    torch.testing.assert_close(vector(none), vector(learned(Sequential(backbone, config), stream)))


def test_a_strong_penalty_holds_the_adapter_where_it_was(backbone, stream, config):
    moved = {}
    for strength in (0.0, 1e6):
        learner = EWC(backbone, config, strength=strength)
        learner.learn(stream[0])
        fisher, start = learner.anchors[0]
        learner.learn(stream[1])
        moved[strength] = (fisher * (vector(learner) - start) ** 2).sum()
    assert moved[1e6] < 0.2 * moved[0.0]


def test_online_ewc_keeps_one_anchor(backbone, stream, config):
    each = learned(EWC(backbone, config), stream[:2])
    online = learned(EWC(backbone, config, decay=0.5), stream[:2])
    assert len(each.anchors) == 2 and len(online.anchors) == 1
    # up to the second task both did the same
    expected = 0.5 * each.anchors[0][0] + each.anchors[1][0]
    torch.testing.assert_close(online.anchors[0][0], expected)
    assert online.stored_bytes < each.stored_bytes


def test_online_ewc_of_any_rank_stores_three_adapters_whatever_the_tasks(backbone, stream, config):
    config = dataclasses.replace(config, lora_r=9, lora_alpha=18, epochs=1)
    learner, sizes = EWC(backbone, config, decay=1.0), []
    for data in stream:
        learner.learn(data)
        heads = sum(p.numel() for h in learner.heads.values() for p in h.parameters())
        sizes.append(learner.stored_bytes - 4 * heads)
    adapter = sum(9 * (p.shape[1] if "lora_A" in n else p.shape[0])
                  for n, p in learner._adapter.items())  # fmt: skip
    assert sizes == [3 * 4 * adapter] * 3


def test_the_gate_bounds_the_penaltys_gradient(backbone, stream, config):
    learner = EWC(backbone, config, strength=1e9, gamma_gain=0.5)
    learner.learn(stream[0])
    learner._activate(stream[0].name)
    parameters = list(backbone.lora_parameters.values())
    with torch.no_grad():
        for p in parameters:
            p += 0.1
            p.grad = torch.ones_like(p)
    own = parameters_to_vector([p.grad for p in parameters])
    learner._after_backward()
    added = parameters_to_vector([p.grad for p in parameters]) - own
    torch.testing.assert_close(added.norm(), 0.5 * own.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"estimator": "exat"}, "did you mean 'exact'"),
        ({"strength": -1.0}, "strength must be at least 0"),
        ({"strength": float("nan")}, "strength must be finite"),
        ({"n_fisher": 0}, "n_fisher must be at least 1"),
        ({"decay": 1.5}, "decay must be at most 1"),
    ],
)
def test_bad_ewc_options(options, words, backbone, config):
    with pytest.raises(SkillStackError, match=words):
        EWC(backbone, config, **options)


# ------------------------------------------------------------------ replay


@given(st.integers(1, 20), st.integers(0, 100))
def test_the_buffer_never_exceeds_its_capacity(capacity, n):
    buffer = ReservoirBuffer(capacity, np.random.default_rng(0))
    for row in range(n):
        buffer.add(row)
        assert len(buffer.rows) == min(row + 1, capacity)
    assert len(set(buffer.rows)) == len(buffer.rows) and set(buffer.rows) <= set(range(n))


def test_the_buffer_is_uniform_over_the_stream():
    counts = np.zeros(50)
    for seed in range(2000):
        buffer = ReservoirBuffer(10, np.random.default_rng(seed))
        for row in range(50):
            buffer.add(row)
        counts[buffer.rows] += 1
    # each row is kept with probability 1/5: 400 of 2000, standard deviation 18
    assert counts.sum() == 20_000 and abs(counts - 400).max() < 5 * 18


def test_replay_rehearses_earlier_tasks_only(backbone, stream, config, monkeypatch):
    seen = []  # of each batch that has rows of several tasks: the owners, before and after its own
    make = baselines.classification_loss

    def spy(heads, ids, labels, owners):
        loss = make(heads, ids, labels, owners)
        return lambda rows: seen.append((len(heads), rows, owners)) or loss(rows)

    monkeypatch.setattr(baselines, "classification_loss", spy)
    learner = learned(Replay(backbone, config, capacity=9), stream)
    for n_tasks in (2, 3):
        new = len(stream[n_tasks - 1].train)
        batches = [(rows, owners) for k, rows, owners in seen if k == n_tasks]
        assert batches
        for rows, owners in batches:
            size = len(rows) // 2 if len(rows) % 2 == 0 else len(rows) - config.batch_size
            assert set(owners[rows[:size]]) == {n_tasks - 1} and rows[:size].max() < new
            assert rows[size:].min() >= new
        rehearsed = {k for rows, owners in batches for k in owners[rows[rows >= new]]}
        assert rehearsed == set(range(n_tasks - 1))
    assert len(learner.buffer.rows) == 9
    assert learner.buffer.seen == sum(len(data.train) for data in stream)
    plain = learned(Sequential(backbone, config), stream)
    assert learner.updates == plain.updates  # the same number of steps, on more rows
    assert learner.stored_bytes > plain.stored_bytes


def test_replay_is_no_no_op_and_trains_earlier_heads(backbone, stream, config):
    learner, plain = Replay(backbone, config), Sequential(backbone, config)
    for one in (learner, plain):
        one.learn(stream[0])
    assert torch.equal(vector(learner), vector(plain))
    head = learner.heads[stream[0].name].layer.weight.clone()
    for one in (learner, plain):
        one.learn(stream[1])
    assert not torch.equal(vector(learner), vector(plain))
    assert not torch.equal(head, learner.heads[stream[0].name].layer.weight)


def test_replay_keeps_what_sequential_training_loses(backbone, stream, config):
    """Loss on the first task's own rows after two more tasks: the buffer holds them all."""
    config = dataclasses.replace(config, epochs=10, lr=1e-2)
    first, loss = stream[0], {}
    for method in (Sequential, Replay):
        learner = learned(method(backbone, config), stream)
        scores = torch.from_numpy(
            learner._head(first.name).scores(first.texts("train"), config.max_length)
        )
        labels = torch.tensor(first.labels("train"))
        loss[method] = float(torch.nn.functional.cross_entropy(scores, labels))
    assert loss[Replay] < 0.5 * loss[Sequential]


def test_capacity_is_checked(backbone, config):
    with pytest.raises(SkillStackError, match="capacity must be at least 1, got 0"):
        Replay(backbone, config, capacity=0)


def test_the_adaptive_learners_recipe_does_both(backbone, stream, config):
    learner = learned(GatedEWCReplay(backbone, config, strength=1.0, capacity=20), stream)
    assert len(learner.anchors) == 3 and len(learner.buffer.rows) == 20
    assert learner.estimator == "empirical" and learner.gamma_gain == 1.0
    replay = learned(Replay(backbone, config, capacity=20), stream)
    assert not torch.equal(vector(learner), vector(replay))


# ------------------------------------------------------------------ generative replay


def test_generative_replay_writes_its_own_rows(model_dirs, stream, config):
    decoder = load_backbone(str(model_dirs["gpt2"]), device="cpu")
    learner = GenerativeReplay(decoder, config, n_pseudo=5, max_new=6)
    for data in stream[:2]:
        learner.learn(data)
    assert [len(texts) for texts in learner.texts.values()] == [5, 5]
    assert {row[0] for row in learner.buffer.rows} == {"imdb", "agnews"}
    real = {tuple(ids) for ids in decoder.encode(stream[0].texts("train"), config.max_length)}
    assert not any(tuple(row[1]) in real for row in learner.buffer.rows)
    assert all(0 <= row[2] < 2 for row in learner.buffer.rows if row[0] == "imdb")
    again = GenerativeReplay(decoder, config, n_pseudo=5, max_new=6)
    again.learn(stream[0])
    assert again.texts["imdb"] == learner.texts["imdb"]  # the same seed, the same texts
    plain = learned(Sequential(decoder, config), stream[:2])
    assert learner.updates == plain.updates and not torch.equal(vector(learner), vector(plain))


def test_what_is_written_depends_on_the_adapter_and_follows_the_model(model_dirs):
    """With top_k 1, sampling is greedy: one more token must be the argmax of a plain pass."""
    decoder = load_backbone(str(model_dirs["gpt2"]), device="cpu")
    decoder.attach(4, 8)
    prompt = "the of and"
    rng = np.random.default_rng(0)
    (text,) = baselines.sample_texts(decoder, prompt, 1, 3, rng, top_k=1)
    ids = list(decoder.tokenizer(prompt)["input_ids"])
    table = decoder.model.get_input_embeddings().weight
    for _ in range(3):
        with torch.no_grad():
            hidden = decoder.model(input_ids=torch.tensor([ids])).last_hidden_state
        ids.append(int((hidden[0, -1] @ table.T).argmax()))
    assert text == decoder.tokenizer.decode(ids[-3:], skip_special_tokens=True)


def test_generative_replay_tells_who_cannot_write(backbone, model_dirs, config):
    with pytest.raises(SkillStackError, match="is an encoder"):
        GenerativeReplay(backbone, config)
    with pytest.raises(SkillStackError, match="has an output layer of its own"):
        GenerativeReplay(load_backbone(str(model_dirs["llama"]), device="cpu"), config)


# ------------------------------------------------------------------ joint


def test_joint_sees_every_task_in_every_epoch(backbone, stream, config, monkeypatch):
    epochs = []
    batches = training.train_batches

    def spy(lengths, size, rng):
        epochs.append(batches(lengths, size, rng))
        return epochs[-1]

    monkeypatch.setattr(training, "train_batches", spy)
    config = dataclasses.replace(config, epochs=2)
    learner = Joint(backbone, config)
    learner.learn(stream)
    owners = np.repeat(np.arange(3), [len(data.train) for data in stream])
    assert len(epochs) == 2
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(len(owners)))
        assert any(len(set(owners[batch])) > 1 for batch in epoch)  # mixed, not one by one
    assert list(learner.heads) == [data.name for data in stream]
    for head in learner.heads.values():  # trained: a new head's bias is zero
        assert head.layer.bias.abs().max() > 0
    assert 0 <= learner.evaluate(stream[0]).accuracy <= 1


def test_joint_takes_another_rank_and_rate(backbone, stream, config):
    config = dataclasses.replace(config, lora_r=16, lora_alpha=32, lr=1e-3, epochs=1)
    learner = Joint(backbone, config)
    learner.learn(stream)
    assert {16} == {p.shape["lora_B" in n] for n, p in learner._adapter.items()}
    check_logits(learner, stream)


def test_tasks_with_the_same_labels_may_share_a_head(backbone, stream, config):
    """imdb and a second one like it; agnews and qqp have labels of their own."""
    config = dataclasses.replace(config, epochs=1)
    twin = dataclasses.replace(stream[0].task, name="twin")
    more = [*stream, dataclasses.replace(stream[0], task=twin)]
    shared, apart = Joint(backbone, config, share_heads=True), Joint(backbone, config)
    for learner in (shared, apart):
        learner.learn(more)
        assert list(learner.heads) == [*(data.name for data in stream), "twin"]
    assert shared.heads["imdb"] is shared.heads["twin"] is not shared.heads["qqp"]
    assert len(set(apart.heads.values())) == 4
    one = sum(p.numel() for p in shared.heads["imdb"].parameters())
    assert shared.trained_parameters == apart.trained_parameters - one
    logits = shared.logits(stream[0].texts("eval"))
    np.testing.assert_allclose(logits[:, 0], logits[:, 3], rtol=0, atol=1e-6)  # by the column
    assert not np.allclose(logits[:, 0], apart.logits(stream[0].texts("eval"))[:, 0])


def test_without_tasks_alike_shared_heads_change_nothing(backbone, stream, config):
    config = dataclasses.replace(config, epochs=1)
    shared, apart = Joint(backbone, config, share_heads=True), Joint(backbone, config)
    for learner in (shared, apart):
        learner.learn(stream)
    assert torch.equal(vector(shared), vector(apart))
    texts = stream[0].texts("eval")
    np.testing.assert_array_equal(shared.logits(texts), apart.logits(texts))


def test_labels_in_another_order_are_another_head(backbone, stream, config):
    config = dataclasses.replace(config, epochs=1)
    names = stream[0].task.label_names
    twin = dataclasses.replace(stream[0].task, name="twin", label_names=names[::-1])
    learner = Joint(backbone, config, share_heads=True)
    learner.learn([stream[0], dataclasses.replace(stream[0], task=twin)])
    assert learner.heads["imdb"] is not learner.heads["twin"]


def test_rows_are_scored_under_their_own_head(backbone, monkeypatch):
    two = [heads.LinearHead(backbone, names) for names in (("a", "b"), ("a", "b", "c"))]
    for head in two:
        torch.nn.init.zeros_(head.layer.weight)
        torch.nn.init.zeros_(head.layer.bias)
    two[0].layer.weight.data[0, 0] = two[0].layer.weight.data[1, 1] = 1.0
    features = torch.zeros(3, 32)
    features[0, 0], features[1, 0], features[1, 1] = 1.0, 5.0, 7.0
    monkeypatch.setattr(heads, "_features", lambda backbone, ids, rows: features[rows])
    loss = heads.classification_loss(two, [0, 0, 0], np.array([0, 2, 1]), np.array([0, 1, 0]))
    # -log(e / (e + 1)), -log(1/3), -log(1/2)
    by_hand = (np.log(1 + np.exp(-1)) + np.log(3) + np.log(2)) / 3
    assert loss(np.array([0, 1, 2])).item() == pytest.approx(by_hand, rel=1e-6)


# ------------------------------------------------------------------ O-LoRA


def blocks(learner, task):
    """Per module, A of the task and of all earlier ones stacked."""
    r = learner.config.lora_r
    for name, weight in learner._adapter.items():
        if ".lora_A." in name:
            yield weight[: r * task], weight[r * task : r * (task + 1)]


def test_olora_subspaces_are_orthogonal_within_tolerance(backbone, stream, config):
    config = dataclasses.replace(config, epochs=40, lr=1e-2)

    def cosine(strength):
        learner = learned(OLoRA(backbone, config, strength=strength), stream)
        pairs = [pair for task in (1, 2) for pair in blocks(learner, task)]
        unit = torch.nn.functional.normalize
        return max((unit(old) @ unit(new).T).abs().max() for old, new in pairs)

    assert cosine(5.0) < 0.05 < cosine(0.0)


def test_olora_leaves_earlier_adapters_alone_and_is_no_no_op(backbone, stream, config):
    learner = OLoRA(backbone, config)
    learner.learn(stream[0])
    plain = Sequential(backbone, config)
    plain.learn(stream[0])
    assert torch.equal(vector(learner), vector(plain))  # the first task is plain LoRA
    first = {n: w.clone() for n, w in learner._adapter.items()}
    learner.learn(stream[1])
    for name, old in first.items():
        now = learner._adapter[name]
        axis = 0 if ".lora_A." in name else 1
        assert torch.equal(now.narrow(axis, 0, 4), old)
        assert now.shape[axis] == 8 and now.narrow(axis, 4, 4).abs().max() > 0
    assert learner.trained_parameters == 2 * plain._adapter_size() + sum(
        p.numel() for head in learner.heads.values() for p in head.parameters()
    )


def test_olora_sums_the_adapters(backbone, stream, config):
    """The slot of rank 2 r gives W + alpha / r (B1 A1 + B2 A2), worked out here by matrices."""
    learner = learned(OLoRA(backbone, config), stream[:2])
    learner._activate(stream[0].name)
    name = next(n for n in learner._adapter if ".lora_A." in n)
    module = backbone.model.get_submodule(name.removesuffix(".lora_A.weight"))
    A = learner._adapter[name]
    B = learner._adapter[name.replace(".lora_A.", ".lora_B.")]
    x = torch.randn(3, A.shape[1])
    scale = config.lora_alpha / config.lora_r
    by_hand = module.base_layer(x) + scale * (x @ A[:4].T @ B[:, :4].T + x @ A[4:].T @ B[:, 4:].T)
    torch.testing.assert_close(module(x), by_hand, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ full fine-tuning, BitStack


def test_fine_tuning_trains_a_copy(backbone, stream, config):
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    backbone.attach(4, 8)  # the slot of others is not carried into the copy
    learner = learned(FineTuning(backbone, config), stream[:2])
    own = dict(learner.backbone.model.named_parameters())
    assert not any("lora" in name for name in own) and own.keys() == before.keys()
    moved = [name for name in before if not torch.equal(own[name], before[name])]
    assert any("embeddings" in name for name in moved) and any("query" in name for name in moved)
    kept = {n.replace(".base_layer", "").removeprefix("base_model.model."): p
            for n, p in backbone.model.named_parameters() if "lora" not in n}  # fmt: skip
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert learner.trained_parameters > sum(p.numel() for p in own.values())
    assert 0 <= learner.evaluate(stream[0]).accuracy <= 1


def test_bitstack_locks_through_the_stream(backbone, stream, config):
    learner = FineTuning(backbone, config, sparsity=0.3)
    learner.learn(stream[0])
    masks = learner.bitstack.masks
    assert learner.bitstack.stats()["frozen_pct"] == pytest.approx(30, abs=0.1)
    named = dict(learner.classifier.named_parameters())
    before = {n: named[n].detach().clone() for n in masks}
    learner.learn(stream[1])
    assert all(torch.equal(named[n][masks[n]], before[n][masks[n]]) for n in masks)
    assert any(not torch.equal(named[n], before[n]) for n in masks)
    assert learner.bitstack.tasks == ["imdb", "agnews"]
    assert sum(learner.bitstack.hook_calls.values()) > 0
    plain = learned(FineTuning(backbone, config), stream[:2])
    assert learner.stored_bytes > plain.stored_bytes
    free = next(n for n in masks if (~masks[n]).any())
    assert not torch.equal(dict(plain.classifier.named_parameters())[free], named[free])


def test_four_bit_weights_cannot_be_trained(backbone, config):
    with pytest.raises(SkillStackError, match="nf4 weights cannot be trained"):
        FineTuning(dataclasses.replace(backbone, quantize="nf4"), config)


# ------------------------------------------------------------------ TF-IDF


def test_tfidf_per_task_and_union(stream):
    apart, union = TfidfLogistic(), TfidfLogistic(union=True)
    for learner in (apart, union):
        learner.learn(stream)
        # one word tells the label; chance is 0.42
        assert np.mean([learner.evaluate(data).accuracy for data in stream]) > 0.7
    texts = stream[1].texts("eval")
    wrong = [stream[0].name] * len(texts)
    assert set(apart.predict(texts, wrong)) <= set(stream[0].task.label_names)
    assert list(union.predict(texts, wrong)) == list(union.predict(texts, ["agnews"] * len(texts)))
    assert apart.stored_bytes > 4 * apart.trained_parameters > 0


def test_tfidf_logits_are_log_probabilities(stream):
    apart, union = TfidfLogistic(), TfidfLogistic(union=True)
    texts = stream[1].texts("eval")
    for learner in (apart, union):
        learner.learn(stream)
        logits = learner.logits(texts)
        assert logits.shape == (len(texts), 3, 4) and logits.dtype == np.float32
        assert (logits[:, [0, 2], 2:] == -np.inf).all()
        over = (1, 2) if learner.union else 2
        np.testing.assert_allclose(logsumexp(logits, over), 0, atol=1e-5)
        logits[:, [0, 2]] = logits[:, [0, 2]] if learner.union else -np.inf
        best = [divmod(k, 4) for k in logits.reshape(len(texts), 12).argmax(1)]
        names = [stream[task].task.label_names[k] for task, k in best]
        assert list(learner.predict(texts, ["agnews"] * len(texts))) == names
        check_asked(learner, texts)


# ------------------------------------------------------------------ LDA on frozen states


def test_lda_told_the_task_and_told_nothing(backbone, stream, config):
    told, union = FrozenLDA(backbone, config), FrozenLDA(backbone, config, union=True)
    for learner in (told, union):
        learner.learn(stream)
        # one word tells the label; chance is 0.42 told the task, 0.14 not
        assert np.mean([learner.evaluate(data).accuracy for data in stream]) > 0.5
    texts = stream[1].texts("eval")
    logits = told.logits(texts)
    assert logits.shape == (len(texts), 3, 4) and logits.dtype == np.float32
    assert (np.isfinite(logits).sum((0, 2)) == len(texts) * np.array([2, 4, 2])).all()
    np.testing.assert_array_equal(union.logits(texts), logits)
    check_asked(told, texts)
    wrong = ["imdb"] * len(texts)
    best = [stream[0].task.label_names[k] for k in logits[:, 0].argmax(1)]
    assert list(told.predict(texts, wrong)) == best
    assert list(union.predict(texts, wrong)) == list(union.predict(texts, ["agnews"] * len(texts)))
    assert -1 in np.concatenate([union.evaluate(data).labels for data in stream])
    assert told.trained_parameters == 8 * (told._coef.shape[1] + 1)
    assert told.stored_bytes > 4 * told.trained_parameters and told.updates == 0
    assert list(told.predict([], [])) == list(union.predict([], [])) == []
    with pytest.raises(SkillStackError, match="'agnws' was not learned.*agnews"):
        told.predict(["a"], ["agnws"])


def test_lda_is_the_textbooks_with_the_covariance_within_pairs(backbone, stream, config):
    learner = FrozenLDA(backbone, config)
    learner.learn(stream)
    states = [backbone.embed(data.texts("train"), config.max_length) for data in stream]
    states = np.vstack(states).astype(np.float64)  # (texts, 3 depths, 32)
    features = (states / np.linalg.norm(states, axis=2, keepdims=True)).reshape(len(states), -1)
    starts = zip([0, 2, 6], stream, strict=True)
    pairs = np.concatenate([start + data.labels("train") for start, data in starts])
    means = np.array([features[pairs == k].mean(0) for k in range(8)])
    apart = features - means[pairs]
    coef = baselines.discriminants(apart.T @ apart, means, len(features))
    np.testing.assert_allclose(learner._coef, coef, rtol=1e-6, atol=1e-8 * np.abs(coef).max())
    scores = features @ coef.T - (coef * means).sum(1) / 2
    logits = learner.logits(stream[1].texts("train"))
    own = np.split(scores, np.cumsum([len(data.train) for data in stream])[:-1])[1]
    logits = logits[np.isfinite(logits)].reshape(-1, 8)
    np.testing.assert_allclose(logits, own, rtol=1e-4, atol=1e-3)


def test_lda_learns_task_after_task_in_any_order(backbone, stream, config):
    whole, parts = FrozenLDA(backbone, config), FrozenLDA(backbone, config)
    whole.learn(stream)
    for data in stream[::-1]:
        parts.learn([data])
    texts = stream[0].texts("eval")
    order = [6, 7, 2, 3, 4, 5, 0, 1]  # pairs: 2, 4 and 2 of the three tasks, from the last
    scale = np.abs(whole._coef).max()
    assert np.abs(parts._coef[np.argsort(order)] - whole._coef).max() < 1e-8 * scale
    np.testing.assert_allclose(parts._intercept, whole._intercept[order], rtol=1e-8)
    np.testing.assert_allclose(parts.logits(texts)[:, ::-1], whole.logits(texts), rtol=1e-5)
    with pytest.raises(SkillStackError, match="'imdb' was learned before"):
        parts.learn(stream[:1])


def test_a_label_without_a_row_is_never_lda_s_answer(backbone, stream, config):
    some = stream[1].train[stream[1].train["label"] != 2]
    learner = FrozenLDA(backbone, config)
    learner.learn([stream[0], dataclasses.replace(stream[1], train=some)])
    logits = learner.logits(stream[1].texts("eval"))
    assert (logits[:, 1, 2] == -np.inf).all() and np.isfinite(logits[:, 1, [0, 1, 3]]).all()


def test_an_unknown_or_repeated_task_is_one_line(backbone, stream, config):
    learner = learned(Sequential(backbone, config), stream[:1])
    with pytest.raises(SkillStackError, match="'agnews' was not learned"):
        learner.evaluate(stream[1])
    with pytest.raises(SkillStackError, match="'imdb' was learned before"):
        learner.learn(stream[0])


# ------------------------------------------------------------------ interrupted, and other rows


def test_an_interrupted_task_can_be_learned_again(backbone, stream, config, monkeypatch):
    def interrupt(batches, *_):
        yield next(iter(batches))
        raise KeyboardInterrupt

    learner = learned(EWC(backbone, config), stream[:1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "progress", interrupt)
        learner.learn(stream[1])
    assert not any(p.requires_grad for p in backbone.model.parameters())
    learner.learn(stream[1])
    assert torch.equal(vector(learner), vector(learned(EWC(backbone, config), stream[:2])))


def test_independent_asks_other_rows_of_a_task_anew(backbone, stream, config):
    learner = learned(Independent(backbone, config), stream[:1])
    few = dataclasses.replace(stream[0], eval=stream[0].eval.head(3), fingerprint="other")
    assert len(learner.evaluate(stream[0]).labels) > len(learner.evaluate(few).labels) == 3
