"""``explain gradients``: how large gradients are in each layer of both arms."""
