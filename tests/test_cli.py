"""The commands as a user meets them: what they refuse."""

import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import terminal
import torch
from conftest import spawn
from PIL import Image

from resnet_train import __main__, cli

ROOT = Path(__file__).parents[1]
Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "cannot read none.yaml: No such file or directory"),
        (["run", "{config}", "--only", "resnet-18"], "--only resnet-18: the networks of .* are cifar-resnet-8"),
        (
            ["run", "{config}", "data={kind: imagefolder, path: nowhere}", "augment.crop={kind: scale}"],
            "cannot read nowhere/train",
        ),
        (["run", "{config}", "data={kind: cifar10, path: nowhere}"], "no complete cifar10 in nowhere"),
        (["run", "{config}", "train.device=cuda"], "no CUDA device is visible"),
        (["run", "{config}", "train.device=mps"], "train.device = mps: torch sees no Apple GPU here"),
        (["run", "{config}", "output=/proc/nothing"], "output: cannot write /proc/nothing"),
        (["run", "{config}", "output={config}"], "output: cannot write .*tiny.yaml"),
        (["eval", "none.pt"], "none.pt: no such checkpoint"),
        (["eval", "."], "no run folder in or under it"),
        (["eval", "{config}"], "tiny.yaml is truncated or not a checkpoint"),
        (["compare", "nowhere"], "nowhere: no run folder"),
        (["summary", "resnet-51"], "the nearest depths are resnet-50 and resnet-101"),
        (["summary", "resnet-50", "--size", "0"], "'0' is not a whole number above 0"),
        (["train"], "invalid choice: 'train'"),
        (["summary", "resnet-18", f"--{'x' * 5000}\n"], r"unrecognized argument: --x+ \[…\] x+\\n$"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, config: Config, program: Program
) -> None:
    if torch.cuda.is_available() and "train.device=cuda" in arguments:
        pytest.skip("there is a CUDA device")
    before = set(Path().rglob("*"))
    path = config()
    code, out, err = program(*[argument.replace("{config}", str(path)) for argument in arguments])
    assert code == 2
    assert re.search(message, err), err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 or lines[0].startswith("usage:")
    assert set(Path().rglob("*")) - before <= {Path("tiny.yaml")}


def test_a_checkpoint_of_other_classes_is_refused(config: Config, program: Program) -> None:
    program("run", config())
    path = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
    code, _, err = program("eval", path, "--set", "data.classes=5")
    assert (code, "was trained on 4 classes, and the data has" in err) == (2, True)


def test_options_may_stand_between_the_words_of_a_list(config: Config, program: Program) -> None:
    code, out, _ = program("run", config(), "seeds=[1]", "--dry-run", "train.steps=3", "--json")
    assert (code, json.loads(out)["networks"][0]["steps"]) == (0, 3)
    assert program("summary", "resnet-18", "--json", "resnet-34", "--what")[0] == 2
    assert len(json.loads(program("summary", "resnet-18", "--json", "resnet-34")[1])) == 2


def test_names_of_files_and_classes_need_not_be_text(config: Config, program: Program) -> None:
    """They are bytes that are not UTF-8, and would be a formula in a figure. Such lists are UTF-8 in any locale."""
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="backslashreplace")  # as `prepare_streams` does
    for part, name, i in itertools.product(("train", "val"), (b"\xe9", rb"$\frac$"), range(3)):
        path = Path("images", part, os.fsdecode(name), os.fsdecode(b"\xff%d.png" % i))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (80 * i, 0, 90)).save(path)
    broken = Path(os.fsdecode(b"images/train/\xe9/\xff\xc2\x85.png"))  # \x85 in UTF-8: listed at each batch, once
    broken.write_bytes(b"broken")
    data = {"kind": "imagefolder", "path": "images", "workers": 1, "on_bad_image": "skip"}
    sizes = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    code, _, err = program("run", config(data=data, **sizes, train={"steps": 3}), "optimizer.lr=1e-9")
    assert code == 0, err
    folder = Path("runs/tiny/cifar-resnet-8/seed-0")
    assert (folder / "skipped-images.txt").read_bytes() == os.fsencode(broken) + b"\n"
    last = folder / "checkpoints/last.pt"
    code, _, err = program("eval", last, "--out", "out")
    assert code == 0, err
    rows = Path("out/last-one-crop-classes.csv").read_bytes()
    assert all(line in rows for line in (b"\xe9,3,", rb"$\frac$,3,"))
    assert Path("out/last-one-crop-mistakes.png").exists()
    code, out, err = program("predict", last, "images/val", "--json")
    assert (code, len(json.loads(out))) == (0, 6), err


def test_a_machine_without_a_folder_for_temporary_files_is_one_line(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    message = "resnet-train: no folder for temporary files can be written: set TMPDIR to one that can\n"
    assert program("compare", "runs") == (2, "", message)


def test_schema_prints_the_schema(program: Program) -> None:
    assert json.loads(program("schema")[1])["properties"]["networks"]


def test_a_reader_that_leaves_early_is_no_error(config: Config) -> None:
    command = f"{shlex.quote(sys.executable)} -m resnet_train schema | head -1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_run_whose_messages_nobody_reads_saves_at_a_signal(config: Config) -> None:
    path = config(train={"steps": 100_000}, eval={"every": {"steps": 100_000}}, log={"every": {"steps": 1}})
    metrics = Path("runs/tiny/cifar-resnet-8/seed-0/metrics.jsonl")
    process = spawn("run", path, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    process.stderr.close()
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=300) == 75


def test_a_result_that_a_full_disk_does_not_take_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = spawn("schema", stdout=full)
    _, err = process.communicate(timeout=300)
    message = "cannot write to standard output: No space left on device; run the same command again"
    assert (process.returncode, err) == (2, f"resnet-train: {message}\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_explains_every_argument_and_has_an_example(name: str) -> None:
    parser = cli.build_parsers()[1][name]
    for action in parser._actions:
        assert action.help, action.dest
        takes_value = action.option_strings and action.nargs != 0
        if takes_value and not action.required:
            assert "default: " in action.help, f"{name} {action.option_strings}: its default is not in its help"
    text = parser.format_help()
    [example] = re.findall(r"^example:\n  resnet-train (.*)$", text, re.MULTILINE)
    words = shlex.split(example.split(" > ")[0])
    assert words[0] == name
    assert cli.parse(words).main is not None


def test_help_of_the_program_lists_the_commands(program: Program) -> None:
    code, out, _ = program("--help")
    assert code == 0
    assert all(re.search(rf"^    {name}\b", out, re.MULTILINE) for name in cli.COMMANDS)


def test_commands_are_parsed_without_heavy_imports() -> None:
    code = "import sys; from resnet_train import cli; cli.build_parsers(); print(*{'torch', 'matplotlib', 'scipy'} & sys.modules.keys())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "\n"


def test_the_backend_of_matplotlib_is_the_program_s_and_not_its_caller_s(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib cannot be imported with a backend that it lacks. In a notebook the variable is the notebook's."""
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    assert program("schema")[0] == 0
    assert os.environ["MPLBACKEND"] == "nonsense"
    seen: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: seen.append(os.environ["MPLBACKEND"]))
    monkeypatch.setattr("resnet_train.runtime.streams.prepare_streams", lambda: None)
    monkeypatch.setattr("resnet_train.runtime.process_exit.exit_process", lambda code: None)
    __main__.main()
    assert seen == ["agg"]


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the path where a shell looks for its completions."""
    monkeypatch.setenv("COLUMNS", "80")
    parser, commands = cli.build_parsers()
    text = (commands[command] if command else parser).format_help()
    assert [line for line in text.splitlines() if len(line) > 80 and "completions/resnet-train" not in line] == []


def test_what_commands_print_fits_the_terminal(
    config: Config, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for arguments in (["configs"], ["eval", checkpoint], ["run", "quickstart", "--dry-run"]):
        code, screen = terminal.run(80, *arguments)
        assert (code, screen.too_wide) == (0, set()), screen.lines()
        assert "|" not in "".join(screen.lines())  # no bar is left
    code, screen = terminal.run(50, "run", config(), "train.epoch=3")
    assert (code, screen.too_wide) == (2, set())
    assert screen.lines() == [
        "resnet-train: command line: train.epoch: unknown",
        "  key; did you mean epochs?",
    ]
