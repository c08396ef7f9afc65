"""What TensorBoard shows, by its own plugins."""

import contextlib
import shutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter

from resnet_train import cli
from resnet_train.analysis import tables
from resnet_train.analysis.groups import group_runs
from resnet_train.config.merge import merge
from resnet_train.config.schema import Run
from resnet_train.runs import run_folder, tensorboard

with warnings.catch_warnings():  # of a library within it
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

Program = Callable[..., tuple[int, str, str]]
NETWORKS = ("cifar-plain-8", "cifar-resnet-8")
FIRST = "cifar-plain-8/optimizer.lr=0.1/seed-0"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain network, which has a published figure, and a residual one, at two rates. To be copied."""
    folder = tmp_path_factory.mktemp("once")
    changes = {
        "networks": [{"base": name, "widths": [4, 8, 8]} for name in NETWORKS],
        "sweep": {"optimizer.lr": [0.1, 0.05]},
        "train": {"steps": 4},
        "expect": [{"source": "a table", "val_images": 14, "val_error_top1": {"cifar-plain-8": 12.5}}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(merge(TINY, changes)))
    with contextlib.chdir(folder):
        assert cli.main(["run", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def runs(once: Path) -> Path:
    return shutil.copytree(once / "runs/tiny", Path("runs/tiny"))


class Shown:
    """What TensorBoard shows of a log folder, by its loader in Python and its plugins."""

    def __init__(self, folder: Path) -> None:
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        self.runs = set(multiplexer.Runs())
        self.data, self.request = MultiplexerDataProvider(multiplexer, str(folder)), RequestContext()
        instances: dict[str, Any] = {}
        self.context = TBContext(data_provider=self.data, logdir=str(folder), plugin_name_to_instance=instances)
        instances["scalars"] = ScalarsPlugin(self.context)

    def tags(self, plugin: str) -> dict[str, set[str]]:
        listed = self.data.list_scalars if plugin == "scalars" else self.data.list_tensors
        if plugin == "images":
            listed = self.data.list_blob_sequences
        return {run: set(tags) for run, tags in listed(self.request, experiment_id="", plugin_name=plugin).items()}

    def text(self, run: str, tag: str) -> str:
        only = RunTagFilter(runs=[run], tags=[tag])
        found = self.data.read_tensors(
            self.request, experiment_id="", plugin_name="text", downsample=9, run_tag_filter=only
        )
        [one] = found[run][tag]
        return str(one.numpy.item().decode())

    def charts(self) -> dict[str, dict[str, set[str]]]:
        """By category and title of a chart, the runs whose lines it draws."""
        plugin = CustomScalarsPlugin(self.context)
        return {
            category["title"]: {
                chart["title"]: {
                    run
                    for run in self.runs
                    for pattern in chart["multiline"]["tag"]
                    if plugin.scalars_impl(self.request, run, pattern, "")["tag_to_events"]
                }
                for chart in category["chart"]
            }
            for category in yaml.safe_load(str(plugin.layout_impl(self.request, "")))["category"]
        }

    def hparams(self) -> tuple[Any, Any]:
        """The experiment, and the table of its runs."""
        context, metrics = Context(self.context), api_pb2.GetExperimentRequest(include_metrics=True)
        data = context.hparams_metadata(self.request, "")
        experiment = context.experiment_from_metadata(self.request, "", metrics.include_metrics, data, None)
        assert get_experiment.Handler(self.request, context, "", metrics).run() == experiment
        columns = [
            *(api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos),
            *(api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos),
        ]
        request = api_pb2.ListSessionGroupsRequest(
            allowed_statuses=[api_pb2.STATUS_SUCCESS], col_params=columns, slice_size=99
        )
        groups = list_session_groups.Handler(self.request, context, "", request).run().session_groups
        return experiment, groups


def test_charts_set_plain_networks_beside_residual_ones_and_runs_are_named_after_their_folders(runs: Path) -> None:
    shown = Shown(runs)
    places = {name: {f"{name}/optimizer.lr={lr}/seed-0" for lr in ("0.1", "0.05")} for name in NETWORKS}
    assert shown.runs == set.union(*places.values())
    charts = shown.charts()
    assert [*charts] == [
        *("clean training error (%): plain | residual", "validation error (%): plain | residual"),
        "running training error (%): plain | residual",
    ]
    for category in charts.values():
        assert [*category] == ["plain", "residual", "all on the same axes"]
        assert [*category.values()] == [places["cifar-plain-8"], places["cifar-resnet-8"], shown.runs]


def test_texts_are_the_configuration_of_each_run_and_once_what_they_show(runs: Path) -> None:
    shown = Shown(runs)
    experiment = {"experiment/findings", "experiment/published"}
    for run, tags in shown.tags("text").items():
        assert tags == {"run/config"} | (experiment if run == FIRST else set())
        config = shown.text(run, "run/config")
        assert config == f"```yaml\n{(runs / run / 'config.yaml').read_text()}```"
    groups = group_runs(run_folder.find([runs]))
    texts = {name: shown.text(FIRST, f"experiment/{name}") for name in ("findings", "published")}
    assert texts == tables.markdown_texts(groups)
    assert "| network | optimizer.lr | seeds | training error (running) |" in texts["findings"]
    assert "12.50" in texts["published"]


def test_hparams_show_what_varies_and_the_last_errors(runs: Path) -> None:
    experiment, groups = Shown(runs).hparams()
    names = ["depth", "family", "optimizer.lr", "parameters"]
    assert [info.name for info in experiment.hparam_infos] == names
    types = [api_pb2.DATA_TYPE_FLOAT64, api_pb2.DATA_TYPE_STRING, *[api_pb2.DATA_TYPE_FLOAT64] * 2]
    assert [info.type for info in experiment.hparam_infos] == types
    assert [info.name.tag for info in experiment.metric_infos] == [*tensorboard.ERRORS]
    records = {f"{r.run.title} (tiny)": r for r in run_folder.find([runs])}
    assert {group.name for group in groups} == records.keys()
    for group in groups:
        record = records[group.name]
        run, start, *_, trained, measured, _ = record.run, *record.records
        family = "plain" if "plain" in group.name else "residual"
        values = (run.network.depth, family, run.optimizer.lr, start["params"])
        assert tuple(getattr(group.hparams[n], group.hparams[n].WhichOneof("kind")) for n in names) == values
        errors = measured["clean_train_error_top1"], measured["val_error_top1"], trained["error"]
        assert tuple(metric.value for metric in group.metric_values) == pytest.approx(errors)


def test_pictures_of_an_evaluation_belong_to_the_run_and_come_below_its_curves(runs: Path, program: Program) -> None:
    before = Shown(runs).runs
    checkpoint = runs / FIRST / "checkpoints/last.pt"
    assert program("eval", checkpoint)[0] == 0
    assert program("eval", runs)[0] == 0  # an ensemble is no run
    shown = Shown(runs)
    assert shown.runs == before
    assert shown.tags("images") == {FIRST: {"wrong-predictions/last-one-crop"}}
    assert max(shown.tags("scalars")[FIRST]) < "wrong-predictions"
    for _ in range(2):  # the second replaces the first
        tensorboard.attach(runs / FIRST, "last-one-crop-mistakes", tensorboard.text("a", "b"), 4)
    [attached] = (runs / FIRST).glob("attached-last-one-crop*")
    [training] = (runs / FIRST).glob(tensorboard.TRAINING_FILES)
    assert attached.name < training.name


def test_an_old_run_is_hidden_and_the_log_of_an_earlier_version_is_written_anew(
    tiny_run: Callable[..., Run], config: Callable[..., Path], program: Program, tmp_path: Path
) -> None:
    assert program("run", config(), "train.steps=4")[0] == 0
    folder = Path("runs/tiny/cifar-resnet-8/seed-0")
    [log] = folder.glob(tensorboard.TRAINING_FILES)
    (folder / "tensorboard").mkdir()
    log.rename(folder / "tensorboard" / log.name)
    assert Shown(Path("runs")).runs == {"tiny/cifar-resnet-8/seed-0", "tiny/cifar-resnet-8/seed-0/tensorboard"}
    assert program("run", config(), "train.steps=8")[0] == 0
    shown = Shown(Path("runs"))
    assert shown.runs == {"tiny/cifar-resnet-8/seed-0"}
    found = shown.data.read_scalars(
        shown.request, experiment_id="", plugin_name="scalars", downsample=99, run_tag_filter=RunTagFilter()
    )
    [tags] = found.values()
    assert [point.step for point in tags["error-residual/train_running"]] == [2, 4, 6, 8]
    with ExitStack() as locks:
        run_folder.open_run_folder(tiny_run(), folder, fresh=True, stack=locks)
    assert not Shown(Path("runs")).runs
