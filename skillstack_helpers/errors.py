"""The one exception of the suite, and suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SkillStackError(ValueError):
    """Bad input, named in one line. Jupyter and papermill show that line without a traceback."""

    def _render_traceback_(self) -> list[str]:  # the hook IPython looks for
        return [f"{type(self).__name__}: {self}"]


def first_line(error: Exception) -> str:
    """What an error of another library says first, or what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` or `` (known: ...)``, for error messages about unknown names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def checked_name(name: str, known: Iterable[str], what: str) -> str:
    """The name, or an error that says what it is and suggests the nearest known one."""
    known = list(known)
    if name not in known:
        raise SkillStackError(f"unknown {what} {name!r}{did_you_mean(str(name), known)}")
    return name


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list, or an error if they are anything but strings."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        what = "one string" if isinstance(texts, str) else repr(texts)
        raise SkillStackError(f"texts must be a sequence of strings, got {what}")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise SkillStackError(f"texts must be strings, got {text!r}")
    return texts
