"""The schema for editors and readers."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from resnet_train.config import reference, zoo
from resnet_train.config.schema import Experiment, Run
from resnet_train.config.validate import models_in

ROOT = Path(__file__).parents[2]


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and all that are nested in it."""
    yield model
    for field in model.model_fields.values():
        for nested in models_in(field.annotation):
            yield from sections(nested)


def test_schema_file_is_what_the_program_prints() -> None:
    text = (ROOT / "configs" / "schema.json").read_text()
    assert json.loads(text) == reference.json_schema(), "run `resnet-train schema > configs/schema.json`"


def test_page_of_keys_is_what_the_program_prints(program: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = program("schema", "--markdown")
    assert code == 0
    assert (ROOT / "docs" / "config.md").read_text() == out, "run `resnet-train schema --markdown > docs/config.md`"


def test_every_section_and_key_is_described_in_sentences() -> None:
    described = {section for model in (Experiment, Run) for section in sections(model)}
    assert len(described) > 25
    for section in described:
        assert section.__doc__, section
        for key, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{key} has no docstring"
            assert field.description.endswith("."), f"{section.__name__}.{key}: {field.description}"


def test_every_section_class_is_named_a_config() -> None:
    """Duration is a value; Experiment and Run are the models of a file and of a run."""
    names = {section.__name__ for model in (Experiment, Run) for section in sections(model)}
    assert {name for name in names if not name.endswith("Config")} == {"Duration", "Experiment", "Run"}


def test_every_key_has_a_row_on_the_page() -> None:
    page = reference.markdown()
    for section in sections(Experiment):
        for key in section.model_fields:
            assert f"| `{key}` |" in page, f"{section.__name__}.{key}"
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).replace(" ", "-").lower() for line in page.splitlines()}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= headings


@pytest.mark.parametrize(
    ("form", "depths"), re.findall(r"^\| (`.*?) \| ([\d, ]+?|.*such as [\d, ]+) \| ", zoo.__doc__, re.M)
)
def test_names_on_the_page_are_those_of_the_zoo(form: str, depths: str) -> None:
    """Each form of a name, for each depth that the row lists."""
    for depth in re.findall(r"\d+", depths.partition("such as")[2] or depths):
        for name in re.findall(r"`([^`]+)`", form):
            assert zoo.network_config(name.replace("D", depth).replace("K", "2")).depth > 2
