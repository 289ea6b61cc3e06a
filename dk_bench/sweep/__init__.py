"""W&B's sweep files, run on this machine without an account. Begin with runner.py; grid.py reads the file."""
