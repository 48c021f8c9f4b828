"""A timm model, its data configuration, and the weights it starts with."""
