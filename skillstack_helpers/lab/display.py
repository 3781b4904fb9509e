"""What a notebook shows: figures with captions, tables, sentences."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from .names import name

DPI = 120


class Drawn(NamedTuple):
    """A figure and what is to be said about it."""

    figure: object  # a matplotlib `Figure`, or one of its `Axes`
    answer: str  # what it shows, a sentence or two in Markdown, with the numbers
    alt: str  # what is in the picture, for those who do not see it
    look: str  # what to look at
    seeds: Sequence[int] = ()  # that it is over; none: of one run
    models: Sequence[str] = ()  # of several models: each with its precision and seeds


def png(drawn) -> bytes:
    """A figure as PNG: the same figure gives the same bytes. It is closed."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure = drawn if hasattr(drawn, "savefig") else drawn.figure
    raw, out = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    flat = Image.open(raw).convert("RGB")  # 256 colours are a third of the bytes and look the same
    flat.quantize(256, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return out.getvalue()


def show_picture(content: bytes, alt: str, caption: str) -> None:
    """A PNG with its text for those who do not see it, and the caption below."""
    from IPython.display import Markdown, display

    code = base64.b64encode(content).decode()
    # As HTML too: exporters do not read the alternative text of a PNG.
    tag = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">'
    data = {"image/png": code, "text/html": tag, "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt}}, raw=True)
    display(Markdown(f"*{caption}*"))


def show_figure(figure, alt: str, caption: str) -> None:
    """A figure, or an axes' figure, in the same way."""
    show_picture(png(figure), alt, caption)


def show_sentences(sentences: Iterable[str]) -> None:
    """Sentences in Markdown as a list, the first one bold."""
    from IPython.display import Markdown, display

    first, *others = sentences
    display(Markdown("\n".join([f"**{first}**", "", *(f"- {line}" for line in others)])))


def show_table(table: pd.DataFrame, digits: int = 1) -> None:
    """A table whose cells do not wrap; the corner (``columns.name``) says what is in brackets."""
    from IPython.display import Markdown, display

    corner, table = table.columns.name, readable(table)
    table = table.rename_axis(columns=None) if corner else table
    style = table.style.format(precision=digits, na_rep="")
    left = {"selector": "td, th", "props": "white-space: nowrap; text-align: left"}
    display(style.set_table_styles([left]))
    if corner:
        display(Markdown(f"*{corner}*"))


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names of its lines and columns as readers see them."""
    return table.rename(index=lambda key: name(key) if isinstance(key, str) else key).rename(
        columns=lambda key: name(key) if isinstance(key, str) else key
    )


def markdown_table(table: pd.DataFrame) -> str:
    """A table as Markdown, index first, floats with one digit and those of depth with two."""
    table = readable(table).reset_index()
    digits = [2 if "depth" in str(column) else 1 for column in table]
    cells = [list(map(_cell, row, digits)) for row in table.astype(object).to_numpy()]
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value, digits: int) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{digits}f}"
    return str(value)


def listed(names: Iterable[str]) -> str:
    """Names as a reader wants them: ``a``, ``a and b``, ``a, b and c``.

    >>> listed(["ewc", "joint", "frames"])
    'EWC, joint training and saved frames'
    """
    *most, last = [name(each) for each in names] or ["none"]
    return " and ".join(filter(None, (", ".join(most), last)))


def seeds_said(seeds: Iterable[int]) -> str:
    """Seeds below a table or figure.

    >>> seeds_said([7, 42]), seeds_said([42])
    ('seeds 7, 42', 'seed 42')
    """
    said = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' * (len(said) > 1)} {', '.join(said)}"
