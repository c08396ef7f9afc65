"""What a training step takes on data at rest: ours, ours with each choice taken back, torchvision's and timm's.

    python scripts/benchmark_step.py                                             # on a GPU: resnet-50-v1.5, 256 images
    python scripts/benchmark_step.py --network cifar-resnet-20 --batch 128
    python scripts/benchmark_step.py --network cifar-resnet-20 --batch 32 --rounds 3       # also without a GPU

Every step starts from the same weights, sees the same four batches of noise and does the same SGD. All take turns in
random order, about a second each; a figure is the time of a step over that of ours in the same round, so how many times
as fast ours is, or what a choice is worth: the median and the range over the rounds. "ours again" is the control, whose
range is the noise. Compiling and tuning come before. Loss is the mean of steps 17 to 20, as each precision has it.
SIGTERM or Ctrl-C ends the rounds, and the table is of those that are done.

Not alike: our step takes uint8 images and normalises them, counts its errors and notes the norm of its gradient on the
device; the others take floats that are normalised already. torchvision's waits for the device after each step to print
its figures, as it ships; timm's does not. Networks that they do not have are ours, under their steps.
"""

import argparse
import gc
import math
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from resnet_train.config import zoo
from resnet_train.config.load import dump, read_run
from resnet_train.config.network import NetConfig
from resnet_train.config.schema import Run
from resnet_train.data.batch import Batch, StepBatches
from resnet_train.data.normalize import Normalization
from resnet_train.models import complexity, roofline
from resnet_train.models.network import build_network, initialise
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.tables import columns
from resnet_train.training import optim
from resnet_train.training.step import create_train_state, train_step

_BATCHES = 4
_STEPS = 20
_LR, _MOMENTUM, _DECAY = 0.01, 0.9, 1e-4
_TOLERANCE = {"fp32": 0.01, "tf32": 0.02, "bf16": 0.05, "fp16": 0.15}
"""How far a loss after 20 steps may be from that of eager fp32, as a share of it. fp16 may be a step or two behind: its
scaler leaves out the first ones, whose gradients overflow."""


@dataclass
class Contestant:
    """A step, and what has to be set while it runs."""

    step: Callable[[int], Tensor]
    """Takes the number of a batch; the loss, as a tensor of the device."""
    precision: str
    tuned: bool = True
    """cuDNN searches for the fastest kernels."""
    collects: bool = True
    """Python collects garbage whenever it likes, as it does unless told otherwise."""

    def take(self, steps: int, device: torch.device) -> tuple[float, float]:
        """Seconds of a step, and the mean loss of the last batches."""
        set_precision(self.precision, device)
        torch.backends.cudnn.benchmark = self.tuned
        gc.collect()
        (gc.enable if self.collects else gc.disable)()
        roofline.synchronize(device)
        begin = time.perf_counter()
        losses = [self.step(number % _BATCHES) for number in range(steps)]
        roofline.synchronize(device)
        took = time.perf_counter() - begin
        gc.enable()
        return took / steps, torch.stack(losses[-_BATCHES:]).mean().item()


def run_of(network: dict[str, Any], batch: int, **train: Any) -> Run:
    """A run whose step is measured."""
    tree = {
        "experiment": "benchmark",
        "network": network,
        "seed": 0,
        "data": {"kind": "synthetic"},
        "optimizer": {"lr": _LR, "momentum": _MOMENTUM, "weight_decay": _DECAY},
        "train": {"steps": 1, "batch_size": batch, **train},
    }
    return read_run(tree, "benchmark")


def ours(
    run: Run,
    batches: list[Batch],
    normalization: Normalization,
    world: World,
    channels_last: bool = True,
    fused: bool = True,
    tuned: bool = True,
) -> Contestant:
    """The program's own step."""
    classes = complexity.default_input(run.network)[1]
    state = create_train_state(run, classes, 3, world)
    seen: Callable[[Batch], Tensor] = normalization
    if not channels_last:
        state.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        state.optimizer = optim.build_optimizer(state.net, run.optimizer)
        seen = lambda batch: normalization(batch).contiguous()  # noqa: E731
    if not fused:
        rate = torch.tensor(_LR)  # of the CPU, where this kind reads it
        state.optimizer = torch.optim.SGD(
            state.net.parameters(), rate, momentum=_MOMENTUM, weight_decay=_DECAY, foreach=True
        )

    def step(number: int) -> Tensor:
        state.sums.zero_()
        share = StepBatches([batches[number]], [0], 0.0)
        train_step(state, share, seen, run.optimizer.lr, run.train)  # type: ignore[arg-type]
        return state.sums[0] / state.sums[2]

    return Contestant(step, run.train.precision, tuned, collects=False)


def torchvisions(net: nn.Module, images: list[Tensor], labels: list[Tensor], device: torch.device) -> Contestant:
    """The step of torchvision's references/classification/train.py with --amp (on the CPU without), as it ships."""
    amp = device.type == "cuda"
    net.to(device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY)
    scaler = torch.amp.GradScaler(device.type) if amp else None
    shown: dict[str, float] = {}

    def accuracy(output: Tensor, target: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
        with torch.inference_mode():
            _, predicted = output.topk(max(ks), 1, True, True)
            correct = predicted.t() == target[None]
            return [correct[:k].flatten().sum(dtype=torch.float32) * (100.0 / len(target)) for k in ks]

    def step(number: int) -> Tensor:
        image, target = images[number], labels[number]
        with torch.amp.autocast(device.type, torch.float16 if amp else None, enabled=amp):
            output = net(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        first, fifth = accuracy(output, target, (1, 5))
        shown.update(loss=loss.item(), lr=optimizer.param_groups[0]["lr"], acc1=first.item(), acc5=fifth.item())
        return loss.detach()

    return Contestant(step, "fp16" if amp else "fp32")


def timms(net: nn.Module, images: list[Tensor], labels: list[Tensor], device: torch.device) -> Contestant:
    """The step of timm's train.py with --amp --channels-last --torchcompile (on the CPU with --channels-last alone)."""
    from timm.optim import create_optimizer_v2
    from timm.utils import NativeScaler

    amp = device.type == "cuda"
    net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    criterion = nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(
        net, opt="momentum", lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY, filter_bias_and_bn=False
    )
    scaler = NativeScaler(device.type) if amp else None
    forward = torch.compile(net, backend="inductor") if amp else net

    def step(number: int) -> Tensor:
        with torch.autocast(device.type, torch.float16 if amp else None, enabled=amp):
            loss = criterion(forward(images[number]), labels[number])
        if scaler is not None:
            scaler(loss, optimizer)
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Contestant(step, "fp16" if amp else "fp32")


def contestants(cfg: Any, batch: int, device: torch.device) -> tuple[str, dict[str, Contestant]]:
    """Our precision, and all steps by name, made but not yet compiled."""
    network = dump(cfg)
    size, classes = complexity.default_input(cfg)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(_BATCHES):
        images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, classes, (batch,), generator=generator)
        batches.append(Batch(images, labels, torch.zeros(batch, 3)).to(device))
    normalization = Normalization(torch.full((1, 1, 3), 127.5), torch.full((3,), 64.0)).to(device)

    cuda = device.type == "cuda"
    small = isinstance(cfg, NetConfig) and cfg.stem == "cifar"
    best: dict[str, Any] = {"precision": "bf16", "compile": cuda, "cuda_graph": cuda and small}
    eager = {"precision": "fp32", "compile": False, "cuda_graph": False}
    make = partial(ours, batches=batches, normalization=normalization, world=World(device))
    found = {
        "ours": make(run_of(network, batch, **best)),
        "eager fp32": make(run_of(network, batch, **eager)),
        "- channels last": make(run_of(network, batch, **best), channels_last=False),
        "- bf16: fp32": make(run_of(network, batch, **best | {"precision": "fp32"})),
        "- fused SGD": make(run_of(network, batch, **best), fused=False),
    }
    if cuda:
        found["- bf16: tf32"] = make(run_of(network, batch, **best | {"precision": "tf32"}))
        found["- bf16: fp16"] = make(run_of(network, batch, **best | {"precision": "fp16"}))
        found["- compile"] = make(run_of(network, batch, **best | {"compile": False}))
        found["- compile, bf16: fp16"] = make(run_of(network, batch, **best | {"compile": False, "precision": "fp16"}))
        found["- cuDNN's tuning"] = make(run_of(network, batch, **best), tuned=False)
        other = "- CUDA graph" if small else "+ CUDA graph"
        found[other] = make(run_of(network, batch, **best | {"cuda_graph": not small}))
    found["ours again"] = found["ours"]
    found["- garbage kept"] = Contestant(found["ours"].step, "bf16", collects=True)

    images = [normalization(b).contiguous() for b in batches]
    labels = [b.labels for b in batches]
    found["torchvision"] = torchvisions(peer(torchvision.models, cfg, classes), images, labels, device)
    try:
        import timm

        found["timm"] = timms(peer(timm, cfg, classes), images, labels, device)
    except ImportError:
        print("timm is not installed: its step is left out", file=sys.stderr)
    return best["precision"], found


def peer(library: Any, cfg: Any, classes: int) -> nn.Module:
    """Another library's network with the weights that ours starts from; ours where the library has none."""
    net = build_network(cfg, classes)
    initialise(net, 0)
    names = {"resnet-18": "resnet18", "resnet-34": "resnet34"} | {
        f"resnet-{depth}-v1.5": f"resnet{depth}" for depth in (50, 101, 152)
    }
    if cfg.name not in names:
        return net
    make = getattr(library, names[cfg.name], None) or partial(library.create_model, names[cfg.name])
    theirs: nn.Module = make(num_classes=classes)
    theirs.load_state_dict(net.state_dict())
    return theirs


def compare(found: dict[str, Contestant], rounds: int, device: torch.device) -> list[tuple[str, list[float], float]]:
    """Of each step: its name, its times in each round and its loss after 20 steps."""
    losses: dict[str, float] = {}
    steps: dict[str, int] = {}
    for name, contestant in found.items():
        begin = time.perf_counter()
        if name not in ("ours again", "- garbage kept"):
            _, losses[name] = contestant.take(_STEPS, device)
        steps[name] = max(2, round(1 / contestant.take(3, device)[0]))
        print(f"{name}: ready after {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in found}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        for number in range(rounds):
            for name in random.Random(number).sample(list(found), len(found)):
                times[name].append(found[name].take(steps[name], device)[0])
                print(f"round {number + 1}: {name} {1e3 * times[name][-1]:.3f} ms", file=sys.stderr)
    done = min(map(len, times.values()))
    if not done:
        sys.exit("ended before the first round was done")
    return [(name, times[name][:done], losses.get(name, math.nan)) for name in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument(
        "--network", default="resnet-50-v1.5" if cuda else "cifar-resnet-20", help="(default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=256 if cuda else 32, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    cfg = zoo.network_config(args.network)
    precision, found = contestants(cfg, args.batch, device)
    limits = roofline.measure_limits(device, precision)
    size, classes = complexity.default_input(cfg)
    bound = roofline.images_per_second(complexity.stage_table(cfg, size, classes), limits, precision)
    measured = compare(found, args.rounds, device)

    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    base = {name: (times, loss) for name, times, loss in measured}
    rounds = len(base["ours"][0])
    print(f"{cfg.name}, {args.batch} images of {size} px, {rounds} rounds; {where}, torch {torch.__version__}")
    rows: list[tuple[str, ...]] = [("step", "ours is faster", "range", "loss")]
    for name, times, loss in measured:
        ratios = [other / one for one, other in zip(base["ours"][0], times, strict=True)]
        shown = "" if math.isnan(loss) else f"{loss:.4f}"
        rows.append((name, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}", shown))
    print(columns(rows))
    speed = args.batch / statistics.median(base["ours"][0])
    print(
        f"matrix product {limits.flops / 1e12:.3g} TFLOP/s ({precision}), copy {limits.bytes / 1e12:.3g} TB/s: ", end=""
    )
    print(f"ours reaches {speed / bound:.0%} of the roofline" + f", {speed:,.0f} of {bound:,.0f} images/s" * cuda)
    wrong = [
        f"{name} ({loss:.4f})"
        for name, _, loss in measured
        if abs(loss - base["eager fp32"][1]) > _TOLERANCE[found[name].precision] * base["eager fp32"][1]
    ]
    print(f"losses that are not that of eager fp32 (within {_TOLERANCE}): {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
