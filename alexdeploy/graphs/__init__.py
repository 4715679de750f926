"""ONNX graphs: read, derived and run; the files on disk, and the forms that engines need."""
