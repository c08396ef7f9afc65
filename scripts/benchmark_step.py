"""The time of a training step without loading: ours, ours without each of its choices, torchvision's and timm's.

    python scripts/benchmark_step.py                                             # on a GPU: resnet-50-v1.5, 256 images
    python scripts/benchmark_step.py --network cifar-resnet-20 --batch 128
    python scripts/benchmark_step.py --network cifar-resnet-20 --batch 32 --rounds 3       # also without a GPU

All steps start from the same weights, take the same four batches of noise and the same SGD. In each round all run for
about a second, in random order. The figure is the time of a step divided by that of ours in the same round: the median
and the range over the rounds. "ours again" is the control; its range is the noise. Compiling and tuning are not
counted. The loss is the mean of steps 17 to 20. SIGTERM or Ctrl-C ends the rounds; the table is of the finished ones.

Differences: our step takes uint8 images and normalises them, counts errors and computes the norm of the gradient on the
device; the others take normalised floats. torchvision's step waits for the device each time to print its figures, as it
ships; timm's does not. A network that a library does not have is ours, trained by the library's step.
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
"""The largest relative difference of a loss after 20 steps from that of eager fp32. fp16 may be a step or two behind:
its loss scaler skips the first steps, whose gradients overflow."""


@dataclass
class Contestant:
    """A training step, and the settings under which it runs."""

    step: Callable[[int], Tensor]
    """Trains on the batch of a number; returns the loss, on the device."""
    precision: str
    cudnn_benchmark: bool = True
    """Whether cuDNN searches for the fastest kernels."""
    automatic_gc: bool = True
    """Whether Python collects garbage automatically, as it does by default."""

    def take(self, steps: int, device: torch.device) -> tuple[float, float]:
        """Take some steps. Returns the seconds of one step, and the mean loss of the last batches."""
        set_precision(self.precision, device)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        gc.collect()
        if not self.automatic_gc:
            gc.disable()
        roofline.synchronize(device)
        begin = time.perf_counter()
        losses = [self.step(number % _BATCHES) for number in range(steps)]
        roofline.synchronize(device)
        seconds = time.perf_counter() - begin
        gc.enable()
        return seconds / steps, torch.stack(losses[-_BATCHES:]).mean().item()


def create_run(network: dict[str, Any], batch: int, **train: Any) -> Run:
    """A run of our program whose step is measured."""
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
    cudnn_benchmark: bool = True,
) -> Contestant:
    """The program's own step."""
    classes = complexity.default_input(run.network)[1]
    state = create_train_state(run, classes, 3, world)
    normalize: Callable[[Batch], Tensor] = normalization
    if not channels_last:
        state.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        state.optimizer = optim.build_optimizer(state.net, run.optimizer)
        normalize = lambda batch: normalization(batch).contiguous()  # noqa: E731
    if not fused:
        lr = torch.tensor(_LR)  # on the CPU, where this implementation reads it
        state.optimizer = torch.optim.SGD(
            state.net.parameters(), lr, momentum=_MOMENTUM, weight_decay=_DECAY, foreach=True
        )

    def step(number: int) -> Tensor:
        state.sums.zero_()
        step_batches = StepBatches([batches[number]], [0], 0.0)
        train_step(state, step_batches, normalize, run.optimizer.lr, run.train)  # type: ignore[arg-type]
        return state.sums[0] / state.sums[2]

    return Contestant(step, run.train.precision, cudnn_benchmark, automatic_gc=False)


def torchvision_step(net: nn.Module, images: list[Tensor], labels: list[Tensor], device: torch.device) -> Contestant:
    """The step of torchvision's references/classification/train.py with --amp (on the CPU without), as it ships."""
    amp = device.type == "cuda"
    net.to(device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY)
    scaler = torch.amp.GradScaler(device.type) if amp else None
    printed: dict[str, float] = {}

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
        printed.update(loss=loss.item(), lr=optimizer.param_groups[0]["lr"], acc1=first.item(), acc5=fifth.item())
        return loss.detach()

    return Contestant(step, "fp16" if amp else "fp32")


def timm_step(net: nn.Module, images: list[Tensor], labels: list[Tensor], device: torch.device) -> Contestant:
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


def create_contestants(cfg: Any, batch: int, device: torch.device) -> tuple[str, dict[str, Contestant]]:
    """Our precision, and all contestants by name, not yet compiled."""
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
    create = partial(ours, batches=batches, normalization=normalization, world=World(device))
    contestants = {
        "ours": create(create_run(network, batch, **best)),
        "eager fp32": create(create_run(network, batch, **eager)),
        "- channels last": create(create_run(network, batch, **best), channels_last=False),
        "- bf16: fp32": create(create_run(network, batch, **best | {"precision": "fp32"})),
        "- fused SGD": create(create_run(network, batch, **best), fused=False),
    }
    if cuda:
        contestants["- bf16: tf32"] = create(create_run(network, batch, **best | {"precision": "tf32"}))
        contestants["- bf16: fp16"] = create(create_run(network, batch, **best | {"precision": "fp16"}))
        contestants["- compile"] = create(create_run(network, batch, **best | {"compile": False}))
        contestants["- compile, bf16: fp16"] = create(
            create_run(network, batch, **best | {"compile": False, "precision": "fp16"})
        )
        contestants["- cuDNN benchmark"] = create(create_run(network, batch, **best), cudnn_benchmark=False)
        other = "- CUDA graph" if small else "+ CUDA graph"
        contestants[other] = create(create_run(network, batch, **best | {"cuda_graph": not small}))
    contestants["ours again"] = contestants["ours"]
    contestants["- manual GC"] = Contestant(contestants["ours"].step, "bf16", automatic_gc=True)

    images = [normalization(b).contiguous() for b in batches]
    labels = [b.labels for b in batches]
    contestants["torchvision"] = torchvision_step(
        library_network(torchvision.models, cfg, classes), images, labels, device
    )
    try:
        import timm

        contestants["timm"] = timm_step(library_network(timm, cfg, classes), images, labels, device)
    except ImportError:
        print("timm is not installed: its step is left out", file=sys.stderr)
    return best["precision"], contestants


def library_network(library: Any, cfg: Any, classes: int) -> nn.Module:
    """A library's network with the weights that ours starts from; our network if the library does not have it."""
    net = build_network(cfg, classes)
    initialise(net, 0)
    names = {"resnet-18": "resnet18", "resnet-34": "resnet34"} | {
        f"resnet-{depth}-v1.5": f"resnet{depth}" for depth in (50, 101, 152)
    }
    if cfg.name not in names:
        return net
    constructor = getattr(library, names[cfg.name], None) or partial(library.create_model, names[cfg.name])
    theirs: nn.Module = constructor(num_classes=classes)
    theirs.load_state_dict(net.state_dict())
    return theirs


def compare(
    contestants: dict[str, Contestant], rounds: int, device: torch.device
) -> list[tuple[str, list[float], float]]:
    """Of each contestant: name, seconds of a step in each round, loss after 20 steps."""
    losses: dict[str, float] = {}
    steps: dict[str, int] = {}
    for name, contestant in contestants.items():
        begin = time.perf_counter()
        if name not in ("ours again", "- manual GC"):
            _, losses[name] = contestant.take(_STEPS, device)
        steps[name] = max(2, round(1 / contestant.take(3, device)[0]))
        print(f"{name}: ready after {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        for number in range(rounds):
            for name in random.Random(number).sample(list(contestants), len(contestants)):
                times[name].append(contestants[name].take(steps[name], device)[0])
                print(f"round {number + 1}: {name} {1e3 * times[name][-1]:.3f} ms", file=sys.stderr)
    done = min(map(len, times.values()))
    if not done:
        sys.exit("ended before the first round was done")
    return [(name, times[name][:done], losses.get(name, math.nan)) for name in contestants]


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
    precision, contestants = create_contestants(cfg, args.batch, device)
    limits = roofline.measure_limits(device, precision)
    size, classes = complexity.default_input(cfg)
    bound = roofline.images_per_second(complexity.stage_table(cfg, size, classes), limits, precision)
    measured = compare(contestants, args.rounds, device)

    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    base = {name: (times, loss) for name, times, loss in measured}
    rounds = len(base["ours"][0])
    print(f"{cfg.name}, {args.batch} images of {size} px, {rounds} rounds; {where}, torch {torch.__version__}")
    rows: list[tuple[str, ...]] = [("step", "ours is faster", "range", "loss")]
    for name, times, loss in measured:
        ratios = [other / one for one, other in zip(base["ours"][0], times, strict=True)]
        loss_cell = "" if math.isnan(loss) else f"{loss:.4f}"
        rows.append((name, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}", loss_cell))
    print(columns(rows))
    speed = args.batch / statistics.median(base["ours"][0])
    print(
        f"matrix product {limits.flops / 1e12:.3g} TFLOP/s ({precision}), copy {limits.bytes / 1e12:.3g} TB/s: ", end=""
    )
    reached = f"ours reaches {speed / bound:.0%} of the roofline"
    print(f"{reached}, {speed:,.0f} of {bound:,.0f} images/s" if cuda else reached)
    wrong = [
        f"{name} ({loss:.4f})"
        for name, _, loss in measured
        if abs(loss - base["eager fp32"][1]) > _TOLERANCE[contestants[name].precision] * base["eager fp32"][1]
    ]
    print(f"losses that differ from that of eager fp32 by more than {_TOLERANCE}: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
