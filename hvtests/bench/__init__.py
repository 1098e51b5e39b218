"""Measurements: ``python -m hvtests.bench`` prints one JSON line per figure. Nothing here asserts a time."""
