"""Load a trained model, evaluate it on folders, and label pictures with it."""
