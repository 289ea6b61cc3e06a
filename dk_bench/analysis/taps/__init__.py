"""Where taps go, in kernels and on images (the paper's figures 1 and 5). Begin with study.py."""
