"""Glue for frameworks that build an optimizer themselves: a module each, and none is loaded by `import jorge`.

A framework that takes a built optimizer needs nothing from here.
"""
