import shutil

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from skillstack_helpers import SkillStackError, compression, widgets


@pytest.fixture
def stack(saved):
    return widgets.open_stack(saved)


@pytest.fixture
def routers(saved, stack):
    return widgets.stack_routers(stack, saved)


# ------------------------------------------------------------------ plain functions


def test_the_chain_says_what_is_intact(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "stack")
    stack = widgets.open_stack(folder)
    table = widgets.chain_table(stack)
    assert list(table.index) == ["qqp", "agnews", "imdb"]
    assert list(table["parent"]) == ["agnews", "imdb", ""]
    assert (table["intact"] == "yes").all() and table.loc["agnews", "labels"] == 4
    assert table.loc["imdb", "accuracy (%)"] == f"{100 * stack['imdb'].metrics['accuracy']:.1f}"
    path = folder / "frames" / "agnews" / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert "head.safetensors was changed" in widgets.chain_table(stack).loc["agnews", "intact"]
    assert widgets.chain_table(stack).loc["imdb", "intact"] == "yes"


def test_dropped_frames_are_shown_with_their_stand_in(stack):
    small = compression.drop(stack, "imdb", to="qqp")
    table = widgets.chain_table(small)
    assert list(table.index) == ["qqp", "agnews", "imdb"]
    assert (
        table.loc["imdb", "task"] == "answered by qqp" and table.loc["imdb", "intact"] == "dropped"
    )


def test_layer_norms_by_hand(stack):
    frame = stack["agnews"]
    table = widgets.layer_norms(frame)
    assert table.shape == (2, 6)
    lora = {n: t.double() for n, t in frame.weights().lora.items()}
    name = next(n for n in lora if ".1." in n and "query.lora_A" in n)
    update = 16 / 4 * lora[name.replace("lora_A", "lora_B")] @ lora[name]
    assert table.loc[1, "attention.self.query"] == pytest.approx(update.norm().item(), rel=1e-5)
    same = widgets.layer_norms(frame, since=frame)
    assert same.to_numpy().max() < 1e-5
    moved = widgets.layer_norms(frame, since=stack["imdb"])
    parent = {n: t.double() for n, t in stack["imdb"].weights().lora.items()}
    before = 16 / 4 * parent[name.replace("lora_A", "lora_B")] @ parent[name]
    expected = (update - before).norm().item()
    assert moved.loc[1, "attention.self.query"] == pytest.approx(expected, rel=1e-4)


def test_frames_and_stacks_compared(stack, saved):
    table = widgets.compare_frames(stack["imdb"], stack["imdb"])
    np.testing.assert_allclose(table["cosine"], 1, atol=1e-6)
    other = widgets.compare_frames(stack["imdb"], stack["qqp"])
    assert (other["cosine"].abs() <= 1).all() and other["cosine"].max() < 0.9999
    small = compression.int8(compression.drop(stack, "imdb", to="qqp"), names=["qqp"])
    both = widgets.compare_stacks(stack, small)
    assert both.loc["imdb", "accuracy, second (%)"] == "–"
    assert list(both["same weights"]) == ["no", "yes", "no"]


def test_answers_mistakes_and_classes(stack, stream):
    answers = widgets.own_answers(stack, "agnews", stream[1])
    accuracy = stack["agnews"].metrics["accuracy"]
    assert answers["right"].mean() == pytest.approx(accuracy)
    wrong = widgets.mistakes(answers)
    assert len(wrong) == (~answers["right"]).sum() and wrong["probability"].is_monotonic_decreasing
    classes = widgets.per_class(answers)
    assert (classes["n"] == 8).all() and len(classes) == 4
    assert (classes["accuracy (%)"] * classes["n"]).sum() / 32 == pytest.approx(
        100 * accuracy, abs=0.1
    )


def test_the_walk_is_the_routers_own(stack, routers, stream):
    text = stream[1].texts("eval")[0]
    for name, router in routers.items():
        table, route = widgets.walk_table(router, text), router.route([text]).iloc[0]
        assert list(table.index) == ["qqp", "agnews", "imdb"]
        (answering,) = table.index[table["step"].str.startswith("answers")]
        assert answering == route["frame"]
        assert table["probability"].sum() == pytest.approx(1)
        steps = list(table["step"])
        if name == "hybrid_chain":
            assert sum(step != "not reached" for step in steps) == route["depth"]
        else:
            assert sorted(steps) == ["answers", "compared", "compared"]
    strict = routers["hybrid_chain"].set_params(threshold=99.0)
    assert set(widgets.walk_table(strict, text)["step"]) == {"passed", "answers (fallback)"}


def test_one_text_asked_of_every_frame(stack, stream):
    text = stream[0].texts("eval")[0]
    table = widgets.ask(stack, text, ["imdb", "agnews"])
    for name, row in table.iterrows():
        prediction = stack.predict([text], name)
        assert row["answer"] == prediction.label_names[0]
        assert row["probability"] == pytest.approx(prediction.probabilities.max())
        assert row["all"].startswith(f"{row['answer']} ")
    assert widgets.render("qqp", "one", "two") == "Question 1: one\nQuestion 2: two"
    assert widgets.render("", "as it is") == "as it is"


def test_finding_and_opening(saved, tmp_path, model_dirs):
    assert (
        widgets.find_stacks(saved.parent) == [saved] and widgets.newest_stack(saved.parent) == saved
    )
    with pytest.raises(SkillStackError, match="no saved stack below .*: run `make demo`"):
        widgets.newest_stack(tmp_path)
    with pytest.raises(SkillStackError, match="stack.json is missing"):
        widgets.open_stack(tmp_path)
    loaded = {}
    one, two = (widgets.open_stack(saved, loaded) for _ in range(2))
    assert one.backbone is two.backbone and len(loaded) == 1  # no model is loaded twice


def test_routers_are_fitted_and_saved_where_there_are_none(saved, tmp_path, monkeypatch, data_dir):
    monkeypatch.setenv("SKILLSTACK_DATA", str(data_dir))
    folder = shutil.copytree(saved, tmp_path / "stack", ignore=shutil.ignore_patterns("routers"))
    stack = widgets.open_stack(folder)
    fitted = widgets.stack_routers(stack, folder)
    again = widgets.stack_routers(stack, folder)
    assert list(fitted) == sorted(again, reverse=True) == ["hybrid_chain", "centroid"]
    text = ["the class1 of qqpword"]
    for name in fitted:
        np.testing.assert_allclose(
            fitted[name].decision_function(text), again[name].decision_function(text), atol=1e-5
        )


# ------------------------------------------------------------------ the inspector, no browser


def shown(box) -> str:
    """All HTML below a widget."""
    text = getattr(box, "value", "") if type(box).__name__ == "HTML" else ""
    return text + "".join(shown(child) for child in getattr(box, "children", ()))


def test_the_inspector_answers_as_the_api_does(saved, stack, routers, stream):
    app = widgets._Inspector(saved, saved.parent)
    assert "3 frames on" in app.message.value and next(iter(app.frame.options)) == "qqp"
    text = stream[1].texts("eval")[0]
    app.text.value = text
    for name in ("hybrid_chain", "centroid"):
        app.router.value = name
        app.ask_button.click()
        first = stack.answer([text], routers[name]).iloc[0]
        assert f"{first['frame']} answers" in app.message.value
        assert first["label_name"] in app.message.value
        assert "answers" in shown(app.answer) and text[:20] in shown(app.answer)
    assert len(app.card.children) == 5 and "own evaluation rows" in shown(app.card)
    app.other.value = "imdb"
    assert "cosine" in shown(app.compared) and "qqp against imdb" in shown(app.compared)
    app.frame.value = "agnews"
    assert "agnews against imdb" in shown(app.compared)


def test_typed_text_is_never_html(saved):
    app = widgets._Inspector(saved, saved.parent)
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script> class1"
    app.text.value = evil
    app.ask_button.click()
    html = shown(app.answer) + app.message.value
    assert "<img" not in html and "<script" not in html and "&lt;script&gt;" in html
    app.open("<b>/no/such/stack</b>")
    assert "<b>" not in app.message.value and "is missing" in app.message.value


def cells(box) -> list:
    """All buttons below a widget."""
    found = [box] if type(box).__name__ == "Button" else []
    return found + [b for child in getattr(box, "children", ()) for b in cells(child)]


def test_the_threshold_is_the_users(saved, stream):
    app = widgets._Inspector(saved, saved.parent)
    app.text.value = stream[1].texts("eval")[0]
    app.router.value = "centroid"
    assert app.threshold.disabled and "visited" not in app.message.value
    app.router.value = "hybrid_chain"
    assert not app.threshold.disabled and app.threshold.value == 0
    app.threshold.value = 99.0
    assert "by fallback, 3 frames visited" in app.message.value
    app.threshold.value = -99.0
    assert "qqp answers, 1 frames visited" in app.message.value
    app.router.value = "centroid"
    app.router.value = "hybrid_chain"
    assert app.threshold.value == -99.0  # it stays with its router


def test_many_frames_are_asked_only_on_demand(saved, stream, monkeypatch):
    monkeypatch.setattr(widgets, "BESIDE", 1)
    app = widgets._Inspector(saved, saved.parent)
    app.text.value = stream[1].texts("eval")[0]
    app.ask_button.click()
    rows = "<tr>"
    assert shown(app.answer.children[-2]).count(rows) == 2  # who answers, and the next best
    app.answer.children[-1].click()
    assert shown(app.answer.children[-1]).count(rows) == 3


def test_the_routers_confusion_opens_its_texts(
    saved, stack, routers, stream, monkeypatch, data_dir
):
    monkeypatch.setenv("SKILLSTACK_DATA", str(data_dir))
    monkeypatch.setattr(widgets, "ROUTED_ROWS", 8)
    answers = widgets.routed_frames(routers["centroid"], stream, 8)
    assert len(answers) == 24 and set(answers["label"]) == {"imdb", "agnews", "qqp"}
    assert list(answers["answer"]) == list(routers["centroid"].predict(list(answers["text"])))
    assert answers["probability"].between(0, 1).all()
    table = widgets.confusion_table(answers)
    assert table.sum(axis=1).to_dict() == {"imdb": 8, "agnews": 8, "qqp": 8}
    assert (table.loc["imdb"]).sum() == 8
    app = widgets._Inspector(saved, saved.parent)
    app.router.value = "centroid"
    app.route_button.click()
    assert f"{100 * answers['right'].mean():.1f} % to their own frame" in app.message.value
    buttons = cells(app.routed)
    assert sum(int(b.description or 0) for b in buttons) == 24 and len(buttons) == 9
    button = next(b for b in buttons if b.description)
    label, said = button.tooltip.split(": ")
    button.click()
    found = widgets.behind(answers, label, said)
    assert len(found) == int(button.description) and found["text"][0][:20] in shown(app.routed)
    app.router.value = "hybrid_chain"
    assert not app.routed.children  # what another router did is not left standing


def test_mistakes_page_and_cells(saved, monkeypatch, data_dir):
    monkeypatch.setenv("SKILLSTACK_DATA", str(data_dir))
    app = widgets._Inspector(saved, saved.parent)
    app.frame.value = "agnews"
    app.card.children[3].click()
    text = shown(app.card.children[4])
    assert "mistakes, the most confident first" in text and "accuracy (%)" in text
    answers = widgets.own_answers(app.stack, "agnews", widgets.load_rows(app.stack["agnews"]))
    counts = {b.tooltip: int(b.description or 0) for b in cells(app.card.children[4])}
    table = widgets.confusion_table(answers)
    assert counts == {f"{a}: {b}": table.loc[a, b] for a in table.index for b in table}


def test_bad_input_is_one_line(saved, tmp_path):
    app = widgets._Inspector(None, tmp_path)
    app.ask_button.click()
    assert "open a stack first" in app.message.value
    app.path.value = str(tmp_path)
    app.open_button.click()
    assert "stack.json is missing" in app.message.value
    (tmp_path / "file").touch()
    for wrong in (str(tmp_path / "file"), "x" * 3000):
        app.path.value = wrong
        app.open_button.click()
        assert "B00020" in app.message.value and wrong[:20] in app.message.value
    app.path.value = str(saved)
    app.open_button.click()
    assert "3 frames" in app.message.value
    app.ask_button.click()
    assert "type a text first" in app.message.value


def test_a_stack_without_routers_or_rows_can_be_looked_at(saved, tmp_path, monkeypatch):
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    without = shutil.ignore_patterns("routers")
    folder = shutil.copytree(saved, tmp_path / "stack", ignore=without)
    app = widgets._Inspector(folder, tmp_path)
    assert "3 frames on" in app.message.value and "none could be fitted" in app.message.value
    assert "own evaluation rows" in shown(app.card) and "agnews" in shown(app.chain)
    app.text.value = "a text"
    for button in (app.ask_button, app.route_button):
        button.click()
        assert "this stack has no router" in app.message.value


def test_a_compressed_stack_is_shown(saved, stack, tmp_path):
    small = compression.int8(compression.drop(stack, "agnews", to="qqp"), names=["qqp"])
    folder = small.save_pretrained(tmp_path / "small")
    shutil.copytree(saved / "routers", folder / "routers")
    app = widgets._Inspector(folder, tmp_path)
    assert "2 frames on" in app.message.value, app.message.value
    assert "What qqp moved" not in app.message.value and len(app.card.children) == 5
    app.text.value = "class1 agnewsword"
    app.ask_button.click()
    assert "answers" in app.message.value and "answered by" in shown(app.answer)
    assert f"<td>{stack['imdb'].nbytes}</td>" in shown(app.chain)  # whole bytes


def test_figures_can_be_drawn(stack, stream):
    frame = stack["qqp"]
    assert widgets.training_curve(frame).get_xlabel() == "training step"
    table = widgets.layer_norms(frame)
    assert widgets.layer_figure(table, "a title").get_title() == "a title"
    answers = widgets.own_answers(stack, "agnews", stream[1])
    assert "answer" in widgets.confusion_figure(answers).get_xlabel()
    walked = pd.DataFrame({"step": ["passed", "answers"]}, index=["qqp", "agnews"])
    boxes = [text.get_bbox_patch() for text in widgets.chain_figure(stack, walked).texts]
    colors = [matplotlib.colors.to_hex(b.get_facecolor()) for b in boxes if b is not None]
    assert colors[:3] == ["#e8e8e8", "#009e73", "#ffffff"]
