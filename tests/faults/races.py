"""Several processes in one folder: appenders, readers, and a router that is replaced while read."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kills
import specimen

from skillstack_helpers import SkillStack
from skillstack_helpers.frames import Frame
from skillstack_helpers.lab.experiment import fit_router
from skillstack_helpers.routers import load_router, save_router

APPENDERS, READERS = 4, 8
PATIENCE = 600  # seconds that a race may take


def named(frame: Frame, name: str, parent: str) -> Frame:
    """The same frame under another name, not saved yet."""
    fresh = dict(folder=None, sha256={}, listed=None, _weights=frame.weights())
    return dataclasses.replace(frame, name=name, parent=parent, **fresh)


def beside(works: dict[str, Callable[[], int]]) -> dict[str, tuple[int, str]]:
    """Each in a process of its own, all at once: name -> (rounds, what went wrong)."""
    children = {}
    for name, work in works.items():
        ends = os.pipe()
        if not (child := os.fork()):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)  # see `kills.killed`
            try:
                said = f"{work()} "
            except BaseException as error:
                said = f"0 {type(error).__name__}: {error}"
            os.write(ends[1], said.encode()[:4000])
            os._exit(0)
        os.close(ends[1])
        children[name] = child, ends[0]
    found = {}
    for name, (child, end) in children.items():
        with os.fdopen(end) as stream:
            rounds, _, wrong = stream.read().partition(" ")
        os.waitpid(child, 0)
        found[name] = int(rounds or 0), wrong if rounds else "died"
    return found


def run(root: Path, rounds: int, again: bool = True) -> list[tuple[str, str]]:
    """So many appended frames by all appenders together, while all others read; a verdict for
    every round of everybody."""
    model, place = specimen.backbone(root), root / "raced"
    shutil.rmtree(place, ignore_errors=True)
    whole = SkillStack.from_pretrained(root / "kept" / "stack", model)
    kills.in_memory(whole).save_pretrained(place)
    first = load_router(root / "kept" / "stack" / "routers" / "hybrid_chain")
    other = fit_router("hybrid_chain", specimen.stream(root)[:2], whole)
    save_router(first, place / "routers" / "one")
    scores = [str(one.decision_function(specimen.TEXTS).tolist()) for one in (first, other)]
    donor, over = whole.frames[0], place / "over"

    def appends(number: int) -> Callable[[], int]:
        def work() -> int:
            stack, rng = SkillStack.from_pretrained(place, model), random.Random(number)
            for k in range(rounds // APPENDERS):
                if rng.random() < 0.3:  # else it knows of what others did only by saving
                    stack = SkillStack.from_pretrained(place, model)
                name = f"frame-{number}-{k}"
                stack.frames.append(named(donor, name, stack.frames[-1].name))
                stack.save_pretrained(place)
            return k + 1

        return work

    def reads(number: int) -> Callable[[], int]:
        def work() -> int:
            done, rng = 0, random.Random(-number)
            while not over.exists():
                stack = SkillStack.from_pretrained(place, model)
                frame = rng.choice(stack.frames)
                frame.verify()
                stack.predict(specimen.TEXTS[:1], frame.name)
                said = load_router(place / "routers" / "one").decision_function(specimen.TEXTS)
                assert str(said.tolist()) in scores, "a router that nobody saved"
                done += 1
            return done

        return work

    def replaces() -> int:
        done = 0
        while not over.exists():
            save_router((first, other)[done % 2], place / "routers" / "one")
            done += 1
        return done

    def watches() -> int:
        end = time.monotonic() + PATIENCE / 2
        wanted = 4 + rounds // APPENDERS * APPENDERS
        while len(list((place / "frames").glob("[a-z]*"))) < wanted and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
        over.touch()
        return 0

    works = {f"appender {i}": appends(i) for i in range(APPENDERS)}
    works |= {f"reader {i}": reads(i) for i in range(READERS)}
    done = beside(works | {"router": replaces, "": watches})
    if again and "died" in {wrong for _, wrong in done.values()}:
        return run(root, rounds, again=False)
    verdicts = []
    for name, (n, wrong) in done.items():
        verdicts += [("whole", "")] * n
        if wrong:
            verdicts.append(("spurious error", f"{name}: {wrong}"))
    stack = SkillStack.from_pretrained(place, model)
    stack.verify()
    names = {frame.name for frame in stack.frames}
    for i in range(APPENDERS):
        for k in range(rounds // APPENDERS):
            if f"frame-{i}-{k}" not in names:
                verdicts.append(("lost", f"frame-{i}-{k}"))
    return verdicts


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), int(sys.argv[2]))[-3:])
