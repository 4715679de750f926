"""The network: its layers as a plan, its PyTorch module, a NumPy reference, and weights from here, Caffe and others."""
