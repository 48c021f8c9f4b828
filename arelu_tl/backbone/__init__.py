"""A timm model, its data configuration, and its initial weights."""
