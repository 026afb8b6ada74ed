"""The networks, family by family, and the layers that they share; they know nothing of training."""
