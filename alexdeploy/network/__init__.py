"""The network: its layers as a plan, its PyTorch module, its LRN, and a NumPy reference."""
