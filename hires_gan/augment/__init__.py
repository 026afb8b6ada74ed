"""Adaptive discriminator augmentation (Karras et al. 2020b): D sees augmented images, as often as it needs to."""
