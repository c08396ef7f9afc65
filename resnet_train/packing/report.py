"""What `prepare` returns: the numbers of a packing, which are stored in index.json."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from resnet_train.packing.encode import PackOptions


@dataclass(frozen=True)
class SplitReport:
    """The train or val split of a packing."""

    images: int
    shards: int
    bytes: int
    """The size of the shards."""
    source_bytes: int
    """The size of the images in the source."""
    left_out: int
    """Images that could not be decoded."""
    as_files: int
    """Images stored as image files; then those stored with restart tiles, and as raw pixels."""
    tiled: int
    raw: int


@dataclass(frozen=True)
class PackReport:
    """A packing."""

    source: str
    """The format of the source, in words."""
    classes: int
    options: PackOptions
    parts: dict[str, SplitReport]
    """By split."""
    odd: dict[str, int]
    """The number of files with each oddity, the most frequent first. odd.csv names them."""
    packed_again: tuple[str, ...] | None = None
    """Of a data set that was packed before: the shards that were missing or damaged, and are packed again."""

    def to_json(self) -> dict[str, Any]:
        """For index.json and `--json`."""
        tree = asdict(self)
        if self.packed_again is None:
            del tree["packed_again"]
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Raises ValueError if it is no report."""
        return TypeAdapter(cls).validate_python(tree)
