"""`resnet-train configs`: the experiments that are shipped."""

import argparse
import json

from resnet_train.commands import add_json
from resnet_train.errors import wrap

EXAMPLE = "resnet-train configs --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Print the name of each experiment and what it reproduces, then the folder of their files."""
    from resnet_train.config import recipes
    from resnet_train.runtime.tables import terminal_width

    rows = [(name, recipes.description(name)) for name in recipes.names()]
    if args.json:
        records = [{"name": name, "description": text, "path": f"{recipes.FOLDER / name}.yaml"} for name, text in rows]
        print(json.dumps(records, indent=2))
        return
    indent = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{indent}}{text}" for name, text in rows]
    where = f"The files, each with its cost and expected errors, are in {recipes.FOLDER}"
    width = terminal_width()
    print(wrap("\n".join(lines), width, indent), wrap(where, width), sep="\n\n")
