"""Frames that write their answers: LoRA frames of a causal language model on a `SkillStack`.

After ``stack.grow(data, config, prompt=instruction(data.task))``, trained with the loss on the
answer only, a frame has a prompt instead of a head. `SkillStack.predict` and `evaluate` then choose
among the label words; `generate` lets the frame write, and `read_answers` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import SkillStackError, training
from .tasks import Task, TaskData

if TYPE_CHECKING:
    from .backbones import Backbone
    from .config import RunConfig
    from .frames import SkillStack

BATCH = 32  # prompts per batch; answers do not depend on it beyond numerical noise
LEAST_ROOM = 16  # tokens of text a prompt must have room for


def instruction(task: Task) -> str:
    """The prompt of a task, with one place ``{text}`` for the rendered row."""
    labels = ", ".join(label_word(name) for name in task.label_names)
    return f"Choose the label that fits the text. Labels: {labels}.\n\n{{text}}\n\nLabel:"


def label_word(name: str) -> str:
    """A label name as it is written in prompts and answers: ``not_duplicate``, not duplicate."""
    return name.replace("_", " ")


def check_prompt(backbone: Backbone, prompt: str, max_length: int) -> None:
    """Raise `SkillStackError` unless prompt, length and backbone go together."""
    if prompt.count("{text}") != 1:
        raise SkillStackError("a prompt needs one place {text} for the text")
    if backbone.tokenizer.eos_token_id is None:
        raise SkillStackError(f"{backbone.name} has no end token, so an answer would not end")
    before, after = _frame_ids(backbone, prompt)
    room = max_length - len(before) - len(after)
    if room < LEAST_ROOM:
        raise SkillStackError(
            f"max_length={max_length} leaves {max(room, 0)} tokens for the text beside the "
            f"instruction; at least {LEAST_ROOM} are needed"
        )
    _ = backbone.causal_lm  # an encoder, or untied embeddings: one line that says so


def encode_prompts(
    backbone: Backbone,
    prompt: str,
    texts: Sequence[str],
    max_length: int,
    contexts: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Token ids (length,) of the prompt around each text, at most `max_length` of them.

    A text that is too long loses its middle: the instruction stays, and so do the text's beginning
    and end, where a question stands. contexts: one more string per text between instruction and
    text, with room of its own (again `max_length` tokens, the end is cut).
    """
    before, after = _frame_ids(backbone, prompt)
    room, rows = max_length - len(before) - len(after), []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise SkillStackError(f"texts must be strings, got {text!r}")
        key = (prompt, text, max_length)
        if key not in backbone._tokens:
            body = _ids(backbone, text)
            if len(body) > room:
                body = [*body[: room - room // 2], *body[len(body) - room // 2 :]]
            backbone._tokens[key] = np.array(body, dtype=np.int32)
        context = _ids(backbone, contexts[i])[:max_length] if contexts is not None else []
        parts = (before, context, backbone._tokens[key], after)
        rows.append(np.concatenate([np.array(part, dtype=np.int32) for part in parts]))
    return rows


def _frame_ids(backbone: Backbone, prompt: str) -> tuple[list[int], list[int]]:
    before, after = prompt.split("{text}")
    return backbone.tokenizer(before)["input_ids"], _ids(backbone, after)


def _ids(backbone: Backbone, text: str) -> list[int]:
    clean = text.encode("utf-8", "replace").decode()  # half an emoji becomes "?"
    return backbone.tokenizer(clean, add_special_tokens=False)["input_ids"]


def answer_ids(backbone: Backbone, label: str) -> np.ndarray:
    """Token ids of a label word as the answer, with the end token."""
    ids = _ids(backbone, f" {label_word(label)}")
    return np.array([*ids, backbone.tokenizer.eos_token_id], dtype=np.int32)


# ---------------------------------------------------------------------- learning


def train_answers(
    backbone: Backbone,
    prompt: str,
    data: TaskData,
    config: RunConfig,
    rng: np.random.Generator,
    progress: Callable = tqdm,
) -> list[float]:
    """Train the LoRA slot to write the label word and the end; returns the loss of every step.

    The loss is the mean cross-entropy of the answer's tokens; prompts carry none.
    """
    prompts = encode_prompts(backbone, prompt, data.texts("train"), config.max_length)
    words = [answer_ids(backbone, label) for label in data.task.label_names]
    answers = [words[label] for label in data.labels("train")]
    rows = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
    write_head = backbone.causal_lm.get_output_embeddings()

    def objective(batch: np.ndarray) -> Tensor:
        ids, mask = training.pad([rows[i] for i in batch], backbone.pad_id, backbone.device)
        hidden = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        at = [
            (k, len(prompts[i]) - 1 + t)
            for k, i in enumerate(batch)
            for t in range(len(answers[i]))
        ]
        row, position = torch.tensor(at, device=ids.device).T  # of the token before each answer's
        scores = write_head(hidden[row, position]).float()  # (answer tokens, vocabulary)
        return torch.nn.functional.cross_entropy(scores, ids[row, position + 1])

    return training.train(
        backbone,
        [],
        rows,
        data.labels("train"),
        epochs=config.epochs,
        lr=config.lr or backbone.lr,
        batch_size=config.batch_size,
        rng=rng,
        objective=objective,
        description=f"train {data.name}",
        progress=progress,
    )


# ---------------------------------------------------------------------- answering


def left_pad(ids: Sequence[np.ndarray], pad_id: int, device: str) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask, int64 (batch, longest of this batch): the prompts end together."""
    padded, mask = training.pad([row[::-1] for row in ids], pad_id, device)
    return padded.flip(1), mask.flip(1)


@torch.inference_mode()
def choice_scores(
    backbone: Backbone,
    label_names: Sequence[str],
    prompts: Sequence[np.ndarray],
    *,
    batch_size: int = BATCH,
    description: str = "choose",
    progress: Callable = tqdm,
) -> np.ndarray:
    """log p(label word and end | prompt) under the slot's adapter, float32 (n, classes).

    The prompt is read once; each label word continues from its key-value cache.
    """
    lm = backbone.causal_lm
    ids = [answer_ids(backbone, label) for label in label_names]
    words = [torch.tensor(row, dtype=torch.int64, device=backbone.device) for row in ids]
    out = np.empty((len(prompts), len(label_names)), dtype=np.float32)
    for batch in training.batch_bar(progress, _batches(prompts, batch_size), description):
        ids, mask = left_pad([prompts[i] for i in batch], backbone.pad_id, backbone.device)
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
                position_ids=positions[:, -1:] + 1 + torch.arange(len(word) - 1, device=ids.device),
                past_key_values=cache,
                use_cache=True,
            )
            following = new.logits.float().log_softmax(-1)  # (batch, tokens, vocabulary)
            later = following.gather(2, word[1:].expand(len(batch), -1)[..., None])[..., 0].sum(1)
            out[batch, k] = (first[:, word[0]] + later).cpu().numpy()
            cache.crop(1 - len(word))  # forget the word again
    return out


def _batches(prompts: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Longest first, so that memory runs out at once or never."""
    order = np.argsort([-len(row) for row in prompts], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.inference_mode()
def generate(
    stack: SkillStack,
    texts: Sequence[str],
    frame: str,
    head: str | None = None,
    contexts: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = BATCH,
    progress: Callable = tqdm,
) -> list[str]:
    """What a frame writes after each prompt, greedily, up to the end token.

    head: whose prompt (default: the frame's own). max_new_tokens: default two more than the longest
    label word has. contexts: see `encode_prompts`.
    """
    texts, adapter = list(texts), stack[frame]
    holder = stack[head] if head else adapter
    if holder.prompt is None:
        raise SkillStackError(f"frame {holder.name!r} has a head and writes nothing")
    stack.activate(adapter)
    backbone, length = stack.backbone, adapter.training["max_length"]
    prompts = encode_prompts(backbone, holder.prompt, texts, length, contexts)
    if max_new_tokens is None:
        longest = max(len(answer_ids(backbone, label)) for label in holder.label_names)
        max_new_tokens = longest + 2
    written = np.empty(len(texts), dtype=object)
    batches = _batches(prompts, batch_size)
    for batch in training.batch_bar(progress, batches, f"{frame} writes"):
        ids, mask = left_pad([prompts[i] for i in batch], backbone.pad_id, backbone.device)
        out = write(backbone, ids, mask, max_new_tokens=max_new_tokens, do_sample=False)
        written[batch] = out
    return list(written)


def write(backbone: Backbone, ids: Tensor, mask: Tensor, **how) -> list[str]:
    """Continuations of left-padded prompts, as text, by `transformers`' own ``generate``."""
    tokenizer = backbone.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": backbone.pad_id}
    out = backbone.causal_lm.generate(input_ids=ids, attention_mask=mask, **ends, **how)
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def normalize_answer(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("_", " ")))


def read_answers(written: Sequence[str], label_names: Sequence[str]) -> np.ndarray:
    """Label id of each written answer, int64 (n,); -1 where no label word can be read.

    An answer counts when, normalized, it is a label word or begins with one (the longest wins);
    anything else is not guessed at.
    """
    words = sorted(((normalize_answer(n), i) for i, n in enumerate(label_names)), reverse=True)
    words.sort(key=lambda pair: -len(pair[0]))
    labels = np.full(len(written), -1, dtype=np.int64)
    for k, text in enumerate(written):
        said = normalize_answer(text) + " "
        labels[k] = next((i for word, i in words if said.startswith(word + " ")), -1)
    return labels


# ---------------------------------------------------------------------- memory


def recall(
    memory: Sequence[str], labels: Sequence[str], questions: Sequence[str], k: int, words: int = 30
) -> list[str]:
    """For each question the k most similar texts of a frame's memory with their labels, as context.

    Similar by the cosine of word TF-IDF; of each text the first `words` words are shown.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not 1 <= k <= len(memory):
        raise SkillStackError(f"k must be in 1 .. {len(memory)} texts in memory, got {k}")
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(memory)
    similar = vectorizer.transform(questions) @ vectorizer.transform(memory).T
    nearest = np.argsort(-similar.toarray(), axis=1, kind="stable")[:, :k]
    return [as_context([(memory[i], labels[i]) for i in row], words) for row in nearest]


def as_context(examples: Sequence[tuple[str, str]], words: int = 30) -> str:
    """Examples as one string to stand before the text, most similar last."""
    return "".join(
        f"{' '.join(text.split()[:words])}\nLabel: {label_word(label)}\n\n"
        for text, label in reversed(examples)
    )
