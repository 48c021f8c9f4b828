"""Write and read files: configurations, studies, runs, weights, tables."""
