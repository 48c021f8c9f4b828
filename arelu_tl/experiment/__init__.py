"""A study: the runs it plans, trains, resumes and records."""
