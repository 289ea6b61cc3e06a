"""Effective receptive fields (the paper's section 3.1, figures 4 and 6). Begin with study.py, then gradient.py."""
