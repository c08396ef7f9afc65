"""The shape of the records in a run folder: of `metrics.jsonl`, and of the sessions in `env.json`. No torch."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from pydantic_core import from_json

Record = dict[str, Any]

_Count = Annotated[int, Field(ge=0, le=10**18)]
_Figure = Annotated[float, Field(ge=0, le=1e15)]
_Probed = Annotated[float, Field(ge=-1e100, le=1e100)]
_Percent = Annotated[float, Field(ge=0, le=100)]


class _Shape(BaseModel):
    """What readers rely on. A record may have more keys. One with a default may be missing; null is not finite."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Timed(_Shape):
    step: _Count
    seconds: _Figure
    time: _Figure


class _Start(_Timed):
    kind: Literal["start"]
    params: _Count
    macs: _Count
    steps: PositiveInt
    train_images: PositiveInt
    val_images: PositiveInt
    protocol: str


class _Train(_Timed):
    kind: Literal["train"]
    error: _Percent
    loss: float | None
    lr: float
    grad_norm: float | None = None
    images_per_second: _Figure
    data_wait_seconds: _Figure = 0.0


class _Eval(_Timed):
    kind: Literal["eval"]
    val_error_top1: _Percent
    val_error_top5: _Percent
    val_loss: float | None
    clean_train_error_top1: _Percent = 0.0
    clean_train_error_top5: _Percent = 0.0
    clean_train_loss: float | None = None
    eval_seconds: _Figure = 0.0


class _Probe(_Timed):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, _Probed | None]]

    kind: Literal["responses", "lesion"]
    probe_seconds: _Figure
    probe_share: float


class _Gradients(_Probe):
    kind: Literal["gradients"]  # type: ignore[assignment]
    units: dict[str, _Probed | None]


class _End(_Timed):
    kind: Literal["end"]
    status: Literal["finished", "diverged"]


class _Session(_Shape):
    ranks: PositiveInt
    device: str
    torch: str
    host: str | None = None
    pid: int | None = None
    queue: list[Annotated[str, Field(pattern=r"/seed-\d+$")]] = []


class _Environment(_Shape):
    sessions: list[_Session]


_AnyRecord = Annotated[_Start | _Train | _Eval | _Probe | _Gradients | _End, Field(discriminator="kind")]
_RECORD, _RECORDS = TypeAdapter[Any](_AnyRecord), TypeAdapter[Any](list[_AnyRecord])
_ENVIRONMENT = TypeAdapter(_Environment)


def parse_record(line: str) -> Record:
    """A line of `metrics.jsonl`. Raises `ValueError`, whose text is one line."""
    record: Record = parse_json(line, _RECORD)
    return record


def parse_records(lines: Sequence[str]) -> list[Record]:
    """The lines of `metrics.jsonl`. Raises `ValueError`, whose text is one line and names the first that is wrong."""
    failure = None
    try:
        records: list[Record] = [from_json(line, allow_inf_nan=False) for line in lines]
        for first in range(0, len(records), 100):  # together for speed; few, for what this builds is freed then
            _RECORDS.validate_python(records[first : first + 100])
    except ValueError:
        records = []
        for line in lines:
            try:
                records.append(parse_record(line))
            except ValueError as error:
                failure = f"line {len(records) + 1}: not a record of a run: {error}"
                break
    _check_order(records)
    if failure is not None:
        raise ValueError(failure)
    return records


def _check_order(records: Sequence[Record]) -> None:
    """Raise `ValueError` if a record cannot follow those before it: a run starts once, and its steps increase."""
    step, kinds = 0, set[str]()
    for number, record in enumerate(records, 1):
        kind, last_step, step = record["kind"], step, record["step"]
        if step > last_step:
            kinds = set()
        reason = None
        if (kind == "start") != (number == 1):
            reason = "the first one, and no other, is of kind start"
        elif step < last_step:
            reason = f"step {step} after step {last_step}"
        elif kind in kinds:
            reason = f"a second record of kind {kind} at step {step}"
        if reason is not None:
            raise ValueError(f"line {number}: not a record of a run: {reason}")
        kinds.add(kind)


def parse_sessions(text: str) -> list[Record]:
    """The sessions that an `env.json` lists. Raises `ValueError`, whose text is one line."""
    sessions: list[Record] = parse_json(text, _ENVIRONMENT)["sessions"]
    return sessions


def parse_json(text: str, shape: TypeAdapter[Any]) -> Any:
    """The content of JSON text, as it is, once its shape is checked. Raises `ValueError`, whose text is one line."""
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError:  # also of numbers of 5,000 digits, and of lists in lists without end
        raise ValueError("not JSON") from None
    check_shape(content, shape)
    return content


def check_shape(content: Any, shape: TypeAdapter[Any]) -> None:
    """Raise `ValueError`, whose text is one line, if content is not of a shape."""
    try:
        shape.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
        raise ValueError("".join(c if c.isprintable() else "?" for c in reason)[:200]) from None
