"""The inspector and the notebooks in a real browser, served as users serve them."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import ROOT

from skillstack_helpers.lab import views, widgets
from skillstack_helpers.lab.experiment import (
    find_stacks,
    load_rows,
    newest_stack,
    open_stack,
    stack_routers,
)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no chromium on this machine: install Debian's", allow_module_level=True)

DEMO = os.environ.get("SKILLSTACK_DEMO")
TEXT = (
    "Shares in the airline fell by nine per cent on Tuesday after it warned that rising fuel costs "
    "would cut its annual profit by 40m pounds. Analysts said the company, which has lost market "
    "share to cheaper rivals, would have to raise fares or close routes."
)
BIN = Path(sys.executable).parent
ICONS = "https://cdn.jsdelivr.net/npm/@fortawesome/"  # all that Voilà's own page asks of others


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(command: list[str], port: int, log: Path, env: dict):
    """A server in a process group of its own, which has printed its address; yields that, with the
    token if it has one."""
    address = re.compile(rf"http://127\.0\.0\.1:{port}/(\?token=\S+)?")
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | env, start_new_session=True,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while not (printed := address.search(log.read_text())):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
        yield printed[0]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "chromium is missing: .ci/run installs it"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page that reaches nothing but this machine and notes every error."""
    page = browser.new_page(viewport={"width": 1100, "height": 1200})
    page.errors, page.asked = [], set()
    page.set_default_timeout(180_000)  # a busy machine is no failure

    def local_only(route):
        if re.match(r"(http|ws)://(127\.0\.0\.1|localhost)[:/]", route.request.url):
            return route.continue_()
        page.asked.add(route.request.url)
        return route.fulfill(body="", content_type="text/css")

    page.route("**/*", local_only)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    yield page
    page.close()


@pytest.fixture(scope="module")
def demo(saved, tmp_path_factory):
    """A folder like the one `make demo` leaves, or (`make picture`) that one."""
    if DEMO:
        return Path(DEMO).resolve()
    folder = tmp_path_factory.mktemp("demo")
    for name in ("run", "second"):
        shutil.copytree(saved, folder / name / "stack")
    os.utime(folder / "second" / "stack" / "stack.json", (0, 0))  # the first is the newest
    return folder


@pytest.fixture(scope="module")
def inspect(demo, data_dir, model_dirs, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("voila") / "log"
    command = ["make", "--old-file=.venv/.installed", "inspect", f"BIN={BIN}"]
    command += [f"DEMO={demo}", f"PORT={port}"]
    command += [] if DEMO else [f"INSPECT=--model {model_dirs['bert']}"]
    with serve(command, port, log, {} if DEMO else {"SKILLSTACK_DATA": str(data_dir)}) as address:
        yield address


def shown(page, label: str):
    """The visible one of a control that stands on several tabs."""
    return page.get_by_label(label, exact=True).locator("visible=true")


def wait_for_line(page, words: str) -> None:
    """Wait until the line of the open tab, or of the stack, has these words."""
    page.locator(".said", has_text=words).locator("visible=true").first.wait_for()


def opened(page, address: str, frames: int) -> None:
    page.goto(address, wait_until="commit")
    wait_for_line(page, f"{frames} frames on")


def test_the_page_answers_as_the_api_does(page, inspect, demo, stream, data_dir, tmp_path):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    expect.set_options(timeout=180_000)  # as all waits of a page: a busy machine is no failure
    folder = newest_stack(demo)
    stack = open_stack(folder)
    routers = stack_routers(stack, folder)
    page.set_viewport_size({"width": 1440, "height": 900})
    opened(page, inspect, len(stack))
    assert page.title() == "SkillStack inspector"
    assert page.locator("select").first.input_value()  # the stack that is open
    assert not page.locator(".card").count()  # nothing was asked beforehand

    page.get_by_role("button", name="news", exact=True).click()  # an example, one click
    page.locator(".card").wait_for()
    ready = page.get_by_role("button", name="Answer", exact=True)
    expect(ready).to_be_enabled()  # while it works, it takes no second question
    text = TEXT if DEMO else stream[1].texts("eval")[0]
    area = page.get_by_label("text", exact=True)
    area.fill(text)
    area.press("Control+Enter")
    names = [name for name in routers if name != "hybrid_chain"]
    for name in ("hybrid_chain", *names, "hybrid_chain"):
        shown(page, "router").select_option(name)
        page.get_by_text(f"The scores of {name}").wait_for()
        steps = views.walk_table(routers[name], text)
        (who,) = steps.index[steps["step"].str.startswith("answers")]
        ours = views.ask(stack, text, [who]).loc[who]
        answer = f"{who} says {ours['answer']} ({100 * ours['probability']:.0f} %)"
        page.locator(".card", has_text=answer).wait_for()
        page.locator("table.answers").wait_for()
        rows = [row.split() for row in page.locator("table.walk tbody tr").all_inner_texts()]
        assert [row[0] for row in rows] == list(steps.index)
        assert [" ".join(row[3:]) for row in rows] == list(steps["step"])
        scores = [float(row[1]) for row in rows]
        assert scores == pytest.approx(list(steps["score"]), abs=6e-3)
        assert who not in page.locator("table.answers tbody th").all_inner_texts()

    picture = ROOT / "docs" / "inspector.png" if DEMO else tmp_path / "inspector.png"
    page.locator(".skillstack-inspector").screenshot(path=picture)
    assert picture.stat().st_size > 20_000
    found = Axe().run(page).response["violations"]
    assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")]
    assert all(image.get_attribute("alt") for image in page.locator("img").all())

    rows = [load_rows(frame, None if DEMO else data_dir) for frame in stack.frames]
    routed = views.routed_frames(routers["hybrid_chain"], rows, widgets.ROUTED_ROWS)
    table, last = views.confusion_table(routed), stack.frames[-1].name
    page.get_by_role("tab", name="Router").click()
    button = page.get_by_role("button", name="Route evaluation texts of every task")
    button.click()
    expect(page.get_by_role("button", name="routing …")).to_be_disabled()  # while it works
    wait_for_line(page, f"{100 * routed['right'].mean():.1f} % to their own frame")
    expect(button).to_be_enabled()
    shown(page, "task").select_option(last)
    cells = [f"{name} ({n})" for name, n in table.loc[last].items() if n]
    expect(shown(page, "sent to").locator("option")).to_have_text(cells)
    shown(page, "sent to").select_option(index=len(cells) - 1)
    found = views.examples_in_cell(routed, last, cells[-1].split(" (")[0])["text"]
    page.get_by_role("cell", name=found[0][:40]).first.wait_for()

    page.get_by_role("tab", name="Ask").click()
    shown(page, "threshold").fill("99")
    shown(page, "threshold").press("Enter")
    page.locator(".card", has_text=f"none of {len(stack)} frames was above").wait_for()

    expect(ready).to_be_enabled()
    evil = "<img src=x onerror=\"document.title='taken'\"> class1"
    area.fill(evil)
    area.press("Control+Enter")
    page.locator(".card").wait_for()
    assert page.title() != "taken" and not page.locator("img[src=x]").count()

    page.get_by_label("or a folder").fill(f"{demo}/no/such/<b>stack</b>")
    page.get_by_role("button", name="Open", exact=True).click()
    wait_for_line(page, "/no/such/<b>stack</b>/stack.json is missing")
    assert not page.errors
    assert all(address.startswith(ICONS) for address in page.asked)


def test_the_page_with_the_keyboard_alone_and_on_a_narrow_screen(page, inspect, demo):
    page.set_viewport_size({"width": 800, "height": 900})
    opened(page, inspect, len(open_stack(newest_stack(demo))))
    text, router = page.get_by_label("text", exact=True), shown(page, "router")
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    assert router.bounding_box()["y"] > text.bounding_box()["y"]
    reached = []
    for _ in range(30):  # to the first example, by tab keys alone
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText"))
        if reached[-1] == "a film":
            break
    assert reached[-1] == "a film", reached
    page.keyboard.press("Enter")
    page.locator("table.answers").wait_for()
    assert "last scene" in text.input_value()
    top = page.locator(".card").bounding_box()["y"]
    page.set_viewport_size({"width": 1440, "height": 900})
    page.wait_for_timeout(300)
    assert page.locator(".card").bounding_box()["y"] < top  # beside the text instead of below it
    page.get_by_role("tab", name="Compare").click()
    assert page.get_by_text("Cosine between the updates of").count() == 1  # latest against root
    assert not page.errors


def test_a_second_stack_opens_on_the_same_page(page, inspect, demo, tmp_path):
    second, outside = find_stacks(demo)[-1], shutil.copytree(newest_stack(demo), tmp_path / "third")
    opened(page, inspect, len(open_stack(second)))
    for wrong, words in ((demo / "none", "stack.json is missing"), (outside, "is not below")):
        page.get_by_label("or a folder").fill(str(wrong))
        page.get_by_role("button", name="Open", exact=True).click()
        wait_for_line(page, words)
    page.get_by_label("or a folder").fill(str(second))
    page.get_by_role("button", name="Open", exact=True).click()
    wait_for_line(page, "frames on")
    assert not page.errors


def test_without_the_token_there_is_no_page(page, inspect):
    answer = page.goto(inspect.partition("?")[0])  # a new page: its cookies are its own
    assert answer.status == 403 and "with its token" in page.content()


def test_a_wrong_folder_is_one_line(tmp_path):
    command = [sys.executable, "-m", "skillstack_helpers.lab.widgets", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: no saved stack below")


# ------------------------------------------------------------------ JupyterLab


# One that trains, one that compares, the one with widgets; papermill runs the others.
NOTEBOOKS = ("01_train_stack", "03_routers", "11_inspect_frames")
SMALL = {"n_train": 4, "n_router": 16, "n_eval": 4, "epochs": 1, "max_length": 60, "lora_r": 4}


@pytest.fixture(scope="module")
def lab(demo, model_dirs, data_dir, tmp_path_factory):
    """JupyterLab on copies of the notebooks, with parameters for small models and data."""
    root = tmp_path_factory.mktemp("lab")
    for name in NOTEBOOKS:
        given = SMALL | {"model": model_dirs["bert"], "output_dir": root / "runs"}
        given |= {"preset": "adaptive3"}
        if name == "11_inspect_frames":
            given = {"output_dir": demo}
        given = {key: str(v) if isinstance(v, Path) else v for key, v in given.items()}
        source = ROOT / "notebooks" / f"{name}.ipynb"
        papermill.execute_notebook(source, root / source.name, given, prepare_only=True)
    port = free_port()
    command = [str(BIN / "jupyter-lab"), "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={root}", "--IdentityProvider.token="]
    command += [f"--LabApp.user_settings_dir={root}/.set", f"--LabApp.workspaces_dir={root}/.work"]
    env = {"SKILLSTACK_DATA": str(data_dir), "OMP_NUM_THREADS": "1"}
    with serve(command, port, root / ".log", env) as address:
        yield address, root


def saved_cells(page, path: Path) -> list:
    """The code cells of the notebook as it is in the browser now."""
    page.keyboard.press("Control+s")
    time.sleep(1)
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_opens_and_runs_in_jupyterlab(name, page, lab):
    address, root = lab
    page.goto(f"{address}lab/tree/{name}.ipynb?reset")
    notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    heading = notebook.locator(".jp-RenderedMarkdown h1").first
    heading.wait_for()
    assert heading.inner_text().startswith(name[:2])
    notebook.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    cells, end, clicked = [], time.monotonic() + 600, 0.0
    while not cells or not all(cell.execution_count for cell in cells):
        # A click that comes before the kernel is attached is lost.
        if not any(cell.execution_count for cell in cells) and time.monotonic() > clicked + 45:
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            clicked = time.monotonic()
        cells = saved_cells(page, root / f"{name}.ipynb")
        outputs = [o for cell in cells for o in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        assert time.monotonic() < end, "it did not finish"
    assert any("image/png" in o.get("data", {}) for o in outputs)
    if name == "11_inspect_frames":
        wait_for_line(page, "3 frames on")
        page.get_by_placeholder("type or paste a text").fill("class1 of agnewsword")
        page.get_by_role("button", name="Answer", exact=True).click()
        page.locator("table.answers").wait_for()
    page.goto("about:blank")
