# Claim: 36.3 AP on COCO test-dev in the paper (table 4: ResNet-50-DW, with SCC, 3x3 rigid).
# Not yet run with this code.
# Check: dk-bench train configs/det/faster_rcnn_resnet50dw_scc_fpn_1x.py model.backbone.checkpoint=CKPT
_base_ = "faster_rcnn_resnet50dw_fpn_1x.py"
model = dict(backbone=dict(model_name="resnet50dw_scc"))
