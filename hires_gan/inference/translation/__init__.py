"""The parts of `hires-gan translate`: what is asked for, pictures, networks, grids and films."""
