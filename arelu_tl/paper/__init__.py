"""``reproduce``: the experiments of the AReLU paper."""
