"""Bad input to every public function, as data: a new function is one line more.

A line says which function is asked, how (`call`, given the kit of test_inputs.py and one bad
value), and which words of the error name what is wrong. The values are those that people pass by
mistake; what is legitimately accepted does not stand here. `BAD` is all of them.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from skillstack_helpers import (
    baselines,
    compression,
    conformal,
    generation,
    metrics,
    parents,
    pruning,
    reuse,
    tasks,
)
from skillstack_helpers.answers import Answers
from skillstack_helpers.bitstack import BitStack
from skillstack_helpers.certificates import left_of
from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.ensemble import Mixture
from skillstack_helpers.errors import shown
from skillstack_helpers.heads import PromptHead
from skillstack_helpers.lab import experiment, views
from skillstack_helpers.lab.parameters import ROUTERS, RunConfig
from skillstack_helpers.loading import identify, load_backbone
from skillstack_helpers.probes import formatted, keywords, rewritten, with_keywords
from skillstack_helpers.routers import load_router, make_router, save_router
from skillstack_helpers.stack import SkillStack
from skillstack_helpers.tasks import Task, load_task

NAN, INF = float("nan"), float("inf")


class Bad(NamedTuple):
    """One bad input."""

    where: str  # the function, and what of it is wrong
    value: str  # in words
    call: Callable  # of the kit
    words: str  # a pattern that the message holds


def each(where: str, call: Callable, values: Mapping, words: str) -> Iterator[Bad]:
    """The function with each of the values; `words` or the value itself must be named."""
    for said, value in values.items():
        pattern = f"{words}|{re.escape(shown(value))}"
        yield Bad(where, said, lambda kit, value=value: call(kit, value), pattern)


# ---------------------------------------------------------------------- what people pass

NO_TEXTS = {
    "one string": "so good",
    "None": None,
    "a number": 3,
    "a mapping": {"a": 1},
    "a table": pd.DataFrame({"text": ["so good"]}),
    "bytes": b"so good",
    "[None]": [None],
    "[3]": [3],
    "[NaN]": [NAN],
    "[bytes]": [b"so good"],
    "a text and a list": ["so good", ["so", "good"]],
    "rows of an array": np.array([["so", "good"], ["so", "bad"]]),
}
NO_NAMES = {key: NO_TEXTS[key] for key in ("None", "a number", "[None]", "[3]", "[NaN]")}
NO_NUMBER = {"a string": "1", "a list": [1], "NaN": NAN, "infinity": INF, "True": True}
NO_COUNT = {"-1": -1, "a half": 1.5, "as a string": "4", "NaN": NAN, "a list": [1], "True": True}
NO_SEED = {**NO_COUNT, "2**32": 2**32, "None": None}
NO_PATH = {"None": None, "a number": 3, "empty": "", "NUL": "a\0b", "a list": ["x"],
           "nobody's home": "~nobody-of-this-name/x", "too long": "x" * 300}  # fmt: skip
NO_FRAME = {"unknown": "imbd", "None": None, "a number": 3, "NaN": NAN, "a list": ["imdb", 3],
            "empty": "", "bytes": b"imdb"}  # fmt: skip
NO_NEW_NAME = {"a number": 3, "empty": "", "a path": "../up", "a space": "a b", "NUL": "a\0b",
               "capitals": "Imdb", "a list": ["a"], "long": "a" * 65, "taken": "imdb"}  # fmt: skip
NO_THING = {"None": None, "a string": "imdb", "a number": 3, "a class": SkillStack}
NO_ARRAY = {"a string": "0.5", "None": None, "words": [["a", "b"]], "ragged": [[0.5, 0.5], [1.0]],
            "NaN": [[NAN, 0.5]], "infinite": [[INF, 0.5]], "complex": [[1j, 0.5]]}  # fmt: skip
NO_LABELS = {"out of range": [9], "negative": [-1], "a half": [0.5], "NaN": [NAN], "a word": ["a"],
             "None": None, "a string": "0", "two columns": [[0]], "too many": [0, 1]}  # fmt: skip


def _rows(change: Callable, *splits: str) -> Callable:
    """A task's rows with something wrong in these splits."""

    def make(kit):
        data = kit.data
        return dataclasses.replace(data, **{s: change(getattr(data, s).copy()) for s in splits})

    return make


def _cell(column: str, value) -> Callable:
    return lambda rows: rows.astype({column: object}).assign(
        **{column: [value, *rows[column].iloc[1:]]}
    )


def no_data(*splits: str) -> dict:
    """What is no `TaskData`, or holds what cannot be used in one of the splits."""
    made = dict(NO_THING)
    for split in splits:
        made |= {
            f"no {split} rows": _rows(lambda rows: rows[:0], split),
            f"{split} rows that are a list": _rows(lambda rows: [1, 2], split),
            f"{split} label 9": _rows(_cell("label", 9), split),
            f"{split} label -1": _rows(_cell("label", -1), split),
            f"{split} label 0.5": _rows(_cell("label", 0.5), split),
            f"{split} label NaN": _rows(_cell("label", NAN), split),
            f"{split} label None": _rows(_cell("label", None), split),
            f"{split} label a word": _rows(_cell("label", "positive"), split),
            f"{split} text NaN": _rows(_cell("text", NAN), split),
            f"{split} text None": _rows(_cell("text", None), split),
            f"{split} text a number": _rows(_cell("text", 3), split),
            f"no column of {split} texts": _rows(lambda rows: rows.drop(columns="text"), split),
            f"no column of {split} labels": _rows(lambda rows: rows.drop(columns="label"), split),
        }
    return made


def of_data(where: str, call: Callable, *splits: str) -> Iterator[Bad]:
    words = "data must be|rows|label|text"
    for said, value in no_data(*splits).items():
        ask = (lambda kit, v=value: call(kit, v(kit))) if isinstance(
            value, types.FunctionType) else (lambda kit, v=value: call(kit, v))  # fmt: skip
        yield Bad(where, said, ask, words)


# ---------------------------------------------------------------------- texts

ASKED = {  # every function that takes texts, and gives something for each
    "SkillStack.predict": lambda k, x: k.stack.predict(x, "imdb").labels,
    "SkillStack.logits": lambda k, x: k.stack.logits(x, ["imdb"]),
    "SkillStack.answer": lambda k, x: k.stack.answer(x, k.router),
    "SkillStack.answer mixed": lambda k, x: k.stack.answer(x, k.router, mix="own"),
    "SkillStack.certify": lambda k, x: k.stack.certify(x, k.router)["answers"]["frame"],
    "Backbone.encode": lambda k, x: k.backbone.encode(x, 32),
    "Backbone.embed": lambda k, x: k.backbone.embed(x),
    "Backbone.pooled": lambda k, x: k.backbone.pooled(x, 32, 1),
    "Backbone.inputs": lambda k, x: k.backbone.inputs(x, 32),
    "LinearHead.scores": lambda k, x: k.stack.activate("imdb").scores(x, 32),
    "Sequential.predict": lambda k, x: k.learner.predict(x, ["imdb"] * 2),
    "Sequential.logits": lambda k, x: k.learner.logits(x),
    "Independent.logits": lambda k, x: k.independent.logits(x),
    "FrozenLDA.predict": lambda k, x: k.lda.predict(x, ["imdb"] * 2),
    "FrozenLDA.logits": lambda k, x: k.lda.logits(x),
    "TfidfLogistic.predict": lambda k, x: k.tfidf.predict(x, ["imdb"] * 2),
    "TfidfLogistic.logits": lambda k, x: k.tfidf.logits(x),
    "TfidfLogistic union": lambda k, x: k.union.predict(x, ()),
    "generate": lambda k, x: generation.generate(k.writer, x, "imdb"),
    "read_answers": lambda k, x: generation.read_answers(x, ["no", "yes"]),
    "retrieve": lambda k, x: generation.retrieve(["so good"], ["yes"], x, 1),
    "LearnerLoop.answer": lambda k, x: k.loop.answer(x),
    "GateRouter.p_values": lambda k, x: k.routers["gate"].p_values(x),
    "GateRouter.features": lambda k, x: k.routers["gate"].features(x),
    "GateRouter.strangeness": lambda k, x: k.routers["gate"].strangeness(x),
    "ScaffoldBlindRouter.content": lambda k, x: k.routers["scaffold_blind"].content(x),
}
for _name in ROUTERS:
    for _method in ("predict", "decision_function", "predict_proba", "route"):
        ASKED[f"{_name}.{_method}"] = lambda k, x, name=_name, method=_method: getattr(
            k.routers[name], method
        )(x)
TOLD = {  # that take texts beside something else of the same length
    "Answers": lambda k, x: Answers(x, ["imdb"] * 2, [0, 0], ["a", "a"]),
    "GateRouter.together": lambda k, x: k.routers["gate"].together(x),
    "TrunkRouter.remove": lambda k, x: k.routers["trunk"].remove("imdb", 3 if x is None else x),
    "generate contexts": lambda k, x: generation.generate(
        k.writer, ["a", "b"], "imdb", contexts=3 if x is None else x
    ),
    "retrieve memory": lambda k, x: generation.retrieve(x, ["a", "b"], ["so good"], 1),
}
for _name in ROUTERS:
    TOLD |= {
        f"{_name}.fit": lambda k, x, name=_name: k.unfitted(name).fit(x, ["imdb", "agnews"]),
        f"{_name}.partial_fit": lambda k, x, name=_name: k.unfitted(name).partial_fit(
            x, ["imdb", "agnews"]
        ),
    }

# ---------------------------------------------------------------------- names

NAMED = [  # function, call, values, words
    ("SkillStack[...]", lambda k, x: k.stack[x], NO_FRAME, "frame"),
    ("SkillStack.activate", lambda k, x: k.stack.activate(x), NO_FRAME, "frame"),
    ("SkillStack.predict frame", lambda k, x: k.stack.predict(["a"], x), NO_FRAME, "frame"),
    ("SkillStack.predict frames", lambda k, x: k.stack.predict(["a"], x), NO_NAMES, "frame"),
    ("SkillStack.predict too many", lambda k, x: k.stack.predict(["a"], x),
     {"two": ["imdb", "qqp"], "none": []}, "1 texts but"),
    ("SkillStack.logits frames", lambda k, x: k.stack.logits(["a"], x),
     {**NO_NAMES, "one string": "imdb", "unknown": ["imbd"]}, "frames|frame"),
    ("SkillStack.evaluate frame", lambda k, x: k.stack.evaluate(k.data, x),
     {"unknown": "imbd", "a number": 3, "a list": ["imdb"]}, "frame"),
    ("SkillStack.evaluate head", lambda k, x: k.stack.evaluate(k.data, head=x),
     {"unknown": "imbd", "a number": 3, "other classes": "agnews"}, "frame"),
    ("SkillStack.remove", lambda k, x: k.stack.remove(x), NO_FRAME, "frame"),
    ("SkillStack.grow name", lambda k, x: k.stack.grow(k.data, k.config, name=x),
     NO_NEW_NAME, "frame"),
    ("SkillStack.grow parent", lambda k, x: k.stack.grow(k.data, k.config, name="new", parent=x),
     {"unknown": "imbd", "a number": 3, "a list": ["imdb"], "empty": ""}, "frame"),
    ("SkillStack.answer labels", lambda k, x: k.stack.answer(["a"], k.router, labels=x),
     {"one string": "negative", "a number": 3, "[3]": [3], "unknown": ["maybe"]}, "labels"),
    ("SkillStack.answer mix", lambda k, x: k.stack.answer(["a"], k.router, mix=x),
     {"unknown": "all", "a number": 3, "a list": ["own"]}, "mix|shares"),
    ("drop name", lambda k, x: compression.drop(k.stack, x, "imdb"), NO_FRAME, "frame"),
    ("drop to", lambda k, x: compression.drop(k.stack, "imdb", x), NO_FRAME, "frame"),
    ("merge names", lambda k, x: compression.merge(k.stack, x),
     {**NO_NAMES, "one string": "imdb", "one": ["imdb"], "none": [], "other labels":
      ["imdb", "agnews"], "unknown": ["imdb", "imbd"]}, "names|frame|merge"),
    ("merge method", lambda k, x: compression.merge(k.twins, ["imdb", "imdb-2"], x),
     {"unknown": "mean", "None": None, "a number": 3, "a list": ["svd"]}, "merge"),
    ("lower_rank names", lambda k, x: compression.lower_rank(k.stack, 0.9, x),
     {"one string": "imdb", "[3]": [3], "a number": 3, "unknown": ["imbd"]}, "names|frame"),
    ("int8 names", lambda k, x: compression.int8(k.stack, x),
     {"one string": "imdb", "[3]": [3], "a number": 3, "none": []}, "names|frame"),
    ("shared_basis names", lambda k, x: compression.shared_basis(k.stack, 2, x),
     {"one string": "imdb", "[3]": [3], "one": ["imdb"]}, "names|frame"),
    ("undo", lambda k, x: compression.undo(k.stack, x), NO_FRAME, "frame|name"),
    ("prune merge_by", lambda k, x: pruning.prune(
        k.stack, k.router, k.answers, k.answers, merge_by=x), {"unknown": "mean", "3": 3}, "merge"),
    ("second_look by", lambda k, x: pruning.second_look(
        k.stack, k.router, k.data, k.config, k.answers, by=x), {"unknown": "size", "3": 3},
     "criterion"),
    ("best_parent by", lambda k, x: parents.best_parent(k.stack, k.data, x),
     {"unknown": "size", "None": None, "3": 3}, "criterion"),
    ("spare name", lambda k, x: reuse.spare(k.stack, x, reuse.Decision(
        "reuse", "imdb", "", pd.DataFrame())), NO_NEW_NAME, "frame"),
    ("spare decision", lambda k, x: reuse.spare(k.stack, "new", x), NO_THING, "decision"),
    ("Answers tasks", lambda k, x: Answers(["a"], x, [0], ["no"]),
     {**NO_NAMES, "one string": "imdb", "two": ["a", "b"]}, "tasks"),
    ("Answers label_names", lambda k, x: Answers(["a"], ["imdb"], [0], x),
     {**NO_NAMES, "one string": "no"}, "label_names"),
    ("Answers.right names", lambda k, x: k.answers.right(k.stack, x),
     {"unknown": "imbd", "None": None, "a number": 3, "too few": ["imdb"]}, "frame"),
    ("Answers.of split", lambda k, x: Answers.of([k.data], x),
     {"unknown": "test", "None": None, "3": 3}, "split"),
    ("make_router", lambda k, x: make_router(x), {"unknown": "svm", "None": None, "a number": 3,
                                                  "a list": ["gate"], "empty": ""}, "router"),
    ("make_router parameter", lambda k, x: make_router("hybrid_chain", **x),
     {"unknown": {"threshhold": 0.1}, "other": {"Seed": 1}}, "router parameter"),
    ("Mixture shares", lambda k, x: Mixture({"a": ["no", "yes"]}, x),
     {"unknown": "all", "None": None, "3": 3, "a list": ["own"]}, "shares"),
    ("Mixture label_names", lambda k, x: Mixture(x),
     {"None": None, "a list": ["a"], "empty": {}, "no labels": {"a": []}, "[3]": {"a": [3]},
      "one string": {"a": "no"}, "twice": {"a": ["no", "no"]}}, "label.names|label names"),
    ("BitStack task", lambda k, x: k.bits.update(k.batches(), task=x),
     {"a number": 3, "empty": "", "a list": ["a"], "NaN": NAN}, "task"),
    ("BitStack.task_masks", lambda k, x: k.bits.task_masks(x),
     {"unknown": "two", "None": None, "a list": ["one"]}, "task"),
    ("BitStack exclude", lambda k, x: BitStack(k.tiny, exclude=x),
     {"one string": "score", "a number": 5, "[3]": [3], "[None]": [None], "a bracket": ["("],
      "a quantifier": ["*a"], "a mapping": {"a": 1}}, "exclude"),
    ("Sequential.predict tasks", lambda k, x: k.learner.predict(["a"], x),
     {**NO_NAMES, "one string": "imdb", "unknown": ["imbd"], "two": ["imdb", "imdb"]},
     "tasks|learned"),
    ("FrozenLDA.predict tasks", lambda k, x: k.lda.predict(["a"], x),
     {**NO_NAMES, "one string": "imdb", "unknown": ["imbd"], "none": []}, "tasks|learned"),
    ("TfidfLogistic.predict tasks", lambda k, x: k.tfidf.predict(["a"], x),
     {**NO_NAMES, "one string": "imdb", "unknown": ["imbd"], "none": []}, "tasks|learned"),
    ("EWC estimator", lambda k, x: baselines.EWC(k.backbone, k.config, estimator=x),
     {"unknown": "exat", "None": None, "3": 3}, "estimator"),
    ("generate frame", lambda k, x: generation.generate(k.writer, ["a"], x),
     {"unknown": "imbd", "None": None, "3": 3}, "frame"),
    ("generate without prompt", lambda k, x: generation.generate(k.stack, ["a"], x),
     {"a head": "imdb"}, "writes nothing"),
    ("read_answers labels", lambda k, x: generation.read_answers(["a"], x),
     {**NO_NAMES, "one string": "no"}, "label_names"),
    ("retrieve labels", lambda k, x: generation.retrieve(["so good"], x, ["a"], 1),
     {**NO_NAMES, "one string": "no", "two": ["a", "b"]}, "labels"),
    ("normalize_answer", lambda k, x: generation.normalize_answer(x), {"None": None, "3": 3},
     "text"),
    ("PromptHead prompt", lambda k, x: PromptHead(k.writer.backbone, ["no", "yes"], x),
     {"None": None, "no place": "Label:", "two": "{text}{text}", "3": 3}, "prompt"),
    ("grow prompt", lambda k, x: k.stack.grow(k.data, k.config, x, name="new"),
     {"no place": "Label:", "3": 3, "of an encoder": "{text} Label:"}, "prompt|encoder|token"),
    ("load_task", lambda k, x: load_task(x, 1, 1, 1, 0, data_dir=k.data_dir),
     {"unknown": "imbd", "None": None, "a number": 3, "a list": ["imdb"], "empty": "",
      "NUL": "a\0b"}, "task"),
    ("load_task source", lambda k, x: load_task("imdb", 1, 1, 1, 0, x, k.data_dir),
     {"unknown": "web", "None": None, "3": 3}, "source"),
    ("get_task", lambda k, x: tasks.get_task(x), {"unknown": "imbd", "None": None}, "task"),
    ("snapshot preset", lambda k, x: tasks.snapshot(x, k.folder),
     {"unknown": "hard9", "None": None, "3": 3}, "preset"),
    ("rewritten family", lambda k, x: rewritten(k.stream, "eval", x, 0),
     {"unknown": "test", "None": None}, "family"),
    ("keywords family", lambda k, x: keywords(k.stream, x), {"unknown": "test", "3": 3}, "family"),
    ("with_keywords split", lambda k, x: with_keywords(k.stream, x, "train", 0),
     {"unknown": "test", "None": None, "3": 3}, "split"),
    ("load_backbone", lambda k, x: load_backbone(x, device="cpu"),
     {"None": None, "empty": "", "a number": 3, "NUL": "a\0b", "a list": ["minilm"],
      "no such folder": "/nowhere/at/all", "unknown": "minilmm"}, "name|model"),
    ("identify", lambda k, x: identify(x, device="cpu"), {"None": None, "3": 3}, "name"),
    ("load_backbone device", lambda k, x: load_backbone(k.model, device=x),
     {"unknown": "gpu", "None": None, "3": 3, "cuda:99": "cuda:99", "cuda:x": "cuda:x",
      "negative": "cuda:-1", "empty": ""}, "device"),
    ("load_backbone dtype", lambda k, x: load_backbone(k.model, x, device="cpu"),
     {"unknown": "float64", "None": None, "a class": torch.float32, "a list": ["auto"]}, "dtype"),
    ("load_backbone quantize", lambda k, x: load_backbone(k.model, quantize=x, device="cpu"),
     {"unknown": "int3", "a string": "None", "4": 4}, "quantize"),
    ("load_backbone checkpointing", lambda k, x: load_backbone(
        k.model, device="cpu", gradient_checkpointing=x), {"a string": "yes", "None": None, "1": 1},
     "gradient_checkpointing"),
    ("views.walk_table", lambda k, x: views.walk_table(k.router, x), {"None": None, "3": 3},
     "text"),
    ("views.ask frames", lambda k, x: views.ask(k.stack, "a", x),
     {"one string": "imdb", "unknown": ["imbd"], "[3]": [3]}, "frame"),
]  # fmt: skip
for _name in ROUTERS:
    NAMED += [
        (f"{_name}.fit names", lambda k, x, n=_name: k.unfitted(n).fit(["a", "b"], x),
         {"None": None, "one string": "imdb", "a number": 3, "[None]": [None] * 2,
          "[NaN]": [NAN] * 2, "[1.5]": [1.5] * 2, "[True]": [True] * 2, "mixed": ["imdb", 1],
          "too few": ["imdb"], "empty": ["", "b"], "a mapping": {"a": 1, "b": 2}}, "frame names"),
        (f"{_name}.partial_fit names", lambda k, x, n=_name: k.routers[n].partial_fit(["a"], x),
         {"None": None, "a number": [3], "known": ["imdb"], "none": []}, "frame|add"),
        (f"{_name}.remove", lambda k, x, n=_name: k.routers[n].remove(x),
         {"unknown": "imbd", "None": None, "a list": ["imdb"]}, "frame|forget"),
        (f"{_name} unfitted", lambda k, x, n=_name: getattr(k.unfitted(n), x)(["a"]),
         {m: m for m in ("predict", "route", "predict_proba", "decision_function")}, "not fitted"),
        (f"{_name}.route_scores", lambda k, x, n=_name: k.routers[n].route_scores(x),
         {"another width": [[0.1]], "one row": [0.1, 0.2, 0.3], "NaN": [[NAN] * 3], "words":
          [["a", "b", "c"]], "None": None, "ragged": [[1.0], [1.0, 2.0]]}, "scores"),
        (f"{_name}.probabilities", lambda k, x, n=_name: k.routers[n].probabilities(x),
         {"another width": [[0.1]], "NaN": [[NAN] * 3], "None": None}, "scores"),
        (f"{_name} saved unfitted", lambda k, x, n=_name: save_router(k.unfitted(n), x),
         {"": "/nowhere"}, "not fitted"),
    ]  # fmt: skip

# ---------------------------------------------------------------------- numbers

COUNTS = [  # function, call, name, least, most
    ("load_task n_train", lambda k, x: load_task("imdb", x, 1, 1, 0, data_dir=k.data_dir),
     "n_train", 0, 10**9),
    ("load_task n_router", lambda k, x: load_task("imdb", 1, x, 1, 0, data_dir=k.data_dir),
     "n_router", 0, 10**9),
    ("load_task n_eval", lambda k, x: load_task("imdb", 1, 1, x, 0, data_dir=k.data_dir),
     "n_eval", 0, 10**9),
    ("load_task seed", lambda k, x: load_task("imdb", 1, 1, 1, x, data_dir=k.data_dir),
     "seed", 0, None),
    ("BitStack n_batches", lambda k, x: k.bits.update(k.batches(), n_batches=x), "n_batches", 1,
     None),
    ("shared_basis rank", lambda k, x: compression.shared_basis(k.twins, x), "rank", 1, 10**6),
    ("shared_basis rounds", lambda k, x: compression.shared_basis(k.twins, 2, rounds=x), "rounds",
     1, 10**6),
    ("merge seed", lambda k, x: compression.merge(k.twins, ["imdb", "imdb-2"], seed=x), "seed", 0,
     2**32 - 1),
    ("reliability_curve bins", lambda k, x: metrics.reliability_curve([[1.0, 0]], [0], x), "bins",
     1, 10**6),
    ("calibration_error bins", lambda k, x: metrics.calibration_error([[1.0, 0]], [0], x), "bins",
     1, 10**6),
    ("bootstrap n_resamples", lambda k, x: metrics.bootstrap_interval([1.0] * 9, n_resamples=x),
     "n_resamples", 1, 10**7),
    ("bootstrap seed", lambda k, x: metrics.bootstrap_interval([1.0] * 9, seed=x), "seed", 0,
     2**32 - 1),
    ("Martingale seed", lambda k, x: conformal.Martingale([1.0], x), "seed", 0, 2**32 - 1),
    ("nearest_accuracy k", lambda k, x: parents.nearest_accuracy(np.eye(3), [0, 1, 1], x), "k", 1,
     None),
    ("decide texts", lambda k, x: reuse.decide(k.stack, k.data, k.routers["gate"], texts=x),
     "texts", 1, None),
    ("EWC n_fisher", lambda k, x: baselines.EWC(k.backbone, k.config, n_fisher=x), "n_fisher", 1,
     None),
    ("Replay capacity", lambda k, x: baselines.Replay(k.backbone, k.config, capacity=x),
     "capacity", 1, None),
    ("GenerativeReplay n_pseudo", lambda k, x: baselines.GenerativeReplay(
        k.writer.backbone, k.config, n_pseudo=x), "n_pseudo", 1, 10**6),
    ("GenerativeReplay max_new", lambda k, x: baselines.GenerativeReplay(
        k.writer.backbone, k.config, max_new=x), "max_new", 1, 10**6),
    ("FineTuning n_batches", lambda k, x: baselines.FineTuning(k.backbone, k.config, n_batches=x),
     "n_batches", 1, None),
    ("generate max_new_tokens", lambda k, x: generation.generate(
        k.writer, ["a"], "imdb", max_new_tokens=x), "max_new_tokens", 1, 10**6),
    ("generate batch_size", lambda k, x: generation.generate(
        k.writer, ["a"], "imdb", batch_size=x), "batch_size", 1, 10**6),
    ("retrieve k", lambda k, x: generation.retrieve(["so good"], ["a"], ["a"], x), "k", 1, 1),
    ("retrieve words", lambda k, x: generation.retrieve(["so good"], ["a"], ["a"], 1, x), "words",
     1, 10**6),
    ("rewritten seed", lambda k, x: rewritten(k.stream, "eval", "train", x), "seed", 0, 2**32 - 1),
    ("formatted seed", lambda k, x: formatted(k.stream, "eval", "train", x), "seed", 0, 2**32 - 1),
    ("with_keywords n", lambda k, x: with_keywords(k.stream, "eval", "train", 0, x), "n", 1,
     10**6),
    ("GateRouter.together seed", lambda k, x: k.routers["gate"].together(["a"], x), "seed", 0,
     2**32 - 1),
    ("Backbone.embed max_length", lambda k, x: k.backbone.embed(["a"], x), "max_length", 1, None),
    ("Backbone.encode max_length", lambda k, x: k.backbone.encode(["a"], x), "max_length", 1, None),
    ("views.routed_frames n", lambda k, x: views.routed_frames(k.router, [k.data], x), "n", 1,
     None),
]  # fmt: skip
NUMBERS = [  # function, call, name, values out of range
    ("SkillStack.answer coverage", lambda k, x: k.stack.answer(["a"], k.router, coverage=x),
     "coverage", (0, 1, 9, -0.1)),
    ("conformal.threshold", lambda k, x: conformal.threshold([0.1], x), "coverage", (0, 1, 9, -1)),
    ("bootstrap confidence", lambda k, x: metrics.bootstrap_interval([1.0] * 9, x), "confidence",
     (0, 1, 5, 95, -0.5)),
    ("BitStack sparsity", lambda k, x: BitStack(k.tiny, x), "sparsity", (-0.1, 1.1, 12)),
    ("FineTuning sparsity", lambda k, x: baselines.FineTuning(k.backbone, k.config, x), "sparsity",
     (-0.1, 1.1)),
    ("lower_rank", lambda k, x: compression.lower_rank(k.stack, x), "energy", (0, -1, 1.1, 95)),
    ("merge density", lambda k, x: compression.merge(k.twins, ["imdb", "imdb-2"], "ties", x),
     "density", (0, -1, 1.5)),
    ("prune max_loss_pp", lambda k, x: pruning.prune(k.stack, k.router, k.answers, k.answers, x),
     "max_loss_pp", (-1, -1e9)),
    ("prune confidence", lambda k, x: pruning.prune(
        k.stack, k.router, k.answers, k.answers, 1.0, x), "confidence", (0, 1, 95)),
    ("second_look max_loss_pp", lambda k, x: pruning.second_look(
        k.stack, k.router, k.data, k.config, k.answers, max_loss_pp=x), "max_loss_pp", (-1,)),
    ("second_look confidence", lambda k, x: pruning.second_look(
        k.stack, k.router, k.data, k.config, k.answers, confidence=x), "confidence", (0, 1, 95)),
    ("decide max_loss_pp", lambda k, x: reuse.decide(k.stack, k.data, k.routers["gate"], x),
     "max_loss_pp", (-1,)),
    ("decide confidence", lambda k, x: reuse.decide(k.stack, k.data, k.routers["gate"], 1.0, x),
     "confidence", (0, 1, 95)),
    ("LearnerLoop alpha", lambda k, x: reuse.LearnerLoop(k.backbone, k.config, x), "alpha",
     (0, 1, -1, 5)),
    ("LearnerLoop max_loss_pp", lambda k, x: reuse.LearnerLoop(k.backbone, k.config, 0.05, x),
     "max_loss_pp", (-1,)),
    ("EWC strength", lambda k, x: baselines.EWC(k.backbone, k.config, x), "strength", (-1, 1e308)),
    ("EWC decay", lambda k, x: baselines.EWC(k.backbone, k.config, decay=x), "decay", (-1, 1.5)),
    ("EWC gamma_gain", lambda k, x: baselines.EWC(k.backbone, k.config, gamma_gain=-1 if x == INF
                                                  else x), "gamma_gain", (-1,)),
    ("OLoRA strength", lambda k, x: baselines.OLoRA(k.backbone, k.config, x), "strength",
     (-1, 1e308)),
]  # fmt: skip
ROUTER_PARAMETERS = {  # of whichever router has them: values out of range, beside what is no number
    "C": (0, -1, None),
    "scale": (0, -1, None),
    "threshold": (None,),
    "nearly_every": (0, -1, 2, None),
    "tolerance": (-1, None),
    "format_trust": (-1, None),
    "k": (0, -1, 1.5, None),
    "epochs": (-1, 1.5, 10**9, None),
    "lr": (0, -1, None),
    "temperature": (0, -1),
    "min_confidence": (None,),
    "max_length": (0, -1, 1.5, 10**9, None),
    "first": (0, -1, None),
    "alpha": (0, 1, -1, 5, None),
    "seed": (-1, 1.5, 2**32, None),
    "delta": (None, 2),
    "root_first": (None, 2),
    "descriptions": (["a"], {"a": 3}),
}
ARRAYS = [  # function, call, values, words
    ("reliability_curve", lambda k, x: metrics.reliability_curve(x, [0]),
     {**NO_ARRAY, "above 1": [[5, 3]], "negative": [[-0.5, 1.5]], "sum 0.5": [[0.2, 0.3]],
      "sum 2": [[1.0, 1.0]], "one row": [0.5, 0.5]}, "probabilities"),
    ("calibration_error", lambda k, x: metrics.calibration_error(x, [0]),
     {**NO_ARRAY, "above 1": [[5, 3]], "negative": [[-0.5, 1.5]], "sum 0.5": [[0.2, 0.3]],
      "logits": [[-3.0, 2.0]]}, "probabilities"),
    ("calibration_error labels", lambda k, x: metrics.calibration_error([[0.5, 0.5]], x),
     NO_LABELS, "labels"),
    ("seed_range", lambda k, x: metrics.seed_range(x),
     {"words": ["a"], "None": None, "one number": 3, "a string": "1", "two columns": [[0.1], [1]],
      "infinite": [INF, 1.0]}, "values"),
    ("bootstrap_interval", lambda k, x: metrics.bootstrap_interval(x),
     {"words": ["a"] * 9, "None": None, "one number": 3, "infinite": [INF] * 9}, "values"),
    *((f.__name__, lambda k, x, f=f: f(x),
       {"words": [["a"]], "None": None, "a string": "1", "not square": [[0.1, 0.2]], "a row": [0.5],
        "percent": [[93.0]], "negative": [[-0.1]], "empty": [[]], "ragged": [[0.1], [0.1, 0.2]],
        "infinite": [[INF]]}, "matrix|accuracies")
      for f in (metrics.average_accuracy, metrics.backward_transfer, metrics.final_drop,
                metrics.forgetting)),
    ("p_values calibration", lambda k, x: conformal.p_values(x, [0.1]),
     {"none": [], "NaN": [NAN], "words": ["a"], "None": None, "two columns": [[0.1, 0.2]]},
     "calibration"),
    ("p_values scores", lambda k, x: conformal.p_values([0.1], x),
     {"NaN": [NAN], "words": ["a"], "None": None}, "scores"),
    ("simes", lambda k, x: conformal.simes(x),
     {"none": [], "NaN": [NAN], "words": ["a"], "None": None, "above 1": [1.5], "one": 0.5},
     "p-values"),
    ("simes axis", lambda k, x: conformal.simes([0.5], x), {"2": 2, "None": None, "a": "a"},
     "axis"),
    ("Martingale", lambda k, x: conformal.Martingale(x),
     {"none": [], "NaN": [NAN], "words": ["a"], "None": None}, "calibration"),
    ("Martingale.update", lambda k, x: conformal.Martingale([0.1]).update(x),
     {"NaN": [NAN], "words": ["a"], "None": None, "one number": 0.5}, "scores"),
    ("threshold calibration", lambda k, x: conformal.threshold(x, 0.9),
     {"none": [], "NaN": [NAN], "words": ["a"], "None": None}, "calibration"),
    ("leep", lambda k, x: parents.leep(x, [0]), {**NO_ARRAY, "above 1": [[5.0, 3.0]]},
     "probabilities"),
    ("leep labels", lambda k, x: parents.leep([[0.5, 0.5]], x),
     {key: NO_LABELS[key] for key in ("NaN", "a word", "None", "too many", "a half")}, "labels"),
    ("logme", lambda k, x: parents.logme(x, [0]), {**NO_ARRAY, "no rows": np.zeros((0, 2))},
     "features"),
    ("nearest_accuracy", lambda k, x: parents.nearest_accuracy(x, [0]),
     {**NO_ARRAY, "no rows": np.zeros((0, 2))}, "features"),
    ("SkillStack.grow targets", lambda k, x: k.stack.grow(k.data, k.config, name="new", targets=x),
     {**{key: NO_ARRAY[key] for key in NO_ARRAY if key != "None"}, "another shape": [[0.5, 0.5]],
      "a number": 1.0, "sum 2": np.ones((12, 2)), "negative": np.tile([2.0, -1.0], (12, 1))},
     "targets"),
    *((f"{name} logits asked", ask,
       {"another shape": [True], "numbers": [[1]], "a string": "all"}, "asked")
      for name, ask in (("SkillStack", lambda k, x: k.stack.logits(["a"], ["imdb"], x)),
                        ("Independent", lambda k, x: k.independent.logits(["a"], x)),
                        ("FrozenLDA", lambda k, x: k.lda.logits(["a"], x)),
                        ("TfidfLogistic", lambda k, x: k.tfidf.logits(["a"], x)))),
    ("Answers labels", lambda k, x: Answers(["a"], ["imdb"], x, ["no"]),
     {"a word": ["a"], "None": None, "NaN": [NAN], "a half": [0.5], "two": [0, 1]}, "labels"),
    ("Answers.right rows", lambda k, x: k.answers.right(k.stack, "imdb", x),
     {"out of range": [10**6], "words": ["a"], "a half": [0.5], "one": 3, "short mask": [True]},
     "rows"),
    ("Mixture.fit logits", lambda k, x: k.mixture().fit(x, ["a"], [0]),
     {**{key: NO_ARRAY[key] for key in ("None", "words", "ragged", "a string")}, "another shape":
      [[0.1, 0.2]], "NaN": np.full((1, 2, 2), NAN)}, "logits"),
    ("Mixture.fit frames", lambda k, x: k.mixture().fit(np.zeros((1, 2, 2)), x, [0]),
     {"None": None, "unknown": ["z"], "one string": "a", "two": ["a", "b"], "[3]": [3]}, "frame"),
    ("Mixture.fit labels", lambda k, x: k.mixture().fit(np.zeros((1, 2, 2)), ["a"], x),
     NO_LABELS, "labels"),
    ("Mixture.fit nothing", lambda k, x: k.mixture().fit(np.zeros((0, 2, 2)), x, []),
     {"no rows": []}, "labels"),
    ("Mixture.predict logits", lambda k, x: k.mixture().predict(x, [[0.5, 0.5]]),
     {"None": None, "words": [["a"]], "another shape": [[0.1, 0.2]]}, "logits"),
    ("Mixture.predict routed", lambda k, x: k.mixture().predict(np.zeros((1, 2, 2)), x),
     {**NO_ARRAY, "another width": [[1.0]], "above 1": [[5.0, 3.0]], "negative": [[-1.0, 2.0]],
      "too many": [[0.5, 0.5]] * 2}, "routed"),
    ("Mixture.asked", lambda k, x: k.mixture().asked(x), {**NO_ARRAY, "another width": [[1.0]]},
     "routed"),
]  # fmt: skip

# ---------------------------------------------------------------------- everything else

THINGS = [  # function, call, values, words
    ("SkillStack", lambda k, x: SkillStack(x), NO_THING, "backbone"),
    ("SkillStack.grow config", lambda k, x: k.stack.grow(k.data, x, name="new"),
     {**NO_THING, "a mapping": {"epochs": 1}}, "config"),
    ("SkillStack.answer router", lambda k, x: k.stack.answer(["a"], x), NO_THING, "router"),
    ("SkillStack.answer unfitted", lambda k, x: k.stack.answer(["a"], k.unfitted(x)),
     {name: name for name in ROUTERS}, "not fitted"),
    ("SkillStack.certify router", lambda k, x: k.stack.certify(["a"], x), NO_THING, "router"),
    ("SkillStack.certify since", lambda k, x: k.stack.certify(["a"], k.router, x),
     {"a number": 3, "a mapping": {}, "no file": "/nowhere/c.json", "NUL": "a\0b"},
     "since|certificate|missing"),
    ("SkillStack.remove retrain", lambda k, x: k.stack.remove("imdb", x),
     {"a list": ["agnews"], "a number": 3, "no rows": {}}, "retrain"),
    ("drop stack", lambda k, x: compression.drop(x, "imdb", "qqp"), NO_THING, "stack"),
    ("merge stack", lambda k, x: compression.merge(x, ["imdb", "qqp"]), NO_THING, "stack"),
    ("lower_rank stack", lambda k, x: compression.lower_rank(x), NO_THING, "stack"),
    ("int8 stack", lambda k, x: compression.int8(x), NO_THING, "stack"),
    ("shared_basis stack", lambda k, x: compression.shared_basis(x, 2), NO_THING, "stack"),
    ("undo stack", lambda k, x: compression.undo(x, "imdb"), NO_THING, "stack"),
    ("undo original", lambda k, x: compression.undo(k.dropped, "qqp", x),
     {"a number": 3, "no folder": "/nowhere", "another stack": "kit"}, "original|missing|kit"),
    ("prune stack", lambda k, x: pruning.prune(x, k.router, k.answers, k.answers), NO_THING,
     "stack"),
    ("prune router", lambda k, x: pruning.prune(k.stack, x, k.answers, k.answers), NO_THING,
     "router"),
    ("prune choice", lambda k, x: pruning.prune(k.stack, k.router, x, k.answers), NO_THING,
     "choice"),
    ("prune held_back", lambda k, x: pruning.prune(k.stack, k.router, k.answers, x), NO_THING,
     "held_back"),
    ("admit frame", lambda k, x: pruning.admit(k.stack, x, k.router, k.answers, k.answers),
     NO_THING, "frame"),
    ("admit stack", lambda k, x: pruning.admit(x, k.stack.frames[0], k.router, k.answers,
                                               k.answers), NO_THING, "stack"),
    ("second_look stack", lambda k, x: pruning.second_look(x, k.router, k.data, k.config,
                                                           k.answers), NO_THING, "stack"),
    ("second_look config", lambda k, x: pruning.second_look(k.stack, k.router, k.data, x,
                                                            k.answers), NO_THING, "config"),
    ("second_look held_back", lambda k, x: pruning.second_look(k.stack, k.router, k.data, k.config,
                                                               x), NO_THING, "held_back"),
    ("parent_scores stack", lambda k, x: parents.parent_scores(x, k.data), NO_THING, "stack"),
    ("best_parent stack", lambda k, x: parents.best_parent(x, k.data), NO_THING, "stack"),
    ("decide stack", lambda k, x: reuse.decide(x, k.data, k.routers["gate"]), NO_THING, "stack"),
    ("decide gate", lambda k, x: reuse.decide(k.stack, k.data, x), NO_THING, "router"),
    ("decide unfitted", lambda k, x: reuse.decide(k.stack, k.data, k.unfitted(x)),
     {"gate": "gate"}, "not fitted"),
    ("spare stack", lambda k, x: reuse.spare(x, "new", reuse.Decision(
        "reuse", "imdb", "", pd.DataFrame())), NO_THING, "stack"),
    ("LearnerLoop backbone", lambda k, x: reuse.LearnerLoop(x, k.config), NO_THING, "backbone"),
    ("LearnerLoop config", lambda k, x: reuse.LearnerLoop(k.backbone, x), NO_THING, "config"),
    ("Answers.routed", lambda k, x: k.answers.routed(k.stack, x), NO_THING, "router"),
    ("Answers.of stream", lambda k, x: Answers.of(x, "eval"),
     {**NO_THING, "[None]": [None], "none": [], "names": ["imdb"]}, "stream|data"),
    ("generate stack", lambda k, x: generation.generate(x, ["a"], "imdb"), NO_THING, "stack"),
    ("left_of certificate", lambda k, x: left_of(k.folder, x), {**NO_THING, "empty": {}},
     "certificate"),
    ("views.chain_table", lambda k, x: views.chain_table(x), NO_THING, "stack"),
    ("views.chain_table of", lambda k, x: views.chain_table(SkillStack(k.backbone)),
     {"an empty stack": 0}, "no frame"),
    ("views.routed_frames stream", lambda k, x: views.routed_frames(k.router, x),
     {**NO_THING, "none": [], "[None]": [None]}, "stream|data"),
    ("views.routed_frames router", lambda k, x: views.routed_frames(x, [k.data]), NO_THING,
     "router"),
    ("save_router", lambda k, x: save_router(x, k.folder), NO_THING, "router"),
    ("save_router of", lambda k, x: save_router(type("Mine", (type(k.router),), {})(), x),
     {"a subclass": "/nowhere"}, "Mine is none of"),
    ("BitStack model", lambda k, x: BitStack(x), NO_THING, "model"),
    ("BitStack.update batches", lambda k, x: k.bits.update(x, task="new"),
     {"None": None, "a number": 3, "a string": "abc", "none": [], "a mapping": {"x": 1},
      "numbers": [1, 2], "tuples": [(1, 2)]}, "dataloader|batch"),
    ("BitStack.update labels", lambda k, x: k.bits.update(k.batches(x), task="new"),
     {"9": 9, "-1": -1}, "batch"),
    ("BitStack.load model", lambda k, x: BitStack.load(k.mask_file, x), NO_THING, "model"),
    *((f"{kind.__name__} backbone", lambda k, x, kind=kind: kind(x, k.config), NO_THING, "backbone")
      for kind in (baselines.Sequential, baselines.Independent, baselines.EWC, baselines.Replay,
                   baselines.Joint, baselines.OLoRA, baselines.FineTuning, baselines.FrozenLDA)),
    *((f"{kind.__name__} config", lambda k, x, kind=kind: kind(k.backbone, x), NO_THING, "config")
      for kind in (baselines.Sequential, baselines.Independent, baselines.EWC, baselines.Replay,
                   baselines.Joint, baselines.OLoRA, baselines.FineTuning, baselines.FrozenLDA)),
    ("Sequential.of", lambda k, x: baselines.Sequential.of(x, k.config), NO_THING, "stack"),
    ("Sequential.of empty", lambda k, x: baselines.Sequential.of(SkillStack(k.backbone), x),
     {"stack": TrainingConfig()}, "empty stack"),
    *((f"{name}.learn stream", lambda k, x, name=name: k.new_learner(name).learn(x),
       {**NO_THING, "none": [], "[None]": [None]}, "stream|data")
      for name in ("Joint", "FrozenLDA", "TfidfLogistic")),
    *((f"{name} asked before learned", lambda k, x, name=name: k.new_learner(name).logits(x),
       {"": ["a"]}, "no task was learned")
      for name in ("Sequential", "FrozenLDA", "TfidfLogistic")),
    ("TfidfLogistic predicts before", lambda k, x: baselines.TfidfLogistic().predict(["a"], x),
     {"learned": ["imdb"]}, "no task was learned"),
    ("rewritten stream", lambda k, x: rewritten(x, "eval", "train", 0),
     {**NO_THING, "none": [], "[None]": [None]}, "stream|data"),
    ("with_keywords stream", lambda k, x: with_keywords(x, "eval", "train", 0),
     {**NO_THING, "none": [], "[None]": [None]}, "stream|data|keywords"),
    ("keywords stream", lambda k, x: keywords(x, "train"), {**NO_THING, "none": []},
     "stream|data"),
    ("Task.from_frames train", lambda k, x: Task.from_frames("mine", x), NO_THING, "train"),
    ("Task.from_frames test", lambda k, x: Task.from_frames("mine", k.table, x),
     {"a string": "a", "a number": 3}, "test"),
    ("Task.from_frames name", lambda k, x: Task.from_frames(x, k.table), NO_NEW_NAME,
     "called|name"),
    ("Task.from_frames labels", lambda k, x: Task.from_frames("mine", k.table, label_names=x),
     {"one string": "no", "a number": 3, "one": ["no"], "twice": ["no", "no"], "others":
      ["a", "b"]}, "label"),
    ("Task.from_frames text", lambda k, x: Task.from_frames("mine", k.table, text=x),
     {"unknown": "body", "a list": ["text"], "a number": 3}, "text"),
    ("Task.from_frames label", lambda k, x: Task.from_frames("mine", k.table, label=x),
     {"unknown": "class", "a list": ["label"]}, "label"),
    ("Task.from_frames template", lambda k, x: Task.from_frames("mine", k.table, template=x),
     {"no place": "Review", "a number": 3, "a brace": "{", "attribute": "{text.__class__}",
      "pair": "{text_pair}"}, "template"),
    ("Task.from_frames family", lambda k, x: Task.from_frames("mine", k.table, family=x),
     {"a number": 3, "a list": ["a"]}, "family"),
    ("Task.from_frames of", lambda k, x: Task.from_frames("mine", pd.DataFrame(x)),
     {"no rows": {"text": [], "label": []}, "no columns": {}, "one label":
      {"text": ["a", "b"], "label": [1, 1]}, "no texts": {"text": [None, NAN], "label": [0, 1]},
      "fractions": {"text": ["a", "b"], "label": [0.5, 1.5]}, "lists":
      {"text": ["a", "b"], "label": [[0], [1]]}}, "label|text|row"),
    ("Task.from_dataset", lambda k, x: Task.from_dataset("mine", x),
     {**NO_THING, "no train": {"test": 1}}, "rows|train"),
    ("experiment.load_rows", lambda k, x: experiment.load_rows(k.stack["imdb"], x),
     {"no folder": "/nowhere", "NUL": "a\0b", "a number": 3}, "data|folder"),
]  # fmt: skip
PATHS = {  # function: call
    "SkillStack.save_pretrained": lambda k, x: k.stack.save_pretrained(x),
    "SkillStack.from_pretrained": lambda k, x: SkillStack.from_pretrained(x, k.backbone),
    "SkillStack.open": lambda k, x: SkillStack.open(x, k.backbone),
    "save_router": lambda k, x: save_router(k.router, x),
    "load_router": lambda k, x: load_router(x),
    "Mixture.save": lambda k, x: k.mixture().save(x),
    "Mixture.load": lambda k, x: Mixture.load(x),
    "BitStack.save": lambda k, x: k.bits.save(x),
    "BitStack.load": lambda k, x: BitStack.load(x, k.tiny),
    "Task.from_folder": lambda k, x: Task.from_folder(x),
    "own_tasks": lambda k, x: tasks.own_tasks(x),
    "snapshot": lambda k, x: tasks.snapshot("mini4", x, "embedded"),
    "stored_bytes": lambda k, x: compression.stored_bytes(x),
    "left_of": lambda k, x: left_of(x, k.removed),
    "open_stack": lambda k, x: experiment.open_stack(x),
    "stack_routers": lambda k, x: experiment.stack_routers(k.stack, x),
    "find_stacks": lambda k, x: experiment.find_stacks(x),
}

# ---------------------------------------------------------------------- parameters of notebooks

_CHOICES = {"router", "parent", "source", "dtype", "quantize", "device", "preset", "tasks"}
_NOT_EMPTY = {"model", "output_dir", "stack_dir", "data_dir", "trunk_dir", "methods", *_CHOICES}
_OUT_OF_RANGE = {
    "seed": (2**32, 10**30),
    "lr": (0.0, 1.0, -1.0, 1e308),
    "epochs": (0, 10**7),
    "batch_size": (0, 10**7),
    "max_length": (0, 2, 10**7),
    "lora_r": (0, 10**5),
    "lora_alpha": (0, 10**7),
    "first_adapted_layer": (0, 0.0, 1.0, -0.5, 10**7),
    "n_train": (0, 10**10),
    "n_router": (0, 10**10),
    "n_eval": (0, 10**10),
    "n_held_back": (0, 10**10),
    "buffer_size": (0, 10**10),
    "ewc_strength": (-1.0, 1e308),
    "ewc_online_strength": (-1.0, 1e308),
    "olora_strength": (-1.0, 1e308),
    "joint_wide_lr": (-1.0, 2.0),
    "max_loss_pp": (-1.0, 101.0),
    "methods": ("ewc,ewc", "ewc, repaly", "ewc,", ",", "EWC"),
    "tasks": ("imdb,imdb", "imdb,", "imdb, imbd", "imbd"),
    "preset": ("hard9", "HARD8", "~nobody-of-this-name"),
    "device": ("cuda:x", "gpu", "cuda:-1", "CPU", "cuda:99999"),
    "dtype": ("float64", "int8"),
    "quantize": ("None", "int3"),
    "output_dir": ("~nobody-of-this-name/x", "x" * 300),
}


def _bad_values(field: dataclasses.Field, kind) -> Iterator:
    """What a field must refuse, by its type."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    yield from ([1], ["a"], (1, 2), {"a": 1})
    if types.NoneType not in options:
        yield None
    if bool not in options:
        yield from (True, False)
    if int not in options and float not in options:
        yield from (3, -1, 2.5, NAN)
    if str not in options:
        yield from ("3", "", "abc", "None", "a\0b")
    else:
        yield from ("a\0b", *([""] if field.name in _NOT_EMPTY else []))
        yield from (["no such thing"] if field.name in _CHOICES else [])
    if float in options:
        yield from (NAN, INF, -INF)
    elif int in options:
        yield from (1.5, NAN, INF, -1, -(10**9))
    yield from _OUT_OF_RANGE.get(field.name, ())


def parameters() -> Iterator[Bad]:
    """Every parameter of every notebook, by the door that notebooks use."""
    kinds = typing.get_type_hints(RunConfig)
    for field in dataclasses.fields(RunConfig):
        if field.name == "notebook":
            continue
        for value in _bad_values(field, kinds[field.name]):
            call = lambda kit, name, value: RunConfig.from_notebook({name: value}, "01")  # noqa: E731
            yield Bad(
                f"RunConfig {field.name}",
                shown(value),
                lambda kit, name=field.name, value=value, call=call: call(kit, name, value),
                field.name.removesuffix("s"),  # of a list one name is wrong
            )


# ---------------------------------------------------------------------- all of them


def every() -> Iterator[Bad]:
    for where, call in (ASKED | TOLD).items():
        yield from each(where, call, NO_TEXTS, "texts|memory|contexts|written|questions")
    for where, call, values, words in (*NAMED, *ARRAYS, *THINGS):
        yield from each(where, call, values, words)
    for where, call, name, least, most in COUNTS:
        values = {k: v for k, v in NO_COUNT.items()} | {"too few": least - 1}
        values |= {} if most is None else {"too many": most + 1, "huge": 10**30}
        yield from each(where, call, values, name)
    for where, call, name, beyond in NUMBERS:
        values = NO_NUMBER | {f"{value}": value for value in beyond}
        yield from each(where, call, values, name)
    for router in ROUTERS:
        own = make_router(router).get_params()
        for name, beyond in ROUTER_PARAMETERS.items():
            if name in own:
                more = {} if name in ("delta", "root_first") else {"True": True}
                values = {"NaN": NAN, "a string": "1", "a list": [1], "infinity": INF, **more}
                values |= {f"{value}": value for value in beyond}
                fit = lambda k, x, r=router, n=name: k.unfitted(r).set_params(**{n: x}).fit(  # noqa: E731
                    ["a", "b"], ["imdb", "agnews"])  # fmt: skip
                yield from each(f"{router} {name}", fit, values, name)
                make = lambda k, x, r=router, n=name: make_router(r, **{n: x})  # noqa: E731
                yield from each(f"make_router {router} {name}", make, values, name)
    for where, call in PATHS.items():
        yield from each(where, call, NO_PATH, "path|folder|stack|does not exist")
    yield from of_data("SkillStack.grow", lambda k, x: k.stack.grow(x, k.config, name="new"),
                       "train", "eval")  # fmt: skip
    yield from of_data("SkillStack.evaluate", lambda k, x: k.stack.evaluate(x), "eval")
    yield from of_data("Sequential.learn", lambda k, x: k.new_learner("Sequential").learn(x),
                       "train")  # fmt: skip
    yield from of_data("Sequential.evaluate", lambda k, x: k.learner.evaluate(x), "eval")
    yield from of_data("FrozenLDA.evaluate", lambda k, x: k.lda.evaluate(x), "eval")
    yield from of_data("Joint.learn", lambda k, x: k.new_learner("Joint").learn([x]), "train")
    yield from of_data("parent_scores", lambda k, x: parents.parent_scores(k.stack, x), "router")
    yield from of_data("decide", lambda k, x: reuse.decide(k.stack, x, k.routers["gate"]),
                       "train", "router")  # fmt: skip
    yield from of_data("LearnerLoop.learn", lambda k, x: k.loop.learn(x), "train", "router", "eval")
    yield from of_data("second_look", lambda k, x: pruning.second_look(
        k.stack, k.router, x, k.config, k.answers), "train", "router", "eval")  # fmt: skip
    yield from of_data("Answers.of", lambda k, x: Answers.of([x], "eval"), "eval")
    yield Bad("SkillStack.grow rows", "one label", lambda k: k.stack.grow(
        _rows(lambda rows: rows[rows["label"] == 0], "train")(k), k.config, name="new"),
        "all training rows have the label 'negative'")  # fmt: skip
    for name, beyond in _OUT_OF_RANGE.items():
        if name in {field.name for field in dataclasses.fields(TrainingConfig)}:
            values = {f"{value}": value for value in (*beyond, "3", NAN, [1], True)}
            make = lambda k, x, n=name: TrainingConfig(**{n: x})  # noqa: E731
            yield from each(f"TrainingConfig {name}", make, values, name)
    yield from parameters()


BAD = list(every())
