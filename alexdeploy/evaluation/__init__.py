"""Graphs and engines judged on labelled images, and compared with one another."""
