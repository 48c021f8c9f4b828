"""``explain activations``: the activation function that each site has learnt."""
