"""What one does with a trained model: load it, generate images from it."""
