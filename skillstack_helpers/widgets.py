"""See inside a stack. Every view is a plain function that returns a table or a figure; `inspector`
puts them together on ipywidgets, for notebooks.

Texts typed by a user are shown as they are and never interpreted as HTML.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.special import softmax
from tqdm.auto import tqdm

from . import SkillStackError, plotting
from .backbones import load_backbone
from .frames import Frame, SkillStack, inner, read_manifest, weights_digest
from .results import repo_root
from .routers import _Router, load_router, make_router, save_router
from .tasks import TASKS, TaskData, load_task

PER_LINE = 10  # frames in a line of the drawn chain

# ---------------------------------------------------------------------- a stack


def find_stacks(root: str | Path = "results") -> list[Path]:
    """Folders below `root` (relative to the repository) that hold a saved stack, by name."""
    return sorted(path.parent for path in _placed(root).glob("**/stack.json"))


def _placed(folder: str | Path) -> Path:
    """Where a folder given by a user is: relative ones are the repository's."""
    return repo_root() / Path(folder).expanduser()


def newest_stack(root: str | Path = "results") -> Path:
    """The stack below `root` that was saved last."""
    found = find_stacks(root)
    if not found:
        raise SkillStackError(f"no saved stack below {root}: run `make demo`, or give stack_dir")
    return max(found, key=lambda path: (path / "stack.json").stat().st_mtime)


def chain_table(stack: SkillStack) -> pd.DataFrame:
    """The chain, latest frame first: task, parent, labels, accuracy, bytes, and whether every
    file on disk is what was saved. A dropped frame says who answers for it."""
    rows = []
    for frame in stack.chain():
        try:
            SkillStack.verify(_only(stack, frame))
            intact = "yes" if frame.folder else "not saved"
        except SkillStackError as error:
            intact = str(error)
        rows.append(
            {
                "frame": frame.name,
                "task": frame.task,
                "parent": frame.parent or "",
                "labels": len(frame.label_names),
                "accuracy (%)": _percent(frame.metrics.get("accuracy")),
                "bytes": frame.nbytes,
                "intact": intact,
            }
        )
    for name, entry in stack.dropped.items():
        row = dict.fromkeys(rows[0], "") | {"frame": name, "parent": entry["parent"] or ""}
        row |= {"task": f"answered by {stack[name].name}", "intact": "dropped"}
        rows.append(row)
    return pd.DataFrame(rows).set_index("frame")


def _only(stack: SkillStack, frame: Frame) -> SkillStack:
    one = SkillStack(stack.backbone)
    one.frames = [frame]
    return one


def _percent(value) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def chain_figure(stack: SkillStack, walked: pd.DataFrame | None = None) -> Axes:
    """The chain drawn, latest to root, `PER_LINE` frames a line; `walked` (a `walk_table`) colours
    the frames visited."""
    chain = stack.chain()
    columns, lines = min(len(chain), PER_LINE), -(-len(chain) // PER_LINE)
    ax = plt.subplots(figsize=(1.6 + 1.35 * columns, 0.5 + 0.8 * lines), layout="constrained")[1]
    places = [(i % PER_LINE, -(i // PER_LINE)) for i in range(len(chain))]
    for i, (frame, place) in enumerate(zip(chain, places, strict=True)):
        color = "white"
        if walked is not None and frame.name in walked.index:
            step = walked.loc[frame.name, "step"].split(" (")[0]
            color = {"answers": "#009E73", "passed": "#E8E8E8"}.get(step, "white")
        box = {"boxstyle": "round", "facecolor": color, "edgecolor": "black"}
        accuracy = _percent(frame.metrics.get("accuracy"))
        words = f"{_short(frame.name)}\n{accuracy} %" if accuracy else _short(frame.name)
        ax.text(*place, words, bbox=box, ha="center", va="center", fontsize=8, zorder=3)
        if i:
            (x, y), (to_x, to_y) = places[i - 1], place
            between = (y + to_y) / 2  # a line's end goes round to the next line's beginning
            ax.plot([x, x, to_x, to_x], [y, between, between, to_y], "#888888", lw=1, zorder=1)
    ax.set_xlim(-0.7, columns - 0.3)
    ax.set_ylim(0.4 - lines, 0.6)
    ax.set_title("latest frame  →  its parents  →  root", fontsize=9)
    ax.axis("off")
    return ax


def _short(name: str) -> str:
    return name if len(name) <= 15 else f"{name[:13]}…"


# ---------------------------------------------------------------------- a frame


def frame_card(frame: Frame) -> pd.DataFrame:
    """What a frame is: one column of facts."""
    told = frame.training
    facts = {
        "task": frame.task,
        "labels": ", ".join(frame.label_names),
        "parent": frame.parent or "none: the root",
        "accuracy on its own evaluation rows (%)": _percent(frame.metrics.get("accuracy")),
        "rows": frame.metrics.get("n", ""),
        "steps": len(frame.losses),
        "seconds of training": f"{frame.seconds:.1f}",
        "rank, alpha": ", ".join(map(str, frame.slot)),
        "learning rate": f"{told['lr']:g}" if told.get("lr") else "",
        "seed": told.get("seed", ""),
        "answers by": "writing" if frame.prompt else "a head",
        "stored as": frame.storage.get("format", "plain LoRA"),
        "bytes": f"{frame.nbytes:,}",
        "rows' source": frame.data.get("source", ""),
        "trained with": ", ".join(f"{k} {v}" for k, v in frame.versions.items()),
        "folder": str(frame.folder or "not saved"),
    }
    return pd.DataFrame({"": {name: str(value) for name, value in facts.items()}})


def training_curve(frame: Frame, ax: Axes | None = None) -> Axes:
    """Loss of every step, and its running mean."""
    ax = ax or plt.subplots(figsize=(5.2, 3), layout="constrained")[1]
    losses = pd.Series(frame.losses, dtype=float)
    ax.plot(losses.index + 1, losses, color="#BBBBBB", lw=1, label="step")
    smooth = losses.rolling(max(1, len(losses) // 10), min_periods=1).mean()
    ax.plot(losses.index + 1, smooth, color="#0072B2", label="running mean")
    ax.set_xlabel("training step")
    ax.set_ylabel("loss")
    ax.set_title(f"Training of {frame.name}")
    ax.legend(frameon=False)
    return ax


def layer_norms(frame: Frame, since: Frame | None = None) -> pd.DataFrame:
    """Frobenius norm of every update B A (scaled by alpha / r): rows layers, columns modules.

    since: another frame, e.g. the parent; then the norm of the difference, what this task moved.
    """
    before = since.updates() if since is not None else {}
    cells = {}
    for name, update in frame.updates().items():
        square = inner(update, update)
        if name in before:
            square += inner(before[name], before[name]) - 2 * inner(update, before[name])
        cells[_place(name)] = max(0.0, square) ** 0.5
    table = pd.Series(cells).unstack()
    return table.rename_axis(index="layer", columns="module")


def _place(name: str) -> tuple[int, str]:
    """Layer (-1: none) and module of an adapted weight, from its PEFT name."""
    layer = re.search(r"\.(\d+)\.", name)
    return (int(layer[1]), name[layer.end() :]) if layer else (-1, name.rsplit(".", 1)[-1])


def layer_figure(
    table: pd.DataFrame, title: str, label: str = "norm of B A", ax: Axes | None = None
) -> Axes:
    """`layer_norms`, or another table of layers and modules, as a heat map."""
    ax = ax or plt.subplots(figsize=(2.5 + 1.1 * table.shape[1], 1.8 + 0.3 * len(table)),
                            layout="constrained")[1]  # fmt: skip
    image = ax.imshow(table, cmap="viridis", aspect="auto", vmin=min(0, table.to_numpy().min()))
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(table)), table.index)
    ax.set_ylabel("layer")
    ax.set_title(title)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def moved_figure(stack: SkillStack, frame: Frame) -> Axes:
    """What a frame moved from its parent, or from nothing where there is none to compare with."""
    parent = stack[frame.parent] if frame.parent else None
    parent = None if parent is frame else parent  # it stands in for a parent that was dropped
    title = f"What {frame.name} moved" + (f" from {parent.name}" if parent else "")
    return layer_figure(layer_norms(frame, parent), title)


def own_answers(stack: SkillStack, frame: str, data: TaskData) -> pd.DataFrame:
    """A frame's answers to a task's evaluation rows: text, label, answer, probability, right."""
    texts = data.texts("eval")
    # No bar: one that vanishes leaves a dead reference on a page that Voilà serves.
    prediction = stack.predict(texts, frame, progress=lambda batches, **_: batches)
    truth = [data.task.label_names[k] for k in data.labels("eval")]
    answer = list(prediction.label_names)
    return pd.DataFrame(
        {
            "text": texts,
            "label": truth,
            "answer": answer,
            "probability": prediction.probabilities.max(1, initial=0.0),
            "right": [a == b for a, b in zip(truth, answer, strict=True)],
        }
    )


def per_class(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and count for every right label of `own_answers`."""
    groups = answers.groupby("label", sort=False)["right"]
    return pd.DataFrame({"accuracy (%)": (100 * groups.mean()).round(1), "n": groups.size()})


def mistakes(answers: pd.DataFrame) -> pd.DataFrame:
    """Wrong answers of `own_answers`, the most confident first."""
    wrong = answers[~answers["right"]].drop(columns="right")
    return wrong.sort_values("probability", ascending=False, ignore_index=True)


def confusion_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Labels (rows) against answers, counts."""
    names = list(dict.fromkeys([*answers["label"], *answers["answer"]]))
    table = pd.crosstab(answers["label"], answers["answer"]).reindex(names, columns=names)
    return table.fillna(0).astype(int)


def confusion_figure(answers: pd.DataFrame) -> Axes:
    """`confusion_table` as a heat map."""
    ax = plotting.confusion(confusion_table(answers))
    ax.set_xlabel("answer")
    ax.set_ylabel("label")
    ax.set_title("What was answered (count)")
    ax.figure.axes[-1].set_ylabel("share of the label's texts (%)")
    return ax


def behind(answers: pd.DataFrame, label: str, answer: str) -> pd.DataFrame:
    """The texts behind one cell of the confusion matrix, the most confident first."""
    mine = answers[answers["label"].eq(label) & answers["answer"].eq(answer)]
    return mine[["text", "probability"]].sort_values(
        "probability", ascending=False, ignore_index=True
    )


# ---------------------------------------------------------------------- one text


def render(task: str, text: str, text_pair: str = "") -> str:
    """A typed text as the frames of a task see it, rendered by the task's template."""
    if task not in TASKS:
        return text
    return TASKS[task].template.format(text=text, text_pair=text_pair)


def walk_table(router: _Router, text: str) -> pd.DataFrame:
    """Every frame's score for one text, latest frame first, and what the walk did there.

    Columns: score, probability, step: ``passed``, ``answers`` or ``not reached``; with routers
    that do not walk the best score answers and the others are ``compared``; ``answers (fallback)``
    where nobody exceeded the threshold.
    """
    scores = router.decision_function([text])
    route = router.route_scores(scores).iloc[0]
    names = list(router.frames_)
    steps = dict.fromkeys(names, "compared")
    if not np.isnan(route["depth"]):
        visited = names[::-1][: int(route["depth"])]
        steps = {name: "passed" if name in visited else "not reached" for name in names}
    steps[route["frame"]] = "answers (fallback)" if route["fallback"] else "answers"
    table = pd.DataFrame(
        {
            "score": scores[0],
            "probability": softmax(scores[0] / router.temperature_),
            "step": [steps[name] for name in names],
        },
        index=pd.Index(names, name="frame"),
    )
    return table.iloc[::-1]


def ask(stack: SkillStack, text: str, frames: Sequence[str]) -> pd.DataFrame:
    """The same text answered by several frames: answer, probability, and all probabilities."""
    rows = {}
    for name in dict.fromkeys(frames):
        frame = stack[name]
        prediction = stack.predict([text], name)
        chances = prediction.probabilities[0, : len(frame.label_names)]
        ranked = sorted(zip(chances, frame.label_names, strict=True), reverse=True)
        rows[name] = {
            "answer": prediction.label_names[0],
            "probability": float(chances.max()),
            "all": ", ".join(f"{label} {chance:.2f}" for chance, label in ranked),
        }
        if frame.name != name:
            rows[name]["answered by"] = frame.name
    return pd.DataFrame.from_dict(rows, "index").fillna("").rename_axis("frame")


def routed_frames(
    router: _Router, stream: Sequence[TaskData], n: int | None = None
) -> pd.DataFrame:
    """Where a router sends evaluation rows, in the form of `own_answers`: label is the task's own
    frame, answer the frame picked. n: at most so many rows of each task."""
    rows = [(text, data.name) for data in stream for text in data.texts("eval")[:n]]
    texts, truth = (list(column) for column in zip(*rows, strict=True))
    scores = router.decision_function(texts)
    picked = router.route_scores(scores)["frame"].to_numpy()
    chances = softmax(scores / router.temperature_, axis=1)
    column = {name: k for k, name in enumerate(router.frames_)}
    return pd.DataFrame(
        {
            "text": texts,
            "label": truth,
            "answer": picked,
            "probability": [row[column[name]] for row, name in zip(chances, picked, strict=True)],
            "right": [a == b for a, b in zip(truth, picked, strict=True)],
        }
    )


# ---------------------------------------------------------------------- two of them


def compare_frames(one: Frame, other: Frame) -> pd.DataFrame:
    """Per layer and module: norms of both updates and the cosine between them."""
    first, second = one.updates(), other.updates()
    rows = []
    for name in first:
        if name not in second:
            continue
        norms = [inner(update, update) ** 0.5 for update in (first[name], second[name])]
        layer, module = _place(name)
        rows.append(
            {
                "layer": layer,
                "module": module,
                one.name: norms[0],
                other.name: norms[1],
                "cosine": inner(first[name], second[name]) / max(norms[0] * norms[1], 1e-30),
            }
        )
    return pd.DataFrame(rows).set_index(["layer", "module"])


def compare_stacks(one: SkillStack, other: SkillStack) -> pd.DataFrame:
    """Frame by frame: in which stack, accuracy, bytes, and whether the weights are the same."""
    names = list(dict.fromkeys(f.name for stack in (one, other) for f in stack.frames))
    rows = {}
    for name in names:
        pair = [next((f for f in s.frames if f.name == name), None) for s in (one, other)]
        row = {}
        for frame, where in zip(pair, ("first", "second"), strict=True):
            row[f"accuracy, {where} (%)"] = (
                _percent(frame.metrics.get("accuracy")) if frame else "–"
            )
            row[f"bytes, {where}"] = frame.nbytes if frame else 0
        same = all(pair) and weights_digest(pair[0]) == weights_digest(pair[1])
        row["same weights"] = "yes" if same else "no"
        rows[name] = row
    return pd.DataFrame.from_dict(rows, "index").rename_axis("frame")


# ---------------------------------------------------------------------- with widgets

ROUTERS = ("hybrid_chain", "centroid")  # fitted where a stack has none saved
PAGE = 5  # texts shown at a time
BESIDE = 8  # frames that answer unasked beside the routed one, the best scores first
CELLS = 16  # rows of a confusion matrix to click on
STYLE = """<style>
.skillstack-inspector table.skillstack :is(td, th) {text-align: left; line-height: 1.5}
.skillstack-inspector table.skillstack :is(td, th) {padding: 1px 12px 1px 0}
.skillstack-inspector .said {font-size: 120%; line-height: 1.4}
.skillstack-inspector .asked {white-space: pre-wrap; word-break: normal; line-height: 1.4}
</style>"""
ROUTED_ROWS = 16  # evaluation rows of a task that the router's confusion matrix is made of


def open_stack(folder: str | Path, backbones: dict | None = None) -> SkillStack:
    """Open a saved stack with the backbone it was made with.

    backbones: loaded ones, (name, dtype, quantization) -> Backbone; used and added to, so that no
    model is loaded twice. Raises `SkillStackError` in one line for a folder that holds no stack.
    """
    folder = _placed(folder)
    made_with = read_manifest(folder)["backbone"]
    key = tuple(made_with.get(name) for name in ("name", "dtype", "quantization"))
    if not isinstance(key[0], str):
        raise SkillStackError(f"{folder / 'stack.json'}: the backbone has no name")
    backbones = {} if backbones is None else backbones
    if key not in backbones:
        backbones[key] = load_backbone(*key)
    return SkillStack.from_pretrained(folder, backbones[key])


def load_rows(frame: Frame) -> TaskData:
    """The rows a frame was trained and evaluated on, loaded again."""
    told = frame.training
    budget = (told["n_train"], told["n_router"], told["n_eval"], told["seed"])
    return load_task(frame.task, *budget, source=frame.data.get("source", "auto"))


def stack_routers(
    stack: SkillStack, folder: str | Path, names: Sequence[str] = ROUTERS, progress=tqdm
) -> dict[str, _Router]:
    """The routers saved in a stack's folder; where there is none, fitted on the routing rows of
    its tasks and saved. names[0] comes first."""
    folder = Path(folder) / "routers"
    saved = sorted(path.parent for path in folder.glob("*/router.json"))
    if saved:
        saved.sort(key=lambda path: path.name != names[0])  # the suite's default first
        return {p.name: load_router(p, backbone=stack.backbone, stack=stack) for p in saved}
    streams = [load_rows(frame) for frame in progress(stack.frames, desc="routing rows")]
    texts = [text for data in streams for text in data.texts("router")]
    frames = [data.name for data in streams for _ in data.texts("router")]
    fitted = {}
    for name in progress(names, desc="fit routers"):
        fitted[name] = make_router(name, backbone=stack.backbone, stack=stack).fit(texts, frames)
        save_router(fitted[name], folder / name)
    return fitted


def inspector(folder: str | Path | None = None, root: str | Path = "results"):
    """The whole inspector as one widget: pick a stack, look at its chain and frames, ask it, and
    set two of them side by side. folder: opened at once; root: where the picker looks."""
    return _Inspector(folder, root).view


class _Inspector:
    """State and callbacks behind `inspector`; everything shown comes from the functions above."""

    def __init__(self, folder, root):
        import ipywidgets as w

        self.w, self.backbones, self.stack, self.routers = w, {}, None, {}
        base = _placed(root)
        found = {str(path.relative_to(base)): str(path) for path in find_stacks(root)}
        wide = w.Layout(width="98%")
        self.message = w.HTML()
        self.picker = w.Dropdown(options={"choose a saved stack": "", **found}, layout=wide)
        self.path = w.Text(placeholder="or a folder, then Open", layout=wide)
        self.open_button = w.Button(description="Open", button_style="primary")
        self.chain = w.VBox()
        self.frame = w.Dropdown(description="frame")
        self.card = w.VBox()
        self.text = w.Textarea(placeholder="type or paste a text", layout=wide, rows=4)
        self.pair = w.Textarea(placeholder="a second text, for pair tasks", layout=wide, rows=2)
        self.router = w.Dropdown(description="router")
        self.threshold = w.FloatText(description="threshold", step=0.1, layout={"width": "12em"})
        self.form = w.Dropdown(description="written as")
        self.ask_button = w.Button(description="Answer", button_style="primary")
        self.answer = w.VBox()
        self.route_button = w.Button(
            description="Route evaluation texts of every task", layout={"width": "22em"}
        )
        self.routed = w.VBox()
        self.second = w.Dropdown(options={"this stack": "", **found}, layout=wide)
        self.other = w.Dropdown(description="with frame")
        self.compared = w.VBox()
        self.tabs = w.Tab(
            [
                w.VBox([self.text, self.pair,
                        w.HBox([self.router, self.threshold, self.form, self.ask_button]),
                        self.answer]),
                self.chain,
                w.VBox([self.frame, self.card]),
                w.VBox([w.HBox([self.router, self.threshold, self.route_button]), self.routed]),
                w.VBox([self.second, w.HBox([self.frame, self.other]), self.compared]),
            ]
        )  # fmt: skip
        for i, title in enumerate(("Ask", "Chain", "Frame", "Router", "Compare")):
            self.tabs.set_title(i, title)  # also in ipywidgets 7, which Colab has
        self.view = w.VBox([w.HTML(STYLE), self.picker, w.HBox([self.path, self.open_button]),
                            self.message, self.tabs])  # fmt: skip
        self.view.add_class("skillstack-inspector")
        self.picker.observe(lambda change: self.open(change["new"]), "value")
        self.open_button.on_click(lambda _: self.open(self.path.value.strip()))
        self.frame.observe(lambda _: self.show_frame(), "value")
        self.ask_button.on_click(lambda _: self.show_answer())
        self.router.observe(lambda _: self.choose_router(), "value")
        self.threshold.observe(lambda _: self.set_threshold(), "value")
        self.route_button.on_click(lambda _: self.show_routed())
        self.second.observe(lambda _: self.show_second(), "value")
        self.other.observe(lambda _: self.show_compared(), "value")
        self.second_stack = None
        if folder is not None:
            path = str(_placed(folder))
            if path in found.values():
                self.picker.value = path  # opens it
            else:
                self.path.value = str(folder)
                self.open(str(folder))

    # every callback reports what is wrong in one line instead of a traceback

    def guarded(self, work, *arguments) -> None:
        try:
            work(*arguments)
        except (OSError, ValueError) as error:
            self.say(str(error), "#B00020")

    def say(self, text: str, color: str = "black") -> None:
        self.message.value = f'<p class="said" style="color:{color}">{html.escape(text)}</p>'

    def table(self, table: pd.DataFrame, name: str = "shown"):
        how = {"escape": True, "border": 0, "float_format": "{:.3f}".format, "index_names": False}
        return self.w.HTML(table.to_html(classes=["skillstack", name], **how))

    def image(self, ax: Axes):
        out = io.BytesIO()
        ax.figure.savefig(out, format="png", dpi=110)
        plt.close(ax.figure)
        layout = {"max_width": "100%", "align_self": "flex-start"}
        return self.w.Image(value=out.getvalue(), format="png", layout=layout)

    def open(self, folder: str) -> None:
        if folder:
            self.guarded(self._open, folder)

    def _open(self, folder: str) -> None:
        self.say(f"opening {folder} …")
        stack = open_stack(folder, self.backbones)
        routers, told = {}, ""
        try:
            routers = stack_routers(stack, _placed(folder))
        except SkillStackError as error:  # the rows are not at hand; everything else still is
            told = f"; none could be fitted: {error}"
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
        self.stack, self.routers, self.second_stack = stack, routers, stack
        self.chain.children = [self.image(chain_figure(stack)), self.table(chain_table(stack))]
        self.answer.children, self.routed.children = [], []
        of = ", ".join(routers) or "none"
        self.say(f"{len(names)} frames on {stack.backbone.name}, routers: {of}{told}")
        self.show_frame()
        self.choose_router()

    def choose_router(self) -> None:
        """Show the chosen router's threshold, if it has one, and answer again."""
        if self.stack is not None and self.router.value:
            threshold = self.routers[self.router.value].get_params().get("threshold")
            self.threshold.disabled = threshold is None
            self.threshold.value = threshold or 0.0
            self.routed.children = []
            self.answer_again()

    def set_threshold(self) -> None:
        if self.stack is not None and not self.threshold.disabled:
            router = self.routers[self.router.value]
            if router.get_params()["threshold"] != self.threshold.value:
                router.set_params(threshold=self.threshold.value)
                self.routed.children = []
                self.answer_again()

    def answer_again(self) -> None:
        if self.text.value.strip():
            self.show_answer()

    def show_frame(self) -> None:
        """The frame's card, and the comparison, which has the same frame on its side."""
        if self.stack is not None and self.frame.value:
            self.guarded(self._show_frame, self.stack[self.frame.value])
            self.show_compared()

    def _show_frame(self, frame: Frame) -> None:
        button = self.w.Button(description="Its answers and mistakes", layout={"width": "15em"})
        space = self.w.VBox()
        button.on_click(lambda _: self.guarded(self._show_rows, frame, space))
        self.card.children = [
            self.table(frame_card(frame)),
            self.image(training_curve(frame)),
            self.image(moved_figure(self.stack, frame)),
            button,
            space,
        ]

    def _show_rows(self, frame: Frame, space) -> None:
        self.say(f"asking {frame.name} its evaluation rows …")
        answers = own_answers(self.stack, frame.name, load_rows(frame))
        self.say(f"{frame.name}: {100 * answers['right'].mean():.1f} % right")
        wrong = mistakes(answers)
        last = max(1, -(-len(wrong) // PAGE))
        page = self.w.BoundedIntText(value=1, min=1, max=last, description=f"page 1–{last}")
        listed = self.w.VBox()

        def turn(_=None) -> None:
            listed.children = [self.texts(wrong.iloc[(page.value - 1) * PAGE : page.value * PAGE])]

        page.observe(turn, "value")
        turn()
        space.children = [
            self.table(per_class(answers).map(str)),
            self.w.HTML(f"<b>{len(wrong)} mistakes, the most confident first</b>"),
            page,
            listed,
            *self.confusion(answers, "label", "answered"),
        ]

    def texts(self, table: pd.DataFrame):
        return self.table(table.assign(text=table["text"].str.slice(0, 300)))

    def confusion(self, answers: pd.DataFrame, label_is: str, answer_is: str) -> list:
        """The confusion matrix as buttons: each opens the texts behind it."""
        table = confusion_table(answers)
        note = f"{label_is} in rows, {answer_is} in columns; click a cell for its texts"
        if len(table) > CELLS:
            wrong = table.sum(axis=1) - np.diag(table)
            names = table.index[np.sort(np.argsort(-wrong, kind="stable")[:CELLS])]
            table = table.loc[names, names]
            note += f" (the {CELLS} rows with most mistakes)"
        found = self.w.VBox()
        most = max(1, table.to_numpy().max())

        def cell(label: str, said: str):
            n = table.loc[label, said]
            button = self.w.Button(
                description=str(n) if n else "",
                tooltip=f"{label}: {said}",
                disabled=not n,
                layout={"width": "auto", "height": "2em"},
            )
            shade = round(255 - 115 * n / most)
            button.style.button_color = f"#{shade:02x}{round(255 - 60 * n / most):02x}ff"

            def look(_) -> None:
                told = f"<b>{html.escape(label)}, {answer_is} {html.escape(said)}: {n} texts</b>"
                texts = behind(answers, label, said).head(PAGE)
                found.children = [self.w.HTML(told), self.texts(texts)]

            button.on_click(look)
            return button

        def name(text: str):
            return self.w.HTML(f"<small>{html.escape(text)}</small>")

        cells = [name(""), *(name(said) for said in table.columns)]
        for label in table.index:
            cells += [name(label), *(cell(label, said) for said in table.columns)]
        width = len(table.columns)
        layout = {"grid_template_columns": f"9em repeat({width}, minmax(2.5em, 7em))"}
        return [self.w.HTML(f"<b>{note}</b>"), self.w.GridBox(cells, layout=layout), found]

    def chosen_router(self) -> _Router:
        if self.stack is None:
            raise SkillStackError("open a stack first")
        if not self.routers:
            raise SkillStackError("this stack has no router")
        return self.routers[self.router.value]

    def show_routed(self) -> None:
        self.guarded(self._show_routed)

    def _show_routed(self) -> None:
        router = self.chosen_router()
        self.say(f"routing {ROUTED_ROWS} texts of each of {len(self.stack)} tasks …")
        stream = [load_rows(frame) for frame in self.stack.frames]
        answers = routed_frames(router, stream, ROUTED_ROWS)
        self.say(f"{self.router.value}: {100 * answers['right'].mean():.1f} % to their own frame")
        self.routed.children = self.confusion(answers, "task", "sent to")

    def show_answer(self) -> None:
        self.guarded(self._show_answer)

    def _show_answer(self) -> None:
        router = self.chosen_router()
        if not self.text.value.strip():
            raise SkillStackError("type a text first")
        text = render(self.form.value, self.text.value, self.pair.value)
        if not self.form.value and self.pair.value.strip():
            text = f"{text}\n{self.pair.value}"
        steps = walk_table(router, text)
        took = steps["step"]
        (who,) = steps.index[took.str.startswith("answers")]
        first = ask(self.stack, text, [who])
        chance = f"{first['answer'].item()} ({100 * first['probability'].item():.0f} %)"
        fallback = ", by fallback" if took[who] == "answers (fallback)" else ""
        depth = (
            "" if "compared" in set(took) else f", {(took != 'not reached').sum()} frames visited"
        )
        self.say(f"{who} answers{fallback}{depth}: {chance}")
        parts = [
            self.w.HTML(f'<pre class="asked">{html.escape(text[:2000])}</pre>'),
            self.image(chain_figure(self.stack, steps)),
            self.w.HTML(f"<b>The scores of {html.escape(self.router.value)}</b>"),
            self.table(steps, "walk"),
        ]
        self.answer.children = parts  # seen before the other frames are asked
        others = steps.drop(who)["score"].sort_values(ascending=False, kind="stable").index

        def beside(names: Sequence[str]) -> None:
            table = pd.concat([first, ask(self.stack, text, names)]) if len(names) else first
            title = self.w.HTML("<b>What other frames would have said, the best scores first</b>")
            self.answer.children = [*parts, title, self.table(table.fillna(""), "answers")]

        beside(others[:BESIDE])
        if len(others) > BESIDE:
            button = self.w.Button(description=f"Ask all {len(steps)} frames")
            button.on_click(lambda _: self.guarded(beside, others))
            self.answer.children = [*self.answer.children, button]

    def show_second(self) -> None:
        self.guarded(self._show_second)

    def _show_second(self) -> None:
        if self.stack is not None:
            chosen = self.second.value
            self.second_stack = open_stack(chosen, self.backbones) if chosen else self.stack
            self.other.options = [frame.name for frame in self.second_stack.chain()]
            self.show_compared()

    def show_compared(self) -> None:
        if self.stack is not None and self.frame.value and self.other.value:
            self.guarded(self._show_compared)

    def _show_compared(self) -> None:
        one, other = self.stack[self.frame.value], self.second_stack[self.other.value]
        shown = []
        if self.second_stack is not self.stack:
            shown.append(self.table(compare_stacks(self.stack, self.second_stack)))
        if one is not other:
            shown.append(self.w.HTML(f"<b>{one.name} against {other.name}, layer by layer</b>"))
            table = compare_frames(one, other)
            shown.append(self.image(layer_figure(table["cosine"].unstack(), "Cosine", "cosine")))
            shown.append(self.table(table))
        self.compared.children = shown
