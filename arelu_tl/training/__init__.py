"""The training loop and the modules it uses."""
