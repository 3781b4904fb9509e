"""The README, the results pages and the gallery: their blocks are filled from the committed runs.

A block is ``<!-- KIND: NAME -->`` … ``<!-- end -->``, on lines of its own or inside one; the kinds
are ``table``, ``figure`` (what it shows, picture, caption), ``answer`` (the first sentence of what
it shows), ``notebooks`` (their table, NAME is the page it stands on) and ``output`` (what `show`
prints of a committed run).
"""

from __future__ import annotations

import ast
import base64
import io
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd

from skillstack_helpers.errors import checked_name
from skillstack_helpers.files import read_json, write_atomic
from skillstack_helpers.lab.display import Drawn, markdown_table, png, readable, seeds_said
from skillstack_helpers.lab.runs import load_runs, placed, read_facts, read_run, repo_root
from skillstack_helpers.progress import progress

from . import (
    baselines,
    bitstack,
    claims,
    compression,
    generalization,
    generation,
    reuse,
    routers,
    streams,
)
from .base import Figure, Table, first_run, runs_of

TOPICS = {  # page -> module; in the order of the notebooks
    "streams": streams,
    "routers": routers,
    "baselines": baselines,
    "bitstack": bitstack,
    "compression": compression,
    "generation": generation,
    "generalization": generalization,
    "reuse": reuse,
}
TABLES: dict[str, Table] = {k: v for topic in TOPICS.values() for k, v in topic.TABLES.items()}
FIGURES: dict[str, Figure] = {k: v for topic in TOPICS.values() for k, v in topic.FIGURES.items()}
BADGES = {
    "Colab": "https://colab.research.google.com/assets/colab-badge.svg",
    "Kaggle": "https://kaggle.com/static/images/open-in-kaggle.svg",
}
PLACES = {"data_dir", "output_dir", "source", "device"}  # not in a command that is shown

# ---------------------------------------------------------------------- tables


def table_block(name: str, runs: pd.DataFrame) -> str:
    """A table as Markdown, published rows apart, and below it what it was measured on."""
    entry = TABLES[checked_name(name, TABLES, "table")]
    found = runs_of(entry, runs)
    made = entry.make(found)
    parts = [markdown_table(part) for part in apart(made)]
    notes = [made.columns.name] if made.columns.name else []
    seeds = [] if "seeds" in made else [seeds_said(found["seed"].unique())]  # or in each line
    return (
        "\n\n*Published:*\n\n".join(parts)
        + f"\n\n*{'; '.join([*notes, *seeds, *origin(found)])}*\n\n"
        + ids(found["run_id"].unique())
    )


def apart(table: pd.DataFrame) -> list[pd.DataFrame]:
    """What was measured, and what was published, each without the columns that are empty in it;
    `who` is left out where it says the same in every line."""
    if "who" not in table.index.names:
        return [table]
    theirs = table.index.get_level_values("who").str.startswith("published")
    published = table[theirs].rename_axis(columns=None)  # the corner is about ours
    parts = [part for part in (table[~theirs], published) if len(part)]
    out = []
    for part in parts:
        part = part.loc[:, ~part.isin(["", None]).all() & part.notna().any()]
        same = part.index.get_level_values("who").nunique() == 1 and part.index.nlevels > 1
        out.append(part.droplevel("who") if same else part)
    return out


def origin(found: pd.DataFrame) -> list[str]:
    """Model, budget and device of runs, and the command that makes one of them."""
    facts = [read_facts(placed("results/runs") / run) for run in found["run_id"].unique()]
    rows = {f"{f['config']['n_train']} and {f['config']['n_eval']}" for f in facts}
    devices = {f"{f['device'].partition(':')[0]}, {f['backbone']['dtype']}" for f in facts}
    return [
        ", ".join(sorted(found["model"].unique())),
        f"{' or '.join(sorted(rows))} training and evaluation rows per class",
        " or ".join(sorted(devices)),
        f"`{command(facts[0])}`",
    ]


def claims_block(runs: pd.DataFrame) -> str:
    """The table of results/REPRODUCED.md, and its runs."""
    made, used = claims.table(runs)
    return f"{markdown_table(made)}\n\n{ids(used)}"


def ids(names: Sequence[str]) -> str:
    """The runs of a table, folded."""
    words = f"{len(names)} run{'s' * (len(names) > 1)} in results/runs"
    listed = "<br>".join(f"<code>{name}</code>" for name in names)
    return f"<details><summary>{words}</summary>{listed}</details>"


def command(facts: dict) -> str:
    """The papermill command of a run: what differs from the defaults of its notebook."""
    notebook, config = facts["config"]["notebook"], facts["config"]
    source = nbformat.read(repo_root() / "notebooks" / f"{notebook}.ipynb", 4)
    (cell,) = (c for c in source.cells if "parameters" in c.metadata.get("tags", []))
    lines = ast.parse(cell.source).body
    defaults = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    given = ""
    named = PLACES | ({"preset"} if config.get("tasks") else set())  # a name made of the tasks
    for key in [key for key in defaults if key in config and key not in named]:
        if config[key] not in (defaults[key], None):
            given += f" -p {key} {config[key]}"
    return f"papermill {notebook}.ipynb out.ipynb{given}"


# ---------------------------------------------------------------------- figures


def draw(name: str, runs: pd.DataFrame) -> tuple[Drawn, str]:
    """A figure of the gallery, or ``reproduced``, and its caption; of runs that differ in their
    seed, it is the run with seed 42 that is asked."""
    if name == "reproduced":
        drawn = claims.figure(runs)
        return drawn, drawn.look
    entry = FIGURES[checked_name(name, FIGURES, "figure")]
    found = runs_of(entry, runs)
    found = found[found["method"].eq(entry.method)] if entry.method else found
    run = first_run(found)
    drawn = entry.draw(run)
    return drawn, run.caption(drawn)


def figure_block(name: str, drawn: Drawn, caption: str, up: str) -> str:
    """The picture, its caption and what it shows; up: the way to the repository's root."""
    return f"{drawn.answer}\n\n![{drawn.alt}]({up}figures/{name}.png)\n\n*{caption}*"


# ---------------------------------------------------------------------- pages


def sentence(answer: str) -> str:
    """The first sentence.

    >>> sentence("It loses 17.6 points, most on sst2. Nothing else does.")
    'It loses 17.6 points, most on sst2.'
    """
    return re.split(r"(?<=\.)\s+(?=[A-Z])", answer)[0]


def fill(text: str, blocks: Mapping[str, Callable[[str], str]]) -> str:
    """The text with every block filled anew."""

    def made(found: re.Match) -> str:
        kind, name, line = found.groups()
        return f"<!-- {kind}: {name} -->{line}{blocks[kind](name)}{line}<!-- end -->"

    kinds = "|".join(blocks)
    return re.sub(rf"<!-- ({kinds}): (\w+) -->(\n?).*?<!-- end -->", made, text, flags=re.S)


def pages() -> list[Path]:
    """The README, the results pages and their index, and what else shows runs."""
    root = repo_root()
    pages = [root / "README.md", *sorted((root / "results").glob("*.md"))]
    return [*pages, root / "docs" / "your_own_tasks.md"]


def finished_notebook(path: Path, pictures: Mapping[str, bytes]) -> bytes:
    """A notebook with the suite's address, and with the pictures that its texts name
    (``attachment:NAME.png``) inside it, so that they are seen wherever it is opened."""
    notebook = nbformat.read(path, 4)
    addressed(notebook.cells, path)
    for cell in notebook.cells:
        names = re.findall(r"\(attachment:([\w.]+)\)", cell.source)
        if cell.cell_type == "markdown" and names:
            docs = repo_root() / "docs"  # for what is no figure of the gallery
            found = {n: pictures.get(f"figures/{n}") or (docs / n).read_bytes() for n in names}
            coded = {name: base64.b64encode(content).decode() for name, content in found.items()}
            cell["attachments"] = {name: {"image/png": text} for name, text in coded.items()}
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def gallery_page(drawn: dict[str, tuple[Drawn, str]]) -> str:
    """docs/gallery.md: every figure with question, answer and the page with its numbers."""
    lines = [
        "# Gallery",
        "",
        "Every figure of the suite, drawn by `make gallery` from the runs in ",
    ]
    lines[-1] += "`results/runs` in less than three minutes and without training. A page a topic "
    lines[-1] += "has the numbers: [results](../results/README.md)."
    for page, topic in TOPICS.items():
        for name in topic.FIGURES:
            entry = FIGURES[name]
            where = (
                f"[numbers](../results/{page}.md), [notebook](../notebooks/{entry.notebook}.ipynb)"
            )
            lines += [
                "",
                f"## {entry.question}",
                "",
                figure_block(name, *drawn[name], "../"),
                "",
                where,
            ]
    return "\n".join(lines) + "\n"


def notebooks_block(up: str, drawn: Mapping[str, tuple[Drawn, str]], runs: pd.DataFrame) -> str:
    """A line for each notebook: its question and the answer of its first figure, measured minutes,
    links."""
    lines = ["| notebook | question | answer | minutes | |", "| --- | --- | --- | --- | --- |"]
    for path in sorted((repo_root() / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        first = nbformat.read(path, 4).cells[0].source
        title = re.match(r"# \d+ · (.*)", first).group(1)
        cells = [f"[{path.stem[:2]}]({up}notebooks/{path.name}) {title}"]
        links = [f"[{where}]({address})" for where, address in hosted(path).items()]
        for page, topic in TOPICS.items():
            names = [n for n, figure in topic.FIGURES.items() if figure.notebook == path.stem]
            if names:
                links.insert(0, f"[numbers]({up}results/{page}.md)")
                question = FIGURES[names[0]].question
                answer = sentence(drawn[names[0]][0].answer)
                cells += [question, answer, minutes(names[0], runs)]
        if len(cells) == 1:  # no committed run
            asked = re.search(r"\*\*Question\.\*\* .*?([^.?]*\?)", first).group(1).strip()
            cells += [asked, "", ""]
        lines.append("| " + " | ".join([*cells, " · ".join(links)]) + " |")
    return "\n".join(lines)


def minutes(name: str, runs: pd.DataFrame) -> str:
    """How long the notebook of a figure took: all its runs of one seed, the slowest seed."""
    found = runs_of(FIGURES[name], runs)[["run_id", "seed"]].drop_duplicates()
    spent = [read_facts(placed("results/runs") / run)["seconds"] for run in found["run_id"]]
    return f"{found.assign(spent=spent).groupby('seed')['spent'].sum().max() / 60:.0f}"


def repository() -> str:
    """The suite's address, from pyproject.toml; empty while it has none."""
    project = tomllib.loads((repo_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").removesuffix("/").removesuffix(".git")


def hosted(path: Path) -> dict[str, str]:
    """Where a notebook can be opened on Colab and Kaggle, which read from GitHub alone; nothing
    while the suite has no address there."""
    address = repository()
    where = f"{address.removeprefix('https://github.com/')}/blob/main/notebooks/{path.name}"
    links = {
        "Colab": f"https://colab.research.google.com/github/{where}",
        "Kaggle": f"https://kaggle.com/kernels/welcome?src=https://github.com/{where}",
    }
    return links if address.startswith("https://github.com/") else {}


def addressed(cells: list, path: Path) -> None:
    """Write the suite's address into a notebook's cells: into the setup cell, and as links below
    the title."""
    title, _, text = cells[0].source.partition("\n\n")
    text = re.sub(r"\A\[!\[Open in .*\n\n", "", text)  # of an earlier address
    links = [f"[![Open in {site}]({BADGES[site]})]({link})" for site, link in hosted(path).items()]
    cells[0].source = "\n\n".join([title, *([" ".join(links)] if links else []), text])
    line = rf'\1"{repository()}"'
    cells[1].source = re.sub(r'(?m)^(_REPOSITORY = )".*?"', line, cells[1].source, count=1)


def cited(text: str) -> str:
    """CITATION.cff with the suite's address."""
    text = re.sub(r"(?m)^repository-code: .*\n", "", text)
    return text + (f"repository-code: {repository()}\n" if repository() else "")


def make() -> dict[str, bytes]:
    """Every file that is made from the committed runs: path below the repository -> content."""
    runs = load_runs()
    drawn, made = {}, {}
    for name in progress([*FIGURES, "reproduced"], "draw", "figure"):
        drawn[name] = draw(name, runs)
        made[f"figures/{name}.png"] = png(drawn[name][0].figure)
    for path in pages():
        up = "../" * (len(path.relative_to(repo_root()).parts) - 1)
        blocks = {
            "table": lambda name: table_block(name, runs),
            "figure": lambda name, up=up: figure_block(name, *drawn[name], up),
            "answer": lambda name: sentence(drawn[name][0].answer),
            "claims": lambda _: claims_block(runs),
            "notebooks": lambda _, up=up: notebooks_block(up, drawn, runs),
            "output": lambda name: "```\n" + "\n".join(shown(committed(name), "…")) + "\n```",
        }
        text = fill(path.read_text(encoding="utf-8"), blocks)
        made[str(path.relative_to(repo_root()))] = text.encode()
    for path in sorted((repo_root() / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.name}"] = finished_notebook(path, made)
    made["docs/gallery.md"] = gallery_page(drawn).encode()
    citation = (repo_root() / "CITATION.cff").read_text(encoding="utf-8")
    made["CITATION.cff"] = cited(citation).encode()
    return made


def gallery() -> str:
    """Write every figure and page; says how many and how large."""
    made = make()
    (repo_root() / "figures").mkdir(exist_ok=True)
    for stale in (repo_root() / "figures").glob("*.png"):
        if f"figures/{stale.name}" not in made:
            stale.unlink()
    for name, content in made.items():
        write_atomic(repo_root() / name, content)
    pictures = [len(content) for name, content in made.items() if name.endswith(".png")]
    size = f"{sum(pictures) / 1e6:.1f} MB"
    return f"{len(pictures)} figures, {size}, and {len(made) - len(pictures)} pages and notebooks"


def paper(page: str, runs: pd.DataFrame, folder: Path) -> Iterator[tuple[str, Drawn, str, bytes]]:
    """The figures and tables of a topic into a folder: PNG and PDF, Markdown and LaTeX. Yields of
    each figure its question, itself, its caption and the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in TOPICS[page].TABLES.items():
        made = entry.make(runs_of(entry, runs))
        write_atomic(folder / f"{name}.md", markdown_table(made).encode())
        write_atomic(folder / f"{name}.tex", readable(made).to_latex(escape=True).encode())
    for name, entry in TOPICS[page].FIGURES.items():
        drawn, caption = draw(name, runs)
        yield entry.question, drawn, caption, printed(name, drawn, folder)


def printed(name: str, drawn: Drawn, folder: Path) -> bytes:
    """A figure into a folder, as PDF and as PNG; the PNG."""
    figure = drawn.figure if hasattr(drawn.figure, "savefig") else drawn.figure.figure
    content, pdf = png(figure), io.BytesIO()
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Producer": None})
    write_atomic(folder / f"{name}.pdf", pdf.getvalue())
    write_atomic(folder / f"{name}.png", content)
    return content


# ---------------------------------------------------------------------- one folder


def show(folder: Path) -> str:
    """What the finished runs below a folder found, where their pictures are, and what is next."""
    found = [path.parent for path in sorted(folder.glob("**/run.json"))]
    found = [path for path in found if read_facts(path)["status"] == "finished"]
    lines = [line for path in found for line in [*shown(path, str(path)), ""]]
    return "\n".join(lines) if lines else f"no finished run below {folder}"


def shown(folder: Path, place: str) -> list[str]:
    """What one run found, in lines for a person."""
    run = read_run(folder)
    if run.method != "stack":
        return [
            run.id,
            *(read_json(folder / "answers.json") if (folder / "answers.json").exists() else []),
        ]
    pictures = [f"{place}/{name}.png" for name in ("tasks", "matrix", "confusion")]
    return [
        *streams.told(run),
        "",
        *(f"picture   {picture}" for picture in pictures),
        "next      make inspect: look into this stack in a browser, and ask it your own texts",
    ]


def committed(preset: str) -> Path:
    """The run of notebook 01 on a preset with minilm that is in the repository."""
    (path,) = placed("results/runs").glob(f"01_train_stack-{preset}-minilm-stack-s42-*")
    return path
