"""The keys of the optimizer and of the learning rate, and durations."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from resnet_train.config.section import Count, Fraction, NonNegative, Positive, Section


class Duration(Section):
    """A length of training, in one of three units. It is turned into steps when a run starts."""

    epochs: Positive | None = None
    """Passes over the training set; may be a fraction, such as 0.5."""
    steps: Count | None = None
    """Steps of the optimizer, which papers call iterations."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the whole training."""

    def complaints(self) -> Iterator[str]:
        if [self.epochs, self.steps, self.fraction].count(None) != 2:
            yield "give exactly one of epochs, steps, fraction"


class WarmupConfig(Duration):
    """The learning rate of the first steps, before the schedule begins. Its length is a duration."""

    kind: Literal["linear", "constant"] = "linear"
    """`linear` rises from `lr` to `optimizer.lr`; `constant` stays at `lr`, then jumps to `optimizer.lr`."""
    lr: NonNegative = 0.0
    """Learning rate at the start."""

    def complaints(self) -> Iterator[str]:
        yield from super().complaints()
        if self.kind == "constant" and self.lr == 0:
            yield "a constant warm-up at lr 0 trains nothing: set its lr"


class StepScheduleConfig(Section):
    """The learning rate is multiplied by `gamma` at each milestone."""

    kind: Literal["step"]
    """A factor at each milestone."""
    milestones: tuple[Duration, ...] = ()
    """When the learning rate changes, counted from the start of the training; none for a constant rate."""
    gamma: Positive = 0.1
    """Factor of the learning rate at each milestone."""
    warmup: WarmupConfig | None = None
    """The learning rate of the first steps; no warm-up by default."""

    def complaints(self) -> Iterator[str]:
        if not self.milestones and "gamma" in self.model_fields_set and self.gamma != 0.1:
            yield "gamma has no effect without milestones: remove it or add milestones"


class DecayScheduleConfig(Section):
    """The learning rate falls from the end of the warm-up to the last step."""

    kind: Literal["cosine", "linear"]
    """`cosine` follows half a cosine, `linear` a line."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the training."""
    warmup: WarmupConfig | None = None
    """The learning rate of the first steps; no warm-up by default."""


ScheduleConfig = Annotated[StepScheduleConfig | DecayScheduleConfig, Field(discriminator="kind")]


class OptimizerConfig(Section):
    """Stochastic gradient descent with momentum: v = momentum * v + g, w = w - lr * v. Or one of its successors."""

    kind: Literal["sgd", "lars", "adamw", "lamb"] = "sgd"
    """`sgd` is stochastic gradient descent; `lars`, for large batches, gives each convolution and the head a learning
    rate of its own (You et al. 2017). `adamw` is Adam with decoupled weight decay (Loshchilov and Hutter 2019); `lamb`
    is to Adam what `lars` is to `sgd` (You et al. 2019)."""
    trust_coefficient: Positive = 0.001
    """Only for `lars`: a step is this fraction of a weight's norm, times `lr` (You et al. 2017)."""
    lr: Positive = 0.1
    """Learning rate after the warm-up and before any decay."""
    momentum: Fraction = 0.9
    """Factor of the previous step's update; with `adamw` and `lamb` beta1, the decay of the mean of gradients."""
    beta2: Fraction = 0.999
    """Only for `adamw` and `lamb`: decay of the mean of squared gradients."""
    nesterov: bool = False
    """Use Nesterov's momentum, as fb.resnet.torch does; He et al. use plain momentum."""
    weight_decay: NonNegative = 1e-4
    """Factor of each weight that is added to its gradient; with `lamb` to its step before the learning rate of its
    layer; with `adamw` to its step."""
    decay_on: Literal["all", "matrices"] = "all"
    """What is decayed: `all` parameters (He et al. 2015), or `matrices`: the weights of convolutions and of the head,
    not batch norm and biases."""

    def complaints(self) -> Iterator[str]:
        if self.nesterov and self.momentum == 0:
            yield "nesterov has no effect with momentum 0: remove one of them"
        if self.nesterov and self.kind != "sgd":
            yield f"nesterov has no effect with kind {self.kind}, which has plain momentum: remove it"
        only_for = {"trust_coefficient": ("lars",), "beta2": ("adamw", "lamb")}
        for key, kinds in only_for.items():
            if self.kind not in kinds and getattr(self, key) != OptimizerConfig.model_fields[key].default:
                yield f"{key} has no effect with kind {self.kind}: remove it, or use kind {' or '.join(kinds)}"
        if self.kind == "lamb" and 0 in (self.momentum, self.beta2):
            yield "kind lamb needs momentum and beta2 above 0"
        if self.decay_on == "matrices" and self.weight_decay == 0:
            yield "decay_on has no effect with weight_decay 0: remove one of them"
