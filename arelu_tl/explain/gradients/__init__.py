"""``explain gradients``: the size of the gradients at each site and layer of both arms."""
