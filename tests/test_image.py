"""The image, without building it: its versions, labels and files. `scripts/image_check.sh` builds and runs it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from resnet_train import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pinned() -> list[str]:
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_every_dependency_of_the_image_is_pinned_to_a_release_that_suits() -> None:
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, pinned())}
    for requirement in map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["digits"]]):
        [specifier] = pins[canonicalize_name(requirement.name)].specifier
        assert specifier.operator == "=="
        assert specifier.version in requirement.specifier, requirement
    environments = [
        {"sys_platform": system, "python_full_version": f"{python}.0", "python_version": python}
        for system in ("linux", "darwin")
        for python in ("3.11", "3.14")
    ]
    for environment in environments:  # each has torch
        marker = pins["torch"].marker
        assert marker is None or marker.evaluate({**default_environment(), **environment})  # type: ignore[dict-item]


def test_the_pins_are_those_that_uv_resolves() -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    options = "--extra digits --universal --python-version 3.11 --no-annotate --no-header --constraint constraints.txt"
    command = [uv, "pip", "compile", "--quiet", "pyproject.toml", *options.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if re.search(r"Failed to fetch|error sending request|dns error", done.stderr):
        pytest.skip("uv reaches no index of packages")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == pinned()
    assert f"uv pip compile pyproject.toml {options}" in (ROOT / "constraints.txt").read_text()


def test_labels_are_the_projects() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": __version__,
        "licenses": PROJECT["license"],
        "revision": "$REVISION",
    }


def test_code_is_copied_after_the_dependencies_are_installed() -> None:
    """Else a change of the code would install torch anew."""
    before, install, after = DOCKERFILE.partition("--constraint /opt/constraints.txt")
    assert install
    assert "resnet_train /" not in before
    assert "pip install --no-cache-dir --no-deps --no-build-isolation" in after


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sources = {name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M) for name in line.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == sent
    assert all((ROOT / name).exists() for name in sources)


def test_hadolint_finds_no_fault() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_names_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "id"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [ROOT / "scripts/image_check.sh"], env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "image_check: it needs a docker daemon, or buildah as root\n")
