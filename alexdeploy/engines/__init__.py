"""Backends: each runs one deployment graph, uint8 images in, probabilities out."""
