"""Times of operators, training steps and data loaders (``dk-bench bench``). Begin with study.py."""
