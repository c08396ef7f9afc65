"""What a source reports of a recipe, and what has changed in the recipe since that was stated."""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from resnet_train.config.defining import flatten, is_defining
from resnet_train.config.section import Count, Name, Percent, Protocol, Section
from resnet_train.config.yaml12 import Tree

EXPECTED_ERRORS = ("val_error_top1", "val_error_top5", "clean_train_error", "train_error")
"""The errors that a source can report, named as the columns of `compare.csv`."""

_HOW_IT_IS_COMPUTED = frozenset(
    {
        *("train.precision", "train.compile", "train.cuda_graph", "train.sync_bn", "train.grad_accum_steps"),
        *("eval.clean_train_images", "data.on_bad_image"),
    }
)
"""Keys that say how a recipe is computed. Sources rarely state them, and a figure is compared whatever they are."""


class FigureConfig(Section):
    """A figure that is more than one number: `{mean: 6.61, std: 0.16, n: 5}`, `{median: 6.37, n: 5}`, or a range such
    as `{low: 9.5, high: 13.5}` where the source only draws it. A number alone is that of one training."""

    mean: Percent | None = None
    """Mean over `n` trainings."""
    std: Percent | None = None
    """Standard deviation over `n` trainings, if the source has it."""
    median: Percent | None = None
    """Median of `n` trainings."""
    n: Count | None = None
    """Number of trainings."""
    low: Percent | None = None
    """Lower end of a range."""
    high: Percent | None = None
    """Upper end of a range."""

    def complaints(self) -> Iterator[str]:
        given = self.model_dump(exclude_none=True).keys()
        if given not in ({"mean", "std", "n"}, {"mean", "n"}, {"median", "n"}, {"low", "high"}):
            yield "a figure is {mean, std, n}, {mean, n}, {median, n} or {low, high}"
        elif self.low is not None and self.high is not None and self.low >= self.high:
            yield f"low {self.low:g} is not below high {self.high:g}"
        elif self.std is not None and self.n == 1:
            yield "std of n = 1: one training has no deviation"

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the figure, and how far it reaches to each side: its deviation, or half its range."""
        if self.low is not None and self.high is not None:
            return (self.low + self.high) / 2, (self.high - self.low) / 2
        return (self.mean if self.median is None else self.median) or 0.0, self.std or 0.0

    def __str__(self) -> str:
        if self.low is not None:
            return f"over {self.low:g}" if self.high == 100 else f"{self.low:g} to {self.high:g}"
        if self.median is not None:
            return f"{self.median:.2f} (median of {self.n})"
        return f"{self.mean:.2f}{'' if self.std is None else f' ± {self.std:.2f}'} ({self.n})"


def _form(figure: object) -> str:
    return "figure" if isinstance(figure, dict | FigureConfig) else "number"


Figure = Annotated[Annotated[Percent, Tag("number")] | Annotated[FigureConfig, Tag("figure")], Discriminator(_form)]
FIGURE_TAGS = ("number", "figure")
"""What pydantic calls the two forms in the location of an error."""
Figures = Annotated[dict[Name, Figure], Field(min_length=1)]


class ExpectConfig(Section):
    """What one source reports of the recipe of this file, under one protocol, by network. It changes no training:
    `run --dry-run` and `compare` print it. A file that is based on this one, or the command line, may change the
    recipe; the figures are then of another protocol."""

    source: Annotated[str, Field(min_length=1, max_length=300)]
    """The paper with its table or figure, or the program, that reports the figures."""
    val_images: Count
    """Number of validation images that the source measured on; with another number `compare` calls it another
    protocol."""
    protocol: Protocol = "one-crop"
    """The `eval.protocol` of the figures; images of one size are evaluated whole, which is `one-crop`."""
    val_error_top1: Figures | None = None
    """Validation top-1 error in percent by network, such as `{cifar-resnet-20: 8.75}`."""
    val_error_top5: Figures | None = None
    """Validation top-5 error in percent by network."""
    clean_train_error: Figures | None = None
    """Training error in percent by network, in evaluation mode without augmentation."""
    train_error: Figures | None = None
    """Running training error in percent by network, over the augmented batches."""
    differs: dict[Name, tuple[str, ...]] | None = None
    """Written by the program: by network, what later files or the command line changed in the recipe that the source
    is about."""

    def complaints(self) -> Iterator[str]:
        if not any(getattr(self, error) for error in EXPECTED_ERRORS):
            yield f"no figure: give one of {', '.join(EXPECTED_ERRORS)}"

    def figures(self, error: str) -> dict[str, Figure]:
        """The figures of one of `EXPECTED_ERRORS` by network."""
        return getattr(self, error) or {}

    @property
    def networks(self) -> list[str]:
        """The networks with a figure, each once."""
        return list(dict.fromkeys(name for error in EXPECTED_ERRORS for name in self.figures(error)))

    def with_differences(self, network: str, texts: Iterable[str]) -> "ExpectConfig":
        """The same with more that differs, of one network."""
        merged = dict.fromkeys([*(self.differs or {}).get(network, ()), *texts])
        if not merged:
            return self
        return self.model_copy(update={"differs": {**(self.differs or {}), network: tuple(merged)}})

    def of(self, network: str) -> Tree | None:
        """The part about one network as plain data; None if there is no figure of it."""
        if network not in self.networks:
            return None
        tree: Tree = self.model_dump(mode="json", exclude_none=True)
        for key in (*EXPECTED_ERRORS, "differs"):
            if network in tree.get(key, {}):
                tree[key] = {network: tree[key][network]}
            else:
                tree.pop(key, None)
        return tree


def text(figure: Figure) -> str:
    """A figure as people write it, in percent."""
    return f"{figure:.2f}" if isinstance(figure, int | float) else str(figure)


def recipe_differences(stated: Tree, recipe: Tree) -> list[str]:
    """The keys by which a recipe is not the one that a source's figures were stated for, with both values.

    Left out is what changes no result, and how it is computed: precision, passes, packed or single image files. The
    protocol of evaluation is left out too, since each source has its own.
    """
    old, new = (_compared(flatten(tree)) for tree in (stated, recipe))
    return [
        f"{key} = {_in_yaml(new.get(key))}, not {_in_yaml(old.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _in_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _compared(leaves: Tree) -> Tree:
    if leaves.get("data.kind") == "shards":
        leaves["data.kind"] = "imagefolder"
    return {
        key: value
        for key, value in leaves.items()
        if is_defining(key)
        and key not in _HOW_IT_IS_COMPUTED
        and key != "eval.protocol"
        and not key.startswith("probes.")
    }
