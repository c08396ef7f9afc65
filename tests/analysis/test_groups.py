"""Groups of runs: what they compute once."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet_train.analysis import tables
from resnet_train.analysis.curves import curve
from resnet_train.analysis.data_sets import by_data_set
from resnet_train.analysis.groups import group_runs
from resnet_train.runs import run_folder

Recorded = Callable[..., Path]


class CountedList(list[Any]):
    """Counts how often it is read from its beginning."""

    reads = 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        return super().__iter__()

    def __getitem__(self, key: Any) -> Any:
        self.reads += isinstance(key, slice)
        return super().__getitem__(key)


def test_a_comparison_reads_the_records_of_a_run_a_few_times(recorded: Recorded) -> None:
    """A long run has 40,000: read for every figure anew, twelve such runs took 14 seconds."""
    expect = {
        "source": "a paper",
        "protocol": "one-crop",
        "val_images": 10_000,
        "val_error_top1": {"cifar-resnet-8": 5.0},
    }
    for network in ("cifar-plain-8", "cifar-resnet-8"):
        for status, seed in (("finished", 0), ("finished", 1)):
            recorded(network, seed, 3.0 + seed, status, expect=[expect])
    recorded("cifar-resnet-14", 0, 3.0, None)
    runs = [replace(run, records=CountedList(run.records)) for run in run_folder.find([Path("runs")])]
    groups = group_runs(runs)
    for _ in range(2):  # figures and tables ask for the same again
        tables.table(groups)
        tables.markdown_texts(groups)
        for group in groups:
            for error in ("train_error", "clean_train_error", "val_error_top1"):
                curve(group, error)
    assert [run.records.reads for run in runs if run.records.reads > 20] == []  # type: ignore[attr-defined]


def test_a_group_as_it_was_at_a_step(recorded: Recorded) -> None:
    for seed in (0, 1):
        recorded("cifar-resnet-8", seed, 3.0 + seed)
    [group] = group_runs(run_folder.find([Path("runs")]))
    assert group.at(20) is group
    assert group.at(10).by_seed("clean_train_error") == {0: 13.0, 1: 14.0}
    assert {record["step"] for run in group.at(19).runs for record in run.records} == {0, 10}
    assert [run.records for run in group.at(None).runs] == [run.records[:1] for run in group.runs]
    assert group.at(10).step == 10
    assert group.at(10).row()["hours"] == 0.1


def test_image_folders_of_as_many_images_are_one_data_set(recorded: Recorded) -> None:
    """It may be elsewhere on another machine, or packed: plain and residual networks are compared all the same."""
    files = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    recorded("cifar-plain-8", 0, 3.0, data={"kind": "imagefolder", "path": "/data/imagenet"}, **files)
    recorded("cifar-resnet-8", 0, 3.0, data={"kind": "shards", "path": "/scratch/packed"}, **files)
    [plain, residual] = group_runs(run_folder.find([Path("runs")]))
    assert [*by_data_set([plain, residual])] == ["imagenet"]
    [run] = residual.runs
    smaller = replace(run, records=[run.records[0] | {"train_images": 7}, *run.records[1:]])
    assert [*by_data_set([plain, replace(residual, runs=(smaller,))])] == ["imagenet", "packed"]
