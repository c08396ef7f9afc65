"""The command line: a table of commands, and exit codes. A command imports what it needs when it is called."""

import argparse
import importlib
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from resnet_train.errors import BadInput, one_line, report
from resnet_train.runtime.progress import show_messages
from resnet_train.runtime.version import __version__

COMMANDS = {
    "run": "train every network of an experiment, or continue what is unfinished",
    "status": "print how far each run is: its state, step, errors, speed and time left",
    "compare": "tabulate and draw the errors of run folders across depths",
    "report": "write one web page about run folders: findings, curves, costs, probes, configuration",
    "eval": "print the error of checkpoints, and of their ensemble",
    "probe": "measure gradients or responses by depth, or the error without each unit, and draw them",
    "predict": "print the most probable classes of image files",
    "export": "write a network in a format of other programs, read it back and compare",
    "summary": "print the stages of networks with parameters, multiply-adds and activations",
    "bench": "measure what limits the speed of a training on this machine, and what to change",
    "prepare": "pack a data set into shards, which load faster, or verify packed shards",
    "configs": "list the experiments that are shipped, which `run` and `bench` find by name",
    "schema": "print the JSON Schema of experiment files, for editors",
    "completion": "print a completion script for a shell",
}
"""Each command is the module of its name in `resnet_train.commands`."""

_EPILOG = """exit codes:
  0    done
  1    training failed: the loss is no longer finite, or a bug
  2    bad input: one line on standard error names it and says what to do
  69   another rank stopped, or its node or network was lost: run again
  73   another process works in the folder: run again once it has ended
  75   stopped by a signal after saving: run the same command again to continue
  130  stopped at once, by a second SIGINT
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    show_messages()
    try:
        try:
            args = parse(arguments)
            check_temporary_folder()
            args.main(args)
        finally:  # also after --help, which ends by SystemExit
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 0


def check_temporary_folder() -> None:
    """Refuse to begin where no temporary file can be written: torch, matplotlib and multiprocessing need one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise BadInput("no folder for temporary files can be written: set TMPDIR to one that can") from None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command and its arguments. Options may stand between the words of a list."""
    parser, _ = build_parsers()
    args, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-") or not hasattr(args, "words"):
            parser.error(f"unrecognized argument: {word}")
        getattr(args, args.words).append(word)
    return args


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line after the usage, whatever the words on the command line are."""
        super().error(one_line(message))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help whose paragraphs are wrapped to the terminal. Those with an indented line, such as an example, are not."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n " in part else textwrap.fill(part, width) for part in paragraphs)


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the program, and that of each command."""
    parser: argparse.ArgumentParser = _Parser(
        prog="resnet-train",
        description="Train plain and residual networks of different depths under one recipe, and compare them.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    commands = {}
    for name, text in COMMANDS.items():
        module = importlib.import_module(f"resnet_train.commands.{name}")
        command = subparsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=_Help,
        )
        command.set_defaults(main=module.main)
        module.add_arguments(command)
        commands[name] = command
    commands["completion"].set_defaults(parser=parser)
    return parser, commands
