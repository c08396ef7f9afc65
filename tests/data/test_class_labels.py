"""ImageNet's development kit: `meta.mat` and the ground truth, packed or unpacked, whole or damaged."""

import gzip
import io
import random
import resource
import signal
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import unpack
from scipy.io import savemat

from resnet_train.data import class_labels
from resnet_train.data.class_labels import parse_synsets, read_class_labels, read_class_map
from resnet_train.errors import BadInput
from resnet_train.runtime.processes import check_not_killed

SYNSETS = [(2, "n01", "tench, Tinca tinca"), (1, "n02", "Thüng"), (1001, "n99", "fish")]
"""ILSVRC2012_ID, WNID, words; the numbers are not in the order of the ids, and one is of an inner node."""


def meta_mat(compressed: bool = True) -> bytes:
    """A file in the shape of ImageNet's: a struct array [n, 1] whose fields are arrays of several types and sizes."""
    fields = "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"
    synsets = np.zeros((len(SYNSETS), 1), [(field, "O") for field in fields])
    for row, (number, wnid, words) in enumerate(SYNSETS):
        children = np.arange(row, dtype=np.uint16)
        synsets[row, 0] = (np.uint16(number), wnid, words, "gloss", np.uint8(row), children, np.uint8(3), 1300.0)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=compressed)
    return file.getvalue()


def write_devkit(meta: bytes, truth: bytes = b"1\n2\n1\n") -> Path:
    path = Path("ILSVRC2012_devkit_t12.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (("meta.mat", meta), ("ILSVRC2012_validation_ground_truth.txt", truth)):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def bomb() -> bytes:
    """A MATLAB file of 70 kB whose only element is 70 MB when it is unpacked."""
    packed = zlib.compress(bytes(70 << 20))
    return meta_mat()[:128] + struct.pack("<II", 15, len(packed)) + packed


def write_sparse() -> Path:
    """A development kit whose meta.mat is 4 GB of holes: the archive holds only its header."""
    path = Path("sparse.tar.gz")
    header = bytearray(tarfile.TarInfo("data/meta.mat").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398] = header[398:410] = b"%011o\0" % 0
    header[483:495] = b"%011o\0" % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_synsets_of_meta_mat(compressed: bool) -> None:
    assert [tuple(synset) for synset in parse_synsets(meta_mat(compressed))] == SYNSETS


def test_a_single_synset_is_a_list_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_class_labels.SYNSETS", SYNSETS[:1])
    assert [tuple(synset) for synset in parse_synsets(meta_mat())] == SYNSETS[:1]


def test_a_development_kit_is_read_packed_and_unpacked() -> None:
    path = write_devkit(meta_mat())
    unpack(path)
    for place in (path, Path("ILSVRC2012_devkit_t12"), Path("ILSVRC2012_devkit_t12/data")):
        class_of_image, class_names = read_class_labels(place)
        assert class_of_image == {f"ILSVRC2012_val_{i:08}": n for i, n in ((1, "n02"), (2, "n01"), (3, "n02"))}
        assert class_names == {wnid: words for _, wnid, words in SYNSETS}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: write_devkit(b""), r"development kit .*tar.gz: meta.mat is damaged, or has other variables"),
        (lambda: write_devkit(bytes(200)), r"development kit .*tar.gz: meta.mat is damaged, or has other variables"),
        (lambda: write_devkit(meta_mat()[:-9]), r"development kit .*tar.gz: meta.mat is damaged"),
        (lambda: write_devkit(meta_mat(), b"1\n7\n"), r"development kit .*tar.gz: meta.mat has no synset 7"),
        (lambda: write_devkit(meta_mat(), b"one\n"), r"development kit .*tar.gz: invalid literal for int"),
        (lambda: write_devkit(bomb()), r"meta.mat is damaged: unpacked, it is larger than 64 MiB"),
        (lambda: write_sparse(), r"cannot read .*tar.gz: it is larger than 64 MiB"),
        (lambda: write_devkit(meta_mat(), b"9" * 5000), r"development kit .*tar.gz: Exceeds the limit"),
        (
            lambda: write_devkit(meta_mat(), b"1000000000\n"),
            r"development kit .*tar.gz: meta.mat has no synset 1000000000",
        ),
        (lambda: write_devkit(meta_mat(), bytes(65 << 20)), r"tar.gz: it is larger than 64 MiB"),
    ],
)
def test_a_bad_development_kit_is_refused(write: Callable[[], Path], message: str) -> None:
    path = write()
    with pytest.raises(BadInput, match=message):
        read_class_labels(path)


def test_a_flipped_bit_of_a_packed_development_kit_changes_no_class() -> None:
    """gzip has a checksum of the whole. A few bits have no effect, such as the distance of a run of zeros."""
    path = write_devkit(meta_mat())
    whole, expected = path.read_bytes(), read_class_labels(path)
    refused = 0
    for place in range(40, len(whole), 6):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_class_labels(path) == expected
        except BadInput:
            refused += 1
    assert refused > 80


def test_nothing_is_in_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's may be read-only; the semaphores of multiprocessing's own queues are there."""
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", lambda *_, **__: pytest.fail("a semaphore"))
    assert len(read_class_labels(write_devkit(meta_mat())).class_names) == len(SYNSETS)


def test_a_meta_mat_that_crashes_its_reader_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some damaged files end SciPy's reader with a segmentation fault. It must not be ours."""
    path = write_devkit(meta_mat(compressed=False))
    unpack(path)
    meta, generator = Path("ILSVRC2012_devkit_t12/data/meta.mat"), random.Random(0)
    whole = meta.read_bytes()
    for _ in range(5):
        damaged = bytearray(whole)
        for place in generator.sample(range(128, len(whole)), 20):
            damaged[place] = generator.randrange(256)
        meta.write_bytes(damaged)
        with pytest.raises(BadInput, match="cannot read the development kit"):
            read_class_labels(meta.parent)
    meta.write_bytes(b"")
    with meta.open("r+b") as file:
        file.truncate(class_labels._MAX_BYTES + 1)
    with pytest.raises(BadInput, match=r"meta.mat: it is larger than 67,108,864 bytes"):
        read_class_labels(meta.parent)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGSEGV, "cannot read the development kit data: meta.mat is damaged"),
        (signal.SIGKILL, "a worker process was killed by SIGKILL, perhaps because memory ran out: run again"),
        (None, "a worker process cannot be started: run again"),
    ],
)
def test_what_ends_the_reader_of_meta_mat_need_not_be_the_file(
    number: signal.Signals | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(write_devkit(meta_mat()))
    Path("ILSVRC2012_devkit_t12").rename("data")

    def run_jobs(*_: object, hint: str, **__: object) -> None:
        if number is not None:
            check_not_killed("a worker process", -number, hint)
        raise BadInput(f"a worker process cannot be started: {hint}")

    monkeypatch.setattr(class_labels, "run_jobs", run_jobs)
    with pytest.raises(BadInput, match=f"^{message}$"):
        read_class_labels(Path("data"))


@pytest.mark.parametrize(("hard", "soft"), [(-1, 4 << 30), (8 << 30, 4 << 30), (1 << 30, 1 << 30)])
def test_a_lower_limit_of_memory_is_kept(hard: int, soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert class_labels._synsets_or_error(meta_mat(), int) == parse_synsets(meta_mat())
    assert limits == [(soft, hard)]


def test_rows_of_labels_in_the_forms_that_people_have() -> None:
    """Kaggle's boxes, Tiny ImageNet's tabs, spaces alone, quotes, and names with spaces in them."""
    rows = ["image, class", "a.JPEG,n01 85 1 499 272 n01 3 4 5 6", "b.JPEG\tn02\t0\t32\t44\t62", "val/c.JPEG n03 7", ""]
    rows += ['"my photo.jpg", "tabby cat"', "d.png\tGérard's dog", "e.jpg,Boeing 747", "f.jpg,Boeing 737"]
    expected = {"a": "n01", "b": "n02", "c": "n03", "my photo": "tabby cat", "d": "Gérard's dog"}
    expected |= {"e": "Boeing 747", "f": "Boeing 737"}
    rows += ["g.jpg,a\x85b", "h\u2028i.jpg,n01"]  # no ends of lines
    expected |= {"g": "a\x85b", "h\u2028i": "n01"}
    Path("labels.csv").write_bytes("\n".join(rows).encode())
    assert read_class_labels(Path("labels.csv")).class_of_image == expected
    for row in ("a.jpg", "a.jpg,", ",n01", "a.jpg\t"):
        Path("labels.csv").write_text(row)
        with pytest.raises(BadInput, match=r"^labels.csv, line 1: expected an image and its class"):
            read_class_labels(Path("labels.csv"))


def test_a_class_map_of_names_with_spaces() -> None:
    Path("map").write_text("hot dog \ncat a pet\n")
    assert read_class_map(Path("map"), ["cat", "hot dog"]) == ["hot dog", "cat"]
    Path("map").write_text("a\x0bb\ncat\n")
    assert read_class_map(Path("map"), ["a\x0bb", "cat"]) == ["a\x0bb", "cat"]
    Path("map").write_text("hot dog\ncat\nbird\n")
    with pytest.raises(BadInput, match="names bird, which is no class of the data"):
        read_class_map(Path("map"), ["cat", "hot dog"])
