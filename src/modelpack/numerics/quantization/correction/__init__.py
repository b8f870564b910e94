"""What brings rounded layers back to the outputs of the float ones."""
