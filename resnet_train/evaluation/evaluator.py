"""Errors over a whole data set: every sample counts exactly once, at any number of ranks.

p(x) is the mean of softmax over views and networks. Ten crops, many scales and ensembles are lists of more than one.
"""

import copy
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from resnet_train.config.network import NetConfig
from resnet_train.config.schema import Run
from resnet_train.data import rng
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.normalize import Normalization
from resnet_train.errors import Interrupted
from resnet_train.evaluation.protocols import views_of
from resnet_train.models.batch_norm import revert_sync_batchnorm
from resnet_train.models.network import FullyConvolutional, Network
from resnet_train.runtime.distributed import World, all_gather
from resnet_train.runtime.precision import WITHOUT_FLOAT64, autocast, no_cudnn_benchmark

_T = TypeVar("_T")


class EnsembleMember(NamedTuple):
    """A network as evaluation calls it; several are an ensemble."""

    net: nn.Module
    normalization: Normalization
    precision: str

    def __call__(self, batch: Batch) -> Tensor:
        """Logits, float32 [n, classes]."""
        with autocast(self.precision, batch.images.device):
            logits: Tensor = self.net(self.normalization(batch))
        return logits.float()


class SampleResults(NamedTuple):
    """Per-sample results, in dataset order. Each is float64 [n]."""

    label: Tensor
    predicted: Tensor
    confidence: Tensor
    """The probability of the predicted class."""
    hit5: Tensor
    """1 where the label is among the five most probable classes (or among all, where there are fewer), else 0."""
    loss: Tensor

    def errors(self) -> dict[str, float]:
        """`error_top1` and `error_top5` in percent, the mean `loss`, and the number of `images`."""
        n = len(self.label)
        return {
            "error_top1": 100 * (self.predicted != self.label).sum().item() / n,
            "error_top5": 100 * (n - self.hit5.sum().item()) / n,
            "loss": self.loss.sum().item() / n,
            "images": n,
        }


@dataclass(frozen=True)
class EvalSets:
    """The data sets that a run is evaluated and probed on, and the normalisation of their images."""

    train: Dataset
    """All training images."""
    val: Dataset
    clean_train: Dataset
    """The training images of the clean training error: evenly spaced, seen without augmentation. It may be empty."""
    normalization: Normalization


StopRequested = Callable[[], bool]
"""Whether a signal asks to stop. It is called before each batch, on every rank equally often; all get one answer."""


Count = Callable[[int], object]
"""Called with a number of images that were evaluated, of all ranks."""


def never() -> bool:
    """The `StopRequested` of an evaluation that is not to be stopped."""
    return False


def ignore(_: int) -> None:
    """The `Count` of an evaluation whose progress is not shown."""


def errors(
    net: nn.Module,
    run: Run,
    sets: EvalSets,
    world: World,
    stop_requested: StopRequested = never,
    count: Count = ignore,
) -> dict[str, float]:
    """Errors in percent and loss of a network: `val_error_top1`, `val_loss`, …, `clean_train_error_top1`, …

    The network is unchanged, also where `eval.recompute_bn` is set. For every rank. Raises `BadInput` where a
    validation image cannot be decoded, `Interrupted` between two batches once `stop_requested`.
    """
    if run.eval.recompute_bn:
        net = recompute_bn_statistics(copy.deepcopy(net), run, sets.train, sets.normalization, world, stop_requested)
    members = [EnsembleMember(as_evaluated(net, run), sets.normalization, run.train.precision)]
    all_errors: dict[str, float] = {}
    for name, dataset in (("val", sets.val), ("clean_train", sets.clean_train)):
        if len(dataset):
            data = evaluation_data(run, dataset, world, training=name == "clean_train")
            [results] = evaluate(members, data, run.eval.average, world, None, stop_requested, count)
            all_errors |= {f"{name}_{key}": value for key, value in results.errors().items() if key != "images"}
    return all_errors


def as_evaluated(net: nn.Module, run: Run) -> nn.Module:
    """The network in the form of the run's protocol, with the same weights."""
    if run.eval.protocol != "multi-scale-dense":
        return net
    crop = run.augment.crop
    assert isinstance(run.network, NetConfig)
    assert isinstance(net, Network)
    assert crop is not None
    assert crop.kind != "pad"
    return FullyConvolutional(net, run.network.last_map(crop.size))


def evaluation_data(run: Run, dataset: Dataset, world: World, training: bool = False) -> EvaluationData:
    """The samples in the views of the run's protocol, and this rank's batches of them.

    training: whether these are training images, which are left out where they cannot be decoded and
    `data.on_bad_image` is `skip`. Of validation images none may be left out.
    """
    return EvaluationData(
        dataset,
        views_of(run.view, run.eval),
        run.eval.batch_size,
        world.device,
        workers=run.data.decode_workers,
        rank=world.rank,
        ranks=world.size,
        skip_bad=training and run.data.skips_bad_images,
    )


def evaluate(
    members: Sequence[EnsembleMember],
    data: EvaluationData,
    average: str,
    world: World,
    stored_logits: list[Tensor] | None = None,
    stop_requested: StopRequested = never,
    count: Count = ignore,
) -> list[SampleResults]:
    """Results of each network, then of their ensemble where there are several. Every rank gets those of all samples.

    average: "softmax" or "logits", what is averaged over views and networks. stored_logits: a list to which the logits
    of this rank's batches are appended, float32 [members, n, views, classes] on the CPU. Raises `Interrupted` between
    two batches once `stop_requested`.
    """
    scores = []
    device = torch.device("cpu") if world.device.type in WITHOUT_FLOAT64 else world.device
    for labels, logits in _batch_logits(members, data, stop_requested, count):
        scores.append(score_logits(labels.to(device), logits.to(device), average))
        if stored_logits is not None:
            stored_logits.append(logits.cpu())
    networks = len(members) if len(members) == 1 else len(members) + 1
    fields = len(SampleResults._fields)
    empty = torch.zeros(0, networks, fields, device=device, dtype=torch.float64)  # a rank may have no batch
    return results_of(gather_in_dataset_order(world, torch.cat([empty, *scores]), data))


@torch.inference_mode()
def _batch_logits(
    members: Sequence[EnsembleMember], data: EvaluationData, stop_requested: StopRequested, count: Count
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of this rank's batches the labels [n] and the logits, float32 [members, n, views, classes]."""
    for member in members:
        member.net.eval()
    done = 0
    for view_batch in _until_stop(data.view_batches(), data.rounds, stop_requested):
        logits = None
        smallest = min(group.batch.images[0].numel() for group in view_batch.groups)
        for view, rows, batch in view_batch.groups:
            # Larger images are passed in smaller chunks, so that a chunk takes the memory of a batch of the smallest.
            chunks = _split(batch, max(1, data.batch_size * smallest // batch.images[0].numel()))
            with no_cudnn_benchmark():
                group_logits = torch.stack([torch.cat([member(chunk) for chunk in chunks]) for member in members])
            if logits is None:
                shape = len(members), len(view_batch.labels), len(data.views), group_logits.shape[2]
                logits = group_logits.new_empty(shape)
            logits[:, rows, view] = group_logits
        assert logits is not None
        yield view_batch.labels, logits
        done, before = min(len(data), done + data.batch_size * data.ranks), done
        count(done - before)


def _until_stop(batches: Generator[_T], rounds: int, stop_requested: StopRequested) -> Iterator[_T]:
    """A batch in each round, but for the last one of a rank that has fewer. Raises `Interrupted` once asked to stop."""
    with closing(batches):
        for _ in range(rounds):
            if stop_requested():
                raise Interrupted("stopped within an evaluation")
            yield from islice(batches, 1)


def _split(batch: Batch, size: int) -> list[Batch]:
    columns = (batch.images.split(size), batch.labels.split(size), batch.shift.split(size))
    return [Batch(images, labels, shift) for images, labels, shift in zip(*columns, strict=True)]


def score_logits(labels: Tensor, logits: Tensor, average: str) -> Tensor:
    """Labels [n] and logits [members, n, views, classes] -> float64 [n, networks, fields of `SampleResults`].

    The networks are the members, then their ensemble where there are several. Of classes with equal scores the first
    ranks first: logits of 16 bits are often equal, and `topk` would order them differently on different devices.
    """
    averages = [_mean_log_probabilities(member[None], average) for member in logits]
    if len(averages) > 1:
        averages.append(_mean_log_probabilities(logits, average))
    scores = []
    for log_probabilities in averages:
        best_values, best = log_probabilities.max(dim=1)  # of equal ones the first
        of_label = log_probabilities.gather(1, labels[:, None])
        index = torch.arange(log_probabilities.shape[1], device=labels.device)
        after = (log_probabilities < of_label) | (log_probabilities == of_label) & (index > labels[:, None])
        hit5 = after.sum(dim=1) >= len(index) - 5
        scores.append(torch.stack([labels, best, best_values.exp(), hit5, -of_label[:, 0]], dim=1))
    return torch.stack(scores, dim=1)


def _mean_log_probabilities(logits: Tensor, average: str) -> Tensor:
    """Logits [members, n, views, classes] -> log-probabilities of their mean, float64 [n, classes]."""
    logits = logits.double()
    if average == "logits":
        return logits.mean(dim=(0, 2)).log_softmax(dim=1)
    members, _, views, _ = logits.shape
    return logits.log_softmax(dim=3).logsumexp(dim=(0, 2)) - math.log(members * views)


def results_of(scores: Tensor) -> list[SampleResults]:
    """[n, networks, fields] -> the results of each network, on the CPU."""
    return [SampleResults(*network.T) for network in scores.cpu().unbind(1)]


def gather_in_dataset_order(world: World, local: Tensor, data: EvaluationData) -> Tensor:
    """The rows of this rank's samples, [local n, …] -> the rows of all samples in dataset order, [n, …], on every rank.

    Sums over them are then added in one order, so they are the same to the last bit at any number of ranks.
    """
    padded = torch.cat([local, local.new_zeros(data.rounds * data.batch_size - len(local), *local.shape[1:])])
    by_rank = all_gather(world, padded).reshape(world.size, data.rounds, data.batch_size, *local.shape[1:])
    return by_rank.transpose(0, 1).flatten(0, 2)[: len(data)]


@torch.no_grad()
def recompute_bn_statistics(
    net: nn.Module,
    run: Run,
    train_set: Dataset,
    normalization: Normalization,
    world: World,
    stop_requested: StopRequested = never,
) -> nn.Module:
    """Replace the running statistics of batch norm by their mean over batches of `eval.recompute_bn` training images.

    The images are seen as in evaluation, in random order. Every rank takes all of them, so that the result does not
    depend on the number of ranks. Returns the network, in evaluation mode. Raises `Interrupted` as `errors` does.
    """
    batch_size = min(run.eval.batch_size, run.eval.recompute_bn, len(train_set))
    count = min(run.eval.recompute_bn, len(train_set)) // batch_size * batch_size
    samples = train_set.subset(rng.permutation(0, 0, len(train_set))[:count])
    views, skip = views_of(run.view, run.eval)[:1], run.data.skips_bad_images
    data = EvaluationData(samples, views, batch_size, world.device, run.data.decode_workers, skip_bad=skip)
    net = revert_sync_batchnorm(net).eval()
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then keeps the mean over all batches
        norm.train()
    for batch in _until_stop(data.batches(), data.rounds, stop_requested):
        with no_cudnn_benchmark(), autocast(run.train.precision, world.device):
            net(normalization(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()
