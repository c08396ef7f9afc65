"""The time of a training step without loading: ours, ours without each of its choices, torchvision's and timm's.

    python scripts/benchmark_step.py                                             # on a GPU: resnet-50-v1.5, 256 images
    python scripts/benchmark_step.py --network cifar-resnet-20 --batch 128
    python scripts/benchmark_step.py --network cifar-resnet-20 --batch 32 --rounds 3       # also without a GPU
    python scripts/benchmark_step.py --only "- compile" --only timm

All steps start from the same weights, take the same four batches of noise and the same SGD. Each is compared with ours
alone, the most telling ones first, and its line is printed at once: in each round both run for about a second, in
random order. The figure is the time of a step divided by that of ours in the same round: the median and the range over
the rounds. "ours again" is the control; its range is the noise. Compiling and tuning are not counted. The loss is the
mean of steps 17 to 20.

Differences: our step takes uint8 images and normalises them, counts errors and computes the norm of the gradient on the
device; the others take normalised floats. torchvision's step waits for the device each time to print its figures, as it
ships; timm's does not. A network that a library does not have is ours, trained by the library's step.

Some choices are those of a whole process, so our step with them runs in one of its own. cuDNN keeps what it chose for a
shape. Inductor, which compiles for a GPU, has options that search longer. "+ DDP" is our step as one rank of several
takes it, without another rank: DistributedDataParallel, and a group of one. It is the work of the CPU that several GPUs
add to a step; with a CUDA graph it should vanish. Take the batch of one GPU for it, such as --batch 32.
"""

import argparse
import gc
import importlib
import importlib.util
import math
import multiprocessing
import os
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
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
    normalize_inside: bool = False,
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

    if normalize_inside:
        state.forward = torch.compile(Normalizing(state.net, normalization, batches[0].shift), dynamic=False)  # type: ignore[assignment]
        normalize = lambda batch: batch.images  # noqa: E731

    def step(number: int) -> Tensor:
        state.sums.zero_()
        step_batches = StepBatches([batches[number]], [0], 0.0)
        train_step(state, step_batches, normalize, run.optimizer.lr, run.train)  # type: ignore[arg-type]
        return state.sums[0] / state.sums[2]

    return Contestant(step, run.train.precision, automatic_gc=False)


class Normalizing(nn.Module):
    """A network and the normalisation before it, to be compiled as one: uint8 [n, H, W, C] -> logits."""

    def __init__(self, net: nn.Module, normalization: Normalization, shift: Tensor) -> None:
        super().__init__()
        self.net, self.normalization, self.shift = net, normalization, shift

    def forward(self, images: Tensor) -> Any:
        return self.net(self.normalization(Batch(images, self.shift, self.shift)))


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


Setting = dict[str, Any]


def create_contestants(
    cfg: Any, batch: int, device: torch.device, ranks: int = 1, **settings: Any
) -> dict[str, Callable[[], Contestant]]:
    """How to create each contestant, by name, in the order of their worth; `ours` and `eager fp32` come first."""
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
    best: Setting = {"precision": "bf16", "compile": cuda, "cuda_graph": cuda and small} | settings
    world = World(device, size=ranks)

    def our(changes: Setting, **options: Any) -> Callable[[], Contestant]:
        run = create_run(network, batch, **best | changes)
        return partial(ours, run, batches, normalization, world, **options)

    def elsewhere(name: str) -> Callable[[], Contestant]:
        return lambda: in_its_own_process(cfg.name, batch, device, name)

    def theirs(step: Callable[..., Contestant], library: Any) -> Contestant:
        images, labels = [normalization(b).contiguous() for b in batches], [b.labels for b in batches]
        return step(library_network(library, cfg, classes), images, labels, device)

    contestants: dict[str, Callable[[], Contestant]] = {
        "ours": our({}),
        "eager fp32": our({"precision": "fp32", "compile": False, "cuda_graph": False}),
        "torchvision": lambda: theirs(torchvision_step, torchvision.models),
    }
    if importlib.util.find_spec("timm") is None:
        print("timm is not installed: its step is left out", file=sys.stderr)
    else:
        contestants["timm"] = lambda: theirs(timm_step, importlib.import_module("timm"))
    contestants["ours again"] = our({})  # the name of a place in the order: `main` takes ours
    if cuda:
        contestants |= {
            "- compile": our({"compile": False}),
            "- compile, bf16: fp16": our({"compile": False, "precision": "fp16"}),
            "- bf16: fp16": our({"precision": "fp16"}),
            "- CUDA graph" if small else "+ CUDA graph": our({"cuda_graph": not small}),
        }
    contestants |= {"- channels last": our({}, channels_last=False), "- fused SGD": our({}, fused=False)}
    if cuda:
        contestants |= {
            "- cuDNN benchmark": elsewhere("- cuDNN benchmark"),
            "+ cuDNN benchmark, all": elsewhere("+ cuDNN benchmark, all"),
            "+ normalise inside": our({}, normalize_inside=True),
            "- bf16: tf32": our({"precision": "tf32"}),
        }
    contestants |= {"- bf16: fp32": our({"precision": "fp32"}), "- manual GC": our({}), "+ DDP": elsewhere("+ DDP")}
    if cuda:
        # The last two take minutes to compile.
        later = ("+ DDP, CUDA graph", "+ coordinate descent", "+ max autotune")
        contestants |= {name: elsewhere(name) for name in later}
    return contestants


# --- choices of a process ---------------------------------------------------------------------------------------------


def in_its_own_process(network: str, batch: int, device: torch.device, choice: str) -> Contestant:
    """Our step in a process that makes a choice of `CHOICES`. It works only when it is asked to."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    context.Process(target=_serve, args=(other, network, batch, device, choice), daemon=True).start()
    other.close()  # so that the end of the process is seen

    class Remote(Contestant):
        def take(self, steps: int, device: torch.device) -> tuple[float, float]:
            connection.send(steps)
            answer: tuple[float, float] = connection.recv()
            return answer

    return Remote(lambda _: torch.zeros(()), "bf16")


def _serve(*arguments: Any) -> None:
    """What the process does. It ends at once: the clean-up of NCCL could wait for a graph for ever."""
    try:
        take_by_request(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def take_by_request(connection: Connection, network: str, batch: int, device: torch.device, choice: str) -> None:
    """Take steps until the other process ends."""
    settings = CHOICES[choice](device)
    contestant = create_contestants(zoo.network_config(network), batch, device, **settings)["ours"]()
    contestant.cudnn_benchmark = choice != "- cuDNN benchmark"
    with suppress(EOFError):
        while True:
            connection.send(contestant.take(connection.recv(), device))


def _inductor(options: Setting) -> Setting:
    from torch._inductor import config

    for name, value in options.items():
        setattr(config, name, value)
    return {}


def _every_plan(_: torch.device) -> Setting:
    torch.backends.cudnn.benchmark_limit = 0  # by default the ten that cuDNN's rules rank first
    return {}


def _one_rank_of_several(device: torch.device) -> Setting:
    backend, device_id = ("cpu:gloo,cuda:nccl", torch.device("cuda", 0)) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device_id)
    return {"ranks": 2}


CHOICES: dict[str, Callable[[torch.device], Setting]] = {
    "- cuDNN benchmark": lambda _: {},
    "+ cuDNN benchmark, all": _every_plan,
    "+ DDP": lambda device: _one_rank_of_several(device) | {"cuda_graph": False},
    "+ DDP, CUDA graph": lambda device: _one_rank_of_several(device) | {"cuda_graph": True},
    "+ coordinate descent": lambda _: _inductor({"coordinate_descent_tuning": True}),
    "+ max autotune": lambda _: _inductor(torch._inductor.list_mode_options("max-autotune-no-cudagraphs")),
}
"""How a process makes a choice; returns what our step then differs in."""


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


@dataclass(frozen=True)
class Result:
    """A contestant beside ours: seconds of a step in each round, and the loss after 20 steps."""

    seconds: list[float]
    our_seconds: list[float]
    loss: float

    def cells(self) -> str:
        """How much faster ours is, the range over the rounds, and the loss."""
        ratios = [theirs / ours for theirs, ours in zip(self.seconds, self.our_seconds, strict=True)]
        return f"{statistics.median(ratios):5.2f}  {min(ratios):5.2f}–{max(ratios):5.2f}  {self.loss:.4f}"


def compare(contestant: Contestant, our: Contestant, rounds: int, device: torch.device) -> Result:
    """Take turns in random order."""
    loss = contestant.take(_STEPS, device)[1]
    both = [contestant, our]
    steps = [max(2, round(1 / one.take(3, device)[0])) for one in both]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for i in random.Random(number).sample((0, 1), 2):
            seconds[i].append(both[i].take(steps[i], device)[0])
    return Result(*seconds, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument(
        "--network", default="resnet-50-v1.5" if cuda else "cifar-resnet-20", help="(default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=256 if cuda else 32, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--only", action="append", metavar="STEP", help="compare only this step; may be repeated")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    cfg = zoo.network_config(args.network)
    contestants = create_contestants(cfg, args.batch, device)
    if unknown := set(args.only or ()) - set(contestants):
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(contestants)}")

    limits = roofline.measure_limits(device, "bf16")
    size, classes = complexity.default_input(cfg)
    bound = roofline.images_per_second(complexity.stage_table(cfg, size, classes), limits, "bf16")
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{cfg.name}, {args.batch} images of {size} px, {args.rounds} rounds; {where}, torch {torch.__version__}")
    print(f"matrix product {limits.flops / 1e12:.3g} TFLOP/s (bf16), copy {limits.bytes / 1e12:.3g} TB/s")
    begin = time.perf_counter()
    our = contestants.pop("ours")()
    contestants["ours again"] = lambda: our
    contestants["- manual GC"] = lambda: Contestant(our.step, our.precision, automatic_gc=True)
    torch.compiler.reset = lambda: None  # each new network would discard what is compiled for ours
    our_loss = our.take(_STEPS, device)[1]
    speed = args.batch / statistics.median(our.take(_STEPS, device)[0] for _ in range(3))
    reached = f"ours: {speed / bound:.0%} of the roofline"
    if cuda:
        reached += f", {speed:,.0f} of {bound:,.0f} images/s"
    print(f"{reached}; loss {our_loss:.4f}; ready after {time.perf_counter() - begin:.0f} s", flush=True)

    print(f"{'step':24} ours is faster  range  loss")
    reference, wrong = math.nan, []
    for name, create in contestants.items():
        if args.only and name not in [*args.only, "eager fp32"]:
            continue
        begin = time.perf_counter()
        try:
            contestant = create()
            result = compare(contestant, our, args.rounds, device)
        except (EOFError, OSError, RuntimeError) as error:
            # Of its own process only the end is seen; it has written why.
            [reason, *_] = str(error).splitlines() if isinstance(error, RuntimeError) else ["its process ended"]
            print(f"{name:24} failed: {reason}", flush=True)
            wrong.append(f"{name} (failed)")
            continue
        print(f"{name:24} {result.cells()}  ({time.perf_counter() - begin:.0f} s)", flush=True)
        checked = [] if contestant.step is our.step else [(name, result.loss, contestant.precision)]
        if name == "eager fp32":
            reference, checked = result.loss, [("ours", our_loss, our.precision)]
        for one, loss, precision in checked:
            if abs(loss - reference) > _TOLERANCE[precision] * reference:
                wrong.append(f"{one} ({loss:.4f})")
        del contestant
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    print(f"losses that differ from that of eager fp32 by more than {_TOLERANCE}: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
