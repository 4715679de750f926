"""Caffe's prototxt and caffemodel: read, converted, and run by an independent reference."""
