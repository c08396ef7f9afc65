"""Evaluation: error over a whole set, every sample counted exactly once at any number of ranks.

p(x) is the mean over networks and views of softmax: ten crops, many scales and an ensemble are only longer lists.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_train.config.schema import Run
from resnet_train.data import rng
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.normalize import Normalization
from resnet_train.evaluation.protocols import views_of
from resnet_train.models.batch_norm import revert_sync_batchnorm
from resnet_train.runtime.distributed import World, all_gather
from resnet_train.runtime.precision import autocast, no_cudnn_benchmark


class EnsembleMember(NamedTuple):
    """A network as evaluation calls it; several are an ensemble."""

    net: nn.Module
    normalization: Normalization
    precision: str

    def __call__(self, batch: Batch) -> Tensor:
        """float32 [n, classes]."""
        with autocast(self.precision, batch.images.device):
            logits: Tensor = self.net(self.normalization(batch))
        return logits.float()


class SampleResults(NamedTuple):
    """What became of each sample, in the order of the set; each [n]."""

    label: Tensor
    predicted: Tensor
    confidence: Tensor
    """The probability of what was predicted."""
    hit5: Tensor
    """Whether the label is among the five most probable classes, or all where there are fewer."""
    loss: Tensor

    def errors(self) -> dict[str, float]:
        """`error_top1` and `error_top5` in percent, mean `loss`, and the number of `images`."""
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


def errors(net: nn.Module, run: Run, sets: EvalSets, world: World) -> dict[str, float]:
    """Error in percent and loss of a network: `val_error_top1`, `val_loss`, …, `clean_train_error_top1`, …"""
    if run.eval.recompute_bn:
        net = recomputed_bn(copy.deepcopy(net), run, sets.train, sets.normalization, world)
    members = [EnsembleMember(net, sets.normalization, run.train.precision)]
    figures: dict[str, float] = {}
    for name, source in (("val", sets.val), ("clean_train", sets.clean_train)):
        if len(source):
            data = data_of(run, source, world, training=name == "clean_train")
            found = evaluate(members, data, run.eval.average, world)[0].errors()
            figures |= {f"{name}_{key}": value for key, value in found.items() if key != "images"}
    return figures


def data_of(run: Run, source: Dataset, world: World, training: bool = False) -> EvaluationData:
    """Samples as the run's protocol sees them, and this rank's part of them.

    Only training images may be skipped where they cannot be decoded; of a validation set all count.
    """
    skip, workers = training and run.data.skips_bad_images, run.data.decode_workers
    looks = views_of(run.view, run.eval)
    return EvaluationData(source, looks, run.eval.batch_size, world.device, workers, world.rank, world.size, skip)


@torch.inference_mode()
def logits(members: Sequence[EnsembleMember], data: EvaluationData) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of this rank's batches its labels [n] and float32 logits [members, n, looks, classes]."""
    for member in members:
        member.net.eval()
    for viewed in data.view_batches():
        n, found = len(viewed.labels), None
        smallest = min(batch.images[0].numel() for _, _, batch in viewed.groups)
        for look, rows, batch in viewed.groups:
            # A large view goes through in small parts, so that memory is that of a batch of the smallest.
            part = max(1, data.batch_size * smallest // batch.images[0].numel())
            parts = [Batch(*tensors) for tensors in zip(*(tensor.split(part) for tensor in batch[:3]), strict=True)]
            with no_cudnn_benchmark():
                scores = torch.stack([torch.cat([member(p) for p in parts]) for member in members])
            if found is None:
                found = scores.new_empty(len(members), n, len(data.views), scores.shape[2])
            found[:, rows, look] = scores
        assert found is not None
        yield viewed.labels, found


def evaluate(
    members: Sequence[EnsembleMember],
    data: EvaluationData,
    average: str,
    world: World,
    kept: list[Tensor] | None = None,
) -> list[SampleResults]:
    """Of each member, then, where there are several, of their ensemble; on every rank that of the whole set.

    `kept` receives the logits of this rank's samples, batch by batch, as `stored` makes them.
    """
    rows = []
    for labels, found in logits(members, data):
        rows.append(score_logits(labels, found, average))
        if kept is not None:
            kept.append(stored(found))
    columns = len(SampleResults._fields)
    several = len(members) + (len(members) > 1)
    none = torch.zeros(0, several, columns, device=world.device, dtype=torch.float64)  # a rank may have no batch
    local = torch.cat([none, *rows])
    return told(gather_in_dataset_order(world, local, data))


def stored(found: Tensor) -> Tensor:
    """Logits less the largest of their row, as float16: neither softmax nor a mean over views is changed by that.

    Near 0, where the classes lie that may win, float16 is fine: its rounding moves a probability by 1e-3 of itself.
    """
    return (found - found.amax(dim=-1, keepdim=True)).half().cpu()


def score_logits(labels: Tensor, found: Tensor, average: str) -> Tensor:
    """[n] labels and [members, n, looks, classes] logits -> [n, members (+ 1: their ensemble), fields of Outcomes]."""
    each = [averaged(one[None], average) for one in found]
    if len(each) > 1:
        each.append(averaged(found, average))
    judged = []
    for scores in each:
        confidence, best = scores.topk(min(5, scores.shape[1]), dim=1)
        hit5 = (best == labels[:, None]).any(dim=1)
        loss = -scores.gather(1, labels[:, None])[:, 0]
        judged.append(torch.stack([labels, best[:, 0], confidence[:, 0].exp(), hit5, loss], dim=1))
    return torch.stack(judged, dim=1)


def averaged(found: Tensor, average: str) -> Tensor:
    """[members, n, looks, classes] logits -> [n, classes] log-probabilities of their mean, in float64."""
    found = found.double()
    if average == "logits":
        return found.mean(dim=(0, 2)).log_softmax(dim=1)
    return found.log_softmax(dim=3).logsumexp(dim=(0, 2)) - math.log(found.shape[0] * found.shape[2])


def told(rows: Tensor) -> list[SampleResults]:
    """[n, networks, fields] -> the outcomes of each network."""
    return [SampleResults(*column.T) for column in rows.cpu().unbind(1)]


def gather_in_dataset_order(world: World, local: Tensor, data: EvaluationData) -> Tensor:
    """Each rank's rows, those of its batches, as those of all samples in their order, on every rank.

    So whatever is added up afterwards is added up in one order, and is the same at any number of ranks.
    """
    rounds = math.ceil(len(data) / (data.batch_size * world.size))
    padded = torch.cat([local, local.new_zeros(rounds * data.batch_size - len(local), *local.shape[1:])])
    by_rank = all_gather(world, padded).reshape(world.size, rounds, data.batch_size, *local.shape[1:])
    return by_rank.transpose(0, 1).flatten(0, 2)[: len(data)]


@torch.no_grad()
def recomputed_bn(
    net: nn.Module, run: Run, train_set: Dataset, normalization: Normalization, world: World
) -> nn.Module:
    """The network with batch norm's statistics anew: their mean over batches of `eval.recompute_bn` training images.

    The images are seen as in evaluation, in random order, by every rank alike, so that the ranks' number is no matter.
    """
    batch_size = min(run.eval.batch_size, run.eval.recompute_bn, len(train_set))
    count = min(run.eval.recompute_bn, len(train_set)) // batch_size * batch_size
    source = train_set.subset(rng.permutation(0, 0, len(train_set))[:count])
    looks, skip = views_of(run.view, run.eval)[:1], run.data.skips_bad_images
    data = EvaluationData(source, looks, batch_size, world.device, run.data.decode_workers, skip_bad=skip)
    net = revert_sync_batchnorm(net).eval()
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all that it sees
        norm.train()
    for batch in data.batches():
        with no_cudnn_benchmark(), autocast(run.train.precision, world.device):
            net(normalization(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()
