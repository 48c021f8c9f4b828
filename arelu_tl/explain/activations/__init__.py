"""``explain activations``: the function that each site has learned."""
