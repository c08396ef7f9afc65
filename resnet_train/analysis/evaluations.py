"""What sources report beside what `eval` measured of checkpoints, over the seeds of each network. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_train.analysis.groups import expected_of
from resnet_train.analysis.published import Measured, Published, beside, changed_pixels, published_columns
from resnet_train.config.expect import recipe_differences
from resnet_train.config.load import dump
from resnet_train.config.schema import Recipe, Run
from resnet_train.runs.records import Record
from resnet_train.runs.run_folder import RunRecord

_RECORDED = {"val_error_top1": "error_top1", "val_error_top5": "error_top5"}
"""The keys of a record of `eval` that hold an error."""


@dataclass(frozen=True)
class EvaluatedRun:
    """A checkpoint of a run folder, and its errors."""

    trained: RunRecord
    run: Run
    """The run as it was evaluated: `--protocol` and `--set` change it."""
    record: Record
    """Of `ensemble.error_records`."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why its errors are not those of the end of its recipe; the protocol of evaluation is left out."""
        then, now = ({key: dump(run)[key] for key in Recipe.model_fields} for run in (self.trained.run, self.run))
        reasons, end, step = recipe_differences(then, now), self.trained.end, self.record["step"]
        protocols = (self.record["protocol"], *(str(start.get("protocol")) for start in self.trained.records[:1]))
        reasons += [change for protocol in protocols for change in changed_pixels(protocol)]
        if end is None or (end["status"], end["step"]) != ("finished", step):
            steps = next((f"{record['steps']:,}" for record in self.trained.records[:1]), "an unknown number")
            reasons.append(f"step {step:,} of {steps}")
        return tuple(reasons)


def published_evaluations(evaluated: Sequence[EvaluatedRun]) -> list[tuple[list[EvaluatedRun], list[Published]]]:
    """For each network its checkpoints, one for each seed, and what sources report of it.

    Of a seed that was evaluated twice the later step counts.
    """
    networks: dict[tuple[str, str], dict[int, EvaluatedRun]] = {}
    for one in sorted(evaluated, key=lambda one: one.record["step"]):
        run = one.trained.run
        networks.setdefault((run.experiment, run.cell), {})[run.seed] = one
    several = len({experiment for experiment, _ in networks}) > 1
    found = []
    for (experiment, cell), by_seed in networks.items():
        seeds = list(by_seed.values())
        found.append((seeds, beside(_measured(f"{experiment}/{cell}" if several else cell, seeds))))
    return found


def published_keys(found: Sequence[Published]) -> Record:
    """What sources report of a checkpoint's network as keys beside `error_top1` and `error_top5` of its record."""
    keys: Record = {}
    for one in found:
        keys |= published_columns(_RECORDED[one.error], one)
    return keys


def _measured(label: str, seeds: Sequence[EvaluatedRun]) -> Measured:
    first = seeds[0]
    images: int = first.record["images"]
    return Measured(
        label,
        first.run.network.name,
        expected_of([one.trained.run for one in seeds]),
        first.run.eval.protocol,
        images,
        {error: [one.record[key] for one in seeds] for error, key in _RECORDED.items()},
        dict.fromkeys(_RECORDED, images),
        tuple(dict.fromkeys(reason for one in seeds for reason in one.reasons)),
    )
