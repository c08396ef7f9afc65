"""Pictures in TensorBoard."""

from pathlib import Path

import numpy as np
from PIL import Image


def add_picture(folder: Path, tag: str, picture: Path, step: int) -> None:
    """A picture file under a tag of the TensorBoard log in `folder`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer, Image.open(picture) as image:
        writer.add_image(tag, np.asarray(image.convert("RGB")), step, dataformats="HWC")
