import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, probes
from skillstack_helpers.tasks import KEYWORD_TEMPLATES, TASKS

CURATED = [task for task in TASKS.values() if task.formats]
WORDS = st.text(alphabet="ab .?!{}\n", min_size=1, max_size=40)


@pytest.mark.parametrize("family", probes.FAMILIES)
def test_templates_have_their_places_exactly_once(family):
    for task in CURATED:
        pair = "{text_pair}" in task.template
        assert len(task.formats[family]) >= 3
        for template in task.formats[family]:
            assert template.count("{text}") == 1
            assert template.count("{text_pair}") == pair
            assert template.count("{") == 1 + pair
    for template in KEYWORD_TEMPLATES[family]:
        assert template.count("{text}") == template.count("{keywords}") == 1


def test_held_out_is_held_out():
    formats = {
        family: {one for task in CURATED for one in task.formats[family]}
        for family in probes.FAMILIES
    }
    assert not formats["train"] & formats["held_out"]
    assert not set(KEYWORD_TEMPLATES["train"]) & set(KEYWORD_TEMPLATES["held_out"])
    for task in CURATED:
        ours, others = (set(task.keywords[family]) for family in probes.FAMILIES)
        assert len(ours) == len(others) == 12 and not ours & others


def test_halves_by_hand():
    assert probes.halves("One two. Three four five.") == ("One two.", "Three four five.")
    assert probes.halves("aa bb cc dd") == ("aa bb", "cc dd")
    assert probes.halves("word") == ("word", "")


@given(WORDS, WORDS)
def test_nothing_of_the_content_is_lost(text, pair):
    def letters(value):
        return re.sub(r"\s", "", value)

    single = probes.reformat(text, pair, "<{text}>")
    assert letters(single) == letters(f"<{text}{pair}>")
    both = probes.reformat(text, pair, "{text_pair}|{text}")
    assert letters(both) == letters(f"{pair}|{text}")
    cut = probes.reformat(text, "", "{text}|{text_pair}")
    assert letters(cut).replace("|", "") == letters(text)


def test_each_text_wears_another_tasks_format(stream):
    table = probes.rewritten(stream, "eval", "train", seed=1)
    assert len(table) == sum(len(data.eval) for data in stream)
    assert (table["task"] != table["wears"]).all()
    assert set(table["wears"]) == {data.name for data in stream}
    assert table.equals(probes.rewritten(stream, "eval", "train", seed=1))
    assert not table.equals(probes.rewritten(stream, "eval", "train", seed=2))
    own = probes.formatted(stream, "eval", "train", seed=1)
    assert (own["task"] == own["wears"]).all()
    pair = own[own["task"] == "qqp"]["text"]
    assert pair.str.match(r"Question 1: .*\n?Question 2: ").all()


def test_keywords_are_another_tasks(stream):
    table = probes.with_keywords(stream, "eval", "held_out", seed=1)
    assert (table["task"] != table["trap"]).all()
    plain = [text for data in stream for text in data.texts("eval")]
    for text, attacked, trap in zip(plain, table["text"], table["trap"], strict=True):
        assert text in attacked
        added = attacked.replace(text, "")
        words = [word for word in TASKS[trap].keywords["held_out"] if word in added]
        assert len(words) >= 5


def test_bad_input(stream):
    with pytest.raises(SkillStackError, match="unknown family 'test'"):
        probes.rewritten(stream, "eval", "test", seed=1)
    with pytest.raises(SkillStackError, match="two tasks"):
        probes.rewritten(stream[:1], "eval", "train", seed=1)
    with pytest.raises(SkillStackError, match="two tasks"):
        probes.with_keywords(stream[:1], "eval", "train", seed=1)
    with pytest.raises(SkillStackError, match="has 12 keywords, not 13"):
        probes.with_keywords(stream, "eval", "train", seed=1, n=13)


def bare(data, texts):
    """The same task without formats and keywords, its routing rows other texts."""
    task = replace(data.task, formats={}, keywords={})
    rows = pd.DataFrame({"text": texts, "text_pair": "", "label": 0})
    return replace(data, task=task, router=rows)


def test_formats_are_made_from_the_name_of_a_task_that_has_none(stream):
    made = {}
    for data in (bare(stream[0], ["a"]), bare(stream[2], ["a"])):  # one text; a pair
        pair = "{text_pair}" in data.task.template
        for family in probes.FAMILIES:
            templates = made[data.name, family] = probes.formats(data, family)
            assert len(templates) >= 3 and all(one.count("{text}") == 1 for one in templates)
            assert all(one.count("{text_pair}") == pair for one in templates)
            assert data.task.template in templates or data.name in templates[0].lower()
        assert not set(made[data.name, "train"]) & set(made[data.name, "held_out"])


def test_keywords_are_learned_by_hand(stream):
    # Shares of texts: fee 2/2 against 1/2, late 2/2 against 0; "the" tells nothing.
    billing = bare(stream[0], ["The late fee", "the FEE was late"])
    returns = bare(stream[1], ["the parcel", "the fee for a parcel, a parcel"])
    assert probes.keywords([billing, returns], "train")["imdb"] == ("late", "was")
    assert probes.keywords([billing, returns], "held_out")["imdb"] == ("fee",)
    assert probes.keywords([billing, returns], "train")["agnews"][0] == "parcel"
    kept = probes.keywords([billing, stream[1]], "train")["agnews"]
    assert kept == stream[1].task.keywords["train"]
    with pytest.raises(SkillStackError, match=r"task 'imdb' has \d keywords, not 5: its routing"):
        probes.with_keywords([billing, returns], "eval", "train", seed=1)
