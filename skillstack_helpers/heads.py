"""What turns the backbone's output into answers: a classification head, or a prompt that writes.

Both kinds have the same methods: `train` on a task, `scores` for texts, and `tensors` to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from . import hardware, training
from .backbones import Backbone
from .config import TrainingConfig
from .errors import SkillStackError, checked_text
from .progress import progress
from .tasks import Task, TaskData

PROMPTS = 32  # per batch; answers do not depend on it beyond numerical noise
MIN_TEXT_TOKENS = 16  # a prompt must leave room for so many


class Evaluation(NamedTuple):
    """How one adapter and head did on a task's evaluation rows."""

    accuracy: float  # fraction in [0, 1]
    labels: np.ndarray  # predicted label ids, int64 (n,)
    logits: np.ndarray  # float32 (n, classes)


class _Head:
    """What both kinds share."""

    backbone: Backbone
    label_names: tuple[str, ...]

    def train(
        self,
        data: TaskData,
        config: TrainingConfig,
        rng: np.random.Generator,
        targets: np.ndarray | None = None,
    ) -> list[float]:
        """Train the backbone's slot (and the head) on a task; returns the loss of every step.

        targets: probabilities (rows, classes) to learn in place of the training rows' labels.
        """
        loss, lengths = self.loss(data, config.max_length, targets)
        parameters = [*self.backbone.lora_parameters.values(), *self.parameters()]
        hardware.advise(self.backbone, config)
        return training.train(
            loss,
            parameters,
            lengths,
            config,
            rng,
            lr=training.peak_lr(config, self.backbone.hidden_size),
            split=self.backbone.split_batches,
            half=self.backbone.dtype == "float16",
            description=f"train {data.name}",
        )

    def evaluate(self, data: TaskData, max_length: int) -> Evaluation:
        """Accuracy and predictions under the slot's adapter on a task's evaluation rows."""
        scores = self.scores(data.texts("eval"), max_length, f"evaluate {data.name}")
        labels = scores.argmax(1)
        return Evaluation(float((labels == data.labels("eval")).mean()), labels, scores)

    def calibration(self, data: TaskData, max_length: int) -> tuple[float, ...]:
        """1 - P(true label) of the task's routing rows, sorted; of those that are not trained on.

        The score of `conformal.threshold`; label sets by it are the smallest on average (Sadinle,
        Lei and Wasserman 2019).
        """
        learned = set(data.texts("train"))
        rows = [(t, y) for t, y in zip(data.texts("router"), data.labels("router"), strict=True)
                if t not in learned]  # fmt: skip
        if not rows:
            return ()
        texts, labels = zip(*rows, strict=True)
        scores = self.scores(texts, max_length, f"calibrate {data.name}").astype(np.float64)
        strange = 1 - softmax(scores, axis=1)[np.arange(len(labels)), labels]
        return tuple(np.sort(strange).round(6).tolist())


class LinearHead(_Head):
    """A linear layer on pooled features; a new one draws its weights from N(0, 0.02), bias
    (encoders only) zero."""

    prompt = None

    def __init__(
        self,
        backbone: Backbone,
        label_names: Sequence[str],
        tensors: Mapping[str, Tensor] | None = None,
    ):
        self.backbone, self.label_names = backbone, tuple(label_names)
        size, bias = (backbone.hidden_size, len(self.label_names)), backbone.kind == "encoder"
        if tensors is None:
            self.layer = torch.nn.Linear(*size, bias=bias)
            torch.nn.init.normal_(self.layer.weight, std=0.02)
            if bias:
                torch.nn.init.zeros_(self.layer.bias)
        else:  # `skip_init`: to answer must not draw from the user's random numbers
            bias = "bias" in tensors
            self.layer = torch.nn.utils.skip_init(torch.nn.Linear, *size, bias=bias)
            self.layer.load_state_dict(dict(tensors))
        self.layer = self.layer.to(backbone.device).requires_grad_(False)

    def parameters(self) -> list[Tensor]:
        return list(self.layer.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """A copy on the CPU: weight (classes, hidden), encoders also bias (classes,)."""
        named = self.layer.named_parameters()
        return {name: p.detach().to("cpu", copy=True) for name, p in named}

    def loss(
        self, data: TaskData, max_length: int, targets: np.ndarray | None = None
    ) -> tuple[Callable, list[int]]:
        """Mean cross-entropy of training rows, as ``loss(rows)``, and the rows' lengths."""
        rows = self.backbone.inputs(data.texts("train"), max_length, together=True)
        owners = np.zeros(len(rows), dtype=np.int64)
        labels = data.labels("train") if targets is None else targets
        loss = classification_loss([self], rows, labels, owners)
        return loss, list(map(len, rows))

    @torch.inference_mode()
    def scores(
        self,
        texts: Sequence[str],
        max_length: int,
        description: str = "evaluate",
    ) -> np.ndarray:
        """Logits under the slot's present adapter, float32 (n, classes), in input order."""
        rows = self.backbone.inputs(texts, max_length, together=True)
        out = np.empty((len(rows), self.layer.out_features), dtype=np.float32)
        above = self.backbone.first_adapted_layer is not None
        size = training.pass_size(self.backbone.device) if above else training.EVAL_BATCH
        for batch in progress(
            training.eval_batches([len(row) for row in rows], size), description, "batch"
        ):
            out[batch] = self.layer(_features(self.backbone, rows, batch)).cpu().numpy()
        return finite(out, self.backbone)


def finite(scores: np.ndarray, backbone: Backbone) -> np.ndarray:
    """The scores; an error where the model overflowed its precision: their argmax means nothing."""
    if np.isfinite(scores).all():
        return scores
    other = ": load it with dtype='float32' or 'bfloat16'" if backbone.dtype == "float16" else ""
    raise SkillStackError(f"{backbone.name}: scores are not finite in {backbone.dtype}{other}")


def _features(backbone: Backbone, inputs: Sequence, rows: np.ndarray) -> Tensor:
    padded = training.pad([inputs[i] for i in rows], backbone.pad_id, backbone.device)
    return backbone.features(*padded)  # (rows, hidden)


def classification_loss(
    heads: Sequence[LinearHead], inputs: Sequence, labels: np.ndarray, owners: np.ndarray
) -> Callable[[np.ndarray], Tensor]:
    """``loss(rows)``: mean cross-entropy, each row under the head (an index, (n,)) that owns it.
    inputs: of `Backbone.inputs`. labels: ids (n,), or of one head probabilities (n, classes)."""
    backbone = heads[0].backbone
    dtype = torch.int64 if labels.ndim == 1 else torch.float32
    targets = torch.tensor(labels, dtype=dtype, device=backbone.device)

    def loss(rows: np.ndarray) -> Tensor:
        features = _features(backbone, inputs, rows)
        present, mine = np.unique(owners[rows]), targets[torch.from_numpy(rows)]
        if len(present) == 1:
            scores = heads[present[0]].layer(features)
            return torch.nn.functional.cross_entropy(scores, mine)
        sums = []
        for k in present:
            at = torch.from_numpy(np.flatnonzero(owners[rows] == k)).to(features.device)
            scores = heads[k].layer(features[at])  # (rows of this head, classes)
            sums.append(torch.nn.functional.cross_entropy(scores, mine[at], reduction="sum"))
        return torch.stack(sums).sum() / len(rows)

    return loss


# ---------------------------------------------------------------------- heads that write


def instruction(task: Task) -> str:
    """The prompt of a task, with one place ``{text}`` for the rendered row."""
    labels = ", ".join(label_word(name) for name in task.label_names)
    return f"Choose the label that fits the text. Labels: {labels}.\n\n{{text}}\n\nLabel:"


def label_word(name: str) -> str:
    """A label name as it is written in prompts and answers: ``not_duplicate``, not duplicate."""
    return name.replace("_", " ")


class PromptHead(_Head):
    """A prompt around the text, after which the language model writes the label word and an end.

    prompt: a string with one place ``{text}``, see `instruction`. Raises `SkillStackError` for
    other prompts, for encoders, and for models without an end token or with an output layer that
    is not tied to the embeddings.
    """

    def __init__(self, backbone: Backbone, label_names: Sequence[str], prompt: str):
        if checked_text(prompt, "prompt").count("{text}") != 1:
            raise SkillStackError("a prompt needs one place {text} for the text")
        if backbone.tokenizer.eos_token_id is None:
            raise SkillStackError(f"{backbone.name} has no end token, so an answer would not end")
        _ = backbone.causal_lm  # an encoder, or untied embeddings: one line that says so
        self.backbone, self.label_names, self.prompt = backbone, tuple(label_names), prompt
        before, after = prompt.split("{text}")
        self._before = np.array(backbone.tokenizer(before)["input_ids"], dtype=np.int32)
        self._after = self._ids(after)

    def parameters(self) -> list[Tensor]:
        return []

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: a prompt has no weights."""
        return {}

    def _ids(self, text: str) -> np.ndarray:
        (ids,) = self.backbone.tokenize([text], add_special_tokens=False)
        return np.array(ids, dtype=np.int32)

    def encode(
        self, texts: Sequence[str], max_length: int, contexts: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Token ids (length,) of the prompt around each text, at most `max_length` of them.

        A text that is too long loses its middle: the instruction stays, and so do the text's
        beginning and end, where a question stands. contexts: one more string per text between
        instruction and text, with room of its own (again `max_length` tokens, the end is cut).
        """
        longest = max(len(self.answer_ids(label)) for label in self.label_names)
        most = self.backbone.max_positions - longest - 2  # what `generate` writes needs positions
        max_length = min(self.backbone.fits(max_length), most)
        room = max_length - len(self._before) - len(self._after)
        if room < MIN_TEXT_TOKENS:
            raise SkillStackError(
                f"max_length={max_length} leaves {max(room, 0)} tokens for the text beside the "
                f"instruction; at least {MIN_TEXT_TOKENS} are needed"
            )
        bodies = self.backbone.encode(texts, room, middle=True)
        shown = [self._ids(c)[:max_length] for c in contexts] if contexts is not None else None
        rows = []
        for i, body in enumerate(bodies):
            context = shown[i] if shown is not None else body[:0]
            rows.append(np.concatenate([self._before, context, body, self._after]))
        return rows

    def answer_ids(self, label: str) -> np.ndarray:
        """Token ids of a label word as the answer, with the end token."""
        end = np.array([self.backbone.tokenizer.eos_token_id], dtype=np.int32)
        return np.concatenate([self._ids(f" {label_word(label)}"), end])

    def loss(
        self, data: TaskData, max_length: int, targets: np.ndarray | None = None
    ) -> tuple[Callable, list[int]]:
        """Mean cross-entropy of the answers' tokens, as ``loss(rows)``, and the rows' lengths;
        prompts carry no loss."""
        if targets is not None:
            raise SkillStackError("a frame that writes learns label words and no probabilities")
        backbone = self.backbone
        prompts = self.encode(data.texts("train"), max_length)
        words = [self.answer_ids(label) for label in data.task.label_names]
        answers = [words[label] for label in data.labels("train")]
        whole = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
        inputs = backbone.states(whole, backbone.first_adapted_layer, together=True)
        output = backbone.causal_lm.get_output_embeddings()

        def loss(rows: np.ndarray) -> Tensor:
            ids, mask = training.pad([whole[i] for i in rows], backbone.pad_id, backbone.device)
            if inputs[0] is whole[0]:
                hidden = backbone.last_hidden(ids, mask)
            else:
                states = [inputs[i] for i in rows]
                hidden = backbone.last_hidden(*training.pad(states, 0, backbone.device))
            at = [
                (k, len(prompts[i]) - 1 + t)
                for k, i in enumerate(rows)
                for t in range(len(answers[i]))
            ]
            row, position = torch.tensor(at, device=ids.device).T  # before each answer's token
            scores = output(hidden[row, position]).float()  # (answer tokens, vocabulary)
            return torch.nn.functional.cross_entropy(scores, ids[row, position + 1])

        return loss, [len(row) for row in whole]

    @torch.inference_mode()
    def scores(
        self,
        texts: Sequence[str],
        max_length: int,
        description: str = "choose",
        batch_size: int = PROMPTS,
    ) -> np.ndarray:
        """log p(label word and end | prompt) under the slot's adapter, float32 (n, classes).

        The prompt is read once; each label word continues from its key-value cache.
        """
        lm, device = self.backbone.causal_lm, self.backbone.device
        prompts = self.encode(texts, max_length)
        words = [torch.tensor(self.answer_ids(n), dtype=torch.int64, device=device)
                 for n in self.label_names]  # fmt: skip
        out = np.empty((len(prompts), len(words)), dtype=np.float32)
        batches = training.eval_batches([len(row) for row in prompts], batch_size)
        for batch in progress(batches, description, "batch"):
            ids, mask = left_pad([prompts[i] for i in batch], self.backbone.pad_id, device)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            read = lm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
            )
            first, cache = read.logits[:, -1].float().log_softmax(-1), read.past_key_values
            for k, word in enumerate(words):
                given = word[:-1].expand(len(batch), -1)  # (batch, tokens of the word)
                new = lm(
                    input_ids=given,
                    attention_mask=torch.cat([mask, torch.ones_like(given)], 1),
                    position_ids=positions[:, -1:] + 1 + torch.arange(len(word) - 1, device=device),
                    past_key_values=cache,
                    use_cache=True,
                )
                following = new.logits.float().log_softmax(-1)  # (batch, tokens, vocabulary)
                rest = word[1:].expand(len(batch), -1)[..., None]
                later = following.gather(2, rest)[..., 0].sum(1)
                out[batch, k] = (first[:, word[0]] + later).cpu().numpy()
                cache.crop(1 - len(word))  # forget the word again
        return finite(out, self.backbone)


def left_pad(ids: Sequence[np.ndarray], pad_id: int, device: str) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask, int64 (batch, longest of this batch): the prompts end together."""
    padded, mask = training.pad([row[::-1] for row in ids], pad_id, device)
    return padded.flip(1), mask.flip(1)
