"""The commands of ``arelu-tl explain``."""
