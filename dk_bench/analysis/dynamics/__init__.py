"""What learned offsets know of objects (the paper's figure 3): t-SNE and linear probes. Begin with study.py."""

PROCEDURAL = "procedural"  # in place of annotations: the images that the models are validated on
MIN_OBJECTS = 20  # of fewer nothing can be told
