"""A terminal for tests: a pseudo-terminal of some columns, and what it would show."""

import fcntl
import os
import pty
import struct
import subprocess
import termios

from conftest import spawn


class Screen:
    """A terminal, as far as the program uses it: carriage return, line feed and cursor up."""

    def __init__(self, columns: int) -> None:
        self.columns, self.row, self.column = columns, 0, 0
        self.rows: list[list[str]] = [[]]
        self.too_wide: set[str] = set()
        self.rest = ""

    def feed(self, text: str) -> None:
        text = self.rest + text
        while text:
            if text[0] == "\x1b":
                if len(text) < 3:
                    break
                assert text.startswith("\x1b[A"), repr(text[:10])
                self.row, text = self.row - 1, text[3:]
                assert self.row >= 0
                continue
            character, text = text[0], text[1:]
            if character == "\r":
                self.column = 0
            elif character == "\n":
                self.row += 1
                self.rows += [[]] * (self.row == len(self.rows))
            else:
                assert character.isprintable(), repr(character)
                line = self.rows[self.row] = self.rows[self.row] + [" "] * (self.column + 1 - len(self.rows[self.row]))
                line[self.column] = character
                self.column += 1
                if self.column > self.columns:
                    self.too_wide.add("".join(line))
        self.rest = text

    def lines(self) -> list[str]:
        lines = ["".join(row).rstrip() for row in self.rows]
        return [line for line in lines if line]


def open_terminal(columns: int) -> tuple[int, int]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return ours, theirs


def feed(screen: Screen, terminal: int) -> bool:
    """Pass on what the program has written; False once it has ended."""
    try:
        screen.feed(os.read(terminal, 1 << 16).decode())
    except OSError:  # EIO: nobody has the other end open
        return False
    return True


def files(terminal: int) -> dict[str, int]:
    return {"stdout": subprocess.DEVNULL, "stderr": terminal}


def run(columns: int, *arguments: object) -> tuple[int, Screen]:
    """Call `resnet-train` as a process on a terminal; its exit code, and what it shows."""
    ours, theirs = open_terminal(columns)
    process = spawn(*arguments, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = Screen(columns)
    while feed(screen, ours):
        pass
    os.close(ours)
    return process.wait(), screen
