"""YAML with the scalars of YAML 1.2."""

from collections.abc import Callable
from pathlib import Path

from resnet_train.config import load
from resnet_train.config.yaml12 import read_yaml, to_yaml


def test_strings_that_look_like_numbers_survive_the_run_folder(config: Callable[..., Path]) -> None:
    for name in ("12e3", "09", "true", "off"):
        experiment = load.load(config(name="tiny"), [f'name="{name}"'])
        Path("again.yaml").write_text(to_yaml(load.dump(experiment)))
        assert read_yaml(Path("again.yaml"))["name"] == name


def test_scalars_are_those_of_yaml_1_2(config: Callable[..., Path]) -> None:
    """PyYAML alone reads 1e-4 as a string, `off` as false and 017 as fifteen."""
    path = config()
    assert load.load(path, ["optimizer.weight_decay=1e-4"]).optimizer.weight_decay == 1e-4
    assert load.load(path, ["name=off"]).name == "off"
    assert load.load(path, ["train.steps=017"]).train.steps == 17
