"""Several runs at once: each ends as it would alone, signals reach all, and none is waited for in vain."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from conftest import figures, same_weights, spawn

from resnet_train.config import load
from resnet_train.config.data import SyntheticConfig
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder
from resnet_train.runtime.signals import StopRequest
from resnet_train.training import checkpoint, grid
from resnet_train.training.run_progress import GridProgress

Config = Callable[..., Path]
NETWORKS: list[dict[str, Any]] = [{"base": f"cifar-{kind}-8", "widths": [4, 8, 8]} for kind in ("plain", "resnet")]
FOLDERS = [Path(f"tiny/cifar-{kind}-8/seed-0") for kind in ("plain", "resnet")]


def finish(*arguments: object) -> tuple[int, str, str]:
    process = spawn("run", *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_at_once_is_one_after_the_other(config: Config, images: Path) -> None:
    """The same weights and figures, with data workers, too."""
    sizes = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    data = {"kind": "imagefolder", "path": str(images), "workers": 1}
    path = config(networks=NETWORKS, data=data, **sizes)
    found = [finish(path, f"output=by-{n}", "--jobs", n) for n in (1, 2)]
    assert [code for code, _, _ in found] == [0, 0], found
    assert all(network["base"] in out for _, out, _ in found for network in NETWORKS)  # the comparison
    assert not {"\r", "\x1b"} & set("".join(err for _, _, err in found))  # for the log of a job
    assert all(f"{network['base']} seed 0: finished in 0" in err for _, _, err in found for network in NETWORKS)
    for folder in FOLDERS:
        one, other = (Path(output) / folder for output in ("by-1", "by-2"))
        assert figures(one) == figures(other)
        assert same_weights(one / "checkpoints/last.pt", other / "checkpoints/last.pt")


def started(process: Any) -> bool:
    """Whether each run has taken some steps; whether its process has ended, rather than wait for ever."""
    return process.poll() is not None or all(
        (Path("runs") / folder / "metrics.jsonl").exists() and len(figures(Path("runs") / folder)) > 3
        for folder in FOLDERS
    )


def endless(config: Config) -> Any:
    never = {"every": {"steps": 1_000_000}}
    path = config(networks=NETWORKS, train={"steps": 1_000_000}, checkpoint=never, eval=never)
    process = spawn("run", path, "--jobs", 2, start_new_session=True)
    while not started(process):
        time.sleep(0.02)
    return process


def runs_of(process: Any) -> list[int]:
    """The processes of its runs: those of its session that write a record."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            files = [link.readlink() for link in (status.parent / "fd").iterdir()]
        except OSError:
            continue
        if int(fields[3]) == process.pid and any(file.name == "metrics.jsonl" for file in files):
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize(("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
def test_a_signal_to_one_process_or_to_the_job_saves_all(send: Any, number: signal.Signals, config: Config) -> None:
    process = endless(config)
    send(process.pid, number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert err.count("saved; run again to continue") == 2
    assert "Traceback" not in err
    for folder in FOLDERS:
        assert checkpoint.read_checkpoint(Path("runs") / folder / "checkpoints/last.pt").step > 4


def test_a_run_that_is_killed_is_told_and_the_others_save(config: Config) -> None:
    process = endless(config)
    os.kill(runs_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.count("was killed by SIGKILL, perhaps because memory ran out: lower --jobs") == 1
    assert err.count("saved; run again to continue") == 1
    assert "Traceback" not in err


def test_runs_whose_starter_is_killed_save_and_stop(config: Config) -> None:
    process = endless(config)
    process.kill()
    _, err = process.communicate(timeout=300)  # which waits for every process that holds the pipe
    assert err.count("saved; run again to continue") == 2


@pytest.mark.parametrize("policy", ["stop", "record"])
def test_a_divergence_is_recorded_or_stops_all(policy: str, config: Config) -> None:
    exception = {"cifar-plain-8": {"optimizer": {"lr": 1e30}}}
    path = config(
        networks=NETWORKS,
        per_network=exception,
        train={"on_divergence": policy, "steps": 40},
        eval={"every": {"steps": 40}},
    )
    code, out, err = finish(path, "--jobs", 2)
    assert err.count("cifar-plain-8 seed 0: the loss or its gradient is not finite") == 1
    assert code == (1 if policy == "stop" else 0), err
    assert ("cifar-plain-8 seed 0 diverged" in out) == (policy == "record")


def test_what_is_wrong_with_all_is_told_once(config: Config) -> None:
    data = {"kind": "imagefolder", "path": "nowhere", "workers": 1}
    sizes = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    code, _, err = finish(config(networks=NETWORKS, data=data, **sizes), "--jobs", 2)
    assert (code, err.count("resnet-train: ")) == (2, 1), err


def test_ranks_that_cannot_share_a_batch_are_refused_before_data_is_opened(config: Callable[..., Path]) -> None:
    data = {"kind": "cifar10", "path": "nowhere"}
    runs = list(load.runs(load.load(config(data=data, augment=None, seeds=[1, 2]))))
    grid.check_ranks(runs, 16)
    with pytest.raises(BadInput, match=r"^train.batch_size = 16 .* not divisible by 3 ranks .*: use 15$"):
        grid.check_ranks(runs, 3)


def test_a_corrected_expectation_reaches_finished_runs(config: Config, program: Callable[..., Any]) -> None:
    """By the same command again; nothing else of what they recorded changes."""
    for figure in (50.0, 20.0):
        expect = [{"source": "a paper", "val_images": 14, "val_error_top1": {"cifar-plain-8": figure}}]
        code, _, err = program("run", config(networks=NETWORKS[:1], expect=expect))
        assert code == 0, err
        folder = Path("runs") / FOLDERS[0]
        record = run_folder.read(folder)
        [entry] = record.run.expect
        assert (entry.figures("val_error_top1"), len(record.records)) == (
            {"cifar-plain-8": figure},
            len(figures(folder)),
        )
    [before] = load.runs(load.load(config(networks=NETWORKS[:1])))
    assert record.run.model_copy(update={"expect": ()}) == before


def test_a_run_of_several_may_repeat_itself_but_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their notes are shown once; a traceback has equal lines, and without some of them cannot be read."""
    lines = ["a note", "  return f(x)", "  ^^^^", "  return f(x)", "  ^^^^"]

    class TwoRuns:
        def __init__(self, **_: object) -> None:
            self.running: list[object] = []

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start(self, *_: object) -> object:
            self.running.append(object())
            return self.running[-1]

        def receive(self, timeout: float) -> Iterator[tuple[object, str]]:
            child = self.running[-1]
            for line in lines if len(self.running) == 2 else lines[:1]:
                yield child, line
            self.running.pop()

    shown: list[str] = []
    monkeypatch.setattr(grid, "Children", TwoRuns)
    monkeypatch.setattr(grid, "write_line", shown.append)
    queue: Any = [SimpleNamespace(run=SimpleNamespace(data=SyntheticConfig(kind="synthetic")))] * 2
    grid._train_several(queue, 2, StopRequest(), GridProgress(["one", "two"], [1, 1], 2))
    assert shown == lines
