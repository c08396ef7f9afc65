"""Stopping a run, however rudely, never changes how it ends."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import figures, same_weights, spawn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import FOLDER, Config, Program, finish, last_step

from resnet_train.data.batch import Batch
from resnet_train.data.datasets import SyntheticDataset
from resnet_train.errors import Interrupted
from resnet_train.training import checkpoint, log


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"ema_decay": 0.9, "grad_accum_steps": 2, "precision": "fp16", "clip_grad_norm": 1.0}},
        {
            "data": {"kind": "imagefolder", "path": "imagenet", "workers": 0},
            "augment": {
                "repeated_augmentation": 2,
                "crop": {"kind": "random-resized", "size": 32},
                "progressive_resizing": {0: 16, 0.5: 24, 0.75: 32},
                "auto_augment": {"kind": "trivial-augment"},
                "random_erasing": 0.5,
                "mixup": 0.2,
                "cutmix": 1.0,
            },
            "optimizer": {"kind": "lars", "lr": 1.0},
        },
        {
            "networks": [{"base": "cifar-resnet-8", "stem": "cifar", "widths": [4, 8, 8], "drop_path_rate": 0.5}],
            "augment": {"auto_augment": {"kind": "timm-rand-augment"}, "mixup": 0.2, "cutmix": 1.0},
            "train": {"loss": "binary-cross-entropy", "target_threshold": 0.2, "precision": "fp16"},
            "optimizer": {"kind": "lamb", "lr": 0.01, "decay_on": "matrices"},
        },
        {"optimizer": {"kind": "adamw", "lr": 0.01}, "train": {"loss": "binary-cross-entropy"}},
    ],
    ids=["plain", "scaled", "newer", "strikes-back", "adamw"],
)
def test_resume_is_exact(
    changes: Any, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    """A run that stops and resumes, three times, must be the run that never stopped: bit for bit, not nearly."""
    path = config(**changes)
    whole = finish(program, path, output="whole")

    note_loading, sizes = log.Log.note_loading, []

    def interrupt(self: log.Log, batches: Any) -> None:
        note_loading(self, batches)
        sizes.append(batches.micro_batches[0].images.shape[1])
        if len(sizes) in (1, 3, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.Log, "note_loading", interrupt)
    for step in (1, 3, 7):
        code, _, err = program("run", path, "output=parts")
        assert (code, f"stopped at step {step} of 8, saved" in err) == (Interrupted.exit_code, True)
        assert "Traceback" not in err
    parts = finish(program, path, output="parts")
    assert sizes == ([16] * 4 + [24] * 2 + [32] * 2 if "data" in changes else [8] * 8)
    assert figures(parts) == figures(whole)
    assert same_weights(parts / "checkpoints/last.pt", whole / "checkpoints/last.pt")
    assert scalars(parts) == scalars(whole)


def test_a_signal_while_a_step_waits_for_its_images_saves(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 4 is saved at the signal and not otherwise; the loss of its last step is in no line of the log yet."""
    path = config(checkpoint={"every": {"steps": 3}}, log={"every": {"steps": 8}}, eval={"every": {"steps": 8}})
    whole = finish(program, path, output="whole")
    training_batches = SyntheticDataset.training_batches

    def stalled(*arguments: Any) -> Iterator[Batch]:
        yield from islice(training_batches(*arguments), 4)
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted("SIGTERM: stopped while the data workers do not answer")

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticDataset, "training_batches", stalled)
        code, _, err = program("run", path, "output=parts")
    assert (code, "stopped at step 4 of 8, saved" in err) == (Interrupted.exit_code, True)
    saved = torch.load(Path("parts") / FOLDER.relative_to("runs") / "checkpoints/last.pt", weights_only=True)
    assert saved["step"] == 4
    parts = finish(program, path, output="parts")
    assert figures(parts) == figures(whole)
    assert same_weights(parts / "checkpoints/last.pt", whole / "checkpoints/last.pt")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, but for the clock."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    shown = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if not tag.startswith("speed")}
    return {tag: [(event.step, event.value) for event in found] for tag, found in shown.items()}


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from resnet_train import cli

def kill(record, lines):
    while not record.exists() or record.read_text().count("\\n") < lines:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, args=(Path(sys.argv[1]), int(sys.argv[2])), daemon=True).start()
sys.exit(cli.main(sys.argv[3:]))
"""


def test_killed_at_any_moment_a_run_ends_the_same(config: Config, program: Program) -> None:
    """SIGKILL, in mid-epoch and while a checkpoint is being written, over and over.

    A thread of the run sends it: on a busy machine another process might be too late.
    """
    path = config(train={"steps": 100}, checkpoint={"every": {"steps": 1}}, eval={"every": {"steps": 30}})
    # In a process as the parts are: sums depend on the number of threads.
    assert spawn("run", path, "output=whole", stdout=None, stderr=None).wait() == 0
    whole, parts = (Path(output) / FOLDER.relative_to("runs") for output in ("whole", "parts"))
    steps = [0]
    for lines in (6, 16, 32):
        command = (parts / "metrics.jsonl", lines, "run", path, "output=parts")
        process = spawn(*command, program=["-c", KILLED])
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        steps.append(last_step(parts))
    assert 0 < steps[1] < steps[2] < steps[3] < 100, steps
    assert spawn("run", path, "output=parts", stdout=None, stderr=None).wait() == 0
    assert figures(parts) == figures(whole)
    assert same_weights(parts / "checkpoints/last.pt", whole / "checkpoints/last.pt")
    assert scalars(parts) == scalars(whole)


@pytest.mark.long
def test_killed_at_any_write_a_run_ends_the_same(config: Config, program: Program) -> None:
    """SIGKILL at the n-th call that makes a file durable, for every n: in the saves, and before there is one."""
    path = config(
        checkpoint={"every": {"steps": 2}, "keep_every": {"steps": 2}},
        eval={"every": {"steps": 2}},
        train={"steps": 4},
        schedule={"kind": "step", "milestones": [{"steps": 2}], "gamma": 1000.0},  # so that the first is the best
        seeds=[4],
        data={"val_images": 60},
    )
    code = """if True:
        import itertools, os, signal, sys
        from resnet_train import cli
        cli.main(["run", sys.argv[1], "--dry-run"])  # all is imported once: each run is a copy of this process
        real = os.fsync
        for nth in itertools.count(1):
            if os.fork() == 0:
                calls = []
                def fsync(file):
                    calls.append(file)
                    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == nth else real(file)
                os.fsync = fsync
                sys.exit(cli.main(["run", sys.argv[1], f"output=at-{nth:02}"]))
            if os.wait()[1] != signal.SIGKILL:
                break
    """
    process = spawn(path, program=["-c", code])
    process.communicate()
    assert process.returncode == 0
    *killed, whole = sorted(Path().glob("at-*"))  # the last had no n-th call
    assert len(killed) >= 10  # five files of two saves, and their folder after each
    for parts in killed:
        code, _, err = program("run", path, f"output={parts}")
        assert code == 0, (parts, err)
        one, other = (output / "tiny/cifar-resnet-8/seed-4" for output in (parts, whole))
        assert figures(one) == figures(other), parts
        for name in ("last.pt", "best.pt", "step-2.pt", "step-4.pt"):
            assert same_weights(one / "checkpoints" / name, other / "checkpoints" / name), (parts, name)
        assert checkpoint.read_checkpoint(one / "checkpoints/best.pt").step == 2
        assert not list(parts.rglob("*.tmp")), parts


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints/last.pt"])
def test_a_run_does_not_begin_anew_where_the_disk_does_not_say_what_is_there(
    name: str, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path.exists` of Python 3.14 says no."""
    path = config(train={"steps": 2})
    folder = finish(program, path)
    before = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "env.json"}
    real, unread = os.stat, str(folder / name)

    def stat(file: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if not isinstance(file, int) and os.fspath(file) == unread:
            raise OSError(errno.EIO, os.strerror(errno.EIO), unread)
        return real(file, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat)
        code, _, err = program("run", path, "train.steps=4")
    assert (code, err.count("resnet-train: "), "Traceback" in err) == (2, 1, False), err
    assert "Input/output error" in err
    after = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "env.json"}
    assert after == before


@pytest.mark.parametrize(("refused", "intact"), [("previous.pt", "last.pt"), ("last.pt", "previous.pt")])
def test_a_rename_that_is_refused_leaves_the_previous_checkpoint(
    refused: str, intact: str, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the older checkpoint out of the way, and of the newer one into its place."""
    path, replace = config(), Path.replace
    whole = finish(program, path, output="whole")

    def refusing(self: Path, target: Path) -> Path:
        if Path(target).name == refused and (target.with_name("previous.pt").exists() or self.name == "last.pt"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refusing)
        code, _, err = program("run", path, "output=parts")
    checkpoints = Path("parts") / FOLDER.relative_to("runs") / "checkpoints"
    message = f"cannot save the checkpoint of step 4 in {checkpoints}: Operation not permitted; the last checkpoint is {checkpoints / intact}"
    assert (code, err.splitlines()[-1]) == (2, f"resnet-train: {message}")
    assert "Traceback" not in err
    assert checkpoint.read_checkpoint(checkpoints / intact).step == 3
    parts = finish(program, path, output="parts")
    assert figures(parts) == figures(whole)
    assert same_weights(parts / "checkpoints/last.pt", whole / "checkpoints/last.pt")


def test_stopped_on_two_ranks_a_run_goes_on_on_one(config: Config, program: Program) -> None:
    """In the middle of a log line's window, whose sums then are both ranks'. As near as two ranks are to one."""
    changes: dict[str, Any] = {"train": {"sync_bn": True}, "optimizer": {"lr": 0.02}, "log": {"every": {"steps": 3}}}
    path = config(**changes, checkpoint={"every": {"steps": 4}, "keep_every": {"steps": 4}})
    whole = finish(program, path, output="whole")
    process = spawn("run", path, "output=parts", ranks=2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    parts = Path("parts") / FOLDER.relative_to("runs")
    shutil.copy(parts / "checkpoints/step-4.pt", parts / "checkpoints/last.pt")  # as if killed before the next save
    record = parts / "metrics.jsonl"
    record.write_text(record.read_text().rpartition('{"step": 8, "kind": "end"')[0])
    finish(program, path, output="parts")
    for one, other in zip(figures(whole), figures(parts), strict=True):
        near = {
            key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value for key, value in other.items()
        }
        assert one == near
    sessions = json.loads((parts / "env.json").read_text())["sessions"]
    assert [session["ranks"] for session in sessions] == [2, 1]


def test_data_workers_outlive_signals_but_not_their_trainer(config: Config, images: Path) -> None:
    """SIGTERM to every process of the job, as Slurm sends it, saves; SIGKILL to the trainer alone leaves no process."""
    never = {"every": {"steps": 100000}}  # but on the signal: killed amid a save, there may be a `previous.pt` alone
    augment, view = {"crop": {"kind": "random-resized", "size": 8}}, {"resize": 8, "crop": 8}
    data = {"kind": "imagefolder", "path": str(images), "workers": 1}
    path = config(data=data, augment=augment, eval={"view": view} | never, train={"steps": 100000}, checkpoint=never)
    for stop, code in ((lambda process: os.killpg(process.pid, signal.SIGTERM), 75), (subprocess.Popen.kill, -9)):
        process = spawn("run", path, start_new_session=True)
        begin = last_step(FOLDER)
        while last_step(FOLDER) < begin + 4 and process.poll() is None:
            time.sleep(0.01)
        stop(process)
        _, err = process.communicate(timeout=300)  # which waits for every process that holds the pipe
        assert process.returncode == code, err
        assert "Traceback" not in err
    assert checkpoint.read_checkpoint(FOLDER / "checkpoints/last.pt").step >= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_save_and_ask_to_be_run_again(number: signal.Signals, config: Config) -> None:
    path = config(train={"steps": 100000}, checkpoint={"every": {"steps": 100000}})
    process = spawn("run", path)
    while last_step(FOLDER) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert f"{number.name}: saving and stopping at the next step" in err
    assert "Traceback" not in err
    assert checkpoint.read_checkpoint(FOLDER / "checkpoints/last.pt").step >= last_step(FOLDER)


EARLY = """
import os, signal, sys
from resnet_train import __main__, cli

called = cli.main

def main():
    os.kill(os.getpid(), signal.SIGUSR1)
    return called()

cli.main = main
__main__.main()
"""


def test_a_warning_that_comes_while_the_program_starts_is_not_lost(config: Config) -> None:
    """It would end the process, as signals do by default. A command that has nothing to save goes on."""
    process = spawn("run", config(), program=("-c", EARLY))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert "SIGUSR1: saving and stopping at the next step" in err
    assert checkpoint.read_checkpoint(FOLDER / "checkpoints/last.pt").step in (0, 1)
    process = spawn("configs", program=("-c", EARLY))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, "quickstart" in out, err) == (0, True, "")


def test_torchrun_passes_a_signal_on_that_it_is_asked_to_handle(config: Config) -> None:
    """Schedulers warn by SIGUSR1, which by default ends torchrun alone."""
    handled = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    path = config(train={"steps": 100000}, checkpoint={"every": {"steps": 100000}})
    process = spawn("run", path, ranks=2, program=(handled, "-m", "resnet_train"))
    while last_step(FOLDER) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "SIGUSR1: saving and stopping at the next step" in err
    assert checkpoint.read_checkpoint(FOLDER / "checkpoints/last.pt").step >= last_step(FOLDER)
