"""A trained run leaves as safetensors, ONNX or pt2: frozen, folded, written and proved."""
