"""What learned offsets know of objects (the paper's figure 3): t-SNE and linear probes. Begin with study.py."""
