# Claim: 38.4 AP on COCO test-dev in the paper (table 3: ResNet-50-DW, 1x1 global 2x2, 3x3 local 4x4).
# Not yet run with this code.
# Check: dk-bench train configs/det/faster_rcnn_resnet50dw_dk_pw_fpn_1x.py model.backbone.checkpoint=CKPT
_base_ = "faster_rcnn_resnet50dw_fpn_1x.py"
model = dict(backbone=dict(model_name="resnet50dw_dk_pw"))
