"""arelu-tl explain VERB: what the activation does inside a net, as pictures; a file a verb."""
