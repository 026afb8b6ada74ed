"""Runs laid side by side: what differs in configuration, metrics, speed and cost, with curves and grids."""
