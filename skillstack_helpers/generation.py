"""What frames write: generation, reading it back, and examples from a frame's memory.

A frame grown with a prompt (``stack.grow(data, config, prompt=instruction(data.task))``) writes its
answers; `SkillStack.predict` chooses among the label words, `generate` lets the frame write, and
`read_answers` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import training
from .backbones import Backbone
from .errors import SkillStackError, checked_names, checked_number, checked_text, checked_texts
from .heads import PROMPTS, PromptHead, label_word, left_pad
from .progress import progress
from .stack import SkillStack, checked_stack


@torch.inference_mode()
def generate(
    stack: SkillStack,
    texts: Sequence[str],
    frame: str,
    head: str | None = None,
    contexts: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = PROMPTS,
) -> list[str]:
    """What a frame writes after each prompt, greedily, up to the end token.

    head: whose prompt (default: the frame's own). max_new_tokens: default two more than the longest
    label word has. contexts: see `PromptHead.encode`.
    """
    texts = checked_texts(texts)
    if max_new_tokens is not None:
        checked_number(max_new_tokens, "max_new_tokens", 1, 10**6, whole=True)
    checked_number(batch_size, "batch_size", 1, 10**6, whole=True)
    if contexts is not None:
        contexts = checked_texts(contexts, "contexts")
        if len(contexts) != len(texts):
            raise SkillStackError(f"{len(texts)} texts but {len(contexts)} contexts")
    prompt = checked_stack(stack).activate(frame, head)
    if not isinstance(prompt, PromptHead):
        raise SkillStackError(f"frame {head or frame!r} has a head and writes nothing")
    prompts = prompt.encode(texts, stack[frame].training["max_length"], contexts)
    longest = max(len(prompt.answer_ids(label)) for label in prompt.label_names)
    how = {"max_new_tokens": max_new_tokens or longest + 2, "do_sample": False}
    backbone, written = stack.backbone, np.empty(len(texts), dtype=object)
    batches = training.eval_batches([len(row) for row in prompts], batch_size)
    for batch in progress(batches, f"{frame} writes", "batch"):
        ids, mask = left_pad([prompts[i] for i in batch], backbone.pad_id, backbone.device)
        written[batch] = write(backbone, ids, mask, **how)
    return list(written)


def write(backbone: Backbone, ids: Tensor, mask: Tensor, **how) -> list[str]:
    """Continuations of left-padded prompts, as text, by `transformers`' own ``generate``."""
    tokenizer = backbone.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": backbone.pad_id}
    out = backbone.causal_lm.generate(input_ids=ids, attention_mask=mask, **ends, **how)
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def normalize_answer(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    checked_text(text)
    return " ".join(re.findall(r"\w+", text.casefold().replace("_", " ")))


def read_answers(written: Sequence[str], label_names: Sequence[str]) -> np.ndarray:
    """Label id of each written answer, int64 (n,); -1 where no label word can be read.

    An answer counts when, normalized, it is a label word or begins with one (the longest wins);
    anything else is not guessed at.

    >>> read_answers([" Not duplicate.", "duplicates", "well"], ["duplicate", "not_duplicate"])
    array([ 1, -1, -1])
    """
    written = checked_texts(written, "written")
    label_names = checked_names(label_names, "label_names")
    words = sorted(((normalize_answer(n), i) for i, n in enumerate(label_names)), reverse=True)
    words.sort(key=lambda pair: -len(pair[0]))
    labels = np.full(len(written), -1, dtype=np.int64)
    for k, text in enumerate(written):
        said = normalize_answer(text) + " "
        labels[k] = next((i for word, i in words if said.startswith(word + " ")), -1)
    return labels


# ---------------------------------------------------------------------- memory


def retrieve(
    memory: Sequence[str], labels: Sequence[str], questions: Sequence[str], k: int, words: int = 30
) -> list[str]:
    """For each question the k most similar texts of a frame's memory with their labels, as context.

    Similar by the cosine of word TF-IDF; of each text the first `words` words are shown.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    memory, questions = checked_texts(memory, "memory"), checked_texts(questions, "questions")
    labels = checked_names(labels, "labels")
    if len(labels) != len(memory):
        raise SkillStackError(f"{len(memory)} texts in memory but {len(labels)} labels")
    checked_number(words, "words", 1, 10**6, whole=True)
    if not 1 <= checked_number(k, "k", whole=True) <= len(memory):
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
