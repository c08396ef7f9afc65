"""`resnet-train`, `python -m resnet_train`, and so `torchrun -m resnet_train`."""

from typing import NoReturn

from resnet_train import cli
from resnet_train.runtime.process_exit import exit_process
from resnet_train.runtime.streams import prepare_streams


def main() -> NoReturn:
    """Run a command, then end the process."""
    prepare_streams()
    exit_process(cli.main())


if __name__ == "__main__":
    main()
