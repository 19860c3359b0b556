"""Pipes that know nothing of the science."""
