"""Every knob of an experiment but those of its networks (`network.py`) and its data (`data.py`). No torch.

`Experiment` is what a YAML file says, `Run` one member of its grid: one network, one seed, the same recipe.
A validator raises `ValueError` where a key contradicts another or could have no effect.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from resnet_train.config.data import AugmentConfig, DataConfig
from resnet_train.config.network import AnyNet
from resnet_train.config.section import Count, Name, NonNegative, Positive, Section

# --- durations and schedules ------------------------------------------------------------------------------------------


class Duration(Section):
    """A length of training, in one unit; turned into steps once, when a run starts."""

    epochs: Positive | None = None
    """Passes over the training set."""
    steps: Count | None = None
    """Optimizer steps: the papers' iterations."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the whole training."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if sum(value is not None for value in (self.epochs, self.steps, self.fraction)) != 1:
            raise ValueError("give exactly one of epochs, steps, fraction")
        return self


class WarmupConfig(Duration):
    """The first steps, before the schedule proper."""

    kind: Literal["linear", "constant"] = "linear"
    """linear: from `lr` to the optimizer's rate. constant: at `lr`, then at once the optimizer's rate."""
    lr: NonNegative = 0.0

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.kind == "constant" and self.lr == 0:
            raise ValueError("a constant warm-up at lr 0 trains nothing: give its lr")
        return self


class StepScheduleConfig(Section):
    """The rate is multiplied by `gamma` at each milestone."""

    kind: Literal["step"]
    milestones: tuple[Duration, ...] = ()
    """When; none means a constant rate."""
    gamma: Positive = 0.1
    warmup: WarmupConfig | None = None

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if not self.milestones and "gamma" in self.model_fields_set and self.gamma != 0.1:
            raise ValueError("gamma has no effect without milestones: remove it or add milestones")
        return self


class DecayScheduleConfig(Section):
    """The rate falls from the end of the warm-up to the last step, along half a cosine or a line."""

    kind: Literal["cosine", "linear"]
    min_lr: NonNegative = 0.0
    """The rate at the end."""
    warmup: WarmupConfig | None = None


ScheduleConfig = Annotated[StepScheduleConfig | DecayScheduleConfig, Field(discriminator="kind")]


class OptimizerConfig(Section):
    """Stochastic gradient descent with momentum: v = momentum * v + g, w = w - lr * v."""

    kind: Literal["sgd", "lars"] = "sgd"
    """lars: for large batches, each convolution and the head at a rate of its own (You et al. 2017)."""
    trust_coefficient: Positive = 0.001
    """The coefficient of lars: its steps are so small a part of a weight's norm, times `lr`."""
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    """The papers use plain momentum; fb.resnet.torch and many later recipes use Nesterov's."""
    weight_decay: NonNegative = 1e-4
    decay_on: Literal["all", "matrices"] = "all"
    """all: every parameter, as in the papers. matrices: convolutions and the head only, no batch norm and no bias."""

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov has no effect with momentum 0: remove one of them")
        if self.nesterov and self.kind == "lars":
            raise ValueError("nesterov is for kind sgd: LARS has plain momentum")
        if self.kind == "sgd" and self.trust_coefficient != OptimizerConfig.model_fields["trust_coefficient"].default:
            raise ValueError("trust_coefficient has no effect with kind sgd: remove it, or use kind lars")
        if self.decay_on == "matrices" and self.weight_decay == 0:
            raise ValueError("decay_on has no effect with weight_decay 0: remove one of them")
        return self


# --- training, evaluation, checkpoints, logs --------------------------------------------------------------------------


class TrainConfig(Section):
    """The loop: how long, how many at once, in which precision."""

    epochs: Positive | None = None
    """Length of the training in passes over the training set; or give `steps`."""
    steps: Count | None = None
    """Length of the training in optimizer steps; or give `epochs`."""
    init_from: str | None = None
    """A checkpoint, or a state dict of torchvision's, whose weights the first step starts from (fine-tuning)."""
    batch_size: Count = 256
    """Samples of one step, over all ranks and all accumulation together (the global batch)."""
    grad_accum_steps: Count = 1
    """Forward and backward passes that one step is divided into: more of them need less memory."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32 and tf32: of the whole network. bf16 and fp16: autocast over fp32 weights; fp16 with a loss scaler."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    compile: bool = False
    """torch.compile: faster on a GPU, after a minute or more; batch norm then differs from cuDNN's in the last bits.
    With `sync_bn` on several GPUs less is fused, since the graph is cut at each batch norm."""
    cuda_graph: bool = False
    """Launch a step's kernels together, as one CUDA graph: for small networks, which are bound by launches. One GPU."""
    sync_bn: bool = False
    """Batch statistics over all ranks instead of each rank's own share of the batch."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the gradient; a longer one is shortened to it."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay at each step of an exponential moving average of the weights; evaluation then uses the average."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    on_divergence: Literal["stop", "record"] = "stop"
    """When the loss is no longer finite. record: note it as this network's result and go on to the next."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs, steps")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by grad_accum_steps {self.grad_accum_steps}"
            )
        if self.cuda_graph and self.grad_accum_steps > 1:
            raise ValueError("cuda_graph records steps of one pass: set grad_accum_steps to 1, or cuda_graph to false")
        if self.device == "cpu" and self.precision == "tf32":
            raise ValueError("precision tf32 has no effect with device cpu: use fp32 or bf16")
        return self


class ViewConfig(Section):
    """What evaluation sees of an image of any size: its shorter side resized, then the centre cut out."""

    resize: Count = 256
    crop: Count = 224

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class EvalConfig(Section):
    """Evaluation during training and by `resnet-train eval`."""

    every: Duration = Duration(epochs=1)
    view: ViewConfig | None = None
    """For `imagefolder` and `shards` (the training crop from 256/224 of it unless given): others are seen whole."""
    protocol: Literal["one-crop", "ten-crop", "multi-scale"] = "one-crop"
    """ten-crop: corners, centre and their mirror images. multi-scale: whole images at `short_sides`, fully
    convolutional (He et al. 2015, section 3.4). Both are for `imagefolder` and `shards`."""
    short_sides: Annotated[tuple[Count, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)
    """The scales of `multi-scale`, in pixels."""
    flip: bool = False
    """Add the mirror image of each view."""
    average: Literal["softmax", "logits"] = "softmax"
    """What is averaged over views and over the networks of an ensemble."""
    recompute_bn: Annotated[int, Field(ge=0)] = 0
    """Batch norm's statistics anew over so many training images, as the authors' release; 0: the running ones."""
    batch_size: Count = 256
    """Samples of each rank at once; it never changes a result."""
    clean_train_images: Annotated[int, Field(ge=0)] = 10_000
    """Training images, evenly spaced, for the clean training error: evaluation mode, no augmentation. 0: none."""

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.flip and self.protocol == "ten-crop":
            raise ValueError("flip has no effect with protocol ten-crop, which mirrors already: remove it")
        if self.protocol != "multi-scale" and self.short_sides != EvalConfig.model_fields["short_sides"].default:
            raise ValueError(f"short_sides has no effect with protocol {self.protocol}: use multi-scale")
        return self


class ProbeConfig(Section):
    """A measurement beside the training, of a fixed batch of evenly spaced training images as evaluation sees them."""

    every: Duration = Duration(fraction=0.05)
    """When; also before the first step."""
    images: Count = 128


class LesionConfig(Section):
    """Error with a unit dropped, each in turn, and with neighbours swapped: as many evaluations as there are units."""

    every: Duration = Duration(fraction=1.0)
    """When; it costs a whole evaluation of `images` for each unit."""
    images: Count = 1000
    """Evenly spaced validation images."""


class ProbesConfig(Section):
    """Why depth hurts or helps: figures by depth, at chosen steps; none unless given."""

    gradients: ProbeConfig | None = None
    """Norm of the loss's gradient at each unit's input and at each convolution's weights."""
    responses: ProbeConfig | None = None
    """Standard deviation of each 3x3 layer's response (He et al. 2015, figure 7)."""
    lesion: LesionConfig | None = None
    """Error without each unit (Veit et al. 2016)."""


class CheckpointConfig(Section):
    """When the state of a run is saved; the last, the one before it and the best are always kept."""

    every: Duration = Duration(epochs=1)
    keep_every: Duration | None = None
    """Checkpoints that are kept for good as `step-N.pt`; none unless given."""


class LogConfig(Section):
    """The record of a run."""

    every: Duration = Duration(steps=50)
    """Steps over which the running training error is averaged, then written."""


# --- the whole --------------------------------------------------------------------------------------------------------


class Recipe(Section):
    """All that the networks of an experiment have in common."""

    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = StepScheduleConfig(kind="step")
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    probes: ProbesConfig = ProbesConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        crop, kind = self.augment.crop, self.data.kind
        if self.schedule.warmup is not None and self.schedule.warmup.lr == self.optimizer.lr:
            raise ValueError(f"schedule.warmup has no effect: its lr is optimizer.lr, {self.optimizer.lr}")
        if self.data.any_size:
            if crop is None or crop.kind == "pad":
                raise ValueError(
                    f"augment.crop must be of kind scale or random-resized: data.kind {kind} has images of any size "
                    "(data.device_cache_gb is for those of one size)"
                )
        else:
            if crop is not None and crop.kind != "pad":
                held = "data.device_cache_gb" if kind in ("imagefolder", "shards") else f"data.kind {kind}"
                raise ValueError(
                    f"augment.crop of kind {crop.kind} is for files of any size, {held} for images of one: use kind pad"
                )
            if self.eval.view is not None:
                raise ValueError(f"eval.view has no effect with data.kind {kind}, whose images are evaluated whole")
            if self.eval.protocol != "one-crop":
                raise ValueError(
                    f"eval.protocol {self.eval.protocol} is for image files (imagefolder, shards): use eval.flip"
                )
        if self.train.cuda_graph and self.train.precision == "fp16" and self.optimizer.kind == "lars":
            raise ValueError("train.cuda_graph needs precision bf16 with optimizer.kind lars: fp16's scaler would wait")
        if self.train.batch_size % self.augment.repeated_augmentation:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not divisible by "
                f"augment.repeated_augmentation {self.augment.repeated_augmentation}"
            )
        if self.augment.pca_lighting and self.data.grey:
            raise ValueError(f"augment.pca_lighting needs colour images, and those of data.kind {kind} are grey")
        return self

    @property
    def view(self) -> ViewConfig | None:
        """What evaluation sees of an image; `None` is the whole of it."""
        crop = self.augment.crop
        if self.eval.view is not None or crop is None or crop.kind == "pad":
            return self.eval.view
        return ViewConfig(resize=round(crop.size * 256 / 224), crop=crop.size)


class Experiment(Recipe):
    """One YAML file: every network of it is trained with every seed under one recipe."""

    name: Name
    networks: Annotated[tuple[AnyNet, ...], Field(min_length=1)]
    """Names of the zoo, or inline: `{base: resnet-34, name: narrow-34, widths: [32, 64, 128, 256]}`."""
    twins: bool = False
    """Train beside each residual network its plain twin, NAME-plain: the same weights, batches and order of them."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    per_network: dict[str, dict[str, Any]] = Field(default={})
    """Exceptions to the recipe, by network name: `cifar-resnet-110: {schedule: {warmup: {...}}}`."""
    output: str = "runs"
    """Run folders are OUTPUT/NAME/NETWORK/seed-N."""

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [network.name for network in self.networks]
        for what, values in (("network", names), ("seed", [str(seed) for seed in self.seeds])):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{what} {value} is listed twice: a run folder holds one run")
        if self.twins and all(network.plain for network in self.networks):
            raise ValueError("twins has no effect: no network has a shortcut to take away")
        for name in self.per_network:
            if name not in names:
                raise ValueError(f"per_network.{name} has no effect: networks are {', '.join(names)}")
        return self


class Run(Recipe):
    """One member of an experiment's grid: all that decides its result."""

    experiment: Name
    network: AnyNet
    seed: int

    @model_validator(mode="after")
    def _has_units(self) -> Self:
        if self.network.unit == "vgg" and (self.probes.gradients or self.probes.lesion):
            raise ValueError(f"{self.network.name} has no units to probe: keep probes.responses alone for it")
        return self
