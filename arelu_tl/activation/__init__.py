"""AReLU, the controls and rivals that can stand in its place, and the kernels that compute them."""
