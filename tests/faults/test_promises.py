"""What a folder from anywhere can do to who opens it: nothing."""

import ast
import pickle
import shutil
from pathlib import Path

import pytest
import specimen
from conftest import ROOT, edit_json

from skillstack_helpers import SkillStack, SkillStackError
from skillstack_helpers.lab.runs import read_run
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.routers import load_router


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return specimen.build(tmp_path_factory.mktemp("promises"))


@pytest.fixture
def root(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "root"))


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled_wherever_it_lies(root):
    mark = root / "executed"
    content = pickle.dumps(Trap(mark))
    assert pickle.loads(content) is None and mark.exists()  # the trap works
    mark.unlink()
    for part, files in specimen.parts(root).items():
        folder = root / "kept" / part
        for name in ("adapter_model.bin", "pytorch_model.bin", "router.pkl", "arrays.npz"):
            for place in {folder, *((folder / file).parent for file in files)}:
                (place / name).write_bytes(content)
        specimen.said_by(part, root)  # beside what is read: ignored
        for file in files:
            path, before = folder / file, (folder / file).read_bytes()
            path.write_bytes(content)  # in its place: refused
            with pytest.raises(SkillStackError):
                specimen.said_by(part, root)
                specimen.checked(part, root)
            path.write_bytes(before)
    for name in ("pytorch_model.bin", "training_args.bin"):
        (root / "model" / name).write_bytes(content)
    load_backbone(str(root / "model"), device="cpu")
    assert not mark.exists()


def test_no_call_in_the_suite_could_run_what_it_reads():
    """Neither the package, nor the report, nor a notebook."""
    import nbformat

    sources = {p: p.read_text() for p in (ROOT / "skillstack_helpers").rglob("*.py")}
    sources |= {p: p.read_text() for p in (ROOT / "results" / "report").glob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code = [c.source for c in cells if c.cell_type == "code" and not c.source.startswith("%")]
        sources[path] = "\n".join(code)
    assert len(sources) > 70
    modules = {"pickle", "joblib", "dill", "shelve", "marshal"}
    calls = {"eval", "exec", "compile", "torch.load", "yaml.load", "os.system"}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names}
                names.add((getattr(node, "module", None) or "").partition(".")[0])
                allowed = {"joblib"} if path.parent.name == "lab" else set()  # sweeps, no files
                assert not names & (modules - allowed), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {*calls, "torch.load", "yaml.load", "os.system"}, (
                    path,
                    called,
                )
                for word in node.keywords:
                    if word.arg in ("shell", "allow_pickle", "trust_remote_code"):
                        assert ast.unparse(word.value) == "False", (path, called)


def test_no_name_leads_out_of_a_folder(root):
    outside = root / "outside"
    shutil.copytree(root / "kept" / "stack" / "frames" / "imdb", outside / "imdb")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    stack, model = root / "kept" / "stack", specimen.backbone(root)
    good = (stack / "stack.json").read_bytes()
    names = ("../outside/imdb", "../../outside/imdb", str(outside / "imdb"), "..", ".", "a/b", "")
    for name in names:
        for change in (
            lambda f, name=name: f["frames"][0].update(name=name),
            lambda f, name=name: f.update(dropped={name: {"to": "imdb", "parent": None}}),
            lambda f, name=name: f.update(dropped={"gone": {"to": name, "parent": None}}),
        ):
            edit_json(stack / "stack.json", change)
            with pytest.raises(SkillStackError, match="stack.json"):
                SkillStack.from_pretrained(stack, model)
            (stack / "stack.json").write_bytes(good)
    for folder in ("frames", "frames/imdb"):
        moved = root / "moved"
        shutil.move(stack / folder, moved)
        (stack / folder).symlink_to(moved)
        with pytest.raises(SkillStackError, match="missing or not a plain folder"):
            SkillStack.from_pretrained(stack, model)
        (stack / folder).unlink()
        shutil.move(moved, stack / folder)
    assert before == {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}


def test_a_router_from_anywhere_is_only_data(root):
    folder = root / "kept" / "stack" / "routers" / "centroid"
    for change in (
        lambda f: f.update(router="os.system"),
        lambda f: f["state"].update(__class__="x"),
        lambda f: f["state"].update(_scores_="x", frames_=["imdb", "imdb"]),
        lambda f: f["parameters"].update(backbone="x"),
    ):
        good = (folder / "router.safetensors").read_bytes()
        edit_json(folder / "router.safetensors", change)
        with pytest.raises(SkillStackError, match="router.safetensors"):
            load_router(folder, backbone=specimen.backbone(root))
        (folder / "router.safetensors").write_bytes(good)


def test_a_runs_folder_is_below_the_output_folder(root):
    (run,) = (root / "kept" / "run").iterdir()
    edit_json(run / "run.json", lambda f: f["config"].update(output_dir="/", notebook="../../up"))
    with pytest.raises(SkillStackError, match="run.json"):
        read_run(run)
