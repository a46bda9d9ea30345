"""The pictures of "From Shampoo to Jorge": `python -m jorge_lab.studies.pictures`, in a minute or so.

All is computed from made-up gradients `A^(1/2) Z B^(1/2)`, with Z white noise, and from a regression without noise; the
algorithms are those of :mod:`jorge.reference`, in float64, and of the optimizers themselves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from jorge import Jorge, reference
from jorge.reference import Options, Side, State, refresh
from jorge_lab.report.figures import decorate, legend, on_white, svg
from jorge_lab.report.styles import COLOURS
from jorge_lab.studies.approximation import distance
from jorge_lab.studies.kl_shampoo import factor, power

#: Rows and columns of the made-up gradients, and the condition number of A and B.
SHAPE, CONDITION = (24, 32), 100.0
#: Refreshes at which the levelling is shown, and how many the roots are followed for.
SHOWN, FOLLOWED = (0, 1, 5, 50), 200
_ORANGE, _BLUE, _GREEN, _PINK = COLOURS[:4]


def sides() -> list[Tensor]:
    """A and B, whose eigenvalues lie in directions at random."""
    generator = torch.Generator().manual_seed(0)
    return [factor(d, CONDITION, generator) for d in SHAPE]


def gradients(count: int, seed: int = 0) -> Iterator[Tensor]:
    """Gradients whose rows have the covariance A and whose columns have B."""
    generator, roots = torch.Generator().manual_seed(seed), [power(side, 0.5) for side in sides()]
    for _ in range(count):
        yield roots[0] @ torch.randn(SHAPE, generator=generator, dtype=torch.float64) @ roots[1]


def tracked(method: str, count: int) -> Iterator[tuple[Tensor, State]]:
    """Each gradient, and the state after a refresh with it; each stands for itself."""
    options = Options(method=method, interval=1, warmup_refreshes=0)
    state = reference.init(torch.zeros(SHAPE, dtype=torch.float64), options)
    for G in gradients(count):
        state.steps += 1
        refresh(G, state, options)
        yield G, replace(state, left=Side(**vars(state.left)), right=Side(**vars(state.right)))


def spectra() -> dict[int, Tensor]:
    """Singular values of a new gradient, largest first and over the largest, as so many refreshes precondition it."""
    fresh = next(gradients(1, seed=1))
    found = {0: fresh}
    for number, (_, state) in enumerate(tracked("whitening", max(SHOWN)), 1):
        if number in SHOWN:
            found[number] = state.left.H @ fresh @ state.right.H
    return {number: (values := torch.linalg.svdvals(D)) / values[0] for number, D in found.items()}


def series(x: Tensor) -> Tensor:
    """The paper's: three terms of the binomial series of `(1+x)^(-1/4)`."""
    return 1 - x / 4 + 5 / 32 * x**2


def polynomial(x: Tensor) -> Tensor:
    """Jorge's for the same function on [0, 3]."""
    p1, p2, _ = reference.WHITENING[2]
    return 1 + p1 * x + p2 * x**2


def distances(method: str) -> list[float]:
    """How far the left root is from the one that it tracks, after each refresh: relative, after the best scaling.

    Of `binomial` and `congruence` that is Shampoo's from the same gradients, in float64; of `whitening` it is
    `A^(-1/2)`, to which no finite number of gradients comes quite.
    """
    truth = power(sides()[0], -0.5) if method == "whitening" else None
    pairs = zip(tracked(method, FOLLOWED), tracked("exact", FOLLOWED), strict=True)
    return [distance(own.left.H, exact.left.H if truth is None else truth)[0] for (_, own), (_, exact) in pairs]


def regression(build: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int = 150) -> list[float]:
    """`‖A^(1/2) (W − C) B^(1/2)‖²` over its start, by steps on W that see 32 inputs of covariance A each."""
    left, right = (power(side, 0.5).float() for side in sides())
    generator = torch.Generator().manual_seed(2)
    goal = torch.randn(SHAPE, generator=generator)
    W = nn.Parameter(torch.zeros(SHAPE))
    optimizer, losses = build([W]), list[float]()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        losses.append(float((left @ (W.detach() - goal) @ right).square().mean()))
        optimizer.zero_grad()
        inputs = torch.randn(32, SHAPE[0], generator=generator) @ left
        (inputs @ (W - goal) @ right).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return [value / losses[0] for value in losses]


#: The optimizers of the regression, with the best learning rate of :data:`RATES` for each.
RATES = tuple(10.0 ** (1 - k / 2) for k in range(9))
CONTENDERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "SGD": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "Adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "Shampoo": lambda params, lr: Jorge(params, lr=lr, weight_decay=0.0, method="exact"),
    "Jorge": lambda params, lr: Jorge(params, lr=lr, weight_decay=0.0),
}


def best(build: Callable[[list[nn.Parameter], float], torch.optim.Optimizer]) -> tuple[float, list[float]]:
    """The learning rate with the lowest last loss, and the losses with it."""
    found = {lr: regression(lambda params, lr=lr: build(params, lr)) for lr in RATES}  # type: ignore[misc]
    lr = min(found, key=lambda each: found[each][-1] if math.isfinite(found[each][-1]) else math.inf)
    return lr, found[lr]


def _canvas(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.6 if panels == 1 else 5.2 * panels, 3.8), layout="constrained")
    figure.patch.set_alpha(0)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _finished(figure: Figure, panels: Sequence[Axes], labelled: int, description: str) -> str:
    for axes in panels:
        decorate(axes)
    legend(figure, panels[:labelled])
    return on_white(svg(figure, description))


def levelling() -> str:
    """Singular values before and after."""
    figure, (axes,) = _canvas(1)
    for (number, values), colour in zip(spectra().items(), (*COLOURS[:3], COLOURS[3]), strict=True):
        label = "the gradient" if number == 0 else f"after {number} refresh{'es' * (number > 1)}"
        axes.plot(range(1, len(values) + 1), values, color=colour, marker="o", markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("singular value, largest first")
    axes.set_ylabel("over the largest")
    return _finished(figure, [axes], 1, "Singular values of a gradient, before and after the preconditioners")


def two_roots() -> str:
    """The function, the paper's series for it, and Jorge's polynomial."""
    figure, panels = _canvas(2)
    x = torch.linspace(0, 4, 201, dtype=torch.float64)
    exact = (1 + x) ** -0.25
    drawn = (("(1+x)^(−1/4)", exact, _BLUE), ("the paper's series", series(x), _PINK))
    for label, values, colour in (*drawn, ("Jorge's polynomial", polynomial(x), _ORANGE)):
        panels[0].plot(x, values, color=colour, label=label)
        if values is not exact:
            panels[1].plot(x, 100 * (values / exact - 1), color=colour)
    panels[1].set_ylim(-5, 25)
    panels[1].set_ylabel("error, %")
    for axes in panels:
        axes.set_xlabel("x")
    return _finished(figure, panels, 1, "The root (1+x)^(-1/4), the paper's series and Jorge's polynomial")


def following() -> str:
    """How near each method comes to what it tracks."""
    figure, (axes,) = _canvas(1)
    said = {"binomial": "binomial, to Shampoo's root", "congruence": "congruence, to Shampoo's root"}
    said["whitening"] = "whitening, to its fixed point"
    for (method, label), colour in zip(said.items(), (_PINK, _GREEN, _ORANGE), strict=True):
        axes.plot(range(1, FOLLOWED + 1), distances(method), color=colour, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("refreshes")
    axes.set_ylabel("distance, relative")
    return _finished(figure, [axes], 1, "Distance of each method's left root to the one that it tracks, by refreshes")


def toy() -> str:
    """The regression by each optimizer at its best rate."""
    figure, (axes,) = _canvas(1)
    for (name, build), colour in zip(CONTENDERS.items(), (_BLUE, _GREEN, _PINK, _ORANGE), strict=True):
        lr, losses = best(build)
        axes.plot(range(1, len(losses) + 1), losses, color=colour, label=f"{name}, lr {lr:.2g}")
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("loss over its start")
    return _finished(figure, [axes], 1, "A regression with two ill-conditioned sides by four optimizers")


PICTURES = {"levelling": levelling, "two-roots": two_roots, "following": following, "toy": toy}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PICTURES), metavar="PICTURE")
    parser.add_argument("--images", type=Path, default=Path("docs/generated/images"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.images.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        (args.images / f"{name}.svg").write_text(PICTURES[name](), encoding="utf-8")


if __name__ == "__main__":
    main()
