import numpy as np
import pandas as pd
import pytest
from conftest import make_rows, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, tasks
from skillstack_helpers.tasks import PRESETS, TASKS, Hub, Task, load_task, normalize


def load(data_dir, name="imdb", n_train=4, n_router=6, n_eval=5, seed=0):
    return load_task(name, n_train, n_router, n_eval, seed, source="folder", data_dir=data_dir)


def test_presets_hold_known_tasks_once():
    for name, stream in PRESETS.items():
        assert len(set(stream)) == len(stream), name
        assert all(task in TASKS for task in stream), name
    assert PRESETS["hard5"] == PRESETS["hard5_reversed"][::-1]


def test_every_task_renders_both_texts_and_has_a_source():
    for task in TASKS.values():
        assert (task.hub is None) != (task.embedded is None), task.name
        rendered = task.template.format(text="one", text_pair="two")
        assert "one" in rendered
        takes_pair = task.hub is not None and task.hub.text_pair is not None
        if task.hub is not None:
            assert takes_pair == ("two" in rendered), task.name


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
        (spoil("text", None), "row 3: text is nan, not a string"),
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


@pytest.mark.parametrize("name", PRESETS["mini8"])
def test_embedded_tasks_are_real_and_enough(name, monkeypatch):
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    data = load_task(name, 16, 96, 16, 42)
    assert data.source == "embedded"
    assert (data.eval["label"].value_counts() == 16).all()
    assert np.median([len(text) for text in data.texts("train")]) > 30


def test_headline_negatives_come_from_the_same_topic_and_split():
    articles, rows = tasks._bbc_articles(), tasks.TASKS["headline"].embedded()
    topic = articles.set_index("body")["label"]
    owner = articles.drop_duplicates("headline", keep=False).set_index("headline")
    wrong = rows[rows["label"].eq(0) & rows["text"].isin(owner.index)]
    assert len(wrong) > 800
    assert (topic[wrong["text_pair"]].to_numpy() == owner.loc[wrong["text"], "label"]).all()
    assert (owner.loc[wrong["text"], "split"].to_numpy() == wrong["split"]).all()
    own = rows[rows["label"].eq(1) & rows["text"].isin(owner.index)]
    assert (owner.loc[own["text"], "body"].to_numpy() == own["text_pair"]).all()


def test_hub_without_network_is_one_line(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    with pytest.raises(SkillStackError, match="cannot load stanfordnlp/imdb") as caught:
        load_task("imdb", 2, 2, 2, 0)
    assert "\n" not in str(caught.value)
    assert "mini4" in str(caught.value)


def test_hub_and_its_snapshot_give_the_same_rows(tmp_path, monkeypatch):
    import datasets

    rng = np.random.default_rng(1)
    rows = {"train": make_rows("imdb", 90, rng), "test": make_rows("imdb", 60, rng)}
    asked = []

    def fake(path, config, split):
        asked.append((path, config, split))
        table = rows[split].rename(columns={"text": "content", "label": "stars"})
        return datasets.Dataset.from_pandas(table.assign(title="Title"))

    task = Task(
        "imdb", "sentiment", ("negative", "positive"),
        hub=Hub("some/reviews", "cfg", text=("title", "content"), label="stars"),
    )  # fmt: skip
    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setitem(TASKS, "imdb", task)
    monkeypatch.setitem(PRESETS, "two_task", ("imdb",))
    monkeypatch.setattr(tasks, "POOL_ROWS", 50)
    online = load_task("imdb", 5, 8, 5, 7, source="hub")
    assert asked == [("some/reviews", "cfg", "train"), ("some/reviews", "cfg", "test")]
    assert online.train["text"].str.startswith("Title ").all()
    tasks.main(["snapshot", "--preset", "two_task", "--out", str(tmp_path / "snap")])
    offline = load_task("imdb", 5, 8, 5, 7, source="folder", data_dir=tmp_path / "snap")
    assert offline.fingerprint == online.fingerprint


def test_snapshot_of_an_unknown_preset():
    with pytest.raises(SystemExit, match="unknown preset"):
        tasks.main(["snapshot", "--preset", "hard99", "--out", "nowhere"])
