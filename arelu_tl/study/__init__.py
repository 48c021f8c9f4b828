"""Layer 4: composes data, backbone, surgery and training into runs and studies, and reloads finished ones."""
