"""The expected speed of ImageNet training on 1, 8, 64 and 512 GPUs: a simulation from measured speeds of one GPU.

    python scripts/scaling.py --step 5500 --core 300 --image-kb 110

The time of each step of each rank is random around the mean. A rank waits for its loader, which is at most three
batches ahead. All ranks wait for the slowest one, and for the part of the all-reduce that does not overlap with the
backward pass. The defaults describe a node of eight GPUs of 2026; they have not been measured on one.
"""

import argparse

import numpy as np

from resnet_train.config import zoo
from resnet_train.models import complexity
from resnet_train.runtime.tables import columns

_PREFETCHED = 3
"""Batches that the loader may be ahead."""
_GPUS_PER_NODE = 8
"""GPUs that share the links, cores and storage of a node."""


def all_reduce(gpus: int, size: float, link: float, network: float, latency: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes of gradients over `gpus`, within a node and between nodes."""
    slowest = link if gpus <= _GPUS_PER_NODE else min(link, network)
    return 2 * (gpus - 1) / gpus * size / slowest + 2 * (gpus - 1) * latency if gpus > 1 else 0.0


def simulate(gpus: int, compute: float, exposed: float, loading: float, spread: float, steps: int = 2000) -> float:
    """Mean seconds of a step, for `gpus` ranks that compute, load and wait for each other."""
    random = np.random.default_rng(0)

    def random_times(mean: float) -> np.ndarray:
        return mean * random.lognormal(-(spread**2) / 2, spread, (steps, gpus))

    compute_times, loading_times = random_times(compute), random_times(loading)
    loaded = np.zeros((steps, gpus))  # the time at which a rank's batch is ready
    ended = np.zeros(steps)  # the time at which all ranks have finished a step
    for step in range(steps):
        free = ended[step - _PREFETCHED] if step >= _PREFETCHED else 0.0  # when a buffer is free
        loaded[step] = np.maximum(free, loaded[step - 1] if step else 0.0) + loading_times[step]
        begin = np.maximum(loaded[step], ended[step - 1] if step else 0.0)
        ended[step] = (begin + compute_times[step]).max() + exposed
    return float(ended[-1] - ended[steps // 10]) / (steps - 1 - steps // 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet-50")
    parser.add_argument("--batch", type=int, default=256, help="images of each GPU (default: 256)")
    parser.add_argument("--step", type=float, required=True, help="images/s of one GPU's step without loading")
    parser.add_argument("--core", type=float, required=True, help="images/s of one core's loading")
    parser.add_argument("--cores", type=float, default=16, help="cores that load for one GPU (default: 16)")
    parser.add_argument("--image-kb", type=float, default=110, help="kB read for an image (default: 110)")
    parser.add_argument("--storage", type=float, default=5, help="GB/s that a node reads (default: 5)")
    parser.add_argument("--link", type=float, default=300, help="GB/s between GPUs of a node (default: 300)")
    parser.add_argument("--fabric", type=float, default=40, help="GB/s of a GPU between nodes (default: 40)")
    parser.add_argument("--latency", type=float, default=5, help="microseconds of a hop (default: 5)")
    parser.add_argument(
        "--spread",
        type=float,
        default=0.05,
        help="relative deviation of the times of steps and of loading (default: 0.05)",
    )
    args = parser.parse_args()
    network = zoo.network_config(args.network)
    gradients = 4 * complexity.network_complexity(network, 224, 1000).params
    compute = args.batch / args.step
    rows: list[tuple[str, ...]] = [
        ("GPUs", "images/s", "of ideal", "step ms", "all-reduce ms", "hidden", "read GB/s", "binds", "90 epochs, h")
    ]
    for gpus in (1, 8, 64, 512):
        reduce_time = all_reduce(gpus, gradients, args.link * 1e9, args.fabric * 1e9, args.latency * 1e-6)
        hidden = min(reduce_time, 2 / 3 * compute)  # the backward pass is two thirds of a step
        from_storage = args.storage * 1e9 / (args.image_kb * 1e3) / min(gpus, _GPUS_PER_NODE)
        loader = min(args.core * args.cores, from_storage)
        seconds = simulate(gpus, compute, reduce_time - hidden, args.batch / loader, args.spread)
        speed = gpus * args.batch / seconds
        limits = {
            "step": compute,
            "storage" if from_storage < args.core * args.cores else "cores": args.batch / loader,
            "all-reduce": reduce_time,
        }
        rows.append(
            (
                str(gpus),
                f"{speed:,.0f}",
                f"{speed / (gpus * args.step):.0%}",
                f"{1e3 * seconds:.1f}",
                f"{1e3 * reduce_time:.2f}",
                f"{hidden / reduce_time:.0%}" if reduce_time else "–",
                f"{speed * args.image_kb / 1e6:.2f}",
                max(limits, key=lambda name: limits[name]),
                f"{90 * 1_281_167 / speed / 3600:.2f}",
            )
        )
    print(columns(rows))


if __name__ == "__main__":
    main()
