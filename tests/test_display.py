"""What a notebook shows."""

import base64
import io
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from skillstack_helpers import RunConfig
from skillstack_helpers.lab import display, names


def outputs(monkeypatch):
    """What is displayed from here on, as MIME bundles."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda shown, **_: found.append(shown))
    return found


def test_a_picture_has_its_text_and_a_caption(monkeypatch):
    shown = outputs(monkeypatch)
    ax = plt.subplots()[1]
    content = display.png(ax)
    assert Image.open(io.BytesIO(content)).size == (768, 576)
    assert ax.figure.number not in plt.get_fignums()
    display.show_picture(content, 'two "bars"', "Look at the left one.")
    picture, caption = shown
    assert base64.b64decode(picture["image/png"]) == content
    # Exporters to HTML show the text of an <img>, not that of a PNG.
    alt, source = re.findall(r'alt="(.*?)" src="(.*?)"', picture["text/html"])[0]
    assert alt == "two &quot;bars&quot;" and source.endswith(picture["image/png"])
    assert caption.data == "*Look at the left one.*"


def test_sentences_are_a_list_whose_first_line_is_bold(monkeypatch):
    shown = outputs(monkeypatch)
    display.show_sentences(["One.", "Two.", "Three."])
    assert shown[0].data == "**One.**\n\n- Two.\n- Three."


def test_a_table_has_readable_names_and_does_not_wrap(monkeypatch):
    shown = outputs(monkeypatch)
    table = pd.DataFrame({"acc": [80.25, float("nan")]}, index=["ewc", "x"])
    display.show_table(table.rename_axis(columns="mean [range of 2 seeds]"))
    page = shown[0].to_html()
    assert "EWC" in page and "told the task (%)" in page and "80.2" in page and "nan" not in page
    assert "nowrap" in page and shown[1].data == "*mean [range of 2 seeds]*"


def test_a_table_with_columns_of_two_levels_is_shown(monkeypatch):
    shown = outputs(monkeypatch)
    columns = pd.MultiIndex.from_tuples([("measured here", "minilm")], names=["who", "model"])
    display.show_table(pd.DataFrame([[80.25]], ["acc"], columns))
    assert "measured here" in shown[0].to_html() and len(shown) == 1


def test_markdown_tables_round_and_leave_missing_cells_empty():
    table = pd.DataFrame({"a (%)": [80.25, None], "depth": [2.005, 3.0], "n": ["1", 2]}, ["x", "y"])
    lines = display.markdown_table(table.rename_axis("who")).splitlines()
    assert lines[0] == "| who | a (%) | depth (frames) | n |"
    assert lines[2:] == ["| x | 80.2 | 2.00 | 1 |", "| y |  | 3.00 | 2 |"]


def test_a_config_shows_what_differs_from_the_defaults():
    assert RunConfig()._repr_markdown_() == "Every parameter has its default."
    lines = RunConfig(seed=7, preset="hard12")._repr_markdown_().splitlines()
    assert lines[2:] == ["| seed | 7 | 42 |", "| preset | hard12 | hard8 |"]


def test_names_that_stand_for_the_same_thing_are_one():
    assert {names.name(key) for key in ("frames", "own frame", "saved frame")} == {"saved frames"}
    assert display.listed([]) == "none" and display.listed(["ewc"]) == "EWC"
