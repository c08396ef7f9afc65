"""What the program says to its user when it stops early, and with which exit code."""


class BadInput(Exception):
    """Something that the user gave cannot be used: one line that names the thing and the cure. Exit code 2."""

    exit_code = 2


class Diverged(Exception):
    """The loss is no longer finite. Exit code 1."""

    exit_code = 1


class RankLost(Exception):
    """Another rank is gone, and said why. Exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved and the same command continues it. Exit code 75."""

    exit_code = 75
