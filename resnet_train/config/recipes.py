"""The experiments that are shipped with the package, found by name from any folder."""

import difflib
from pathlib import Path

from resnet_train.errors import BadInput, shorten

FOLDER = (Path(__file__).parents[1] / "configs").resolve()
"""In the repository it is a link to the folder `configs` at its top; in a wheel it is a folder of the package."""


def names() -> list[str]:
    """The names of all shipped experiments: `quickstart` is configs/quickstart.yaml."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str | Path, folder: Path = Path()) -> Path:
    """The experiment file that `name` means: the file at this path in `folder`, or else the shipped one of this name.

    Raises `BadInput` if there is neither and `name` is no path, or a path that ends with the file of a shipped one.
    """
    path = folder / name
    word = str(name) if Path(name).stem == str(name) else ""
    if _exists(path) and not (word and path.is_dir()):
        return path
    if word in names():
        return FOLDER / f"{word}.yaml"
    if word:
        nearest = difflib.get_close_matches(word, names(), n=1)
        raise BadInput(
            f"cannot read {shorten(word)}: no such file, and no experiment of this name; see resnet-train configs"
            + (f"; did you mean {nearest[0]}?" if nearest else "")
        )
    if path.suffix == ".yaml" and path.stem in names():
        raise BadInput(f"cannot read {path}: no such file; the shipped experiment is found by its name, {path.stem}")
    return path


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    except ValueError as error:  # a NUL, or a surrogate that stands for no byte
        raise BadInput(f"cannot read {shorten(repr(str(path)))}: {error}") from None
    return True


def description(name: str) -> str:
    """What a shipped experiment is: the first line of text in the comment that its file opens with."""
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if (text := line.removeprefix("#").strip()) and "$schema=" not in text:
            return text
    return ""
