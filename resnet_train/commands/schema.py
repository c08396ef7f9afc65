"""`resnet-train schema`: the JSON Schema of experiment files."""

import argparse
import json

EXAMPLE = "resnet-train schema > configs/schema.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print docs/config.md, the table of keys, instead")


def main(args: argparse.Namespace) -> None:
    """Print the schema, or the page of the documentation that lists the same keys."""
    from resnet_train.config import reference

    if args.markdown:
        print(reference.markdown(), end="")
    else:
        print(json.dumps(reference.json_schema(), indent=2))
