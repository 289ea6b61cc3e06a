# Claim: 32.5 AP on COCO test-dev in the paper (table 3: MobileNet-V2, 3x3 global 4x4).
# Not yet run with this code.
# Check: dk-bench train configs/det/faster_rcnn_mobilenetv2_100_gdk_fpn_1x.py model.backbone.checkpoint=CKPT
_base_ = "faster_rcnn_mobilenetv2_100_fpn_1x.py"
model = dict(backbone=dict(model_name="mobilenetv2_100_gdk"))
