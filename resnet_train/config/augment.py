"""The keys of augmentation: how a training image is changed."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from resnet_train.config.section import Count, Fraction, NonNegative, Pixels, Positive, Section


class ScaleCropConfig(Section):
    """Resize the shorter side to a random length, then cut out a random square (He et al. 2015, section 3.4)."""

    kind: Literal["scale"]
    """Random scale, then a random square."""
    size: Pixels = 224
    """Height and width of the crop in pixels."""
    short_side: tuple[Pixels, Pixels] = (256, 480)
    """Smallest and largest length of the shorter side in pixels."""

    def complaints(self) -> Iterator[str]:
        if not self.size <= self.short_side[0] <= self.short_side[1]:
            yield f"short_side must be [smallest, largest], and neither less than size {self.size}"


class RandomResizedCropConfig(Section):
    """Cut out a rectangle of random area and aspect ratio, and resize it to a square (Szegedy et al. 2014)."""

    kind: Literal["random-resized"]
    """Random rectangle, resized."""
    size: Pixels = 224
    """Height and width of the crop in pixels."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Smallest and largest area of the rectangle, as a fraction of the image."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of the rectangle: width over height."""

    def complaints(self) -> Iterator[str]:
        if not self.scale[0] <= self.scale[1] <= 1:
            yield "scale must be [smallest, largest], and not more than 1"
        if not self.ratio[0] <= self.ratio[1]:
            yield "ratio must be [smallest, largest]"


class PadCropConfig(Section):
    """Pad every side, then cut out a random square of the original size (He et al. 2015, section 4.2)."""

    kind: Literal["pad"]
    """Random square of the padded image."""
    padding: Pixels = 4
    """Number of pixels added on every side."""
    mode: Literal["zero", "reflect"] = "zero"
    """What the padding shows: `zero` is black (He et al. 2015), `reflect` mirrors the border (Zagoruyko and Komodakis
    2016)."""


CropConfig = Annotated[ScaleCropConfig | RandomResizedCropConfig | PadCropConfig, Field(discriminator="kind")]


class TrivialAugmentConfig(Section):
    """One random operation of 14 at a random magnitude of 31: TA (wide) of Müller and Hutter 2021, table 7."""

    kind: Literal["trivial-augment"]
    """TrivialAugment."""


class RandAugmentConfig(Section):
    """Some random operations of 14, one after the other, all at one magnitude (Cubuk et al. 2019)."""

    kind: Literal["rand-augment"]
    """RandAugment."""
    operations: Annotated[int, Field(ge=1, le=4)] = 2
    """Number of operations applied to an image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of the operations, from 0 to 30."""


class TimmRandAugmentConfig(Section):
    """timm's RandAugment, `rand-mMAGNITUDE-mstdSTD-inc1`: some random operations of 15, each left out with probability
    1/2, at magnitudes from a normal distribution; all of them get stronger with the magnitude."""

    kind: Literal["timm-rand-augment"]
    """timm's RandAugment."""
    operations: Annotated[int, Field(ge=1, le=4)] = 2
    """Number of operations that are drawn for an image."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Mean of the magnitudes, which are cut to 0 to 10."""
    magnitude_std: NonNegative = 0.5
    """Standard deviation of the magnitudes."""


AutoAugmentConfig = Annotated[
    TrivialAugmentConfig | RandAugmentConfig | TimmRandAugmentConfig, Field(discriminator="kind")
]


class AugmentConfig(Section):
    """How a training image is changed, in the order of the keys.

    Random numbers are a function of (seed, epoch, sample index); for mixup and cutmix of (seed, step, micro-batch).
    """

    repeated_augmentation: Count = 1
    """Number of copies of each image in a batch, augmented independently (Hoffer et al. 2020). An epoch keeps its
    number of samples, so it sees a part of the images; `repeated_augmentation` epochs see each image in one batch."""
    crop: CropConfig | None = None
    """The crop of the image that is trained on; without it the whole image."""
    progressive_resizing: dict[Fraction, Pixels] | None = None
    """Smaller crops early in the training: fraction of the training to crop size in pixels, such as `{0: 128, 0.4: 160,
    0.8: 192}`. The last size is `crop.size`, which evaluation uses; the region of the image stays the same."""
    flip: bool = False
    """Mirror the image left to right with probability 1/2."""
    pca_lighting: bool = False
    """Shift colours along the principal components of ImageNet's RGB values (Krizhevsky et al. 2012)."""
    auto_augment: AutoAugmentConfig | None = None
    """Random operations on geometry and colour, those of torchvision or timm."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a rectangle of 0.02 to 0.33 of the area becomes the mean of all images (Zhong et al. 2017)."""
    mixup: Positive | None = None
    """Mix each image and its label with another of the batch, by a fraction from Beta(alpha, alpha) (Zhang et al.
    2017); the value is alpha."""
    cutmix: Positive | None = None
    """Replace a rectangle of each image by that of another of the batch, and mix their labels (Yun et al. 2019); the
    value is alpha of Beta(alpha, alpha). With mixup, each batch uses one of the two."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup is not None or self.cutmix is not None

    def complaints(self) -> Iterator[str]:
        changes_images = self.crop or self.flip or self.pca_lighting or self.auto_augment or self.random_erasing
        if self.repeated_augmentation > 1 and not changes_images:
            yield (
                f"repeated_augmentation {self.repeated_augmentation} would make identical copies: add an augmentation, "
                "such as flip"
            )
        if self.progressive_resizing is not None:
            yield from self._resizing_complaints(self.progressive_resizing)

    def _resizing_complaints(self, sizes: dict[float, int]) -> Iterator[str]:
        if self.crop is None or self.crop.kind == "pad":
            yield "progressive_resizing needs a crop of kind scale or random-resized"
            return
        if list(sizes) != sorted(sizes) or 0 not in sizes:
            yield (
                "progressive_resizing must begin at 0 and have rising fractions, such as {0: 128, 0.4: 160, 0.8: 192}"
            )
            return
        if len(sizes) < 2:
            yield "progressive_resizing has no effect with one size: remove it"
            return
        last, largest = sizes[max(sizes)], max(sizes.values())
        if last != self.crop.size:
            yield (f"progressive_resizing ends at {last} pixels and crop.size is {self.crop.size}: make them equal")
        if largest > last:
            yield (
                f"progressive_resizing has a size of {largest} pixels, which is larger than crop.size {last}: "
                "make crop.size the largest"
            )
