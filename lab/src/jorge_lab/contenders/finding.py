"""An optimizer by its name, which may be followed by options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from torch import nn

from jorge.checks import parse
from jorge.methods import METHODS
from jorge.transfer import Schedule
from jorge_lab.contenders import CONTENDERS, Built, Contender, Setting, variant
from jorge_lab.contenders.contender import Average, Make, Options
from jorge_lab.contenders.tuned import tuned_options
from jorge_lab.errors import UsageError
from jorge_lab.tasks.task import Task

_AVERAGES: tuple[Literal["tail", "ema"], ...] = ("tail", "ema")
#: The method that each of our names stands for; only these take options in their names.
_OURS = {"jorge": "whitening", "shampoo": "exact", **{f"jorge-{method}": method for method in METHODS}}


def find_contender(name: str) -> Contender:
    """An optimizer by name; ours may be followed by options, `jorge:interval=5:damping=0`, and all by a schedule.

    All but schedule-free AdamW may end with an average of the weights: `adamw:tail=0.2`, over the last fifth of the
    run, or `adamw:ema=0.99`.

    A pair of values is written with a slash: `jorge:betas=0.9/0.99`. Every method is one of ours, `jorge-exact`.

    >>> find_contender("jorge:interval=5").label, find_contender("sgd:schedule=cosine").label
    ('Jorge, interval=5', 'SGD, schedule=cosine')

    Raises:
        UsageError: there is none of the name, or it takes no such options, or one is not `name=value`.
    """
    base, *given = name.split(":")
    contender = CONTENDERS.get(base) or (
        variant(base, f"Jorge, {_OURS[base]}", method=_OURS[base]) if base in _OURS else None
    )
    if contender is None:
        raise UsageError(f"unknown optimizer {base!r}: there are {', '.join(CONTENDERS)}")
    options: dict[str, Any] = {}
    for text in given:
        option, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{name!r}: write an option as name=value, not {text!r}")
        options[option] = _value(name, option, value)
    schedule = options.pop("schedule", None)
    averages = [Average(kind, options.pop(kind)) for kind in _AVERAGES if kind in options]
    if len(averages) > 1:
        raise UsageError(f"{name!r}: tail and ema exclude each other")
    average = averages[0] if averages else None
    if schedule is not None and schedule not in get_args(Schedule):
        raise UsageError(f"{name!r}: there is no schedule {schedule!r}, only {', '.join(get_args(Schedule))}")
    if options and base not in _OURS:
        raise UsageError(f"{name!r}: only {', '.join(n for n in CONTENDERS if n in _OURS)} take other options")
    if schedule is not None and base == "schedule-free":
        raise UsageError(f"{name!r}: schedule-free AdamW has no schedule")
    if average is not None and base == "schedule-free":
        raise UsageError(f"{name!r}: schedule-free AdamW ends with an average of its own")
    # An average takes the settings that were tuned without it.
    tuned_as = ":".join([base, *(text for text in given if text.partition("=")[0] not in _AVERAGES)])
    found = replace(contender, average=average)
    label = ", ".join([found.label, *given])
    if options:
        found = replace(variant(tuned_as, label, **{"method": _OURS[base], **options}), average=average)
    if not schedule:
        return replace(found, name=name, label=label)

    def chosen(task: Task, setting: Setting) -> Options:
        if setting == "tuned":  # under this schedule, not under the task's own
            return found.options(task, "transferred") | tuned_options(task, tuned_as)
        return found.options(task, setting)

    return replace(found, name=name, label=label, options=chosen, make=_with_schedule(found.make, schedule))


def _with_schedule(make: Make, schedule: Schedule) -> Make:
    """`make`, for the task with another schedule."""

    def made(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        return make(replace(task, recipe=replace(task.recipe, schedule=schedule)), model, steps, options)

    return made


def _value(name: str, option: str, text: str) -> Any:
    """The value of an option of :class:`jorge.Jorge`, the word that `schedule` has, or the number of an average."""
    if option == "schedule":
        return text
    if option in _AVERAGES:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < 1:
            raise UsageError(f"{name!r}: {option} must be a number between 0 and 1, got {text!r}")
        return value
    try:
        return parse(option, text.replace("/", ","))  # a comma ends the name of an optimizer
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name!r}: {error}") from None
