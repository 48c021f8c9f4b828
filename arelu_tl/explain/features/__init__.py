"""``explain features``: what each site passes on of one picture."""
