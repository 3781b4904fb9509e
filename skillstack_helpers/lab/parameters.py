"""`RunConfig`: every parameter of a notebook, typed and checked before any work starts."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..config import MOST_ROWS, TrainingConfig, checked_device
from ..errors import SkillStackError, checked_name, checked_number, checked_path, did_you_mean
from ..tasks import PRESETS, SOURCES, find_task, own_tasks

# Names only, so that a mistyped one is answered before torch or scikit-learn is loaded; tests hold
# both against the classes.
ROUTERS = (
    "hybrid_svm",
    "hybrid_chain",
    "hybrid_embed",
    "scaffold_blind",
    "trunk",
    "gate",
    "centroid",
    "profile",
    "arrow",
)
ALPHA = 0.05  # the error that notebook 10's tests are allowed
METHODS = (  # of notebook 04, in the order they are run
    "frames",  # of the stack, and routed: the stack itself
    "second_look",
    "merged",
    "distilled",
    "sequential",
    "tfidf",
    "tfidf_union",
    "lda",
    "lda_union",
    "joint",
    "joint_wide",
    "joint_shared",
    "independent",
    "replay",
    "ewc",
    "ewc_online",
    "olora",
    "ewc_replay",
    "generative_replay",
)
# What is searched, and which methods then have it: the strength of a penalty, a learning rate.
SEARCHED = {
    "ewc": ("ewc", "ewc_replay"),
    "ewc_online": ("ewc_online",),
    "olora": ("olora",),
    "joint_wide": ("joint_wide",),
}
# Parameters that only some methods read, and which: runs of other methods do not depend on them.
_OF_METHODS = {
    "tuned_on": (*(f"search_{what}" for what in SEARCHED), *chain(*SEARCHED.values())),
    "ewc_strength": ("ewc", "ewc_replay"),
    "ewc_online_strength": ("ewc_online",),
    "joint_wide_lr": ("joint_wide",),
    "olora_strength": ("olora",),
    "buffer_size": ("replay", "ewc_replay", "generative_replay"),
    "n_held_back": ("compression", "second_look", "distilled"),
    "max_loss_pp": ("compression",),
}
# A penalty beyond this is infinite in float32 as soon as a parameter moves.
_MOST = {"ewc_strength": 1e30, "ewc_online_strength": 1e30, "olora_strength": 1e30}
_MOST |= {"joint_wide_lr": 1, "max_loss_pp": 100}
# Where a run reads and writes does not change what it measures; what it reads (rows, backbone) is
# compared by content, see `runs.open_run`.
_PLACES = (
    "data_dir",
    "output_dir",
    "stack_dir",
    "topics",
    "methods",
    "notebook",
    "gradient_checkpointing",  # time against memory; gradients are the same
    "trunk_dir",
)
_BY_CONTENT = ("model", "dtype", "quantize", "device", "source")


def repo_root() -> Path:
    """The checkout this package is installed from (``pip install -e``), else the working
    directory."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


def placed(folder: str | Path) -> Path:
    """Where a folder given by a user is: relative ones are the repository's."""
    return repo_root() / checked_path(folder)


def user_path(folder: str | Path, what: str = "folder") -> Path:
    """Where a user's own data is: as seen from the working directory, else from the repository."""
    path = checked_path(folder, what)
    return path.resolve() if path.exists() else placed(folder)


def _short(name: str) -> str:
    """As a part of a run's id."""
    return re.sub(r"[^a-z0-9_.]+", "_", name.lower())[:40]


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """Parameters of one run; the defaults are the published hard8 ones (seed 42).

    Raises `SkillStackError` naming the first field that is wrong.

    >>> RunConfig(preset="hard9")
    Traceback (most recent call last):
    skillstack_helpers.errors.SkillStackError: unknown preset 'hard9' (did you mean 'hard8'?)
    """

    notebook: str = ""  # e.g. "01_train_stack"; part of the run id
    preset: str = "hard8"  # stream of tasks, a key of tasks.PRESETS; or a folder of one's own tasks
    tasks: str | None = None  # or these tasks, comma between: the suite's, or folders in data_dir
    model: str = "auto"  # backbone: minilm, smollm2-135m, a hub id, a folder, or auto
    n_train: int = 48  # training rows per class
    n_router: int = 256  # routing rows per task
    n_eval: int = 64  # evaluation rows per class
    parent: str = "latest"  # of a new frame: the latest frame, or "best" (parents.best_parent)
    router: str = "hybrid_chain"  # one of ROUTERS
    threshold: float = 0.0  # margin a frame needs to answer in the chain walk
    methods: str | None = None  # names from METHODS, comma between; None: all that fit
    ewc_strength: float | None = None  # λ of EWC's penalty; None: searched on routing rows
    ewc_online_strength: float | None = None  # λ of online EWC; None: searched on routing rows
    olora_strength: float | None = None  # O-LoRA's λ1; None: searched on routing rows
    joint_wide_lr: float | None = (
        None  # of joint training at rank 64; None: searched on routing rows
    )
    tuned_on: str | None = None  # preset that what is searched is searched on; None: this stream
    train_on_router: bool = False  # routing rows, with their labels, are training rows too
    buffer_size: int = 200  # rows that replay may keep
    n_held_back: int = 512  # rows per task that only the rule of pruning.py sees
    max_loss_pp: float = 1.0  # points of accuracy that compression may cost
    dtype: str = "auto"  # float32, bfloat16, float16, or auto (by the GPU, else float32)
    quantize: str | None = None  # None or "nf4" (bitsandbytes)
    gradient_checkpointing: bool = False  # train in less memory and more time
    trunk_dir: str | None = None  # where the trunk's states are kept; None: in memory, up to 2 GiB
    device: str = "auto"  # cpu, cuda, or auto
    source: str = "auto"  # folder, hub, embedded, or auto
    data_dir: str | None = None  # folder source; None: the variable SKILLSTACK_DATA
    output_dir: str = "results/runs"  # relative to the repository root
    stack_dir: str | None = None  # a saved stack to look into (notebook 11)
    topics: str | None = None  # whose figures notebook 12 draws, comma between; None: all

    def __post_init__(self):
        super().__post_init__()
        self._name_stream()
        for field, known in (
            ("router", ROUTERS),
            ("parent", ("latest", "best")),
            ("source", ("auto", *SOURCES)),
            ("dtype", ("auto", "float32", "bfloat16", "float16")),
            ("quantize", ("nf4",)),
            ("tuned_on", PRESETS),
        ):
            if getattr(self, field) is not None:
                checked_name(getattr(self, field), known, field)
        methods = self.method_names or []
        for name in methods:
            checked_name(name, METHODS, "method")
        if len(set(methods)) < len(methods):
            raise SkillStackError(f"methods must be different names, got {self.methods!r}")
        checked_device(self.device)
        if not self.model.strip():
            raise SkillStackError("model must name a backbone, got an empty string")
        if not self.output_dir.strip():
            raise SkillStackError("output_dir must name a folder, got an empty string")
        for name in _PLACES:
            if name.endswith("_dir") and getattr(self, name) is not None:
                checked_path(getattr(self, name), name)
        for name in ("n_train", "n_router", "n_eval", "buffer_size", "n_held_back"):
            checked_number(getattr(self, name), name, 1, MOST_ROWS)
        for name, most in _MOST.items():
            if (value := getattr(self, name)) is not None:
                if value < 0:
                    raise SkillStackError(f"{name} must not be negative, got {value}")
                checked_number(value, name, most=most)

    def _name_stream(self) -> None:
        """Give a stream of one's own its tasks and a name: that of its folder, or of its tasks."""
        changed = {}
        if self.data_dir is not None:
            changed["data_dir"] = str(user_path(self.data_dir, "data_dir"))
        if self.tasks is not None:
            names = [name.strip() for name in self.tasks.split(",")]
            if len(set(names)) < len(names) or "" in names:
                raise SkillStackError(f"tasks must be different names, got {self.tasks!r}")
            changed["tasks"] = ",".join(names)
            if self.preset in PRESETS:
                changed["preset"] = _short("_".join(names))
        elif self.preset not in PRESETS:
            folder = user_path(self.preset, "preset")
            if not folder.is_dir():
                checked_name(self.preset, PRESETS, "preset")
            names = own_tasks(folder)
            if not names:
                raise SkillStackError(f"{folder} holds no folder with training rows (train.csv, …)")
            changed |= {"tasks": ",".join(names), "preset": _short(folder.name)}
            changed["data_dir"] = str(folder)
            print(f"stream: {', '.join(names)} (the folders of {folder}, by name)")
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    def _check_tasks(self) -> None:
        """Raise `SkillStackError` for the first task that is nowhere to be found."""
        for name in self.task_names:
            find_task(name, self.data_dir)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks of the stream, in the order of training."""
        return PRESETS[self.preset] if self.tasks is None else tuple(self.tasks.split(","))

    @classmethod
    def from_notebook(cls, namespace: dict, notebook: str) -> RunConfig:
        """Build the config from the notebook's globals, right after the parameters cell.

        Only what that cell (and the one papermill injects behind it) assigns is a parameter,
        whatever later cells have bound by now, so a kernel can be run again from there. A name
        that nobody reads (``-p sede 123``) is an error here instead of a warning.
        """
        fields = {f.name for f in dataclasses.fields(cls)} - {"notebook"}
        names = _assigned(namespace.get("In"), fields)
        if names is None:  # no notebook: a plain namespace of parameters
            literals = (str, int, float, bool, list, tuple, dict, type(None))
            public = {n: v for n, v in namespace.items() if not n.startswith("_")}
            names = [n for n, v in public.items() if type(v) in literals and n not in ("In", "Out")]
        for name in names:
            if name not in fields:
                raise SkillStackError(f"unknown parameter {name!r}{did_you_mean(name, fields)}")
        config = cls(notebook=notebook, **{name: namespace[name] for name in names})
        config._check_tasks()
        return config

    def _repr_markdown_(self) -> str:
        """What differs from the defaults, as a notebook shows it."""
        fields = [f for f in dataclasses.fields(self) if f.name not in ("notebook", "output_dir")]
        changed = [f for f in fields if getattr(self, f.name) != f.default]
        lines = [f"| {f.name} | {getattr(self, f.name)} | {f.default} |" for f in changed]
        head = ["| parameter | this run | default |", "| --- | --- | --- |"]
        return "\n".join([*head, *lines]) if lines else "Every parameter has its default."

    @property
    def method_names(self) -> list[str] | None:
        """`methods` as a list, None for all."""
        return None if self.methods is None else [m.strip() for m in self.methods.split(",")]

    def identity(self, method: str = "") -> dict:
        """What decides what a method measures, beside rows and backbone: the fields that differ
        from their defaults, so that a new field moves no run."""
        left_out = {*_PLACES, *_BY_CONTENT}
        if self.tasks is not None:
            left_out.add("preset")  # a name made of the tasks, or of where they lie
        left_out |= {name for name, users in _OF_METHODS.items() if method not in users}
        fields = [f for f in dataclasses.fields(self) if f.name not in left_out]
        values = {f.name: getattr(self, f.name) for f in fields}
        return {f.name: values[f.name] for f in fields if values[f.name] != f.default}


def own(config: Mapping, method: str) -> str:
    """Of a run's parameters those that only some methods read, in words, where they are given:
    ``tuned_on clinc10, ewc_strength 10000.0``."""
    names = [name for name, users in _OF_METHODS.items() if method in users]
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    given = {name: config.get(name, defaults[name]) for name in names}
    return ", ".join(f"{k} {v}" for k, v in given.items() if v != defaults[k])


def _assigned(cells: list[str] | None, fields: set[str]) -> list[str] | None:
    """The names bound by the parameters cell executed last, None where there is none.

    A parameters cell is one of plain assignments, at least half of them to fields; it is read
    together with others of its kind right before it, since papermill injects a second one.
    """
    found: list[str] = []
    for source in reversed(cells or []):
        names = _plain_assignments(source)
        known = sum(name in fields for name in names)
        if names and (2 * known >= len(names) or source.startswith("# Parameters")):
            found = [*names, *found]
        elif found:
            break
    return list(dict.fromkeys(found)) or None


def _plain_assignments(source: str) -> list[str]:
    """The names a cell binds if it does nothing else, an empty list for any other cell."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic or an unfinished cell
        return []
    targets = [s.targets[0] if isinstance(s, ast.Assign) else None for s in statements]
    names = [t.id for t in targets if isinstance(t, ast.Name)]
    return names if len(names) == len(statements) else []
