"""The examples of the README and of the users' guide run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import native_loader

README = Path(native_loader.__file__).with_name("README.md")
GUIDE = README.parents[1] / "docs" / "users" / "loader.md"


def run(program: str, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    run(
        example.group(1) + "\nassert all(torch.equal(state[n], t) for n, t in other.state_dict().items())",
        tmp_path,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["my-checkpoint"]


def test_the_examples_of_the_guide_run_one_after_the_other(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(examples) > 5
    run("\n".join(examples), tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"from-module", "from-state-dict", "by-hand"}


def test_the_guide_names_every_rule_that_there_is() -> None:
    """And no other: each rule that the code can give stands in the table."""
    told = set(re.findall(r"`([a-z_]+)`", GUIDE.read_text().split("The rules of `ManifestInvalid`")[1]))
    source = "".join(path.read_text() for path in README.parent.glob("*.py"))
    given = set(re.findall(r'fail\(\s*"([a-z_]+)"', source)) | set(re.findall(r'rule="([a-z_]+)"', source))
    assert given <= told
