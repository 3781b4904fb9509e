"""Tasks of one's own: files, frames and `datasets` as people have them."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers import SkillStack, SkillStackError, Task, load_task
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.tables import read_table, understand
from skillstack_helpers.tasks import TASKS, get_task, own_tasks

GUESS = {"text": None, "text_pair": None, "label": None}


def texts(labels, n, words="the of and to in it"):
    """n rows a label; the label's name stands in the text."""
    rows = [(f"{words} {label} row {i}", label) for label in labels for i in range(n)]
    return pd.DataFrame(rows, columns=["text", "label"])


def put(folder, name, content, file="train.csv"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / name / file
    if isinstance(content, pd.DataFrame):
        kind = path.suffix[1:]
        if kind == "parquet":
            content.to_parquet(path, index=False)
        elif kind == "jsonl":
            content.to_json(path, orient="records", lines=True)
        else:
            content.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


# ------------------------------------------------------------------ what is read


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind, capsys):
    odd = ['say "no", or not', "tab\tand, comma", "two\nlines", "שלום, سلام", "🙂🙃", "NA", "12"]
    rows = pd.DataFrame({"text": odd, "label": ["a", "b"] * 3 + ["b"]})
    put(tmp_path, "mine", rows, f"train.{kind}")
    put(tmp_path, "mine", rows[:2].assign(text=["x", "y"]), f"test.{kind}")
    task = Task.from_folder(tmp_path / "mine")
    assert list(task.rows["text"]) == [*odd, "x", "y"]
    assert list(task.rows["label"]) == [0, 1, 0, 1, 0, 1, 1, 0, 1]
    assert list(task.rows["split"]) == ["train"] * 7 + ["test"] * 2
    assert capsys.readouterr().out == "mine: text 'text', label 'label'; 2 labels a, b\n"


def test_a_semicolon_between_and_a_byte_order_mark(tmp_path):
    put(tmp_path, "mine", "\ufefftext;label\nja;1\nnein;2\n")
    assert read_table(tmp_path / "mine" / "train.csv").to_dict("list") == {
        "text": ["ja", "nein"],
        "label": ["1", "2"],
    }


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([1, 2, 1], ("1", "2"), [0, 1, 0]),  # ids from 1
        ([5, 1, 3], ("1", "3", "5"), [2, 0, 1]),  # stars that are not all there
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),  # numbers as CSV has them, in their order
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["spam", " ham", "spam "], ("ham", "spam"), [1, 0, 1]),
    ],
)
def test_labels_by_hand(labels, names, ids):
    rows = pd.DataFrame({"text": ["x", "y", "z"], "label": labels})
    task = Task.from_frames("mine", rows, rows[:1].assign(text="w"))
    assert task.label_names == names
    assert list(task.rows["label"]) == [*ids, ids[0]]


@pytest.mark.parametrize("first", [0, 1])
def test_names_for_ids_from_0_or_1(first):
    rows = pd.DataFrame({"text": ["x", "y"], "label": [first, first + 1]})
    task = Task.from_frames("mine", rows, rows.assign(text="w"), label_names=["no", "yes"])
    assert task.label_names == ("no", "yes") and list(task.rows["label"]) == [0, 1, 0, 1]


def test_columns_are_guessed_or_named(capsys):
    rows = texts(["a", "b"], 2).rename(columns={"text": "Body of the mail", "label": "team"})
    assert list(Task.from_frames("mine", rows).rows["text"]) == list(rows["Body of the mail"])
    assert "text 'Body of the mail', label 'team'" in capsys.readouterr().out
    rows = rows.assign(subject="hello", when=3)
    with pytest.raises(SkillStackError, match=r'which column is the text\? There are Body.*text="'):
        Task.from_frames("mine", rows)
    with pytest.raises(SkillStackError, match=r"no column 'bdy' for the text: Body of the mail, t"):
        Task.from_frames("mine", rows, text="bdy", label="team")
    named = {"text": "subject", "text_pair": "Body of the mail", "label": "team"}
    task = Task.from_frames("mine", rows, rows, **named)
    assert task.render(task.rows[:1]) == ["hello\nthe of and to in it a row 0"]
    assert "8" not in capsys.readouterr().out.partition("stand")[2]


def test_meta_json_says_what_is_what(tmp_path):
    rows = pd.DataFrame({"q": ["x", "y"], "a": ["u", "v"], "class": [0, 1], "n": [1, 2]})
    put(tmp_path, "mine", rows, "train.parquet")
    meta = {"text": "q", "text_pair": "a", "label": "class", "label_names": ["no", "yes"]}
    meta |= {"template": "Q: {text} A: {text_pair}", "family": "qa", "licence": "CC0", "more": 1}
    put(tmp_path, "mine", json.dumps(meta), "meta.json")
    task = get_task("mine", tmp_path)
    assert (task.family, task.licence, task.label_names) == ("qa", "CC0", ("no", "yes"))
    assert task.render(task.rows[:1]) == ["Q: x A: u"]


def test_the_label_names_of_a_dataset_are_its_class_labels():
    import datasets

    features = {"utterance": datasets.Value("string"), "y": datasets.ClassLabel(names=["n", "p"])}
    rows = {"utterance": ["bad", "good", "fine"], "y": [0, 1, 1]}
    dataset = datasets.Dataset.from_dict(rows, datasets.Features(features))
    task = Task.from_dataset("mine", datasets.DatasetDict({"train": dataset, "test": dataset}))
    assert task.label_names == ("n", "p") and list(task.rows["label"]) == [0, 1, 1] * 2
    with pytest.raises(SkillStackError, match="no split 'train' among dev"):
        Task.from_dataset("mine", datasets.DatasetDict({"dev": dataset}))


# ------------------------------------------------------------------ what is left out, and said


def test_the_split_is_by_text_and_what_is_left_out_is_counted(capsys):
    rows = texts(["a", "b"], 100)
    rows = pd.concat([rows, rows[:10], pd.DataFrame({"text": ["", "x", None], "label": "a"})])
    rows.loc[rows["text"].eq("x"), "label"] = None
    task = Task.from_frames("mine", rows)
    assert "3 rows without text or label left out" in capsys.readouterr().out
    sides = task.rows.groupby("text")["split"].nunique()
    assert len(task.rows) == 210 and sides.max() == 1  # equal texts share a side
    assert 0.2 < task.rows["split"].eq("test").mean() < 0.4


def test_rows_in_both_splits_are_never_evaluated_on(capsys):
    rows = texts(["a", "b"], 20)
    task = Task.from_frames("mine", rows, pd.concat([rows[:6], texts(["a", "b"], 4, "new")]))
    assert "6 test rows stand in the training rows too and are not used" in capsys.readouterr().out
    data = load_task(task, 4, 8, 4, seed=0)
    assert not set(data.eval["text"]) & set(rows["text"]) and len(data.eval) == 8


def test_a_budget_that_is_too_large_takes_what_there_is(capsys):
    task = Task.from_frames("mine", texts(["a", "b"], 8), texts(["a", "b"], 3, "new"))
    data = load_task(task, 48, 256, 64, seed=0)
    # A quarter of a class stays for routing: 6 and 2 of 8.
    assert (len(data.train), len(data.router), len(data.eval)) == (12, 4, 6)
    said = "mine: fewer rows than asked for: 12 of 96 training, 4 of 256 routing, 6 of 128 eval"
    assert said in capsys.readouterr().out
    assert data.source == "own" and load_task(task, 48, 256, 64, 0).fingerprint == data.fingerprint
    exact = load_task(task, 4, 8, 3, seed=0)
    assert (len(exact.train), len(exact.router), len(exact.eval)) == (8, 8, 6)


# ------------------------------------------------------------------ what is refused in a line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "a"}, "mine: there is one label only: 'a'"),
        ({"label": None}, "mine: no row has both a text and a label"),
        ({"label": [0.5, 1.5]}, "labels are numbers with fractions"),
        ({"label": [["a"], ["b"]]}, r"a row has the labels \['a'\]; a task has one a row"),
        ({"text": " "}, "no row has both a text and a label"),
    ],
)
def test_bad_rows_are_one_line(change, words):
    rows = pd.DataFrame({"text": ["x", "y"], "label": ["a", "b"]}).assign(**change)
    with pytest.raises(SkillStackError, match=words) as caught:
        Task.from_frames("mine", rows, text="text", label="label")
    assert "\n" not in str(caught.value)


def test_a_label_that_training_does_not_know(capsys):
    rows = texts(["a", "b"], 2)
    task = Task.from_frames("mine", rows, texts(["a", "c"], 1, "new"))
    assert len(task.rows) == 5 and task.label_names == ("a", "b")
    said = "1 test rows left out, of labels without training rows (c)"
    assert said in capsys.readouterr().out
    with pytest.raises(SkillStackError, match="label 'c' of a test row is none of a, b"):
        Task.from_frames("mine", rows, texts(["c"], 1), label_names=["a", "b"])
    with pytest.raises(SkillStackError, match="label 'b' of a train row is none of a, c"):
        Task.from_frames("mine", rows, label_names=["a", "c"])
    with pytest.raises(SkillStackError, match="two label names are the same: a, a"):
        Task.from_frames("mine", rows, label_names=["a", "a"])


@pytest.mark.parametrize("name", ["My Mails", "../up", "", None, "imdb"])
def test_names_that_cannot_be(name):
    with pytest.raises(SkillStackError, match="must match|is a task of the suite"):
        Task.from_frames(name, texts(["a", "b"], 2))


def test_templates_that_miss_their_places():
    for template in ("no place", "{text} {text_pair}", "{text", "{text!r}", "{text.upper}{text}"):
        with pytest.raises(SkillStackError, match="the template must hold {text}, and no"):
            Task.from_frames("mine", texts(["a", "b"], 2), template=template)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train.csv", "text,label\nna\xefve,1\n".encode("latin-1"), "is not UTF-8: save it"),
        ("train.csv", "text,label\na,b,c,d\ne,f\n,,,,\n", r"train.csv"),
        ("train.csv", "", "is not readable csv: No columns"),
        ("train.jsonl", '{"text": "a", "label": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("train.parquet", "PAR", "is not readable parquet"),
        ("meta.json", '{"label_names": "a"}', "label_names must be a list of strings"),
        ("meta.json", '{"text": 3}', "text must be a string, got 3"),
        ("meta.json", "{", "is not valid JSON"),
        ("train.xlsx", "x", "holds no train.csv, .tsv, .jsonl or .parquet"),
    ],
)
def test_bad_files_are_one_line(tmp_path, file, content, words):
    if file == "meta.json":
        put(tmp_path, "mine", texts(["a", "b"], 2))
    put(tmp_path, "mine", content, file)
    with pytest.raises(SkillStackError, match=words) as caught:
        Task.from_folder(tmp_path / "mine")
    assert "\n" not in str(caught.value)


def test_two_files_of_one_split(tmp_path):
    put(tmp_path, "mine", texts(["a", "b"], 2))
    put(tmp_path, "mine", texts(["a", "b"], 2), "train.tsv")
    with pytest.raises(SkillStackError, match="holds both train.csv and train.tsv"):
        own_tasks(tmp_path)


# ------------------------------------------------------------------ odd sets are learned


@pytest.mark.parametrize("kind", ["two rows", "100 classes", "long", "scripts"])
def test_odd_sets_train_and_answer(tmp_path, kind, backbone, config):
    if kind == "two rows":
        rows = pd.concat([texts(["a", "b"], 20), texts(["rare"], 2)])
    elif kind == "100 classes":
        rows = texts([f"intent_{i}" for i in range(100)], 6)
    elif kind == "long":
        rows = texts(["a", "b"], 6).assign(text=lambda t: t["text"] + " of the and" * 90_000)
        assert rows["text"].str.len().min() > 900_000
    else:
        words = {"yes": "👍🏽 ☕️", "no": "\u202bשלום عليكم\u202c", "maybe": "ß ﬁ Ω 中文"}
        rows = [(f"{words[label]} {i}", label) for label in words for i in range(20)]
        rows = pd.DataFrame(rows, columns=["text", "label"])
    data = load_task(get_task("odd", put(tmp_path, "odd", rows)), 8, 16, 4, seed=0)
    stack = SkillStack(backbone)
    frame = stack.grow(data, config)
    assert len(frame.label_names) == rows["label"].nunique() and np.isfinite(frame.losses).all()
    assert stack.evaluate(data).logits.shape == (len(data.eval), len(frame.label_names))
    answers = stack.predict(list(data.eval["text"][:2]), "odd").label_names
    assert set(answers) <= set(frame.label_names)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.sampled_from("abc")), min_size=4, max_size=30))
def test_no_row_is_lost_or_made(rows):
    table = pd.DataFrame(rows, columns=["text", "label"])
    kept = table[table["text"].str.strip().ne("")]
    if kept["label"].nunique() < 2:
        return
    found, names = understand("mine", {"train": kept, "test": kept}, GUESS)
    assert names == tuple(sorted(set(kept["label"])))
    assert list(found["text"]) == [*kept["text"], *kept["text"]]
    assert [names[i] for i in found["label"]] == [*kept["label"], *kept["label"]]


# ------------------------------------------------------------------ streams of one's own


def test_a_stream_of_ones_own_is_called_by_its_tasks(tmp_path, capsys):
    for name in ("support", "billing"):
        put(tmp_path / "data", name, texts(["a", "b"], 4))
    given_by_name = {"tasks": "support, billing", "data_dir": str(tmp_path / "data")}
    config = RunConfig.from_notebook(given_by_name, "01")
    assert config.task_names == ("support", "billing")
    assert config.preset == "support_billing" and config.identity() == {"tasks": "support,billing"}
    other = RunConfig(preset=str(tmp_path / "data"))
    assert other.task_names == ("billing", "support") and other.preset == "data"
    assert other.data_dir == str(tmp_path / "data")
    assert f"stream: billing, support (the folders of {tmp_path}" in capsys.readouterr().out
    again = RunConfig(**{**vars(other), "data_dir": None})  # as run.json keeps it
    assert again.task_names == other.task_names and again.identity() == other.identity()
    assert RunConfig(tasks="imdb,agnews").task_names == ("imdb", "agnews")


def test_a_stream_that_cannot_be_is_answered_before_any_work(tmp_path, monkeypatch):
    put(tmp_path, "support", texts(["a", "b"], 4))
    here = {"data_dir": str(tmp_path)}
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    for given_by_name, words in (
        ({"tasks": "suport", **here}, r"unknown task 'suport' \(did you mean 'support'\?\)"),
        ({"tasks": "suport"}, "one of your own is found below data_dir"),
        ({"tasks": "support,support", **here}, "tasks must be different names"),
        ({"tasks": "support,", **here}, "tasks must be different names"),
        ({"tasks": "support", "data_dir": str(tmp_path / "no")}, "no does not exist"),
        ({"preset": str(tmp_path / "support")}, "holds no folder with training rows"),
        ({"preset": "hard9"}, r"unknown preset 'hard9' \(did you mean 'hard8'\?\)"),
    ):
        with pytest.raises(SkillStackError, match=words):
            RunConfig.from_notebook(given_by_name, "01")


def test_a_task_of_the_suite_takes_any_kind_of_file(tmp_path):
    name, labels = "imdb", TASKS["imdb"].label_names
    for split in ("train", "test"):
        put(tmp_path, name, texts(labels, 20, split), f"{split}.csv")
    data = load_task(name, 4, 8, 4, seed=0, source="folder", data_dir=tmp_path)
    says = data.eval["text"].map(lambda text: "positive" in text)
    assert list(data.eval["label"]) == list(says.astype(int)) and data.source == "folder"
