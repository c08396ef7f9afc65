"""What the commands import. Each takes little more than `import torch` does, or less where it needs no torch."""

import subprocess
import sys
from collections.abc import Sequence

from PIL import Image

SLOW = ("matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "torch", "torch._dynamo", "torchvision")
"""What takes a tenth of a second or more."""

COMMANDS = """
import os, sys
from contextlib import suppress
from resnet_train import cli

def call(command):
    earlier = set(sys.modules)
    with suppress(SystemExit):
        assert cli.main(command.split()) == 0, command
    print("IMPORTED", command, *({slow} & (sys.modules.keys() - earlier)), sep="|", flush=True)

for commands in {groups}:  # each group in a process that has imported nothing yet
    if os.fork() == 0:
        for command in commands:
            call(command)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def imported(*groups: Sequence[str]) -> dict[str, set[str]]:
    """What each command imports beyond those before it in its group, of `SLOW`."""
    code = COMMANDS.replace("{slow}", repr(set(SLOW))).replace("{groups}", repr(groups))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|")[1:] for line in done.stdout.splitlines() if line.startswith("IMPORTED|")]
    return {command: set(slow) for command, *slow in lines}


def test_commands_import_no_more_than_they_need(checkpoint: str) -> None:
    Image.new("RGB", (8, 8)).save("photo.png")
    light = ("--help", "configs", "completion bash", "schema", "status runs")
    heavy = ("summary resnet-50", "run quickstart --dry-run", f"predict {checkpoint} photo.png", f"eval {checkpoint}")
    found = imported((*light, "compare runs"), heavy)
    assert [command for command in light if found[command]] == []
    assert found["compare runs"] <= {"matplotlib", "scipy"}
    assert found.pop(heavy[0]) == {"torch"}
    assert set().union(*(found[command] for command in heavy[1:])) <= {"tensorboard"}
