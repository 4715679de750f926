"""Caffe's caffemodel and binaryproto: parsing, conversion, and an independent reference."""
