"""The knobs of data and augmentation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from resnet_train.config.section import Count, Fraction, Positive, Section


class BaseDataConfig(Section):
    """What every kind of data has."""

    normalize: Literal["pixel-mean", "channel-mean", "channel-mean-std"] = "channel-mean-std"
    """What is subtracted (and divided by), taken from the training images: pixel-mean is the papers'."""
    holdout: Annotated[int, Field(ge=0)] = 0
    """Training images, evenly spaced, to validate on instead of the validation set: for choosing among settings."""

    @property
    def decode_workers(self) -> int:
        """Decoding processes of each rank; stored images need none."""
        return 0

    @property
    def skips_bad_images(self) -> bool:
        """Whether a training image that cannot be decoded is left out."""
        return False

    @property
    def grey(self) -> bool:
        """Whether images have one channel."""
        return False

    @property
    def any_size(self) -> bool:
        """Whether images are files of any size, of which a training crop is resized."""
        return False


class ImageFilesConfig(BaseDataConfig):
    """What every kind of image files of any size has."""

    path: str
    workers: Annotated[int, Field(ge=0)] = 8
    """Decoding processes of each rank; with `device_cache_gb` threads that read the images in."""
    device_cache_gb: Positive | None = None
    """For square images of one size: hold the training images on each rank's device if they take no more than so many
    GB, else each rank its part of them, sent to where they are wanted. It does not change a result. Images to evaluate
    on come on top of it, whole, on each."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """skip: a training image that cannot be decoded is counted, listed, and the next one is used in its place."""

    @property
    def decode_workers(self) -> int:
        return self.workers if self.any_size else 0

    @property
    def skips_bad_images(self) -> bool:
        return self.on_bad_image == "skip"

    @property
    def any_size(self) -> bool:
        return self.device_cache_gb is None

    @model_validator(mode="after")
    def _held_whole(self) -> Self:
        if self.skips_bad_images and not self.any_size:
            raise ValueError(
                "on_bad_image skip is for images that are read when they are due: with device_cache_gb leave them out "
                "by resnet-train prepare --on-bad-image skip"
            )
        return self


class ImageFolderConfig(ImageFilesConfig):
    """Class folders of images: PATH/train/CLASS/IMAGE and PATH/val/CLASS/IMAGE."""

    kind: Literal["imagefolder"]


class ShardsConfig(ImageFilesConfig):
    """Images packed into tar files by `resnet-train prepare`."""

    kind: Literal["shards"]


class TorchvisionConfig(BaseDataConfig):
    """One of torchvision's small data sets, held in memory."""

    kind: Literal["cifar10", "cifar100", "fashion-mnist", "mnist"]
    path: str
    """The folder that holds torchvision's files (for CIFAR-10 the one above `cifar-10-batches-py`)."""
    download: bool = False
    """Fetch the files into `path` where they are missing."""

    @property
    def grey(self) -> bool:
        return self.kind in ("mnist", "fashion-mnist")

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return 28 if self.grey else 32


class DigitsConfig(BaseDataConfig):
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships; every fifth one is for validation."""

    kind: Literal["digits"]

    @property
    def grey(self) -> bool:
        return True

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return 8


class SyntheticConfig(BaseDataConfig):
    """Noise around one pattern for each class, made from its index: needs no file and can be learnt."""

    kind: Literal["synthetic"]
    size: Count = 32
    """Height and width in pixels."""
    channels: Literal[1, 3] = 3
    classes: Annotated[int, Field(ge=2)] = 10
    train_images: Count = 1024
    val_images: Count = 256

    @property
    def grey(self) -> bool:
        return self.channels == 1


DataConfig = Annotated[
    ImageFolderConfig | ShardsConfig | TorchvisionConfig | DigitsConfig | SyntheticConfig, Field(discriminator="kind")
]


class ScaleCropConfig(Section):
    """Resize the shorter side to a length drawn from a range, then cut a square at random (He et al. 2015, 3.4)."""

    kind: Literal["scale"]
    size: Count = 224
    short_side: tuple[Count, Count] = (256, 480)
    """The range, both ends included, in pixels."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.size <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(f"short_side must rise and be at least size {self.size}: give [shortest, longest]")
        return self


class RandomResizedCropConfig(Section):
    """Cut a rectangle of random area and aspect, resize it to a square (Szegedy et al. 2014)."""

    kind: Literal["random-resized"]
    size: Count = 224
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """The range of the rectangle's share of the image."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """The range of width over height."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must rise and end at 1 or below")
        if not self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must rise")
        return self


class PadCropConfig(Section):
    """Pad every side, then cut the original size at random (He et al. 2015, 4.2)."""

    kind: Literal["pad"]
    padding: Count = 4
    """Pixels on every side."""
    mode: Literal["zero", "reflect"] = "zero"
    """What the padding holds. zero: black (He et al. 2015). reflect: the mirrored border (Wide ResNet)."""


CropConfig = Annotated[ScaleCropConfig | RandomResizedCropConfig | PadCropConfig, Field(discriminator="kind")]


class TrivialAugmentConfig(Section):
    """One of 14 operations at one of 31 magnitudes, both drawn: TA (wide) of Müller and Hutter 2021, table 7."""

    kind: Literal["trivial-augment"]


class RandAugmentConfig(Section):
    """Some of 14 operations, drawn, one after the other at one magnitude (Cubuk et al. 2019)."""

    kind: Literal["rand-augment"]
    operations: Annotated[int, Field(ge=1, le=4)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Out of 30."""


AutoAugmentConfig = Annotated[TrivialAugmentConfig | RandAugmentConfig, Field(discriminator="kind")]


class AugmentConfig(Section):
    """What happens to a training image, in the order that it happens.

    Every draw is a function of (seed, epoch, index) alone; of mixup and cutmix of (seed, step, share of the batch).
    """

    repeated_augmentation: Count = 1
    """Copies of each image in a batch, each augmented in its own way (Hoffer et al. 2020). An epoch is as many samples
    as before, and so a part of the images; after `repeated_augmentation` epochs each image was in one batch."""
    crop: CropConfig | None = None
    progressive_resizing: dict[Fraction, Count] | None = None
    """Progressive resizing: from which fraction of the training on the crop becomes how many pixels wide and high, such
    as {0: 128, 0.4: 160, 0.8: 192}. The last is `crop.size`, which evaluation goes by; what is cut stays the same."""
    flip: bool = False
    """Mirror left and right with probability one half."""
    pca_lighting: bool = False
    """The AlexNet colour augmentation: a shift along the principal components of ImageNet's RGB values."""
    auto_augment: AutoAugmentConfig | None = None
    """Geometry and colour by chance, with torchvision's operations."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a rectangle becomes the mean of all images (Zhong et al. 2017): of 0.02 to 0.33 of the area."""
    mixup: Positive | None = None
    """alpha of Beta(alpha, alpha), from which each batch draws how much of its neighbour is mixed into each image and
    its label (Zhang et al. 2017)."""
    cutmix: Positive | None = None
    """alpha of the same for a rectangle that is cut out of the neighbour (Yun et al. 2019). With both, each batch draws
    one of them."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch go into each other."""
        return self.mixup is not None or self.cutmix is not None

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.repeated_augmentation > 1 and not (
            self.crop or self.flip or self.pca_lighting or self.auto_augment or self.random_erasing
        ):
            raise ValueError(
                f"repeated_augmentation {self.repeated_augmentation} would make equal copies: add an augmentation, "
                "such as flip"
            )
        if self.progressive_resizing is not None:
            self._check_progressive_resizing(self.progressive_resizing)
        return self

    def _check_progressive_resizing(self, resize: dict[float, int]) -> None:
        if self.crop is None or self.crop.kind == "pad":
            raise ValueError("progressive_resizing needs a crop of kind scale or random-resized")
        if list(resize) != sorted(resize) or 0 not in resize:
            raise ValueError(
                "progressive_resizing begins at 0, and its fractions rise: such as {0: 128, 0.4: 160, 0.8: 192}"
            )
        if len(resize) < 2:
            raise ValueError("progressive_resizing has no effect with one size: remove it")
        last = resize[max(resize)]
        if last != self.crop.size:
            raise ValueError(f"progressive_resizing ends at {last} and crop.size is {self.crop.size}: make them equal")
        if (largest := max(resize.values())) > last:
            raise ValueError(
                f"progressive_resizing has {largest} pixels and ends at {last}, the crop.size: none may be larger"
            )
