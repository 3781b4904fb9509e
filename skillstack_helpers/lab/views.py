"""Tables that describe a stack: its chain, one frame, one text, two frames, two stacks.

Nothing here draws (see `plotting`) or needs a notebook (see `widgets`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from ..errors import SkillStackError, checked_number, checked_router
from ..frames import Frame, inner, weights_digest
from ..stack import SkillStack, checked_stack
from ..tasks import TASKS, TaskData, checked_stream, template_fields

# ---------------------------------------------------------------------- a stack, a frame


def chain_table(stack: SkillStack) -> pd.DataFrame:
    """All frames, the latest first: task, parent, number of labels, accuracy, bytes, and whether
    every file on disk is what was saved. A dropped frame is listed with the frame that answers
    for it."""
    if not checked_stack(stack).frames:
        raise SkillStackError("the stack has no frame yet")
    rows = []
    for frame in reversed(stack.frames):
        try:
            stack.copy([frame]).verify()
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
        answered = f"answered by {stack[name].name}" if name in stack else "removed"
        row |= {"task": answered, "intact": "dropped"}
        rows.append(row)
    return pd.DataFrame(rows).set_index("frame")


def in_words(size: int) -> str:
    """A number of bytes as people write it.

    >>> in_words(1330184), in_words(900)
    ('1.3 MB', '1 kB')
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{max(1, round(size / 1e3))} kB"


def readable_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its bytes in words."""
    columns = [column for column in table if column.startswith("bytes")]
    words = {c: [in_words(n) if n else "" for n in table[c]] for c in columns}
    return table.assign(**words).rename(columns=lambda c: c.replace("bytes", "size"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def frame_card(frame: Frame) -> pd.DataFrame:
    """The facts about a frame: one row a fact, one column, strings."""
    training = frame.training
    facts = {
        "task": frame.task,
        "labels": ", ".join(frame.label_names),
        "parent": frame.parent or "none: the root",
        "accuracy on its own evaluation rows (%)": _percent(frame.metrics.get("accuracy")),
        "rows": frame.metrics.get("n", ""),
        "steps": len(frame.losses),
        "seconds of training": f"{frame.seconds:.1f}",
        "rank, alpha": ", ".join(map(str, frame.slot[:2])),
        "adapted layers": "all" if frame.slot[2] is None else f"from {frame.slot[2]} on",
        "learning rate": f"{training['lr']:g}" if training.get("lr") else "",
        "seed": training.get("seed", ""),
        "answers by": "writing" if frame.prompt else "a head",
        "stored as": frame.storage.get("format", "plain LoRA"),
        "size": in_words(frame.nbytes),
        "source of the rows": frame.data.get("source", ""),
        "trained with": ", ".join(f"{k} {v}" for k, v in frame.versions.items()),
        "folder": str(frame.folder or "not saved"),
    }
    return pd.DataFrame({"": {name: str(value) for name, value in facts.items()}})


def parent_of(stack: SkillStack, frame: Frame) -> Frame | None:
    """The frame that `frame` was trained from; None for the root, and where `frame` itself
    answers for a parent that was dropped."""
    if frame.parent not in stack:  # the root, or one whose parent was removed
        return None
    parent = stack[frame.parent]
    return None if parent is frame else parent


def layer_norms(frame: Frame, since: Frame | None = None) -> pd.DataFrame:
    """Frobenius norm of every update B A (scaled by alpha / r): rows layers, columns modules.

    since: another frame, e.g. the parent; then the norm of the difference, what this task moved.
    """
    before = since.updates() if since is not None else {}
    norms = {}
    for name, update in frame.updates().items():
        square = inner(update, update)
        if name in before:
            square += inner(before[name], before[name]) - 2 * inner(update, before[name])
        norms[name] = max(0.0, square) ** 0.5
    return _by_layer(norms)


def _by_layer(values: Mapping[str, float]) -> pd.DataFrame:
    """A value for every adapted weight, given by its PEFT name, as layers times modules; layer -1
    holds the weights that stand outside the layers."""
    cells = {}
    for name, value in values.items():
        layer = re.search(r"\.(\d+)\.", name)
        place = (int(layer[1]), name[layer.end() :]) if layer else (-1, name.rsplit(".", 1)[-1])
        cells[place] = value
    return pd.Series(cells).unstack().rename_axis(index="layer", columns="module")


# ---------------------------------------------------------------------- many texts


def own_answers(stack: SkillStack, frame: str, data: TaskData) -> pd.DataFrame:
    """A frame's answers to a task's evaluation rows: text, label, answer, probability, right."""
    texts = data.texts("eval")
    prediction = stack.predict(texts, frame)
    truth = [data.task.label_names[k] for k in data.labels("eval")]
    chances = prediction.probabilities.max(1, initial=0.0)
    return _answers(texts, truth, prediction.label_names, chances)


def routed_frames(router, stream: Sequence[TaskData], n: int | None = None) -> pd.DataFrame:
    """Where a router sends evaluation rows, in the form of `own_answers`: label is the task's own
    frame, answer the frame picked. n: at most so many rows of each task."""
    if n is not None:
        checked_number(n, "n", 1, whole=True)
    stream = checked_stream(stream, "eval")
    checked_router(router, "decision_function", "route_scores")
    rows = [(text, data.name) for data in stream for text in data.texts("eval")[:n]]
    texts, truth = (list(column) for column in zip(*rows, strict=True))
    scores = router.decision_function(texts)
    picked = router.route_scores(scores)["frame"]
    chances = softmax(scores / router.temperature_, axis=1)
    columns = [router.frames_.index(name) for name in picked]
    return _answers(texts, truth, picked, chances[np.arange(len(texts)), columns])


def _answers(texts, truth, answers, probabilities) -> pd.DataFrame:
    table = pd.DataFrame({"text": texts, "label": truth, "answer": list(answers)})
    return table.assign(probability=probabilities, right=table["label"].eq(table["answer"]))


def per_class(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and count for every label of `own_answers`."""
    groups = answers.groupby("label", sort=False)["right"]
    return pd.DataFrame({"accuracy (%)": (100 * groups.mean()).round(1), "n": groups.size()})


def mistakes(answers: pd.DataFrame) -> pd.DataFrame:
    """Wrong answers of `own_answers`, the most confident first."""
    wrong = answers[~answers["right"]].drop(columns="right")
    return wrong.sort_values("probability", ascending=False, ignore_index=True)


def confusion_table(answers: pd.DataFrame, most: int | None = None) -> pd.DataFrame:
    """Labels (rows) against answers (columns), counts. most: only so many labels, those with most
    mistakes."""
    names = list(dict.fromkeys([*answers["label"], *answers["answer"]]))
    table = pd.crosstab(answers["label"], answers["answer"]).reindex(names, columns=names)
    table = table.fillna(0).astype(int)
    wrong = table.to_numpy().sum(axis=1) - np.diag(table)
    names = table.index[np.sort(np.argsort(-wrong, kind="stable")[:most])]
    return table.loc[names, names]


def examples_in_cell(answers: pd.DataFrame, label: str, answer: str) -> pd.DataFrame:
    """The texts that one cell of the confusion matrix counts, the most confident first."""
    cell = answers[answers["label"].eq(label) & answers["answer"].eq(answer)]
    return cell[["text", "probability"]].sort_values(
        "probability", ascending=False, ignore_index=True
    )


# ---------------------------------------------------------------------- one text


def template(frame: Frame) -> str:
    """How a row becomes the text that the frame was trained on."""
    noted = frame.data.get("template")  # since 0.4
    if noted is None:
        return TASKS[frame.task].template if frame.task in TASKS else "{text}"
    if not isinstance(noted, str) or not template_fields(noted) <= {"text", "text_pair"}:
        raise SkillStackError(f"frame {frame.name}: {noted!r} is no template")
    return noted


def render(frame: Frame, text: str, text_pair: str = "") -> str:
    """A text in the form in which the frame was trained."""
    return template(frame).format(text=text, text_pair=text_pair)


def walk_table(router, text: str) -> pd.DataFrame:
    """Every frame's score for one text, latest frame first, and what the walk did there.

    Columns: score, probability, step: ``passed``, ``answers`` or ``not reached``; with routers
    that do not walk the best score answers and the others are ``compared``; where no score exceeded
    the threshold the best one ``answers (fallback)`` and the others are ``below threshold``.
    """
    scores = router.decision_function([text])
    route = router.route_scores(scores).iloc[0]
    names = list(router.frames_)
    steps = dict.fromkeys(names, "compared")
    if not np.isnan(route["depth"]):
        visited = names[::-1][: int(route["depth"])]
        steps = {name: "passed" if name in visited else "not reached" for name in names}
    if route["fallback"]:  # every frame was visited, also those behind the one that answers
        steps = {name: "below threshold" for name in names}
    steps[route["frame"]] = "answers (fallback)" if route["fallback"] else "answers"
    chances = softmax(scores[0] / router.temperature_)
    table = {"score": scores[0], "probability": chances, "step": list(steps.values())}
    return pd.DataFrame(table, index=pd.Index(names, name="frame")).iloc[::-1]


def ask(stack: SkillStack, text: str, frames: Sequence[str]) -> pd.DataFrame:
    """The same text answered by several frames: answer, probability, all probabilities, and, if
    one of them was dropped, which frame answered for it."""
    rows, names = {}, list(dict.fromkeys(frames))
    prediction = stack.predict([text] * len(names), names)
    for i, name in enumerate(names):
        frame = stack[name]
        chances = prediction.probabilities[i, : len(frame.label_names)]
        ranked = sorted(zip(chances, frame.label_names, strict=True), reverse=True)
        rows[name] = {
            "answer": prediction.label_names[i],
            "probability": float(chances.max()),
            "all": ", ".join(f"{label} {chance:.2f}" for chance, label in ranked),
        }
        if frame.name != name:
            rows[name]["answered by"] = frame.name
    return pd.DataFrame.from_dict(rows, "index").fillna("").rename_axis("frame")


# ---------------------------------------------------------------------- two of them


def compare_frames(one: Frame, other: Frame) -> pd.DataFrame:
    """Cosine between the updates B A of two frames: rows layers, columns modules.

    Raises `SkillStackError` if the frames adapt no module of the same name and size, as frames of
    two different models do.
    """
    first, second = one.updates(), other.updates()
    shared = [m for m in first if m in second and _size(first[m]) == _size(second[m])]
    if not shared:
        raise SkillStackError(
            f"frames {one.name!r} and {other.name!r} adapt no module of the same name and size"
        )
    cosines = {}
    for name in shared:
        squares = inner(first[name], first[name]) * inner(second[name], second[name])
        cosines[name] = inner(first[name], second[name]) / max(squares**0.5, 1e-30)
    return _by_layer(cosines)


def _size(update) -> tuple[int, int]:
    """(out, in) of an update given as factors B (out, r) and A (r, in)."""
    return len(update[0]), update[1].shape[1]


def compare_stacks(one: SkillStack, other: SkillStack) -> pd.DataFrame:
    """Frame by frame: accuracy and bytes in either stack, and whether the weights are the same."""
    stacks = {"first": one, "second": other}
    rows = {}
    for name in dict.fromkeys(frame.name for stack in stacks.values() for frame in stack.frames):
        row, digests = {}, []
        for which, stack in stacks.items():
            frame = next((frame for frame in stack.frames if frame.name == name), None)
            accuracy = _percent(frame.metrics.get("accuracy")) if frame else "–"
            row |= {f"accuracy, {which} (%)": accuracy}
            row |= {f"bytes, {which}": frame.nbytes if frame else 0}
            digests += [weights_digest(frame)] if frame else []
        same = len(digests) == 2 and digests[0] == digests[1]
        rows[name] = row | {"same weights": "yes" if same else "no"}
    return pd.DataFrame.from_dict(rows, "index").rename_axis("frame")
