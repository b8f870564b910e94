"""Changes of float weights that keep what the model computes and make it easier to round."""
