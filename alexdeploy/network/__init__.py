"""The network: the plan of its layers, its PyTorch module, a NumPy reference, and reading weights."""
