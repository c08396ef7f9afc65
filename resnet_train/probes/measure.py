"""A probe of a network on samples of a data set."""

import torch
from torch import nn

from resnet_train.config.schema import Run
from resnet_train.data.dataset import Dataset
from resnet_train.data.datasets import evenly_spaced
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.normalize import Normalization
from resnet_train.evaluation import evaluator
from resnet_train.evaluation.evaluator import Count, EnsembleMember, StopRequested, ignore, never
from resnet_train.evaluation.protocols import views_of
from resnet_train.models.network import Network
from resnet_train.probes.gradients import gradient_norms
from resnet_train.probes.hooks import ProbeResult
from resnet_train.probes.lesions import lesion_errors
from resnet_train.probes.responses import response_deviations
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import out_of_memory_hint


def images_to_evaluate(kind: str, net: nn.Module, dataset: Dataset, images: int) -> int:
    """An upper bound of the images that `run_probe` evaluates: the whole network, each lesion. 0 for other probes."""
    units = len(net.units()) if kind == "lesion" and isinstance(net, Network) else 0
    return 2 * units * min(images, len(dataset))


def run_probe(
    kind: str,
    net: nn.Module,
    run: Run,
    dataset: Dataset,
    images: int,
    normalization: Normalization,
    device: torch.device,
    stop_requested: StopRequested = never,
    count: Count = ignore,
) -> ProbeResult:
    """Measure `gradients`, `responses` or `lesion` on `images` evenly spaced samples, seen as evaluation's first view.

    Raises `BadInput` where they are too many for the memory of the device, or where the network is a VGG; of lesions,
    whose evaluations take long, `Interrupted` between two batches once `stop_requested`, and `count` gets their images.
    """
    samples = dataset.subset(evenly_spaced(len(dataset), images))
    views = views_of(run.view, run.eval)[:1]

    def error(net: nn.Module) -> float:
        data = EvaluationData(samples, views, run.eval.batch_size, device)
        members = [EnsembleMember(evaluator.as_evaluated(net, run), normalization, run.train.precision)]
        [results] = evaluator.evaluate(members, data, "softmax", World(device), None, stop_requested, count)
        return results.errors()["error_top1"]

    hint = f"lower probes.{kind}.images (of the command: --images), now {images}"
    with out_of_memory_hint(f"{run.network.name}, {kind}", device, hint):
        if kind == "lesion":
            return lesion_errors(net, error)
        [batch] = EvaluationData(samples, views, len(samples), device, skip_bad=run.data.skips_bad_images).batches()
        if kind == "gradients":
            return gradient_norms(net, normalization(batch), batch.labels)
        return response_deviations(net, normalization(batch))
