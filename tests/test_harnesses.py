"""scripts/chaos.py and scripts/fuzz.py for a few of their trials, always the same ones. By hand they run for longer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize(("script", "option", "count"), [("chaos.py", "--trials", 20), ("fuzz.py", "--inputs", 120)])
def test_nothing_is_lost_and_nothing_breaks(script: str, option: str, count: int) -> None:
    command = [sys.executable, SCRIPTS / script, option, str(count), "--minutes", "1000", "--jobs", "1"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} {option.removeprefix('--')} in" in done.stdout


def test_the_harnesses_see_what_they_look_for(tmp_path: Path) -> None:
    """A run that begins anew, and a traceback, planted in a copy of the program."""
    shutil.copytree(SCRIPTS.parent / "resnet_train", tmp_path / "resnet_train")
    for file, sound, planted in (
        ("training/loop.py", 'checkpoint.load_latest(folder / "checkpoints", world)', "None"),
        ("evaluation/logits.py", "BadInput(", "ValueError("),
    ):
        path = tmp_path / "resnet_train" / file
        assert sound in path.read_text()
        path.write_text(path.read_text().replace(sound, planted))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for arguments, words in (
        (["chaos.py", "--only", "run/step/5/kill"], "a checkpoint is lost"),
        (["fuzz.py", "--doors", "logits", "--inputs", "8"], "traceback: ValueError"),
    ):
        command = [sys.executable, SCRIPTS / arguments[0], *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, words in done.stdout) == (1, True), done.stdout + done.stderr
