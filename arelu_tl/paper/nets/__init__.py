"""Many small nets trained at once: the paper's MNIST-Conv, stacked over learning rates and seeds."""
