# Claim: on procedural images, without any download, a tiny Faster R-CNN learns on one CPU core, rigid or with
# deformable kernels.
# Check: dk-bench train configs/det/tiny_procedural.py model.backbone.model_name=test_resnetdw_dk
_base_ = ["_base_/tiny.py", "_base_/data_procedural.py"]
