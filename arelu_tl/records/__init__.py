"""What is written and read back: configuration, studies, runs, weights, tables."""
