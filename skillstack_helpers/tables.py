"""Rows as people keep them: data frames, `datasets`, and parquet, CSV, TSV or JSONL files.

Which columns hold text and label, and what the labels are called, is taken from the arguments; what
is left out is guessed, and said.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
import pandas as pd

from .embedded import hashed_split, normalize
from .errors import SkillStackError, checked_list, first_line, shown
from .files import explain

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
TEXT = ("text", "sentence", "content", "review", "body", "question", "utterance", "message")
PAIR = ("text_pair",)
_HEADER = "; the first line of a file must name its columns"
LABEL = ("label", "labels", "category", "intent", "topic", "class", "target", "sentiment")


def find_table(folder: Path, split: str) -> Path | None:
    """The file ``<split>.parquet``, ``.csv``, ``.tsv`` or ``.jsonl`` in a folder; an error for
    two."""
    found = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").exists()]
    if len(found) > 1:
        raise SkillStackError(f"{folder} holds both {found[0].name} and {found[1].name}")
    return found[0] if found else None


def read_table(path: Path) -> pd.DataFrame:
    """All columns of a file; those of CSV and TSV are strings. Raises `SkillStackError` in one
    line."""
    kind = path.suffix[1:]
    try:
        if kind == "parquet":
            return pd.read_parquet(path)
        if kind == "jsonl":
            return pd.DataFrame(_json_lines(path))
        with path.open(encoding="utf-8-sig") as file:
            head = file.readline()
        between = "\t" if kind == "tsv" else ";" if ";" in head and "," not in head else ","
        how = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        return pd.read_csv(path, sep=between, **how)
    except SkillStackError:
        raise
    except UnicodeDecodeError:
        raise SkillStackError(f"data file {path} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise SkillStackError(f"data file {path} cannot be read: {explain(error)}") from None
    except Exception as error:  # pyarrow and pandas raise anything up to their own classes
        reason = first_line(error)
        raise SkillStackError(f"data file {path} is not readable {kind}: {reason}") from None


def _json_lines(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise SkillStackError(f"data file {path}: line {number} is not a JSON object")
            rows.append(row)
    return rows


def understand(
    name: str,
    parts: Mapping[str, pd.DataFrame],
    columns: Mapping[str, str | None],
    label_names: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows with text, text_pair, label (ids from 0) and split, and the label names.

    parts: ``"train"`` and, if there is one, ``"test"``. columns: whose are ``"text"``,
    ``"text_pair"`` and ``"label"``; None: guessed. label_names: in the order of the ids; None: the
    labels themselves, sorted. Rows without text or label are left out. Where there is no test set
    three texts of ten become it, by their hash. One printed line says what was guessed.
    """
    for split, part in parts.items():
        if not isinstance(part, pd.DataFrame):
            raise SkillStackError(f"{name}: {split} must be a data frame, got {shown(part)}")
    if label_names is not None:
        label_names = checked_list(label_names, f"{name}: label_names")
    for role, column in columns.items():
        if column is not None and not isinstance(column, Hashable):
            raise SkillStackError(f"{name}: {role} must name a column, got {shown(column)}")
    names = list(parts["train"].columns)
    named = {role: column for role, column in columns.items() if column}
    for role, column in named.items():
        if column not in names:
            raise SkillStackError(
                f"{name}: there is no column {column!r} for the {role}: {_listed(names)}"
            )
    text, pair, label = _guessed(name, parts["train"], named)
    wanted = [column for column in (text, pair, label) if column]
    said = [] if {"text", "label"} <= named.keys() else [f"text {text!r}, label {label!r}"]
    if pair and "text_pair" not in named:
        said.append(f"second text {pair!r}")
    rows = []
    for split, part in parts.items():
        for column in wanted:
            if column not in part:
                raise SkillStackError(
                    f"{name}: the {split} rows have no column {_listed([column])!r}: "
                    f"{_listed(part.columns)}{_HEADER}"
                )
        found = {"text": part[text], "text_pair": part[pair] if pair else "", "label": part[label]}
        rows.append(pd.DataFrame(found).assign(split=split))
    table = pd.concat(rows, ignore_index=True)
    for column in ("text", "text_pair") if pair else ("text",):
        table[column] = _strings(table[column])
    empty = table["text"].str.strip().eq("") | _missing(table["label"])
    if pair:
        empty |= table["text_pair"].str.strip().eq("")
    if empty.all():
        raise SkillStackError(f"{name}: no row has both a text and a label")
    if empty.any():
        said.append(f"{empty.sum()} rows without text or label left out")
    table = table[~empty].reset_index(drop=True)
    if label_names is None:
        values = table["label"].astype(str).str.strip()
        unknown = values[~values.isin(set(values[table["split"].eq("train")]))]
        if len(unknown):
            of = _listed(sorted(set(unknown)), 3)
            said.append(
                f"{len(unknown)} test rows left out, of labels without training rows ({of})"
            )
            table = table.drop(unknown.index).reset_index(drop=True)
    ids, found_names = _labels(name, table, label_names)
    if label_names is None:
        said.append(f"{len(found_names)} labels {_listed(found_names)}")
    table = table.assign(label=ids)
    if "test" not in parts:
        table["split"] = hashed_split(table["text"])
        n = table["split"].eq("test").sum()
        said.append(f"no test set, so {n} of {len(table)} rows are it, by their hash")
    keys = normalize(table["text"]) + "\x1f" + normalize(table["text_pair"])
    is_test = table["split"].eq("test")
    twice = (is_test & keys.isin(keys[~is_test])).sum()
    if twice:
        said.append(f"{twice} test rows stand in the training rows too and are not used")
    if said:
        print(f"{name}: {'; '.join(said)}")
    return table, found_names


def _guessed(name: str, rows: pd.DataFrame, named: Mapping[str, str]) -> tuple[str, str, str]:
    """The columns of text, second text ("": none) and label."""
    names = list(rows.columns)
    free = [column for column in names if column not in named.values()]
    label = named.get("label") or next((c for c in LABEL if c in free), None)
    if label is None and len(free) == 2 and "text" not in named:  # labels come again and again
        few, many = sorted(free, key=lambda column: rows[column].astype(str).nunique())
        label = few if rows[few].astype(str).nunique() < rows[many].astype(str).nunique() else None
    texts = [c for c in free if c != label and rows[c].map(lambda v: isinstance(v, str)).any()]
    text = named.get("text") or next((c for c in TEXT if c in free and c != label), None)
    if text is None and len(texts) == 1:
        text = texts[0]
    if label is None:
        rest = [column for column in free if column != text]
        label = rest[0] if len(rest) == 1 else None
    for role, column in (("text", text), ("label", label)):
        if column is None:
            raise SkillStackError(
                f"{name}: which column is the {role}? There are {_listed(names)}; say "
                f'{role}="..." (in a folder: in its meta.json){_HEADER}'
            )
    pair = named.get("text_pair") or next((c for c in PAIR if c in free), "")
    if pair and "text_pair" not in named and _strings(rows[pair]).str.strip().eq("").all():
        pair = ""  # a column that says nothing
    return text, pair, label


def _strings(values: pd.Series) -> pd.Series:
    """Text; numbers as they are written, nothing for what is missing."""
    return values.map(lambda value: "" if _is_missing(value) else str(value)).astype(object)


def _missing(labels: pd.Series) -> pd.Series:
    return labels.map(_is_missing) | labels.astype(str).str.strip().eq("")


def _is_missing(value) -> bool:
    return value is None or (np.isscalar(value) and bool(pd.isna(value)))


def _labels(
    name: str, table: pd.DataFrame, label_names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Label ids from 0, int64 (n,), and the names."""
    for value in table["label"]:
        if isinstance(value, list | tuple | dict | np.ndarray):
            raise SkillStackError(f"{name}: a row has the labels {value!r}; a task has one a row")
    numbers = pd.to_numeric(table["label"], errors="coerce")
    whole = not numbers.isna().any() and bool((numbers % 1 == 0).all())
    given = numbers.astype("int64") if whole else table["label"].astype(str).str.strip()
    train = given[table["split"].eq("train")]
    if label_names is None:
        if table["label"].map(lambda value: isinstance(value, bool | np.bool_)).all():
            known, label_names = [0, 1], ["false", "true"]
        elif not whole and not numbers.isna().any():
            raise SkillStackError(f"{name}: the labels are numbers with fractions, not classes")
        else:
            known = sorted(set(train))
            label_names = [str(value) for value in known]
    else:
        label_names = [str(one) for one in label_names]
        if len(set(label_names)) < len(label_names):
            raise SkillStackError(f"{name}: two label names are the same: {_listed(label_names)}")
        if not whole or set(map(str, train)) <= set(label_names):
            known, given = label_names, given.astype(str)
        else:
            first = 1 if given.min() == 1 and given.max() == len(label_names) else 0
            known = list(range(first, first + len(label_names)))
    ids = {value: i for i, value in enumerate(known)}
    odd = given[~given.isin(known)]
    if len(odd):
        where = table["split"][odd.index[0]]
        raise SkillStackError(
            f"{name}: label {odd.iloc[0]!r} of a {where} row is none of {_listed(map(str, known))}"
        )
    if len(label_names) < 2:
        raise SkillStackError(f"{name}: there is one label only: {label_names[0]!r}")
    return given.map(ids).to_numpy(dtype=np.int64), tuple(label_names)


def _listed(names, most: int = 6) -> str:
    names = [shorten(str(name), 30, placeholder="…") for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
