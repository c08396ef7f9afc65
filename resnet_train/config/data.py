"""The keys of the data set: which images, and where they are."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from resnet_train.config.section import Count, CountOrZero, FilePath, Pixels, Positive, Section


class BaseDataConfig(Section):
    """The keys and properties of every kind of data set."""

    normalize: Literal["pixel-mean", "channel-mean", "channel-mean-std"] = "channel-mean-std"
    """What is subtracted from an image, and for `channel-mean-std` what it is divided by. Both are computed from the
    training images; `pixel-mean`, the mean image, is He et al. 2015's."""
    holdout: CountOrZero = 0
    """Number of training images, evenly spaced, to validate on instead of the validation set. Use it to choose among
    settings."""

    @property
    def decode_workers(self) -> int:
        """Processes of each rank that decode images. Images in memory need none."""
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
        """Whether images are files of any size, so that a training crop is resized."""
        return False

    @property
    def image_size(self) -> int | None:
        """Height and width in pixels; None if the configuration does not determine it."""
        return None


class ImageFilesConfig(BaseDataConfig):
    """The keys of data sets whose images are files of any size."""

    path: FilePath
    """The folder of the data set."""
    workers: Annotated[CountOrZero, Field(le=1024)] = 8
    """Number of processes of each rank that decode images; with `device_cache_gb`, number of threads that read them."""
    device_cache_gb: Positive | None = None
    """Keep the training images, which must be square and of one size, on each rank's device if they fit into this many
    GB; otherwise each rank keeps a part of them and sends the others what they need. Results do not change. The images
    to evaluate on are kept on each device in addition."""
    class_map: FilePath | None = None
    """A file with the names of the class folders, one a line, in the order of their labels. By default they are in the
    order of their names."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What happens if a training image cannot be decoded. `skip` counts it, lists it and uses the next one instead."""

    @property
    def decode_workers(self) -> int:
        return self.workers if self.any_size else 0

    @property
    def skips_bad_images(self) -> bool:
        return self.on_bad_image == "skip"

    @property
    def any_size(self) -> bool:
        return self.device_cache_gb is None

    def complaints(self) -> Iterator[str]:
        if self.skips_bad_images and not self.any_size:
            yield (
                "on_bad_image skip has no effect with device_cache_gb: leave bad images out with "
                "`resnet-train prepare --on-bad-image skip`"
            )


class ImageFolderConfig(ImageFilesConfig):
    """Class folders of images: `PATH/train/CLASS/IMAGE` and `PATH/val/CLASS/IMAGE`."""

    kind: Literal["imagefolder"]
    """Class folders of images."""
    val_labels: FilePath | None = None
    """A file with lines `IMAGE,CLASS`, or ILSVRC2012's development kit, for validation images that lie in no class
    folders. By default it is looked for in `path`."""


class ShardsConfig(ImageFilesConfig):
    """Images that `resnet-train prepare` packed into tar files."""

    kind: Literal["shards"]
    """Packed images."""


class TorchvisionConfig(BaseDataConfig):
    """One of torchvision's small data sets, kept in memory."""

    kind: Literal["cifar10", "cifar100", "fashion-mnist", "mnist", "svhn", "svhn-extra"]
    """One of torchvision's data sets. `svhn` has the 73,257 training images of SVHN, `svhn-extra` the 531,131 extra
    ones too, as papers use it."""
    path: FilePath
    """The folder of torchvision's files, or one above it: for CIFAR-10 `cifar-10-batches-py`, or where the packed
    `cifar-10-python.tar.gz` is; for SVHN that of `train_32x32.mat`."""
    download: bool = False
    """Download the files to `path` if they are not there."""

    @property
    def grey(self) -> bool:
        return self.kind in ("mnist", "fashion-mnist")

    @property
    def image_size(self) -> int:
        return 28 if self.grey else 32


class DigitsConfig(BaseDataConfig):
    """The 1,797 handwritten digits of 8x8 pixels in scikit-learn; every fifth one is for validation."""

    kind: Literal["digits"]
    """scikit-learn's digits."""

    @property
    def grey(self) -> bool:
        return True

    @property
    def image_size(self) -> int:
        return 8


class SyntheticConfig(BaseDataConfig):
    """Generated images: one pattern for each class, with noise. They need no files and can be learnt."""

    kind: Literal["synthetic"]
    """Generated images."""
    size: Pixels = 32
    """Height and width of an image in pixels."""
    channels: Literal[1, 3] = 3
    """Number of channels: 1 for grey images, 3 for colour."""
    classes: Annotated[int, Field(ge=2)] = 10
    """Number of classes."""
    train_images: Count = 1024
    """Number of training images."""
    val_images: Count = 256
    """Number of validation images."""

    @property
    def grey(self) -> bool:
        return self.channels == 1

    @property
    def image_size(self) -> int:
        return self.size


DataConfig = Annotated[
    ImageFolderConfig | ShardsConfig | TorchvisionConfig | DigitsConfig | SyntheticConfig, Field(discriminator="kind")
]

_SECTIONS = (ImageFolderConfig, ShardsConfig, TorchvisionConfig, DigitsConfig, SyntheticConfig)
_BY_KIND: dict[Any, type[BaseDataConfig]] = {
    kind: section for section in _SECTIONS for kind in get_args(section.model_fields["kind"].annotation)
}


def shared_keys(old: str, new: str) -> frozenset[str]:
    """The keys that a `data` section keeps when its kind changes: those that both kinds have, except where the images
    are. None for kinds of anything else than data."""
    if old not in _BY_KIND or new not in _BY_KIND:
        return frozenset()
    return frozenset(_BY_KIND[old].model_fields.keys() & _BY_KIND[new].model_fields.keys() - {"kind", "path"})
