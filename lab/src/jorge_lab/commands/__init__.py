"""The commands that `jorge` has where the laboratory is installed."""
