"""Runs: which they are, how one is trained, how several are done side by side, and where their records are kept."""
