"""Questions about Jorge itself: one option varied at a time, and how near its roots are to the exact ones."""
