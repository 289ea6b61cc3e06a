# Claim: on 394 photographs of fruit and raccoons a tiny Faster R-CNN learns from random weights on one CPU core, rigid
# or with deformable kernels: AP50 well above zero.
# Check: dk-bench train configs/det/tiny_photos.py model.backbone.model_name=test_resnetdw_dk
_base_ = ["_base_/tiny.py", "_base_/data_photos.py"]
model = dict(roi_head=dict(bbox_head=dict(num_classes=4)))
