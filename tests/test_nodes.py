"""A training on two nodes, which are network namespaces of this machine, where they can be made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def why_no_nodes() -> str | None:
    """The reason why this machine cannot make two nodes with a cable between them."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "pgrep") if shutil.which(name, path=PROGRAMS) is None]
    if missing:
        return f"iproute2 or procps is not installed: no {', '.join(missing)}"
    name = f"resnet-train-{os.getpid()}"
    for command in (f"netns add {name}", f"-netns {name} link add cable type veth peer name other"):
        made = subprocess.run(
            ["ip", *command.split()], env=os.environ | {"PATH": PROGRAMS}, capture_output=True, text=True
        )
        if made.returncode != 0:
            break
    subprocess.run(["ip", "netns", "delete", name], env=os.environ | {"PATH": PROGRAMS}, capture_output=True)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode != 0 else None


@pytest.mark.long
@pytest.mark.cluster
def test_a_cut_link_ends_all_ranks_and_a_lost_node_is_done_without() -> None:
    if (reason := why_no_nodes()) is not None:
        pytest.skip(reason)
    environment = os.environ | {"PYTHON": sys.executable}
    process = subprocess.run(
        ["bash", ROOT / "tests/nodes.sh"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    print(process.stdout, process.stderr)
    assert process.returncode == 0, process.stdout[-4000:]
