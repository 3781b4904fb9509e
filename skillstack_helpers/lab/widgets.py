"""The inspector: the tables of `views` and the figures of `plotting` on ipywidgets, for notebooks.

``python -m skillstack_helpers.lab.widgets DIR`` serves it as a page of its own, on loopback. Texts
typed by a user are shown as they are and never interpreted as HTML; folders are only read.
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ..errors import SkillStackError, first_line
from ..progress import silent
from ..routers import load_router
from ..stack import SkillStack
from ..tasks import TASKS
from . import plotting, views
from .display import png
from .experiment import (
    find_stacks,
    load_rows,
    newest_stack,
    open_stack,
    saved_routers,
    stack_routers,
)
from .runs import placed

PAGE = 5  # texts shown at a time
BESIDE = 8  # frames that answer unasked beside the routed one, the best scores first
MOST_LABELS = 16  # of a drawn confusion matrix
ROUTED_ROWS = 16  # evaluation rows of a task that the router's confusion matrix counts
EXAMPLES = {  # family of a task -> what a button says -> the text it puts in
    "sentiment": {
        "a film": "A slow film with clumsy dialogue, but the last scene moved me to tears.",
        "a product": "The charger stopped working after two days and the shop did not answer.",
    },
    "topic": {
        "news": "Shares in the airline fell on Tuesday after it warned that rising fuel costs "
        "would cut its annual profit. Analysts said it would have to raise fares or close routes.",
    },
    "": {"none of these": "Stir the onions in butter until they are soft, then add the rice."},
}
STYLE = """<style>
.skillstack-inspector table.skillstack :is(td, th) {text-align: left; line-height: 1.5}
.skillstack-inspector table.skillstack :is(td, th) {padding: 1px 12px 1px 0}
.skillstack-inspector .widget-html-content {overflow-x: auto}
.skillstack-inspector img {max-width: 100%}
.skillstack-inspector .lm-TabBar-tabLabel {color: #333}
.skillstack-inspector .said {font-size: 110%; line-height: 1.4; min-height: 1.4em; margin: 4px 0}
.skillstack-inspector .wrong {color: #B00020}
.skillstack-inspector .card {border-left: 6px solid #009E73; padding: 6px 14px; line-height: 1.5}
.skillstack-inspector .card b {font-size: 130%}
.skillstack-inspector .note {color: #555; line-height: 1.4; margin: 0}
.skillstack-inspector .two {display: grid !important; grid-template-columns: minmax(0, 1fr)}
@media (min-width: 1000px) {
.skillstack-inspector .two {grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); column-gap: 28px}
}</style>"""
SHORTCUT = """window.addEventListener("keydown", (event) => {
if (event.ctrlKey && event.key === "Enter" && event.target.tagName === "TEXTAREA")
event.target.closest(".skillstack-inspector").querySelector(".ask-button").click()}, true)"""


def inspector(
    folder: str | Path | None = None,
    root: str | Path = "results",
    data_dir: str | Path | None = None,
    below: str | Path | None = None,
    models: Sequence[str] | None = None,
):
    """The inspector as one widget: pick a stack, look at its chain and frames, ask it, and compare
    two of them.

    folder: a saved stack, opened at once; root: where the picker looks, both relative to the
    repository; data_dir: where the rows come from, if not from where they came in training.
    below: the folder below which a stack must lie, links followed; models: hub ids and folders that
    a stack may have loaded besides the packaged models. None: any, for a user of this process.
    """
    return Inspector(folder, root, data_dir, below, models).view


def guarded(tab: str, button: str = "", sign: str = ""):
    """A callback that shows what is wrong in the line of its tab instead of a traceback. While it
    works, its button (an attribute) is disabled and says so. Every handler of the page is one, so
    that no file, however odd, leaves it waiting."""

    def wrap(callback):
        @functools.wraps(callback)
        def run(self, *arguments):
            pressed = getattr(self, button, None)
            if pressed is not None:
                words, pressed.description, pressed.disabled = pressed.description, sign, True
            try:
                with silent():
                    callback(self, *arguments)
            except (SkillStackError, OSError) as error:
                self.say(tab, str(error), wrong=True)
            except Exception as error:
                self.say(tab, f"{type(error).__name__}: {first_line(error)}", wrong=True)
            finally:
                if pressed is not None:
                    pressed.description, pressed.disabled = words, False

        return run

    return wrap


class Inspector:
    """State and callbacks behind `inspector`; `view` is the widget.

    >>> app = Inspector()
    >>> app.ask_button.click()
    >>> app.messages["Ask"].value
    '<p class="said wrong" role="status" aria-live="polite">open a stack first</p>'
    """

    def __init__(self, folder=None, root="results", data_dir=None, below=None, models=None):
        import ipywidgets as w

        self.w, self.data_dir, self.below, self.models = w, data_dir, below, models
        self.backbones, self.routers = {}, {}
        self.stack, self.second_stack = None, None
        named = {"style": {"description_width": "6.5em"}}
        wide = named | {"layout": w.Layout(width="98%")}
        tabs = ("Stack", "Ask", "Chain", "Frame", "Router", "Compare")
        self.messages = {tab: w.HTML() for tab in tabs}
        self.picker = w.Dropdown(
            options=[("choose a saved stack", "")], description="saved stack", **wide
        )
        self.path = w.Text(description="or a folder", placeholder="path of a stack", **wide)
        self.open_button = w.Button(description="Open")
        self.text = w.Textarea(
            description="text", placeholder="type or paste a text", rows=6, **wide
        )
        self.pair = w.Textarea(
            description="second text", placeholder="for tasks about two texts", rows=3, **wide
        )
        self.examples = w.HBox(layout={"flex_flow": "row wrap"})
        self.router = w.Dropdown(description="router", **named)
        self.threshold = w.FloatText(
            description="threshold", step=0.1, layout={"width": "13em"}, **named
        )
        self.threshold_note = w.HTML()
        self.form = w.Dropdown(description="written as", **named)
        self.ask_button = w.Button(description="Answer", button_style="primary")
        self.ask_button.add_class("ask-button")
        self.all_button = w.Button(description="Ask all frames")
        self.frame = w.Dropdown(description="frame", **named)
        self.rows_button = w.Button(
            description="Its answers and mistakes", layout={"width": "16em"}
        )
        route = "Route evaluation texts of every task"
        self.route_button = w.Button(description=route, layout={"width": "22em"})
        self.second = w.Dropdown(options=[("this stack", "")], description="other stack", **wide)
        self.other = w.Dropdown(description="with frame", **named)
        self.answer, self.chain, self.card, self.drawn, self.rows, self.routed, self.compared = (
            w.VBox() for _ in range(7)
        )
        self.view = self.layout()
        self.connect()
        self.begin(folder, root)

    @guarded("Stack")
    def begin(self, folder, root) -> None:
        """Look for stacks, and open the one that is given."""
        found = {str(path.relative_to(placed(root))): str(path) for path in find_stacks(root)}
        for box in (self.picker, self.second):
            box.options = [*box.options, *found.items()]
        path = "" if folder is None else str(placed(folder))
        if path in found.values():
            self.picker.value = path  # opens it
        elif folder is not None:
            self.path.value = str(folder)
            self.open(str(folder))

    def layout(self):
        """Everything on its tab, with the line of the tab; a control that two tabs have is the same
        one."""
        w, said = self.w, self.messages
        note = "<p class='note'>‘written as’: the text in the format of a task’s training.</p>"
        asked = [self.examples, self.text, self.pair, self.router, self.threshold]
        asked += [self.threshold_note, self.form, w.HTML(note), self.ask_button]
        pages = {
            "Ask": [self.two(w.VBox(asked), w.VBox([said["Ask"], self.answer]))],
            "Chain": [said["Chain"], self.chain],
            "Frame": [
                self.frame,
                self.two(self.card, self.drawn),
                self.rows_button,
                said["Frame"],
                self.rows,
            ],
            "Router": [
                w.HBox([self.router, self.threshold, self.route_button]),
                said["Router"],
                self.routed,
            ],
            "Compare": [
                self.second,
                w.HBox([self.frame, self.other]),
                said["Compare"],
                self.compared,
            ],
        }
        tabs = w.Tab([w.VBox(page) for page in pages.values()])
        for i, title in enumerate(pages):
            tabs.set_title(i, title)  # also in ipywidgets 7, which Colab has
        opened = self.two(self.picker, w.HBox([self.path, self.open_button]))
        view = w.VBox([w.HTML(STYLE), opened, said["Stack"], tabs])
        view.add_class("skillstack-inspector")
        return view

    def two(self, one, other):
        """Side by side where the page is wide."""
        box = self.w.Box([one, other])
        box.add_class("two")
        return box

    def connect(self) -> None:
        self.picker.observe(lambda change: self.open(change["new"]), "value")
        self.open_button.on_click(lambda _: self.open(self.path.value.strip()))
        self.frame.observe(self.show_frame, "value")
        self.ask_button.on_click(self.show_answer)
        self.all_button.on_click(self.ask_all)
        self.rows_button.on_click(self.show_rows)
        self.router.observe(self.choose_router, "value")
        self.threshold.observe(self.set_threshold, "value")
        self.route_button.on_click(self.show_routed)
        self.second.observe(self.choose_second, "value")
        self.other.observe(self.show_compared, "value")

    # ------------------------------------------------------------------ what is shown, and how

    def say(self, tab: str, text: str, wrong: bool = False) -> None:
        kind = "said wrong" if wrong else "said"
        line = f'<p class="{kind}" role="status" aria-live="polite">{html.escape(text)}</p>'
        self.messages[tab].value = line

    def title(self, text: str):
        return self.w.HTML(f"<b>{html.escape(text)}</b>")

    def table(self, table: pd.DataFrame, name: str = "shown"):
        how = {"escape": True, "border": 0, "float_format": "{:.2f}".format, "index_names": False}
        return self.w.HTML(table.to_html(classes=["skillstack", name], **how))

    def texts(self, table: pd.DataFrame):
        return self.table(table.assign(text=table["text"].str.slice(0, 300)))

    def image(self, ax: Axes, alt: str):
        code = base64.b64encode(png(ax)).decode()
        return self.w.HTML(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">')

    def pages(self, tab: str, table: pd.DataFrame) -> list:
        """Texts on a tab, `PAGE` at a time, below the number of the page."""
        last = max(1, -(-len(table) // PAGE))
        page = self.w.BoundedIntText(value=1, min=1, max=last, description=f"page 1–{last}")
        listed = self.w.VBox()

        @guarded(tab)
        def turn(self, _=None) -> None:
            listed.children = [self.texts(table.iloc[(page.value - 1) * PAGE : page.value * PAGE])]

        page.observe(functools.partial(turn, self), "value")
        turn(self)
        return [page, listed]

    def confusion(self, tab: str, answers: pd.DataFrame, row: str, column: str) -> list:
        """The confusion matrix as a heat map on a tab, and the texts of the cell chosen below it;
        row and column say what its axes are."""
        counts = views.confusion_table(answers)
        drawn = views.confusion_table(answers, MOST_LABELS)
        cut = f"; the {MOST_LABELS} rows with most mistakes" if len(drawn) < len(counts) else ""
        title = f"Share of each {row} (%){cut}"
        ax = plotting.confusion(drawn, ylabel=row, xlabel=column, title=title)
        image = self.image(ax, f"Heat map: rows {row}, columns {column}, colour share of the row")
        label = self.w.Dropdown(options=list(counts.index[counts.any(axis=1)]), description=row)
        answer = self.w.Dropdown(description=column)
        found = self.w.VBox()

        @guarded(tab)
        def choose(self, _=None) -> None:
            cells = counts.loc[label.value]
            answer.options = [(f"{name} ({n})", name) for name, n in cells.items() if n]
            look(self)

        @guarded(tab)
        def look(self, _=None) -> None:
            texts = views.examples_in_cell(answers, label.value, answer.value)
            found.children = [self.texts(texts.head(PAGE))]

        label.observe(functools.partial(choose, self), "value")
        answer.observe(functools.partial(look, self), "value")
        choose(self)
        return [image, self.title("Texts of one cell"), self.w.HBox([label, answer]), found]

    # ------------------------------------------------------------------ a stack, a frame

    def place(self, folder: str) -> Path:
        """Where a stack lies, if it may be opened; links are followed before that is decided."""
        path = placed(folder)
        if self.below is not None:
            path, below = path.resolve(), placed(self.below).resolve()
            if not path.is_relative_to(below):
                how = "start the page with --anywhere to open other folders"
                raise SkillStackError(f"{folder} is not below {below}: {how}")
        return path

    @guarded("Stack", "open_button", "opening …")
    def open(self, folder: str) -> None:
        if not folder:
            return
        self.say("Stack", f"opening {folder} …")
        path = self.place(folder)
        stack = open_stack(path, self.backbones, self.models)
        links = views.chain_table(stack)  # reads every file: once a stack
        routers, missing = {}, ""
        try:
            routers = saved_routers(path)  # each is loaded when it is chosen
            routers = routers or stack_routers(stack, path, self.data_dir)
        except SkillStackError as error:  # the rows are not at hand; everything else still is
            missing = f"; none could be fitted: {error}"
        drawn = self.image(plotting.chain_figure(links), "The chain of frames, latest first")
        chain = [drawn, self.table(views.readable_sizes(links))]
        self.show_examples(stack)
        self.stack = None  # no callback works on half of this stack and half of the last
        names = [frame.name for frame in reversed(stack.frames)]
        self.second.value = ""
        for box, options, place in (
            (self.router, list(routers), 0),
            (self.form, [("as it is", ""), *zip(names, names, strict=True)], 0),
            (self.frame, names, 0),
            (self.other, names, -1),  # the root
        ):
            box.options = options
            box.index = place % len(options) if options else None
        self.stack, self.routers, self.second_stack, self.links = stack, routers, stack, links
        self.chain.children = chain
        self.answer.children, self.routed.children = [], []
        for tab in self.messages:
            self.messages[tab].value = ""
        of = ", ".join(routers) or "none"
        self.say("Stack", f"{len(names)} frames on {stack.backbone.name}, routers: {of}{missing}")
        self.show_frame()
        self.choose_router()

    def show_examples(self, stack: SkillStack) -> None:
        """A button for each example text that a task of a stack is about, and one about nothing it
        knows; the box for a second text where a task has two."""
        frames = stack.frames
        pairs = any("{text_pair}" in views.template(frame) for frame in frames)
        families = {TASKS[frame.task].family for frame in frames if frame.task in TASKS}
        buttons = []
        for family, texts in EXAMPLES.items():
            for words, text in texts.items() if family in {"", *families} else ():
                button = self.w.Button(description=words, tooltip=text)
                button.on_click(lambda _, text=text: self.show_example(text))
                buttons.append(button)
        self.examples.children = buttons
        self.pair.layout.display = None if pairs else "none"

    @guarded("Ask")
    def show_example(self, text: str) -> None:
        self.text.value, self.pair.value, self.form.value = text, "", ""
        self.show_answer()

    @guarded("Frame")
    def show_frame(self, _=None) -> None:
        """The frame's card, and the comparison, which has the same frame on its side."""
        if self.stack is None or not self.frame.value:
            return
        frame = self.stack[self.frame.value]
        parent = views.parent_of(self.stack, frame)
        moved = f"What {frame.name} moved" + (f" from {parent.name}" if parent else "")
        curve = plotting.training_curve(frame.losses, f"Training of {frame.name}")
        layers = plotting.layer_figure(views.layer_norms(frame, parent), moved)
        self.card.children = [self.table(views.frame_card(frame))]
        self.drawn.children = [
            self.image(curve, f"Loss of every training step of {frame.name}"),
            self.image(layers, f"{moved}: size of the update in each layer and module"),
        ]
        self.rows.children = []
        self.messages["Frame"].value = ""
        self.show_compared()

    @guarded("Frame", "rows_button", "asking …")
    def show_rows(self, _=None) -> None:
        if self.stack is None:
            raise SkillStackError("open a stack first")
        frame = self.stack[self.frame.value]
        self.say("Frame", f"asking {frame.name} its evaluation rows …")
        answers = views.own_answers(self.stack, frame.name, load_rows(frame, self.data_dir))
        self.say("Frame", f"{frame.name}: {100 * answers['right'].mean():.1f} % correct")
        wrong = views.mistakes(answers)
        self.rows.children = [
            self.table(views.per_class(answers).map(str)),
            self.title(f"{len(wrong)} mistakes, the most confident first"),
            *self.pages("Frame", wrong),
            *self.confusion("Frame", answers, "label", "answer"),
        ]

    # ------------------------------------------------------------------ a router, a text

    def chosen_router(self):
        if self.stack is None:
            raise SkillStackError("open a stack first")
        if not self.routers:
            raise SkillStackError("this stack has no router")
        router = self.routers[self.router.value]
        if isinstance(router, Path):
            router = load_router(router, backbone=self.stack.backbone, stack=self.stack)
            self.routers[self.router.value] = router
        return router

    @guarded("Ask")
    def choose_router(self, _=None) -> None:
        """Show the chosen router's threshold, if it has one, and answer again."""
        if self.stack is not None and self.router.value:
            threshold = self.chosen_router().get_params().get("threshold")
            self.threshold.disabled = threshold is None
            self.threshold.value = threshold or 0.0
            why = f"{self.router.value} compares all frames: it has no threshold"
            why = why if threshold is None else "threshold: margin a frame needs to answer"
            self.threshold_note.value = f"<p class='note'>{html.escape(why)}</p>"
            self.answer_again()

    @guarded("Ask")
    def set_threshold(self, _=None) -> None:
        if self.stack is not None and not self.threshold.disabled:
            router = self.chosen_router()
            if router.get_params()["threshold"] != self.threshold.value:
                router.set_params(threshold=self.threshold.value)
                self.answer_again()

    def answer_again(self) -> None:
        self.routed.children = []
        if self.text.value.strip():
            self.show_answer()

    @guarded("Router", "route_button", "routing …")
    def show_routed(self, _=None) -> None:
        router = self.chosen_router()
        self.say("Router", f"routing {ROUTED_ROWS} texts of each of {len(self.stack)} tasks …")
        stream = [load_rows(frame, self.data_dir) for frame in self.stack.frames]
        answers = views.routed_frames(router, stream, ROUTED_ROWS)
        share = f"{100 * answers['right'].mean():.1f} % to their own frame"
        self.say("Router", f"{self.router.value}: {share}")
        self.routed.children = self.confusion("Router", answers, "task", "sent to")

    @guarded("Ask", "ask_button", "asking …")
    def show_answer(self, _=None) -> None:
        router = self.chosen_router()
        if not self.text.value.strip():
            raise SkillStackError("type a text first")
        self.say("Ask", "asking …")
        text = self.text.value
        if self.form.value:
            text = views.render(self.stack[self.form.value], text, self.pair.value)
        if not self.form.value and self.pair.value.strip():
            text = f"{text}\n{self.pair.value}"
        steps = views.walk_table(router, text)
        (who,) = steps.index[steps["step"].str.startswith("answers")]
        first = views.ask(self.stack, text, [who])
        names = steps.drop(who)["score"].sort_values(ascending=False, kind="stable").index
        self.asked, self.left, self.others = text, list(names), []
        drawn = plotting.chain_figure(self.links, steps, title="This text's score in every frame")
        shown = steps.rename(columns={"probability": "router's confidence"})
        self.above = [
            self.verdict(who, first, steps),
            self.image(drawn, f"The chain of frames with this text's scores; {who} answers"),
            self.title(f"The scores of {self.router.value}"),
            self.table(shown, "walk"),
        ]
        self.answer.children = self.above  # seen before the other frames are asked
        self.say("Ask", "")
        self.ask_others(BESIDE)

    def verdict(self, who: str, first: pd.DataFrame, steps: pd.DataFrame):
        """Who answers, what, how sure, and by which way."""
        visited = (steps["step"] != "not reached").sum()
        if "compared" in set(steps["step"]):
            way = f"best score of all {len(steps)} frames"
        elif steps.loc[who, "step"] == "answers (fallback)":
            way = f"none of {visited} frames was above the threshold: the best score (fallback)"
        else:
            way = f"first frame above the threshold, {visited} of {len(steps)} visited"
        label, sure = html.escape(str(first["answer"].item())), first["probability"].item()
        return self.w.HTML(
            f'<div class="card" role="status" aria-live="polite">{html.escape(who)} says '
            f"<b>{label}</b> ({100 * sure:.0f} %)<br>{way}</div>"
        )

    @guarded("Ask", "all_button", "asking …")
    def ask_all(self, _=None) -> None:
        self.ask_others(len(self.left))

    def ask_others(self, most: int) -> None:
        """The answers of so many more frames, the best scores first, below what is shown."""
        now, self.left = self.left[:most], self.left[most:]
        if now:
            self.others.append(views.ask(self.stack, self.asked, now))
            table = self.table(pd.concat(self.others).fillna(""), "answers")
            more = [self.all_button] if self.left else []
            title = self.title("What other frames would have said")
            self.answer.children = [*self.above, title, table, *more]

    # ------------------------------------------------------------------ two of them

    @guarded("Compare")
    def choose_second(self, _=None) -> None:
        if self.stack is not None:
            chosen = self.second.value
            second = self.stack
            if chosen:
                second = open_stack(self.place(chosen), self.backbones, self.models)
            self.second_stack = second
            self.other.options = [frame.name for frame in reversed(self.second_stack.frames)]
            self.show_compared()

    @guarded("Compare")
    def show_compared(self, _=None) -> None:
        self.compared.children = []
        if self.stack is None or not self.frame.value or not self.other.value:
            return
        self.messages["Compare"].value = ""
        one, other = self.stack[self.frame.value], self.second_stack[self.other.value]
        if self.second_stack is not self.stack:
            table = views.compare_stacks(self.stack, self.second_stack)
            self.compared.children = [self.table(views.readable_sizes(table))]
        if one is not other:
            where = "" if self.second_stack is self.stack else " of the second stack"
            title = f"Cosine between the updates of {one.name} and {other.name}{where}"
            ax = plotting.layer_figure(views.compare_frames(one, other), "", label="cosine")
            shown = [self.title(title), self.image(ax, f"{title}, by layer and module")]
            self.compared.children = [*self.compared.children, *shown]
        elif self.second_stack is self.stack:
            self.say("Compare", "choose two different frames")


# ---------------------------------------------------------------------- the page


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m skillstack_helpers.lab.widgets")
    parser.add_argument("folder", type=Path, help="where to look for a stack; the newest is opened")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument(
        "--anywhere", action="store_true", help="the page may open stacks outside the folder too"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="hub id or folder of a backbone that a stack may have loaded besides the packaged "
        "ones; can be given several times",
    )
    arguments = parser.parse_args(argv)
    root = arguments.folder.resolve()
    below = None if arguments.anywhere else str(root)
    try:
        from . import page
    except ImportError as error:  # an extra
        raise SystemExit(f"error: {error}: pip install voila") from None
    try:
        folder = newest_stack(root)
        shown = f"{str(folder)!r}, {str(root)!r}, below={below!r}, models={arguments.model!r}"
        cells = [
            "from IPython.display import Javascript\n"
            "from skillstack_helpers.lab import widgets as w",
            f"display(w.inspector({shown}))\n"
            "display(Javascript(w.SHORTCUT))  # Ctrl+Enter in a text is the button Answer",
        ]
        say = functools.partial(print, flush=True)
        say(f"stack     {folder}\nstop with Ctrl+C; the page is at")
        raise SystemExit(page.serve(cells, arguments.port, say, "SkillStack inspector"))
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
