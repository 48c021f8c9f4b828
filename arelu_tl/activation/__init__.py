"""AReLU, the controls and rivals that can replace it, and the kernels that compute them."""
