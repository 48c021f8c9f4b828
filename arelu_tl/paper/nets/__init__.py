"""Many small nets trained at once: MNIST-Conv, stacked over learning rates and seeds."""
