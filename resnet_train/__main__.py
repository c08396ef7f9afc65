"""`resnet-train`, `python -m resnet_train`, and so `torchrun -m resnet_train`."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run a command, then end the process."""
    if sys.platform == "win32":
        print("resnet-train: it runs on Linux and macOS, not on Windows: use WSL 2", file=sys.stderr)
        sys.exit(2)
    # Here, since some of it cannot be imported on Windows.
    from resnet_train.runtime import signals

    signals.note_early_warnings()
    from resnet_train import cli
    from resnet_train.runtime.process_exit import exit_process
    from resnet_train.runtime.streams import prepare_streams

    # Figures are files; matplotlib cannot be imported with a backend that it lacks. Not in `cli`: if a notebook calls
    # that, the variable is the notebook's.
    os.environ["MPLBACKEND"] = "agg"
    prepare_streams()
    exit_process(cli.main())


if __name__ == "__main__":
    main()
