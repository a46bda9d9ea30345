"""The laboratory: Jorge beside other optimizers, on tasks that train in seconds or hours (docs/laboratory.md)."""

__version__ = "0.1.0"
