"""A sweep of two notebooks side by side against the same one after the other: wall seconds, in
turn, on a machine that does nothing else. Each job gets the cores divided by `--jobs`.

    .venv/bin/python benchmarks/two_jobs.py | tee benchmarks/two_jobs.txt
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--n-train", type=int, default=64)
parser.add_argument("--preset", default="mini4")
parser.add_argument("--repeats", type=int, default=3)
options = parser.parse_args()


def sweep(jobs: int) -> float:
    """Seconds of two runs of notebook 01, started from nothing."""
    command = [sys.executable, "-m", "skillstack_helpers.lab.sweep", "01_train_stack", "--seeds"]
    command += ["1", "2", "--models", "minilm", "--preset", options.preset, "--jobs", str(jobs)]
    command += ["-p", "n_train", str(options.n_train)]
    alone = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([*command, "--output-dir", folder], check=True, stdout=2, env=alone)
        return time.perf_counter() - start


ratios = []
for k in range(options.repeats):
    spent = {jobs: sweep(jobs) for jobs in ((1, 2), (2, 1))[k % 2]}
    ratios.append(spent[1] / spent[2])
    print(f"one after the other {spent[1]:.0f} s, side by side {spent[2]:.0f} s: {ratios[-1]:.2f}")
print(f"side by side is {np.median(ratios):.2f} times as fast ({os.cpu_count()} cores)")
