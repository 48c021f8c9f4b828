"""arelu-tl explain VERB: what the activation does inside a net, as pictures."""

from arelu_tl.cli.explain.application import explain

__all__ = ["explain"]
