"""An ONNX graph as a thing to read, derive and run: what is on disk, and the forms that engines take."""
