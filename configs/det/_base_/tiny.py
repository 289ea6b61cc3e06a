# A detector for a laptop's core: the tiny ResNet-DW, few channels, few proposals. It starts from random weights, so
# nothing is frozen and batch normalisation keeps statistics.
_base_ = "faster_rcnn_fpn.py"
model = dict(
    backbone=dict(model_name="test_resnetdw", frozen_stages=-1, norm_eval=False),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),  # 16 to 256 pixels
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10)
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
offset_lr = dict.fromkeys(("kernel_offset", "data_offset", "data_mask"), dict(lr_mult=0.1))
optim_wrapper = dict(
    optimizer=dict(lr=0.02), paramwise_cfg=dict(custom_keys=offset_lr), clip_grad=dict(max_norm=10, norm_type=2)
)
train_cfg = dict(max_epochs=12, val_interval=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
