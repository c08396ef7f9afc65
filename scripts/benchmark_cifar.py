"""CIFAR-10 training with data loading: our loop against that of an ordinary script.

    python scripts/benchmark_cifar.py --data DATA       # the folder above cifar-10-batches-py
    python scripts/benchmark_cifar.py                   # noise of the same size

The ordinary script: torchvision's CIFAR10, RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize, a
DataLoader with two workers, the same network, weights and SGD, loss and errors read every 50 steps. Both shuffle, each
in its own order. In each round all run in random order; the figure is images per second divided by the script's in the
same round: the median and the range over the rounds. "script again" is the control. Starting workers, compiling and the
first steps are not counted. SIGTERM or Ctrl-C ends the rounds; the table is of the finished ones.
"""

import argparse
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resnet_train.config import zoo
from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader, normalize
from resnet_train.models import roofline
from resnet_train.models.network import build_network, initialise
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.tables import columns
from resnet_train.training.log import running_averages
from resnet_train.training.step import create_train_state, train_step

OUTSIDE = "ours, bf16, compiled, graph without crops"
"""The images are cropped by 14 launches before the graph, as without one."""
_LOG_EVERY = 50
"""Steps between two log lines."""


def create_run(network: str, data: str | None, batch: int, **train: Any) -> Run:
    """Our run: the recipe of configs/cifar10-depth.yaml."""
    noise = {"kind": "synthetic", "train_images": 50_000}
    tree = {
        "experiment": "benchmark",
        "network": zoo.network_fields(network),
        "seed": 0,
        "data": {"kind": "cifar10", "path": data} if data else noise,
        "augment": {"crop": {"kind": "pad", "padding": 4}, "flip": True},
        "train": {"steps": 1, "batch_size": batch, **train},
    }
    return read_run(tree, "benchmark")


def ours(run: Run, device: torch.device, crops_in_step: bool) -> Iterator[None]:
    """Our training loop; one step each time it is advanced."""
    world = World(device)
    source, _ = datasets.open_data(run.data)
    data = loader.training_data(run, source, run.seed, 0, 1, device)
    data = replace(data, options=replace(data.options, crops_in_step=crops_in_step))
    state = create_train_state(run, len(source.classes), source.channels, world)
    normalization = normalize.statistics(run, source).to(device)
    for batches in data.from_step(0, 2**62):
        set_precision(run.train.precision, device)
        train_step(state, batches, normalization, run.optimizer.lr, run.train)
        if state.step % _LOG_EVERY == 0:
            running_averages(world, state.sums)
        yield


class Noise(Dataset[tuple[Any, int]]):
    """50,000 images of noise in the form of torchvision's CIFAR10."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.data = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[i])), i % 10


def _ignore_signals(_: int) -> None:
    """For workers: a signal to all processes is for the main one, which ends the rounds and then its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def script(run: Run, path: str | None, device: torch.device) -> Iterator[None]:
    """The ordinary script; one step each time it is advanced."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    dataset: Any = datasets.CIFAR10(path, train=True, transform=transform) if path else Noise(transform)
    batches = DataLoader(
        dataset,
        run.train.batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals,
    )
    net = build_network(run.network, 10)
    initialise(net, run.seed)
    net.to(device).train()
    criterion, cfg = nn.CrossEntropyLoss(), run.optimizer
    optimizer = torch.optim.SGD(net.parameters(), cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    loss_sum, wrong, steps = torch.zeros((), device=device), torch.zeros((), device=device), 0
    while True:
        for images, labels in batches:
            set_precision("fp32", device)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = net(images)
            loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach()
            wrong += (logits.argmax(1) != labels).sum()
            steps += 1
            if steps % _LOG_EVERY == 0:
                loss_sum.item(), wrong.item()
                loss_sum.zero_(), wrong.zero_()
            yield


def seconds(steps: Iterator[None], count: int, device: torch.device) -> float:
    """The time of `count` steps, after five for which workers may have prepared batches."""
    for _ in range(5):
        next(steps)
    roofline.synchronize(device)
    begin = time.perf_counter()
    for _ in range(count):
        next(steps)
    roofline.synchronize(device)
    elapsed = time.perf_counter() - begin
    time.sleep(1)  # the script's workers fill their queue while nothing is measured
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10's folder (default: noise)")
    parser.add_argument("--network", default="cifar-resnet-20", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    cuda = torch.cuda.is_available()
    steps = 200 if cuda else 20
    parser.add_argument("--steps", type=int, default=steps, help="of each in each round (default: %(default)s)")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    settings: dict[str, dict[str, Any]] = {"ours, fp32": {}, "ours, bf16": {"precision": "bf16"}}
    if not cuda and shutil.which("g++"):  # by which torch compiles for the CPU
        settings["ours, fp32, compiled"] = {"compile": True}
        settings["ours, bf16, compiled"] = {"precision": "bf16", "compile": True}
    if cuda:
        settings["ours, bf16, graph"] = {"precision": "bf16", "cuda_graph": True}
        best = {"precision": "bf16", "cuda_graph": True, "compile": True}
        settings |= dict.fromkeys(("ours, bf16, compiled, graph", OUTSIDE), best)
    runs = {name: create_run(args.network, args.data, args.batch, **train) for name, train in settings.items()}
    plain = runs["ours, fp32"]
    loops = {"script": script(plain, args.data, device), "script again": script(plain, args.data, device)}
    for name, run in runs.items():
        loops[name] = ours(run, device, crops_in_step=run.train.cuda_graph and name != OUTSIDE)
    torch.backends.cudnn.benchmark = True  # for all loops
    times: dict[str, list[float]] = {name: [] for name in loops}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        for number in range(args.rounds + 1):
            for name in random.Random(number).sample(list(loops), len(loops)):
                elapsed = seconds(loops[name], args.steps, device)
                label = f"round {number}" if number else "warm-up"
                print(f"{label}: {name} {elapsed:.2f} s", file=sys.stderr)
                if number:
                    times[name].append(elapsed)
    done = min(map(len, times.values()))
    if not done:
        sys.exit("ended before the first round was done")
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.network}, batch {args.batch}, {done} x {args.steps} steps; {where}, torch {torch.__version__}")
    head = ("loop", "images/s", "range")
    rows: list[tuple[str, ...]] = [(*head, "images/s here") if cuda else head]
    for name, loop_times in times.items():
        ratios = [one / other for one, other in zip(times["script"][:done], loop_times[:done], strict=True)]
        speed = args.steps * args.batch / statistics.median(loop_times[:done])
        cells = (name, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}")
        rows.append((*cells, f"{speed:,.0f}") if cuda else cells)
    print(columns(rows))


if __name__ == "__main__":
    main()
