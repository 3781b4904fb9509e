"""What notebook 09 asks a stack about, from the rows inside PyPI packages."""

import numpy as np
import pytest

from skillstack_helpers.lab import unseen
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.tasks import TASKS, load_task


def config(**fields):
    return RunConfig(notebook="09_skill_generalization", preset="mixed8", seed=3, **fields)


def test_unseen_tasks_are_not_in_the_stream_and_have_labels_that_it_knows(data_dir):
    how = {"source": "folder", "data_dir": data_dir}
    imdb, agnews = (load_task(name, 4, 8, 2, seed=0, **how) for name in ("imdb", "agnews"))
    found = unseen.load_unseen(config(n_eval=4), [imdb, agnews])
    assert [data.name for data in found] == [
        "movies",
        "products",
        "editorials",
        "tweets",
        "drug_rating",
    ]
    assert {data.task.label_names for data in found} == {imdb.task.label_names}
    assert all(len(data.eval) == 4 * 2 and data.source != "folder" for data in found)
    assert not unseen.load_unseen(config(n_eval=4), [agnews])
    movies = load_task("movies", 1, 1, 4, 3, source="embedded")
    names = [data.name for data in unseen.load_unseen(config(n_eval=4), [imdb, movies])]
    assert "movies" not in names and "products" in names


def test_a_task_with_fewer_rows_is_asked_about_what_it_has(monkeypatch):
    tried = []

    def load(name, n_train, n_router, n_eval, seed, source):
        tried.append(n_eval)
        if n_eval > 16:
            raise unseen.SkillStackError("asks for more than there is")
        return n_eval

    monkeypatch.setattr(unseen, "load_task", load)
    assert unseen._load("movies", config(n_eval=4)) == 4 and tried == [4]
    monkeypatch.setattr(unseen, "FEWER", (32, 16, 8))
    big = config(n_eval=64)
    assert unseen._load("movies", big) == 16 and tried == [4, 64, 32, 16]
    monkeypatch.setattr(unseen, "FEWER", (32,))
    assert unseen._load("movies", big) is None


def test_shares_have_every_task_and_every_frame():
    tasks = np.array(["b", "b", "a", "b", "b"], dtype=object)
    picks = np.array(["x", "y", "x", "x", "x"], dtype=object)
    table = unseen.shares(tasks, picks, ["y", "x", "z"])
    assert list(table.index) == ["b", "a"] and list(table) == ["y", "x", "z"]
    assert table.loc["b"].tolist() == pytest.approx([0.25, 0.75, 0])
    assert table.loc["a"].tolist() == [0, 1, 0] and table.index.name is None


def test_the_unseen_tasks_are_embedded():
    assert all(TASKS[name].embedded for name in ("movies", "products", "tweets"))
