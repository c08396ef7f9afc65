"""`resnet-train completion`: a completion script for a shell."""

import argparse
from pathlib import Path

EXAMPLE = "resnet-train completion bash > ~/.local/share/bash-completion/completions/resnet-train"

_PATHS = ("checkpoint", "checkpoints", "folders", "images", "networks", "paths")
"""Arguments that are paths, and are parsed as text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that is to complete")


def main(args: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    _complete_paths(args.parser)
    print(shtab.complete(args.parser, args.shell))


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let the shell offer files for each argument that is a path."""
    import shtab

    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _complete_paths(command)
        elif action.type is Path or action.dest in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
