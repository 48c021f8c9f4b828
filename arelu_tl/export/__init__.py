"""Layer 3: models as files that outlive the run folder."""
