"""Read files of `torch.save` that may hold anything: no code of theirs is run, no memory beyond their size is used."""

import _compat_pickle
import errno
import io
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from resnet_train.errors import BadInput
from resnet_train.runs.run_folder import check_checkpoint_exists

_STREAMS = 4
"""Pickles at the head of a file of torch before 1.6, which is no zip file. The tensors follow."""


class _StandIn:
    """Takes the place of an object of another class, such as the arguments of a training, and ignores its content."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _StandInDict:
    """Takes the place of a mapping of another class, whose items are set one by one."""

    def __new__(cls, *_: object) -> Any:  # torch's reader sets items of this type, but not of its subclasses
        return OrderedDict()


class _StandInList:
    """Takes the place of a list of another class, which is appended to."""

    def __new__(cls, *_: object) -> Any:
        return []


_STAND_INS = {"dict": _StandInDict, "list": _StandInList, "deque": _StandInList}
"""By the end of a class's name."""


def read_torch_file(path: Path, any_class: bool = False) -> object:
    """The content of a file of `torch.save`: containers, numbers, texts and tensors on the CPU.

    any_class: empty objects take the place of those of other classes; else they are an error. The CRC of each record
    is checked. Raises `BadInput` if the file cannot be read as such.
    """
    what = "a file of weights" if any_class else "a checkpoint of resnet-train"
    check_checkpoint_exists(path)
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            if is_zip:
                _check_archive(path, file)
            elif not any_class:
                raise BadInput(f"{path} is truncated or not a checkpoint")
            names = _names_of_classes(file, is_zip) if any_class else set()
            stand_ins: Any = [(_stand_in(name), name) for name in names]
            file.seek(0)
            # torch warns of bytes that are no pickle, and that it checks sparse tensors.
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(action="ignore"):
                return torch.load(file, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except Exception as error:  # the readers of archives and pickles raise anything for the bytes of another program
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise BadInput(f"{path}: out of memory while it was read") from None
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place outside the file
            raise BadInput(f"{path}: {error.strerror or error}; expected {what}") from None
        raise BadInput(f"{path} is damaged or not {what}") from None


def _stand_in(name: str) -> type:
    kinds = (kind for end, kind in _STAND_INS.items() if name.lower().endswith(end))
    return next(kinds, _StandIn)


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Raise `BadInput` if a zip file is not as torch writes it, or is damaged."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # torch compresses nothing. So no record, nor all of them together, is larger than the file.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise BadInput(f"{path} is a compressed archive, not a checkpoint")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise BadInput(f"{path} is damaged: its records are longer than the file")
        damaged = archive.testzip()  # torch writes a CRC for each record but does not check it
        if damaged is not None:
            raise BadInput(f"{path} is damaged: the CRC of {damaged} is wrong")


def _names_of_classes(file: BinaryIO, is_zip: bool) -> set[str]:
    """The full names of all classes and functions that a file asks for."""
    names = set()
    if is_zip:
        with zipfile.ZipFile(file) as archive:
            [record] = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            streams: list[BinaryIO] = [io.BytesIO(archive.read(record))]
    else:
        file.seek(0)
        streams = [file] * _STREAMS  # a stream ends where the next one begins
    for stream in streams:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                # A pickle has Python 2's names of modules, and torch's reader looks for those of Python 3.
                renamed = _compat_pickle.IMPORT_MAPPING.get(module, module), name
                names.add(".".join(_compat_pickle.NAME_MAPPING.get((module, name), renamed)))
    return names
