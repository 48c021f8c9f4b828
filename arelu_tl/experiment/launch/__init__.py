"""Who trains the runs of a sweep: this process, processes on this machine, or a Ray cluster."""
