"""Probes: inputs made to mislead a router, and the template families they are made of.

`rewritten` puts a row's content into another task's surface format; `with_keywords` adds words
typical of another task. Both come in two families, ``train`` (an augmented router may learn from
it) and ``held_out`` (other words and other shapes; nothing is ever fitted on it). The families
were written before the routers that are tested on them were tuned; they are in tasks.toml.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .errors import SkillStackError, checked_name
from .tasks import KEYWORD_TEMPLATES, TaskData

FAMILIES = ("train", "held_out")


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
    templates = data.task.formats.get(checked_name(family, FAMILIES, "family"))
    if not templates:
        raise SkillStackError(f"no format templates for task {data.task.name!r}")
    own = data.task.template
    return (own, *templates) if family == "train" and own != "{text}" else templates


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


def _reformatted(stream, split, family, seed, one_format, others) -> pd.DataFrame:
    rows = []
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
    if len(stream) < 2:
        raise SkillStackError("keywords of another task need a stream of two tasks")
    rows = []
    for data in stream:
        others = [one.task for one in stream if one is not data]
        for text in data.texts(split):
            draw = _draw(seed, "keywords", data.name, text)
            trap = others[draw.integers(len(others))]
            words = trap.keywords.get(family, ())
            if len(words) < n:
                raise SkillStackError(f"task {trap.name!r} has {len(words)} keywords, not {n}")
            chosen = ", ".join(draw.choice(words, n, replace=False))
            before, _, behind = templates[draw.integers(len(templates))].partition("{text}")
            before, behind = (part.replace("{keywords}", chosen) for part in (before, behind))
            rows.append((f"{before}{text}{behind}", data.name, trap.name))
    return pd.DataFrame(rows, columns=["text", "task", "trap"])


def _draw(*key) -> np.random.Generator:
    joined = "\x1f".join(map(str, key)).encode("utf-8", "replace")
    return np.random.default_rng(list(hashlib.sha256(joined).digest()))
