"""A trained model: loaded, evaluated on folders, and asked about pictures."""
