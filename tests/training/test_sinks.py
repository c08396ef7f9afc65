"""Where the records of a run go."""

import json
from pathlib import Path

from resnet_train.training.sinks import JsonLinesSink


def test_earlier_records_are_written_again_without_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    lines = JsonLinesSink(path, [{"step": 1, "kind": "train"}])
    lines.write({"step": 2, "kind": "eval"})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
