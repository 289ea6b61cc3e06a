# Faster R-CNN with FPN and the schedule 1x are mmdet's own; ours are the backbone and the learning rate of its offsets.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]
model = dict(
    backbone=dict(
        _delete_=True,
        type="dk_bench.TimmBackbone",
        model_name="resnet50dw",
        frozen_stages=1,
        norm_eval=True,
        checkpoint=None,  # what is frozen needs it: last.ckpt of a classification run
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),  # the backbone's out_channels
)
# The offset generators' names, which no other module has.
offset_lr = dict.fromkeys(("kernel_offset", "data_offset", "data_mask"), dict(lr_mult=0.01))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=offset_lr))
