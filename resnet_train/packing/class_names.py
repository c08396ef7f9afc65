"""The names of classes, which `prepare` reads from a file."""

from pathlib import Path

from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import read_text


def read_class_names(path: Path | None, classes: list[str], by_line: bool = False) -> tuple[list[str], list[str]]:
    """Ids and human-readable names of the classes, from lines such as `n01440764 tench, Tinca tinca`.

    Each id of `classes` is looked up in the file. `by_line`: `classes` may be numbers or names rather than ids; if they
    are not in the file, line i + 1 is class i. Without a file, the ids are the names. Raises BadInput.
    """
    if path is None:
        return classes, classes
    text = read_text(path, prefix="--class-names: ", errors="surrogateescape")
    lines = [line.strip().split(maxsplit=1) for line in text.splitlines() if line.strip()]
    name_of_id = {words[0]: words[-1] for words in lines}
    if set(classes) <= name_of_id.keys():
        return list(classes), [name_of_id[class_id] for class_id in classes]
    if not by_line:
        missing = next(class_id for class_id in classes if class_id not in name_of_id)
        raise BadInput(
            f"--class-names: {path} has no line for class {missing}: expected lines such as `{missing} NAME`"
        )
    if len(lines) != len(classes) or len(name_of_id) != len(lines):
        raise BadInput(f"--class-names: {path} names {len(name_of_id)} classes, and the source has {len(classes)}")
    names = list(name_of_id.values())
    for label, name in enumerate(classes):
        if names.count(name) == 1 and names.index(name) != label:
            raise BadInput(f"--class-names: {path}: {name} is line {names.index(name) + 1}, and label {label} here")
    return list(name_of_id), names
