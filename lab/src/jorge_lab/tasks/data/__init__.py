"""Readers of the data sets that the tasks train on."""
