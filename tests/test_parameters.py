import dataclasses
import json

import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import parameters
from skillstack_helpers.lab.parameters import RunConfig, own


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("seed", "abc", "seed must be an integer, got 'abc'"),
        ("seed", -1, "seed must be in 0"),
        ("seed", True, "seed must be an integer, got True"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("epochs", 1.5, "epochs must be an integer"),
        ("n_train", 0, "n_train must be at least 1"),
        ("max_length", 2, "max_length must be at least 8"),
        ("lr", "fast", "lr must be a number or None"),
        ("lr", 0.0, "lr must be above 0"),
        ("lr", float("nan"), "lr must be finite"),
        ("preset", "hard9", "unknown preset 'hard9' (did you mean 'hard8'?)"),
        ("router", "hybrid_chian", "did you mean 'hybrid_chain'?"),
        ("source", "web", "unknown source 'web'"),
        ("dtype", "float64", "unknown dtype"),
        ("quantize", "int3", "unknown quantize"),
        ("quantize", "None", "unknown quantize 'None'"),
        ("device", "gpu", "unknown device 'gpu'"),
        ("model", " ", "model must name a backbone"),
        ("output_dir", "", "output_dir must name a folder"),
        ("threshold", "0", "threshold must be a number"),
        ("methods", "ewc, repaly", "unknown method 'repaly' (did you mean 'replay'?)"),
        ("methods", "", "unknown method ''"),
        ("ewc_strength", -1.0, "ewc_strength must not be negative, got -1.0"),
        ("olora_strength", "strong", "olora_strength must be a number or None"),
        ("tuned_on", "clinc", "unknown tuned_on 'clinc' (did you mean 'clinc10'?)"),
        ("buffer_size", 0, "buffer_size must be at least 1, got 0"),
    ],
)
def test_bad_value_is_named_in_one_line(field, value, words):
    with pytest.raises(SkillStackError) as caught:
        RunConfig(**{field: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_parameter_is_an_error_with_a_suggestion():
    with pytest.raises(
        SkillStackError, match=r"unknown parameter 'sede' \(did you mean 'seed'\?\)"
    ):
        RunConfig.from_notebook({"sede": 123, "preset": "hard8"}, "01")


def test_notebook_globals_other_than_literals_are_no_parameters():
    namespace = {"preset": "mini4", "os": dataclasses, "_repo": "x", "In": [], "Out": {}}
    config = RunConfig.from_notebook(namespace, "01")
    assert (config.preset, config.notebook) == ("mini4", "01")


def test_error_shows_without_traceback_in_a_notebook():
    lines = SkillStackError("no such preset")._render_traceback_()
    assert lines == ["SkillStackError: no such preset"]


@pytest.mark.parametrize("injected", ["", "# Parameters\nseed = 7\noutput_dir = 'x'\n"])
def test_a_kernel_can_be_run_again_from_the_parameters_cell(injected):
    """Names that later cells have bound are no parameters, whatever they hold by then."""
    cells = ["import os", "preset = 'mini4'\nseed = 5  # a comment\nrouter = 'centroid'"]
    cells += [injected] if injected else []
    cells.append("config = RunConfig.from_notebook(globals(), '01')")
    namespace: dict = {}
    for cell in cells[:-1]:
        exec(cell, namespace)
    config = RunConfig.from_notebook(namespace | {"In": ["", *cells]}, "01")
    assert (config.preset, config.router) == ("mini4", "centroid")
    assert config.seed == (7 if injected else 5)
    later = "budget = (1, 2)\nnames = ['a']\nmethods = ['x', 'y']\ni = 3"
    exec(later, namespace)
    namespace["router"] = object()
    changed = cells[1].replace("5", "6")
    exec(changed, namespace)
    again = {"In": ["", *cells, "run = 1", later, "print(1)", changed, cells[-1]]}
    assert RunConfig.from_notebook(namespace | again, "01").seed == 6


def test_what_papermill_injects_for_nobody_is_an_error_in_a_notebook():
    cells = ["", "preset = 'mini4'", "# Parameters\nsede = 1\n", "RunConfig.from_notebook()"]
    with pytest.raises(SkillStackError, match=r"'sede' \(did you mean 'seed'\?\)"):
        RunConfig.from_notebook({"preset": "mini4", "sede": 1, "In": cells}, "01")


def test_the_identity_holds_what_differs_from_the_defaults():
    """So a new parameter moves no run; where rows and model come from is compared by content."""
    assert RunConfig().identity() == {}
    changed = dict(
        preset="hard12", seed=1, n_train=1, n_router=1, n_eval=1, max_length=9, epochs=1, lr=0.1,
        batch_size=1, lora_r=1, lora_alpha=1, first_adapted_layer=0.5, router="centroid",
        threshold=1.0, parent="best", train_on_router=True,
    )  # fmt: skip
    for field, value in changed.items():
        assert dataclasses.replace(RunConfig(), **{field: value}).identity() == {field: value}
    places = dict(
        model="minilm", dtype="float32", quantize="nf4", device="cpu", source="hub",
        data_dir="x", output_dir="x", stack_dir="x", notebook="x", methods="ewc",
        gradient_checkpointing=True, trunk_dir="x", topics="x",
    )  # fmt: skip
    assert RunConfig(**places).identity() == {}
    assert RunConfig(tasks="b, a").identity() == {"tasks": "b,a"}
    of_methods = {"ewc_strength", "olora_strength", "buffer_size", "n_held_back", "max_loss_pp"}
    of_methods |= {"ewc_online_strength", "joint_wide_lr", "tuned_on"}
    known = {"tasks", *changed, *places, *of_methods}
    assert known == {f.name for f in dataclasses.fields(RunConfig)}


def test_a_methods_own_parameters_are_no_part_of_other_runs():
    strong = RunConfig(ewc_strength=5.0, buffer_size=9, max_loss_pp=2.0)
    assert strong.identity("joint") == strong.identity("olora") == strong.identity("stack") == {}
    assert strong.identity("ewc") == {"ewc_strength": 5.0}
    assert strong.identity("ewc_replay") == {"ewc_strength": 5.0, "buffer_size": 9}
    assert strong.identity("compression") == {"max_loss_pp": 2.0}
    elsewhere = RunConfig(tuned_on="clinc10")
    assert elsewhere.identity("frames") == elsewhere.identity("replay") == {}
    assert elsewhere.identity("ewc") == elsewhere.identity("search_ewc") == {"tuned_on": "clinc10"}


def test_what_only_a_method_reads_is_said_in_words():
    config = vars(RunConfig(ewc_strength=5.0, tuned_on="clinc10"))
    assert own(config, "ewc") == "tuned_on clinc10, ewc_strength 5.0" and own(config, "joint") == ""
    assert own({}, "ewc") == "" and own({"ewc_strength": 5.0}, "ewc") == "ewc_strength 5.0"


def test_names_are_those_of_the_classes():
    from skillstack_helpers import routers

    assert list(parameters.ROUTERS) == list(routers.ROUTERS)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_s_parameters_are_fields(path):
    """So that whatever papermill or a reader sets there is checked by `RunConfig`."""
    cells = json.loads(path.read_text())["cells"]
    (cell,) = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    source = "".join(cell["source"])
    names = parameters._plain_assignments(source)
    assert names and set(names) <= {f.name for f in dataclasses.fields(RunConfig)} - {"notebook"}
    namespace: dict = {}
    exec(source, namespace)
    config = RunConfig.from_notebook({name: namespace[name] for name in names}, path.stem)
    assert {name: getattr(config, name) for name in names} == {n: namespace[n] for n in names}
