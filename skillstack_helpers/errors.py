"""The one exception of the suite, and the one door for what callers pass: texts, names, numbers,
folders. Every public function asks these checkers before it starts to work."""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from textwrap import shorten

_SHOWN = 120  # letters of a value that an error quotes
_PART = 255  # bytes of a file's name that file systems take


class SkillStackError(ValueError):
    """Bad input, named in one line. Jupyter and papermill show that line without a traceback."""

    def __str__(self) -> str:  # one line whatever was quoted: a frame of data, another's message
        return " ".join(super().__str__().splitlines())

    def _render_traceback_(self) -> list[str]:  # the hook IPython looks for
        return [f"{type(self).__name__}: {self}"]


def first_line(error: Exception) -> str:
    """What an error of another library says first, or what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value) -> str:
    """A value as an error quotes it: on one line, and not at length.

    >>> shown("a" * 200)[-3:]
    'aa…'
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # NumPy writes np.int64(3)
    line = " ".join(repr(value).split()) if not isinstance(value, str) else repr(value)
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


# ---------------------------------------------------------------------- names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` or `` (known: ...)``, for error messages about unknown names."""
    known = list(map(str, known))
    if close := difflib.get_close_matches(str(name), known, n=1):
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {shorten(', '.join(known), 3 * _SHOWN, placeholder=' …')})"


def checked_name(name: str, known: Iterable[str], what: str) -> str:
    """The name, or an error that says what it is and suggests the nearest known one."""
    known = list(known)
    if not isinstance(name, Hashable) or name not in known:
        raise SkillStackError(f"unknown {what} {shown(name)}{did_you_mean(name, known)}")
    return name


def checked_names(names: Iterable[str], what: str) -> list[str]:
    """Strings as a list, or an error for one string alone and for anything else."""
    names = checked_list(names, what)
    for name in names:
        if not isinstance(name, str):
            raise SkillStackError(f"{what} must be strings, got {shown(name)}")
    return names


# ---------------------------------------------------------------------- texts and lists


def checked_list(values: Iterable, what: str) -> list:
    """The values of a sequence, array or generator, which is read once; an error for what only
    looks like one: a string, a mapping, a data frame."""
    lone = isinstance(values, str | bytes | bytearray | Mapping) or hasattr(values, "columns")
    try:
        if not lone:
            return list(values)
    except TypeError:  # a number, None, an array of no dimension
        pass
    raise SkillStackError(f"{what} must be a sequence, got {shown(values)}")


def checked_texts(texts: Iterable[str], what: str = "texts") -> list[str]:
    """The texts as a list, or an error if they are anything but strings."""
    if isinstance(texts, str):
        raise SkillStackError(f"{what} must be a sequence of strings, got one string")
    return checked_names(texts, what)


def checked_text(text: str, what: str = "text") -> str:
    """One text, or an error if it is anything but a string."""
    if not isinstance(text, str):
        raise SkillStackError(f"{what} must be a string, got {shown(text)}")
    return text


# ---------------------------------------------------------------------- numbers


def checked_number(
    value,
    what: str,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
):
    """The number as it is, or an error unless it is finite and within these bounds; whole: an
    integer. Booleans are no numbers.

    >>> checked_number(3, "epochs", 1, whole=True)
    3
    >>> checked_number(float("nan"), "threshold")
    Traceback (most recent call last):
    skillstack_helpers.errors.SkillStackError: threshold must be finite, got nan
    """
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        kind = "an integer" if whole else "a number"
        raise SkillStackError(f"{what} must be {kind}, got {shown(value)}")
    if not whole and not math.isfinite(value):
        raise SkillStackError(f"{what} must be finite, got {value}")
    if None not in (above, below) and not above < value < below:
        raise SkillStackError(f"{what} must be between {above} and {below}, got {shown(value)}")
    for within, bound, words in (
        (above is None or value > above, above, "above"),
        (least is None or value >= least, least, "at least"),
        (below is None or value < below, below, "below"),
        (most is None or value <= most, most, "at most"),
    ):
        if not within:
            raise SkillStackError(f"{what} must be {words} {bound:,}, got {shown(value)}")
    return value


def checked_share(value, what: str) -> float:
    """A number strictly between 0 and 1, or an error."""
    return checked_number(value, what, above=0, below=1)


def checked_seed(value, what: str = "seed") -> int:
    """A seed that every generator takes, or an error."""
    if not 0 <= checked_number(value, what, whole=True) < 2**32:
        raise SkillStackError(f"{what} must be in 0 .. 2**32 - 1, got {shown(value)}")
    return value


def checked_numbers(values, what: str, *, nan: bool = False, infinite: bool = False):
    """Numbers of any shape as a float64 array, or an error for what is none, NaN or infinite."""
    import numpy as np  # not with the package: mistyped names are answered without it

    values = values if hasattr(values, "shape") else _listed(values)
    try:
        array = np.asarray(values)
        real = array.dtype.kind in "biuf" or all(isinstance(v, numbers.Real) for v in array.flat)
        if not real:  # numbers as objects are, as strings not
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):  # strings, None, rows of different lengths
        raise SkillStackError(f"{what} must be numbers, got {shown(values)}") from None
    if not nan and np.isnan(array).any():
        raise SkillStackError(f"{what} must be numbers, got NaN")
    if not infinite and np.isinf(array).any():
        raise SkillStackError(f"{what} must be finite, got {array[np.isinf(array)][0]}")
    return array


def _listed(values):
    """A generator as a list; everything else as it is."""
    return list(values) if hasattr(values, "__next__") else values


def checked_asked(asked, shape: tuple[int, int]):
    """Which heads are asked about which text, bool of that shape, None: all; an error for what is
    neither."""
    import numpy as np

    asked = np.ones(shape, dtype=bool) if asked is None else np.asarray(asked)
    if asked.shape != shape or asked.dtype != bool:
        raise SkillStackError(f"asked must be bool {shape}, got {asked.dtype} {asked.shape}")
    return asked


def checked_labels(labels, what: str, classes=None):
    """Label ids (n,) as an int64 array, or an error for what is none, or none of so many classes
    (one number, or one a row)."""
    import numpy as np

    array = checked_numbers(labels, what)
    if array.ndim != 1 or (array % 1 != 0).any():
        raise SkillStackError(f"{what} must be integers (n,), got {shown(labels)}")
    if classes is not None and array.size:
        out = np.flatnonzero((array < 0) | (array >= classes))
        if out.size:
            most = int(np.broadcast_to(classes, array.shape)[out[0]]) - 1
            raise SkillStackError(f"{what}: {array[out[0]]:g} is not one of 0 .. {most}")
    return array.astype(np.int64)


# ---------------------------------------------------------------------- everything else


def checked_path(path: str | os.PathLike, what: str = "folder") -> Path:
    """A path with ``~`` filled in, or an error for what can be none."""
    try:
        given = os.fspath(path)
        if not isinstance(given, str) or not given.strip() or "\0" in given:
            raise TypeError
        if any(len(part.encode("utf-8", "replace")) > _PART for part in given.split(os.sep)):
            raise TypeError
        return Path(given).expanduser()
    except (TypeError, RuntimeError):  # None, a number; a user who is not known
        raise SkillStackError(f"{what} must be a path, got {shown(path)}") from None


def checked_has(value, what: str, *names: str):
    """A value that has these attributes, or an error that says `what` it must be."""
    if isinstance(value, type) or not all(hasattr(value, name) for name in names):
        raise SkillStackError(f"{what}, got {shown(value)}")
    return value


def checked_router(router, *needs: str, unfitted: type[SkillStackError] = SkillStackError):
    """A fitted router, or an error; unfitted: the error to raise before its first `fit`."""
    if hasattr(router, "fit") and not hasattr(router, "classes_"):
        raise unfitted(f"this {type(router).__name__} is not fitted yet: call fit first")
    return checked_has(router, "router must be a fitted router", *needs)
