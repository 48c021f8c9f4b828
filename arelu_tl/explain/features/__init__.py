"""``explain features``: the feature maps of one picture before and after each site."""
