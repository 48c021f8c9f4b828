"""Show what the replaced sites do in a model: measure, record, tabulate and draw it."""
