"""The laboratory: Jorge beside other optimizers, on tasks that train in seconds or hours (docs/guide/laboratory.md)."""

__version__ = "0.1.0"
