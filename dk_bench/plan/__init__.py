"""What a sweep will take, told before it runs (``dk-bench plan``). Begin with estimate.py."""
