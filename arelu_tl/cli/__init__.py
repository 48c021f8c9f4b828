"""The command line: one file per command, and one error handler.

Commands import torch inside their functions.
"""
