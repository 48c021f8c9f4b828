"""Folders of pictures: scan and check, split, augment, cache, and load in batches."""
