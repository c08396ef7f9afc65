"""Images in the TensorBoard log of a run."""

from pathlib import Path

import numpy as np
from PIL import Image


def add_image(folder: Path, tag: str, path: Path, step: int) -> None:
    """Add an image file under a tag to the TensorBoard log in `folder`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer, Image.open(path) as image:
        writer.add_image(tag, np.asarray(image.convert("RGB")), step, dataformats="HWC")
