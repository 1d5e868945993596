"""The fuzz targets, each for a few seconds from a corpus of valid seeds. By hand, and for longer:

python tests/fuzz/test_fuzz_formats.py manifest /tmp/corpus
python tests/fuzz/fuzz_manifest.py /tmp/corpus -max_total_time=3600
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from native_loader import CheckpointWriter, save_checkpoint
from native_loader.manifest import DIGEST_KEY

pytest.importorskip("atheris", reason="atheris has wheels for x86-64 only")

SECONDS = 5
FEWEST_RUNS = 1000
HERE = Path(__file__).parent


def manifest_seeds() -> list[bytes]:
    """Bodies of manifests as the writer makes them: views, ties, partitions, every kind of entry."""
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    states = [
        {"a": torch.ones(3), "b": base, "rows": base[1:3], "columns": base[:, 2], "tied": base},
        {"bool": torch.tensor(True), "none": torch.empty(0, 4), "f8": torch.ones(7).to(torch.float8_e4m3fn)},
        {"packed": torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)},
    ]
    seeds = []
    with tempfile.TemporaryDirectory() as directory:
        for index, state in enumerate(states):
            save_checkpoint(state, Path(directory) / f"{index}", files={"config.json": b"{}"})
        with CheckpointWriter(
            Path(directory) / "parts", source="s", revision="r", partition_count=3, chunk_bytes=4096
        ) as writer:
            for index in range(3):
                writer.add_tensor(f"layers.{index}", torch.ones(3000), partition=index)
            writer.commit()
        for path in sorted(Path(directory).glob("*/manifest.json")):
            seeds.append(path.read_bytes().split(DIGEST_KEY)[0])
    return seeds


def safetensors_seeds() -> list[bytes]:
    files = [
        save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bool), "none": torch.empty(0)}),
        save({"h": torch.ones(5).bfloat16()}, metadata={"format": "pt"}),
        save({}),
    ]
    return [*files, *(file[8 : 8 + int.from_bytes(file[:8], "little")] for file in files)]


SEEDS: dict[str, Callable[[], list[bytes]]] = {"manifest": manifest_seeds, "safetensors": safetensors_seeds}


def write_seeds(target: str, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(SEEDS[target]()):
        (corpus / f"seed-{index}").write_bytes(seed)


def fuzz(
    directory: Path, program: str, *options: str, seconds: int = SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run from a shell of its own: a program inherits the peak memory of the process that made way for it.

    libFuzzer would take that of this test process, two gigabytes after other tests, for the parser's.
    """
    program_line = [sys.executable, program, "corpus", f"-max_total_time={seconds}", "-timeout=5", *options]
    return subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *program_line],
        cwd=directory,
        env=dict(os.environ, PYTHONPATH=str(HERE)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("target", SEEDS)
def test_no_input_surprises_the_parser(tmp_path: Path, target: str) -> None:
    write_seeds(target, tmp_path / "corpus")
    done = fuzz(tmp_path, str(HERE / f"fuzz_{target}.py"), "-rss_limit_mb=2048", "-print_final_stats=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("stat::")]
    figures = dict(line.removeprefix("stat::").split(":") for line in lines)
    assert int(figures["number_of_executed_units"]) > FEWEST_RUNS
    assert int(figures["new_units_added"]) > 10, "it found nothing new: is the code instrumented?"


SABOTAGE = {
    # One rare answer, deep inside of the laws, is given with another error.
    "manifest": """
from native_loader import manifest_laws
def fail(rule, message, **fields):
    raise KeyError("surprise") if rule == "gap" else ManifestInvalid(message, rule=rule)
manifest_laws.fail = fail
""",
    # Tensors that leave a hole or overlap are believed.
    "safetensors": """
safetensors_header._check_cover = lambda tensors, **places: None
""",
}


@pytest.mark.parametrize("target", SEEDS)
def test_a_parser_that_errs_is_found_out(tmp_path: Path, target: str) -> None:
    """The same run, with a fault put into the parser."""
    program = (HERE / f"fuzz_{target}.py").read_text()
    entry = 'if __name__ == "__main__":'
    assert entry in program
    (tmp_path / "target.py").write_text(program.replace(entry, SABOTAGE[target] + entry))
    write_seeds(target, tmp_path / "corpus")
    # It ends at the first find; how long that takes is chance, a few seconds as a rule.
    done = fuzz(tmp_path, "target.py", seconds=90)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "KeyError: 'surprise'" in said or "AssertionError" in said or "SafetensorError" in said, said[
        -2000:
    ]


if __name__ == "__main__":
    write_seeds(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps(sorted(path.name for path in Path(sys.argv[2]).iterdir())))
