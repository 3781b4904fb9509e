"""Install what the notebooks need and this Python lacks; what is here, torch above all, stays.

The first cell of every notebook runs it where the suite is not installed. If a folder named
``skillstack_wheels`` lies below SKILLSTACK_INPUT (``/kaggle/input``), that is used instead of the
network; ``python install.py --wheels skillstack_wheels`` makes one (docs/colab_kaggle.md).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement  # comes with every Jupyter kernel

SUITE = Path(__file__).resolve().parent
INPUT = os.environ.get("SKILLSTACK_INPUT", "/kaggle/input")


def met(line: str) -> str | None:
    """``name==version`` of what is installed if it meets a requirement."""
    wanted = Requirement(line)
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return None
    return f"{wanted.name}=={found}" if wanted.specifier.contains(found, True) else None


def pip(command: str, *arguments: str) -> str:
    """What pip prints; exits with pip's last error if it fails."""
    call = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*call, *arguments], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        sys.exit(f"pip {command} failed: {(errors or [done.stderr.strip()])[-1]}")
    return done.stdout


def main(out: str | None) -> None:
    """Install, or write wheels of what would be installed to the folder `out`."""
    project = tomllib.loads((SUITE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"]
    embedded = (SUITE / "requirements-embedded.txt").read_text(encoding="utf-8").splitlines()
    embedded = [line for line in embedded if not line.startswith("#") and not met(line)]
    lacking = [line for line in needed if not met(line)]
    kept = [pin for line in needed if (pin := met(line))]
    wheels = [f for depth in range(5) for f in glob(f"{INPUT}{'/*' * depth}/skillstack_wheels")]
    source = ["--no-index", *(f"--find-links={folder}" for folder in wheels)] if wheels else []
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "held.txt")  # else the newest bitsandbytes might bring another torch
        held.write_text("\n".join(kept), encoding="utf-8")
        choice = [f"--constraint={held}", *lacking]
        if out is None and lacking:
            pip("install", *source, *choice)
        elif lacking:
            plan = json.loads(pip("install", "--dry-run", "--report=-", *choice))["install"]
            lacking = [f"{p['metadata']['name']}=={p['metadata']['version']}" for p in plan]
    if out is None and embedded:
        pip("install", "--no-deps", *source, *embedded)
    elif lacking + embedded:
        pip("wheel", "--no-deps", f"--wheel-dir={out}", *lacking, *embedded)
    print("installed:" if out is None else f"{out}:", *(lacking + embedded or ["nothing"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="install what the notebooks need, or its wheels")
    parser.add_argument("--wheels", metavar="DIR", help="write wheels of what is missing here")
    main(parser.parse_args().wheels)
