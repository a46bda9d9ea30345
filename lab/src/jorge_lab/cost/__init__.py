"""What a step of Jorge costs in time, memory and launches, beside other optimizers (docs/notebook/benchmarks.md)."""
