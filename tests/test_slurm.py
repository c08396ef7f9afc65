"""The files of slurm/, on a Slurm that is started for the test, where it is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "slurm").glob("*.sbatch"))
PROGRAMS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_batch_file_is_a_script_with_its_options_at_the_head(file: Path) -> None:
    """sbatch refuses a file without `#!`, and passes over options after the first command."""
    lines = file.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    head = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert len([line for line in lines[:head] if line.startswith("#SBATCH --")]) > 5
    assert not [line for line in lines[head:] if line.startswith("#SBATCH")]
    assert subprocess.run(["bash", "-n", file], capture_output=True, text=True).stderr == ""


@pytest.mark.long
@pytest.mark.cluster
def test_jobs_are_saved_put_back_and_finished() -> None:
    needed = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
    missing = [name for name in needed if shutil.which(name, path=PROGRAMS) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    environment = os.environ | {"PYTHON": sys.executable}
    process = subprocess.run(
        ["bash", ROOT / "tests/slurm.sh"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    print(process.stdout, process.stderr)
    assert process.returncode == 0, process.stdout[-4000:]
