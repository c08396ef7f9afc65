"""Sources with damaged or hostile bytes: each is refused in a line, or gives the samples that it holds."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_train.errors import BadInput
from resnet_train.packing import parquet
from resnet_train.packing.formats import open_source
from resnet_train.packing.manifest import _open_file as manifest_files


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 4)).save(file, "PNG")
    return file.getvalue()


def tar_bytes(kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for i in range(3):
            for name, data in (
                (f"{'x' * 90}ü/{i}{'y' * 40}.png", png()),
                (f"{'x' * 90}ü/{i}{'y' * 40}.cls", b"%d" % i),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def parquet_bytes() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"image": [{"bytes": png(), "path": f"{i}.png"} for i in range(4)], "label": [0, 1, 0, 1]})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=2)
    return file.getvalue()


def damage(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 8])):
        place = generator.randrange(len(changed))
        match generator.randrange(5):
            case 0:
                changed[place] ^= 1 << generator.randrange(8)
            case 1:
                changed[place] = generator.choice(b"\x00\xff90(xgLKS")
            case 2:
                del changed[place : place + generator.choice([1, 512, 2000])]
            case 3:
                changed[place:place] = changed[:512]
            case 4:
                begin = generator.randrange(0, len(changed), 512)
                changed[begin + 124 : begin + 136] = generator.choice(
                    [
                        b"77777777777\0",
                        b"-1         \0",
                        b"\x80" + b"\xff" * 11,
                        b"\xff" * 12,
                        b"\x80" + bytes(10) + b"\1",
                    ]
                )
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("0.tar", lambda: tar_bytes(tarfile.GNU_FORMAT)),
        ("0.tar", lambda: tar_bytes(tarfile.PAX_FORMAT)),
        ("0.tar.gz", lambda: gzip.compress(tar_bytes(tarfile.GNU_FORMAT))),
        ("0.parquet", parquet_bytes),
    ],
    ids=["gnu", "pax", "gzip", "parquet"],
)
def test_a_damaged_source_is_refused_or_gives_its_samples(name: str, make: Callable[[], bytes]) -> None:
    Path("source").mkdir()
    whole, generator = make(), random.Random(0)
    Path(f"source/val-{name}").write_bytes(whole)
    path = Path(f"source/train-{name}")
    refused = 0
    for _ in range(250):
        path.write_bytes(damage(whole, generator))
        manifest_files.cache_clear()
        parquet._read_images.cache_clear()
        try:
            manifest = open_source(Path("source")).manifests["train"]
            for row in range(len(manifest)):
                assert manifest.name(row)
                manifest.read(row)
        except BadInput:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("text", [b"2.png", b"bytes", b"label"])
def test_parquet_text_that_is_no_utf_8_is_one_line(text: bytes) -> None:
    """In a row, or in the names of columns, which pyarrow decodes late."""
    Path("source").mkdir()
    path = Path("source/train-0.parquet")
    path.write_bytes(parquet_bytes().replace(text, text[:3] + b"\xee" + text[4:]))
    with pytest.raises(BadInput, match=r"source/train-0.parquet"):
        open_source(Path("source"))
