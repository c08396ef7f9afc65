"""Images with edges and slopes."""

import numpy as np
from PIL import Image


def photograph(width: int, height: int) -> Image.Image:
    """Smooth structure with fine noise, as photographs have."""
    random = np.random.default_rng(width * height)
    coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.8 + random.integers(0, 50, (height, width, 3))).astype(np.uint8))
