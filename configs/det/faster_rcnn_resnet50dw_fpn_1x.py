# Claim: 36.6 AP on COCO test-dev in the paper (table 3: ResNet-50-DW, 3x3 rigid).
# Not yet run with this code.
# Check: dk-bench train configs/det/faster_rcnn_resnet50dw_fpn_1x.py model.backbone.checkpoint=CKPT
# The other rows of tables 3 and 4 on this backbone are this file with another model.backbone.model_name, under mmdet's
# runner after --cfg-options: sweeps/coco_*.yaml.
# CKPT is last.ckpt of the same model's run on ImageNet, or of its rigid base's; configs/imagenet trains them. The
# schedule is for 16 images a step, two on each of eight GPUs, and 12 epochs. mmdet's own runner takes this file too.
_base_ = ["_base_/faster_rcnn_fpn.py", "_base_/data_coco.py"]
