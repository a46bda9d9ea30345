"""What the optimizer will cost a model, before anything is trained or allocated: `jorge cost` as a library.

:func:`estimate` counts state bytes, FLOPs and launches per parameter and in all, and predicts the overhead over
training with SGD or AdamW; :func:`suggest` finds the interval and block size that keep it under a budget;
:func:`distributed` counts what each of several processes holds, computes and sends.
"""

from jorge.cost.distributed import Distributed, distributed
from jorge.cost.estimating import Estimate, Launches, Row, estimate
from jorge.cost.model import ModelFlopsError, model_flops
from jorge.cost.rivals import Rival
from jorge.cost.suggesting import Candidate, Suggestion, suggest

__all__ = [
    "Candidate",
    "Distributed",
    "Estimate",
    "Launches",
    "ModelFlopsError",
    "Rival",
    "Row",
    "Suggestion",
    "distributed",
    "estimate",
    "model_flops",
    "suggest",
]
