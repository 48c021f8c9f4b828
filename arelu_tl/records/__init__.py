"""Layer 1: the configuration, and what is read from and written to run folders. No torch."""
