"""Statistics over run records: pure functions that import no torch."""
