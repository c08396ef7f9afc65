"""The sections of an experiment file, except network, data, augmentation and optimizer, which have their own modules.

`Experiment` is a YAML file. `Run` is one cell of its grid: one network, one seed, the same recipe. `complaints`
says which keys contradict each other or have no effect.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from resnet_train.config import sweep
from resnet_train.config.augment import AugmentConfig
from resnet_train.config.batch import batch_complaints, batch_norm_complaints, network_complaints
from resnet_train.config.data import DataConfig
from resnet_train.config.expect import ExpectConfig
from resnet_train.config.network import AnyNet
from resnet_train.config.optim import Duration, OptimizerConfig, ScheduleConfig, StepScheduleConfig
from resnet_train.config.section import (
    Count,
    CountOrZero,
    FilePath,
    Fraction,
    Name,
    Pixels,
    Positive,
    Protocol,
    Section,
)


class TrainConfig(Section):
    """The training loop: its length, batch, precision and device. Give either `epochs` or `steps`."""

    epochs: Positive | None = None
    """Length of the training in passes over the training set."""
    steps: Count | None = None
    """Length of the training in steps of the optimizer."""
    init_from: FilePath | None = None
    """File of the weights that the training starts from, for fine-tuning: a checkpoint, or foreign weights;
    by default the weights are random."""
    batch_size: Count = 256
    """Number of samples in a step, over all ranks and all accumulation steps (the global batch)."""
    grad_accum_steps: Count = 1
    """Number of micro-batches, each a forward and a backward pass, that a step is divided into; more need less
    memory."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """`fp32` and `tf32` apply to the whole network; `bf16` and `fp16` are autocast over fp32 weights, `fp16` with a
    loss scaler."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; `auto` is CUDA if there is a GPU, else the CPU. `mps` is an Apple GPU, for one process."""
    compile: bool = False
    """Use torch.compile, which is faster on a GPU after a minute or more of compilation. Batch norm then differs from
    cuDNN's in the last bits; with `sync_bn` on several GPUs less is fused."""
    cuda_graph: bool = False
    """Launch a step's kernels as one CUDA graph, which speeds up small networks, and small batches on each of several
    GPUs. Not measured yet."""
    sync_bn: bool = False
    """Compute batch norm's statistics over the batches of all ranks, not of each rank alone."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the gradient; a larger gradient is scaled down to it. By default there is no limit."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay at each step of an exponential moving average of the weights, which evaluation then uses; by default there
    is no average."""
    loss: Literal["cross-entropy", "binary-cross-entropy"] = "cross-entropy"
    """`binary-cross-entropy` takes each class as a question of its own, and the mean over classes (Wightman et al.
    2021). Evaluation reports cross-entropy either way."""
    label_smoothing: Fraction = 0.0
    """Probability that is spread evenly over all classes in the target (Szegedy et al. 2016)."""
    target_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Only for `binary-cross-entropy` of mixed images: a class whose share is above this has the target 1, any other
    0; by default the targets are the shares."""
    on_divergence: Literal["stop", "record"] = "stop"
    """What happens if the loss is not finite: `stop` ends the program; `record` records it as the result of this
    network and continues with the next."""

    timeout: Positive = 1800.0
    """Seconds that a rank waits for another before it takes it for lost. The first rank alone downloads, measures the
    images' statistics and saves: none of these may take longer. It also probes alone, for as long as that takes."""

    def complaints(self) -> Iterator[str]:
        if (self.epochs is None) == (self.steps is None):
            yield "give exactly one of epochs, steps"
        if self.batch_size % self.grad_accum_steps:
            yield (f"batch_size {self.batch_size} is not divisible by grad_accum_steps {self.grad_accum_steps}")
        if self.cuda_graph and self.grad_accum_steps > 1:
            yield (f"cuda_graph needs grad_accum_steps 1, and it is {self.grad_accum_steps}: set one of them back")
        if self.target_threshold is not None and self.loss != "binary-cross-entropy":
            yield f"target_threshold has no effect with loss {self.loss}: remove it, or use binary-cross-entropy"
        if self.target_threshold is not None and self.label_smoothing:
            yield "label_smoothing has no effect with target_threshold, by which targets are 0 or 1: remove one of them"
        if self.device in ("cpu", "mps") and self.precision == "tf32":
            yield f"precision tf32 has no effect with device {self.device}: use fp32 or bf16"


class ViewConfig(Section):
    """How evaluation sees an image of any size: its shorter side is resized, then the centre is cut out."""

    resize: Pixels = 256
    """Length of the shorter side in pixels."""
    crop: Pixels = 224
    """Height and width of the centre crop in pixels."""

    def complaints(self) -> Iterator[str]:
        if self.crop > self.resize:
            yield f"crop {self.crop} is larger than resize {self.resize}"


class EvalConfig(Section):
    """Evaluation, during training and by `resnet-train eval`."""

    every: Duration = Duration(epochs=1)
    """How often to evaluate; the last step is always evaluated."""
    view: ViewConfig | None = None
    """How image files are seen. By default the crop has the size of the training crop, and the shorter side is 256/224
    of that. Images of one size are evaluated whole."""
    protocol: Protocol = "one-crop"
    """What is averaged for an image file: `one-crop` the centre; `ten-crop` corners, centre and their mirror images;
    `multi-scale` whole images at `short_sides`, whose last map is pooled at once; `multi-scale-dense` the same, fully
    convolutional: a pooling of the size of the training crop's last map slides, and the scores of all its places are
    averaged (He et al. 2015, section 3.4)."""
    short_sides: Annotated[tuple[Pixels, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)
    """Only for `multi-scale` and `multi-scale-dense`: lengths of the shorter side in pixels."""
    flip: bool = False
    """Also evaluate the mirror image of each view."""
    average: Literal["softmax", "logits"] = "softmax"
    """What is averaged over the views of an image and over the networks of an ensemble."""
    recompute_bn: CountOrZero = 0
    """Number of training images over which batch norm's statistics are computed again before an evaluation, as in the
    release of He et al., in whole batches of `batch_size`; with 0 the running statistics are used."""
    batch_size: Count = 256
    """Number of samples that a rank evaluates at once. Results do not change, except with `recompute_bn`."""
    clean_train_images: CountOrZero = 10_000
    """Number of training images, evenly spaced, for the clean training error: in evaluation mode, without augmentation;
    with 0 it is not measured."""

    @property
    def has_scales(self) -> bool:
        """Whether images are seen whole, at each of `short_sides`."""
        return self.protocol in ("multi-scale", "multi-scale-dense")

    def complaints(self) -> Iterator[str]:
        if self.flip and self.protocol == "ten-crop":
            yield "flip has no effect with protocol ten-crop, which has mirror images: remove it"
        if not self.has_scales and self.short_sides != EvalConfig.model_fields["short_sides"].default:
            yield f"short_sides has no effect with protocol {self.protocol}: use multi-scale"


class ProbeConfig(Section):
    """A measurement during training on a fixed batch: training images, evenly spaced, as evaluation sees them."""

    every: Duration = Duration(fraction=0.05)
    """How often to measure; also before the first step."""
    images: Count = 128
    """Number of training images in the batch."""


class LesionConfig(Section):
    """The error with each unit dropped in turn, and with neighbouring units swapped: one evaluation for each of
    them."""

    every: Duration = Duration(fraction=1.0)
    """How often to measure. A measurement evaluates `images` once for each unit."""
    images: Count = 1000
    """Number of validation images, evenly spaced, for each evaluation."""


class ProbesConfig(Section):
    """Measurements of why depth hurts or helps. A probe runs if its section is given."""

    gradients: ProbeConfig | None = None
    """Norm of the loss's gradient at each unit's input and at each convolution's weights."""
    responses: ProbeConfig | None = None
    """Standard deviation of each 3x3 layer's response (He et al. 2015, figure 7)."""
    lesion: LesionConfig | None = None
    """Error without each unit (Veit et al. 2016)."""


class CheckpointConfig(Section):
    """When the state of a run is saved. The last two checkpoints and the best one are always kept."""

    every: Duration = Duration(epochs=1)
    """How often to save; the last step is always saved."""
    keep_every: Duration | None = None
    """How often to keep a checkpoint for good, as `step-N.pt`; by default none is."""


class LogConfig(Section):
    """The record of a run, `metrics.jsonl`."""

    every: Duration = Duration(steps=50)
    """How often to record the running training error, which is averaged over the steps since the last record."""


class Recipe(Section):
    """The sections that all networks of an experiment share."""

    data: DataConfig
    """The data set."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = StepScheduleConfig(kind="step")
    """The learning rate over the training; constant by default."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of training images; none by default."""
    train: TrainConfig
    """The training loop."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    log: LogConfig = LogConfig()
    """The record of a run."""
    probes: ProbesConfig = ProbesConfig()
    """Measurements of gradients, responses and lesions; none by default."""

    def complaints(self) -> Iterator[str]:
        if self.schedule.warmup is not None and self.schedule.warmup.lr == self.optimizer.lr:
            yield f"schedule.warmup has no effect: its lr is optimizer.lr, {self.optimizer.lr}"
        if self.data.any_size:
            yield from self._complaints_of_files_of_any_size()
        else:
            yield from self._complaints_of_images_of_one_size()
        if self.train.batch_size % self.augment.repeated_augmentation:
            yield (
                f"train.batch_size {self.train.batch_size} is not divisible by "
                f"augment.repeated_augmentation {self.augment.repeated_augmentation}"
            )
        if self.train.target_threshold is not None and not self.augment.mixes:
            yield "train.target_threshold has no effect without augment.mixup or augment.cutmix: remove it"
        if self.augment.pca_lighting and self.data.grey:
            yield (
                f"augment.pca_lighting needs colour images, and those of data.kind {self.data.kind} are grey: remove it"
            )

    def _complaints_of_files_of_any_size(self) -> Iterator[str]:
        crop = self.augment.crop
        if crop is None or crop.kind == "pad":
            yield (
                f"augment.crop must be of kind scale or random-resized: data.kind {self.data.kind} has images of any "
                "size (if they have one size, set data.device_cache_gb)"
            )

    def _complaints_of_images_of_one_size(self) -> Iterator[str]:
        crop, kind = self.augment.crop, self.data.kind
        if crop is not None and crop.kind != "pad":
            key = "data.device_cache_gb" if kind in ("imagefolder", "shards") else f"data.kind {kind}"
            yield (
                f"augment.crop of kind {crop.kind} is for image files of any size, and {key} for images of one size: "
                "use kind pad"
            )
        if self.eval.view is not None:
            yield (f"eval.view has no effect with data.kind {kind}, whose images are evaluated whole: remove it")
        if self.eval.protocol != "one-crop":
            yield (f"eval.protocol {self.eval.protocol} is for image files (imagefolder, shards): use eval.flip")

    @property
    def fixes_length(self) -> str | None:
        """The first key by which a longer training would differ from its first step on; None if there is none."""
        schedule, warmup = self.schedule, self.schedule.warmup
        if not isinstance(schedule, StepScheduleConfig):
            return f"schedule.kind {schedule.kind}"
        if any(milestone.fraction is not None for milestone in schedule.milestones):
            return "schedule.milestones in fractions"
        if warmup is not None and warmup.fraction is not None:
            return "schedule.warmup in a fraction"
        return None if self.augment.progressive_resizing is None else "augment.progressive_resizing"

    @property
    def view(self) -> ViewConfig | None:
        """How evaluation sees an image; None for the whole image."""
        crop = self.augment.crop
        if self.eval.view is not None or crop is None or crop.kind == "pad":
            return self.eval.view
        return ViewConfig(resize=round(crop.size * 256 / 224), crop=crop.size)


class Experiment(Recipe):
    """An experiment file: every network is trained with every seed under one recipe."""

    name: Name
    """Name of the experiment, and of the folder of its runs."""
    networks: Annotated[tuple[AnyNet, ...], Field(min_length=1)]
    """The networks: names of the zoo, or inline, such as `{base: resnet-34, name: narrow-34, widths: [32, 64, 128,
    256]}`."""
    twins: bool = False
    """Also train the plain twin of each residual network, NAME-plain, with the same weights and the same batches in the
    same order."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    """The seeds that each network is trained with."""
    per_network: dict[str, dict[str, Any]] = Field(default={})
    """Changes to the recipe for one network and its twin, by its name, such as `cifar-resnet-110: {schedule: {warmup:
    {steps: 400}}}`. Those for networks that a later file or the command line no longer lists are dropped."""
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default={})
    """Values of keys of the recipe, such as `{optimizer.lr: [0.05, 0.1, 0.2]}`: each network is trained with each of
    them; of several keys, with each combination. `compare` sets networks against each other at their best values."""
    expect: tuple[ExpectConfig, ...] = ()
    """What sources report of this recipe; an entry for each source and protocol."""
    output: FilePath = "runs"
    """The folder of all runs; a run's folder is OUTPUT/NAME/NETWORK/seed-N, or OUTPUT/NAME/NETWORK/KEY=VALUE/seed-N."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        names = [network.name for network in self.networks]
        listed = Counter([f"network {name}" for name in names] + [f"seed {seed}" for seed in self.seeds])
        for entry, count in listed.items():
            if count > 1:
                yield f"{entry} is listed twice: a run folder holds one run"
        yield from batch_norm_complaints(self, self.networks)
        if self.twins and all(network.plain for network in self.networks):
            yield "twins has no effect: no network has shortcuts"
        for name in self.per_network:
            if name not in names:
                yield f"per_network.{name} has no effect: the networks are {', '.join(names)}"
        yield from sweep.complaints(self.sweep, Recipe.model_fields)


class Run(Recipe):
    """One cell of an experiment's grid. It determines the result."""

    experiment: Name
    """Name of the experiment."""
    network: AnyNet
    """The network."""
    seed: int
    """The seed of weights, data order, augmentation and dropout."""
    sweep: dict[str, Any] = Field(default={})
    """The values that a sweep gave to keys of this recipe, which has them too."""
    expect: tuple[ExpectConfig, ...] = ()
    """What sources report of this network under this recipe."""

    @property
    def cell(self) -> str:
        """The network and, of a sweep, its values, such as `cifar-plain-20 optimizer.lr=0.05`."""
        return f"{self.network.name} {sweep.label(self.sweep)}".rstrip()

    @property
    def title(self) -> str:
        """For messages: the network, the values of a sweep, and the seed."""
        return f"{self.cell} seed {self.seed}"

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if self.network.unit == "vgg" and (self.probes.gradients or self.probes.lesion):
            yield f"{self.network.name} has no units to probe: remove probes.gradients and probes.lesion"
        if self.network.unit == "vgg" and self.eval.protocol == "multi-scale-dense":
            yield f"{self.network.name} has no pooling that can slide over its last map: use eval.protocol multi-scale"
        yield from batch_complaints(self, ranks=1, size=self.data.image_size)
        yield from network_complaints(self, ranks=1, size=self.data.image_size)
