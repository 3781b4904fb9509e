"""A disk that refuses: full, read-only or forbidden, at every single step of whatever writes."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import kills
import specimen

from skillstack_helpers.errors import SkillStackError
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import open_run, read_run

ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "forbidden": errno.EACCES}
WORDS = {"full": "the disk is full", "read-only": "Read-only", "forbidden": "Permission denied"}
STEPS = ("mkdir", "replace", "rename", "fsync")  # of os, beside opening a file for writing


@contextlib.contextmanager
def refusing(place: Path, at: int, number: int) -> Iterator[list[int]]:
    """From the at-th step on that would write below a folder, the system says no."""
    count = [0]
    kept = {name: getattr(os, name) for name in STEPS} | {"open": builtins.open}

    def ask(path) -> None:
        if isinstance(path, int) or str(path).startswith(str(place)):
            count[0] += 1
            if count[0] >= at:
                raise OSError(number, os.strerror(number))

    def step(name):
        def asked(path, *arguments, **more):
            ask(path)
            return kept[name](path, *arguments, **more)

        return asked

    def opened(file, mode="r", *arguments, **more):
        if set(mode) & set("wxa+"):
            ask(file)
        return kept["open"](file, mode, *arguments, **more)

    import io

    for name in STEPS:
        setattr(os, name, step(name))
    builtins.open = io.open = opened
    try:
        yield count
    finally:
        for name in STEPS:
            setattr(os, name, kept[name])
        builtins.open = io.open = kept["open"]


def works(root: Path) -> dict[str, kills.Work]:
    """What `kills` kills, and a run's records."""
    names = ("save", "save, frames dropped", "save_router", "BitStack.save", "Mixture.save")
    found = {name: work for name, work in kills.works(root).items() if name in names}

    def measured(place: Path) -> None:
        config = RunConfig(notebook="faults", output_dir=str(place))
        run = open_run(config, specimen.stream(root), specimen.backbone(root))
        run.record("accuracy", 0.5, eval_task="imdb", n=2)
        run.save("matrix.csv", run.matrix(["imdb"]))
        run.finish()

    def reads(place: Path) -> None:
        for folder in place.iterdir():
            if (folder / "run.json").exists() and (folder / "metrics.csv").exists():
                read_run(folder)

    return found | {"a run": kills.Work(Path.mkdir, measured, reads)}


def run(name: str, root: Path, kind: str, stride: int = 1, known={}) -> list[tuple[str, str]]:  # noqa: B006
    """One work, refused at its first step, its second, and so on until it is through."""
    if root not in known:
        known[root] = works(root)
    work, place, verdicts = known[root][name], root / "refused", []
    for at in range(1, 500, stride):
        shutil.rmtree(place, ignore_errors=True)
        work.before(place)
        with refusing(place, at, ERRORS[kind]) as count:
            try:
                work.work(place)
            except SkillStackError as error:
                said = str(error)
            except BaseException as error:
                verdicts.append(("raw", f"step {at}: {type(error).__name__}: {error}"))
                continue
            else:
                if count[0] < at:
                    break
                verdicts.append(("not noticed", f"step {at}"))
                continue
        one = "\n" not in said and WORDS[kind] in said and str(place) in said
        verdict = ("one line", "") if one else ("another line", f"step {at}: {said}")
        try:
            work.opens(place)
            if list(place.rglob("*.tmp")) and kind == "full":
                verdict = ("half-written", f"step {at}")
            work.work(place)  # space again
            work.opens(place)
        except Exception as error:
            verdict = ("lost", f"step {at}: {type(error).__name__}: {error}")
        verdicts.append(verdict)
    return verdicts
