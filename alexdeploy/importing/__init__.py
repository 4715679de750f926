"""Models that others made: ONNX graphs and weights of many formats become a model folder."""
