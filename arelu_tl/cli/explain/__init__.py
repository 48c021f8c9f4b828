"""What the activation does inside a net, as pictures: gradients, feature maps, learned curves."""
