"""Keep a finished experiment in the repository, and the table of all that are kept.

    python scripts/results.py collect runs/quickstart "resnet-train run quickstart seeds=[0,1,2,3,4]"
    python scripts/results.py table && python scripts/reproduce.py

`collect` reads the run folders of an experiment and writes docs/results/NAME: the tables and figures of `compare`, the
resolved experiment, and study.json with the command, the commit, the date and the machines. It refuses runs that the
command would not make, or that are not finished. `table` writes docs/results/README.md from all of them.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from resnet_train import cli
from resnet_train.analysis import tables
from resnet_train.analysis.groups import Group, group_runs
from resnet_train.analysis.style import Output
from resnet_train.commands import select_runs
from resnet_train.config import load, recipes
from resnet_train.config.schema import Experiment, Run
from resnet_train.config.yaml12 import to_yaml
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder
from resnet_train.runs.run_folder import RunRecord
from resnet_train.runtime.tables import percent

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PNG_LIMIT = 200_000
"""Bytes of a picture that the repository keeps."""

_HEAD = """# Results

What was measured with this program, beside what sources report
([what the verdicts mean](../metrics.md#published-beside-measured)). `python scripts/results.py table` generates this
page from the studies beside it. The page of each has its figures, its command and its machines.
"""
_ABOUT = """Errors in percent, mean ± standard deviation over seeds, at the end of the training: the clean training
error, and the validation top-1 error. Hours are those of one training, evaluations included."""
_ADD = """## Add a study

```bash
resnet-train run quickstart "seeds=[0, 1, 2, 3, 4]"
python scripts/results.py collect runs/quickstart 'resnet-train run quickstart "seeds=[0, 1, 2, 3, 4]"'
python scripts/results.py table && python scripts/reproduce.py
```

`collect` refuses runs that the command would not make, or that are not finished.
"""
_HEADINGS = (
    *("study", "network", "seeds", "steps", "training error", "validation error"),
    *("published", "verdict", "hours", "hardware", "commit"),
)


def experiment_of(command: str) -> Experiment:
    """The experiment of a command. Raises `BadInput` if it is no such command, or no longer valid."""
    return _parse(command)[0]


def _parse(command: str) -> tuple[Experiment, list[Run]]:
    """The experiment of a command, and the runs that it trains: with `--only` a part. Raises `BadInput`."""
    words = shlex.split(command)
    programs = [i for i, word in enumerate(words) if Path(word).name in ("resnet-train", "resnet_train")]
    if not programs or words[programs[-1] + 1 : programs[-1] + 2] != ["run"]:
        raise BadInput(f"{command!r} is not a resnet-train run")
    try:
        args = cli.parse(words[programs[-1] + 1 :])
    except SystemExit:
        raise BadInput(f"{command!r} is not understood") from None
    experiment = load.load(recipes.find(args.config, RESULTS.parents[1]), args.overrides)
    return experiment, select_runs(args.config, experiment, args.only or [])


def collect(runs: Path, command: str, out: Path, note: str | None) -> None:
    """Write the study of a finished experiment into the folder `out`. Raises `BadInput`."""
    experiment, planned = _parse(command)
    records = list(_planned(run_folder.find([runs]), planned, command))
    groups = group_runs(records)
    for path in tables.write_comparison(groups, out, Output(formats=("png", "svg"))):
        if path.suffix == ".png":
            _shrink(path)
    study = _study(groups, command, note)
    (out / "experiment.yaml").write_text(to_yaml(load.dump(experiment)))
    (out / "study.json").write_text(json.dumps(study, indent=2) + "\n")
    _, _, compared = (out / "compare.md").read_text().partition("\n")
    (out / "compare.md").unlink()
    (out / "README.md").write_text(_page(study) + compared)


def _planned(records: Sequence[RunRecord], runs: Sequence[Run], command: str) -> Iterator[RunRecord]:
    """The records with what is expected of them now. Raises `BadInput` if one is not finished, missing, or another."""
    planned = {(run.cell, run.seed): run for run in runs}
    for record in records:
        run = planned.get((record.run.cell, record.run.seed))
        if run is None:
            raise BadInput(f"{record.folder}: {command!r} does not train it")
        for key, old, new in run_folder.differences(record.run, run):
            raise BadInput(f"{record.folder}: {key} = {old}, and {new} with {command!r}")
        if record.end is None:
            raise BadInput(f"{record.folder} is not finished: run it again to continue")
        yield dataclasses.replace(record, run=run)
    for cell, seed in planned.keys() - {(record.run.cell, record.run.seed) for record in records}:
        raise BadInput(f"{command!r} also trains {cell} seed {seed}, which is not there: a study holds every run")


def _study(groups: Sequence[Group], command: str, note: str | None) -> dict[str, Any]:
    records = [record for group in groups for record in (*group.runs, *group.left_out)]
    sessions = [session for record in records for session in run_folder.sessions(record.folder)]
    left_out = ("from_step", "date", "platform", "commit", "host", "pid", "queue")
    machines = {json.dumps({k: v for k, v in one.items() if k not in left_out and v is not None}) for one in sessions}
    return {
        "experiment": groups[0].experiment,
        "command": command,
        "date": datetime.fromtimestamp(max(record.records[-1]["time"] for record in records), UTC).date().isoformat(),
        "commits": sorted({str(session.get("commit")) for session in sessions}),
        "hours": {
            group.label: _hours(group.runs) / len(group.runs) for group in groups
        },  # in the order of compare.json
        "hours_in_all": _hours(records),
        "machines": [json.loads(machine) for machine in sorted(machines)],
        "hardware": "; ".join(sorted({_hardware(session) for session in sessions})),
        **({"note": note} if note else {}),
    }


def _hours(records: Sequence[RunRecord]) -> float:
    """Of training, evaluation and probes."""
    return sum(float(record.records[-1]["seconds"]) for record in records) / 3600


def _hardware(session: dict[str, Any]) -> str:
    if session.get("cuda"):
        return f"{session['ranks']} x {session['device']}"
    threads = session["ranks"] * session["threads"]
    return f"{session['device']}, {threads} thread{'s' if threads > 1 else ''}"


def _shrink(path: Path) -> None:
    """Make a picture smaller than `PNG_LIMIT`, by its number of colours and then by its size."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    for scale in (1.0, 0.8, 0.6, 0.45):
        if path.stat().st_size < PNG_LIMIT:
            return
        size = (round(picture.width * scale), round(picture.height * scale))
        resized = picture.resize(size, Image.Resampling.LANCZOS)
        resized.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)


def _page(study: dict[str, Any]) -> str:
    commits = ", ".join(study["commits"])
    facts = f"{study['date']}; {study['hardware']}; {study['hours_in_all']:.3g} hours in all; commit {commits}."
    lines = [f"# {study['experiment']}", "", "```bash", study["command"], "```", "", facts]
    lines += [study["note"]] if "note" in study else []
    return "\n".join([*lines, "The resolved experiment: [experiment.yaml](experiment.yaml).", ""])


def studies(root: Path) -> list[Path]:
    """The folders of all studies."""
    return sorted(path.parent for path in root.glob("*/study.json"))


def table(root: Path) -> str:
    """The page of all studies. Raises `BadInput` if the command of one is no longer valid."""
    rows = [_HEADINGS, ("---", "---", *["---:"] * 4, "---", "---", "---:", "---", "---")]
    pages: list[str] = []
    for folder in studies(root):
        study = json.loads((folder / "study.json").read_text())
        experiment_of(study["command"])
        whole = (study["hardware"], ", ".join(commit[:7] for commit in study["commits"]))
        link = f"[{folder.name}]({folder.name}/README.md)"
        compared = json.loads((folder / "compare.json").read_text())
        for row, (name, hours) in zip(compared, study["hours"].items(), strict=True):
            cells = (str(row["seeds"]), f"{row['step'] or 0:,}", *_errors(row), *_published(row), f"{hours:.2g}")
            rows.append((link, name, *cells, *whole))
        pages.append(f"- [{folder.name}]({folder.name}/README.md), {study['date']}: `{study['command']}`")
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([_HEAD, *([body, "", _ABOUT, "", *pages] if pages else ["None yet."]), "", _ADD])


def _errors(row: dict[str, Any]) -> list[str]:
    """Training and validation error. Of several protocols, a row has the columns of its own."""
    cells = []
    for error in ("clean_train_error", "val_error_top1"):
        column = next((name for name in row if name.partition(" ")[0] == error and row[name] is not None), error)
        deviation = row.get(column.replace(error, f"{error}_std"))
        cells.append(percent(row.get(column), deviation))
    return cells


def _published(row: dict[str, Any]) -> tuple[str, str]:
    """The published validation error or, without one, training error, and the verdict."""
    for error in ("val_error_top1", "clean_train_error"):
        if row.get(f"published_{error}"):
            return f"{row[f'published_{error}']}, {row[f'source_{error}']}", row[f"verdict_{error}"]
    return "–", "–"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("collect", help="keep a finished experiment")
    one.add_argument("runs", type=Path, help="folder of its runs")
    one.add_argument("command", help="the command that trained it")
    one.add_argument("--out", type=Path, help="folder of the study (default: docs/results/NAME)")
    one.add_argument("--note", help="a sentence about the circumstances")
    actions.add_parser("table", help="write docs/results/README.md")
    args = parser.parse_args()
    try:
        if args.action == "collect":
            out = args.out or RESULTS / experiment_of(args.command).name
            collect(args.runs, args.command, out, args.note)
            print(f"wrote {out}; now: python scripts/results.py table && python scripts/reproduce.py")
        else:
            (RESULTS / "README.md").write_text(table(RESULTS))
    except BadInput as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
