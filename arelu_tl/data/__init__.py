"""A folder of pictures: scanned and checked, split, augmented, cached, and fed to the loop in batches."""
