"""Image files against Pillow's and torchvision's own readers."""

import os
from pathlib import Path

import pytest

from resnet_train.data import decoding
from resnet_train.errors import BadInput


def test_what_is_no_file_is_refused_and_never_waited_for() -> None:
    os.mkfifo("pipe.jpg")
    Path("zero.jpg").symlink_to("/dev/zero")
    for name, kind in (("pipe.jpg", "a pipe"), ("zero.jpg", "a device")):
        with pytest.raises(BadInput, match=f"^cannot read {name}: it is {kind}, not a file$"):
            decoding.open_file(Path(name))
