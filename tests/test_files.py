"""Writing aside, seals, and what a file from anywhere may be."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from skillstack_helpers import SkillStackError, files
from skillstack_helpers.files import (
    NO_SEAL,
    aside,
    check_fields,
    list_of,
    metadata,
    number,
    or_none,
    read_bytes,
    read_json,
    sealed,
    sealed_json,
    sweep,
    whole,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(), JSON, max_size=6), st.data())
def test_what_is_sealed_is_read_back_and_no_byte_can_change(tmp_path_factory, fields, data):
    fields.pop("seal", None)
    path = tmp_path_factory.mktemp("sealed") / "facts.json"
    path.write_bytes(content := sealed_json(fields))
    assert read_json(path) == json.loads(json.dumps(fields))
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
    try:
        said = read_json(path)
    except SkillStackError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:  # the key itself was hit: then nothing else was
        assert content.index(b'"seal"') <= place <= content.index(b'"seal"') + 9
        assert {k: v for k, v in said.items() if k in fields} == json.loads(json.dumps(fields))


@settings(max_examples=60)
@given(st.binary(max_size=400))
def test_any_bytes_are_facts_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    for read in (read_json, lambda path: metadata(path, read_bytes(path), "router", "router")):
        try:
            read(path)
        except SkillStackError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_a_safetensors_file_is_sealed_by_its_first_key(tmp_path):
    facts = json.dumps({"seal": NO_SEAL, "note": f'"seal": "{NO_SEAL}"'})
    content = sealed(safetensors.numpy.save({"a": np.arange(3.0)}, {"router": facts}))
    path = tmp_path / "router"
    path.write_bytes(content)
    assert metadata(path, content, "router", "router") == {"note": f'"seal": "{NO_SEAL}"'}
    assert safetensors.numpy.load(content)["a"].tolist() == [0, 1, 2]
    changed = content.replace(np.float64(2).tobytes(), np.float64(4).tobytes())
    with pytest.raises(SkillStackError, match="router was changed or cut off"):
        metadata(path, changed, "router", "router")


def test_only_plain_files_of_a_sensible_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        for read in (read_bytes, read_json, files.file_sha256):
            with pytest.raises(SkillStackError, match=f"{name} is not a plain file"):
                read(tmp_path / name)
    (tmp_path / "long").write_bytes(b"[" + b" " * 50)
    monkeypatch.setattr(files, "LONGEST_JSON", 40)
    with pytest.raises(SkillStackError, match="long has 51 bytes"):
        read_json(tmp_path / "long")
    with pytest.raises(SkillStackError, match="cannot be a file's name"):
        read_bytes(Path("a\0b"))


def test_a_large_file_of_another_digest_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 10)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "read", None)
    with pytest.raises(SkillStackError, match="SHA-256 differs"):
        read_bytes(path, "0" * 64)
    assert read_bytes(path, files.file_sha256(path)) == b"x" * 100


def test_the_sweep_takes_what_dead_processes_left_and_nothing_else(tmp_path):
    code = (
        "import sys; from pathlib import Path; from skillstack_helpers.files import aside\n"
        "aside(Path(sys.argv[1])).write_text('half'); aside(Path(sys.argv[1])).mkdir()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(list(tmp_path.iterdir())) == 2
    mine = aside(tmp_path)
    other = mine.with_name(mine.name.replace(mine.name.split("-")[1], "0" * 8))
    kept = [mine, other, tmp_path / ".tmp-precious", tmp_path / ".skillstack-notes.tmp"]
    below = aside(tmp_path / "project")
    below.parent.mkdir()
    for path in (*kept, below):
        path.write_text("")
    sweep(tmp_path)
    assert {*tmp_path.iterdir()} == {*kept, below.parent} and below.exists()
    sweep(tmp_path, locked=True)  # who has the folder's lock knows that nobody writes
    assert {*tmp_path.iterdir()} == {*kept[2:], below.parent} and below.exists()


def test_a_drive_without_locks_is_written_to_and_told(tmp_path, monkeypatch, capsys):
    import filelock

    def refuse(number):
        def acquire(self, *_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)

    refuse(errno.ENOTSUP)
    with files.locked(tmp_path):
        pass
    assert "cannot be locked (Operation not supported)" in capsys.readouterr().out
    refuse(errno.EROFS)
    with pytest.raises(OSError, match="Read-only"), files.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (whole(1, 5), [1, 5], [0, 6, True, 2.0, "1", None, float("nan")]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 1.1, True, float("nan"), float("inf"), "0"]),
        (or_none(whole(1, 5)), [None, 2], [0, ""]),
        (list_of(number(0, 1), 1), [[0], [0.5, 1]], [[], [2], 0.5, "1", {"a": 1}, None]),
    ],
)
def test_rules(rule, good, bad):
    for value in good:
        check_fields("file", {"key": value}, {"key": rule})
    for value in bad:
        with pytest.raises(SkillStackError, match="^file: 'key' is .*, not ") as caught:
            check_fields("file", {"key": value}, {"key": rule})
        assert rule.words in str(caught.value)
    check_fields("file", {}, {"key": rule}, ("key",))
    with pytest.raises(SkillStackError, match="file has no 'key'"):
        check_fields("file", {}, {"key": rule})
