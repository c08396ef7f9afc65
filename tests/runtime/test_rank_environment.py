"""The environment of a rank: what is missing or wrong is named, before anything is opened."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.errors import BadInput
from resnet_train.runtime import rank_environment
from resnet_train.runtime.rank_environment import RankEnvironment

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def set_environment(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """A whole environment with changes; None takes a variable away."""
    for name, value in {**WHOLE, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_the_place_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    assert rank_environment.read() == RankEnvironment(rank=3, size=4, local_rank=1, local_size=2)


def test_the_place_on_the_node_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, LOCAL_RANK=None, LOCAL_WORLD_SIZE=None)
    assert rank_environment.read() == RankEnvironment(rank=3, size=4, local_rank=0, local_size=4)


@pytest.mark.parametrize("size", [None, "1"])
def test_one_rank_needs_no_address(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, **(dict.fromkeys(WHOLE) | {"WORLD_SIZE": size}))
    assert rank_environment.read() == RankEnvironment()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "RANK is not set, and WORLD_SIZE is: "),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set, and RANK is: "),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set: "),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set: "),
        ({"MASTER_ADDR": "a..b"}, "MASTER_ADDR = 'a..b' cannot be resolved: "),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set, and WORLD_SIZE is: "),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT = '65536' is not a whole number from 1 to 65535: "),
        ({"RANK": "4"}, "RANK = '4' is not a whole number from 0 to 3: "),
        ({"RANK": "-1"}, "RANK = '-1' is not a whole number from 0 to 3: "),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK = '1' is not a whole number from 0 to 0: "),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE = '' is not a whole number from 1 up: "),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE = '9999"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK = '' is not a whole number from 0 to 1: "),
        ({"LOCAL_RANK": "²"}, "LOCAL_RANK = '²' is not a whole number from 0 to 1: "),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE = '5' is not a whole number from 1 to 4: "),
        ({**dict.fromkeys(WHOLE), "LOCAL_RANK": "x"}, "LOCAL_RANK = 'x' is not a whole number from 0 up: "),
    ],
)
def test_what_is_wrong_is_named(
    changes: dict[str, str | None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    config: Callable[..., Path],
    program: Callable[..., tuple[int, str, str]],
) -> None:
    set_environment(monkeypatch, **changes)
    code, out, err = program("run", config())
    [line] = err.splitlines()
    assert (code, out) == (2, "")
    assert line.startswith(f"resnet-train: {message}")
    assert not Path("runs").exists()


@pytest.mark.parametrize("failures", [1, 60, 61])
def test_a_name_may_be_known_a_minute_later(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster knows the name of a node once it has started. The other nodes may be earlier."""
    answers, slept = [failures], list[float]()

    def resolve(*_: object) -> None:
        answers[0] -= 1
        if answers[0] >= 0:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(time, "sleep", slept.append)
    set_environment(monkeypatch, MASTER_ADDR="node0")
    message = "MASTER_ADDR = 'node0' cannot be resolved: Name or service not known"
    if failures == 61:
        with pytest.raises(BadInput, match=f"^{message}$"):
            rank_environment.read()
    else:
        assert rank_environment.read().rank == 3
    assert sum(slept) == min(failures, 60)
    assert caplog.messages == [f"{message}; waiting for it for 60 seconds"]
