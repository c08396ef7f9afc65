"""Names of classes, against timm's list of ImageNet's."""

from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from resnet_train.config.data import DigitsConfig, ShardsConfig
from resnet_train.errors import BadInput
from resnet_train.evaluation.class_names import class_names

FOLDERS = DigitsConfig(kind="digits")
"""Data whose classes have no other names."""


def test_the_ids_of_imagenet_get_their_names_in_any_order() -> None:
    info = ImageNetInfo()
    ids = info.label_names()
    names = class_names(ids[::-1], FOLDERS)[::-1]
    assert (len(ids), names[0], names[134]) == (1000, "tench", "crane bird")
    described = [name.lower() in info.index_to_description(i).lower() for i, name in enumerate(names)]
    assert sum(described) > 900  # the others have words of their own, as the two cranes have
    assert class_names(["n02012849", "n01440764"], FOLDERS) == ("crane bird", "tench")
    other = ("n01440764", "n00000001")
    assert class_names(other, FOLDERS) == other


def test_names_are_lines_and_nothing_else_splits_them() -> None:
    Path("names.txt").write_bytes("cat\r\ndog\x85\u2028wolf\nemu".encode())
    assert class_names("012", FOLDERS, Path("names.txt")) == ("cat", "dog\x85\u2028wolf", "emu")


def test_a_table_of_more_classes_names_those_that_there_are() -> None:
    Path("names.txt").write_text("n3 crane, a machine\nn1 crane\nn2\tcrane\n\nn4 dog\n")
    assert class_names(["n4", "n2", "n1"], FOLDERS, Path("names.txt")) == ("dog", "crane (n2)", "crane (n1)")
    with pytest.raises(BadInput, match=r"names.txt has 5 lines for 2 classes: give one name a line"):
        class_names(["n4", "n5"], FOLDERS, Path("names.txt"))


def test_packed_data_that_is_gone_leaves_the_classes_as_they_are() -> None:
    assert class_names(["a", "b"], ShardsConfig(kind="shards", path="none")) == ("a", "b")
