"""Probes: inputs made to mislead a router, and the template families they are made of.

`rewritten` puts a row's content into another task's surface format; `with_keywords` adds words
typical of another task. Both come in two families, ``train`` (an augmented router may learn from
it) and ``held_out`` (other words and other shapes; nothing is ever fitted on it). The families
were written before the routers that are tested on them were tuned; they are in tasks.toml. A task
without any gets formats made from its name and keywords learned from its routing rows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .embedded import normalize
from .errors import SkillStackError, checked_name, checked_number, checked_seed
from .tasks import KEYWORD_TEMPLATES, TaskData, checked_stream

FAMILIES = ("train", "held_out")
LEARNED = 12  # keywords of a family, of a task that has none of its own
# Formats of a task that has none of its own, "{name}" its name: of single texts, and of pairs.
_MADE = {
    "train": [
        ("{Name} text: {text}\nLabel:", "{Name}, first: {text}\nSecond: {text_pair}\nLabel:"),
        (
            "{Name} example: {text}\nIts class?",
            "{Name} pair: {text}\nWith: {text_pair}\nClass?",
        ),
        ("Task {name}\nInput: {text}\nOutput:", "Task {name}\nA: {text}\nB: {text_pair}\nOutput:"),
    ],
    "held_out": [
        ("<{tag}>{text}</{tag}>", "<{tag}>\n<l>{text}</l>\n<r>{text_pair}</r>\n</{tag}>"),
        (
            "## {Name}\n\n{text}\n\n**Your verdict?**",
            "## {Name}\n\n{text}\n\nversus\n\n{text_pair}\n\n**Your verdict?**",
        ),
        (
            "Someone from {name} sent us this: {text} What would you say to it?",
            "Someone from {name} sent us this: {text} And then: {text_pair} What of the two?",
        ),
        ("{text}\n\n(filed under {name})", "{text} / {text_pair}\n\n(filed under {name})"),
    ],
}


def reformat(text: str, text_pair: str, template: str) -> str:
    """One row's content in a template.

    A template with ``{text_pair}`` takes a pair; a single text is cut in two halves at the
    sentence end (else the space) nearest its middle. A template without takes a pair's two texts
    one after the other.

    >>> reformat("Is it far? No.", "", "Q: {text} A: {text_pair}")
    'Q: Is it far? A: No.'
    """
    if "{text_pair}" not in template:
        return template.replace("{text}", f"{text} {text_pair}".strip())
    if not text_pair:
        text, text_pair = halves(text)
    # Not str.format twice: a text may hold braces of its own.
    before, _, rest = template.partition("{text}")
    if "{text_pair}" in before:
        start, _, between = before.partition("{text_pair}")
        return f"{start}{text_pair}{between}{text}{rest}"
    return f"{before}{text}" + rest.replace("{text_pair}", text_pair)


def halves(text: str) -> tuple[str, str]:
    """A text cut at the sentence end, else the space, nearest its middle; one word stays whole."""
    cuts = [found.end() for found in re.finditer(r"[.!?]\s+", text)]
    cuts = cuts or [found.end() for found in re.finditer(r"\s+", text)]
    if not cuts:
        return text, ""
    cut = min(cuts, key=lambda end: abs(end - len(text) / 2))
    return text[:cut].strip(), text[cut:].strip()


def formats(data: TaskData, family: str) -> tuple[str, ...]:
    """A task's templates of a family; ``train`` begins with the task's own, if it has one."""
    own = data.task.template
    templates = data.task.formats.get(checked_name(family, FAMILIES, "family"))
    if not templates:
        name = data.name.replace("_", " ").replace("-", " ")
        says = {"name": name, "Name": name.capitalize(), "tag": data.name}
        says |= {"text": "{text}", "text_pair": "{text_pair}"}
        templates = tuple(pair["{text_pair}" in own].format(**says) for pair in _MADE[family])
    return (own, *templates) if family == "train" and own != "{text}" else templates


def keywords(stream: Sequence[TaskData], family: str) -> dict[str, tuple[str, ...]]:
    """Words typical of each task of a stream, by its name.

    A task without keywords of its own gets `LEARNED` that a larger share of its routing texts holds
    than of the others', the most telling first; every second one of these is held out.
    """
    checked_name(family, FAMILIES, "family")
    stream = checked_stream(stream)
    found = {data.name: data.task.keywords.get(family, ()) for data in stream}
    if all(found.values()):
        return found
    held = {data.name: [set(_WORD.findall(text)) for text in _texts(data)] for data in stream}
    shares = {name: Counter(w for text in texts for w in text) for name, texts in held.items()}
    for name in [name for name, words in found.items() if not words]:
        rest = sum((counts for other, counts in shares.items() if other != name), Counter())
        mine, others = len(held[name]), sum(map(len, held.values())) - len(held[name])
        lead = {w: n / mine - rest[w] / max(others, 1) for w, n in shares[name].items()}
        best = sorted((word for word in lead if lead[word] > 0), key=lambda w: (-lead[w], w))
        found[name] = tuple(best[: 2 * LEARNED][family == "held_out" :: 2])
    return found


_WORD = re.compile(r"[^\W\d_]{3,}")


def _texts(data: TaskData) -> pd.Series:
    return normalize(data.router["text"] + " " + data.router["text_pair"])


def rewritten(
    stream: Sequence[TaskData], split: str, family: str, seed: int, one_format: bool = False
) -> pd.DataFrame:
    """Each row of a split in the surface format of another task of the stream.

    Columns: text, task (where the content comes from), wears (whose format). Which format, and
    which of its templates, is decided by the hash of seed and text, so every router sees the same
    rewritten texts. one_format: always the first template, as in `formatted`.
    """
    return _reformatted(stream, split, family, seed, one_format, others=True)


def formatted(stream: Sequence[TaskData], split: str, family: str, seed: int) -> pd.DataFrame:
    """Each row of a split in the first template of its own task: every task wears a format."""
    return _reformatted(stream, split, family, seed, True, others=False)


def _checked(stream: Sequence[TaskData], split: str, seed: int) -> list[TaskData]:
    checked_seed(seed)
    return checked_stream(stream, checked_name(split, ("train", "router", "eval"), "split"))


def _reformatted(stream, split, family, seed, one_format, others) -> pd.DataFrame:
    stream, rows = _checked(stream, split, seed), []
    checked_name(family, FAMILIES, "family")
    for data in stream:
        targets = [one for one in stream if one is not data] if others else [data]
        if not targets:
            raise SkillStackError("a text can wear another task's format only with two tasks")
        part = getattr(data, split)
        for text, pair in zip(part["text"], part["text_pair"], strict=True):
            draw = _draw(seed, "format", data.name, text, pair)
            target = targets[draw.integers(len(targets))]
            templates = formats(target, family)
            template = templates[0 if one_format else draw.integers(len(templates))]
            rows.append((reformat(text, pair, template), data.name, target.name))
    return pd.DataFrame(rows, columns=["text", "task", "wears"])


def with_keywords(
    stream: Sequence[TaskData], split: str, family: str, seed: int, n: int = 5
) -> pd.DataFrame:
    """Each row of a split, rendered as usual, with n keywords of another task of the stream.

    Columns: text, task, trap (whose keywords). The ``held_out`` family has other keywords and
    other templates than ``train``.
    """
    templates = KEYWORD_TEMPLATES[checked_name(family, FAMILIES, "family")]
    stream = _checked(stream, split, seed)
    checked_number(n, "n", 1, whole=True)
    if len(stream) < 2:
        raise SkillStackError("keywords of another task need a stream of two tasks")
    words_of, rows = keywords(stream, family), []
    for name, words in words_of.items():
        if len(words) < n:
            raise SkillStackError(
                f"task {name!r} has {len(words)} keywords, not {n}: its routing texts hold no more "
                "words that others do not"
            )
    for data in stream:
        others = [one.name for one in stream if one is not data]
        for text in data.texts(split):
            draw = _draw(seed, "keywords", data.name, text)
            trap = others[draw.integers(len(others))]
            words = words_of[trap]
            chosen = ", ".join(draw.choice(words, n, replace=False))
            before, _, behind = templates[draw.integers(len(templates))].partition("{text}")
            before, behind = (part.replace("{keywords}", chosen) for part in (before, behind))
            rows.append((f"{before}{text}{behind}", data.name, trap))
    return pd.DataFrame(rows, columns=["text", "task", "trap"])


def _draw(*key) -> np.random.Generator:
    joined = "\x1f".join(map(str, key)).encode("utf-8", "replace")
    return np.random.default_rng(list(hashlib.sha256(joined).digest()))
