"""Accuracy of graphs and engines on labelled images, and their agreement with one another."""
