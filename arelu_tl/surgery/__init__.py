"""Find the sites of a model, plan, apply, calibrate, verify, and watch what they do."""
