"""Figures of a comparison, and the drawing functions that all figures share."""
