"""Rows of a data set on the Hugging Face hub: no more of its files is fetched than is needed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from .errors import SkillStackError, first_line
from .files import cache_dir, explain, hub_reachable, read_bytes, write_atomic
from .progress import progress

POOL_ROWS = 20_000  # rows of a split that are considered at all (amazon has 3.6 million)
_DIGITS = 16  # of its digest in the name of a file in the cache
_LEAST_GROUPS = 16  # row groups that are read where there are so many: sets may be sorted by label


def hub_rows(
    path: str, config: str | None, split: str, columns: Sequence[str], by_name: str | None = None
) -> pd.DataFrame:
    """At most `POOL_ROWS` rows of a split with these columns, always the same ones.

    Of parquet files only the row groups that are needed are fetched, evenly spaced over all, and
    of these only the columns; other files are fetched whole. What was read is kept in the cache
    folder and read from there ever after. Without a network a set is read that `datasets` has in
    its own cache; of more than `POOL_ROWS` rows the choice may be another one then. by_name: a
    column whose ids become the names of their classes. Raises `SkillStackError` in one line.
    """
    key = hashlib.sha256("\x1f".join([*columns, by_name or ""]).encode()).hexdigest()[:8]
    parts = (path.replace("/", "--"), config, split, key)
    folder, name = cache_dir() / "hub", "-".join(filter(None, parts))
    if (rows := _kept(folder, name)) is not None:
        return rows
    offline = hub_reachable()
    try:
        with _cached_only() if offline else contextlib.nullcontext():
            rows = _fetch(path, config, split, columns, by_name)
    except SkillStackError:
        raise
    except Exception as error:  # datasets and pyarrow raise anything from OSError on
        reason = offline or first_line(error)
        raise SkillStackError(
            f"cannot load {path} from the Hugging Face hub ({reason}); without a network "
            "set data_dir or SKILLSTACK_DATA, or use an embedded preset such as mini4"
        ) from None
    content = BytesIO()
    rows.to_parquet(content, index=False)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{name}.{digest[:_DIGITS]}.parquet", content.getvalue())
    except OSError as error:
        print(f"{path} cannot be kept in {folder} ({explain(error)}): it is fetched every time")
    return rows


def _kept(folder: Path, name: str) -> pd.DataFrame | None:
    """The rows that are in the cache, if they are those that were put there."""
    for path in sorted(folder.glob(f"{glob.escape(name)}.{'?' * _DIGITS}.parquet")):
        content = read_bytes(path)
        if hashlib.sha256(content).hexdigest()[:_DIGITS] == path.name.split(".")[-2]:
            return pd.read_parquet(BytesIO(content))
    return None


@contextlib.contextmanager
def _cached_only() -> Iterator[None]:
    """Inside, the hub's libraries read what they keep, and do not try to reach anybody."""
    import datasets
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _fetch(path, config, split, columns, by_name) -> pd.DataFrame:
    import datasets

    builder = datasets.load_dataset_builder(path, config)
    urls = [str(url) for url in (builder.config.data_files or {}).get(split, [])]
    if urls and all(url.endswith(".parquet") for url in urls):
        rows, features = _row_groups(path, urls, columns)
    else:
        dataset = datasets.load_dataset(path, config, split=split)
        _check(path, columns, dataset.column_names)
        features = dataset.features
        chosen = _some_of(len(dataset))
        rows = dataset.select_columns(list(columns)).select(chosen).to_pandas()
    if by_name:
        if not hasattr(features[by_name], "names"):
            raise SkillStackError(f"{path}: the column {by_name!r} has no class names any more")
        rows[by_name] = [features[by_name].names[i] for i in rows[by_name]]
    return rows


def _row_groups(path: str, urls: Sequence[str], columns: Sequence[str]):
    """The rows, and the features that the files note."""
    import datasets
    import pyarrow.parquet as pq

    files = [pq.ParquetFile(_open(url)) for url in urls]
    _check(path, columns, files[0].schema_arrow.names)
    sizes = [
        (file, g, file.metadata.row_group(g)) for file in files for g in range(file.num_row_groups)
    ]
    wanted = _LEAST_GROUPS + np.ceil(len(sizes) * POOL_ROWS / sum(g.num_rows for *_, g in sizes))
    spaced = np.linspace(0, len(sizes) - 1, int(min(len(sizes), wanted))).round().astype(int)
    chosen = [sizes[i] for i in spaced]
    bytes_ = sum(
        group.column(i).total_compressed_size
        for *_, group in chosen
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.split(".")[0] in columns
    )
    parts = [
        file.read_row_group(g, columns=list(columns)).to_pandas()
        for file, g, _ in progress(chosen, f"{path}, {bytes_ / 1e6:.1f} MB", "group")
    ]
    rows = pd.concat(parts, ignore_index=True)
    features = datasets.Features.from_arrow_schema(files[0].schema_arrow)
    return rows.loc[_some_of(len(rows))].reset_index(drop=True), features


def _some_of(n: int) -> np.ndarray:
    """Row numbers of a fixed choice of at most `POOL_ROWS` rows, in order."""
    if n <= POOL_ROWS:
        return np.arange(n)
    return np.sort(np.random.RandomState(0).permutation(n)[:POOL_ROWS])  # its stream is frozen


def _check(path: str, columns: Sequence[str], there: Sequence[str]) -> None:
    missing = [column for column in columns if column not in there]
    if missing:
        raise SkillStackError(f"{path} has no column {missing[0]!r} any more")


def _open(url: str) -> BinaryIO:
    """A file on the hub (or on disk) of which only what is read is fetched."""
    import fsspec

    system, place = fsspec.core.url_to_fs(url)
    return system.open(place, cache_type="none") if "://" in url else system.open(place)
