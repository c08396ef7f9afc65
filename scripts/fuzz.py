"""Give `resnet-train` malformed inputs at every door, and see that each ends in order: with success, or in one line.

    python scripts/fuzz.py --minutes 20
    python scripts/fuzz.py --only checkpoint/17          # one input, with what the command printed

An input is DOOR/NUMBER; it is a function of --seed and these. A door is a kind of file: experiments, checkpoints,
weights, images, packed sets, sources of `prepare`, logits, and the records of a run. A sound file is changed, in its
bytes or in its structure, and a command reads it. A traceback, a signal, a hang, or too much memory is a failure.

Prints each failure with its exception and line, and a table; exits with 1 if there is a failure.
"""

import argparse
import csv
import io
import json
import os
import random
import re
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import yaml
from chaos import EXPERIMENT, in_parallel, make_images

CONFIGS = Path(__file__).parents[1] / "configs"
MEMORY = 4.0
"""GiB that a command may use beyond what it uses after its imports."""
RUN = "runs/tiny/cifar-resnet-8/seed-0"
LAST = f"{RUN}/checkpoints/last.pt"

NUMBERS: list[Any] = [0, -1, 1, 2, 255, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")]
TEXTS = [
    "",
    " ",
    "x",
    "0",
    "null",
    "true",
    "..",
    "/dev/zero",
    "/",
    "a/b",
    "a\0b",
    "\udcff",
    "日本",
    "x" * 10_000,
    "." * 1000,
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"kind": "x"}, {"": {}}, {1: 2}, [1] * 1000]


# --- changes ----------------------------------------------------------------------------------------------------------


def change(value: Any, rng: random.Random) -> Any:
    """A copy of nested lists and mappings with one place changed."""
    places = list(all_places(value))
    place = rng.choice(places)
    return changed_at(value, place, rng)


def all_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from all_places(item, (*place, key))


def changed_at(value: Any, place: tuple[Any, ...], rng: random.Random) -> Any:
    if not place:
        return replacement(value, rng)
    key, *rest = place
    items: Any = dict(value) if isinstance(value, dict) else list(value)
    action = rng.random()
    if not rest and action < 0.2:
        del items[key]
    elif not rest and action < 0.3 and isinstance(items, dict):
        items[rng.choice([*TEXTS, *items])] = items.pop(key)
    elif not rest and action < 0.4 and isinstance(items, list):
        items.insert(rng.randrange(len(items) + 1), items[key])
    else:
        items[key] = changed_at(items[key], tuple(rest), rng)
    return tuple(items) if isinstance(value, tuple) else items


def replacement(value: Any, rng: random.Random) -> Any:
    """Another value: of the same type, or of another."""
    import torch

    if isinstance(value, torch.Tensor) and rng.random() < 0.7:
        return rng.choice(
            [
                value.double(),
                value.flatten()[:-1],
                value[None],
                value.new_full(value.shape, float("nan")) if value.is_floating_point() else -value,
                value.to(torch.int8),
                value.new_zeros(0),
                value.to_sparse() if value.ndim else value,
                value.expand(1, *value.shape).to(torch.complex64),
            ]
        )
    if isinstance(value, str) and value and rng.random() < 0.5:
        return changed_bytes(value.encode("utf-8", "surrogateescape"), rng).decode("utf-8", "surrogateescape")
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return rng.choice([*NUMBERS, *TEXTS, *OTHERS])


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, inserted or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        start = rng.randrange(len(data) + 1)
        # Headers are short: half of the changes are near the start.
        start = min(start, rng.randrange(256)) if rng.random() < 0.5 else start
        length = rng.choice([1, 1, 2, 4, 16, 512])
        match rng.randrange(6):
            case 0:
                data[start : start + length] = rng.randbytes(len(data[start : start + length]))
            case 1:
                del data[start : start + length]
            case 2:
                data[start:start] = data[start : start + length]
            case 3:
                data[start:start] = rng.choice([b"\0", b"\xff", b"9" * 30, b"[" * 2000, b"\n", b"{", b"-", b'"', b": "])
            case 4:
                del data[start:]
            case 5 if data:
                data[start % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data)


def change_file(path: Path, rng: random.Random) -> None:
    path.write_bytes(changed_bytes(path.read_bytes(), rng))


def change_json(path: Path, rng: random.Random) -> None:
    """Change the structure of a JSON file, or of a line of a file of JSON lines."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(change(json.loads(lines[number]), rng))
    path.write_text("\n".join(lines) + "\n")


# --- doors: each changes a file of a folder, and gives the command that reads it --------------------------------------


def experiment(folder: Path, rng: random.Random) -> list[str]:
    source = rng.choice(sorted(CONFIGS.glob("*.yaml")))
    text = source.read_text()
    overrides = []
    match rng.randrange(3):
        case 0:
            text = changed_bytes(text.encode(), rng).decode("utf-8", "surrogateescape")
        case 1:
            content = yaml.safe_load(text)
            for _ in range(rng.choice([1, 1, 2])):
                content = change(content, rng)
            text = yaml.safe_dump(content, allow_unicode=True) if rng.random() < 0.8 else json.dumps(content)
        case 2:
            keys = [".".join(map(str, place)) for place in all_places(yaml.safe_load(text)) if place]
            for _ in range(rng.choice([1, 1, 2])):
                key, value = rng.choice(keys), replacement(None, rng)
                if rng.random() < 0.3:
                    key = changed_bytes(key.encode(), rng).decode("utf-8", "replace")
                overrides.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}".replace("\0", ""))
    (folder / "some.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    for other in CONFIGS.glob("*.yaml"):  # a file that `base` names
        shutil.copy(other, folder)
    return ["run", "some.yaml", "--dry-run", *(word for word in overrides if not word.startswith("-"))]


def checkpoint(folder: Path, rng: random.Random) -> list[str]:
    import torch

    path = folder / LAST
    if rng.random() < 0.4:
        change_file(path, rng)
    else:
        payload = torch.load(path, weights_only=True)
        for _ in range(rng.choice([1, 1, 3])):
            payload = change(payload, rng)
        torch.save(payload, path)
    if rng.random() < 0.5:
        path.with_name("previous.pt").unlink(missing_ok=True)
    return rng.choice(
        [
            ["run", "tiny.yaml"],
            ["eval", LAST],
            ["predict", LAST, "images/val/a/0.jpg"],
            ["export", LAST, "--to", "safetensors"],
            ["probe", "responses", LAST],
        ]
    )


def weights(folder: Path, rng: random.Random) -> list[str]:
    import torch

    if rng.random() < 0.5:
        path = folder / "weights.safetensors"
        change_file(path, rng)
    else:
        path = folder / "weights.pth"
        if rng.random() < 0.3:
            change_file(path, rng)
        else:
            state = torch.load(path, weights_only=True)
            if rng.random() < 0.3:
                prefix = rng.choice(["module.", "_orig_mod.", "backbone.", "x."])
                state = {rng.choice([prefix, ""]) + key: value for key, value in state.items()}
            if rng.random() < 0.3:
                state = {rng.choice(["state_dict", "model", "x"]): state, "epoch": 3}
            torch.save(change(state, rng), path)
    words = rng.choice([["predict", path.name, "images/val/a/0.jpg"], ["export", path.name, "--to", "safetensors"]])
    return [*words, *(["--network", "cifar-resnet-8"] if rng.random() < 0.8 else [])]


def image(folder: Path, rng: random.Random) -> list[str]:
    from PIL import Image

    kind = rng.choice(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
    mode = rng.choice(["RGB", "L"] if kind in ("JPEG", "WEBP", "PPM") else ["RGB", "L", "P", "1"])
    mode = rng.choice([mode, "LA", "I;16"]) if kind in ("PNG", "TIFF") else mode
    name = f"images/val/a/0.{rng.choice(['jpg', kind.lower()])}"
    picture = Image.effect_noise((40, 31), 90)
    content = io.BytesIO()
    (picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)).save(content, kind)
    (folder / name).write_bytes(changed_bytes(content.getvalue(), rng) if rng.random() < 0.95 else content.getvalue())
    return rng.choice(
        [
            ["predict", LAST, name],
            ["eval", LAST, "--set", "data.workers=0"],
            ["prepare", "images", "packed-2", "--workers", "1"],
            ["prepare", "images", "packed-2", "--workers", "1", "--on-bad-image", "skip", "--square", "8"],
        ]
    )


def packed(folder: Path, rng: random.Random) -> list[str]:
    import numpy as np

    root = folder / "packed"
    path = rng.choice([root / "index.json", root / "train/index.npy", root / "val/index.npy", root / "val/000000.tar"])
    if path.suffix == ".json" and rng.random() < 0.7:
        change_json(path, rng)
    elif path.suffix == ".npy" and rng.random() < 0.5:
        entries = np.load(path).copy()
        field = rng.choice(entries.dtype.names or ("",))
        row = rng.randrange(len(entries))
        if entries.dtype[field].kind in "iu":
            limits = np.iinfo(entries.dtype[field].base)
            entries[field][row] = rng.choice([limits.min, limits.max, 0, 1, 7, 1000])
        else:
            entries[field][row] = rng.choice([b"", b"..", b"/", b"x/y"])
        np.save(path, entries[:-1] if rng.random() < 0.1 else entries)
    else:
        change_file(path, rng)
    return rng.choice(
        [
            ["prepare", "--verify", "packed", "--workers", "1"],
            ["prepare", "images", "packed", "--shard-images", "4", "--workers", "1"],
            ["run", "packed.yaml"],
            ["eval", LAST, "--set", "data.kind=shards", "--set", "data.path=packed", "--set", "data.workers=0"],
        ]
    )


def source(folder: Path, rng: random.Random) -> list[str]:
    """A data set for `prepare`: tar files of a WebDataset, parquet files, a list of labels."""
    root = folder / "source"
    root.mkdir()
    options: list[str] = []
    match rng.randrange(3):
        case 0:
            for split in ("train", "val"):
                (root / split).mkdir()
                webdataset(folder, root / split / f"{split}-000.tar", rng)
        case 1:
            parquet(folder, root, rng)
        case 2:
            shutil.copytree(folder / "images/train", root / "train")
            (root / "val").mkdir()
            rows = [("image", "class")] if rng.random() < 0.3 else []
            for path in sorted((folder / "images/val").rglob("*.*")):
                shutil.copy(path, root / "val" / f"{path.parent.name}{path.name}")
                rows.append((f"{path.parent.name}{path.name}", path.parent.name))
            text = io.StringIO()
            number = rng.randrange(len(rows))
            rows[number] = rng.choice([rows[number][:1], (*rows[number], "x"), (rng.choice(TEXTS), rng.choice(TEXTS))])
            csv.writer(text).writerows(rows)
            content = text.getvalue().encode("utf-8", "surrogateescape")
            (folder / "labels.csv").write_bytes(changed_bytes(content, rng) if rng.random() < 0.7 else content)
            options = ["--val-labels", "labels.csv"]
    return ["prepare", "source", "packed-2", "--workers", "1", *options]


def webdataset(folder: Path, path: Path, rng: random.Random) -> None:
    content = (folder / "images/train/a/0.jpg").read_bytes()
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            label: Any = str(i % 2)
            if rng.random() < 0.2:
                label = str(replacement(i, rng))
            members = {f"{i:03}.{rng.choice(['jpg', 'jpg', 'jpg', 'gif', 'a.b.jpg'])}": content}
            members[f"{i:03}.{rng.choice(['cls', 'cls', 'json'])}"] = label.encode("utf-8", "surrogateescape")
            for name, data in members.items():
                info = tarfile.TarInfo(rng.choice(TEXTS)[:90].replace("\0", "") if rng.random() < 0.05 else name)
                info.size = len(data)
                info.type = rng.choice([tarfile.REGTYPE] * 200 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
                tar.addfile(info, io.BytesIO(data))
    if rng.random() < 0.4:
        change_file(path, rng)


def parquet(folder: Path, root: Path, rng: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = (folder / "images/train/a/0.jpg").read_bytes()
    for split in ("train", "validation"):
        images: list[Any] = [{"bytes": content, "path": f"{i}.jpg"} for i in range(4)]
        labels: list[Any] = [0, 1, 0, 1]
        if rng.random() < 0.5:
            images[1] = rng.choice([None, {"bytes": None, "path": "x"}, {"bytes": b"", "path": None}])
        if rng.random() < 0.5:
            labels = rng.choice([["a", "b", "a", "b"], [0, 1, None, 1], [0, 10**9, 0, 1], [-1, 0, 1, 1], [0.5] * 4])
        names = rng.choice([("image", "label"), ("image", "label"), ("img", "fine_label"), ("x", "y")])
        table = pa.table({names[0]: images, names[1]: labels})
        if rng.random() < 0.2:
            table = pa.table({names[0]: [content] * 4, names[1]: pa.array([0, 1, 0, 1], pa.uint64())})
        path = root / f"{split}-00000-of-00001.parquet"
        pq.write_table(table, path)
        if rng.random() < 0.4:
            change_file(path, rng)


def logits(folder: Path, rng: random.Random) -> list[str]:
    import numpy as np

    path = folder / "logits.npz"
    if rng.random() < 0.4:
        change_file(path, rng)
    else:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        name = rng.choice(sorted(arrays))
        array = arrays[name]
        changes: list[Callable[[], Any]] = [
            lambda: array[:-1] if array.ndim else array,
            lambda: array.astype(">f4") if array.dtype.kind != "U" else array,
            lambda: array[None],
            lambda: np.array(replacement(1, rng), dtype=object).astype("U"),
            lambda: array.astype(np.float64) + 0.5 if array.dtype.kind != "U" else array,
            lambda: array + 1000 if array.dtype.kind != "U" else array,
            lambda: -array if array.dtype.kind in "if" else array,
            lambda: array * np.nan if array.dtype.kind == "f" else array,
            lambda: np.zeros((0, 3)),
        ]
        if array.dtype.kind == "U":
            about = change(json.loads(str(array)), rng)
            arrays[name] = np.array(json.dumps(about))
        else:
            arrays[name] = rng.choice(changes)()
        if rng.random() < 0.1:
            del arrays[name]
        np.savez(path, **arrays)
    return ["eval", "logits.npz", *(["other.npz"] if rng.random() < 0.3 else [])]


def records(folder: Path, rng: random.Random) -> list[str]:
    run = folder / RUN
    path = rng.choice([run / "metrics.jsonl", run / "metrics.jsonl", run / "env.json", run / "config.yaml"])
    if path.suffix == ".yaml":
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(change(content, rng)))
    elif rng.random() < 0.6:
        change_json(path, rng)
    else:
        change_file(path, rng)
    return rng.choice(
        [["compare", "runs/tiny"], ["compare", "runs/tiny"], ["run", "tiny.yaml"], ["probe", "gradients", "runs/tiny"]]
    )


DOORS: dict[str, Callable[[Path, random.Random], list[str]]] = {
    door.__name__: door for door in (experiment, checkpoint, weights, image, packed, source, logits, records)
}


# --- the search -------------------------------------------------------------------------------------------------------


def make_sound(folder: Path) -> None:
    """What the doors change: a run on class folders, its logits and weights, and a packed set."""
    import numpy as np
    import torch

    from resnet_train import create_model

    make_images(folder)
    small = {"crop": {"kind": "random-resized", "size": 16}}
    config = EXPERIMENT | {"data": {"kind": "imagefolder", "path": "images", "workers": 0}, "augment": small}
    config["train"] = EXPERIMENT["train"] | {"batch_size": 4}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    shards = config | {"name": "packed", "data": config["data"] | {"kind": "shards", "path": "packed"}}
    shards["train"] = config["train"] | {"steps": 3}
    (folder / "packed.yaml").write_text(yaml.safe_dump(shards | {"eval": {"every": {"steps": 3}, "batch_size": 5}}))
    for arguments in (
        ["run", "tiny.yaml", "train.steps=4"],
        ["eval", LAST, "--save-logits", "logits.npz"],
        ["export", LAST, "--to", "safetensors", "--out", "weights.safetensors"],
        ["prepare", "images", "packed", "--shard-images", "4", "--workers", "1"],
    ):
        outcome = forks.call(*arguments, folder=folder)
        assert outcome.code == 0, (arguments, outcome)
    torch.save(create_model("cifar-resnet-8", num_classes=2).state_dict(), folder / "weights.pth")
    shutil.copy(folder / "logits.npz", folder / "other.npz")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config | {"train": config["train"] | {"steps": 4}}))
    assert zipfile.is_zipfile(folder / "logits.npz")
    assert np.load(folder / "packed/train/index.npy").size


def attempt(door: str, number: int, seed: int, folder: Path, show: bool = False) -> tuple[str, str, str]:
    """Give an input to a command: (how it ended, what is wrong or nothing, the command)."""
    arguments = DOORS[door](folder, random.Random(f"{seed} {door} {number}"))

    def limit() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        forks.limit_memory(in_use / 2**30 + MEMORY)

    outcome = forks.call(*arguments, folder=folder, before=limit)
    if show:
        print(f"--- resnet-train {' '.join(map(repr, arguments))}\n--- exit code {outcome.code}")
        print(outcome.out + outcome.err)
    wrong = outcome.complaint((0, 1, 2), lines=20)
    if "Traceback" in outcome.err:
        places = re.findall(r'File ".*?/(resnet_train/[^"]+)", line (\d+)', outcome.err)
        wrong = f"{':'.join(places[-1]) if places else '?'}: {wrong}"
    return f"exit {outcome.code}", wrong, " ".join(arguments)[:150]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no input after this time (default: 5)")
    parser.add_argument("--inputs", type=int, help="give at most this number of inputs (default: no limit)")
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS))
    parser.add_argument("--only", metavar="INPUT", help="give this input alone, and show what was printed")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time (default: 2)")
    args = parser.parse_args()
    started = time.monotonic()
    forks.import_everything()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sound = root / "sound"
        sound.mkdir()
        made = forks.finish(*forks.start(lambda: make_sound(sound) or 0, root))  # type: ignore[func-returns-value]
        assert made.code == 0, made.err
        if args.only:
            door, number = args.only.split("/")
            end, wrong, _ = attempt(door, int(number), args.seed, sound, show=True)
            print(f"{args.only}: {end}: {wrong or 'as it should be'}")
            return int(bool(wrong))

        def work() -> Iterator[tuple[Any, Callable[[], int], Path]]:
            number = 0
            while time.monotonic() - started < 60 * args.minutes and number != args.inputs:
                door = args.doors[number % len(args.doors)]
                folder = shutil.copytree(sound, root / f"input-{number}")

                def function(door: str = door, number: int = number, folder: Path = folder) -> int:
                    print(json.dumps(attempt(door, number, args.seed, folder)))
                    return 0

                yield f"{door}/{number}", function, folder
                number += 1

        ends: Counter[tuple[str, str]] = Counter()
        failures: Counter[str] = Counter()
        for trial, printed in in_parallel(work(), args.jobs):
            end, wrong, *command = json.loads(printed)
            door = str(trial).partition("/")[0]
            ends[door, "failed" if wrong else end] += 1
            if wrong:
                failures[wrong] += 1
                if failures[wrong] == 1:
                    print(f"{trial}: {end}: {wrong} [{' '.join(command)!r}]", flush=True)
    columns = sorted({end for _, end in ends})
    rows = [["door", "inputs", *columns], ["---"] * (2 + len(columns))]
    for door in args.doors:
        counts = [ends[door, end] for end in columns]
        rows.append([door, str(sum(counts)), *map(str, counts)])
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    minutes = (time.monotonic() - started) / 60
    print(f"{sum(ends.values())} inputs in {minutes:.1f} minutes, {sum(failures.values())} failed")
    return int(bool(failures))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
