"""Data sets: procedural images of deformable shapes, and real ones through timm's readers."""

from dk_bench.data.procedural import SHAPES, Pose, ShapeImages

__all__ = ["SHAPES", "Pose", "ShapeImages"]
