"""A probe of a network on some samples."""

import torch
from torch import nn

from resnet_train.config.schema import Run
from resnet_train.data.dataset import Dataset
from resnet_train.data.datasets import evenly_spaced
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.normalize import Normalization
from resnet_train.evaluation import evaluator
from resnet_train.evaluation.evaluator import EnsembleMember
from resnet_train.evaluation.protocols import views_of
from resnet_train.probes import measure
from resnet_train.probes.measure import Figures
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import no_cudnn_benchmark, out_of_memory_hint


def run_probe(
    kind: str,
    net: nn.Module,
    run: Run,
    source: Dataset,
    images: int,
    normalization: Normalization,
    device: torch.device,
) -> Figures:
    """What a probe finds on `images` evenly spaced samples of a source, as evaluation sees them in its first look.

    Raises `BadInput` where they are too many for the device.
    """
    chosen = source.subset(evenly_spaced(len(source), images))
    looks = views_of(run.view, run.eval)[:1]

    def error(harmed: nn.Module) -> float:
        data = EvaluationData(chosen, looks, run.eval.batch_size, device)
        members = [EnsembleMember(harmed, normalization, run.train.precision)]
        return evaluator.evaluate(members, data, "softmax", World(device))[0].errors()["error_top1"]

    cure = f"lower probes.{kind}.images (of the verb: --images), now {images}"
    # On the CPU a DataLoader draws when it begins; nothing else draws.
    with (
        out_of_memory_hint(f"{run.network.name}, {kind}", device, cure),
        torch.random.fork_rng(devices=[]),
        no_cudnn_benchmark(),
    ):
        if kind == "lesion":
            return measure.lesion(net, error)
        [batch] = EvaluationData(chosen, looks, len(chosen), device, skip_bad=run.data.skips_bad_images).batches()
        seen = normalization(batch)
        return measure.gradients(net, seen, batch.labels) if kind == "gradients" else measure.responses(net, seen)
