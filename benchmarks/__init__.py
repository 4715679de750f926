"""Measurements against other software, and of how costs grow: `python -m benchmarks`. Not part of the package."""
