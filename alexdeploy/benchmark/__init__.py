"""Comparison of backends, precisions and batch sizes, each measured in a process of its own."""
