"""A check that an optimizer can be handed to another process."""

from __future__ import annotations

import copy
import multiprocessing
from multiprocessing.connection import Connection

import torch

from jorge.testing.check import Factory, declare, expect, one_line
from jorge.testing.kit import Params, advance, expect_alike, start

#: How long the other process may take, imports included.
_SECONDS = 120


def _work(pipe: Connection, params: Params, optimizer: torch.optim.Optimizer) -> None:
    """What the other process does: take steps, and send the weights as numbers, or what went wrong in words."""
    torch.set_num_threads(1)
    try:
        advance(optimizer, params, 3, seed=3)
    except Exception as error:  # it is the optimizer's, and the check's to tell
        pipe.send(one_line(error))
    else:
        pipe.send([p.tolist() for p in params])
    pipe.close()


@declare("process", "A process that is spawned takes it over, and trains on to the bit.", slow=True)
def spawned(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    mine, twin = copy.deepcopy((params, optimizer))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with receiver:
        process = context.Process(target=_work, args=(sender, params, optimizer))
        with sender:  # open here it would keep the pipe from ending with the other process
            process.start()
        try:
            if not receiver.poll(_SECONDS):
                process.kill()
                raise AssertionError(f"nothing came back within {_SECONDS} s")
            found = receiver.recv()
        except EOFError:
            raise AssertionError("the process ended with an error before a step") from None
        finally:
            process.join()
            process.close()
    expect(not isinstance(found, str), f"a step fails there: {found}")
    advance(twin, mine, 3, seed=3)
    expect_alike([torch.tensor(w) for w in found], [p.detach() for p in mine], "it trains on differently there")


CHECKS = (spawned,)
