"""The networks of the tasks, in plain PyTorch."""
