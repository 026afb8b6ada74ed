"""Metrics, and the command that computes them."""
