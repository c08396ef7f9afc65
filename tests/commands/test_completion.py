"""`resnet-train completion`: scripts that a shell accepts, and what they complete."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_prints_a_script(shell: str, program: Program) -> None:
    code, out, err = program("completion", shell)
    assert code == 0, err
    assert "compare" in out


def test_bash_completes_commands_and_options(program: Program) -> None:
    script = Path("completion.bash")
    script.write_text(program("completion", "bash")[1])
    subprocess.run(["bash", "-n", script], check=True)
    completed = []
    for line in ("resnet-train comp", "resnet-train compare --o"):
        words = line.split()
        code = f"""source {script}
        COMP_WORDS=({line}) COMP_CWORD={len(words) - 1} COMP_LINE={line!r} COMP_POINT={len(line)}
        function=$(complete -p resnet-train | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function; printf '%s ' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert done.stderr == ""
        completed.append(done.stdout.split())
    assert completed == [["compare", "completion"], ["--out"]]
