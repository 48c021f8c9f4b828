"""Figures of a comparison, and the kit that all figures are drawn with."""
