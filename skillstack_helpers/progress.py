"""One progress bar for one long step.

The outermost loop draws the bar; loops inside it only say there what is running and how far it is.
In a notebook the bar is one line of plain text that is kept up to date, so that a saved notebook
shows how the step ended, with or without widgets. ``TQDM_DISABLE=1`` switches all bars off.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator

from tqdm.std import tqdm

DELAY = 1.0  # seconds that a step takes before it has a bar
WIDTH = 96  # characters
_outer: list[tqdm] = []  # the bar on the screen, while there is one


def progress(items: Iterable, what: str, unit: str = "it") -> Iterator:
    """The items, behind a bar called `what` with their number and the time left.

    >>> list(progress([1, 2], "count"))
    [1, 2]
    """
    shell, total = _shell(), len(items) if hasattr(items, "__len__") else None
    cell = getattr(shell, "execution_count", None)
    if _outer and _outer[0].cell != cell:  # left behind by a cell that was interrupted
        _outer.clear()
    if _outer:
        for done, item in enumerate(items):
            _outer[0].set_postfix_str(f"{what} {done}/{total or '?'}", refresh=False)
            _outer[0].update(0)  # draws, but no more often than tqdm does
            yield item
    elif total is not None and total < 2:  # a loop inside it may be long
        yield from items
    else:
        file = _Line() if hasattr(shell, "kernel") else None
        how = {"desc": what, "unit": unit, "delay": DELAY, "ncols": WIDTH, "file": file}
        with tqdm(items, **how) as bar, _shown(bar, cell):
            for item in bar:
                yield item
                bar.set_postfix_str("", refresh=False)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No bars inside: for widgets, which have signs of their own."""
    with tqdm(disable=True) as none, _shown(none, getattr(_shell(), "execution_count", None)):
        yield


def _shell():
    """The IPython shell that this runs in; None elsewhere."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


@contextlib.contextmanager
def _shown(bar: tqdm, cell: int | None) -> Iterator[None]:
    bar.cell = cell
    _outer.insert(0, bar)
    try:
        yield
    finally:
        _outer.remove(bar)


class _Line:
    """A file whose last line is shown as one output of a notebook cell."""

    handle, encoding = None, "utf-8"  # so that the bar is drawn in blocks

    def write(self, text: str) -> None:
        from IPython.display import display

        line = {"text/plain": text.strip("\r\n")}
        if not line["text/plain"].strip():
            pass  # the end of the line, which stays
        elif self.handle is not None:
            self.handle.update(line, raw=True)
        else:
            self.handle = display(line, raw=True, display_id=True)

    def flush(self) -> None:
        pass
