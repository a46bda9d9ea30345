"""The comparison laboratory (extra `lab`): real tasks, first-order baselines, fair runs and a report."""
