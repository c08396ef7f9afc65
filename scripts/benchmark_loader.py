"""Images per second of the training loader against torchvision's reference loader and others, side by side.

    python scripts/benchmark_loader.py /data/imagenet                # class folders: PATH/train/CLASS/IMAGE
    python scripts/benchmark_loader.py /data/imagenet --soak 10000   # does memory grow? does a late step start late?

Every loader crops the same boxes of the same files, flipped alike, but timm's, DALI's and FFCV's, which draw their own.
Each round runs all of them in random order, each from the arrival of its first batch to that of its last, and gives
ratios to the reference of that round; the second reference is the control, whose spread is the noise. Packed forms are
made in a temporary folder. Pixels are compared with the reference's, on the 0 to 255 scale. timm, DALI and FFCV take
part where they are installed (FFCV 1.0.2 builds with libopencv-dev, libturbojpeg0-dev and pkg-config).

Not alike: the reference also makes floats and normalises them, as it ships; the rest leave uint8 for the device to
normalise, and "reference, uint8" does without floats, too. FFCV's pixels are not those of the files, which it encodes
anew, with loss, and resizes by areas; its disk share leaves out the padding of its pages of 8 MiB.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.data import augment, datasets, loader, rng
from resnet_train.data.image_folder import open_image_folder
from resnet_train.runtime.tables import columns

Loader = Callable[[], Iterator[Any]]
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_CROPS: dict[str, dict[str, Any]] = {
    "random-resized": {"kind": "random-resized", "size": 224},
    "scale": {"kind": "scale", "size": 224, "short_side": [256, 480]},
}


def run_of(data: dict[str, Any], crop: str, batch: int) -> Run:
    """A run whose loader is measured."""
    tree = {
        "experiment": "benchmark",
        "network": {"name": "none", "unit": "basic", "depths": [1], "widths": [8], "stem": "imagenet", "shortcut": "B"},
        "seed": 0,
        "data": data,
        "augment": {"crop": _CROPS[crop], "flip": True},
        "train": {"steps": 1, "batch_size": batch},
    }
    return read_run(tree, "benchmark")


def ours(run: Run, batches: int, start: int = 0) -> Iterator[Any]:
    """The program's own training loader."""
    source, _ = datasets.open_data(run.data)
    data = loader.training_data(run, source, run.seed, 0, 1, torch.device("cpu"))
    with closing(data.from_step(start, start + batches)) as shares:
        for share in shares:
            yield share.micro_batches[0]


class Reference(Dataset[tuple[Any, int]]):
    """torchvision's reference: Pillow decodes, cuts and resizes, one sample at a time."""

    def __init__(self, run: Run, batches: int, floats: bool) -> None:
        assert run.data.kind == "imagefolder"
        source = open_image_folder(Path(run.data.path) / "train")
        stream = loader.training_data(run, source, run.seed, 0, 1, torch.device("cpu")).sampler
        epochs, indices = map(np.concatenate, zip(*(stream.batch(step) for step in range(batches)), strict=True))
        sizes = np.array([source.encoded(i).size for i in range(len(source))], float)[indices]
        table = rng.uniform(run.seed, epochs, indices, augment.DRAWS)
        self.plan = augment.plan(run.augment, table, sizes)
        self.files = [source.name(i) for i in indices.tolist()]
        self.labels = source.labels[indices].tolist()
        self.crop, self.floats, self.sizes = run.augment.crop, floats, sizes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        with Path(self.files[i]).open("rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, right, bottom = self.plan.boxes[i]
        assert self.crop is not None
        assert self.crop.kind != "pad"
        size = self.crop.size
        if self.crop.kind == "scale":  # the whole resized, then cut, as fb.resnet.torch and torchvision do it
            width, height = self.sizes[i] * size / (right - left, bottom - top)
            image = image.resize((round(width), round(height)), Image.Resampling.BILINEAR)
            x, y = round(left * size / (right - left)), round(top * size / (bottom - top))
            image = image.crop((x, y, x + size, y + size))
        else:
            box = tuple(map(int, (left, top, right, bottom)))
            image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        if self.plan.flip[i]:
            image = tv.horizontal_flip(image)
        pixels = tv.pil_to_tensor(image)
        if self.floats:
            return tv.normalize(tv.to_dtype(pixels, torch.float32, scale=True), _MEAN, _STD), self.labels[i]
        return pixels, self.labels[i]


def reference(run: Run, batches: int, floats: bool) -> Loader:
    """The reference's DataLoader, with as many workers as ours."""
    made = Reference(run, batches, floats)
    batch = run.train.batch_size
    return lambda: iter(
        DataLoader(made, batch, num_workers=run.data.decode_workers, multiprocessing_context="forkserver")
    )


def timms(run: Run, path: Path) -> Loader | None:
    """timm's loader up to the device: Pillow, uint8 batches by its own collate function."""
    try:
        from timm.data import ImageDataset, create_loader
    except ImportError:
        return None
    return lambda: iter(
        create_loader(
            ImageDataset(str(path / "train")),
            input_size=(3, 224, 224),
            batch_size=run.train.batch_size,
            is_training=True,
            num_workers=run.data.decode_workers,
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5,
            color_jitter=None,
            interpolation="bilinear",
            device=torch.device("cpu"),
            persistent_workers=False,
        ).loader
    )


def dalis(run: Run, path: Path, partly: bool) -> Loader | None:
    """DALI on the CPU, as many threads as workers; `partly`: only the crop is decoded."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        return None

    @pipeline_def(batch_size=run.train.batch_size, num_threads=run.data.decode_workers, device_id=None, seed=0)
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(path / "train"), random_shuffle=True)
        box: dict[str, Any] = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
        if partly:
            images = fn.decoders.image_random_crop(files, **box)
            images = fn.resize(images, size=[224, 224], interp_type=types.INTERP_TRIANGULAR)
        else:
            images = fn.decoders.image(files)
            images = fn.random_resized_crop(images, size=224, interp_type=types.INTERP_TRIANGULAR, **box)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    def start() -> Iterator[Any]:
        made = pipeline()
        made.build()
        while True:
            images, labels = made.run()
            yield images.as_array(), labels

    return start


def ffcvs(run: Run, path: Path, batches: int) -> dict[str, tuple[Loader, float]]:
    """FFCV's loader, as many threads as workers, and its images' bytes as a share of the files'.

    All are encoded anew (quality 90, chroma subsampled); "half raw" is ffcv-imagenet's form for ResNet-50. An epoch is
    what is measured, so that no thread works on when others are; the first batch compiles, and is not timed.
    """
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader as Ffcv
        from ffcv.loader import OrderOption
        from ffcv.transforms import RandomHorizontalFlip, ToTensor
        from ffcv.writer import DatasetWriter
    except ImportError:
        return {}
    forms: dict[str, dict[str, Any]] = {
        "FFCV, JPEG": {"write_mode": "jpg"},
        "FFCV, half raw": {"write_mode": "proportion", "compress_probability": 0.5, "max_resolution": 500},
    }
    found: dict[str, tuple[Loader, float]] = {}
    for name, form in forms.items():
        file = str(path.parent / f"{name}.beton")
        fields = {"image": RGBImageField(**form), "label": IntField()}
        writer = DatasetWriter(file, fields, num_workers=run.data.decode_workers)
        writer.from_indexed_dataset(ImageFolder(str(path / "train")), shuffle_indices=True)
        made = Ffcv(
            file,
            batch_size=run.train.batch_size,
            num_workers=run.data.decode_workers,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=range(batches * run.train.batch_size),
            pipelines={"image": [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()]},
        )
        found[name] = made.__iter__, made.reader.alloc_table["size"].sum() / size(path)
    return found


def seconds(start: Loader, batches: int) -> float:
    """From the arrival of the first batch to that of the last."""
    found = start()
    next(found)
    begin = time.perf_counter()
    for _ in range(batches - 1):
        next(found)
    return time.perf_counter() - begin


def copies(source: Path, folder: Path, images: int) -> Path:
    """Class folders of at least so many training images: links to those of `source`, as often as it takes."""
    files = sorted((source / "train").glob("*/*"))
    for copy in range(-(-images // len(files))):
        for file in files:
            link = folder / "train" / file.parent.name / f"{copy}-{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    (folder / "val").symlink_to((source / "val").resolve())
    return folder


def packed(source: Path, dest: Path, *options: str) -> tuple[dict[str, Any], float]:
    """A packed form, and its size as a share of that of the files."""
    command = [sys.executable, "-m", "resnet_train", "prepare", str(source), str(dest), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"kind": "shards", "path": str(dest)}, size(dest) / size(source)


def size(data: Path) -> int:
    """Bytes of the files of the training set."""
    return sum(file.stat().st_size for file in (data / "train").rglob("*") if file.is_file())


def differences(run: Run, like: Run, batches: int) -> tuple[int, float]:
    """The largest and the mean distance of our pixels from the reference's."""
    wanted = Reference(like, batches, floats=False)
    largest, total, count = 0, 0, 0
    for number, batch in enumerate(ours(run, batches)):
        for row, image in enumerate(batch.images.permute(0, 3, 1, 2).int()):
            distance = (image - wanted[number * run.train.batch_size + row][0].int()).abs()
            largest = max(largest, int(distance.max()))
            total, count = total + int(distance.sum()), count + distance.numel()
    return largest, total / count


def compare(source: Path, folder: Path, args: argparse.Namespace) -> None:
    """The table: images per second as ratios to the reference."""
    batches = 1 + args.images // args.batch
    files = {"kind": "imagefolder", "path": str(copies(source, folder / "files", args.images + args.batch))}
    forms: dict[str, tuple[dict[str, Any], float]] = {"class folders": (files, 1.0)}
    tiled = {"tiled shards": ["--tiled"], "tiled, half raw": ["--tiled", "--raw-fraction", "0.5"]}
    if not shutil.which("jpegtran"):
        print("there is no jpegtran here (libjpeg-turbo-progs), so there are no tiled shards in the table")
        tiled = {}
    for name, options in tiled.items():
        forms[name] = packed(folder / "files", folder / name.replace(" ", "-"), *options)
    rows: list[tuple[str, ...]] = [("augmentation", "loader", "ratio", "spread", "disk", "largest", "mean difference")]
    for crop in _CROPS:
        like = run_of({**files, "workers": args.workers}, crop, args.batch)
        found: dict[str, Loader | None] = {
            "reference": reference(like, batches, floats=True),
            "reference again": reference(like, batches, floats=True),
            "reference, uint8": reference(like, batches, floats=False),
        }
        encoded: dict[str, tuple[Loader, float]] = {}
        if crop == "random-resized":
            path = Path(files["path"])
            encoded = ffcvs(like, path, batches)
            found |= {
                "timm": timms(like, path),
                "DALI": dalis(like, path, False),
                "DALI, crop": dalis(like, path, True),
                **{name: start for name, (start, _) in encoded.items()},
            }
        runs = {n: run_of({**data, "workers": args.workers}, crop, args.batch) for n, (data, _) in forms.items()}
        found |= {name: lambda run=run: ours(run, batches) for name, run in runs.items()}  # type: ignore[misc]
        loaders = {name: start for name, start in found.items() if start is not None}
        took: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(args.rounds):
            for name in random.Random(number).sample(list(loaders), len(loaders)):
                took[name].append(seconds(loaders[name], batches))
                print(f"{crop}, round {number + 1}: {name} {took[name][-1]:.2f} s", file=sys.stderr)
        for name, times in took.items():
            ratios = [one / other for one, other in zip(took["reference"], times, strict=True)]
            cells = [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}"]
            if name in forms:
                largest, mean = differences(runs[name], like, 2)
                cells += [f"{forms[name][1]:.2f}", str(largest), f"{mean:.3f}"]
            elif name in encoded:
                cells += [f"{encoded[name][1]:.2f}", "re-encoded"]
            rows.append((crop, name, *cells, *[""] * (5 - len(cells))))
        speed = statistics.median((batches - 1) * args.batch / t for t in took["reference"])
        print(f"{crop}: the reference loads {speed:.0f} images/s here", file=sys.stderr)
    print(columns(rows))


def soak(source: Path, args: argparse.Namespace) -> None:
    """Resident memory over many batches, and the time to the first batch at a late step."""
    run = run_of({"kind": "imagefolder", "path": str(source), "workers": args.workers}, "random-resized", args.batch)
    for start in (0, 4_000_000):
        begin = time.perf_counter()
        next(ours(run, 1, start))
        print(f"first batch from step {start:,}: {time.perf_counter() - begin:.2f} s")
    for number, _ in enumerate(ours(run, args.soak), 1):
        if number in (args.soak // 10, args.soak):
            sizes = [resident(int(pid)) for pid in [os.getpid(), *children(os.getpid())]]
            print(f"after {number:,} batches: " + ", ".join(f"{size / 1e6:.0f} MB" for size in sizes))


def children(pid: int) -> list[str]:
    """All processes below one."""
    direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return direct + [grandchild for child in direct for grandchild in children(int(child))]


def resident(pid: int) -> int:
    """Bytes in memory, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="class folders, such as the user's ImageNet or a part of it")
    parser.add_argument("--workers", type=int, default=2, help="processes of each loader (default: 2)")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--images", type=int, default=2400, help="of each loader in each round (default: 2400)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--soak", type=int, metavar="BATCHES", help="instead: memory over so many batches")
    args = parser.parse_args()
    if args.soak:
        soak(args.data, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(args.data, Path(folder), args)


if __name__ == "__main__":
    main()
