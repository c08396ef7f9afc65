"""The commands as a user meets them: what they refuse."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_train import cli

ROOT = Path(__file__).parents[1]
Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "none.yaml"], "cannot read none.yaml: No such file or directory"),
        (["run", "{config}", "--only", "resnet-18"], "--only resnet-18: the networks of .* are cifar-resnet-8"),
        (
            ["run", "{config}", "data={kind: imagefolder, path: nowhere}", "augment.crop={kind: scale}"],
            "cannot read nowhere/train",
        ),
        (["run", "{config}", "data={kind: cifar10, path: nowhere}"], "no complete cifar10 in nowhere"),
        (["run", "{config}", "train.device=cuda"], "no CUDA device is visible"),
        (["run", "{config}", "output=/proc/nothing"], "output: cannot write /proc/nothing"),
        (["run", "{config}", "output={config}"], "output: cannot write .*tiny.yaml"),
        (["eval", "none.pt"], "none.pt: no such checkpoint"),
        (["eval", "."], "is a folder: give a file, such as checkpoints/best.pt"),
        (["eval", "{config}"], "tiny.yaml is truncated or not a checkpoint"),
        (["compare", "nowhere"], "nowhere: no run folder"),
        (["summary", "resnet-51"], "the nearest depths are resnet-50 and resnet-101"),
        (["summary", "resnet-50", "--size", "0"], "'0' is not a whole number above 0"),
        (["train"], "invalid choice: 'train'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, config: Config, program: Program
) -> None:
    if torch.cuda.is_available() and "train.device=cuda" in arguments:
        pytest.skip("there is a CUDA device")
    before = set(Path().rglob("*"))
    path = config()
    code, out, err = program(*[argument.replace("{config}", str(path)) for argument in arguments])
    assert code == 2
    assert re.search(said, err), err
    assert out == ""
    last = err.strip().splitlines()
    assert len(last) == 1 or last[0].startswith("usage:")
    assert set(Path().rglob("*")) - before <= {Path("tiny.yaml")}


def test_a_checkpoint_of_other_classes_is_refused(config: Config, program: Program) -> None:
    program("run", config())
    path = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
    code, _, err = program("eval", path, "--set", "data.classes=5")
    assert (code, "was trained on 4 classes, and the data has" in err) == (2, True)


def test_summary_is_the_networks_own(program: Program) -> None:
    code, out, _ = program("summary", "resnet-50", "cifar-plain-20", "--json")
    told = json.loads(out)
    assert code == 0
    assert [(net["params"], net["macs"], net["depth"]) for net in told] == [
        (25557032, 3857973248, 50),
        (269722, 40551040, 20),
    ]
    assert sum(stage["macs"] for stage in told[0]["stages"]) == told[0]["macs"]
    assert told[0]["stages"][1]["shape"] == [256, 56, 56]
    assert "25,557,032" in program("summary", "resnet-50")[1]


def test_summary_sets_networks_against_a_reference(program: Program) -> None:
    """He et al. 2015, section 3.3: 152 layers, still lower complexity than VGG-16 and VGG-19."""
    code, out, err = program("summary", "resnet-152", "resnet-50", "resnet-34", "--vs", "vgg-19")
    assert code == 0, err
    assert "resnet-152: 152 layers, lower complexity than vgg-19 (0.57 of its multiply-adds)" in out
    assert out.count("agrees") == 4
    assert "DIFFERS" not in out
    assert Path("summary.png").stat().st_size > 5000
    told = json.loads(program("summary", "resnet-152", "--vs", "vgg-19", "--size", 64, "--json")[1])
    assert [one["paper_macs"] for one in told] == [None, None]
    assert told[1]["memory_fp32"] == 2 * told[1]["memory_bf16"] == 8 * told[1]["activations"]
    assert program("summary", "resnet-18", "--out", "x.png")[0] == 2
    code, _, err = program("summary", "resnet-18", "--vs", "vgg-19", "--out", "x.foo")
    assert (code, err.startswith("resnet-train: --out: cannot write x.foo: ")) == (2, True)
    out = program("summary", "--vs", "plain-34", "resnet-34-A", "plain-34", "--out", "new/x.png")[1]
    assert "resnet-34-A: 34 layers, the complexity of plain-34 (1.00 of its multiply-adds)" in out
    assert out.count("\nplain-34") == 1  # the reference is no network beside itself
    assert Path("new/x.png").exists()


def test_options_may_stand_between_the_words_of_a_list(config: Config, program: Program) -> None:
    code, out, _ = program("run", config(), "seeds=[1]", "--dry-run", "train.steps=3", "--json")
    assert (code, json.loads(out)["networks"][0]["steps"]) == (0, 3)
    assert program("summary", "resnet-18", "--json", "resnet-34", "--what")[0] == 2
    assert len(json.loads(program("summary", "resnet-18", "--json", "resnet-34")[1])) == 2


def test_schema_prints_the_schema(program: Program) -> None:
    assert json.loads(program("schema")[1])["properties"]["networks"]


def test_a_reader_that_leaves_early_is_no_error(config: Config) -> None:
    command = f"{shlex.quote(sys.executable)} -m resnet_train schema | head -1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("{\n", "")


def leaf_parsers() -> dict[str, argparse.ArgumentParser]:
    return cli.build_parsers()[1]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_explains_every_argument_and_has_an_example(name: str) -> None:
    parser = leaf_parsers()[name]
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS, []):
            assert "default" in action.help, f"{name} {action.option_strings}: its default is not in its help"
    text = parser.format_help()
    [example] = re.findall(r"^example:\n  resnet-train (.*)$", text, re.MULTILINE)
    words = shlex.split(example.split(" > ")[0])
    assert words[0] == name
    assert cli.parse(words).main is not None


def test_help_of_the_program_lists_the_commands(program: Program) -> None:
    code, out, _ = program("--help")
    assert code == 0
    assert all(re.search(rf"^    {name}\b", out, re.MULTILINE) for name in cli.COMMANDS)


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


def test_commands_are_parsed_without_heavy_imports() -> None:
    code = "import sys; from resnet_train import cli; cli.build_parsers(); print(*{'torch', 'matplotlib', 'scipy'} & sys.modules.keys())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "\n"
