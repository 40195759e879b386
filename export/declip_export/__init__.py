"""Makes engines: a torch model becomes one ONNX graph becomes one file."""
