"""scripts/setup.sh: which program installs, what it says before, and one line where something is missing."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("bash", "cat", "uname")
"""What the script needs beside Python or uv."""

LOG = 'echo "${0##*/} $*" >>log\n'
UV = LOG + 'if [ "$1" = venv ]; then mkdir -p .venv/bin && cp bin/python3 .venv/bin/python; fi\n'
PYTHON = LOG + 'if [ "$*" = "-m venv --clear .venv" ]; then mkdir -p .venv/bin && cp bin/python3 .venv/bin/python; fi\n'

Setup = Callable[..., tuple[int, str, str, list[str]]]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Run setup.sh where nothing is installed but the given programs: (exit code, output, errors, calls)."""
    (tmp_path / "bin").mkdir()
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in (*PROGRAMS, "cp", "mkdir"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))

    def call(uv: str = "", python3: str = PYTHON, **environment: str) -> tuple[int, str, str, list[str]]:
        for name, text in (("uv", uv), ("python3", python3)):
            if text:
                (tmp_path / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{text}")
                (tmp_path / "bin" / name).chmod(0o755)
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-euc", ". scripts/setup.sh digits"],
            env={"PATH": str(tmp_path / "bin")} | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr, log.read_text().splitlines() if log.exists() else []

    return call


def test_uv_installs_where_it_is(setup: Setup) -> None:
    code, out, err, calls = setup(uv=UV)
    assert (code, err) == (0, "")
    assert calls == [
        "uv venv --quiet --clear --seed --python >=3.11,<3.15 .venv",
        "uv pip install --quiet --python .venv/bin/python --editable .[digits]",
    ]
    assert out.startswith("uv installs resnet-train[digits] into .venv: about ")
    assert setup(uv=UV) == (0, "", "", [])  # it is done
    assert setup(uv=UV, TORCH="cpu")[3] == [
        "uv pip install --quiet --python .venv/bin/python --torch-backend cpu --editable .[digits]"
    ]


def test_pip_installs_where_uv_is_not(setup: Setup) -> None:
    code, out, err, calls = setup()
    assert (code, err) == (0, "")
    assert [call for call in calls if " -c " not in call] == [
        "python3 -m venv --clear .venv",
        "python -m pip install --quiet --disable-pip-version-check --editable .[digits]",
    ]
    assert out.startswith("pip installs resnet-train[digits] into .venv: about ")


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("exit 127", "setup: Python 3.11 or newer is needed: set PYTHON to one, or install uv, which fetches its own"),
        (
            'case $2 in *exit*) exit 1 ;; *) echo "; python3 is 3.9" ;; esac',
            "setup: Python 3.11 or newer is needed; python3 is 3.9: set PYTHON to one, or install uv, which fetches its own",
        ),
        (
            '[ "$2" != "import venv" ]',
            "setup: python3 has no module venv: install it (on Debian and Ubuntu python3-venv), or uv",
        ),
        (
            '[ "$2" != "import ensurepip" ]',
            "setup: python3 has no pip to put into .venv: install ensurepip (on Debian and Ubuntu python3-venv), or uv",
        ),
    ],
)
def test_what_is_missing_is_one_line(setup: Setup, python: str, message: str) -> None:
    code, out, err, _ = setup(python3=python)
    assert (code, out, err) == (2, "", message + "\n")


def test_cpu_builds_need_uv(setup: Setup) -> None:
    code, _, err, calls = setup(TORCH="cpu")
    assert code == 2
    assert err.startswith("setup: TORCH=cpu needs uv; or put torch and torchvision into .venv first, by the command")
    assert err.count("\n") == 1
    assert not [call for call in calls if "install" in call]


@pytest.mark.parametrize("name", ["python3.9", "python3.11"])
def test_the_version_of_python_is_read(name: str, setup: Setup, tmp_path: Path) -> None:
    """By a real Python; one that is too old is made of this one."""
    old = "import sys\nsys.version_info = (3, 9, 0)\n" if name == "python3.9" else ""
    (tmp_path / "sitecustomize.py").write_text(old)
    real = f'PYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n'
    code, _, err, _ = setup(python3=f"case $1 in -c) {real};; *) {PYTHON} esac", PYTHON="python3")
    assert (code == 0) == (name == "python3.11"), err
    assert ("; python3 is 3.9: " in err) == (name == "python3.9")
