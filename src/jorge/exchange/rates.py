"""How quick devices and links are taken to be, where a choice hangs on it: numbers, not measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What the model of time is made of.

    Args:
        flops: of products that a device does in a second.
        bandwidth: bytes that it sends in a second.
        latency: seconds that a message takes besides.
    """

    flops: float
    bandwidth: float
    latency: float

    def seconds(self, flops: float, nbytes: float, messages: float) -> float:
        """For products and messages, nothing overlapping."""
        return flops / self.flops + nbytes / self.bandwidth + messages * self.latency


#: A current GPU, with a network between machines, and with links inside of one.
FAR, NEAR = Rates(5e13, 5e10, 2e-5), Rates(5e13, 4e11, 2e-5)
#: A core or two, whose products are so dear that messages do not count.
CPU = Rates(5e10, math.inf, 0.0)


def rates(kind: str, *, near: bool) -> Rates:
    """Of a type of device, such as `"cuda"`, where all processes are on one machine or not."""
    if kind == "cpu":
        return CPU
    return NEAR if near else FAR
