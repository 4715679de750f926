"""Import of models: ONNX graphs and weights of many formats become a model folder."""
