"""``make faults``: the whole campaign, which goes on where it was stopped, and its table.

What came of each case is a line of ``results.jsonl`` in the campaign's folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "results"))

import corruption
import disks
import kills
import pandas as pd
import races
import specimen
from inputs import BAD
from report.pages import markdown_table
from tqdm import tqdm

GOOD = ("named", "identical", "other (signed)", "whole", "leftover", "one line")
TRIALS, KILLS, RACED = 8, 10, 120  # of each work; of each notebook; frames appended at once
Todo = tuple[str, Callable[[], list[tuple[str, str]]]]


def todo(root: Path) -> Iterator[Todo]:
    """Every case by its key, and what runs it: a verdict or more, each with what was said."""
    whole: dict = {}

    def corrupted(case):
        whole.update(whole or corruption.honest(root))
        return [corruption.run(case, root, whole)]

    for case in corruption.cases(root):
        yield case.key, lambda case=case: corrupted(case)
    for name in kills.works(root):
        for seed in range(TRIALS):
            yield f"kill -9/{name}/{seed}", lambda n=name, s=seed: kills.trial(n, root, s)
    for name in disks.works(root):
        for kind in disks.ERRORS:
            yield f"disk/{kind}/{name}", lambda n=name, k=kind: disks.run(n, root, k)
    yield "races/a stack and a router/0", lambda: races.run(root, RACED)
    for name in kills.NOTEBOOKS:
        yield f"kill -9/{name}/0", lambda n=name: kills.notebook_trial(n, root, KILLS, 0)


def table(results: Path) -> pd.DataFrame:
    """Campaign and kind against verdict: how many."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    rows = []
    for line in lines:
        campaign, *where = line["key"].split("/")
        kind = where[-2] if campaign == "corruption" else where[0]
        rows += [(campaign, kind, verdict) for verdict, _ in line["verdicts"]]
    found = pd.DataFrame(rows, columns=["campaign", "what", "verdict"])
    counts = found.value_counts().unstack("verdict", fill_value=0)
    order = [v for v in GOOD if v in counts] + [v for v in counts if v not in GOOD]
    counts = counts[order].sort_index()
    counts.insert(0, "cases", counts.sum(axis=1))
    total = counts.groupby("campaign").sum()
    total.index = pd.MultiIndex.from_product([total.index, ["(all)"]])
    return pd.concat([counts, total]).sort_index(kind="stable").rename_axis(["campaign", "what"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument(
        "--place", type=Path, default=Path("build/faults"), help="default %(default)s"
    )
    parser.add_argument("--only", default="", help="cases whose key begins like this")
    parser.add_argument("--write", type=Path, help="a page whose table is made anew")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    root = options.place.resolve()
    results = root / "results.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "built").exists():
        specimen.build(root)
        (root / "built").touch()
    tqdm.monitor_interval = 0  # no thread that holds a lock while a case forks
    done = set()
    if results.exists():
        done = {json.loads(line)["key"] for line in results.read_text().splitlines()}
    left = [(key, run) for key, run in todo(root) if key not in done]
    left = [(key, run) for key, run in left if key.startswith(options.only)]
    with results.open("a") as stream:
        for key, run in tqdm(left, "faults", smoothing=0.05, mininterval=5):
            start = time.monotonic()
            line = {"key": key, "verdicts": run(), "seconds": round(time.monotonic() - start, 2)}
            stream.write(json.dumps(line) + "\n")
            stream.flush()
    shown = markdown_table(table(results).reset_index().set_index("campaign"))
    print(shown)
    if options.write:
        page = options.write.read_text()
        facts = f"{len(BAD):,} bad inputs in {len({bad.where for bad in BAD})} groups"
        block = f"<!-- faults -->\n\n{facts}.\n\n{shown}\n\n<!-- end -->"
        options.write.write_text(re.sub("<!-- faults -->.*<!-- end -->", block, page, flags=re.S))
    bad = 0
    for line in map(json.loads, results.read_text().splitlines()):
        for verdict, why in line["verdicts"]:
            if verdict not in GOOD:
                bad += 1
                print(line["key"], verdict, why[:300])
    return bad > 0


if __name__ == "__main__":
    raise SystemExit(main())
