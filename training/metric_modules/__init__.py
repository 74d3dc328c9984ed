"""Metrics for the `evaluate` library, a file for each: imported from here, or loaded by `evaluate.load` with its path.

A file imports nothing of Triune but its neighbour `in_memory`, which `evaluate.load` copies along.
"""
