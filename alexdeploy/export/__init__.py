"""Exporting and checking ONNX graphs of trained or imported models, in FP32, FP16 and INT8, and building engines."""
