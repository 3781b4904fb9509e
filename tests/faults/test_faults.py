"""A small part of the campaign, with fixed seeds; all of it: ``make faults``."""

import random
from collections import defaultdict

import corruption
import disks
import kills
import pytest
import races
import specimen

OF_A_KIND = 5  # corruptions of each kind


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return specimen.build(tmp_path_factory.mktemp("faults"))


def test_what_is_damaged_says_so_or_says_the_same(root):
    kinds = defaultdict(list)
    for case in corruption.cases(root):
        kinds[case.kind].append(case)
    rng, whole = random.Random(22), corruption.honest(root)
    for kind, cases in kinds.items():
        for case in rng.sample(cases, OF_A_KIND):
            verdict, why = corruption.run(case, root, whole)
            expected = {"named", "identical"} | ({"other (signed)"} if kind == "signed" else set())
            assert verdict in expected, (case.key, verdict, why)
            if kind == "link":
                assert verdict == "identical"
            if kind in ("flip", "truncate", "delete", "pipe", "device", "folder", "huge"):
                assert verdict == "named" or "seal" in why or kind == "flip", case.key


def test_every_other_answer_would_be_seen(root, monkeypatch):
    """The judge itself: without digests there are other answers, and it calls them silent."""
    monkeypatch.setattr("skillstack_helpers.files.check_seal", lambda path, stream: None)
    whole, found = corruption.honest(root), set()
    cases = [c for c in corruption.cases(root) if c.kind == "flip" and "hybrid_chain" in c.part]
    cases += [c for c in corruption.cases(root) if c.kind == "flip" and c.part == "masks"]
    for case in cases:
        found.add(corruption.run(case, root, whole)[0])
    assert "SILENT" in found


@pytest.mark.parametrize("seed", [0])
def test_killed_nothing_is_lost(root, seed):
    for name in kills.works(root):
        for verdict, why in kills.trial(name, root, seed):
            assert verdict in ("whole", "leftover"), (name, verdict, why)


@pytest.mark.parametrize("kind", disks.ERRORS)
def test_a_disk_that_refuses_is_one_line(root, kind):
    for name in disks.works(root):
        for verdict, why in disks.run(
            name, root, kind, stride=19 if name.startswith("save") else 7
        ):
            assert verdict == "one line", (name, verdict, why)


def test_many_writers_and_readers_lose_nothing(root):
    verdicts = races.run(root, 12)
    assert len(verdicts) > 12 and {verdict for verdict, _ in verdicts} == {"whole"}, verdicts
