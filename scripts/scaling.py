"""What 1, 8, 64 and 512 GPUs would do with ImageNet: arithmetic and a simulation, from figures that are given.

    python scripts/scaling.py --step 5500 --core 300 --image-kb 110

Every step of every rank takes its time, drawn around the mean; a rank waits for its loader, which is at most three
batches ahead, and all wait for the slowest and for the part of the all-reduce that the backward pass does not hide. The
defaults of a machine are an eight-GPU node of 2026: nothing here has been measured on one.
"""

import argparse

import numpy as np

from resnet_train.config import zoo
from resnet_train.models import complexity
from resnet_train.runtime.tables import columns

_AHEAD = 3
"""Batches that the ring holds."""
_NODE = 8
"""GPUs that share a node's memory links, cores and storage."""


def all_reduce(gpus: int, size: float, link: float, network: float, latency: float) -> float:
    """Seconds in which `size` bytes of gradients are summed by a ring over `gpus`, within a node and between nodes."""
    slowest = link if gpus <= _NODE else min(link, network)
    return 2 * (gpus - 1) / gpus * size / slowest + 2 * (gpus - 1) * latency if gpus > 1 else 0.0


def simulate(gpus: int, compute: float, exposed: float, loading: float, spread: float, steps: int = 2000) -> float:
    """Mean seconds of a step, of `gpus` ranks that compute, load and wait for each other."""
    random = np.random.default_rng(0)

    def drawn(mean: float) -> np.ndarray:
        return mean * random.lognormal(-(spread**2) / 2, spread, (steps, gpus))

    computing, filling = drawn(compute), drawn(loading)
    loaded = np.zeros((steps, gpus))  # when a rank's batch is ready
    ended = np.zeros(steps)  # when all ranks have ended a step
    for step in range(steps):
        free = ended[step - _AHEAD] if step >= _AHEAD else 0.0  # a slot of the ring
        loaded[step] = np.maximum(free, loaded[step - 1] if step else 0.0) + filling[step]
        begin = np.maximum(loaded[step], ended[step - 1] if step else 0.0)
        ended[step] = (begin + computing[step]).max() + exposed
    return float(ended[-1] - ended[steps // 10]) / (steps - 1 - steps // 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet-50")
    parser.add_argument("--batch", type=int, default=256, help="images of each GPU (default: 256)")
    parser.add_argument("--step", type=float, required=True, help="images/s of one GPU's step on data at rest")
    parser.add_argument("--core", type=float, required=True, help="images/s of one core's loading")
    parser.add_argument("--cores", type=float, default=16, help="loading for one GPU (default: 16)")
    parser.add_argument("--image-kb", type=float, default=110, help="read for an image (default: 110)")
    parser.add_argument("--storage", type=float, default=5, help="GB/s that a node reads (default: 5)")
    parser.add_argument("--link", type=float, default=300, help="GB/s between GPUs of a node (default: 300)")
    parser.add_argument("--fabric", type=float, default=40, help="GB/s of a GPU between nodes (default: 40)")
    parser.add_argument("--latency", type=float, default=5, help="microseconds of a hop (default: 5)")
    parser.add_argument("--spread", type=float, default=0.05, help="of a step's and a batch's time (default: 0.05)")
    args = parser.parse_args()
    network = zoo.network_config(args.network)
    gradients = 4 * complexity.network_complexity(network, 224, 1000).params
    compute = args.batch / args.step
    rows: list[tuple[str, ...]] = [
        ("GPUs", "images/s", "of ideal", "step ms", "all-reduce ms", "hidden", "read GB/s", "binds", "90 epochs, h")
    ]
    for gpus in (1, 8, 64, 512):
        reducing = all_reduce(gpus, gradients, args.link * 1e9, args.fabric * 1e9, args.latency * 1e-6)
        hidden = min(reducing, 2 / 3 * compute)  # the backward pass is two thirds of a step
        from_storage = args.storage * 1e9 / (args.image_kb * 1e3) / min(gpus, _NODE)
        loader = min(args.core * args.cores, from_storage)
        seconds = simulate(gpus, compute, reducing - hidden, args.batch / loader, args.spread)
        speed = gpus * args.batch / seconds
        limits = {
            "step": compute,
            "storage" if from_storage < args.core * args.cores else "cores": args.batch / loader,
            "all-reduce": reducing,
        }
        rows.append(
            (
                str(gpus),
                f"{speed:,.0f}",
                f"{speed / (gpus * args.step):.0%}",
                f"{1e3 * seconds:.1f}",
                f"{1e3 * reducing:.2f}",
                f"{hidden / reducing:.0%}" if reducing else "–",
                f"{speed * args.image_kb / 1e6:.2f}",
                max(limits, key=lambda name: limits[name]),
                f"{90 * 1_281_167 / speed / 3600:.2f}",
            )
        )
    print(columns(rows))


if __name__ == "__main__":
    main()
