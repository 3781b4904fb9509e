"""The public face: what importing costs, and what a wheel holds."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import skillstack_helpers as ss

IMPORT = """
import json, sys, time
start = time.perf_counter()
import skillstack_helpers as ss
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "pandas", "sklearn") if name in sys.modules]
line = ""
try:
    ss.RunConfig(preset="hrd8")
except ss.SkillStackError as error:
    line = str(error)
print(json.dumps([seconds, heavy, line, "torch" in sys.modules, "sklearn" in sys.modules]))
"""


def test_importing_is_light_and_a_mistyped_preset_is_answered_without_torch():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, cwd=ROOT)
    seconds, heavy, line, torch, sklearn = json.loads(done.stdout)
    assert seconds < 0.3 and heavy == []
    assert line == "unknown preset 'hrd8' (did you mean 'hard8'?)" and not torch and not sklearn


def test_every_public_name_is_there():
    for name in ss.__all__:
        assert getattr(ss, name) is not None and name in dir(ss)
    with pytest.raises(AttributeError, match="no attribute 'SkilStack'"):
        _ = ss.SkilStack


def test_a_wheel_holds_the_task_data_and_the_published_numbers(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "skillstack_helpers", source / "skillstack_helpers")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--wheel-dir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True)
    assert not built.returncode, built.stderr.decode()[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("tasks.toml", "published/skillstack_new.csv", "py.typed", "lab/runs.py"):
        assert f"skillstack_helpers/{name}" in names
    assert "skillstack_helpers/routers/hybrid.py" in names


@pytest.mark.parametrize("page", ["README.md", "docs/your_own_tasks.md"])
def test_a_pages_sample_prints_what_it_says(page, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    expected = [line[2:] for line in code.splitlines() if line.startswith("# ")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == expected, done.stderr[-2000:]
