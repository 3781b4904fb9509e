import functools
import shutil

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import pytest
from conftest import edit_json

from skillstack_helpers import compression
from skillstack_helpers.files import file_sha256
from skillstack_helpers.lab import views, widgets
from skillstack_helpers.lab.experiment import load_rows, open_stack
from skillstack_helpers.stack import SkillStack


@pytest.fixture
def app(saved):
    return widgets.Inspector(saved, saved.parent)


def below(box, kind: str) -> list:
    """All widgets of a kind below a widget, in order."""
    found = [box] if type(box).__name__ == kind else []
    return found + [w for child in getattr(box, "children", ()) for w in below(child, kind)]


def shown(box) -> str:
    """All HTML below a widget."""
    return "".join(html.value for html in below(box, "HTML"))


def said(app) -> str:
    """The lines of all tabs."""
    return "".join(line.value for line in app.messages.values())


def pictures(box) -> int:
    return shown(box).count("<img alt=")


def test_the_inspector_answers_as_the_api_does(app, stack, routers, stream):
    assert "3 frames on" in said(app) and next(iter(app.frame.options)) == "qqp"
    text = stream[1].texts("eval")[0]
    app.text.value = text
    for name in ("hybrid_chain", "centroid"):
        app.router.value = name
        app.ask_button.click()
        first = stack.answer([text], routers[name]).iloc[0]
        card = f"{first['frame']} says <b>{first['label_name']}</b>"
        way = "best score of all 3" if name == "centroid" else "first frame above the threshold"
        assert card in shown(app.answer) and way in shown(app.answer)
        assert pictures(app.answer) == 1 and "answers" in shown(app.answer)
    assert pictures(app.drawn) == 2 and "own evaluation rows" in shown(app.card)


def test_an_example_is_a_click_and_asks_at_once(app):
    film, product, *_, other = app.examples.children
    assert [film.description, product.description] == ["a film", "a product"]
    assert other.description == "none of these"
    film.click()
    assert "last scene" in app.text.value and "says <b>" in shown(app.answer)
    assert app.pair.layout.display is None  # qqp asks about two questions


def test_a_button_that_works_says_so_and_comes_back(app, monkeypatch):
    seen, ask = [], views.ask

    def slow(*arguments):
        seen.append((app.ask_button.description, app.ask_button.disabled))
        return ask(*arguments)

    monkeypatch.setattr(views, "ask", slow)
    app.text.value = "class1"
    app.ask_button.click()
    assert set(seen) == {("asking …", True)}
    app.text.value = " "
    app.ask_button.click()  # an error gives the button back too
    assert (app.ask_button.description, app.ask_button.disabled) == ("Answer", False)


def test_each_tab_has_a_line_of_its_own(app):
    app.ask_button.click()
    assert "type a text first" in app.messages["Ask"].value
    assert app.messages["Frame"].value == "" and "3 frames" in app.messages["Stack"].value
    assert 'aria-live="polite"' in app.messages["Ask"].value


def test_routers_are_loaded_when_they_are_chosen(saved, monkeypatch):
    loaded, load = [], widgets.load_router
    monkeypatch.setattr(
        widgets, "load_router", lambda path, **how: loaded.append(path.name) or load(path, **how)
    )
    app = widgets.Inspector(saved, saved.parent)
    assert loaded == ["hybrid_chain"]
    app.router.value = "centroid"
    app.router.value = "hybrid_chain"
    assert loaded == ["hybrid_chain", "centroid"]


def test_two_frames_and_two_stacks_are_compared(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "one")
    shutil.copytree(saved, tmp_path / "two")
    app = widgets.Inspector(tmp_path / "one", tmp_path)
    assert "Cosine between the updates of qqp and imdb" in shown(app.compared)
    assert pictures(app.compared) == 1  # latest against root
    app.other.value = "qqp"
    assert "choose two different frames" in said(app)
    app.other.value = "imdb"
    app.frame.value = "agnews"
    assert "updates of agnews and imdb" in shown(app.compared)
    app.second.value = str(tmp_path / "two")
    assert shown(app.compared).count("<td>yes</td>") == 3  # the same weights
    app.other.value = "agnews"  # of the other stack
    assert "updates of agnews and agnews of the second stack" in shown(app.compared)
    assert len(app.backbones) == 1


def test_typed_text_is_never_html(app):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script> class1"
    app.text.value = evil
    app.ask_button.click()
    html = shown(app.answer) + said(app)
    assert "<img src=x" not in html and "<script" not in html
    app.open("<b>/no/such/stack</b>")
    assert "<b>" not in said(app) and "is missing" in said(app)


def test_the_threshold_is_the_users(app, stream):
    app.text.value = stream[1].texts("eval")[0]
    app.router.value = "centroid"
    assert app.threshold.disabled and "visited" not in shown(app.answer)
    assert "has no threshold" in app.threshold_note.value
    app.router.value = "hybrid_chain"
    assert not app.threshold.disabled and app.threshold.value == 0
    app.threshold.value = 99.0
    assert "none of 3 frames was above the threshold" in shown(app.answer)
    app.threshold.value = -99.0
    assert "qqp says" in shown(app.answer) and "1 of 3 visited" in shown(app.answer)
    app.router.value = "centroid"
    app.router.value = "hybrid_chain"
    assert app.threshold.value == -99.0  # it stays with its router


def test_many_frames_are_asked_only_on_demand(saved, stream, monkeypatch):
    monkeypatch.setattr(widgets, "BESIDE", 1)
    asked, ask = [], views.ask
    monkeypatch.setattr(views, "ask", lambda *of: asked.extend(of[2]) or ask(*of))
    app = widgets.Inspector(saved, saved.parent)
    app.text.value = stream[1].texts("eval")[0]
    app.ask_button.click()
    rows = "<tr>"
    assert shown(app.answer.children[-2]).count(rows) == 1  # the next best
    app.answer.children[-1].click()
    assert shown(app.answer.children[-1]).count(rows) == 2  # all but the frame that answers
    assert len(asked) == len(set(asked)) == 3  # nobody twice


def cells(box, texts) -> dict[tuple[str, str], int]:
    """Every cell that the two dropdowns below a confusion matrix offer, with the count they name;
    `texts(label, answer)` must be among what they show."""
    label, answer = below(box, "Dropdown")
    counts = {}
    for row in label.options:
        label.value = row
        for told, column in answer.options:
            answer.value = column
            counts[row, column] = int(told.removeprefix(f"{column} (").removesuffix(")"))
            assert texts(row, column)["text"][0][:20] in shown(box)
    return counts


def nonzero(table) -> dict[tuple[str, str], int]:
    return {cell: n for cell, n in table.stack().items() if n}


def test_the_routers_confusion_opens_its_texts(
    saved, routers, stream, monkeypatch, data_dir
):  # fmt: skip
    monkeypatch.setattr(widgets, "ROUTED_ROWS", 8)
    answers = views.routed_frames(routers["centroid"], stream, 8)
    app = widgets.Inspector(saved, saved.parent, data_dir)
    app.router.value = "centroid"
    app.route_button.click()
    assert f"{100 * answers['right'].mean():.1f} % to their own frame" in said(app)
    assert pictures(app.routed) == 1
    found = cells(app.routed, lambda *cell: views.examples_in_cell(answers, *cell))
    assert found == nonzero(views.confusion_table(answers)) and sum(found.values()) == 24
    app.router.value = "hybrid_chain"
    assert not app.routed.children  # what another router did is not left standing


def test_mistakes_page_and_cells(saved, data_dir):
    app = widgets.Inspector(saved, saved.parent, data_dir)
    app.frame.value = "agnews"
    app.rows_button.click()
    space = app.rows
    assert "mistakes, the most confident first" in shown(space) and "accuracy (%)" in shown(space)
    answers = views.own_answers(
        app.stack, "agnews", load_rows(app.stack["agnews"], data_dir=data_dir)
    )
    wrong = views.mistakes(answers)
    (page,) = below(space, "BoundedIntText")
    assert page.max == -(-len(wrong) // widgets.PAGE)
    page.value = page.max
    assert wrong["text"].iloc[-1][:20] in shown(space)
    found = cells(space, lambda *cell: views.examples_in_cell(answers, *cell))
    assert found == nonzero(views.confusion_table(answers))


def test_a_large_confusion_matrix_is_cut_and_its_cells_are_not(app, monkeypatch, data_dir):
    monkeypatch.setattr(widgets, "MOST_LABELS", 2)
    drawn, draw = [], widgets.plotting.confusion

    def keep(table, **how):
        drawn.append((table, how["title"]))
        return draw(table, **how)

    monkeypatch.setattr(widgets.plotting, "confusion", keep)
    app.data_dir = data_dir
    app.route_button.click()
    ((table, title),), (label, _) = drawn, below(app.routed, "Dropdown")
    assert table.shape == (2, 2) and "the 2 rows with most mistakes" in title
    assert len(label.options) == 3


def test_rows_that_are_not_the_frames_are_refused_in_one_line(saved, tmp_path, data_dir):
    """D23: rows are compared by fingerprint."""
    others = shutil.copytree(data_dir, tmp_path / "data")
    for path in others.glob("*/test.parquet"):
        rows = pd.read_parquet(path)
        rows.assign(text=rows["text"] + " more").to_parquet(path, index=False)
    app = widgets.Inspector(saved, saved.parent, others)
    app.rows_button.click()
    assert "wrong" in app.messages["Frame"].value and "qqp" in said(app)
    assert not app.rows.children
    app.route_button.click()
    assert "wrong" in app.messages["Router"].value and not app.routed.children


def test_bad_input_is_one_line(saved, tmp_path):
    app = widgets.Inspector(None, tmp_path)
    app.ask_button.click()
    assert "open a stack first" in said(app)
    app.path.value = str(tmp_path)
    app.open_button.click()
    assert "stack.json is missing" in said(app)
    (tmp_path / "file").touch()
    for wrong in (str(tmp_path / "file"), "x" * 3000):
        app.path.value = wrong
        app.open_button.click()
        assert "said wrong" in said(app) and wrong[:20] in said(app)
    backbone = open_stack(saved).backbone
    app.open(str(SkillStack(backbone).save_pretrained(tmp_path / "interrupted")))
    assert "the stack has no frame yet" in said(app) and app.stack is None
    app.path.value = str(saved)
    app.open_button.click()
    assert "3 frames" in said(app)
    app.ask_button.click()
    assert "type a text first" in said(app)


def test_a_stack_without_routers_or_rows_can_be_looked_at(saved, tmp_path, monkeypatch):
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    without = shutil.ignore_patterns("routers")
    folder = shutil.copytree(saved, tmp_path / "stack", ignore=without)
    app = widgets.Inspector(folder, tmp_path)
    assert "3 frames on" in said(app) and "none could be fitted" in said(app)
    assert "own evaluation rows" in shown(app.card) and "agnews" in shown(app.chain)
    app.text.value = "a text"
    for button in (app.ask_button, app.route_button):
        button.click()
        assert "this stack has no router" in said(app)


def test_routers_are_fitted_on_rows_that_are_given(saved, tmp_path, monkeypatch, data_dir):
    monkeypatch.delenv("SKILLSTACK_DATA", raising=False)
    without = shutil.ignore_patterns("routers")
    folder = shutil.copytree(saved, tmp_path / "stack", ignore=without)
    app = widgets.Inspector(folder, tmp_path, data_dir)
    assert "routers: hybrid_chain, centroid" in said(app)
    app.text.value = "class1 agnewsword"
    app.ask_button.click()
    assert "says <b>" in shown(app.answer)


def test_nothing_is_written_by_looking(saved, tmp_path, data_dir):
    without = shutil.ignore_patterns("routers")
    for name, ignore in (("one", without), ("two", None)):
        shutil.copytree(saved, tmp_path / name, ignore=ignore)

    def files() -> dict:
        there = sorted(tmp_path.rglob("*"))
        return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in there}

    before = files()
    app = widgets.Inspector(tmp_path / "one", tmp_path, data_dir)
    for folder in ("one", "two", "none"):
        app.open(str(tmp_path / folder))
        app.text.value = "class1 agnewsword"
        for name in list(app.router.options):
            app.router.value = name
        for button in (app.ask_button, app.all_button, app.rows_button, app.route_button):
            button.click()
        app.frame.value = "agnews"
    app.second.value = str(tmp_path / "one")
    assert "updates of agnews" in shown(app.compared) and shown(app.routed)
    assert files() == before


def test_a_path_leads_nowhere_else(saved, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(saved, served / "stack")
    for name, where in (("link", saved), ("inside", served / "stack"), ("up", tmp_path)):
        (served / name).symlink_to(where)
    (served / "file").mkdir()
    (served / "file" / "stack.json").symlink_to(saved / "stack.json")
    app = widgets.Inspector(None, served, below=served)
    shutil.copytree(saved, tmp_path / "served too")
    out = (saved, served / "link", f"{served}/../served too", tmp_path / "served too", "results",
           served / "up" / "served too", "/", "~", "..", "/dev/stdin")  # fmt: skip
    for path in out:
        app.path.value = str(path)
        app.open_button.click()
        line = app.messages["Stack"].value
        assert f"is not below {served}: start the page with --anywhere" in line, line
        assert app.stack is None
    for path in (served / "stack", served / "inside", served / "up" / "served" / "stack"):
        app.open(str(path))
        assert "3 frames on" in app.messages["Stack"].value
        app.stack = None
    app.open(str(served / "stack"))
    app.second.options = [*app.second.options, ("odd", str(served / "link"))]
    app.second.value = str(served / "link")
    assert "is not below" in app.messages["Compare"].value and app.second_stack is app.stack
    free = widgets.Inspector(served / "link", served)
    assert "3 frames on" in said(free)


def test_the_page_loads_no_model_that_was_not_named(saved, model_dirs, tmp_path):
    app = widgets.Inspector(saved, saved.parent, models=["some/other"])
    line = app.messages["Stack"].value
    assert "is neither packaged nor" in line and "--model" in line and not app.backbones
    app = widgets.Inspector(saved, saved.parent, models=[str(model_dirs["bert"])])
    assert "3 frames on" in said(app)


def test_a_frame_with_an_odd_value_is_one_line(saved, tmp_path):
    """The page does not stay at "opening …", and the stack that was open still is."""
    odd = shutil.copytree(saved, tmp_path / "odd")
    path = odd / "frames" / "agnews" / "frame.json"
    edit_json(path, lambda fields: fields["metrics"].update(accuracy=["much"]))
    edit_json(odd / "stack.json", lambda m: m["frames"][1].update(sha256=file_sha256(path)))
    app = widgets.Inspector(saved, tmp_path)
    chain = app.chain.children
    app.open(str(odd))
    line = app.messages["Stack"].value
    assert "said wrong" in line and "opening" not in line and "\n" not in line
    assert app.chain.children == chain and len(app.stack) == 3
    app.text.value = "class1"
    app.ask_button.click()
    assert "says <b>" in shown(app.answer)


def callbacks(app) -> list:
    """Every handler on the page, ready to be called; what it raises is raised."""
    found = []
    for button in [*below(app.view, "Button"), app.all_button]:
        found += [functools.partial(each, button) for each in button._click_handlers.callbacks]
    for kind in ("Dropdown", "BoundedIntText", "FloatText"):
        for box in below(app.view, kind):
            handlers = box._trait_notifiers["value"]["change"]
            ours = [each for each in handlers if type(each).__name__ != "ObserveHandler"]
            found += [functools.partial(each, {"new": str(app.path.value)}) for each in ours]
    return found


def test_whatever_goes_wrong_in_a_callback_is_one_line(saved, data_dir, monkeypatch):
    app = widgets.Inspector(saved, saved.parent, data_dir)
    app.text.value, app.path.value = "class1", str(saved)
    for button in (app.ask_button, app.rows_button, app.route_button):
        button.click()

    def odd(*_, **__):
        raise TypeError("<b>odd</b> value\nand more")

    used = callbacks(app)
    assert len(used) > 18
    for module in (views, widgets.plotting):
        for name, what in vars(module).copy().items():
            if getattr(what, "__module__", "") == module.__name__:
                monkeypatch.setattr(module, name, odd)
    for name in ("open_stack", "load_rows", "load_router", "find_stacks"):
        monkeypatch.setattr(widgets, name, odd)
    for name in ("table", "texts", "image"):
        monkeypatch.setattr(widgets.Inspector, name, odd)
    failed = 0
    for use in used:
        for line in app.messages.values():
            line.value = ""
        use()
        assert "…" not in said(app) and "and more" not in said(app)
        failed += "TypeError: &lt;b&gt;odd&lt;/b&gt; value</p>" in said(app)
    assert failed > 15
    assert not any(button.disabled for button in below(app.view, "Button"))
    line = widgets.Inspector(saved, saved.parent).messages["Stack"].value  # while it is made
    assert "TypeError: &lt;b&gt;odd" in line


def test_a_compressed_stack_is_shown(saved, stack, tmp_path):
    small = compression.int8(compression.drop(stack, "agnews", to="qqp"), names=["qqp"])
    folder = small.save_pretrained(tmp_path / "small")
    shutil.copytree(saved / "routers", folder / "routers")
    app = widgets.Inspector(folder, tmp_path)
    assert "2 frames on" in said(app), said(app)
    app.text.value = "class1 agnewsword"
    app.ask_button.click()
    assert "says" in shown(app.answer) and "answered by" in shown(app.answer) + shown(app.chain)
    assert f"<td>{views.in_words(stack['imdb'].nbytes)}</td>" in shown(app.chain)


def test_the_view_is_a_widget(saved):
    view = widgets.inspector(saved, saved.parent)
    assert "3 frames on" in shown(view)
    assert {"Answer", "Open"} <= {button.description for button in below(view, "Button")}
