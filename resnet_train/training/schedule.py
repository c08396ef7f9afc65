"""Every duration of a run, turned into steps once; and the learning rate, a pure function of the step."""

import math
from dataclasses import dataclass

from resnet_train.config.optim import Duration, ScheduleConfig, StepScheduleConfig
from resnet_train.config.schema import Recipe


@dataclass(frozen=True)
class Interval:
    """An interval, in steps; of epochs it need not be whole, so its k-th end is the step nearest to k intervals."""

    steps: float | None
    """None: never, but for the last step."""
    last: int | None = None
    """The step at which it is due, too."""

    def is_due(self, step: int) -> bool:
        """Whether something is to be done once `step` steps are taken."""
        return step == self.last or (self.steps is not None and step == round(round(step / self.steps) * self.steps))


@dataclass(frozen=True)
class TrainSchedule:
    """What happens at which step."""

    total: int
    """Steps of the whole training."""
    log: Interval
    eval: Interval
    save: Interval
    keep: Interval
    probes: dict[str, Interval]
    """By kind: gradients, responses, lesion."""
    schedule: ScheduleConfig
    peak: float
    """The optimizer's rate, after the warm-up and before any decay."""
    warmup: int
    milestones: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    """Of progressive resizing: from which step on images have how many pixels, in the order of the steps."""

    def anything_is_due(self, step: int) -> bool:
        """Whether this step is one at which the loop may wait for the device."""
        return any(every.is_due(step) for every in (self.log, self.eval, self.save, self.keep, *self.probes.values()))

    def beyond_the_end(self) -> str:
        """What the recipe plans for after the last step, as when a run is cut short; empty if nothing."""
        late = [f"the milestone at {milestone}" for milestone in self.milestones if milestone >= self.total]
        late += [f"the end of the warm-up at {self.warmup}"] if self.warmup > self.total else []
        return " and ".join(late)

    def size_at(self, step: int) -> int | None:
        """Height and width of the images of the step that follows `step` steps; None: as the recipe's crop has them."""
        return next((size for first, size in reversed(self.sizes) if step >= first), None)

    def lr_at(self, step: int) -> float:
        """The learning rate of the step that follows `step` steps (so the first one's is `lr_at(0)`)."""
        schedule, start = self.schedule, self.schedule.warmup
        if start is not None and step < self.warmup:
            if start.kind == "constant":
                return start.lr
            return start.lr + (self.peak - start.lr) * (step + 1) / self.warmup
        if isinstance(schedule, StepScheduleConfig):
            return self.peak * schedule.gamma ** sum(step >= milestone for milestone in self.milestones)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        left = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return schedule.min_lr + (self.peak - schedule.min_lr) * left


def build_schedule(recipe: Recipe, steps_per_epoch: float) -> TrainSchedule:
    """The plan of a recipe on a training set of so many steps an epoch."""
    train, schedule = recipe.train, recipe.schedule
    total = train.steps or max(1, round((train.epochs or 0) * steps_per_epoch))

    def steps(duration: Duration) -> float:
        if duration.steps is not None:
            return duration.steps
        if duration.epochs is not None:
            return duration.epochs * steps_per_epoch
        return (duration.fraction or 0) * total

    def every(duration: Duration) -> Interval:
        return Interval(max(1, steps(duration)), last=total)

    keep, probes = recipe.checkpoint.keep_every, recipe.probes
    wanted = {"gradients": probes.gradients, "responses": probes.responses, "lesion": probes.lesion}
    return TrainSchedule(
        total=total,
        log=every(recipe.log.every),
        eval=every(recipe.eval.every),
        save=every(recipe.checkpoint.every),
        keep=Interval(max(1, steps(keep)) if keep else None),
        probes={kind: every(probe.every) for kind, probe in wanted.items() if probe is not None},
        schedule=schedule,
        peak=recipe.optimizer.lr,
        warmup=round(steps(schedule.warmup)) if schedule.warmup else 0,
        milestones=tuple(round(steps(m)) for m in schedule.milestones)
        if isinstance(schedule, StepScheduleConfig)
        else (),
        sizes=tuple(
            (round(begin * total), size) for begin, size in (recipe.augment.progressive_resizing or {}).items()
        ),
    )
