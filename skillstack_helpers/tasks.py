"""Tasks, the streams made of them, and the sources their rows come from.

A task is a text-classification dataset: described in tasks.toml, or one's own (`Task.from_frames`,
`from_dataset`, `from_folder`). `load_task` returns disjoint training, routing and evaluation rows;
same arguments, same rows, on every machine.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from .config import MOST_ROWS
from .embedded import READERS, hash_order, normalize
from .errors import (
    SkillStackError,
    checked_has,
    checked_list,
    checked_name,
    checked_number,
    checked_path,
    did_you_mean,
    shown,
)
from .files import read_json
from .hub import hub_rows
from .tables import find_table, read_table, understand

SOURCES = ("folder", "hub", "embedded")
OWN_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_META = ("text", "text_pair", "label", "label_names", "template", "family", "licence")
MAX_CHARS = 2000  # every field is cut here, in all sources, so that they hold the same text


@dataclass(frozen=True)
class Hub:
    """Where a task lives on the Hugging Face hub.

    Several text columns are joined by a space; ``{column}`` in `text` or `text_pair` makes it a
    template over the columns.
    """

    path: str
    config: str | None = None
    text: tuple[str, ...] = ("text",)
    text_pair: str | None = None
    label: str = "label"
    train: str = "train"
    test: str = "test"
    by_name: bool = False  # labels are looked up by their names, rows of other labels left out

    @property
    def columns(self) -> list[str]:
        """What is read, the label last."""
        fields = [*self.text, *([self.text_pair] if self.text_pair else [])]
        names = [n for one in fields for n in (re.findall(r"{(\w+)}", one) or [one])]
        return list(dict.fromkeys([*names, self.label]))

    def rendered(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Text, text_pair and label of rows with these columns."""

        def one(field: str) -> pd.Series:
            if "{" not in field:
                return rows[field].fillna("")
            return pd.Series([field.format(**row) for row in rows.to_dict("records")], rows.index)

        text = pd.concat([one(field) for field in self.text], axis=1).agg(" ".join, axis=1)
        pair = one(self.text_pair) if self.text_pair else ""
        return pd.DataFrame({"text": text, "text_pair": pair, "label": rows[self.label]})


def template_fields(template: str) -> set[str]:
    """The fields that a template fills in, with anything but their names, which templates made by
    others might hold, counted as another field."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError:  # a single brace
        return {template}
    return {"".join(filter(None, part)) for part in parts}


@dataclass(frozen=True)
class Task:
    """One text-classification dataset; label ids follow the order of `label_names`.

    >>> task = Task("toy", "sentiment", ("negative", "positive"), template="Review: {text}")
    >>> task.render(pd.DataFrame({"text": ["Loved it."], "text_pair": [""], "label": [1]}))
    ['Review: Loved it.']
    """

    name: str
    family: str  # sentiment, stars, topic, pair, nli, qa, intent: labels mean or look the same
    label_names: tuple[str, ...]
    template: str = "{text}"  # renders a row to the text that backbone and router both see
    hub: Hub | None = None
    embedded: str | None = None  # the name of a reader of embedded.READERS
    # For probes.py, by probe family ("train", "held_out"): surface formats and words of the task.
    formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, hash=False)
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, hash=False)
    small: bool = False  # gives what it has where a budget asks for more
    licence: str | None = None  # of the rows
    # The rows of a task of one's own: text, text_pair, label and split.
    rows: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_frames(
        cls,
        name: str,
        train: pd.DataFrame,
        test: pd.DataFrame | None = None,
        *,
        text: str | None = None,
        text_pair: str | None = None,
        label: str | None = None,
        label_names: Sequence[str] | None = None,
        template: str | None = None,
        family: str | None = None,
        licence: str | None = None,
    ) -> Task:
        """A task of one's own rows.

        text, text_pair, label: names of columns; None: guessed, and said in a printed line.
        Labels are ids or strings; label_names: in the order of the ids. Without `test` three
        texts of ten, by hash, are it. family: tasks of one family have labels that mean the same;
        None: a family of its own. Raises `SkillStackError` in one line.

        >>> rows = pd.DataFrame({"text": ["a", "b", "c", "d"], "label": ["no", "yes"] * 2})
        >>> Task.from_frames("mine", rows[:2], rows[2:], text="text", label="label").label_names
        mine: 2 labels no, yes
        ('no', 'yes')
        """
        if not isinstance(name, str) or not OWN_NAME.fullmatch(name):
            raise SkillStackError(
                f"a task cannot be called {shown(name)}: its name must match [a-z0-9_-]{{1,64}}"
            )
        if name in TASKS:
            raise SkillStackError(f"{name!r} is a task of the suite: give yours another name")
        parts = {"train": train} | ({} if test is None else {"test": test})
        columns = {"text": text, "text_pair": text_pair, "label": label}
        rows, names = understand(name, parts, columns, label_names)
        for what, given in (("template", template), ("family", family), ("licence", licence)):
            if not isinstance(given, str | None):
                raise SkillStackError(f"{name}: {what} must be a string, got {shown(given)}")
        paired = bool(rows["text_pair"].ne("").any())
        template = template or ("{text}\n{text_pair}" if paired else "{text}")
        if template_fields(template) != ({"text", "text_pair"} if paired else {"text"}):
            needs = "{text} and {text_pair}" if paired else "{text}, and no {text_pair}"
            raise SkillStackError(f"{name}: the template must hold {needs}: {template!r}")
        facts = {"family": family or name, "licence": licence, "small": True}
        return cls(name, label_names=names, template=template, rows=rows, **facts)

    @classmethod
    def from_dataset(cls, name: str, train, test=None, **more) -> Task:
        """A task of `datasets`: a `Dataset` for each split, or a `DatasetDict` with ``train`` and
        perhaps ``test``. The names of labels are those of a `ClassLabel`. more: as in
        `from_frames`."""
        if isinstance(train, Mapping):
            if "train" not in train:
                raise SkillStackError(f"{name}: no split 'train' among {', '.join(train)}")
            train, test = train["train"], train.get("test") if test is None else test
        for one in (train, test):
            if one is not None:
                checked_has(one, f"{shown(name)}: rows must be a datasets.Dataset", "to_pandas")
        features = getattr(train, "features", {})
        labelled = [n for n, one in features.items() if hasattr(one, "names")]
        if more.get("label") is None and len(labelled) == 1:
            more["label"] = labelled[0]
        if more.get("label_names") is None and more.get("label") in labelled:
            more["label_names"] = features[more["label"]].names
        frames = [None if one is None else one.to_pandas() for one in (train, test)]
        return cls.from_frames(name, *frames, **more)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Task:
        """A task of one's own files: ``train`` and perhaps ``test`` as parquet, CSV, TSV or JSONL,
        and perhaps a meta.json with arguments of `from_frames` (label_names, template, family,
        licence, names of columns). It is called like the folder."""
        folder = checked_path(folder, "data folder")
        if not folder.is_dir():
            raise SkillStackError(f"data folder {folder} does not exist")
        files = {split: find_table(folder, split) for split in ("train", "test")}
        if files["train"] is None:
            raise SkillStackError(f"{folder} holds no train.csv, .tsv, .jsonl or .parquet")
        meta = folder / "meta.json"
        facts = read_json(meta) if meta.exists() else {}
        if not isinstance(facts, dict):
            raise SkillStackError(f"{meta} is not a JSON object")
        facts = {key: value for key, value in facts.items() if key in _META}
        for key, value in facts.items():
            if key == "label_names" and (not isinstance(value, list) or not value):
                raise SkillStackError(f"{meta}: label_names must be a list of strings")
            if key != "label_names" and not isinstance(value, str | None):
                raise SkillStackError(f"{meta}: {key} must be a string, got {value!r}")
        read = {split: read_table(path) for split, path in files.items() if path}
        return cls.from_frames(folder.name, read["train"], read.get("test"), **facts)

    def render(self, rows: pd.DataFrame) -> list[str]:
        """The rows as model input, one string each."""
        pairs = zip(rows["text"], rows["text_pair"], strict=True)
        return [self.template.format(text=text, text_pair=pair) for text, pair in pairs]


@dataclass(frozen=True, eq=False)
class TaskData:
    """Rows of one task: `train`, `router` and `eval`, each with text, text_pair and label.

    Compared by identity: the same rows have the same `fingerprint`.

    >>> rows = pd.DataFrame({"text": ["Dull."], "text_pair": [""], "label": [0]})
    >>> task = Task("toy", "sentiment", ("negative", "positive"), template="Review: {text}")
    >>> data = TaskData(task, rows, rows, rows, source="folder", fingerprint="", budget={})
    >>> data.texts("train"), data.labels("train")
    (['Review: Dull.'], array([0]))
    """

    task: Task
    train: pd.DataFrame
    router: pd.DataFrame
    eval: pd.DataFrame
    source: str  # folder, hub, embedded, or own (a task of one's own)
    fingerprint: str  # SHA-256 of all rows
    budget: dict[str, int]  # n_train, n_router, n_eval and seed, as `load_task` was given them

    @property
    def name(self) -> str:
        return self.task.name

    @functools.cached_property
    def train_fingerprint(self) -> str:
        """SHA-256 of the training rows alone: a larger `n_eval` does not change it."""
        return hashlib.sha256(_as_bytes(self.train)).hexdigest()

    def texts(self, split: str) -> list[str]:
        """Rendered texts of ``"train"``, ``"router"`` or ``"eval"``."""
        return self.task.render(getattr(self, split))

    def labels(self, split: str) -> np.ndarray:
        """Label ids of a split, int64 (n,)."""
        return getattr(self, split)["label"].to_numpy()


def checked_data(data, *splits: str) -> TaskData:
    """A task's rows, or an error if they are no `TaskData`, or if one of these splits is empty,
    has a text that is none or a label that the task does not have."""
    if not isinstance(data, TaskData):
        raise SkillStackError(f"data must be a TaskData (of load_task), got {shown(data)}")
    if len(data.task.label_names) < 2:
        raise SkillStackError(f"{data.name} has one label only: {data.task.label_names[0]!r}")
    for split in splits:
        rows, where = getattr(data, split), f"{data.name}, {split} rows"
        pair = ("text_pair",) if "{text_pair}" in data.task.template else ()
        _check_columns(rows, where)
        if not len(rows):
            raise SkillStackError(f"{where}: there are none (n_{split})")
        _check_strings(rows, ("text", *pair), where)
        _check_labels(rows, data.task, where)
    return data


def checked_stream(stream: Iterable[TaskData], *splits: str) -> list[TaskData]:
    """A stream as a list, each task checked by `checked_data`."""
    stream = checked_list(stream, "stream")
    if not stream:
        raise SkillStackError("the stream has no task")
    return [checked_data(data, *splits) for data in stream]


def _as_bytes(rows: pd.DataFrame) -> bytes:
    return rows.to_json(orient="values").encode()


def _task(name: str, entry: Mapping) -> Task:
    """The task that an entry of tasks.toml describes."""
    fields = dict(entry)
    try:
        if "hub" in fields:
            text = fields["hub"].get("text", list(Hub.text))
            columns = _strings([text] if isinstance(text, str) else text, "hub.text")
            fields["hub"] = Hub(**fields["hub"] | {"text": columns})
        labels = _strings(fields.pop("labels", None), "labels")
        formats = fields.pop("formats", {})
        formats = {key: _strings(formats[key], f"formats.{key}") for key in formats}
        words = {key: tuple(some.split(", ")) for key, some in fields.pop("keywords", {}).items()}
        return Task(name=name, label_names=labels, formats=formats, keywords=words, **fields)
    except (AttributeError, TypeError) as error:
        raise SkillStackError(f"tasks.toml: the entry of task {name!r} is wrong: {error}") from None


def _strings(value, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{key} must be a list of strings")  # a lone string would become letters
    return tuple(value)


_TOML = tomllib.loads(Path(__file__).with_name("tasks.toml").read_text(encoding="utf-8"))
TASKS: dict[str, Task] = {name: _task(name, entry) for name, entry in _TOML["tasks"].items()}
PRESETS: dict[str, tuple[str, ...]] = {n: tuple(names) for n, names in _TOML["streams"].items()}
KEYWORD_TEMPLATES = {family: tuple(some) for family, some in _TOML["keyword_templates"].items()}


# Whose texts no task of a stream owns.
OUT_OF_SCOPE: dict[str, str] = _TOML["out_of_scope"]


def find_task(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a task of one's own below `data_dir` (None: the variable SKILLSTACK_DATA), None
    for a task of the suite; an error that suggests the nearest name for any other."""
    if not isinstance(name, str):
        raise SkillStackError(f"unknown task {shown(name)}: a task is called by a string")
    if name in TASKS:
        return None
    folder = _data_folder(data_dir)
    own = [] if folder is None else own_tasks(folder)
    if name in own:
        return folder / name
    where = f"{folder} holds no folder of that name with train.csv (.tsv, .jsonl, .parquet)"
    if folder is None:
        where = "one of your own is found below data_dir or SKILLSTACK_DATA"
    raise SkillStackError(f"unknown task {name!r}{did_you_mean(name, [*TASKS, *own])}; {where}")


def get_task(name: str, data_dir: str | Path | None = None) -> Task:
    """The task of that name, of the suite or one's own; see `find_task`."""
    folder = find_task(name, data_dir)
    return TASKS[name] if folder is None else Task.from_folder(folder)


def own_tasks(folder: str | Path) -> list[str]:
    """Names of the folders in a folder that hold training rows, sorted."""
    folder = checked_path(folder, "data folder")
    if not folder.is_dir():
        raise SkillStackError(f"data folder {folder} does not exist")
    return sorted(path.name for path in folder.iterdir() if find_table(path, "train"))


def _data_folder(given: str | Path | None) -> Path | None:
    given = given or os.environ.get("SKILLSTACK_DATA")
    return checked_path(given, "data_dir") if given else None


# ------------------------------------------------------------------ the sources


def _read_folder(task: Task, folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        raise SkillStackError(f"data folder {folder} does not exist")
    parts = []
    for split in ("train", "test"):
        path = find_table(folder / task.name, split)
        if path is None:
            raise SkillStackError(f"data file {folder / task.name / split}.parquet does not exist")
        rows = read_table(path)
        if "label" in rows and rows["label"].isin(task.label_names).all():
            rows["label"] = rows["label"].map(task.label_names.index)
        parts.append(_checked(rows.assign(split=split), task, str(path)))
    return pd.concat(parts, ignore_index=True)


def _read_hub(task: Task) -> pd.DataFrame:
    if task.hub is None:
        raise SkillStackError(f"task {task.name!r} is not on the hub: use source='embedded'")
    hub, parts, n_read = task.hub, [], 0
    for split, hub_split in (("train", hub.train), ("test", hub.test)):
        named = hub.label if hub.by_name else None
        found = hub_rows(hub.path, hub.config, hub_split, hub.columns, named)
        rows = hub.rendered(found)
        if hub.by_name:
            rows = rows[rows["label"].isin(task.label_names)]
            rows = rows.assign(label=rows["label"].map(task.label_names.index))
        n_read += len(rows)
        where = f"{hub.path} {hub_split}"
        parts.append(_checked(rows.assign(split=split), task, where, drop_empty=True))
    kept = pd.concat(parts, ignore_index=True)
    if len(kept) < n_read:
        print(f"{task.name}: {n_read - len(kept)} of {n_read} rows of {hub.path} dropped: no text")
    return kept


def _read_embedded(task: Task) -> pd.DataFrame:
    if task.embedded is None:
        raise SkillStackError(f"task {task.name!r} is not embedded: use source 'hub' or 'folder'")
    rows = READERS[checked_name(task.embedded, READERS, "embedded reader")]()
    rows = rows[rows["label"].isin(task.label_names)]
    rows = rows.assign(label=rows["label"].map(task.label_names.index))
    return _checked(rows, task, f"embedded task {task.name}")


def _checked(rows: pd.DataFrame, task: Task, where: str, drop_empty: bool = False) -> pd.DataFrame:
    """Text, text_pair, label and split, cleaned; raises on the first row that cannot be used.

    `drop_empty` drops rows without text instead: nobody can correct a set on the hub.
    """
    takes_pair = "{text_pair}" in task.template
    if not takes_pair:
        pair = rows["text_pair"] if "text_pair" in rows else pd.Series("", rows.index)
        rows = rows.assign(text_pair=pair.astype(object).where(pair.notna(), ""))
    _check_columns(rows, where)
    rows = rows[["text", "text_pair", "label", "split"]].reset_index(drop=True)
    _check_strings(rows, ("text", "text_pair"), where)
    for column in ("text", "text_pair"):
        clean = rows[column].astype(object).str.replace(r"<br />|\\n", " ", regex=True)
        rows[column] = clean.str.split().str.join(" ").str[:MAX_CHARS]
    empty = rows["text"].eq("") | (rows["text_pair"].eq("") & takes_pair)
    if empty.any() and not drop_empty:
        raise SkillStackError(f"{where}: row {int(empty.idxmax())}: the text is empty")
    rows = rows[~empty]
    labels = _check_labels(rows, task, where)
    return rows.assign(label=labels.astype("int64")).reset_index(drop=True)


def _check_columns(rows: pd.DataFrame, where: str) -> None:
    if not isinstance(rows, pd.DataFrame):
        raise SkillStackError(f"{where} must be a data frame, got {shown(rows)}")
    missing = [column for column in ("text", "text_pair", "label") if column not in rows]
    if missing:
        raise SkillStackError(f"{where}: column {missing[0]!r} is missing")


def _check_strings(rows: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    for column in columns:
        bad = ~rows[column].map(lambda value: isinstance(value, str)).to_numpy(bool)
        if bad.any():
            row = int(bad.argmax())
            value = shown(rows[column].iloc[row])
            raise SkillStackError(f"{where}: row {row}: {column} is {value}, not a string")


def _check_labels(rows: pd.DataFrame, task: Task, where: str) -> pd.Series:
    """The labels as numbers, each an id of the task's."""
    labels = pd.to_numeric(rows["label"], errors="coerce")
    bad = labels.isna() | (labels < 0) | (labels >= len(task.label_names)) | (labels % 1 != 0)
    if bad.any():
        place = int(bad.to_numpy().argmax())
        raise SkillStackError(
            f"{where}: row {rows.index[place]}: label {shown(rows['label'].iloc[place])} is not "
            f"one of 0 .. {len(task.label_names) - 1} "
            f"({task.name} has {len(task.label_names)} classes)"
        )
    return labels


def _read(task: Task, source: str, data_dir: str | Path | None) -> tuple[pd.DataFrame, str]:
    if task.rows is not None:
        return _checked(task.rows, task, task.name), "own"
    folder = _data_folder(data_dir)
    if source == "auto":
        in_folder = folder and (task.embedded is None or (folder / task.name).exists())
        source = "folder" if in_folder else "hub" if task.embedded is None else "embedded"
    if checked_name(source, SOURCES, "source") == "folder":
        if not folder:
            raise SkillStackError("source 'folder' needs data_dir or the variable SKILLSTACK_DATA")
        return _read_folder(task, folder), source
    return (_read_hub(task) if source == "hub" else _read_embedded(task)), source


# ------------------------------------------------------------------ choosing rows


def load_task(
    name: str | Task,
    n_train: int,
    n_router: int,
    n_eval: int,
    seed: int,
    source: str = "auto",
    data_dir: str | Path | None = None,
) -> TaskData:
    """Choose disjoint rows of one task: of the suite, of a folder below the data folder, or a
    `Task` of one's own.

    `n_train` and `n_eval` count per class, `n_router` per task (as evenly over the classes as
    the rows allow). `train` and `router` come from the train split, `eval` from the test split;
    no normalized text stands in two of them. A row's rank is the SHA-256 of seed and text, so a
    smaller budget is a subset of a larger one. Source ``"auto"`` is the folder (`data_dir`, else
    the variable SKILLSTACK_DATA) where there is one, else the task's own source; an embedded task
    takes the folder only where that holds it. A task marked `small`, as one's own are, gives what
    it has where a budget asks for more, and says so. Raises `SkillStackError` when there are too
    few rows, saying how many there are, and before anything is read when a number is negative or
    no integer.

    >>> data = load_task("bbc", n_train=2, n_router=5, n_eval=3, seed=0, source="embedded")
    >>> len(data.train), len(data.router), len(data.eval)  # 5 classes
    (10, 5, 15)
    """
    budget = {"n_train": n_train, "n_router": n_router, "n_eval": n_eval, "seed": seed}
    # An int of Python's: a NumPy integer would not go into JSON.
    budget = {key: int(checked_number(value, key, 0, MOST_ROWS if key != "seed" else None,
                                      whole=True)) for key, value in budget.items()}  # fmt: skip
    checked_name(source, ("auto", *SOURCES), "source")
    task = name if isinstance(name, Task) else get_task(name, data_dir)
    name = task.name
    n_train, n_router, n_eval, seed = budget.values()
    rows, source = _read(task, source, data_dir)
    rows["key"] = normalize(rows["text"]) + "\x1f" + normalize(rows["text_pair"])
    pool, held_out = (rows[rows["split"].eq(split)] for split in ("train", "test"))
    held_out = held_out[~held_out["key"].isin(pool["key"])]
    salt, have = f"{seed}\x1f{name}", f"asks for more than there is: {name} ({source}) has only"
    pool, held_out = _ranked(pool, salt), _ranked(held_out, salt)
    classes, most = len(task.label_names), n_train
    for parameter, part, split in (
        ("n_train", pool, "training"),
        ("n_eval", held_out, "evaluation"),
    ):
        counts = np.bincount(part["label"], minlength=classes)
        if task.small and counts.min() > 0 and parameter == "n_train":
            # A class keeps for routing what is asked of it, or a quarter of what it has.
            kept = np.minimum(n_router // classes, counts // 4)
            most = np.where(counts - kept < n_train, counts - counts // 4, n_train)
        elif counts.min() < budget[parameter] and not (task.small and counts.max() > 0):
            raise SkillStackError(
                f"{parameter}={budget[parameter]} {have} {counts.min()} {split} rows of class "
                f"{task.label_names[counts.argmin()]!r}"
            )
    trained = pool["rank"] < np.broadcast_to(most, classes)[pool["label"]]
    train, rest = pool[trained], pool[~trained]
    if len(rest) < n_router and not (task.small and len(rest)):
        raise SkillStackError(
            f"n_router={n_router} {have} {len(rest)} rows left beside n_train={n_train} per class"
        )
    router = rest.sort_values(["rank", "order"], kind="stable").head(n_router)
    chosen = [
        part.sort_values("order", kind="stable", ignore_index=True)[["text", "text_pair", "label"]]
        for part in (train, router, held_out[held_out["rank"] < n_eval])
    ]
    asked = {"training": n_train * classes, "routing": n_router, "evaluation": n_eval * classes}
    fewer = [
        f"{len(part)} of {count} {split}"
        for part, (split, count) in zip(chosen, asked.items(), strict=True)
        if len(part) < count
    ]
    if fewer:
        print(f"{name}: fewer rows than asked for: {', '.join(fewer)}")
    fingerprint = hashlib.sha256(b"".join(map(_as_bytes, chosen))).hexdigest()
    return TaskData(task, *chosen, source=source, fingerprint=fingerprint, budget=budget)


def _ranked(rows: pd.DataFrame, salt: str) -> pd.DataFrame:
    """Each text once, in hash order, with its rank within its class."""
    rows = rows[~rows["key"].duplicated()]
    rows = rows.assign(order=hash_order(rows["key"], salt)).sort_values("order", kind="stable")
    return rows.assign(rank=rows.groupby("label").cumcount())


# ------------------------------------------------------------------ command line


def snapshot(preset: str, out: str | Path, source: str = "hub") -> list[Path]:
    """Write a preset's tasks in the folder layout: the very rows that the source offers.

    A run on the snapshot sees the same rows as a run on the source itself. Returns its data files.
    """
    written, out = [], checked_path(out, "out")
    for name in PRESETS[checked_name(preset, PRESETS, "preset")]:
        task = TASKS[name]
        rows, _ = _read(task, source, None)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in rows.groupby("split"):
            path = folder / f"{split}.parquet"
            part[["text", "text_pair", "label"]].to_parquet(path, index=False)
            written.append(path)
        meta = {"task": name, "label_names": task.label_names, "source": source}
        if task.hub:
            meta |= {"hub": task.hub.path, "hub_config": task.hub.config}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return written


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m skillstack_helpers.tasks")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("snapshot", help="write a preset in the folder layout")
    command.add_argument("--preset", required=True)
    command.add_argument("--out", required=True)
    command.add_argument("--source", default="hub", choices=("hub", "embedded"))
    arguments = parser.parse_args(argv)
    try:
        for path in snapshot(arguments.preset, arguments.out, arguments.source):
            print(path)
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
