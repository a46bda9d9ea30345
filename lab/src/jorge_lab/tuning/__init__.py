"""The search for the best options of each optimizer, with the same effort for all."""
