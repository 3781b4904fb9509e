"""Sharing a stack, against a stand-in for the hub on the disk."""

import contextlib
import hashlib
import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from conftest import edit_json
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from skillstack_helpers import SkillStackError, compression, frames, sharing
from skillstack_helpers.files import digest, metadata
from skillstack_helpers.heads import instruction
from skillstack_helpers.loading import load_backbone
from skillstack_helpers.stack import SkillStack

TOKEN = "hf_secretsecretsecret"


class Hub:
    """Repositories as lists of commits (path -> bytes), snapshots as the hub's cache lays them."""

    def __init__(self, place: Path):
        self.place, self.commits, self.private, self.asked = place, {}, {}, []

    def create_repo(self, api, repo_id, *, private=None, exist_ok=False):
        assert api.token == TOKEN and exist_ok
        self.commits.setdefault(repo_id, [{}])
        self.private.setdefault(repo_id, bool(private))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def model_info(self, api, repo_id, revision=None):
        return SimpleNamespace(private=self.private[repo_id], card_data=None)

    def list_repo_files(self, api, repo_id):
        return list(self.commits[repo_id][-1])

    def create_commit(self, api, repo_id, operations, *, commit_message):
        files = dict(self.commits[repo_id][-1])
        for operation in operations:
            with operation.as_file() as stream:
                files[operation.path_in_repo] = stream.read()
        self.commits[repo_id].append(files)

    def hf_hub_download(self, api, repo_id, filename):
        return str(Path(self.snapshot_download(repo_id)) / filename)

    def snapshot_download(self, repo_id, revision=None, **how):
        self.asked.append((repo_id, revision, how))
        if repo_id not in self.commits:
            raise FileNotFoundError(f"{repo_id} is not in the cache")
        number = int(revision or len(self.commits[repo_id]) - 1)
        root = self.place / f"models--{repo_id.replace('/', '--')}"
        for name, content in self.commits[repo_id][number].items():
            blob = root / "blobs" / hashlib.sha256(content).hexdigest()
            link = root / "snapshots" / str(number) / name
            for file in (blob, link):
                file.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            up = "../" * len(link.relative_to(root).parent.parts)
            if not link.is_symlink():
                link.symlink_to(f"{up}blobs/{blob.name}")
        return str(root / "snapshots" / str(number))

    def files(self, repo_id="user/name"):
        return self.commits[repo_id][-1]

    def card(self, repo_id="user/name"):
        return ModelCard(self.files(repo_id)["README.md"].decode())


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "model_info", "list_repo_files", "create_commit"):
        method = getattr(hub, name)
        monkeypatch.setattr(HfApi, name, lambda *a, _method=method, **k: _method(*a, **k))
    monkeypatch.setattr(HfApi, "hf_hub_download", lambda *a, **k: hub.hf_hub_download(*a, **k))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr(sharing, "hub_reachable", lambda: None)
    return hub


@pytest.fixture
def grown(saved, tmp_path, backbone):
    """Three frames and two routers in a folder of the test's own."""
    folder = shutil.copytree(saved, tmp_path / "stack")
    return SkillStack.from_pretrained(folder, backbone)


def grow(folder, stream, config, prompt=False):
    stack = SkillStack(load_backbone(str(folder), device="cpu"))
    for data in stream:
        stack.grow(data, config, instruction(data.task) if prompt else None)
    return stack


# ------------------------------------------------------------------ there and back


def test_pushed_and_opened_through_links(hub, grown, stream, backbone):
    address = grown.push_to_hub("user/name")
    assert address == "https://huggingface.co/user/name" and len(hub.commits["user/name"]) == 2
    found = SkillStack.from_pretrained("user/name", backbone)
    assert all(path.is_symlink() for path in found.frames[0].folder.iterdir())
    assert [f.name for f in found.frames] == [f.name for f in grown.frames]
    for data in stream:
        logits = found.evaluate(data).logits
        assert digest(logits) == grown[data.name].metrics["logits_sha256"]
    found.verify()
    found.save_pretrained(hub.place / "copy")
    assert len(SkillStack.from_pretrained(hub.place / "copy", backbone)) == 3


def test_only_what_the_stack_lists_is_uploaded(hub, grown, monkeypatch):
    # Not written anew, which another version of PEFT would do differently.
    monkeypatch.setattr(frames, "_write_tensors", None)
    folder = grown.frames[0].folder.parents[1]
    for name in ("run.json", "texts.parquet", "picture.png", "README.md", "routers/notes.txt"):
        (folder / name).write_text("private")
    for name in (".DS_Store", "rows.csv"):
        (folder / "frames" / "imdb" / name).write_text("private")
    grown.push_to_hub("user/name")
    listed = {f"frames/{f.name}/{name}" for f in grown.frames for name in (*f.sha256, "frame.json")}
    routers = {f"routers/{name}/router.safetensors" for name in ("hybrid_chain", "centroid")}
    assert set(hub.files()) == {"README.md", "stack.json"} | listed | routers
    assert not any(content == b"private" for content in hub.files().values())
    for name in listed:
        assert hub.files()[name] == (folder / name).read_bytes()


def test_a_stack_in_memory_is_pushed_too(hub, grown, stream, config, backbone):
    import dataclasses

    task = dataclasses.replace(stream[0].task, name="fourth")
    grown.frames.pop()  # the last saved one is left out, one more is only in memory
    grown.grow(dataclasses.replace(stream[0], task=task), grown_config(grown))
    grown.push_to_hub("user/name")
    assert grown.frames[-1].folder is None  # sharing does not save
    found = SkillStack.from_pretrained("user/name", backbone)
    assert [f.name for f in found.frames] == ["imdb", "agnews", "fourth"]


def grown_config(stack):
    from skillstack_helpers.config import TrainingConfig

    return TrainingConfig(epochs=1, lr=5e-3, batch_size=4, lora_r=4, max_length=32, seed=0)


def test_revision_and_token_reach_the_hub(hub, grown, backbone):
    two = grown.copy(grown.frames[:2])
    two.push_to_hub("user/name")
    grown.push_to_hub("user/name")
    assert len(SkillStack.from_pretrained("user/name", backbone)) == 3
    assert len(SkillStack.from_pretrained("user/name", backbone, revision="1", token="t")) == 2
    repo_id, revision, how = hub.asked[-1]
    assert (repo_id, revision, how["token"]) == ("user/name", "1", "t")
    patterns = how["allow_patterns"]
    assert "stack.json" in patterns and {p.rsplit(".")[-1] for p in patterns} == {
        "json",
        "safetensors",
    }


def test_a_local_folder_of_that_name_comes_first(hub, grown, backbone, monkeypatch, tmp_path):
    folder = grown.frames[0].folder.parents[1]
    shutil.copytree(folder, tmp_path / "user" / "name")
    monkeypatch.chdir(tmp_path)
    assert len(SkillStack.from_pretrained("user/name", backbone)) == 3
    assert not hub.asked
    for path in ("./user/other", "/user/other", Path("user/other"), "other"):
        with pytest.raises(SkillStackError, match="stack.json is missing"):
            SkillStack.from_pretrained(path, backbone)
    assert not hub.asked


def test_without_the_hub_the_cache_is_read(hub, grown, backbone, monkeypatch):
    grown.push_to_hub("user/name")
    monkeypatch.setattr(sharing, "hub_reachable", lambda: "HF_HUB_OFFLINE is set")
    assert len(SkillStack.from_pretrained("user/name", backbone)) == 3
    assert hub.asked[-1][2]["local_files_only"] is True
    with pytest.raises(SkillStackError, match="no stack 'user/other'.*HF_HUB_OFFLINE is set"):
        SkillStack.from_pretrained("user/other", backbone)


def test_a_link_to_other_bytes_is_refused(hub, grown, backbone):
    grown.push_to_hub("user/name")
    link = Path(hub.snapshot_download("user/name")) / "frames/agnews/head.safetensors"
    other = link.parent.parent / "imdb" / "head.safetensors"
    link.unlink()
    link.symlink_to(other.resolve())
    with pytest.raises(SkillStackError, match="agnews/head.safetensors was changed or cut off"):
        SkillStack.from_pretrained("user/name", backbone).verify()


# ------------------------------------------------------------------ what is there already


def test_pushing_a_grown_stack_renews_the_card(hub, grown):
    grown.copy(grown.frames[:2]).push_to_hub("user/name")
    assert "| qqp |" not in hub.card().text
    grown.push_to_hub("user/name")
    assert "| qqp |" in hub.card().text


def test_a_readme_of_ones_own_stays_and_that_is_said(hub, grown, capsys):
    grown.push_to_hub("user/name")
    hub.files()["README.md"] = hub.files()["README.md"].replace(sharing.MADE.encode(), b"Mine.")
    own = hub.files()["README.md"]
    capsys.readouterr()
    grown.push_to_hub("user/name")
    assert hub.files()["README.md"] == own
    assert "README.md of user/name is your own and stays" in capsys.readouterr().out


def test_another_stack_is_never_overwritten(hub, grown, model_dirs, stream, config):
    grown.push_to_hub("user/name")
    before = dict(hub.files())
    with pytest.raises(SkillStackError, match="user/name holds another stack"):
        grow(model_dirs["bert"], stream[:1], config).push_to_hub("user/name")
    with pytest.raises(SkillStackError, match="user/name holds another stack"):
        grown.copy(grown.frames[:2]).push_to_hub("user/name")
    assert hub.files() == before


def test_private_is_private(hub, grown):
    grown.push_to_hub("user/hidden", private=True)
    assert hub.private["user/hidden"] is True
    grown.push_to_hub("user/name")
    with pytest.raises(SkillStackError, match="user/name is there and public"):
        grown.push_to_hub("user/name", private=True)
    assert len(hub.commits["user/name"]) == 2


# ------------------------------------------------------------------ routers


def test_words_in_a_routers_file_are_told(hub, grown, capsys):
    grown.push_to_hub("user/name")
    said = capsys.readouterr().out
    content = hub.files()["routers/hybrid_chain/router.safetensors"]
    held = metadata(Path("router"), content, "router", "router")["state"]["vectorizers_"]
    assert min(held) > 0
    count = f"{sum(held):,} words and letter sequences"
    assert f"router hybrid_chain: its file shows of {count}" in said
    assert count in hub.card().text
    assert "router centroid" not in said


def test_a_damaged_router_is_named_before_anything_is_sent(hub, grown):
    path = grown.frames[0].folder.parents[1] / "routers" / "centroid" / "router.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SkillStackError, match="centroid/router.safetensors was changed"):
        grown.push_to_hub("user/name")
    assert not hub.commits


# ------------------------------------------------------------------ the card


def test_the_cards_header(hub, grown):
    grown.push_to_hub("user/my-stack")
    card = hub.card("user/my-stack")
    data = card.data.to_dict()
    assert data["library_name"] == "skillstack" and {"peft", "lora"} <= set(data["tags"])
    assert "base_model" not in data  # a local folder is no hub id, and the hub would refuse it
    measured = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert measured == {f.task: round(f.metrics["accuracy"], 4) for f in grown.frames}
    for frame in grown.frames:
        row = next(line for line in card.text.splitlines() if line.startswith(f"| {frame.name} "))
        assert f"{frame.metrics['accuracy']:.3f} | {frame.metrics['n']}" in row
        assert all(sharing._cell(name) in row for name in frame.label_names)


def test_no_path_of_this_machine_in_the_card_and_a_line_that_says_where(
    hub, grown, capsys, monkeypatch
):
    grown.push_to_hub("user/name")
    assert grown.backbone.name not in hub.card().content
    told = "the stack's files name folders of this machine, such as"
    assert f"{told} {grown.backbone.name}" in capsys.readouterr().out
    small = compression.drop(grown, "qqp", to="imdb")
    monkeypatch.setattr(grown.backbone, "name", "minilm")
    assert list(sharing._disclosed(grown, {})) == []
    assert list(sharing._disclosed(small, {})) == [f"{told} {grown['qqp'].folder.resolve()}"]


@pytest.mark.parametrize(
    ("name", "base_model", "licence"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", "llama3.2"),
    ],
)
def test_base_model_and_licence(hub, grown, monkeypatch, name, base_model, licence):
    def model_info(repo_id, revision=None):
        return SimpleNamespace(card_data=huggingface_hub.ModelCardData(license="llama3.2"))

    monkeypatch.setattr(grown.backbone, "name", name)
    monkeypatch.setattr(hub, "model_info", model_info)
    found = sharing._licence(grown.backbone, hub)
    data = sharing.model_card(grown, "user/name", found, {}).data.to_dict()
    assert (data["base_model"], data["license"]) == (base_model, licence)
    assert data["base_model_relation"] == "adapter"


def test_licence_of_a_local_model_with_a_card(hub, model_dirs, stream, config, tmp_path):
    folder = shutil.copytree(model_dirs["bert"], tmp_path / "mine")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://ai.google.dev\n---\n# Mine"
    )
    grow(folder, stream[:1], config).push_to_hub("user/name")
    data = hub.card().data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "gemma")
    assert "licence: gemma." in hub.card().text


def test_data_sets_of_the_hub_are_named(grown):
    import dataclasses

    first = grown.frames[0]
    hub_rows = {**first.data, "source": "hub"}
    stack = grown.copy([dataclasses.replace(first, data=hub_rows), *grown.frames[1:]])
    data = sharing.model_card(stack, "user/name", {}, {}).data
    assert data.datasets == ["stanfordnlp/imdb"]
    assert [r.dataset_type for r in data.eval_results] == ["stanfordnlp/imdb", "agnews", "qqp"]


def test_odd_label_names_stay_in_their_cell(grown):
    import dataclasses

    names = ("a|b", "<script>", "two\nlines", *(f"c{i}" for i in range(70)))
    stack = grown.copy([dataclasses.replace(grown.frames[0], label_names=names)])
    text = sharing.model_card(stack, "user/name", {}, {}).text
    (row,) = [line for line in text.splitlines() if line.startswith("| imdb |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert "73: " in row and "c60" not in row and "<script>" not in row


def test_compressed_and_dropped_frames(hub, grown):
    small = compression.int8(compression.drop(grown, "qqp", to="imdb"))
    small.push_to_hub("user/name")
    text = hub.card().text
    assert re.search(r"\| imdb \| .* before compression \|", text)
    assert "| qqp | answered by imdb |" in text
    assert "plain PEFT" not in text and hub.card().data.eval_results is None
    found = SkillStack.from_pretrained("user/name", grown.backbone)
    assert found["qqp"].name == "imdb"


# ------------------------------------------------------------------ its code


def run_code(card, part):
    """What the code below a heading of the card leaves behind, and prints."""
    section = card.text.split(f"## {part}")[1].split("\n## ")[0]
    scope, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in re.findall(r"```python\n(.*?)```", section, re.S):
            exec(code, scope)
    return scope, printed.getvalue()


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_plain_peft_as_the_card_says(hub, model_dirs, stream, config, monkeypatch, kind):
    stack = grow(model_dirs[kind], [stream[2], stream[1]], config)
    stack.push_to_hub("user/name")
    monkeypatch.chdir(model_dirs[kind].parent)
    scope, printed = run_code(hub.card(), "One frame with plain PEFT")
    assert "skillstack_helpers" not in hub.card().text.split("plain PEFT")[1]
    text = scope["text"]
    assert "another text" in text  # qqp has two fields
    ours = stack.activate("qqp").scores([text], 32)[0]
    np.testing.assert_allclose(scope["logits"].numpy(), ours, atol=2e-5, rtol=1e-4)
    assert printed.strip() == stack.predict([text], "qqp").label_names[0]


def test_plain_peft_of_a_frame_that_writes(hub, decoders, stream, monkeypatch, tmp_path):
    from tokenizers import Tokenizer, processors

    from skillstack_helpers.config import TrainingConfig
    from skillstack_helpers.generation import generate

    config = TrainingConfig(epochs=8, lr=2e-2, batch_size=4, lora_r=4, max_length=48, seed=3)
    folder = shutil.copytree(decoders["llama"], tmp_path / "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = [("[END]", tokenizer.token_to_id("[END]"))]  # a first token, as Llama's has
    tokenizer.post_processor = processors.TemplateProcessing("[END] $A", special_tokens=start)
    tokenizer.save(str(folder / "tokenizer.json"))
    stack = grow(folder, stream[:1], config, prompt=True)
    stack.push_to_hub("user/name")
    monkeypatch.chdir(tmp_path)
    scope, printed = run_code(hub.card(), "One frame with plain PEFT")
    assert scope["ids"] == stack.activate("imdb").encode([scope["text"]], 48)[0].tolist()
    ours = generate(stack, [scope["text"]], "imdb", max_new_tokens=8)
    assert printed.strip() and printed.strip() == ours[0].strip()


def test_skillstack_as_the_card_says(hub, grown, monkeypatch):
    grown.push_to_hub("user/name")
    monkeypatch.chdir(Path(grown.backbone.name).parent)
    scope, printed = run_code(hub.card(), "With SkillStack")
    first, answer = printed.splitlines()[0], scope["stack"].answer(["a text"], scope["router"])
    assert first == str(grown.predict(["a text"], frame="imdb").label_names)
    assert len(scope["stack"]) == 3 and str(answer) in printed


# ------------------------------------------------------------------ refusals, each one line


def refused(stack, repo_id="user/name", **how):
    with pytest.raises(SkillStackError) as caught:
        stack.push_to_hub(repo_id, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("repo_id", ["a b/c", "/home/x", "a/b/c", "", "a--b", "user/"])
def test_bad_repository_names(hub, grown, repo_id):
    assert "epo" in (said := refused(grown, repo_id)) and "id" in said and "cannot push" not in said
    assert not hub.commits


def test_nothing_to_share_no_network_no_token(hub, grown, backbone, monkeypatch):
    assert "no frames yet" in refused(SkillStack(backbone))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "no token" in refused(grown)
    monkeypatch.setattr(sharing, "hub_reachable", lambda: "huggingface.co cannot be reached")
    assert refused(grown) == "cannot push user/name: huggingface.co cannot be reached"


def test_changed_frames_are_not_shared(hub, grown):
    edit_json(grown.frames[1].folder / "frame.json", lambda fields: fields.update(seconds=0))
    assert "frame.json was changed" in refused(grown)
    assert not hub.commits


@pytest.mark.parametrize(("status", "words"), [(401, "hub knows"), (403, "may not do that")])
def test_a_refused_token_is_never_shown(hub, grown, monkeypatch, status, words):
    def refuse(*_, **__):
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        raise HfHubHTTPError(f"{status} for Bearer {TOKEN}\nmore", response=response)

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    said = refused(grown)
    assert words in said and TOKEN not in said


def test_a_token_with_a_line_end_is_not_quoted(hub, grown, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Illegal header value b'Bearer hf_other\\n'")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    said = refused(grown, token="hf_other\n")
    assert "Illegal header" in said and "hf_other" not in said
