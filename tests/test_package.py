"""The wheel and the source archive: what they hold, and that an installed program finds its experiments anywhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest
from conftest import unpack

ROOT = Path(__file__).parents[1]

OTHER = {"build", "data", "dist", "runs"}
"""Folders of a checkout that git does not hold."""
BUILD = """
import sys
from setuptools import build_meta
kind, folder = sys.argv[1:]
print(getattr(build_meta, f"build_{kind}")(folder))
"""


def build(kind: str, source: Path, folder: Path) -> Path:
    """What the project's build backend makes of `source`, without the network."""
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a checkout, and the wheel that is built from it."""
    if int(metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("the build backend is setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    checkout.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, checkout)
        elif path.name == ".ci" or not (
            path.name.startswith(".") or path.name.endswith(".egg-info") or path.name in OTHER
        ):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, checkout / path.name, symlinks=True, ignore=ignore)
    sdist = build("sdist", checkout, folder)
    unpack(sdist, folder / "unpacked")
    return sdist, build("wheel", folder / "unpacked" / sdist.name.removesuffix(".tar.gz"), folder)


def test_the_source_archive_has_tests_and_documents_and_no_link(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    for name in ("configs/quickstart.yaml", "resnet_train/configs/quickstart.yaml", "resnet_train/py.typed"):
        assert members[name].isreg(), name
    for pattern in (
        "tests/**/*.py",
        "tests/golden/*",
        "docs/**/*.md",
        "scripts/*",
        "configs/*",
        "resnet_train/**/*.py",
    ):
        assert {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file()} <= members.keys()
    assert {"LICENSE", "Dockerfile", "CHANGELOG.md", "CITATION.cff", "mkdocs.yml"} <= members.keys()
    assert not [name for name in members if "__pycache__" in name or name.startswith("runs/")]


def test_the_wheel_has_the_experiments_and_no_tests(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        [info] = [name for name in names if name.endswith("METADATA")]
        about = archive.read(info).decode()
        for path in (ROOT / "configs").iterdir():
            assert archive.read(f"resnet_train/configs/{path.name}") == path.read_bytes()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"resnet_train"}
    assert "resnet_train/py.typed" in names
    assert "Classifier: Typing :: Typed" in about
    assert "Requires-Python: >=3.11" in about


def test_twine_finds_no_fault(built: tuple[Path, Path]) -> None:
    if util.find_spec("twine") is None:
        pytest.skip("twine is not installed")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_installed_program_finds_its_experiments(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed without dependencies, called from an empty folder."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(site), str(built[1])], check=True)
    assert (site / "bin" / "resnet-train").exists()
    code = (
        "from resnet_train import cli, __file__\n"
        "print(__file__)\n"
        "codes = cli.main(['configs']), cli.main(['run', 'imagenet-wide', '--dry-run', '--only', 'wrn-50-2'])\n"
        "assert codes == (0, 0), codes\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert f"are in {site}/resnet_train/configs" in done.stdout
    assert "wrn-50-2" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
