"""Statistics over run records: pure functions that do not import torch."""
