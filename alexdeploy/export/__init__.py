"""From trained weights to ONNX graphs: plain, FP16, and the deployment graph derived in memory."""
