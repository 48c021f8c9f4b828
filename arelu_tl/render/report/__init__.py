"""report.html: one self-contained page that tells, shows and proves what a comparison found."""
