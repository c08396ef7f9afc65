"""The base class of every section of the configuration, and the types of numbers and names that sections share."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST = 2**53
"""The largest number of anything: larger integers are not exact in JSON, nor as steps of a schedule."""

LARGEST_IMAGE = 16_384
"""The longest side of an image, in pixels, as a network sees it. Larger ones would not fit into memory."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Pixels = Annotated[int, Field(ge=1, le=LARGEST_IMAGE)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
FilePath = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
Protocol = Literal["one-crop", "ten-crop", "multi-scale", "multi-scale-dense"]
"""What is averaged for an image in an evaluation."""


class Section(BaseModel):
    """A part of the configuration: immutable, strict about types, and without keys beyond its own.

    The docstring under a field is the description of its key in `configs/schema.json` and `docs/config.md`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def complaints(self) -> Iterator[str]:
        """What is wrong although every key is valid by itself: keys that contradict each other or have no effect."""
        yield from ()

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if complaints := list(self.complaints()):
            raise ValueError(*complaints)
        return self
