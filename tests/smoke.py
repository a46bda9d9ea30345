"""Import the package and take a step: what is run on interpreters other than the one that runs all tests."""

import sys

import torch

from jorge import Jorge

torch.manual_seed(0)
model = torch.nn.Linear(8, 4)
optimizer = Jorge(model.named_parameters(), lr=0.02)
losses = []
for _ in range(100):
    loss = (model(torch.ones(2, 8)) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] / 10, losses
print(
    f"jorge steps on Python {sys.version.split()[0]} with torch {torch.__version__}: {losses[0]:.3f} → {losses[-1]:.2g}"
)
