"""Whole runs: what they write, refuse, and say when something goes wrong."""

import gc
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import figures, spawn, unfreeze
from tiny_runs import CONFIGS, FOLDER, Config, Program, finish, last_step

from resnet_train.config import load
from resnet_train.evaluation import evaluator
from resnet_train.runs import run_folder
from resnet_train.runtime.progress import Progress
from resnet_train.training import checkpoint, sinks
from resnet_train.training.step import train_step


def test_a_run_folder_holds_what_it_must(config: Config, program: Program) -> None:
    folder = finish(program, config(checkpoint={"every": {"steps": 3}, "keep_every": {"steps": 4}}))
    names = {path.name for path in folder.iterdir()}
    logs = {name for name in names if "tfevents" in name}
    assert names - logs == {"config.yaml", "metrics.jsonl", "checkpoints", "env.json", "lock"}
    assert sorted(name.partition(".tf")[0] for name in logs) == ["attached-findings", "events.out"]
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert checkpoints == {"last.pt", "previous.pt", "best.pt", "step-4.pt", "step-8.pt"}
    records = figures(folder)
    assert [(r["kind"], r["step"]) for r in records] == [
        *[("start", 0), ("train", 2), ("train", 4), ("eval", 4), ("train", 6), ("train", 8), ("eval", 8), ("end", 8)]
    ]
    assert {"loss", "error", "lr", "grad_norm"} <= records[1].keys()
    assert {"val_error_top1", "val_error_top5", "val_loss", "clean_train_error_top1"} <= records[3].keys()
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["batch_size"] == 16
    session = json.loads((folder / "env.json").read_text())["sessions"][0]
    assert session["torch"] == torch.__version__
    spent = run_folder.read(folder).time_spent
    assert min(spent.training, spent.evaluation) > 0
    assert spent.probes == 0
    best = min(r["val_error_top1"] for r in records if r["kind"] == "eval")
    assert checkpoint.read_checkpoint(folder / "checkpoints" / "best.pt").payload["best"] == best


def test_running_error_is_that_of_the_window(config: Config, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and error of each line, against those of the network's own answers to the two batches before it; the rate is
    that of the second.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    cross_entropy = torch.nn.functional.cross_entropy

    def noted(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append((logits.detach(), labels))
        return cross_entropy(logits, labels, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", noted)
    folder = finish(program, config(schedule={"kind": "linear"}))
    lines = [record for record in figures(folder) if record["kind"] == "train"]
    assert len(lines) == 4
    for line, start in zip(lines, range(0, 8, 2), strict=True):
        logits, labels = (torch.cat(parts) for parts in zip(*seen[start : start + 2], strict=True))
        assert line["error"] == pytest.approx(100 * (logits.argmax(1) != labels).double().mean().item())
        assert line["loss"] == pytest.approx(cross_entropy(logits.double(), labels).item(), rel=1e-5)
        assert line["lr"] == pytest.approx(0.1 * (1 - (start + 1) / 8))


def test_a_run_folder_is_one_process_at_a_time(config: Config, program: Program) -> None:
    path = config(train={"steps": 100000}, checkpoint={"every": {"steps": 4}, "keep_every": {"steps": 4}})
    process = spawn("run", path)
    while last_step(FOLDER) < 8 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    for copy in FOLDER.glob("checkpoints/step-*.pt"):
        copy.unlink()  # the last would be written again
    before = {file: file.stat().st_ino for file in FOLDER.rglob("*")}
    for also in ([], ["--fresh"]):
        code, _, err = program("run", path, *also)
        assert (code, f"{FOLDER}: another process trains in it" in err) == (73, True), err
    assert {file: file.stat().st_ino for file in FOLDER.rglob("*")} == before
    process.kill()
    process.communicate()
    assert [entry.name for entry in FOLDER.parent.iterdir()] == ["seed-0"]
    assert program("run", path, "--fresh", "train.steps=2")[0] == 0


def test_a_finished_run_is_skipped_and_another_config_refused(config: Config, program: Program) -> None:
    path = config()
    folder = finish(program, path)
    before = (folder / "metrics.jsonl").read_text()
    code, _, err = program("run", path)
    assert (code, "finished already" in err) == (0, True)
    code, _, err = program("run", path, "optimizer.lr=0.2", "train.device=auto")
    assert code == 2
    assert f"{folder} holds a run with optimizer.lr = 0.1, not 0.2" in err
    assert (folder / "metrics.jsonl").read_text() == before
    code, _, err = program("run", path, "optimizer.lr=0.2", "--fresh")
    assert code == 0, err
    old = [entry for entry in folder.parent.iterdir() if entry.name.endswith(".old")]
    assert [(entry / "metrics.jsonl").read_text() for entry in old] == [before]
    assert '"lr": 0.2' in (folder / "metrics.jsonl").read_text()


def test_other_data_than_the_run_began_with_is_refused(config: Config, program: Program, images: Path) -> None:
    """The same path may hold more images than before: the order of samples would be another."""
    crop, view = {"kind": "random-resized", "size": 8}, {"resize": 8, "crop": 8}
    data = {"kind": "imagefolder", "path": str(images), "workers": 0}
    path = config(data=data, augment={"crop": crop}, eval={"view": view})
    record = finish(program, path) / "metrics.jsonl"
    record.write_text(record.read_text().rpartition('{"step": 8, "kind": "end"')[0])
    (images / "train" / "a" / "9.JPEG").write_bytes((images / "train" / "a" / "0.JPEG").read_bytes())
    code, _, err = program("run", path)
    assert (code, "began with 6 training images, and here are 7" in err) == (2, True)


def test_reduced_images_are_other_data_and_another_protocol(config: Config, program: Program, images: Path) -> None:
    for folder, options in (("whole", ()), ("small", ("--short-side", 8))):
        assert program("prepare", images, folder, *options)[0] == 0
    view = {"view": {"resize": 8, "crop": 8}}
    data = {"kind": "shards", "path": "whole", "workers": 0}
    path = config(data=data, augment={"crop": {"kind": "random-resized", "size": 8}}, eval=view)
    record = finish(program, path) / "metrics.jsonl"
    [result] = json.loads(program("eval", FOLDER / "checkpoints/last.pt", "--data", "small", "--json")[1])
    assert result["protocol"].startswith("validation set, shorter sides reduced to 8 px; one 8 px crop")
    saved_result = json.loads((FOLDER / "evaluation/results.jsonl").read_text())
    assert (saved_result["protocol"], saved_result["data"]) == (result["protocol"], "small")
    record.write_text(record.read_text().rpartition('{"step": 8, "kind": "end"')[0])
    code, _, err = program("run", path, "data.path=small")
    message = "began with images as the source has them; here they are shorter sides reduced to 8 px"
    assert (code, message in err) == (2, True), err
    elsewhere = Path("whole").rename("moved")
    free = ["eval.batch_size=3", "checkpoint.every.steps=1", "train.on_divergence=record"]
    assert program("run", path, f"data.path={elsewhere}", *free)[0] == 0


def test_a_checkpoint_of_another_network_is_refused(config: Config, program: Program) -> None:
    """Plain and residual networks with shortcut A have the same keys and shapes, so nothing else would tell."""
    path = config(networks=["cifar-plain-8", "cifar-resnet-8"])
    assert program("run", path)[0] == 0
    plain = Path("runs/tiny/cifar-plain-8/seed-0/checkpoints/last.pt")
    resnet = FOLDER / "checkpoints/last.pt"
    resnet.write_bytes(plain.read_bytes())
    record = FOLDER / "metrics.jsonl"
    record.write_text(record.read_text().rpartition('{"step": 8, "kind": "end"')[0])
    code, _, err = program("run", path)
    assert (code, f"{resnet} is of a run with network.name = cifar-plain-8" in err) == (2, True)
    code, _, err = program("eval", plain, "--set", "network.shortcut=A")
    assert (code, "and train.precision may change" in err) == (2, True)


def test_a_full_disk_under_the_record_is_one_line(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks.JsonLinesSink, "flush", full)
    code, _, err = program("run", config())
    assert (code, "cannot write in runs/tiny/cifar-resnet-8/seed-0: No space left on device" in err) == (2, True)
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("2.00 GiB"), RuntimeError("CUDA error: out of memory")])
def test_too_little_memory_names_what_to_lower(
    error: RuntimeError, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("resnet_train.training.loop.train_step", greedy)
    code, _, err = program("run", config())
    assert (code, "train.batch_size 16 is over 1 ranks x 1 passes: raise train.grad_accum_steps" in err) == (2, True)
    assert "Traceback" not in err


def test_without_a_terminal_a_line_is_printed_now_and_then(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "seconds_between_lines", 0.0)
    _, _, err = program("run", config())
    assert all(f"cifar-resnet-8 seed 0: step {step}/8, " in err for step in range(1, 9))
    assert "step 8/8, 00:00 left, train error" in err
    assert "images/s, evaluating 10/24 images\n" in err
    assert err.count(", val error ") == 2
    assert err.splitlines()[-1].startswith("cifar-resnet-8 seed 0: finished in 00:0")
    assert not {"\r", "\x1b"} & set(err)


def test_a_network_that_diverges_before_its_first_line_is_still_a_result(config: Config, program: Program) -> None:
    path = config(optimizer={"lr": 1e20}, train={"on_divergence": "record"}, log={"every": {"steps": 50}})
    code, out, err = program("run", path)
    assert code == 0, err
    assert "cifar-resnet-8 seed 0 diverged at step" in out
    assert "cifar-resnet-8 seed 0 diverged at step" in program("run", path)[1]


@pytest.mark.parametrize("policy", ["stop", "record"])
def test_divergence(policy: str, config: Config, program: Program) -> None:
    """It stops the run with step, samples and checkpoint named; or it is the result, and the next network begins."""
    networks = ["cifar-plain-8", {"base": "cifar-resnet-8", "widths": [4, 8, 8]}]
    exception = {"cifar-plain-8": {"schedule": {"kind": "step", "milestones": [{"steps": 4}], "gamma": 1e30}}}
    path = config(
        networks=networks, per_network=exception, train={"on_divergence": policy}, checkpoint={"every": {"steps": 1}}
    )
    code, out, err = program("run", path, "--json")
    assert "cifar-plain-8 seed 0: the loss or its gradient is not finite at step 5, of samples " in err
    listed = Path("runs/tiny/cifar-plain-8/seed-0/diverged-at-step-5.txt")
    assert f"listed in {listed}" in err
    assert len(listed.read_text().splitlines()) == 16
    last = Path("runs/tiny/cifar-plain-8/seed-0/checkpoints/last.pt")
    assert err.count(f"listed in {listed}); the last checkpoint is {last}\n") == 1
    assert checkpoint.read_checkpoint(last).step == 5
    assert FOLDER.exists() == (policy == "record")
    assert code == (1 if policy == "stop" else 0)
    if policy == "record":
        assert [row["network"] for row in json.loads(out)] == ["cifar-plain-8", "cifar-resnet-8"]
        assert figures(last.parents[1])[-1] == {"step": 5, "kind": "end", "status": "diverged"}
        assert "diverged already" in program("run", path)[2]


def test_eval_repeats_the_training_runs_figures(config: Config, program: Program) -> None:
    folder = finish(program, config(train={"ema_decay": 0.5}))
    last = next(record for record in reversed(figures(folder)) if record["kind"] == "eval")
    code, out, _ = program("eval", folder / "checkpoints/last.pt", folder / "checkpoints/best.pt", "--json")
    results = json.loads(out)
    assert code == 0
    assert (results[0]["error_top1"], results[0]["error_top5"]) == (last["val_error_top1"], last["val_error_top5"])
    assert (results[0]["step"], results[0]["images"], results[0]["network"]) == (8, 14, "cifar-resnet-8")
    assert "average of the weights (decay 0.5)" in results[0]["protocol"]
    assert "top-1 error" in program("eval", folder / "checkpoints/last.pt")[1]


def test_errors_are_counted_in_float64(config: Config, program: Program) -> None:
    """Top-1, top-5 and loss against sorting and exponentials written out."""
    folder = finish(program, config(data={"classes": 12, "val_images": 60}))
    saved = checkpoint.read_checkpoint(folder / "checkpoints/last.pt")
    run = saved.meta.run
    from resnet_train.data import datasets
    from resnet_train.models.network import Network
    from resnet_train.runtime.distributed import World

    net = Network(run.network, 12)
    net.load_state_dict(saved.payload["net"])
    _, val = datasets.open_data(run.data)
    world = World(torch.device("cpu"))
    data = evaluator.evaluation_data(run, val, world)
    members = [evaluator.EnsembleMember(net, saved.meta.normalization, "fp32")]
    result = evaluator.evaluate(members, data, "softmax", world)[0].errors()
    batches = list(data.batches())
    labels = torch.cat([batch.labels for batch in batches])
    with torch.no_grad():
        logits = torch.cat([net(saved.meta.normalization(batch)) for batch in batches]).double()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result["images"] == 60
    assert (ranks == 4).any()
    assert result["error_top1"] == pytest.approx(100 * (ranks >= 1).double().mean().item())
    assert result["error_top5"] == pytest.approx(100 * (ranks >= 5).double().mean().item())
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert result["loss"] == pytest.approx(-probabilities.gather(1, labels[:, None]).log().mean().item(), rel=1e-5)


@pytest.mark.parametrize("lr", [0.1, 1e30])
def test_garbage_is_collected_at_steps_that_are_due(
    lr: float, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all ranks alike, and never between; automatic again after a run, also one that failed."""
    taken, collected = [], []

    def step(*arguments: Any) -> Any:
        assert not gc.isenabled()
        assert gc.get_freeze_count()
        taken.append(1)
        return train_step(*arguments)

    monkeypatch.setattr("resnet_train.training.loop.train_step", step)
    monkeypatch.setattr(gc, "collect", lambda: collected.append(len(taken)))
    monkeypatch.setattr(gc, "unfreeze", unfreeze)
    code, _, err = program("run", config(optimizer={"lr": lr}))
    assert code == (0 if lr == 0.1 else 1), err
    assert collected == ([0, 2, 3, 4, 6, 8] if lr == 0.1 else [0, 2])
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_train_two_steps_on_synthetic_data(path: Path, program: Program, images: Path) -> None:
    """Every network of the file, narrower and of one unit a stage, with all of its recipe."""
    experiment = load.load(path)
    networks, repeats = experiment.networks, experiment.augment.repeated_augmentation
    stages = len(networks[0].depths)
    small = {"widths": [4] * stages, "depths": [1] * stages, "stem_width": 4}
    narrow = [load.dump(network) | small for network in networks]
    short = [
        "train.steps=2",
        f"train.batch_size={4 if 4 % repeats == 0 else 2 * repeats}",
        "train.device=cpu",
        "per_network=null",  # of which one trains for epochs
        "sweep=null",
        "eval.clean_train_images=4",
        "eval.batch_size=4",
        "seeds=[0]",
    ]
    short.append(f"networks={json.dumps(narrow)}")
    if path.stem.startswith("imagenet"):
        crop = {"size": 32} | ({"short_side": [36, 48]} if load.load(path).augment.crop.kind == "scale" else {})
        sizes = [f"augment.crop={json.dumps(crop)}", "eval.view={resize: 36, crop: 32}", "data.workers=0"]
        sizes += (
            ["augment.progressive_resizing={0: 16, 0.5: 32}"] if load.load(path).augment.progressive_resizing else []
        )
        code, _, err = program("run", path, *short, *sizes, f"data.path={images}")
    else:
        data = "data={kind: synthetic, size: 16, train_images: 8, val_images: 4, classes: 10}"
        code, _, err = program("run", path, *short, data)
    assert code == 0, err
    ends = [json.loads(file.read_text().splitlines()[-1]) for file in Path("runs").rglob("metrics.jsonl")]
    assert {(end["kind"], end["step"]) for end in ends} == {("end", 2)}
    assert len(ends) == len(networks) >= 1


def test_real_photographs_pass_through_the_whole_program(real_images: Path, config: Config, program: Program) -> None:
    data = {"kind": "imagefolder", "path": str(real_images / "imagenet-natural-c100"), "workers": 1}
    path = config(
        data=data,
        networks=[{"base": "resnet-18", "widths": [8, 8, 8, 8]}],
        augment={"crop": {"kind": "scale", "size": 64, "short_side": [64, 96]}, "pca_lighting": True},
        train={"steps": 2, "batch_size": 8},
        eval={"every": {"steps": 2}, "view": {"resize": 72, "crop": 64}, "clean_train_images": 20, "batch_size": 64},
    )
    code, out, err = program("run", path, "--json")
    assert code == 0, err
    [row] = json.loads(out)
    assert 50 < row["val_error_top1"] <= 100
