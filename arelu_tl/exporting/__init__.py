"""Export of a trained run as safetensors, ONNX or pt2: freeze, fold, write and prove it."""
