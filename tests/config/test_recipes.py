"""Experiments that are found by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config import load, recipes
from resnet_train.errors import BadInput

CONFIGS = Path(__file__).parents[2] / "configs"
Program = Callable[..., tuple[int, str, str]]


def test_every_experiment_is_found_by_its_name_from_anywhere() -> None:
    assert recipes.names() == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    for name in recipes.names():
        assert recipes.find(name).samefile(CONFIGS / f"{name}.yaml")


def test_a_file_wins_and_a_folder_does_not(config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    assert load.load("quickstart").name == "quickstart"
    (tmp_path / "quickstart").rmdir()
    config("quickstart")
    assert load.load("quickstart").name == "tiny"
    assert load.load(recipes.FOLDER / "quickstart.yaml").name == "quickstart"


def test_a_file_may_be_based_on_a_shipped_experiment_or_on_its_neighbour(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: imagenet-resnet\nname: mine\n")
    assert [network.name for network in load.load(mine).networks] == [
        network.name for network in load.load("imagenet-resnet").networks
    ]
    config("imagenet-resnet")
    assert [network.depth for network in load.load(mine).networks] == [8]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "quickstrat",
            "quickstrat: no such file, and no experiment of this name; see resnet-train configs; did you mean quickstart?",
        ),
        ("q", "q: no such file, and no experiment of this name; see resnet-train configs"),
        ("configs/quickstart.yaml", "the shipped experiment is found by its name, quickstart"),
        ("quickstart.yaml", "the shipped experiment is found by its name, quickstart"),
        ("mine.yaml", "cannot read mine.yaml: No such file or directory"),
        ("x\0y", "embedded null"),
    ],
)
def test_what_is_not_found_is_one_line(name: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        load.load(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_configs_lists_them_with_their_first_line(program: Program) -> None:
    code, out, err = program("configs")
    assert (code, err) == (0, "")
    lines = dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())
    assert list(lines) == [name.ljust(max(map(len, lines)))[: len(name)] for name in lines]
    records = json.loads(program("configs", "--json")[1])
    assert [record["name"] for record in records] == recipes.names()
    for record in records:
        head = Path(record["path"]).read_text().splitlines()
        assert record["description"] == head[2].removeprefix("# ")
        assert f"{record['name'].ljust(max(map(len, recipes.names())))}  {record['description']}" in out
        assert record["description"].endswith("."), f"{record['path']}: its first line is a sentence"


def test_run_takes_a_name(program: Program) -> None:
    code, out, err = program("run", "quickstart", "--dry-run", "--verbose", "--only", "cifar-plain-20")
    assert (code, err) == (0, "")
    assert "name: quickstart" in out
