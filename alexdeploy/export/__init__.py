"""ONNX graphs, made and checked: trained or imported, in FP32, FP16 and INT8, and in the form an engine wants."""
