import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, training
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.heads import LinearHead, classification_loss

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=300)


@given(lengths, st.integers(1, 17), st.integers(0, 99))
def test_an_epoch_holds_every_row_once(lengths, batch_size, seed):
    batches = training.train_batches(lengths, batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert len(batches) == -(-len(lengths) // batch_size)


@given(lengths)
def test_evaluation_visits_every_row_once_longest_first(lengths):
    batches = list(training.eval_batches(lengths))
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[order]) <= 0).all()


def test_batches_are_shuffled_and_little_is_padded():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 160, 512)
    one, two = (training.train_batches(lengths, 8, rng) for _ in range(2))
    assert any(set(a) != set(b) for a, b in zip(one, two, strict=True))
    padded = sum(len(b) * lengths[b].max() for b in one)
    assert padded < 1.25 * lengths.sum()  # padding to the maximum would give about 1.9


def test_pad_by_hand():
    ids, mask = training.pad([np.array([5, 6]), np.array([7])], 0, "cpu")
    assert ids.tolist() == [[5, 6], [7, 0]] and mask.tolist() == [[1, 1], [1, 0]]


def fit(backbone, seed=0, **options):
    backbone.attach(4, 8)
    torch.manual_seed(seed)
    backbone.reset_lora()
    head = LinearHead(backbone, ("no", "yes"))
    texts = [f"class{i % 2} of the and" for i in range(32)]
    given = {"epochs": 6, "batch_size": 4} | options
    config = TrainingConfig(**{k: given.pop(k) for k in ("epochs", "batch_size")})
    rng = np.random.default_rng(seed)
    ids, labels = backbone.encode(texts, 16), np.arange(32) % 2
    loss = classification_loss([head], ids, labels, np.zeros(32, dtype=int))
    parameters = [*backbone.lora_parameters.values(), *head.parameters()]
    losses = training.train(
        loss, parameters, [len(row) for row in ids], config, rng, lr=1e-2, **given
    )
    return head, losses, texts, labels


def test_training_learns_a_simple_rule(backbone):
    head, losses, texts, labels = fit(backbone)
    assert len(losses) == 48
    assert np.mean(losses[-8:]) < 0.3 < np.mean(losses[:8])
    logits = head.scores(texts, 16)
    assert (logits.argmax(1) == labels).mean() > 0.95


def test_training_repeats_to_the_last_bit(backbone):
    _, one, *_ = fit(backbone)
    _, two, *_ = fit(backbone)
    _, other, *_ = fit(backbone, seed=1)
    assert one == two != other


def test_only_adapter_and_head_change(backbone):
    backbone.attach(4, 8)
    before = {n: p.clone() for n, p in backbone.model.named_parameters() if ".lora_" not in n}
    fit(backbone)
    after = dict(backbone.model.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_logits_come_back_in_input_order(backbone):
    head, _, texts, _ = fit(backbone, epochs=1)
    texts = [t + " the" * (i % 7) for i, t in enumerate(texts)]
    forward = head.scores(texts, 16)
    backward = head.scores(texts[::-1], 16)[::-1]
    np.testing.assert_allclose(forward, backward, atol=1e-5)
    assert head.scores([], 16).shape == (0, 2)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_still_train(backbone, steps):
    _, losses, *_ = fit(backbone, epochs=steps, batch_size=32)
    assert len(losses) == steps
    assert max(p.abs().max() for n, p in backbone.lora_parameters.items() if "lora_B" in n) > 0


# ------------------------------------------------------------------ what may go wrong


def test_an_interrupted_training_leaves_nothing_trainable(backbone):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(backbone, after_backward=interrupted)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert all(p.grad is None for p in backbone.lora_parameters.values())


def test_a_diverged_training_is_an_error(backbone):
    def first():
        return next(iter(backbone.lora_parameters.values()))

    with pytest.raises(SkillStackError, match=r"train: the loss is not finite; lower lr"):
        fit(backbone, after_backward=lambda: first().data.mul_(float("nan")))
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_the_default_learning_rate_of_llamas_is_the_published_one():
    assert [training.default_lr(size) for size in (384, 576, 2048)] == [2e-3, 5e-4, 2e-4]


def test_seeded_puts_the_users_random_state_back():
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    with training.seeded(3, 1) as one:
        drawn = torch.rand(1)
    with training.seeded(3, 1) as two:
        assert torch.rand(1) == drawn and one.random() == two.random()
    assert torch.equal(torch.rand(2), expected)
