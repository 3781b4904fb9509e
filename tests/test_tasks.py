import io
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_rows, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, embedded, hub, tasks
from skillstack_helpers.embedded import READERS, normalize
from skillstack_helpers.tasks import OUT_OF_SCOPE, PRESETS, TASKS, Hub, Task, load_task


def load(data_dir, name="imdb", n_train=4, n_router=6, n_eval=5, seed=0):
    return load_task(name, n_train, n_router, n_eval, seed, source="folder", data_dir=data_dir)


def test_tasks_and_probes_load_neither_torch_nor_scikit_learn():
    heavy = "{'torch', 'sklearn', 'transformers', 'datasets'} & set(sys.modules)"
    code = f"import sys, skillstack_helpers.probes; sys.exit(str({heavy} or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.stderr.strip()


def test_presets_hold_known_tasks_once():
    for name, stream in PRESETS.items():
        assert len(set(stream)) == len(stream), name
        assert all(task in TASKS for task in stream), name
    assert PRESETS["hard5"] == PRESETS["hard5_reversed"][::-1]
    orders = {PRESETS["hard8"], *(PRESETS[f"hard8_order{k}"] for k in range(2, 9))}
    assert len(orders) == 8 and len({frozenset(order) for order in orders}) == 1


def test_every_task_renders_both_texts_and_has_a_source():
    for task in TASKS.values():
        assert (task.hub is None) != (task.embedded is None), task.name
        assert task.embedded is None or task.embedded in READERS, task.name
        least = 1 if task.name in OUT_OF_SCOPE.values() else 2
        assert len(set(task.label_names)) == len(task.label_names) >= least, task.name
        rendered = task.template.format(text="one", text_pair="two")
        assert "one" in rendered
        takes_pair = task.hub is not None and task.hub.text_pair is not None
        if task.hub is not None:
            assert takes_pair == ("two" in rendered), task.name


ENTRY = """
family = "qa"
labels = ["no", "yes"]
template = "{text} | {text_pair}"
hub.path = "some/where"
hub.text = "question"
hub.text_pair = "passage"
formats.train = ["Q: {text}\\nP: {text_pair}"]
keywords.train = "is it, can you"
"""


def test_an_entry_of_the_toml_is_a_task():
    task = tasks._task("new", tomllib.loads(ENTRY))
    assert task == Task(
        "new",
        "qa",
        ("no", "yes"),
        "{text} | {text_pair}",
        hub=Hub("some/where", text=("question",), text_pair="passage"),
        formats={"train": ("Q: {text}\nP: {text_pair}",)},
        keywords={"train": ("is it", "can you")},
    )
    assert "Q: " not in repr(task)  # the texts of probes would drown everything else


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('labels = ["no", "yes"]', "", "labels must be a list of strings"),
        ('["no", "yes"]', '"no"', "labels must be a list of strings"),  # not ("n", "o")
        (
            '["Q: {text}\\nP: {text_pair}"]',
            '"Q: {text}"',
            "formats.train must be a list of strings",
        ),
        ('hub.text = "question"', "hub.text = [3]", "hub.text must be a list of strings"),
        ('family = "qa"', "", "'family'"),
        ("hub.path", "hub.pth", "'pth'"),
        ("template", "templet", "'templet'"),
        ('keywords.train = "is it, can you"', "keywords.train = 3", "split"),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_the_task(old, new, words):
    assert old in ENTRY
    with pytest.raises(SkillStackError, match=r"tasks.toml: the entry of task 'new'") as caught:
        tasks._task("new", tomllib.loads(ENTRY.replace(old, new)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_task_data_is_compared_as_an_object(data_dir):  # not frame by frame, which raises
    data, again = load(data_dir), load(data_dir)
    assert data == data
    assert data != again
    assert len({data, again}) == 2
    assert data.fingerprint == again.fingerprint


def test_task_data_knows_its_budget_and_its_training_rows(data_dir):
    data = load(data_dir, seed=np.int64(3))
    assert data.budget == {"n_train": 4, "n_router": 6, "n_eval": 5, "seed": 3}
    assert all(type(count) is int for count in data.budget.values())  # they go into JSON
    more = load(data_dir, n_eval=9, seed=3)
    assert more.train_fingerprint == data.train_fingerprint
    assert more.fingerprint != data.fingerprint
    assert load(data_dir, n_train=5, seed=3).train_fingerprint != data.train_fingerprint


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"n_train": -1}, "n_train must be at least 0, got -1"),
        ({"n_router": -3}, "n_router must be at least 0, got -3"),
        ({"n_eval": 2.5}, "n_eval must be an integer, got 2.5"),
        ({"seed": "42"}, "seed must be an integer, got '42'"),
    ],
)
def test_an_impossible_budget_is_told_before_anything_is_read(tmp_path, wrong, words):
    with pytest.raises(SkillStackError) as caught:
        load(tmp_path / "nowhere", **wrong)
    assert str(caught.value) == words


def test_budgets_count_per_class_and_per_task(data_dir):
    data = load(data_dir, "agnews")
    assert (data.train["label"].value_counts() == 4).all()
    assert (data.eval["label"].value_counts() == 5).all()
    assert len(data.router) == 6
    assert data.router["label"].value_counts().max() == 2  # as even as 6 rows on 4 classes get


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_are_disjoint_and_repeatable(data_dir, seed):
    data, again = load(data_dir, seed=seed), load(data_dir, seed=seed)
    assert data.fingerprint == again.fingerprint
    parts = [set(normalize(part["text"])) for part in (data.train, data.router, data.eval)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 8 + 6 + 10


def test_smaller_budget_is_a_subset_and_seeds_differ(data_dir):
    small, large = load(data_dir, n_train=3), load(data_dir, n_train=9)
    assert set(small.train["text"]) < set(large.train["text"])
    assert load(data_dir, seed=1).fingerprint != load(data_dir, seed=2).fingerprint


def test_order_of_rows_in_the_file_does_not_matter(tmp_path):
    folder = write_folder(tmp_path / "a", ["imdb"])
    before = load(folder).fingerprint
    path = folder / "imdb" / "train.parquet"
    pd.read_parquet(path).sample(frac=1, random_state=1).to_parquet(path)
    assert load(folder).fingerprint == before


def test_text_in_both_splits_is_never_evaluated_on(tmp_path):
    folder = write_folder(tmp_path / "a", ["imdb"])
    train = pd.read_parquet(folder / "imdb" / "train.parquet")
    test = pd.read_parquet(folder / "imdb" / "test.parquet")
    leaked = train.head(20).assign(text=train["text"].head(20).str.upper() + "  ")
    pd.concat([leaked, test]).to_parquet(folder / "imdb" / "test.parquet")
    data = load(folder, n_eval=20)
    assert not set(normalize(data.eval["text"])) & set(normalize(leaked["text"]))


def test_too_few_rows_says_how_many_there_are(data_dir):
    with pytest.raises(SkillStackError, match=r"n_train=61 .* only 60 training rows of class"):
        load(data_dir, n_train=61)
    with pytest.raises(SkillStackError, match=r"n_eval=99 .* only 30 evaluation rows"):
        load(data_dir, n_eval=99)
    with pytest.raises(SkillStackError, match=r"n_router=115 .* only 112 rows left"):
        load(data_dir, n_router=115)


def spoil(column, value):
    def change(rows):
        rows = rows.astype({column: object})
        rows.loc[3, column] = value
        return rows

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda rows: rows.drop(columns="text"), "column 'text' is missing"),
        (lambda rows: rows.drop(columns="label"), "column 'label' is missing"),
        (lambda rows: rows.drop(columns="text_pair"), "column 'text_pair' is missing"),
        (spoil("label", None), "row 3: label"),
        (spoil("label", -1), "row 3: label -1 is not one of 0 .. 1"),
        (spoil("label", 2), "row 3: label 2 is not one of 0 .. 1 (qqp has 2 classes)"),
        (lambda rows: rows.assign(label=rows["label"] + 0.5), "row 0: label 0.5"),
        (spoil("text", "  \n "), "row 3: the text is empty"),
        (spoil("text_pair", ""), "row 3: the text is empty"),
        (spoil("text", None), "row 3: text is "),
        (lambda rows: rows.assign(text=7), "row 0: text is 7, not a string"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, words):
    folder = write_folder(tmp_path, ["qqp"])
    path = folder / "qqp" / "train.parquet"
    rows = change(pd.read_parquet(path))
    rows.to_parquet(path)
    with pytest.raises(SkillStackError) as caught:
        load(folder, "qqp")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_null_text_pair_is_accepted_where_the_template_takes_none(tmp_path):
    folder = write_folder(tmp_path, ["imdb"])
    want = load(folder).fingerprint
    for split in ("train", "test"):
        path = folder / "imdb" / f"{split}.parquet"
        pd.read_parquet(path).assign(text_pair=None).to_parquet(path)
    assert load(folder).fingerprint == want
    for split in ("train", "test"):
        path = folder / "imdb" / f"{split}.parquet"
        pd.read_parquet(path).drop(columns="text_pair").to_parquet(path)
    assert load(folder).fingerprint == want


def test_missing_places_are_named(tmp_path, data_dir, monkeypatch):
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    with pytest.raises(SkillStackError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(SkillStackError, match=r"yelp5/train.parquet does not exist"):
        load(data_dir, "yelp5")
    with pytest.raises(SkillStackError, match="needs data_dir or the variable"):
        load(None)
    with pytest.raises(SkillStackError, match=r"unknown task 'imbd' \(did you mean 'imdb'\?\)"):
        load(data_dir, "imbd")
    folder = write_folder(tmp_path / "cut", ["imdb"])
    path = folder / "imdb" / "train.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SkillStackError, match="not readable parquet"):
        load(folder)


def test_auto_takes_the_folder_where_it_can(data_dir, monkeypatch):
    monkeypatch.setenv("SKILLSTACK_DATA", str(data_dir))
    assert load_task("imdb", 2, 2, 2, 0).source == "folder"
    assert load_task("movies", 2, 2, 2, 0).source == "embedded"


def test_home_is_expanded(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    want = load(data_dir).fingerprint
    assert load(f"~/{data_dir.name}").fingerprint == want
    monkeypatch.setenv("SKILLSTACK_DATA", f"~/{data_dir.name}")
    assert load_task("imdb", 4, 6, 5, 0).fingerprint == want


@pytest.mark.parametrize("name", PRESETS["mini8"])
def test_embedded_tasks_are_real_and_enough(name, monkeypatch):
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    data = load_task(name, 16, 96, 16, 42)
    assert data.source == "embedded"
    assert (data.eval["label"].value_counts() == 16).all()
    assert np.median([len(text) for text in data.texts("train")]) > 30


def test_headline_negatives_come_from_the_same_topic_and_split():
    articles, rows = embedded.bbc_articles(), embedded.headline()
    topic = articles.set_index("body")["topic"]
    owner = articles.drop_duplicates("headline", keep=False).set_index("headline")
    wrong = rows[rows["label"].eq("other_article") & rows["text"].isin(owner.index)]
    assert len(wrong) > 800
    assert (topic[wrong["text_pair"]].to_numpy() == owner.loc[wrong["text"], "topic"]).all()
    assert (owner.loc[wrong["text"], "split"].to_numpy() == wrong["split"]).all()
    own = rows[rows["label"].eq("own_article") & rows["text"].isin(owner.index)]
    assert (owner.loc[own["text"], "body"].to_numpy() == own["text_pair"]).all()


def test_every_label_of_an_embedded_task_is_one_of_its_readers():
    for name in ("bbc", "headline", "drug_rating", "drug_condition"):
        task = TASKS[name]
        for split, rows in READERS[task.embedded]().groupby("split"):
            counts = rows["label"].value_counts().reindex(task.label_names)
            assert (counts >= 17).all(), (name, split)  # NaN, a label that no row has, is not


@pytest.mark.parametrize(
    "said, reason",
    [
        ("ERROR: no match\n[notice] new pip\nWARNING: no cache\n", "ERROR: no match"),
        ("error: no metadata\n\nnote: not pip's\nhint: See above.\n", "error: no metadata"),
        ("python: No module named pip\nDEPRECATION: old\n", "python: No module named pip"),
        ("WARNING: slow\n", "no file arrived"),
    ],
)
def test_the_reason_of_pip_is_no_warning(tmp_path, monkeypatch, said, reason):
    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path))
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said)
    )
    with pytest.raises(SkillStackError) as caught:
        embedded.rated_sentences("tweets")
    assert str(caught.value) == f"cannot fetch vaderSentiment==3.3.2 with pip: {reason}"


def test_another_file_in_the_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path))
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"cut")
    with pytest.raises(SkillStackError, match=r"is not the published file \(SHA-256 differs\)"):
        embedded.rated_sentences("tweets")


@pytest.fixture
def put_on_hub(tmp_path, monkeypatch):
    """Makes files of a data set that stand in for the hub's: split -> rows."""
    import datasets

    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)

    def put(tables, label="label", names=None, group=1000):
        files, asked = {}, []
        for split, table in tables.items():
            path = tmp_path / f"{split}-{len(list(tmp_path.iterdir()))}.parquet"
            features = datasets.Features.from_arrow_schema(
                pyarrow.Schema.from_pandas(table, preserve_index=False)
            )
            if names:
                features[label] = datasets.ClassLabel(names=names)
            schema = features.arrow_schema
            whole = pyarrow.Table.from_pandas(table, schema, preserve_index=False)
            pyarrow.parquet.write_table(whole, path, row_group_size=group)
            files[split] = [str(path)]

        def builder(path, config):
            asked.append((path, config))
            return SimpleNamespace(config=SimpleNamespace(data_files=files))

        monkeypatch.setattr(datasets, "load_dataset_builder", builder)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return asked

    return put


def test_rows_of_a_hub_set_without_text_are_dropped_and_counted(put_on_hub, capsys):
    rng = np.random.default_rng(1)
    rows = {"train": make_rows("qqp", 40, rng), "validation": make_rows("qqp", 30, rng)}
    spoilt = {split: table.copy() for split, table in rows.items()}
    spoilt["train"].loc[2, "text"] = " \n"
    spoilt["train"].loc[5, "text_pair"] = None
    spoilt["validation"].loc[7, "text"] = None
    names = {"text": "question1", "text_pair": "question2"}

    def load_from(tables):
        put_on_hub({split: table.rename(columns=names) for split, table in tables.items()})
        return load_task("qqp", 5, 8, 5, 7, source="hub")

    dropped = load_from(spoilt)
    assert capsys.readouterr().out == "qqp: 3 of 70 rows of nyu-mll/glue dropped: no text\n"
    kept = {"train": rows["train"].drop([2, 5]), "validation": rows["validation"].drop(7)}
    assert load_from(kept).fingerprint == dropped.fingerprint
    assert capsys.readouterr().out == ""
    spoilt["train"].loc[9, "label"] = -1  # a wrong label still stops, under its own row number
    with pytest.raises(SkillStackError, match="nyu-mll/glue train: row 9: label -1"):
        load_from(spoilt)


def test_hub_without_network_is_one_line(monkeypatch, tmp_path):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path))
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    with pytest.raises(SkillStackError, match="cannot load stanfordnlp/imdb") as caught:
        load_task("imdb", 2, 2, 2, 0)
    assert "\n" not in str(caught.value)
    assert "mini4" in str(caught.value)


def test_a_damaged_cache_is_fetched_again_and_none_is_needed(
    put_on_hub, tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(1)
    asked = put_on_hub({"train": make_rows("imdb", 90, rng), "test": make_rows("imdb", 60, rng)})
    load = partial(load_task, "imdb", 5, 8, 5, 7, source="hub")
    fingerprint = load().fingerprint
    kept = sorted((tmp_path / "cache" / "hub").iterdir())
    assert len(kept) == len(asked) == 2 and load().fingerprint == fingerprint and len(asked) == 2
    content = kept[0].read_bytes()
    kept[0].write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    assert load().fingerprint == fingerprint and len(asked) == 3  # and mended
    assert load().fingerprint == fingerprint and len(asked) == 3
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path / "file" / "cache"))
    capsys.readouterr()
    assert load().fingerprint == fingerprint
    said = capsys.readouterr().out
    assert said.count("cannot be kept in") == 2 and "Not a directory" in said
    with pytest.raises(SkillStackError, match="cannot make .*tar.gz: Not a directory"):
        embedded.rated_sentences("tweets")


def test_a_network_that_drops_is_one_line_and_leaves_nothing(put_on_hub, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    put_on_hub({"train": make_rows("imdb", 900, rng), "test": make_rows("imdb", 60, rng)})
    opened = hub._open

    def dropping(url):
        stream, left = opened(url), [9000]
        read = stream.read

        def some(n=-1):
            left[0] -= n
            if left[0] < 0:
                raise ConnectionResetError(104, "Connection reset by peer")
            return read(n)

        return SimpleNamespace(
            read=some, seek=stream.seek, tell=stream.tell, closed=False, close=stream.close,
            readable=lambda: True, seekable=lambda: True, writable=lambda: False,
        )  # fmt: skip

    monkeypatch.setattr(hub, "_open", dropping)
    with pytest.raises(SkillStackError, match="cannot load stanfordnlp/imdb .*reset") as caught:
        load_task("imdb", 5, 8, 5, 7, source="hub")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_hub_and_its_snapshot_give_the_same_rows(tmp_path, monkeypatch, put_on_hub):
    rng = np.random.default_rng(1)
    rows = {"train": make_rows("imdb", 90, rng), "test": make_rows("imdb", 60, rng)}
    columns = {"text": "content", "label": "stars"}
    asked = put_on_hub(
        {k: v.rename(columns=columns).assign(title="Title") for k, v in rows.items()}
    )
    task = Task(
        "imdb", "sentiment", ("negative", "positive"),
        hub=Hub("some/reviews", "cfg", text=("title", "content"), label="stars"),
    )  # fmt: skip
    monkeypatch.setitem(TASKS, "imdb", task)
    monkeypatch.setitem(PRESETS, "two_task", ("imdb",))
    monkeypatch.setattr(hub, "POOL_ROWS", 50)
    online = load_task("imdb", 5, 8, 5, 7, source="hub")
    assert asked == [("some/reviews", "cfg")] * 2
    assert online.train["text"].str.startswith("Title ").all()
    tasks.main(["snapshot", "--preset", "two_task", "--out", str(tmp_path / "snap")])
    offline = load_task("imdb", 5, 8, 5, 7, source="folder", data_dir=tmp_path / "snap")
    assert offline.fingerprint == online.fingerprint
    assert len(asked) == 2  # what was fetched once is read from the cache


def test_only_the_row_groups_and_columns_that_are_needed_are_fetched(put_on_hub, monkeypatch):
    """A set sorted by label, of which a twentieth is wanted: every class is there."""
    n, read = 20_000, []
    noise = np.random.default_rng(0).bytes(64 * n).hex()
    ballast = [noise[128 * i : 128 * (i + 1)] for i in range(n)]
    table = pd.DataFrame({"text": ballast, "label": np.arange(n) // (n // 10), "more": ballast})
    table["text"] = table["text"].str[:20]
    put_on_hub({"train": table}, group=100)

    class Counting(io.FileIO):
        def read(self, n=-1):
            content = super().read(n)
            read.append(len(content))
            return content

    monkeypatch.setattr(hub, "_open", Counting)
    monkeypatch.setattr(hub, "POOL_ROWS", 1000)
    rows = hub.hub_rows("some/set", None, "train", ["text", "label"])
    assert len(rows) == 1000 and rows["label"].value_counts().min() >= 50
    size = n * (128 + 20)
    assert 0 < sum(read[2:]) < size / 20  # behind the footer, which is read first
    whole = table.set_index("text")["label"]
    assert (whole[rows["text"]].to_numpy() == rows["label"].to_numpy()).all()


def test_labels_of_the_hub_are_found_by_name(put_on_hub, monkeypatch):
    rows = pd.DataFrame({"text": list("abcd"), "intent": [0, 1, 2, 1]})
    put_on_hub({"train": rows, "test": rows.assign(text=list("efgh"))}, "intent", ["x", "y", "z"])
    where = Hub("some/intents", label="intent", by_name=True)
    monkeypatch.setitem(TASKS, "imdb", Task("imdb", "intent", ("z", "y"), hub=where))
    data = load_task("imdb", 1, 0, 1, 0, source="hub")
    found = dict(zip(data.eval["text"], data.eval["label"], strict=True))
    assert found.pop("g") == 0 and set(found) <= {"f", "h"} and set(found.values()) == {1}
    put_on_hub({"train": rows, "test": rows}, "intent")
    with pytest.raises(SkillStackError, match="'intent' has no class names any more"):
        load_task("imdb", 1, 0, 1, 0, source="hub")


def test_templates_over_the_columns_of_a_hub_set():
    wic = TASKS["wic"].hub
    assert wic.columns == ["word", "sentence1", "sentence2", "label"]
    rows = {"word": ["set"], "sentence1": ["a {set}"], "sentence2": ["b"], "label": [1]}
    assert wic.rendered(pd.DataFrame(rows)).iloc[0].to_list() == ["set: a {set}", "b", 1]
    assert TASKS["copa"].hub.columns == ["premise", "question", "choice1", "choice2", "label"]


def test_snapshot_of_an_unknown_preset():
    with pytest.raises(SystemExit, match="unknown preset"):
        tasks.main(["snapshot", "--preset", "hard99", "--out", "nowhere"])
