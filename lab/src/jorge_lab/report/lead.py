"""The sentence that a task leads with: what the reference saves and what it costs; and what stands below the table."""

from __future__ import annotations

from jorge_lab.report.columns import MAIN_UNITS
from jorge_lab.report.grid import over_baseline
from jorge_lab.report.parts import Part, baseline, first, nobody, reference
from jorge_lab.statistics.repeats import Repeated, repeated
from jorge_lab.statistics.row import Row

_TIMES = {2: "twice", 3: "thrice"}


def lead(part: Part) -> str:
    """What the reference takes and costs beside the baseline; who reaches the target first where there is none."""
    row, base = reference(part), baseline(part)
    if row is None or not row.tested:
        return _without(part)
    if part.given is None and base is not None:
        goal, of_steps, of_seconds = f"{base.label}'s best loss", "the steps", "the seconds"
    else:
        goal = f"a loss of {row.target:g}"
        of_steps, of_seconds = (f"{base.label}'s steps", "its seconds") if base else ("", "")
    steps, seconds = (over_baseline(row, unit) for unit in MAIN_UNITS)
    some = f" ({row.reached} of {row.tested} seeds)" if row.reached < row.tested else ""
    if row.reached == 0:
        said = f"does not reach {goal}"
    elif row.steps_to_target is None:
        said = f"reaches {goal} with {row.reached} of {row.tested} seeds"
    elif steps is None or seconds is None:
        said = f"reaches {goal} in {row.steps_to_target:.0f} steps and {row.seconds_to_target:.1f} seconds{some}"
    else:
        said = f"reaches {goal} in {steps:.2f} of {of_steps} and {seconds:.2f} of {of_seconds}{some}"
    return "; ".join([f"{part.called(row)} {said}", *_costs(row, base)]) + "."


def _costs(row: Row, base: Row | None) -> list[str]:
    share = [] if row.optimizer_share is None else [f"optimizer {100 * row.optimizer_share:.0f} % of a step"]
    times = state_ratio(row, base)
    return [*share, f"{row.state_bytes / 1e6:.2f} MB of state" if times is None else f"{multiple(times)} × the state"]


def state_ratio(row: Row, base: Row | None) -> float | None:
    """The state over the baseline's; None where there is no baseline, or it has no state."""
    return row.state_bytes / base.state_bytes if base is not None and base.state_bytes else None


def multiple(value: float) -> str:
    """A multiple in two digits.

    >>> [multiple(value) for value in (0.25, 2.54, 7.0, 12.6)]
    ['0.2', '2.5', '7', '13']
    """
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _without(part: Part) -> str:
    if none := nobody(part):
        return none
    steps, seconds = first(part, "steps")[0], first(part, "seconds")[0]
    if steps is seconds:
        said = f"in {steps.steps_to_target:.0f} steps and {steps.seconds_to_target:.1f} seconds"
        return f"{part.called(steps)} reaches the target first, {said}."
    fewest = f"{part.called(steps)} reaches the target in the fewest steps, {steps.steps_to_target:.0f}"
    return f"{fewest}, and {part.called(seconds)} in the least time, {seconds.seconds_to_target:.1f} seconds."


def below(part: Part) -> list[str]:
    """What a reader needs below the table of six columns: what is compared with what, and how seconds repeat."""
    rows = part.rows
    seeds = max(row.tested for row in rows)
    lines = []
    if any(found.verdict for row in rows for found in row.compared.values()):
        few = " Few seeds make this interval wide." if seeds < 5 else ""
        lines.append(
            f"Medians over {seeds} seeds. Compared seed by seed: (1.15–1.27) says 1.15 to 1.27 times the steps or "
            f"seconds of {rows[0].reference}, with 95 % confidence.{few}"
        )
    elif any(row.compared for row in rows):
        lines.append(f"With one seed in common there is no test: the ratio to {rows[0].reference} alone is given.")
    return [*lines, *repeats(part)]


def repeats(part: Part) -> list[str]:
    """How far apart the seconds of one run are that was trained several times; nothing where none was."""
    found = repeated(part.section)
    lines = []
    for times in sorted({r.times for r in found}):
        same = [r for r in found if r.times == times]
        said = f"Seconds of the same run, {_TIMES.get(times, f'{times} times')}: {_within(part, same)}"
        cpus = [r.cpu_seconds for r in same if r.cpu_seconds is not None]
        cpu = f"; CPU seconds: within {100 * max(cpus):.0f} %" if len(cpus) == len(same) else ""
        lines.append(f"{said}{cpu}.")
    return lines


def _within(part: Part, found: list[Repeated]) -> str:
    several = len({row.setting for row in part.rows}) > 1
    names = {row.key: f"{row.label}, {row.setting}" if several else row.label for row in part.rows}
    return "within " + ", ".join(f"{100 * r.seconds:.0f} % ({names[r.key]})" for r in found)
