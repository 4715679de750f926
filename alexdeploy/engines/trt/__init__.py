"""TensorRT: engine files built, chosen, trusted and run."""
