"""The inspector: the tables of `views` and the figures of `plotting` on ipywidgets, for notebooks.

Texts typed by a user are shown as they are and never interpreted as HTML.
"""

from __future__ import annotations

import functools
import html
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from ..errors import SkillStackError
from ..frames import Frame
from . import plotting, views
from .experiment import find_stacks, load_rows, open_stack, stack_routers
from .runs import placed

PAGE = 5  # texts shown at a time
BESIDE = 8  # frames that answer unasked beside the routed one, the best scores first
MOST_LABELS = 16  # of a drawn confusion matrix
ROUTED_ROWS = 16  # evaluation rows of a task that the router's confusion matrix counts
STYLE = """<style>
.skillstack-inspector table.skillstack :is(td, th) {text-align: left; line-height: 1.5}
.skillstack-inspector table.skillstack :is(td, th) {padding: 1px 12px 1px 0}
.skillstack-inspector .said {font-size: 120%; line-height: 1.4}
.skillstack-inspector .asked {white-space: pre-wrap; word-break: normal; line-height: 1.4}
</style>"""


def inspector(
    folder: str | Path | None = None,
    root: str | Path = "results",
    data_dir: str | Path | None = None,
):
    """The inspector as one widget: pick a stack, look at its chain and frames, ask it, and compare
    two of them.

    folder: a saved stack, opened at once; root: where the picker looks, both relative to the
    repository; data_dir: where the rows come from, if not from where they came in training.
    """
    return Inspector(folder, root, data_dir).view


def guarded(callback):
    """A callback that shows what is wrong in one line instead of a traceback."""

    @functools.wraps(callback)
    def run(self, *arguments):
        try:
            callback(self, *arguments)
        except (OSError, ValueError) as error:
            self.say(str(error), "#B00020")

    return run


class Inspector:
    """State and callbacks behind `inspector`; `view` is the widget.

    >>> app = Inspector()
    >>> app.ask_button.click()
    >>> app.message.value
    '<p class="said" style="color:#B00020">open a stack first</p>'
    """

    def __init__(self, folder=None, root="results", data_dir=None):
        import ipywidgets as w

        self.w, self.data_dir, self.backbones = w, data_dir, {}
        self.stack, self.second_stack, self.routers = None, None, {}
        found = {str(path.relative_to(placed(root))): str(path) for path in find_stacks(root)}
        wide = w.Layout(width="98%")
        self.message = w.HTML()
        self.picker = w.Dropdown(options={"choose a saved stack": "", **found}, layout=wide)
        self.path = w.Text(placeholder="or a folder, then Open", layout=wide)
        self.open_button = w.Button(description="Open", button_style="primary")
        self.text = w.Textarea(placeholder="type or paste a text", layout=wide, rows=4)
        self.pair = w.Textarea(placeholder="a second text, for pair tasks", layout=wide, rows=2)
        self.router = w.Dropdown(description="router")
        self.threshold = w.FloatText(description="threshold", step=0.1, layout={"width": "12em"})
        self.form = w.Dropdown(description="written as")
        self.ask_button = w.Button(description="Answer", button_style="primary")
        self.frame = w.Dropdown(description="frame")
        route = "Route evaluation texts of every task"
        self.route_button = w.Button(description=route, layout={"width": "22em"})
        self.second = w.Dropdown(options={"this stack": "", **found}, layout=wide)
        self.other = w.Dropdown(description="with frame")
        self.answer, self.chain, self.card, self.routed, self.compared = (
            w.VBox() for _ in range(5)
        )
        self.view = self.layout()
        self.connect()
        path = "" if folder is None else str(placed(folder))
        if path in found.values():
            self.picker.value = path  # opens it
        elif folder is not None:
            self.path.value = str(folder)
            self.open(str(folder))

    def layout(self):
        """Everything on its tab; a control that two tabs have is the same one."""
        w = self.w
        asked = w.HBox([self.router, self.threshold, self.form, self.ask_button])
        pages = {
            "Ask": [self.text, self.pair, asked, self.answer],
            "Chain": [self.chain],
            "Frame": [self.frame, self.card],
            "Router": [w.HBox([self.router, self.threshold, self.route_button]), self.routed],
            "Compare": [self.second, w.HBox([self.frame, self.other]), self.compared],
        }
        tabs = w.Tab([w.VBox(page) for page in pages.values()])
        for i, title in enumerate(pages):
            tabs.set_title(i, title)  # also in ipywidgets 7, which Colab has
        opened = w.HBox([self.path, self.open_button])
        view = w.VBox([w.HTML(STYLE), self.picker, opened, self.message, tabs])
        view.add_class("skillstack-inspector")
        return view

    def connect(self) -> None:
        self.picker.observe(lambda change: self.open(change["new"]), "value")
        self.open_button.on_click(lambda _: self.open(self.path.value.strip()))
        self.frame.observe(self.show_frame, "value")
        self.ask_button.on_click(self.show_answer)
        self.router.observe(self.choose_router, "value")
        self.threshold.observe(self.set_threshold, "value")
        self.route_button.on_click(self.show_routed)
        self.second.observe(self.choose_second, "value")
        self.other.observe(self.show_compared, "value")

    # ------------------------------------------------------------------ what is shown, and how

    def say(self, text: str, color: str = "black") -> None:
        self.message.value = f'<p class="said" style="color:{color}">{html.escape(text)}</p>'

    def title(self, text: str):
        return self.w.HTML(f"<b>{html.escape(text)}</b>")

    def table(self, table: pd.DataFrame, name: str = "shown"):
        how = {"escape": True, "border": 0, "float_format": "{:.3f}".format, "index_names": False}
        return self.w.HTML(table.to_html(classes=["skillstack", name], **how))

    def texts(self, table: pd.DataFrame):
        return self.table(table.assign(text=table["text"].str.slice(0, 300)))

    def image(self, ax: Axes):
        out = io.BytesIO()
        ax.figure.savefig(out, format="png", dpi=110)
        plt.close(ax.figure)
        layout = {"max_width": "100%", "align_self": "flex-start"}
        return self.w.Image(value=out.getvalue(), format="png", layout=layout)

    def pages(self, table: pd.DataFrame) -> list:
        """Texts, `PAGE` at a time, below the number of the page."""
        last = max(1, -(-len(table) // PAGE))
        page = self.w.BoundedIntText(value=1, min=1, max=last, description=f"page 1–{last}")
        listed = self.w.VBox()

        def turn(_=None) -> None:
            listed.children = [self.texts(table.iloc[(page.value - 1) * PAGE : page.value * PAGE])]

        page.observe(turn, "value")
        turn()
        return [page, listed]

    def confusion(self, answers: pd.DataFrame, row: str, column: str) -> list:
        """The confusion matrix as a heat map, and the texts of the cell chosen below it; row and
        column say what its axes are."""
        counts = views.confusion_table(answers)
        drawn = views.confusion_table(answers, MOST_LABELS)
        cut = f" (the {MOST_LABELS} rows with most mistakes)" if len(drawn) < len(counts) else ""
        image = self.image(
            plotting.confusion(drawn, ylabel=row, xlabel=column, title=f"count{cut}")
        )
        label = self.w.Dropdown(options=list(counts.index[counts.any(axis=1)]), description=row)
        answer = self.w.Dropdown(description=column)
        found = self.w.VBox()

        def choose(_=None) -> None:
            cells = counts.loc[label.value]
            answer.options = [(f"{name} ({n})", name) for name, n in cells.items() if n]
            look()

        def look(_=None) -> None:
            texts = views.examples_in_cell(answers, label.value, answer.value)
            found.children = [self.texts(texts.head(PAGE))]

        label.observe(choose, "value")
        answer.observe(look, "value")
        choose()
        return [image, self.title("Texts of one cell"), self.w.HBox([label, answer]), found]

    # ------------------------------------------------------------------ a stack, a frame

    @guarded
    def open(self, folder: str) -> None:
        if not folder:
            return
        self.say(f"opening {folder} …")
        stack = open_stack(folder, self.backbones)
        links = views.chain_table(stack)  # reads every file: once a stack
        routers, missing = {}, ""
        try:
            routers = stack_routers(stack, folder, data_dir=self.data_dir)
        except SkillStackError as error:  # the rows are not at hand; everything else still is
            missing = f"; none could be fitted: {error}"
        self.stack = None  # no callback works on half of this stack and half of the last
        names = [frame.name for frame in stack.chain()]
        self.second.value = ""
        for box, options in (
            (self.router, list(routers)),
            (self.form, [("as it is", ""), *zip(names, names, strict=True)]),
            (self.frame, names),
            (self.other, names),
        ):
            box.options = options
            box.index = 0 if options else None
        self.stack, self.routers, self.second_stack, self.links = stack, routers, stack, links
        self.chain.children = [self.image(plotting.chain_figure(links)), self.table(links)]
        self.answer.children, self.routed.children = [], []
        of = ", ".join(routers) or "none"
        self.say(f"{len(names)} frames on {stack.backbone.name}, routers: {of}{missing}")
        self.show_frame()
        self.choose_router()

    @guarded
    def show_frame(self, _=None) -> None:
        """The frame's card, and the comparison, which has the same frame on its side."""
        if self.stack is None or not self.frame.value:
            return
        frame = self.stack[self.frame.value]
        parent = views.parent_of(self.stack, frame)
        moved = f"What {frame.name} moved" + (f" from {parent.name}" if parent else "")
        button = self.w.Button(description="Its answers and mistakes", layout={"width": "15em"})
        space = self.w.VBox()
        button.on_click(lambda _: self.show_rows(frame, space))
        self.card.children = [
            self.table(views.frame_card(frame)),
            self.image(plotting.training_curve(frame.losses, f"Training of {frame.name}")),
            self.image(plotting.layer_figure(views.layer_norms(frame, parent), moved)),
            button,
            space,
        ]
        self.show_compared()

    @guarded
    def show_rows(self, frame: Frame, space) -> None:
        self.say(f"asking {frame.name} its evaluation rows …")
        answers = views.own_answers(self.stack, frame.name, load_rows(frame, self.data_dir))
        self.say(f"{frame.name}: {100 * answers['right'].mean():.1f} % right")
        wrong = views.mistakes(answers)
        space.children = [
            self.table(views.per_class(answers).map(str)),
            self.title(f"{len(wrong)} mistakes, the most confident first"),
            *self.pages(wrong),
            *self.confusion(answers, "label", "answer"),
        ]

    # ------------------------------------------------------------------ a router, a text

    @guarded
    def choose_router(self, _=None) -> None:
        """Show the chosen router's threshold, if it has one, and answer again."""
        if self.stack is not None and self.router.value:
            threshold = self.routers[self.router.value].get_params().get("threshold")
            self.threshold.disabled = threshold is None
            self.threshold.value = threshold or 0.0
            self.answer_again()

    @guarded
    def set_threshold(self, _=None) -> None:
        if self.stack is not None and not self.threshold.disabled:
            router = self.routers[self.router.value]
            if router.get_params()["threshold"] != self.threshold.value:
                router.set_params(threshold=self.threshold.value)
                self.answer_again()

    def answer_again(self) -> None:
        self.routed.children = []
        if self.text.value.strip():
            self.show_answer()

    def chosen_router(self):
        if self.stack is None:
            raise SkillStackError("open a stack first")
        if not self.routers:
            raise SkillStackError("this stack has no router")
        return self.routers[self.router.value]

    @guarded
    def show_routed(self, _=None) -> None:
        router = self.chosen_router()
        self.say(f"routing {ROUTED_ROWS} texts of each of {len(self.stack)} tasks …")
        stream = [load_rows(frame, self.data_dir) for frame in self.stack.frames]
        answers = views.routed_frames(router, stream, ROUTED_ROWS)
        self.say(f"{self.router.value}: {100 * answers['right'].mean():.1f} % to their own frame")
        self.routed.children = self.confusion(answers, "task", "sent to")

    @guarded
    def show_answer(self, _=None) -> None:
        router = self.chosen_router()
        if not self.text.value.strip():
            raise SkillStackError("type a text first")
        text = views.render(self.form.value, self.text.value, self.pair.value)
        if not self.form.value and self.pair.value.strip():
            text = f"{text}\n{self.pair.value}"
        steps = views.walk_table(router, text)
        took = steps["step"]
        (who,) = steps.index[took.str.startswith("answers")]
        first = views.ask(self.stack, text, [who])
        chance = f"{first['answer'].item()} ({100 * first['probability'].item():.0f} %)"
        fallback = ", by fallback" if took[who] == "answers (fallback)" else ""
        visited = f", {(took != 'not reached').sum()} frames visited"
        self.say(f"{who} answers{fallback}{'' if 'compared' in set(took) else visited}: {chance}")
        self.answer.children = [
            self.w.HTML(f'<pre class="asked">{html.escape(text[:2000])}</pre>'),
            self.image(plotting.chain_figure(self.links, steps)),
            self.title(f"The scores of {self.router.value}"),
            self.table(steps, "walk"),
        ]  # seen before the other frames are asked
        above = self.answer.children
        others = steps.drop(who)["score"].sort_values(ascending=False, kind="stable").index
        self.ask_others(text, first, others[:BESIDE], above)
        if len(others) > BESIDE:
            button = self.w.Button(description=f"Ask all {len(steps)} frames")
            button.on_click(lambda _: self.ask_others(text, first, others, above))
            self.answer.children = [*self.answer.children, button]

    @guarded
    def ask_others(self, text: str, first: pd.DataFrame, names: Sequence[str], above) -> None:
        """The answer of the routed frame (first) beside those of others, below what is shown."""
        table = pd.concat([first, views.ask(self.stack, text, names)]) if len(names) else first
        title = self.title("What other frames would have said, the best scores first")
        self.answer.children = [*above, title, self.table(table.fillna(""), "answers")]

    # ------------------------------------------------------------------ two of them

    @guarded
    def choose_second(self, _=None) -> None:
        if self.stack is not None:
            chosen = self.second.value
            self.second_stack = open_stack(chosen, self.backbones) if chosen else self.stack
            self.other.options = [frame.name for frame in self.second_stack.chain()]
            self.show_compared()

    @guarded
    def show_compared(self, _=None) -> None:
        self.compared.children = []
        if self.stack is None or not self.frame.value or not self.other.value:
            return
        one, other = self.stack[self.frame.value], self.second_stack[self.other.value]
        if self.second_stack is not self.stack:
            table = views.compare_stacks(self.stack, self.second_stack)
            self.compared.children = [self.table(table)]
        if one is not other:
            ax = plotting.layer_figure(views.compare_frames(one, other), "", label="cosine")
            where = "" if self.second_stack is self.stack else " of the second stack"
            title = f"Cosine between the updates of {one.name} and {other.name}{where}"
            self.compared.children = [*self.compared.children, self.title(title), self.image(ax)]
