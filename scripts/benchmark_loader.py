"""Compare the speed of the training loader with torchvision's reference loader and others.

    python scripts/benchmark_loader.py /data/imagenet                # class folders: PATH/train/CLASS/IMAGE
    python scripts/benchmark_loader.py /data/imagenet --soak 10000   # memory over 10,000 batches; start at a late step

In each round all loaders run in random order. Each is timed from the arrival of its first batch to that of its last,
and compared with the reference of the same round. The reference takes part twice: the spread of its second row is the
noise. Pixels are compared with the reference's on a scale of 0 to 255. Packed forms are made in a temporary folder.
timm, DALI and FFCV take part where they are installed (FFCV 1.0.2 builds with libopencv-dev, libturbojpeg0-dev and
pkg-config).

All loaders but timm's, DALI's and FFCV's crop the same boxes of the same files and flip the same images; those three
draw their own. The reference also converts images to floats and normalises them, as torchvision ships it; "reference,
uint8" does not, and the others leave that to the device. FFCV encodes the images again, with loss, and resizes by
areas; its size on disk is given without the padding of its pages of 8 MiB.
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
from dataclasses import dataclass
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
from resnet_train.data.batch import Batch
from resnet_train.data.image_folder import open_image_folder
from resnet_train.runtime.tables import columns

Loader = Callable[[], Iterator[Any]]
"""Starts a loader: an iterator over batches."""

_CPU = torch.device("cpu")
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_CROPS: dict[str, dict[str, Any]] = {
    "random-resized": {"kind": "random-resized", "size": 224},
    "scale": {"kind": "scale", "size": 224, "short_side": [256, 480]},
}


@dataclass(frozen=True)
class PackedForm:
    """A form of the same images that this program reads."""

    data: dict[str, Any]
    """Its `data` section."""
    disk: float
    """Its size, relative to the image files."""


@dataclass(frozen=True)
class FfcvForm:
    """A form of the same images that FFCV reads."""

    start: Loader
    disk: float
    """Its size, relative to the image files."""


def run_of(data: dict[str, Any], crop: str, batch_size: int) -> Run:
    """A run with the loader to be measured; its network is never built."""
    tree = {
        "experiment": "benchmark",
        "network": {"name": "none", "unit": "basic", "depths": [1], "widths": [8], "stem": "imagenet", "shortcut": "B"},
        "seed": 0,
        "data": data,
        "augment": {"crop": _CROPS[crop], "flip": True},
        "train": {"steps": 1, "batch_size": batch_size},
    }
    return read_run(tree, "benchmark")


# --- the loaders ------------------------------------------------------------------------------------------------------


def training_batches(run: Run, batches: int, start: int = 0) -> Iterator[Batch]:
    """The batches of this program's training loader."""
    train_set, _ = datasets.open_data(run.data)
    data = loader.training_data(run, train_set, run.seed, rank=0, ranks=1, device=_CPU)
    with closing(data.from_step(start, start + batches)) as steps:
        for step in steps:
            yield step.micro_batches[0]


class Reference(Dataset[tuple[Any, int]]):
    """torchvision's reference: Pillow decodes, crops and resizes, one sample at a time."""

    def __init__(self, run: Run, batches: int, floats: bool) -> None:
        assert run.data.kind == "imagefolder"
        dataset = open_image_folder(Path(run.data.path) / "train")
        sampler = loader.training_data(run, dataset, run.seed, rank=0, ranks=1, device=_CPU).sampler
        samples = [sampler.batch(step) for step in range(batches)]
        epochs = np.concatenate([batch.epochs for batch in samples])
        indices = np.concatenate([batch.indices for batch in samples])
        self.sizes = np.array([dataset.encoded(i).size for i in range(len(dataset))], float)[indices]
        self.plan = augment.plan(run.augment, rng.uniform(run.seed, epochs, indices, augment.DRAWS), self.sizes)
        self.files = [dataset.name(i) for i in indices.tolist()]
        self.labels = dataset.labels[indices].tolist()
        self.crop, self.floats = augment.resized_crop_of(run.augment), floats

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        with Path(self.files[i]).open("rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, right, bottom = self.plan.boxes[i]
        size = self.crop.size
        if self.crop.kind == "scale":  # the whole image is resized, then cropped, as in fb.resnet.torch and torchvision
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


def reference_loader(run: Run, batches: int, floats: bool) -> Loader:
    """torch's DataLoader over the reference, with the same number of workers."""
    dataset = Reference(run, batches, floats)
    batch_size, workers = run.train.batch_size, run.data.decode_workers
    return lambda: iter(DataLoader(dataset, batch_size, num_workers=workers, multiprocessing_context="forkserver"))


def timm_loader(run: Run, path: Path) -> Loader | None:
    """timm's loader without its transfer to the device: Pillow, uint8 batches by its own collate function."""
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
            device=_CPU,
            persistent_workers=False,
        ).loader
    )


def dali_loader(run: Run, path: Path, decode_crop: bool) -> Loader | None:
    """DALI on the CPU, with as many threads as workers; `decode_crop`: it decodes the crop alone."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        return None

    @pipeline_def(batch_size=run.train.batch_size, num_threads=run.data.decode_workers, device_id=None, seed=0)
    def define() -> Any:
        files, labels = fn.readers.file(file_root=str(path / "train"), random_shuffle=True)
        box: dict[str, Any] = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
        if decode_crop:
            images = fn.decoders.image_random_crop(files, **box)
            images = fn.resize(images, size=[224, 224], interp_type=types.INTERP_TRIANGULAR)
        else:
            images = fn.decoders.image(files)
            images = fn.random_resized_crop(images, size=224, interp_type=types.INTERP_TRIANGULAR, **box)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    def start() -> Iterator[Any]:
        pipeline = define()
        pipeline.build()
        while True:
            images, labels = pipeline.run()
            yield images.as_array(), labels

    return start


def ffcv_forms(run: Run, path: Path, batches: int) -> dict[str, FfcvForm]:
    """FFCV's loader, with as many threads as workers, over images of quality 90 with subsampled chroma.

    "half raw" is the form that ffcv-imagenet uses for ResNet-50. An epoch has as many images as are timed, so no thread
    works on while another loader is timed. The first batch, which is not timed, compiles the pipeline.
    """
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader as FfcvLoader
        from ffcv.loader import OrderOption
        from ffcv.transforms import RandomHorizontalFlip, ToTensor
        from ffcv.writer import DatasetWriter
    except ImportError:
        return {}
    options: dict[str, dict[str, Any]] = {
        "FFCV, JPEG": {"write_mode": "jpg"},
        "FFCV, half raw": {"write_mode": "proportion", "compress_probability": 0.5, "max_resolution": 500},
    }
    forms: dict[str, FfcvForm] = {}
    for name, option in options.items():
        file = str(path.parent / f"{name}.beton")
        fields = {"image": RGBImageField(**option), "label": IntField()}
        writer = DatasetWriter(file, fields, num_workers=run.data.decode_workers)
        writer.from_indexed_dataset(ImageFolder(str(path / "train")), shuffle_indices=True)
        ffcv_loader = FfcvLoader(
            file,
            batch_size=run.train.batch_size,
            num_workers=run.data.decode_workers,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=range(batches * run.train.batch_size),
            pipelines={"image": [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()]},
        )
        disk = ffcv_loader.reader.alloc_table["size"].sum() / bytes_of(path)
        forms[name] = FfcvForm(ffcv_loader.__iter__, disk)
    return forms


# --- the forms of the images ------------------------------------------------------------------------------------------


def link_copies(images: Path, folder: Path, count: int) -> Path:
    """Class folders of at least `count` training images: links to those of `images`, each as often as needed."""
    files = sorted((images / "train").glob("*/*"))
    for copy in range(-(-count // len(files))):
        for file in files:
            link = folder / "train" / file.parent.name / f"{copy}-{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    (folder / "val").symlink_to((images / "val").resolve())
    return folder


def pack(images: Path, dest: Path, *options: str) -> PackedForm:
    """Pack class folders with `resnet-train prepare`."""
    command = [sys.executable, "-m", "resnet_train", "prepare", str(images), str(dest), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return PackedForm({"kind": "shards", "path": str(dest)}, bytes_of(dest) / bytes_of(images))


def packed_forms(files: Path) -> dict[str, PackedForm]:
    """The class folders, and tiled shards made of them where jpegtran is installed."""
    forms = {"class folders": PackedForm({"kind": "imagefolder", "path": str(files)}, 1.0)}
    if not shutil.which("jpegtran"):
        print("jpegtran (libjpeg-turbo-progs) is not installed, so there are no tiled shards in the table")
        return forms
    forms["tiled shards"] = pack(files, files.parent / "tiled", "--tiled")
    forms["tiled, half raw"] = pack(files, files.parent / "half-raw", "--tiled", "--raw-fraction", "0.5")
    return forms


def bytes_of(data: Path) -> int:
    """Bytes of the files of the training set."""
    return sum(file.stat().st_size for file in (data / "train").rglob("*") if file.is_file())


# --- measuring --------------------------------------------------------------------------------------------------------


def seconds(start: Loader, batches: int) -> float:
    """From the arrival of the first batch to that of the last."""
    batch_iterator = start()
    next(batch_iterator)
    begin = time.perf_counter()
    for _ in range(batches - 1):
        next(batch_iterator)
    return time.perf_counter() - begin


def pixel_differences(run: Run, reference_run: Run, batches: int) -> tuple[int, float]:
    """The largest and the mean difference of this program's pixels from the reference's."""
    reference = Reference(reference_run, batches, floats=False)
    largest, total, count = 0, 0, 0
    for number, batch in enumerate(training_batches(run, batches)):
        for row, image in enumerate(batch.images.permute(0, 3, 1, 2).int()):
            pixels, _ = reference[number * run.train.batch_size + row]
            difference = (image - pixels.int()).abs()
            largest = max(largest, int(difference.max()))
            total, count = total + int(difference.sum()), count + difference.numel()
    return largest, total / count


def measure_crop(
    crop: str, forms: dict[str, PackedForm], batches: int, args: argparse.Namespace
) -> list[tuple[str, ...]]:
    """A row of the table for each loader."""
    runs = {name: run_of({**form.data, "workers": args.workers}, crop, args.batch) for name, form in forms.items()}
    reference_run = runs["class folders"]
    loaders: dict[str, Loader | None] = {
        "reference": reference_loader(reference_run, batches, floats=True),
        "reference again": reference_loader(reference_run, batches, floats=True),
        "reference, uint8": reference_loader(reference_run, batches, floats=False),
    }
    ffcv: dict[str, FfcvForm] = {}
    if crop == "random-resized":
        path = Path(forms["class folders"].data["path"])
        ffcv = ffcv_forms(reference_run, path, batches)
        loaders |= {
            "timm": timm_loader(reference_run, path),
            "DALI": dali_loader(reference_run, path, decode_crop=False),
            "DALI, crop": dali_loader(reference_run, path, decode_crop=True),
            **{name: form.start for name, form in ffcv.items()},
        }
    loaders |= {name: lambda run=run: training_batches(run, batches) for name, run in runs.items()}  # type: ignore[misc]
    installed = {name: start for name, start in loaders.items() if start is not None}

    times: dict[str, list[float]] = {name: [] for name in installed}
    for number in range(args.rounds):
        for name in random.Random(number).sample(list(installed), len(installed)):
            times[name].append(seconds(installed[name], batches))
            print(f"{crop}, round {number + 1}: {name} {times[name][-1]:.2f} s", file=sys.stderr)
    speed = statistics.median((batches - 1) * args.batch / t for t in times["reference"])
    print(f"{crop}: the reference loads {speed:.0f} images/s", file=sys.stderr)

    rows: list[tuple[str, ...]] = []
    for name in installed:
        ratios = [reference / t for reference, t in zip(times["reference"], times[name], strict=True)]
        disk, largest, mean = "", "", ""
        if name in forms:
            largest_difference, mean_difference = pixel_differences(runs[name], reference_run, 2)
            disk, largest, mean = f"{forms[name].disk:.2f}", str(largest_difference), f"{mean_difference:.3f}"
        elif name in ffcv:
            disk, largest = f"{ffcv[name].disk:.2f}", "re-encoded"
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        rows.append((crop, name, f"{statistics.median(ratios):.2f}", spread, disk, largest, mean))
    return rows


def compare(images: Path, folder: Path, args: argparse.Namespace) -> None:
    """Print the table: images per second, relative to the reference."""
    batches = 1 + args.images // args.batch
    forms = packed_forms(link_copies(images, folder / "files", args.images + args.batch))
    rows = [("augmentation", "loader", "ratio", "spread", "disk", "largest", "mean difference")]
    for crop in _CROPS:
        rows += measure_crop(crop, forms, batches, args)
    print(columns(rows))


def soak(images: Path, args: argparse.Namespace) -> None:
    """Print the time to the first batch at a late step, and the resident memory over many batches."""
    run = run_of({"kind": "imagefolder", "path": str(images), "workers": args.workers}, "random-resized", args.batch)
    for start in (0, 4_000_000):
        begin = time.perf_counter()
        next(training_batches(run, 1, start))
        print(f"first batch from step {start:,}: {time.perf_counter() - begin:.2f} s")
    for number, _ in enumerate(training_batches(run, args.soak), 1):
        if number in (args.soak // 10, args.soak):
            sizes = [resident_bytes(int(pid)) for pid in [os.getpid(), *descendants(os.getpid())]]
            print(f"after {number:,} batches: " + ", ".join(f"{size / 1e6:.0f} MB" for size in sizes))


def descendants(pid: int) -> list[str]:
    """The processes that a process started, and those that they started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return children + [descendant for child in children for descendant in descendants(int(child))]


def resident_bytes(pid: int) -> int:
    """Bytes of a process in memory, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="class folders, such as ImageNet or a part of it")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each loader (default: 2)")
    parser.add_argument("--batch", type=int, default=60, help="images of a batch (default: 60)")
    parser.add_argument("--images", type=int, default=2400, help="images of each loader in each round (default: 2400)")
    parser.add_argument("--rounds", type=int, default=9, help="times that each loader runs (default: 9)")
    parser.add_argument("--soak", type=int, metavar="BATCHES", help="measure memory over so many batches instead")
    args = parser.parse_args()
    if args.soak:
        soak(args.data, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(args.data, Path(folder), args)


if __name__ == "__main__":
    main()
