"""``inspect``: the sites of an architecture, what surgery would do to them, and the table of all architectures."""
