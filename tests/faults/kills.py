"""`kill -9` at random moments: of whatever writes to disk, and of whole notebooks.

After every kill what is there must open, and nothing that was there may be gone or changed; then
the work is done again and must end in the same bytes as where nobody disturbed it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import peft  # noqa: F401  (once, not in every child)
import psutil
import safetensors.numpy
import specimen
from corruption import facts_of

from skillstack_helpers import BitStack, SkillStack
from skillstack_helpers.answers import Answers
from skillstack_helpers.compression import drop, int8
from skillstack_helpers.ensemble import Mixture
from skillstack_helpers.lab import runs
from skillstack_helpers.lab.experiment import fit_router
from skillstack_helpers.pruning import admit, prune
from skillstack_helpers.routers import load_router, save_router

AT_ONCE = 3  # kills in the same folder before the work is left to end
PATIENCE = 60.0  # seconds, of which a work takes one or two
NOTEBOOKS = {  # with the parameters of a run of a minute or less
    "01_train_stack": {"tasks": "imdb,agnews,qqp"},
    "04_baselines": {
        "tasks": "imdb,agnews,qqp",
        "methods": "frames,ewc,joint",
        "ewc_strength": 10.0,
    },
    "06_compression": {"tasks": "imdb,agnews,qqp", "n_held_back": 16, "max_loss_pp": 50.0},
    "10_reuse_or_create": {"tasks": "imdb,agnews,qqp", "n_train": 9, "n_eval": 8},
}


class Work(NamedTuple):
    """before: makes the folder as it is at first; work: what is killed; opens: what must hold at
    any moment, given the names of frames that were whole before."""

    before: Callable[[Path], object]
    work: Callable[[Path], object]
    opens: Callable[[Path], object]


def in_memory(stack: SkillStack) -> SkillStack:
    """The stack as it was before it was saved."""
    fresh = dict(folder=None, sha256={}, listed=None)
    frames = [dataclasses.replace(f, **fresh, _weights=f.weights()) for f in stack.frames]
    new = stack.copy(frames)
    new._seen = {}
    return new


def works(root: Path) -> dict[str, Work]:
    """Everything that writes, by name."""
    model, tasks = specimen.backbone(root), specimen.stream(root)
    whole = SkillStack.from_pretrained(root / "kept" / "stack", model)
    router = load_router(root / "kept" / "stack" / "routers" / "hybrid_chain")
    other = fit_router("hybrid_chain", tasks[:2], whole)
    texts = specimen.TEXTS
    both = {str(one.decision_function(texts).tolist()) for one in (router, other)}
    three = in_memory(whole).copy(in_memory(whole).frames[:3])
    held = Answers.of(tasks, "eval")

    def stack_opens(place: Path) -> None:
        if (place / "stack.json").exists():
            stack = SkillStack.from_pretrained(place, model)
            stack.verify()
            for name in [frame.name for frame in stack.frames][:1]:
                stack.predict(texts, name)

    def both_open(place: Path) -> None:
        stack_opens(place / "before")
        stack_opens(place / "after")

    def pruned(place: Path) -> None:
        small = prune(in_memory(whole), router, Answers.of(tasks, "router"), held, max_loss_pp=60.0)
        small.save_pretrained(place)

    def admitted(place: Path) -> None:
        stack = SkillStack.from_pretrained(place / "before", model)
        frame = stack.copy().grow(tasks[3], specimen.CONFIG)
        choice = Answers.of(tasks, "router")
        stack = admit(stack, frame, router, choice, held, max_loss_pp=60.0)
        stack.save_pretrained(place / "after")

    def grown(place: Path) -> None:
        stack = SkillStack.open(place, model)
        for data in tasks[:2]:
            if data.name not in stack:
                stack.grow(data, specimen.CONFIG)
                stack.save_pretrained(place)

    def removed(place: Path) -> None:
        stack = SkillStack.from_pretrained(place, model)
        if "yelp" in stack:
            stack.remove("yelp")

    def router_loads(place: Path) -> None:
        assert str(load_router(place).decision_function(texts).tolist()) in both

    def as_two_files(place: Path) -> None:
        save_router(router, place)
        path = place / "router.safetensors"
        fields = facts_of(path)
        arrays = safetensors.numpy.save(safetensors.numpy.load(path.read_bytes()))
        fields |= {"sha256": hashlib.sha256(arrays).hexdigest()}
        fields.pop("seal")
        (place / "arrays.safetensors").write_bytes(arrays)
        (place / "router.json").write_text(json.dumps(fields))
        path.unlink()

    def masks(tasks_: int) -> BitStack:
        bitstack = BitStack(specimen.Net(), sparsity=0.3)
        for i in range(tasks_):
            bitstack.update(specimen.batches(i), task=f"task {i}")
        return bitstack

    one, two = masks(1), masks(2)

    def masks_load(place: Path) -> None:
        loaded = BitStack.load(place / "m.safetensors", specimen.Net())
        assert loaded.tasks in (one.tasks, two.tasks)

    labels = {frame.name: frame.label_names for frame in whole.frames}
    mixtures = [Mixture(labels, shares) for shares in ("own", "family")]

    def mixture_loads(place: Path) -> None:
        assert Mixture.load(place / "mix.json").shares in ("own", "family")

    nothing = Path.mkdir
    return {
        "save": Work(nothing, lambda p: in_memory(whole).save_pretrained(p), stack_opens),
        "save, frames dropped": Work(
            nothing, lambda p: int8(drop(in_memory(whole), "yelp", "imdb")).save_pretrained(p),
            stack_opens,
        ),
        "grow and save": Work(nothing, grown, stack_opens),
        "prune and save": Work(nothing, pruned, stack_opens),
        "admit and save": Work(
            lambda p: in_memory(three).save_pretrained(p / "before"), admitted, both_open
        ),
        "remove": Work(lambda p: in_memory(whole).save_pretrained(p), removed, stack_opens),
        "save_router": Work(
            lambda p: save_router(router, p), lambda p: save_router(other, p), router_loads
        ),
        "save_router over two files": Work(
            as_two_files, lambda p: save_router(other, p), router_loads
        ),
        "BitStack.save": Work(
            lambda p: (p.mkdir(), one.save(p / "m.safetensors")),
            lambda p: two.save(p / "m.safetensors"), masks_load,
        ),
        "Mixture.save": Work(
            lambda p: (p.mkdir(), mixtures[0].save(p / "mix.json")),
            lambda p: mixtures[1].save(p / "mix.json"), mixture_loads,
        ),
    }  # fmt: skip


def tree(place: Path) -> dict[str, str]:
    """Every file but locks and what was left half-written: name -> digest. Of a frame, what it
    learned: its frame.json has the seconds that took."""
    found = {}
    for path in sorted(place.rglob("*")):
        whole = not any(part.endswith(".tmp") for part in path.relative_to(place).parts)
        if whole and path.is_file() and path.name not in (".lock", "frame.json", "stack.json"):
            found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def killed(work: Callable[[Path], object], place: Path, seconds: float | None) -> int:
    """Do it in a child, killed after so many seconds; returns how it ended.

    A child that is forked while another thread holds a lock waits for ever, which says nothing of
    the work: left alone, it is killed after `PATIENCE` seconds, once more, and another one begins.
    """
    if seconds is None:
        codes = (killed(work, place, PATIENCE) for _ in range(3))
        return next((code for code in codes if code != -signal.SIGKILL), -signal.SIGKILL)
    child, end = os.fork(), time.monotonic() + seconds
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work(place)
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(0, end - time.monotonic())))
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trial(name: str, root: Path, seed: int, known={}) -> list[tuple[str, str]]:  # noqa: B006
    """AT_ONCE kills of one work; a verdict each."""
    if root not in known:
        known[root] = works(root), {}
    all_works, expected = known[root]
    work, rng = all_works[name], random.Random(f"{name} {seed}")
    place = root / "killed"

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        work.before(place)

    if name not in expected:
        fresh()
        start = time.monotonic()
        assert killed(work.work, place, None) == 0, name
        expected[name] = tree(place), time.monotonic() - start
    whole, seconds = expected[name]
    fresh()
    verdicts, there = [], frames(place)
    for _ in range(AT_ONCE):
        code = killed(work.work, place, rng.uniform(0, 1.1 * seconds))
        if code not in (0, -signal.SIGKILL):
            verdicts.append(("cannot be resumed", f"exit {code}"))
            continue
        try:
            work.opens(place)
        except Exception as error:
            verdicts.append(("cannot be opened", f"{type(error).__name__}: {error}"))
            continue
        now = frames(place)
        meant = {"frames/yelp"} if name == "remove" else {}
        lost = [n for n in there if now.get(n) != there[n] and n not in meant]
        verdicts.append(("lost", ", ".join(lost)) if lost else ("whole", ""))
        there = now
    code = killed(work.work, place, None)
    if code:
        verdicts[-1] = ("cannot be resumed", f"exit {code}")
    elif tree(place) != whole:
        odd = {n for n in tree(place).keys() | whole.keys() if tree(place).get(n) != whole.get(n)}
        verdicts[-1] = ("other bytes", ", ".join(sorted(odd)))
    elif list(place.rglob("*.tmp")):
        verdicts[-1] = ("leftover", "")
    return verdicts


def frames(place: Path) -> dict[str, str]:
    """The whole frames in a folder: name -> digest of their files."""
    found = {}
    for path in sorted(place.rglob("frame.json")):
        if not path.parent.name.endswith(".tmp"):
            files = sorted(p for p in path.parent.iterdir())
            total = hashlib.sha256(b"".join(p.read_bytes() for p in files))
            found[str(path.parent.relative_to(place))] = total.hexdigest()
    return found


# ---------------------------------------------------------------------- notebooks


def start(notebook: str, output: Path, root: Path) -> subprocess.Popen:
    """papermill, as a user starts it, on the specimen's model and rows."""
    here = Path(__file__).resolve().parents[2]
    given = {"n_train": 4, "n_router": 16, "n_eval": 4, "epochs": 1, "max_length": 32, "lora_r": 4}
    given |= {"model": root / "model", "data_dir": root / "data", "output_dir": output}
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-level", "ERROR"]
    output.mkdir(parents=True, exist_ok=True)
    command += [str(here / "notebooks" / f"{notebook}.ipynb"), str(output / "out.ipynb")]
    for key, value in (given | NOTEBOOKS[notebook]).items():
        command += ["-p", key, str(value)]
    environment = os.environ | {"PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    with (output / "said.txt").open("wb") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said)


def measured(output: Path) -> dict:
    """The runs' numbers but times (and bytes of files that hold them), and the weights of every
    frame."""
    found: dict = {}
    for path in sorted(output.glob("*/metrics.csv")):
        facts = runs.read_facts(path.parent)
        table = runs.read_metrics(path, facts)
        table = table[~table["unit"].isin(["s", "ms"]) & table["metric"].ne("total_bytes")]
        table = table.sort_values(list(table.columns))
        found[path.parent.name] = facts["status"], table.to_csv(index=False)
    for path in sorted(output.glob("*/stack/frames/*/*.safetensors")):
        name = str(path.relative_to(output))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def notebook_trial(notebook: str, root: Path, kills: int, seed: int) -> list[tuple[str, str]]:
    """One run killed so often after its first frame, then left to end; a verdict each."""
    rng, place = random.Random(f"{notebook} {seed}"), root / "notebooks" / notebook
    whole = place / "whole"
    shutil.rmtree(place / "killed", ignore_errors=True)
    if not (whole / "seconds").exists():
        begun = time.monotonic()
        if start(notebook, whole, root).wait():
            raise AssertionError((whole / "said.txt").read_text()[-2000:])
        (whole / "seconds").write_text(str(time.monotonic() - begun))
    seconds = float((whole / "seconds").read_text())
    output, there, verdicts = place / "killed", {}, []
    for _ in range(kills):
        process, begun = start(notebook, output, root), time.monotonic()
        while process.poll() is None and not list(output.glob("*/stack/frames/[a-z]*/frame.json")):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, max(1.0, 0.8 * seconds - (time.monotonic() - begun))))
        family = [psutil.Process(process.pid)] if process.poll() is None else []
        family += family[0].children(recursive=True) if family else []
        for one in family:
            one.kill()
        if process.wait() == 0:
            verdicts.append(("whole", "ended before"))
            shutil.rmtree(output)
            there = {}
            continue
        if not family:
            verdicts.append(("cannot be resumed", (output / "said.txt").read_text()[-500:]))
            continue
        now = frames(output)
        lost = [name for name in there if now.get(name) != there[name]]
        verdicts.append(("lost", ", ".join(lost)) if lost else ("whole", ""))
        there = now
    if start(notebook, output, root).wait():
        verdicts[-1] = ("cannot be resumed", (output / "said.txt").read_text()[-500:])
    elif measured(output) != measured(whole):
        ours, theirs = measured(output), measured(whole)
        odd = [n for n in sorted(ours.keys() | theirs.keys()) if ours.get(n) != theirs.get(n)]
        verdicts[-1] = ("other numbers", ", ".join(odd))
    elif [p for p in output.rglob("*.tmp")]:
        verdicts[-1] = ("leftover", "")
    return verdicts
