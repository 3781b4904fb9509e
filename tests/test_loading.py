"""Loading: what is refused in one line, what `auto` chooses, and the same model elsewhere."""

import http.server
import importlib
import json
import re
import shutil
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import edit_json, save_tiny_model
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import hf_raise_for_status
from safetensors.torch import load_file, save_file

from skillstack_helpers import SkillStackError, files, hub, loading
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack

GATED = "meta-llama/Llama-3.2-1B-Instruct"
PAGE = f"{huggingface_hub.constants.ENDPOINT}/{GATED}"


def refusal(name: str) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(SkillStackError) as caught:
        load_backbone(str(name), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("./nowhere", "model folder ./nowhere does not exist"),
        ("minlm", "cannot load model 'minlm' (did you mean 'minilm'?)"),
        ("no/such-model", "cannot load model 'no/such-model'"),
    ],
)
def test_unknown_model_is_one_line(name, words):
    with pytest.raises(SkillStackError) as caught:
        load_backbone(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(SkillStackError, match="holds no model: config.json is missing"):
        load_backbone(str(tmp_path))


# ---------------------------------------------------------------------- a gated model


def hub_error(status: int, message: str, code: str | None = None) -> Exception:
    """What the hub's library raises for an answer with these headers."""
    from huggingface_hub.errors import Response

    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    url = f"{PAGE}/resolve/main/config.json"
    client = importlib.import_module(Response.__module__.partition(".")[0])  # httpx or httpx2
    request = client.Request("HEAD", url)
    with pytest.raises(OSError) as caught:
        hf_raise_for_status(Response(status, headers=headers, request=request))
    return caught.value


def behind(error: Exception) -> Exception:
    """As `hf_hub_download` raises it where the cache has no copy."""
    try:
        raise LocalEntryNotFoundError("Check your connection\nand try again") from error
    except LocalEntryNotFoundError as wrapped:
        return wrapped


LIST = f"Access to model {GATED} is restricted and you are not in the authorized list. Visit"
LOG_IN = f"Access to model {GATED} is restricted. You must be authenticated. Please log in."
WAIT = f"Your request to access model {GATED} is awaiting a review from the repo authors."
FINE = "Please enable access to public gated repositories in your fine-grained token settings"
REFUSALS = {
    "no token": (hub_error(401, LOG_IN, "GatedRepo"), "accept its licence at .* and set HF_TOKEN"),
    "no licence": (hub_error(403, LIST, "GatedRepo"), "accept its licence at .* with the account"),
    "awaiting review": (hub_error(403, WAIT, "GatedRepo"), "your request awaits review"),
    "token without permission": (
        behind(hub_error(403, FINE)),
        "may not read such models: allow it public gated repositories in .*/settings/tokens",
    ),
    "bad token": (
        hub_error(401, "Invalid credentials in Authorization header"),
        r"does not take your Hugging Face token \(mistyped or expired\): make another in",
    ),
    "no such model": (hub_error(401, "Invalid username or password."), "is not there, or is priv"),
    "no config": (hub_error(404, "Entry not found", "EntryNotFound"), "it has no config.json"),
    "too many requests": (behind(hub_error(429, "Slow down")), "the hub answers 429 Slow down"),
}


@pytest.fixture
def answering(monkeypatch):
    """A hub that answers what is put into it: an error, or the folder of a model. Returns (answers,
    the files that were asked for)."""
    answers, asked = {}, []

    def config(name, file, local_files_only):
        asked.append(file)
        if isinstance(answers[name], Exception):
            raise answers[name]
        return str(answers[name] / file)

    def snapshot(name, revision, allow_patterns):
        assert revision == answers[name].name
        asked.extend(allow_patterns)

    monkeypatch.setattr(loading, "hub_reachable", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", config)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return answers, asked


@pytest.mark.parametrize("reason", REFUSALS)
def test_the_hubs_reasons_are_told_apart_with_the_models_page(reason, answering):
    error, words = REFUSALS[reason]
    answering[0][GATED] = error
    said = refusal(GATED)
    assert re.search(words, said), said
    assert PAGE in said or reason == "too many requests"
    assert "hf_secret" not in said


# ---------------------------------------------------------------------- auto


def choose(monkeypatch, capsys, device="cuda"):
    """What `auto` stands for on a device, and what is printed. Nothing is loaded."""
    opened = []

    def load(name, *_):
        opened.append(name)
        raise SkillStackError("enough")

    monkeypatch.setattr(loading, "_load", load)
    monkeypatch.setattr(loading, "_locate", lambda name: (Path(name), "1"))
    monkeypatch.setattr(loading, "pick_device", lambda name: name, raising=False)
    with pytest.raises(SkillStackError, match="enough"):
        load_backbone("auto", dtype="float32", device=device)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"backbone: {opened[0]} (model='auto': ") and "hf_secret" not in line
    return opened[0], line


def test_auto_takes_llama_where_the_token_may_open_it(monkeypatch, capsys, answering):
    answering[0][GATED] = Path("snapshots/abc")
    name, line = choose(monkeypatch, capsys)
    assert name == GATED and "a CUDA GPU, and a token that may open it" in line
    assert answering[1] == ["config.json"]


@pytest.mark.parametrize("reason", REFUSALS)
def test_auto_falls_back_and_says_why(reason, monkeypatch, capsys, answering):
    answering[0][GATED] = REFUSALS[reason][0]
    name, line = choose(monkeypatch, capsys)
    assert name == "minilm" and GATED in line


def test_auto_without_gpu_or_token_asks_no_hub(monkeypatch, capsys, answering):
    assert choose(monkeypatch, capsys, "cpu") == (
        "minilm", "backbone: minilm (model='auto': no CUDA GPU)"
    )  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    name, line = choose(monkeypatch, capsys)
    assert name == "minilm" and "no Hugging Face token" in line and answering[1] == []


def test_auto_is_named_as_what_it_stands_for(capsys):
    assert load_backbone("auto", device="cpu").name == "minilm"


# ---------------------------------------------------------------------- refused by config.json

T5 = {"model_type": "t5", "is_encoder_decoder": True}
CODE = {"auto_map": {"AutoConfig": "configuration.Own"}}
UNFIT = {
    "t5": (T5, "t5 is neither encoder nor decoder only"),
    "vision": ({"model_type": "vit"}, "vit is neither encoder nor decoder only"),
    "mamba": ({"model_type": "mamba"}, "mamba is a state-space model"),
    "mamba2": ({"model_type": "mamba2"}, "mamba2 is a state-space model"),
    "bamba": ({"model_type": "bamba"}, "bamba is a state-space model"),
    "recurrent gemma": ({"model_type": "recurrent_gemma"}, "a state-space model"),
    "rwkv": ({"model_type": "rwkv"}, "rwkv is a recurrent model"),
    "xlnet": ({"model_type": "xlnet"}, "xlnet is a permutation model"),
    "mixtral": ({"model_type": "mixtral"}, "mixtral is a mixture-of-experts model"),
    "qwen3 moe": ({"model_type": "qwen3_moe"}, "a mixture-of-experts model"),
    "deepseek": ({"model_type": "deepseek_v3"}, "a mixture-of-experts model"),
    "dbrx": ({"model_type": "dbrx"}, "a mixture-of-experts model"),
    "own code": (CODE | {"model_type": "own"}, r"auto_map in config.json\), which is not run"),
    "own code, no type": (CODE, r"auto_map in config.json\), which is not run"),
    "not known": ({"model_type": "newest"}, "does not know the architecture 'newest'"),
    "no type": ({}, "does not know the architecture None"),
    "nonsense": ({"model_type": "bert", "hidden_size": "wide"}, "config.json: "),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_cannot_be_a_backbone_is_refused_before_anything_is_downloaded(
    what, answering, tmp_path, monkeypatch
):
    fields, words = UNFIT[what]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    answering[0]["some/model"] = tmp_path
    for name in ("some/model", tmp_path):  # a folder is refused alike, whatever else it lacks
        assert re.search(words, refusal(name))
    assert answering[1] == ["config.json"]


def test_dense_relatives_are_taken():
    from transformers import AutoConfig

    dense = "bert qwen3 gemma3 gemma3_text gemma4_text lfm2 smollm3 falcon phi3 bloom opt".split()
    for model_type in dense:
        assert loading._kind(AutoConfig.for_model(model_type), "x") in ("encoder", "decoder")


def test_custom_code_of_a_known_type_is_not_run(model_dirs, tmp_path, monkeypatch):
    folder = shutil.copytree(model_dirs["bert"], tmp_path / "model")
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    edit_json(folder / "config.json", lambda fields: fields.update(auto_map=code))
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    own = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "Own"}
    edit_json(folder / "tokenizer_config.json", lambda fields: fields.update(own))
    assert load_backbone(str(folder), device="cpu").kind == "encoder"


# ---------------------------------------------------------------------- folders


def lfs(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop(file: Path, *names: str) -> None:
    weights = load_file(file)
    save_file({n: w for n, w in weights.items() if n not in names}, file, {"format": "pt"})


def two_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [{n: w for i, (n, w) in enumerate(weights.items()) if i % 2 == k} for k in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, {"format": "pt"})
    where = {n: name for name, half in zip(names, halves, strict=True) for n in half}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def one_shard(folder: Path) -> None:
    two_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def interrupted(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "abc.incomplete").touch()


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def only_vocabulary(folder: Path) -> None:
    no_tokenizer(folder)
    (folder / "vocab.json").write_text("{}")


def config(**fields):
    return lambda folder: edit_json(folder / "config.json", lambda known: known.update(fields))


def tokens(change):
    def harm(folder: Path) -> None:
        edit_json(folder / "tokenizer.json", change)

    return harm


def few(fields: dict) -> None:
    fields["model"]["vocab"] = {"[PAD]": 0, "[UNK]": 1, "the": 2}


def many(fields: dict) -> None:
    fields["model"]["vocab"] |= {f"more{i}": 1000 + i for i in range(9)}


WEIGHT = "encoder.layer.0.output.dense.weight"
DAMAGE = {
    "config cut short": (lambda f: cut(f / "config.json"), "config.json is not valid JSON"),
    "weights are a pointer": (
        lambda f: lfs(f / "model.safetensors"),
        "model.safetensors is a git-lfs pointer: run `git lfs pull`",
    ),
    "tokenizer is a pointer": (
        lambda f: lfs(f / "tokenizer.json"),
        "tokenizer.json is a git-lfs pointer: run `git lfs pull`",
    ),
    "weights cut short": (
        lambda f: cut(f / "model.safetensors"),
        "model.safetensors is cut short or damaged (.*): download it again",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "model.safetensors is missing; .*: convert them with save_pretrained",
    ),
    "pickled weights": (pickled, "model.safetensors is missing; weights .* are not opened"),
    "interrupted": (interrupted, "model.safetensors was not fetched to its end: download it again"),
    "a shard is missing": (
        one_shard,
        r"1 of 2 files with weights are missing \(first .*00002-of-00002.safetensors\): download",
    ),
    "index cut short": (
        lambda f: (two_shards(f), cut(f / "model.safetensors.index.json")),
        "model.safetensors.index.json is not valid JSON",
    ),
    "no tokenizer": (no_tokenizer, "tokenizer.json is missing: copy all tokenizer files"),
    "no merges": (only_vocabulary, "merges.txt is missing: copy all tokenizer files"),
    "tokenizer cut short": (
        lambda f: cut(f / "tokenizer.json"),
        "tokenizer.json is not valid JSON",
    ),
    "tokenizer of a small model": (tokens(few), r"tokenizer has 3 tokens, the model \d+ \(vocab"),
    "tokenizer of a large model": (tokens(many), r"tokenizer has \d+ tokens, the model \d+ \(vo"),
    "a weight is missing": (
        lambda f: drop(f / "model.safetensors", WEIGHT),
        rf"1 weights that config.json asks for are missing \(first {WEIGHT}\): take both",
    ),
    "wider": (
        config(intermediate_size=64),
        r"weights have another shape than config.json says \(first encoder.layer.0",
    ),
    "deeper": (config(num_hidden_layers=3), "weights that config.json asks for are missing"),
    "an adapter beside it": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "adapter_config.json: an adapter lies beside the model and would be loaded into it: move",
    ),
    "less deep": (config(num_hidden_layers=1), "the weights have more layers than config.json"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_one_line_with_file_and_remedy(what, model_dirs, tmp_path, capfd):
    harm, words = DAMAGE[what]
    folder = shutil.copytree(model_dirs["bert"], tmp_path / "model")
    harm(folder)
    said = refusal(folder)
    assert str(folder) in said and re.search(words, said), said
    assert "".join(capfd.readouterr()) == ""  # transformers' own report would be the second one


def test_other_heads_poolers_and_shards_do_no_harm(model_dirs, tmp_path):
    whole = load_backbone(str(model_dirs["bert"]), device="cpu")
    folder = shutil.copytree(model_dirs["bert"], tmp_path / "model")
    drop(folder / "model.safetensors", "pooler.dense.weight", "pooler.dense.bias")
    two_shards(folder)
    (folder / "README.md").touch()
    (folder / "old.incomplete").touch()
    again = load_backbone(str(folder), device="cpu")
    torch.testing.assert_close(
        again.model.state_dict()[WEIGHT], whole.model.state_dict()[WEIGHT], atol=0, rtol=0
    )
    assert load_backbone(str(model_dirs["llama"]), device="cpu").kind == "decoder"  # has lm_head


@pytest.mark.parametrize("pad", [None, "beyond"])
@pytest.mark.parametrize("end", ["[END]", None])
@pytest.mark.parametrize("unknown", ["[UNK]", None])
def test_a_pad_token_is_taken_from_those_that_there_are(pad, end, unknown, tmp_path):
    """Padding is masked: the end token does, or the unknown one; one that the model has no
    embedding for does not."""
    folder = save_tiny_model(tmp_path / "model", "llama", ["more"])
    names = {"pad_token": "[NEW]" if pad else None, "eos_token": end, "unk_token": unknown}
    edit_json(folder / "tokenizer_config.json", lambda fields: fields.update(names))
    if end is unknown is None:
        assert "names no pad, end or unknown token that the model has: add one" in refusal(folder)
        return
    backbone = load_backbone(str(folder), device="cpu")
    assert backbone.tokenizer.pad_token == (end or unknown)
    assert backbone.embed(["the of", "the"]).shape[0] == 2


# ---------------------------------------------------------------------- offline


@pytest.fixture
def no_network(monkeypatch):
    """The hub at a port where nobody listens, and no variable that says so; the hub's library must
    not try again."""
    import datasets

    for place in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    wait = "huggingface_hub.utils._http.time.sleep"
    monkeypatch.setattr(wait, lambda seconds: pytest.fail("the hub's library tries again"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_without_a_network_a_model_is_refused_at_once(no_network):
    said = refusal("some/model")
    assert "is not in the local cache, and 127.0.0.1:9 cannot be reached (Connection ref" in said


def test_an_answer_of_any_kind_is_a_network(no_network, monkeypatch):
    class Busy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(503)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert files.hub_reachable() is None
    server.server_close()
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert files.hub_reachable() == "TRANSFORMERS_OFFLINE is set"


def test_without_a_network_rows_are_refused_at_once(no_network, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    words = "cannot load some/set from .* \\(127.0.0.1:9 cannot be reached .* without a network set"
    with pytest.raises(SkillStackError, match=words):
        hub.hub_rows("some/set", None, "train", ["text"])
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_rows_in_the_cache_of_datasets_open_without_a_network(no_network, monkeypatch, tmp_path):
    import datasets
    from datasets.arrow_writer import ArrowWriter

    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    folder = tmp_path / "some___set" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    columns = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    features = datasets.Features(columns)
    with ArrowWriter(path=str(folder / "set-train.arrow"), features=features) as writer:
        writer.write({"text": "fine", "label": 1})
        rows, size = writer.finalize()
    split = {"name": "train", "num_bytes": size, "num_examples": rows, "dataset_name": "set"}
    names = {"builder_name": "parquet", "dataset_name": "set", "config_name": "default"}
    info = datasets.DatasetInfo(features=features, version="0.0.0", splits=[split], **names)
    info.write_to_directory(str(folder))
    found = hub.hub_rows("some/set", None, "train", ["text", "label"], by_name="label")
    assert found.to_dict("records") == [{"text": "fine", "label": "yes"}]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(model_dirs, tmp_path, monkeypatch) -> Path:
    """The folder of some/model in the hub library's cache, laid out as that does it."""
    place = tmp_path / "hub" / "models--some--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    folder, blobs = place / "snapshots" / COMMIT, place / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for file in model_dirs["bert"].iterdir():
        shutil.copy(file, blobs / file.name)
        (folder / file.name).symlink_to(blobs / file.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def test_a_model_in_the_cache_opens_without_a_network(cached, no_network):
    backbone = load_backbone("some/model", device="cpu")
    assert (backbone.name, backbone.revision, backbone.folder) == ("some/model", COMMIT, cached)
    (cached / "model.safetensors").unlink()  # never fetched, or interrupted
    assert "model.safetensors is missing" in (said := refusal("some/model"))
    assert "127.0.0.1:9 cannot be reached" in said


def test_only_what_is_needed_is_fetched(cached, answering):
    answering[0]["some/model"] = cached
    load_backbone("some/model", device="cpu")
    config, *patterns = answering[1]
    assert config == "config.json"
    fetched = {*patterns}
    kept = "model.safetensors tokenizer.json tokenizer_config.json merges.txt vocab.txt spm.model"
    kept += " special_tokens_map.json model.safetensors.index.json model-00001-of-00002.safetensors"
    left = "pytorch_model.bin original/model.safetensors consolidated.safetensors model.onnx README"
    match = huggingface_hub.utils.filter_repo_objects
    assert [*match(kept.split(), allow_patterns=fetched)] == kept.split()
    assert [*match(left.split(), allow_patterns=fetched)] == []


# ---------------------------------------------------------------------- the same model elsewhere


def test_a_stack_opens_wherever_the_same_model_lies(
    cached, model_dirs, stream, config, tmp_path, monkeypatch
):
    moved = shutil.copytree(model_dirs["bert"], tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    names = [str(model_dirs["bert"]), f"{moved}/", "./elsewhere", "some/model"]
    backbones = [load_backbone(name, device="cpu") for name in names]
    for i, ours in enumerate(backbones):
        stack = SkillStack(ours)
        stack.grow(stream[0], config)
        folder = stack.save_pretrained(tmp_path / f"stack{i}")
        for theirs in backbones:
            assert len(SkillStack.from_pretrained(folder, theirs)) == 1
        for file in ("tokenizer.json", "model.safetensors"):
            other = shutil.copytree(model_dirs["bert"], tmp_path / f"{i}{file}")
            if file == "tokenizer.json":
                text = (other / file).read_text().replace('"of"', '"fo"')
                (other / file).write_text(text)
            else:
                weights = load_file(other / file)
                weights[WEIGHT][0, 0] += 1
                save_file(weights, other / file, {"format": "pt"})
            theirs = load_backbone(str(other), device="cpu")
            with pytest.raises(SkillStackError, match="was made with backbone revision"):
                SkillStack.from_pretrained(folder, theirs)


def test_a_large_file_is_hashed_once_until_it_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "LARGE", 10)
    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path / "cache"))
    read, whole = [], files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: read.append(path) or whole(path))
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_text("x" * 10)
    small.write_text("x" * 9)
    assert files.kept_sha256(large) == files.kept_sha256(large) == whole(large)
    assert files.kept_sha256(small) == files.kept_sha256(small) == whole(small)
    assert read == [large, small, small]
    large.write_text("y" * 11)
    assert files.kept_sha256(large) == whole(large)
    with pytest.raises(SkillStackError, match="gone is missing"):
        files.kept_sha256(tmp_path / "gone")
    (tmp_path / "cache").rename(tmp_path / "old")
    (tmp_path / "cache").touch()  # a cache that cannot be written
    assert files.kept_sha256(large) == whole(large)


# ---------------------------------------------------------------------- tokens


def test_platform_token_is_used_and_never_printed(monkeypatch, capsys):
    import sys
    import types

    colab = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=lambda name: "hf_secret" if name else None)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    loading._use_platform_token()
    import os

    assert os.environ.pop("HF_TOKEN") == "hf_secret"
    assert "hf_secret" not in "".join(capsys.readouterr())
