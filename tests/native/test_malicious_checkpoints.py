"""Every folder of the corpus gets its error: soon, in little memory, and with nothing of it mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import malicious_checkpoints as corpus
import pytest

from firstlight.domain.errors import FirstlightError
from native_loader import begin_load, verify


def test_the_folder_that_all_cases_start_from_is_faultless(tmp_path: Path) -> None:
    corpus.write_folder(tmp_path / "c")
    verify(tmp_path / "c")


def test_cases_are_told_apart_by_their_names() -> None:
    assert len({case.name for case in corpus.CASES}) == len(corpus.CASES)


@pytest.mark.parametrize("case", corpus.CASES, ids=lambda case: case.name)
def test_each_gets_its_error(tmp_path: Path, case: corpus.Case) -> None:
    case.build(tmp_path / "c")
    with pytest.raises(FirstlightError) as caught:
        verify(tmp_path / "c")
    assert (caught.value.code, getattr(caught.value, "rule", None)) == (case.code, case.rule)
    assert len(caught.value.message) < 1000, "no message is as long as the attacker likes"


def test_more_than_the_machine_has_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    corpus.TOO_LARGE.build(tmp_path / "c")
    with pytest.raises(FirstlightError) as caught:
        begin_load(tmp_path / "c")
    assert caught.value.code == corpus.TOO_LARGE.code


WATCHED = """
import json, resource, sys, time
from pathlib import Path
from firstlight.domain.errors import FirstlightError
from native_loader import verify

for name in json.loads(sys.argv[2]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    try:
        verify(Path(sys.argv[1]) / name)
        outcome = "accepted"
    except FirstlightError as error:
        outcome = error.code
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    mapped = sys.argv[1] in Path("/proc/self/maps").read_text()
    opened = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    held = [path for path in opened if path.startswith(sys.argv[1])]
    print(json.dumps([name, outcome, time.process_time() - began, grown, mapped, held]), flush=True)
"""


def test_none_hangs_hoards_maps_or_holds(tmp_path: Path) -> None:
    """In a process of its own, so that its memory and its time can be told."""
    for index, case in enumerate(corpus.CASES):
        case.build(tmp_path / f"{index}")
    names = [str(index) for index in range(len(corpus.CASES))]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path), json.dumps(names)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(corpus.CASES)
    for (name, outcome, cpu_s, grown_kib, mapped, held), case in zip(reports, corpus.CASES, strict=True):
        manifest = tmp_path / name / "manifest.json"
        size_kib = manifest.stat().st_size >> 10 if manifest.is_file() else 0
        assert outcome == case.code, case.name
        assert cpu_s < 5, case.name
        # A text of n bytes may take some thirty times that as objects; a lie about sizes takes nothing.
        assert grown_kib < 30 * min(size_kib, 64 << 10) + (8 << 10), case.name
        assert not mapped and not held, case.name
