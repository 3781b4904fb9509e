import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError
from skillstack_helpers.config import RunConfig


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


def test_run_id_names_what_was_run():
    config = RunConfig(notebook="02_hard12", preset="hard12", model="meta-llama/Llama-3.2-1B")
    assert config.run_id().startswith("02_hard12-hard12-llama_3.2_1b-stack-s42-")
    assert "/" not in config.run_id()


def test_run_id_depends_on_every_parameter_but_the_places():
    base = RunConfig()
    changed = dict(
        notebook="x", preset="hard12", model="minilm", seed=1, n_train=1, n_router=1, n_eval=1,
        max_length=9, epochs=1, lr=0.1, batch_size=1, lora_r=1, lora_alpha=1, router="latest",
        threshold=1.0, dtype="float32", quantize="nf4", device="cpu", source="hub",
    )  # fmt: skip
    for field, value in changed.items():
        assert dataclasses.replace(base, **{field: value}).run_id() != base.run_id(), field
    for field in ("data_dir", "output_dir", "stack_dir"):
        assert dataclasses.replace(base, **{field: "elsewhere"}).run_id() == base.run_id()
    of_methods = {"ewc_strength", "olora_strength", "buffer_size", "methods"}  # see below
    of_methods |= {"n_held_back", "max_loss_pp"}
    assert set(changed) | of_methods | {"data_dir", "output_dir", "stack_dir"} == {
        f.name for f in dataclasses.fields(RunConfig)
    }


@given(st.integers(0, 2**32 - 1), st.integers(1, 1000))
def test_same_parameters_same_run_id(seed, n_train):
    one, two = (RunConfig(seed=seed, n_train=n_train).run_id() for _ in range(2))
    assert one == two


def test_a_methods_own_parameters_are_no_part_of_other_runs():
    plain, strong = RunConfig(), RunConfig(ewc_strength=5.0, methods="ewc")
    for method in ("stack", "frames", "replay", "olora", "joint"):
        assert plain.run_id(method) == strong.run_id(method)
    for method in ("ewc", "ewc_replay"):
        assert plain.run_id(method) != strong.run_id(method)
    assert plain.run_id("replay") != RunConfig(buffer_size=9).run_id("replay")
    assert plain.run_id("compression") != RunConfig(max_loss_pp=2.0).run_id("compression")


def test_runs_from_before_keep_their_ids():
    """The ids of committed runs: a new parameter of one method must not move them."""
    config = RunConfig(notebook="01_train_stack", model="minilm")
    assert config.run_id() == "01_train_stack-hard8-minilm-stack-s42-a976b50e"
