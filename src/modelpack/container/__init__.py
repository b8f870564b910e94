"""Images: what is in them, how their bytes are written, where bases come from and where results go."""
