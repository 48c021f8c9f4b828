"""The command line: one file per command; commands import torch inside their functions; one error handler."""
