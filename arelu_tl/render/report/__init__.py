"""report.html: one self-contained page with the verdicts, figures and proofs of a comparison."""
