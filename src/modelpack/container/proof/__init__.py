"""What proves an image: what is in it, how it was made, and who says so, attached to it and examined offline."""
