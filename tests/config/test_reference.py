"""The schema for editors and readers."""

import json
from pathlib import Path

from resnet_train.config import reference

ROOT = Path(__file__).parents[2]


def test_schema_file_is_what_the_program_prints() -> None:
    assert json.loads((ROOT / "configs" / "schema.json").read_text()) == reference.json_schema(), (
        "run `resnet-train schema > configs/schema.json`"
    )
