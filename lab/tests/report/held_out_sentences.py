"""What the page of the tasks that were held out says, and README of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.tests.report import quoted
from lab.tests.report.quoted import NOTEBOOK, README, better, held_out, jorge, others, row
from lab.tests.report.verdicts_of import UNITS, WORDS, ahead_of_all, fewer, lowest, on, verdicts

HELD_OUT = NOTEBOOK / "held-out.md"


def not_chosen_on() -> Iterator[tuple[Path, str]]:
    """What the page of the tasks that were held out says."""
    assert all("ahead" not in verdicts(p, unit) for p in held_out() for unit in UNITS)
    assert [name.split(", ")[-1] for name in ahead_of_all(held_out(), "steps")] == ["character LSTM"]
    both = " and ".join(f"on {lowest(held_out(), unit)} of five in {unit}" for unit in UNITS)
    yield HELD_OUT, f"Its median is the lowest {both}."
    vae, denoising = on("vae", held_out()), on("denoising", held_out())
    found = [fewer(better(p, "shampoo"), jorge(p), "steps") for p in (vae, denoising)]
    yield HELD_OUT, f"takes {found[0]} fewer steps on the variational autoencoder"
    yield HELD_OUT, f"with twice the recipe's {found[1]} fewer steps"
    losses = sorted(row(vae, name, "tuned").final_loss or 0 for name in ("shampoo", "soap", "muon", "psgd"))
    yield HELD_OUT, f"({losses[0]:.0f} to {losses[-1]:.0f} nats against {jorge(vae).final_loss:.0f})"
    sine = on("coordinates", held_out())
    ends = sorted(row(sine, name, "tuned").final_loss or 0 for name in ("shampoo", "soap", "muon", "psgd"))
    yield HELD_OUT, f"({ends[0]:.5f} to {ends[-1]:.5f} against {jorge(sine).final_loss:.5f})"
    twice = [quoted.seconds(row(sine, "adamw", setting)) for setting in ("tuned", "transferred")]
    yield HELD_OUT, f"is {twice[0]} as tuned and {twice[1]} as transferred"


def since_held_out() -> Iterator[tuple[Path, str]]:
    """What the page says of the first five with the defaults of today."""
    then, today = held_out(), quoted.held_out_today()
    ends = []
    for found in (then, today):
        low = [min(quoted.lowest_end(part, name) for name in quoted.OPTIMIZERS) for part in found]
        ends.append([(jorge(part).final_loss or 0) / other for part, other in zip(found, low, strict=True)])
    counts = [WORDS[sum(ratio <= 1.01 for ratio in ratios)] for ratios in reversed(ends)]
    yield HELD_OUT, f"It ends lowest or within 1 % of the lowest on {counts[0]} of five, where it was {counts[1]};"
    vae, sine = on("vae", today), on("coordinates", today)
    worst = ends[1][today.index(vae)]
    assert max(ends[1]) == worst
    yield HELD_OUT, f"on the variational autoencoder it ends {100 * (worst - 1):.0f} % above Shampoo."
    yield HELD_OUT, f"the lowest median on {lowest(today, 'steps')}, with the sine network's among them"
    yield HELD_OUT, f"({quoted.steps(jorge(sine))}, SOAP {quoted.steps(row(sine, 'soap', 'tuned'))})"
    assert [name.split(", ")[-1] for name in ahead_of_all(today, "steps")] == ["character LSTM"]
    assert all("ahead" not in verdicts(part, "steps") for part in today)


def not_chosen_on_either() -> Iterator[tuple[Path, str]]:
    """What the page says of the second five."""
    found, names = quoted.held_out_second(), ("tabular", "diffusion", "contrastive", "words", "physics")
    ends, best = {}, {}
    for name, part in zip(names, found, strict=True):
        assert part.section.name.endswith(name)
        low = {other: quoted.lowest_end(part, other) for other in quoted.OPTIMIZERS}
        best[name] = min(low, key=lambda other: low[other])
        ends[name] = (jorge(part).final_loss or 0) / low[best[name]]
    level = WORDS[sum(ratio <= 1.01 for ratio in ends.values())]
    assert best == {
        "tabular": "soap",
        "diffusion": "muon",
        "contrastive": "shampoo",
        "words": "adamw",
        "physics": "soap",
    }
    above = {name: f"{100 * (ratio - 1):.{0 if ratio > 1.1 else 1}f} %" for name, ratio in ends.items()}
    yield HELD_OUT, f"It does on {level}: {above['contrastive']} above Shampoo in contrastive learning, and"
    yield (
        HELD_OUT,
        f"{above['words']} above AdamW on the word vectors. It is {above['tabular']} above SOAP on the table",
    )
    yield HELD_OUT, f"{above['diffusion']} above Muon in diffusion"
    assert round(ends["physics"]) == 19
    yield HELD_OUT, f"its median is the lowest on {lowest(found, 'steps')} of five"
    ahead = {
        unit: {
            n: {r.optimizer for r in others(p) if r.verdicts.get(unit) == "ahead"}
            for n, p in zip(names, found, strict=True)
        }
        for unit in UNITS
    }
    steps = {"tabular": {"soap", "muon"}, "words": {"adamw", "muon"}, "physics": {"soap"}}
    assert {name: who for name, who in ahead["steps"].items() if who} == steps
    seconds = {"tabular": {"adamw", "muon"}, "words": {"adamw", "muon"}, "physics": {"soap"}}
    assert {name: who for name, who in ahead["seconds"].items() if who} == seconds
    assert ahead_of_all(found, "seconds") == ["Fashion-MNIST, contrastive"]
    assert row(found[3], "soap", "tuned").tested == row(found[3], "psgd", "tuned").tested == 1
    yield README, f"the median in steps is the lowest on {lowest(found, 'steps')}, and the loss at the end within 1 %"
    yield README, f"of the lowest on {level}"


def since_the_second_five() -> Iterator[tuple[Path, str]]:
    """What the page says of them with the step of today."""
    then, today = quoted.held_out_second(), quoted.held_out_second_today()
    ends = [[jorge(part).final_loss or 1 for part in found] for found in (then, today)]
    changed = [now / before for before, now in zip(*ends, strict=True)]
    counts = []
    for found in (then, today):
        low = [min(quoted.lowest_end(part, name) for name in quoted.OPTIMIZERS) for part in found]
        counts.append(sum((jorge(part).final_loss or 0) <= 1.01 * end for part, end in zip(found, low, strict=True)))
    assert counts[0] == counts[1]
    lower = WORDS[sum(ratio < 1 for ratio in changed)]
    yield HELD_OUT, f"It ends lower on {lower} of five, within 1 % of the lowest on {WORDS[counts[1]]} as before"
    assert max(changed) == changed[-1]
    yield HELD_OUT, f"at {changed[-1]:.1f} times what it was"
