"""CUDA in the memory of the host."""
