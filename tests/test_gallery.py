"""Figures and pages: as committed, the same every time, and readable."""

import itertools
import re
import sys

import matplotlib
import pytest
from colorspacious import cspace_convert, deltaE
from conftest import ROOT

matplotlib.use("Agg")
sys.path.insert(0, str(ROOT / "results"))
from report import base, pages

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import display, names, plotting
from skillstack_helpers.lab.runs import load_runs, placed, read_run

LEAST = 10.0  # CAM02-UCS distance of two series' colours, 1 is just noticeable
EYES = {"all": None, "deuteranopia": "deuteranomaly", "protanopia": "protanomaly"}
PINNED = re.search(r"(?m)^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text())[1]


def seen(color, eyes):
    rgb = matplotlib.colors.to_rgb(color)
    space = {"name": "sRGB1+CVD", "cvd_type": EYES[eyes], "severity": 100}
    return rgb if EYES[eyes] is None else cspace_convert(rgb, space, "sRGB1").clip(0, 1)


def closest(colors):
    """The smallest distance of two colours (label -> colour), for any eyes, and where it is."""
    pairs = itertools.product(EYES, itertools.combinations(colors, 2))
    found = [
        (float(deltaE(seen(colors[a], e), seen(colors[b], e), input_space="sRGB1")), e, a, b)
        for e, (a, b) in pairs
    ]
    return min(found, default=(float("inf"),))


def series(ax):
    """Label -> colour of everything in an axes that has a label, but for the lines without marks,
    which are references (chance, an oracle, a bound); published runs differ in their marks."""
    colors = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        one = handle.patches[0] if hasattr(handle, "patches") else handle
        line = hasattr(one, "get_marker") and one.get_marker() in ("None", None, "", " ")
        if line or hasattr(one, "get_segments"):
            continue
        label = "published" if label.startswith("published") else label
        color = one.get_facecolor() if hasattr(one, "get_facecolor") else one.get_color()
        colors[label] = color[0] if getattr(color, "ndim", 1) == 2 else color
    return colors


@pytest.fixture(scope="module")
def made():
    """Every file of the gallery, and of every figure what a reader needs: looked at before it is
    written."""
    facts = {}

    def look(figure):
        figure, place = getattr(figure, "figure", figure), len(facts)

        def read(_):  # while it is drawn as it is saved
            ticks = {label for ax in figure.axes for label in unseen(ax)}
            texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip()]
            texts = [t for t in texts if t.get_visible() and t not in ticks]
            facts[place] = {
                "size": figure.get_size_inches(),
                "fonts": {t.get_fontsize() for t in texts},
                "titles": [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center")],
                "series": [series(ax) for ax in figure.axes],
                "cut": [t.get_text() for t in texts if outside(t, figure)],
            }

        figure.canvas.mpl_connect("draw_event", read)
        return display.png(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "png", look)
        files = pages.make()
    return files, dict(zip([*pages.FIGURES, "reproduced"], facts.values(), strict=True))


def unseen(ax):
    """Labels of ticks beyond the ends of their axis, which are never drawn."""
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                yield from (tick.label1, tick.label2)


def outside(text, figure) -> bool:
    box, page = text.get_window_extent(), figure.bbox
    return box.x0 < -1 or box.y0 < -1 or box.x1 > page.width + 1 or box.y1 > page.height + 1


# ------------------------------------------------------------------ as committed


def test_every_page_figure_and_notebook_is_what_the_runs_give(made):
    """Stale? `make gallery`."""
    files, _ = made
    exact = matplotlib.__version__ == PINNED  # other versions draw letters a little differently
    compared = [n for n in files if exact or n.endswith(".md")]
    stale = [n for n in compared if (ROOT / n).read_bytes() != files[n]]
    assert not stale
    there = {f"figures/{path.name}" for path in (ROOT / "figures").iterdir()}
    assert there == {name for name in files if name.startswith("figures/")}
    assert sum(len(files[name]) for name in there) <= 2e6


def test_a_figure_drawn_twice_has_the_same_bytes():
    runs, name = load_runs(), "hard8_matrix"
    one, other = (display.png(pages.draw(name, runs)[0].figure) for _ in range(2))
    assert one == other


def test_blocks_are_filled_and_nothing_else_is_touched():
    text = "a <!-- answer: x --> old <!-- end --> b\n<!-- table: y -->\nold\n<!-- end -->\nc"
    blocks = {"answer": lambda name: f"[{name}]", "table": lambda name: f"|{name}|"}
    filled = pages.fill(text, blocks)
    assert filled == (
        "a <!-- answer: x -->[x]<!-- end --> b\n<!-- table: y -->\n|y|\n<!-- end -->\nc"
    )
    assert pages.fill(filled, blocks) == filled


def test_every_block_of_every_page_has_a_name_that_is_known(made):
    files, _ = made
    for path in pages.pages():
        text = files[str(path.relative_to(ROOT))].decode()
        for kind, name in re.findall(r"<!-- (\w+): (\w+) -->", text):
            known = {
                "table": pages.TABLES,
                "figure": {*pages.FIGURES, "reproduced"},
                "answer": pages.FIGURES,
            }
            assert name in known.get(kind, [name])
        assert text.count("<!-- end -->") == len(re.findall(r"<!-- \w+: \w+ -->", text))
    with pytest.raises(SkillStackError, match="unknown table 'hard9'"):
        pages.table_block("hard9", load_runs())


def test_no_table_has_more_than_eight_columns_and_each_says_what_it_is_of(made):
    files, _ = made
    for path in pages.pages():
        text = files[str(path.relative_to(ROOT))].decode()
        for line in re.findall(r"(?m)^(\|.*\|)\n\| ---", text):
            assert line.count("|") - 1 <= 8, line
        for block in re.findall(r"<!-- table: \w+ -->\n(.*?)<!-- end -->", text, flags=re.S):
            seeds = "" if "| seeds |" in block else r"seeds? \d.*"  # or in a column
            assert re.search(seeds + r"`papermill \d\d_\w+\.ipynb", block), block[-500:]
            assert "<details><summary>" in block


def test_links_of_the_pages_lead_somewhere(made):
    files, _ = made
    for name in [name for name in files if name.endswith(".md")]:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", files[name].decode()):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_the_readme_is_short_and_types_no_measured_number():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"<!-- \w+: \w+ -->.*?<!-- end -->|```.*?```", "", text, flags=re.S)
    assert not re.search(r"\d\.\d+ (%|points)|\d+ \(\d+\)", prose)


def test_the_command_of_a_run_is_what_differs_from_its_notebook():
    (folder,) = placed("results/runs").glob("02_hard12-hard12-minilm-stack-s42-*")
    facts = read_run(folder).facts
    assert pages.command(facts) == "papermill 02_hard12.ipynb out.ipynb -p model minilm"
    facts["config"] |= {"seed": 7, "n_eval": 8}
    assert pages.command(facts).endswith("-p model minilm -p seed 7 -p n_eval 8")


# ------------------------------------------------------------------ readable


@pytest.mark.parametrize("name", pages.FIGURES)
def test_a_figure_can_be_read(name, made):
    facts = made[1][name]
    assert facts["size"][0] <= plotting.WIDEST + 1e-6
    assert min(facts["fonts"]) >= plotting.SMALL
    assert any(facts["titles"]), "no title"
    assert not facts["cut"], f"cut off: {facts['cut']}"
    for colors in facts["series"]:
        distance, *where = closest(colors)
        assert distance >= LEAST, where


def test_a_name_has_one_colour_and_marker_and_looks_like_no_other_of_its_kind():
    styles = list(names.STYLES.values())
    assert len(set(styles)) == len(styles)
    for name in names.STYLES:
        assert names.style(name, 3) == names.style(name)
    routers = [n for n in names.STYLES if n in ("centroid", "profile", "arrow") or "hybrid" in n]
    colors = {name: names.STYLES[name][0] for name in [*routers, "scaffold_blind"]}
    assert closest(colors)[0] >= LEAST


def test_the_distance_would_see_two_colours_that_look_alike_to_some():
    assert closest({"a": "#999999", "b": names.PURPLE})[0] < LEAST
    assert closest({"a": names.BLUE, "b": names.ORANGE})[0] > 3 * LEAST


def test_every_drawn_name_is_a_display_name(made):
    """One thing, one name: what metrics files call it is nowhere in a legend."""
    raw = {key for key, shown in names.NAMES.items() if shown in names.STYLES and key != shown}
    for name, facts in made[1].items():
        assert not raw & {label for colors in facts["series"] for label in colors}, name


def test_published_rows_stand_apart_and_empty_columns_are_gone():
    index = [("measured here", "a"), ("published", "b")]
    index = base.pd.MultiIndex.from_tuples(index, names=["who", "method"])
    table = base.pd.DataFrame({"x": ["1", "2"], "y": ["3", ""], "z": ["", ""]}, index)
    ours, theirs = pages.apart(table)
    assert list(ours) == ["x", "y"] and list(theirs) == ["x"]
    assert ours.index.tolist() == ["a"] and theirs.index.name == "method"
