"""W&B sweep files, run on this machine without an account."""
