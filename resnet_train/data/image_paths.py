"""Finding image files in folders: which names count, and what is left out."""

import heapq
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from resnet_train.errors import BadInput

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""Those of torchvision's `ImageFolder`."""
_ENDS = tuple(IMAGE_SUFFIXES)
_IGNORED_NAMES = frozenset({"__MACOSX", "@eaDir", "lost+found"})
"""Folders that archivers, file servers and file systems add."""


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image."""
    return name.lower().endswith(_ENDS)


def as_text(name: str) -> str:
    """A file's name as text, the same in every locale: its bytes in UTF-8, those that are not UTF-8 as surrogates."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "surrogateescape")


def list_folder(folder: Path | str, prefix: str, expected: str = "") -> tuple[list[str], list[str]]:
    """Names of the folders and of the other files in a folder, each sorted. Raises `BadInput`.

    Names that begin with a dot are left out, such as .ipynb_checkpoints and the ._x of macOS. Links are followed; one
    that leads nowhere is refused, unless it is named as an image. prefix, expected: begin and end the message.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _IGNORED_NAMES:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                files.append(entry.name)
                if entry.is_symlink() and not is_image(entry.name):
                    entry.stat()
    except OSError as error:
        hint = expected if error.filename == str(folder) else ""
        raise BadInput(f"{prefix}cannot read {error.filename}: {error.strerror or error}{hint}") from None
    return sorted(folders, key=as_text), sorted(files, key=as_text)


class ImageTree:
    """The image files under a folder. Each folder is visited once, so that links cannot lead in circles.

    Of a folder and the links to it, the folder is visited, wherever it lies.
    """

    def __init__(self, root: Path, prefix: str = "") -> None:
        """prefix: begins the messages."""
        self.root, self.prefix = root, prefix
        self.visited = {_identity(folder) for folder in (root, *root.resolve().parents)}
        self.repeated: list[str] = []
        """Links to folders that were visited before."""
        self.left_out: Counter[str] = Counter()
        """Files that are not images, by the ends of their names."""
        self.loose = 0
        """Images that lie beside class folders, in none of them."""

    def visit(self, folder: str) -> bool:
        """Whether a folder below the root, such as `CLASS`, is visited for the first time."""
        identity = _identity(self.root / folder)
        if identity in self.visited:
            return False
        self.visited.add(identity)
        return True

    def images(self, folders: Sequence[str]) -> list[list[str]]:
        """For each folder below the root, the images in and under it: paths relative to the root.

        They are in the order of `sorted(os.walk())`. Raises `BadInput` where a folder cannot be read.
        """
        found: list[list[tuple[str, list[str]]]] = [[] for _ in folders]
        waiting = [(False, number, folder) for number, folder in enumerate(folders)]  # sorted, and so a heap
        while waiting:
            is_link, number, path = heapq.heappop(waiting)  # links last
            if is_link and not self.visit(path):
                self.repeated.append(path)
                continue
            below, files = list_folder(self.root / path, self.prefix)
            found[number].append((path, self._only_images(files)))
            for folder in (f"{path}/{name}" for name in below):
                if (self.root / folder).is_symlink() or self.visit(folder):
                    heapq.heappush(waiting, ((self.root / folder).is_symlink(), number, folder))
                else:
                    self.repeated.append(folder)
        in_order = (sorted(paths, key=lambda path_and_files: as_text(path_and_files[0])) for paths in found)
        return [[f"{path}/{name}" for path, names in paths for name in names] for paths in in_order]

    def _only_images(self, files: Sequence[str]) -> list[str]:
        self.left_out.update(Path(name).suffix.lower() or "without an end" for name in files if not is_image(name))
        return [name for name in files if is_image(name)]

    def warn(self) -> None:
        """Say what was left out, if anything."""
        if self.repeated:
            links = f"{self.root / self.repeated[0]}" + " and others" * (len(self.repeated) > 1)
            _warn_once(f"{self.prefix}left out {links}: a link to a folder that is read elsewhere")
        if self.loose:
            images = f"{self.loose:,} image" + "s" * (self.loose > 1)
            _warn_once(f"{self.prefix}left out {images} in {self.root}, beside its class folders and in none of them")
        if self.left_out:
            counts = ", ".join(f"{count:,} {end}" for end, count in sorted(self.left_out.most_common(8)))
            ends = ", ".join(sorted(IMAGE_SUFFIXES))
            files = f"{self.left_out.total():,} file" + "s" * (self.left_out.total() > 1)
            _warn_once(f"{self.prefix}left out {files} in {self.root} without the name of an image ({ends}): {counts}")


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


@cache
def _warn_once(message: str) -> None:
    """A warning, once in a process: each run of an experiment opens the same folders."""
    logger.warning("%s", message)
