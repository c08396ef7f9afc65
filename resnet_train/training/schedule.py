"""What happens at which step: the durations of a recipe in steps, and the learning rate as a function of the step."""

import math
from dataclasses import dataclass

from resnet_train.config.optim import Duration, ScheduleConfig, StepScheduleConfig
from resnet_train.config.schema import Recipe


@dataclass(frozen=True)
class Interval:
    """A number of steps after which something is due, over and over.

    The number may be fractional, as that of an epoch: the k-th time is at the step nearest to k intervals.
    """

    steps: float | None
    """None: never, except at `last_step`."""
    last_step: int | None = None
    """A step at which it is also due."""

    def is_due(self, step: int) -> bool:
        """Whether it is due after `step` steps."""
        if step == self.last_step:
            return True
        return self.steps is not None and step == round(round(step / self.steps) * self.steps)

    def times(self, total_steps: int) -> int:
        """How often it is due within so many steps."""
        steps = {self.last_step}
        if self.steps is not None:
            steps |= {round(k * self.steps) for k in range(1, int(total_steps / self.steps) + 2)}
        return sum(step is not None and 0 < step <= total_steps for step in steps)


@dataclass(frozen=True)
class TrainSchedule:
    """What happens at which step of a run."""

    total_steps: int
    log: Interval
    eval: Interval
    checkpoint: Interval
    keep_checkpoint: Interval
    """When a checkpoint is kept for good as `step-N.pt`."""
    probes: dict[str, Interval]
    """By kind: gradients, responses, lesion."""
    lr_schedule: ScheduleConfig
    peak_lr: float
    """The learning rate after the warm-up and before any decay."""
    warmup_steps: int
    milestones: tuple[int, ...]
    """Steps at which a step schedule multiplies the learning rate by gamma."""
    image_sizes: tuple[tuple[int, int], ...] = ()
    """Progressive resizing: pairs of a first step and the image size in pixels from that step on, in order."""

    def is_anything_due(self, step: int) -> bool:
        """Whether anything is due after `step` steps: then the loop may wait for the device."""
        intervals = (self.log, self.eval, self.checkpoint, self.keep_checkpoint, *self.probes.values())
        return any(interval.is_due(step) for interval in intervals)

    def measurements_due(self, step: int) -> tuple[str, ...]:
        """What is to be measured after `step` steps: "eval", and kinds of probes."""
        return tuple(kind for kind, interval in {"eval": self.eval, **self.probes}.items() if interval.is_due(step))

    def lr_at(self, step: int) -> float:
        """The learning rate of the step that follows `step` steps; the first step's is `lr_at(0)`."""
        schedule, warmup = self.lr_schedule, self.lr_schedule.warmup
        if warmup is not None and step < self.warmup_steps:
            if warmup.kind == "constant":
                return warmup.lr
            return warmup.lr + (self.peak_lr - warmup.lr) * (step + 1) / self.warmup_steps
        if isinstance(schedule, StepScheduleConfig):
            return self.peak_lr * schedule.gamma ** sum(step >= milestone for milestone in self.milestones)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        factor = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return schedule.min_lr + (self.peak_lr - schedule.min_lr) * factor

    def image_size_at(self, step: int) -> int | None:
        """Height and width of the images of the step that follows `step` steps. None: the size of the recipe's crop."""
        return next((size for first_step, size in reversed(self.image_sizes) if step >= first_step), None)

    def unreached(self) -> str:
        """What the recipe schedules for after the last step, in words; empty if nothing. A run may be cut short."""
        late = [f"the milestone at {milestone}" for milestone in self.milestones if milestone >= self.total_steps]
        if self.warmup_steps > self.total_steps:
            late.append(f"the end of the warm-up at {self.warmup_steps}")
        return " and ".join(late)


def build_schedule(recipe: Recipe, steps_per_epoch: float) -> TrainSchedule:
    """The schedule of a recipe on a training set of `steps_per_epoch` batches."""
    train, lr_schedule, probes = recipe.train, recipe.schedule, recipe.probes
    total_steps = train.steps or max(1, round((train.epochs or 0) * steps_per_epoch))

    def in_steps(duration: Duration) -> float:
        if duration.steps is not None:
            return duration.steps
        if duration.epochs is not None:
            return duration.epochs * steps_per_epoch
        return (duration.fraction or 0) * total_steps

    def every(duration: Duration) -> Interval:
        return Interval(max(1, in_steps(duration)), last_step=total_steps)

    keep_every = recipe.checkpoint.keep_every
    milestones = lr_schedule.milestones if isinstance(lr_schedule, StepScheduleConfig) else ()
    probe_configs = {"gradients": probes.gradients, "responses": probes.responses, "lesion": probes.lesion}
    resizing = recipe.augment.progressive_resizing or {}
    return TrainSchedule(
        total_steps=total_steps,
        log=every(recipe.log.every),
        eval=every(recipe.eval.every),
        checkpoint=every(recipe.checkpoint.every),
        keep_checkpoint=Interval(None if keep_every is None else max(1, in_steps(keep_every))),
        probes={kind: every(config.every) for kind, config in probe_configs.items() if config is not None},
        lr_schedule=lr_schedule,
        peak_lr=recipe.optimizer.lr,
        warmup_steps=0 if lr_schedule.warmup is None else round(in_steps(lr_schedule.warmup)),
        milestones=tuple(round(in_steps(milestone)) for milestone in milestones),
        image_sizes=tuple((round(begin * total_steps), size) for begin, size in resizing.items()),
    )
