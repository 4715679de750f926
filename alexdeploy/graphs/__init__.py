"""ONNX graphs: reading, transforming and running them; files on disk, and the forms that engines need."""
