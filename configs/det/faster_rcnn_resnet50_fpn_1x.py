# Claim: none of the paper's, which has no detector on ResNet-50: the base of deformable kernels on dense convolutions.
# Not yet run with this code.
# Check: dk-bench train configs/det/faster_rcnn_resnet50_fpn_1x.py model.backbone.checkpoint=CKPT
# Models with deformable kernels are this file with another model.backbone.model_name, under mmdet's runner after
# --cfg-options: sweeps/dense_coco_resnet50.yaml.
_base_ = "faster_rcnn_resnet50dw_fpn_1x.py"
model = dict(backbone=dict(model_name="resnet50"))
