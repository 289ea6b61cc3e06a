"""Images: drawn procedurally, or read from folders, tars and timm's data sets; then their order and augmentation. Begin
with sources.py, which opens what a configuration names."""

from dk_bench.data.procedural import SHAPES, Pose, ShapeImages

__all__ = ["SHAPES", "Pose", "ShapeImages"]
