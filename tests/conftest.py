"""Small stand-ins, made on the spot: models with random weights and data with a simple rule."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the tests may reach a hub

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from skillstack_helpers.config import TrainingConfig
from skillstack_helpers.files import NO_SEAL, sealed
from skillstack_helpers.lab.runs import COLUMNS
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.tasks import TASKS, load_task

torch.set_num_threads(1)  # the stand-ins are too small for more

ROOT = Path(__file__).resolve().parent.parent
FILLER = "the of a and to in it that was for on with as at by from this they an be".split()


def make_rows(name: str, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Rows whose label is told by one word, on a background that tells the task."""
    task = TASKS[name]
    labels = np.arange(n) % len(task.label_names)
    rows = []
    for label in labels:
        words = [*rng.choice(FILLER, rng.integers(4, 20)), f"class{label}", f"{name}word"]
        rng.shuffle(words)
        pair = " ".join(rng.choice(FILLER, 6)) if "{text_pair}" in task.template else ""
        rows.append((" ".join(words) + f" row{rng.integers(1 << 40)}", pair, int(label)))
    return pd.DataFrame(rows, columns=["text", "text_pair", "label"])


def write_folder(folder: Path, names, n_train=120, n_test=60) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        classes = len(TASKS[name].label_names)
        (folder / name).mkdir(parents=True)
        for split, n in (("train", n_train), ("test", n_test)):
            rows = make_rows(name, n * classes // 2, rng)
            rows.to_parquet(folder / name / f"{split}.parquet", index=False)
    return folder


def rows(method, metric, values, **columns):
    """Rows of metrics.csv, a value for each of the seeds 0, 1, ..."""
    row = dict.fromkeys(COLUMNS, "") | {"model": "minilm", "preset": "hard12", "split": "eval"}
    row |= {"method": method, "metric": metric, "unit": "fraction", "n": 1}
    return pd.DataFrame(
        [
            row | {"run_id": f"r{seed}", "seed": seed, "value": value, **columns}
            for seed, value in enumerate(values)
        ],
        columns=COLUMNS,
    )


# Files that take minutes, the longest first: begun first, no core waits for them at the end.
LONG = [
    "test_notebooks.py",
    "test_sweep.py",
    "test_package.py",
    "test_models.py",
    "test_compression.py",
]
APART = LONG[:2]  # whose tests share no fixture but the session's: each to the core that is free


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
    for item in items:
        apart = item.path.name in APART and "suite" not in item.fixturenames
        group = item.nodeid if apart else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Generated data in the folder layout, for every task of hard12."""
    from skillstack_helpers.tasks import PRESETS

    return write_folder(tmp_path_factory.mktemp("data"), PRESETS["hard12"])


@pytest.fixture(scope="session")
def stream(data_dir):
    """Three small tasks with 2, 4 and 2 classes."""
    return [
        load_task(name, 6, 12, 8, seed=0, source="folder", data_dir=data_dir)
        for name in ("imdb", "agnews", "qqp")
    ]


def save_tiny_model(folder: Path, kind: str, more_words=(), **settings) -> Path:
    """A two-layer model with random weights and a word-level tokenizer; with `more_words` also an
    end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", *FILLER, *(f"class{i}" for i in range(14)), "good", "bad"]
    words += [f"{name}word" for name in TASKS]
    words += [*more_words, "[END]"] if more_words else []
    end = {"eos_token": "[END]"} if more_words else {}
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **end
    ).save_pretrained(folder)
    torch.manual_seed(0)
    words_only = dict(vocab_size=len(words), pad_token_id=0)
    size = words_only | dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    if kind == "bert":
        model = BertModel(BertConfig(**size))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=1, **settings))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(**words_only, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_model(root / kind, kind) for kind in ("bert", "llama", "gpt2")}


ANSWERS = (
    "Choose label fits text Labels Label negative positive not duplicate world sports business"
)
ANSWERS = [*ANSWERS.split(), *"sci tech World Sports Business Sci Tech no yes".split()]
ANSWERS += [*"Passage Question 1 2".split(), *".:,/?"]


@pytest.fixture(scope="session")
def decoders(tmp_path_factory) -> dict[str, Path]:
    """Decoders with tied embeddings, an end token, and the words of prompts and answers."""
    root = tmp_path_factory.mktemp("decoders")
    save_tiny_model(root / "llama", "llama", ANSWERS, tie_word_embeddings=True)
    save_tiny_model(root / "gpt2", "gpt2", ANSWERS)
    return {kind: root / kind for kind in ("llama", "gpt2")}


@pytest.fixture(scope="session")
def saved(model_dirs, stream, tmp_path_factory):
    """Three frames and two routers in a folder."""
    from skillstack_helpers.routers import make_router, save_router
    from skillstack_helpers.stack import SkillStack

    config = TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=0)
    stack = SkillStack(load_backbone(str(model_dirs["bert"]), device="cpu"))
    for data in stream:
        stack.grow(data, config)
    folder = stack.save_pretrained(tmp_path_factory.mktemp("inspect") / "stack")
    texts = [text for data in stream for text in data.texts("router")]
    names = [data.name for data in stream for _ in data.texts("router")]
    for name in ("hybrid_chain", "centroid"):
        router = make_router(name, backbone=stack.backbone, stack=stack).fit(texts, names)
        save_router(router, folder / "routers" / name)
    return folder


@pytest.fixture
def stack(saved):
    from skillstack_helpers.lab.experiment import open_stack

    return open_stack(saved)


@pytest.fixture
def routers(saved, stack):
    from skillstack_helpers.lab.experiment import stack_routers

    return stack_routers(stack, saved)


@pytest.fixture
def backbone(model_dirs):
    return load_backbone(str(model_dirs["bert"]), device="cpu")


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=3)


def said_in(path: Path) -> tuple[str, dict]:
    """The one key of a safetensors file's metadata, and the JSON under it."""
    with safetensors.safe_open(path, "numpy") as file:
        ((key, text),) = file.metadata().items()
    return key, json.loads(text)


def edit_arrays(path: Path, change, said=None) -> None:
    """Change the arrays of a safetensors file (and what it says of them), and seal it anew."""
    (key, fields), arrays = said_in(path), safetensors.numpy.load(path.read_bytes())
    change(arrays)
    if said:
        said(fields)
    text = json.dumps(fields | {"seal": NO_SEAL})
    path.write_bytes(sealed(safetensors.numpy.save(arrays, {key: text})))


def edit_json(path: Path, change) -> None:
    """Change what a JSON file says, or a safetensors file among its metadata, and seal it anew."""
    if path.suffix == ".safetensors":
        edit_arrays(path, lambda arrays: None, change)
        return
    fields = json.loads(path.read_text())
    change(fields)
    if isinstance(fields, dict) and "seal" in fields:
        path.write_bytes(sealed(json.dumps(fields | {"seal": NO_SEAL})))
    else:
        path.write_text(json.dumps(fields))
