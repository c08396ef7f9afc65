"""What runs elsewhere: GitHub's workflow, its updates of dependencies, and the hooks of a commit."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/ci.yml"


def test_actionlint_finds_no_fault() -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([actionlint, WORKFLOW], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_tests_the_oldest_and_the_newest_python() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert jobs["test"]["strategy"]["matrix"]["python"] == [classified[0], classified[-1]]
    assert project["requires-python"] == f">={classified[0]}"
    programs = [step["run"].split()[0] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = [program for program in programs if program.startswith("scripts/")]
    assert scripts == ["scripts/test.sh", "scripts/image_check.sh"]
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)


def test_updates_are_asked_for_where_versions_are_named() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "docker", "pip"}


def test_hooks_run_what_the_tests_begin_with() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    script = (ROOT / "scripts/test.sh").read_text()
    for hook in hooks:
        _, *words = shlex.split(hook["entry"].removesuffix(" --force-exclude"))
        assert f'"$python" {shlex.join(words)}' in script
