"""scripts/chaos.py and scripts/fuzz.py for a few of their trials, always the same ones. By hand they run for longer."""

import subprocess
import sys
from pathlib import Path

import pytest
import zygote

SCRIPTS = Path(__file__).parents[1] / "scripts"

PLANTED = """
import runpy, sys
from resnet_train.evaluation import logits
from resnet_train.training import checkpoint

{plant}
sys.path.insert(0, {scripts!r})
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def output(*command: str) -> tuple[int, str]:
    """Exit code, and what a Python process printed."""
    arguments = [sys.executable, *command]
    process = zygote.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate()
    return process.returncode, out


@pytest.mark.long
@pytest.mark.parametrize(("script", "option", "count"), [("chaos.py", "--trials", 20), ("fuzz.py", "--inputs", 120)])
def test_nothing_is_lost_and_nothing_breaks(script: str, option: str, count: int) -> None:
    code, out = output(str(SCRIPTS / script), option, str(count), "--minutes", "1000", "--jobs", "1")
    assert code == 0, out
    assert f"{count} {option.removeprefix('--')} in" in out


@pytest.mark.parametrize(
    ("plant", "arguments", "words"),
    [
        ("checkpoint.load_latest = lambda *_: None", ["chaos.py", "--only", "run/step/5/kill"], "a checkpoint is lost"),
        ("logits.BadInput = ValueError", ["fuzz.py", "--doors", "logits", "--inputs", "8"], "traceback: ValueError"),
    ],
    ids=["a run that begins anew", "a traceback"],
)
def test_the_harnesses_see_what_they_look_for(plant: str, arguments: list[str], words: str) -> None:
    script, *rest = arguments
    code, out = output(
        "-c", PLANTED.format(plant=plant, scripts=str(SCRIPTS), arguments=[str(SCRIPTS / script), *rest])
    )
    assert (code, words in out) == (1, True), out
