"""Launch the runs of a sweep: in this process, in local worker processes, or on a Ray cluster."""
