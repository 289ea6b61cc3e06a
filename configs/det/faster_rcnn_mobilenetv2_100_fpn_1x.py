# Claim: 31.3 AP on COCO test-dev in the paper (table 3: MobileNet-V2, 3x3 rigid).
# Not yet run with this code.
# Check: dk-bench train configs/det/faster_rcnn_mobilenetv2_100_fpn_1x.py model.backbone.checkpoint=CKPT
# The other rows of tables 3 and 4 on this backbone are this file with another model.backbone.model_name, under mmdet's
# runner after --cfg-options: sweeps/coco_*.yaml.
_base_ = "faster_rcnn_resnet50dw_fpn_1x.py"
model = dict(backbone=dict(model_name="mobilenetv2_100"), neck=dict(in_channels=[24, 32, 96, 320]))
offset_lr = dict.fromkeys(("kernel_offset", "data_offset", "data_mask"), dict(lr_mult=0.1))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=offset_lr))
