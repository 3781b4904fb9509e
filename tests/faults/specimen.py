"""Everything that is kept on disk, once and small, and what it says when it is read back."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest, also without pytest

import conftest

from skillstack_helpers import BitStack, SkillStack, TrainingConfig, load_backbone, load_task
from skillstack_helpers.compression import drop, int8, shared_basis
from skillstack_helpers.ensemble import Mixture
from skillstack_helpers.files import digest
from skillstack_helpers.lab.experiment import fit_router
from skillstack_helpers.lab.parameters import RunConfig
from skillstack_helpers.lab.runs import open_run, read_run
from skillstack_helpers.routers import load_router, save_router
from skillstack_helpers.tasks import PRESETS

TASKS = ("imdb", "agnews", "qqp", "yelp")
ROUTERS = ("hybrid_chain", "hybrid_embed", "scaffold_blind", "trunk", "gate", "centroid", "profile")
TEXTS = [
    "class1 of the imdbword",
    "agnewsword class3 and",
    "class0 qqpword",
    "yelpword of it class1",
]
CONFIG = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=0)


class Net(torch.nn.Module):
    """Two layers with a loss, for masks."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.last = torch.nn.Linear(12, 16), torch.nn.Linear(16, 3)

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.cross_entropy(self.last(self.body(x).relu()), labels)}


def batches(seed: int) -> list[dict]:
    torch.manual_seed(seed)
    return [{"x": torch.randn(8, 12), "labels": torch.randint(0, 3, (8,))} for _ in range(2)]


@lru_cache(maxsize=1)
def backbone(root: Path):
    """The tiny encoder of a specimen, loaded once a process."""
    return load_backbone(str(root / "model"), device="cpu")


def stream(root: Path) -> list:
    where = {"source": "folder", "data_dir": root / "data"}
    return [load_task(name, 6, 12, 8, seed=0, **where) for name in TASKS]


def build(root: Path) -> Path:
    """Rows, a model, and below ``kept`` one of everything."""
    conftest.write_folder(root / "data", (*TASKS, *PRESETS["adaptive3"]))
    conftest.save_tiny_model(root / "model", "bert")
    tasks, model, kept = stream(root), backbone(root), root / "kept"
    stack = SkillStack(model)
    for data in tasks:
        stack.grow(data, CONFIG)
    stack.save_pretrained(kept / "stack")
    for name in ROUTERS:
        router = fit_router(name, tasks, stack)
        save_router(router, kept / "stack" / "routers" / name)
    int8(drop(stack, "yelp", "imdb")).save_pretrained(kept / "int8")
    shared_basis(stack, 4).save_pretrained(kept / "basis")
    masks = BitStack(Net(), sparsity=0.3)
    for i in range(2):
        masks.update(batches(i), task=f"task {i}")
    (kept / "masks").mkdir()
    masks.save(kept / "masks" / "masks.safetensors")
    (kept / "mixture").mkdir()
    labels = {frame.name: frame.label_names for frame in stack.frames}
    Mixture(labels, "family").save(kept / "mixture" / "mixture.json")
    run = open_run(RunConfig(notebook="faults", output_dir=str(kept / "run")), tasks, model)
    for i, data in enumerate(tasks):
        run.record("accuracy", i / 7, eval_task=data.name, n=16)
    run.save("matrix.csv", run.matrix(tasks))
    run.save("rows.parquet", tasks[0].eval)
    run.finish()
    return root


def said_by(part: str, root: Path) -> dict:
    """What one of the kept things says when it is opened and asked, and how often it is checked.

    part: a folder below ``kept``, or a router's. Raises whatever it raises.
    """
    folder, model = root / "kept" / part, backbone(root)
    said: dict = {}
    if "/routers/" in part:
        router = load_router(folder, backbone=model)
        said["scores"] = digest(router.decision_function(TEXTS))
        said["routes"] = router.route(TEXTS).to_json() + str(router.classes_)
    elif part == "masks":
        net = Net(seed=3)
        masks = BitStack.load(folder / "masks.safetensors", net)
        said["weights"] = [digest(p.detach().numpy()) for p in net.parameters()]
        said["masks"] = {n: digest(m.numpy()) for n, m in masks.masks.items()} | {"": masks.tasks}
        masks.close()
    elif part == "mixture":
        mixture = Mixture.load(folder / "mixture.json")
        said["shares"] = [mixture.label_names, digest(mixture.weights), mixture.shares]
        said["temperatures"] = digest(mixture.temperatures)
    elif part == "run":
        (place,) = folder.glob("*-*")
        run = read_run(place)
        facts = {k: v for k, v in run.facts.items() if k != "sha256"}
        said["run"] = [run.metrics.to_json(), facts, run.matrix(TASKS).to_json()]
        said["tables"] = [run.read(name).to_json() for name in ("matrix.csv", "rows.parquet")]
    else:
        stack = SkillStack.from_pretrained(folder, model)
        said["frames"] = [[f.name, f.task, f.parent, f.label_names] for f in stack.frames]
        said["dropped"] = [stack.dropped, stack.decisions, [f.name for f in stack.chain()]]
        for name in TASKS:
            answer = stack.predict(TEXTS, name)
            said[name] = [digest(answer.probabilities), list(answer.label_names)]
        said["calibration"] = [list(frame.calibration) for frame in stack.frames]
    return json.loads(json.dumps(said, default=str))


def checked(part: str, root: Path) -> None:
    """What is read by nobody but plain PEFT."""
    if part in ("stack", "int8", "basis"):
        SkillStack.from_pretrained(root / "kept" / part, backbone(root)).verify()


def parts(root: Path) -> dict[str, list[str]]:
    """Part -> its files, relative to its folder."""
    kept = root / "kept"
    names = ["stack", "int8", "basis", "masks", "mixture", "run"]
    names += [f"stack/routers/{name}" for name in ROUTERS]
    found = {}
    for name in names:
        paths = sorted(p for p in (kept / name).rglob("*") if p.is_file() and p.name != ".lock")
        paths = [str(p.relative_to(kept / name)) for p in paths]
        found[name] = [p for p in paths if name != "stack" or not p.startswith("routers/")]
    return found


def fingerprint(said: dict) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
