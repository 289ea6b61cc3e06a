"""A tiny Faster R-CNN as an mmengine configuration: small images, few channels."""

# ruff: noqa: F821 - the test puts DATA, a folder, in front
default_scope = "mmdet"
classes = ("disc", "box", "bar")
model = dict(
    type="FasterRCNN",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[50.0] * 3, std=[50.0] * 3, pad_size_divisor=32),
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=1,
        norm_eval=True,
        style="pytorch",
    ),
    neck=dict(type="FPN", in_channels=[8, 16, 32], out_channels=16, num_outs=4),
    rpn_head=dict(
        type="RPNHead",
        in_channels=16,
        feat_channels=16,
        anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=16,
            featmap_strides=[4, 8, 16],
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=16,
            fc_out_channels=32,
            roi_feat_size=7,
            num_classes=3,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type="CrossEntropyLoss"),
            loss_bbox=dict(type="L1Loss"),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=100, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.25),
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.01, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(96, 64), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 64), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
_images = dict(type="CocoDataset", data_root=DATA, metainfo=dict(classes=classes))
_train = dict(ann_file="train.json", data_prefix=dict(img="train/"), filter_cfg=dict(filter_empty_gt=True, min_size=32))
_val = dict(ann_file="val.json", data_prefix=dict(img="val/"), test_mode=True)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(**_images, **_train, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**_images, **_val, pipeline=test_pipeline),
)
val_evaluator = dict(type="CocoMetric", ann_file=DATA + "/val.json", metric="bbox")
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)
val_cfg = dict(type="ValLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type="MultiStepLR", by_epoch=True, milestones=[2, 3], gamma=0.1),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.5)}, norm_decay_mult=0.0),
    clip_grad=dict(max_norm=3, norm_type=2),
)
default_hooks = dict(logger=dict(type="LoggerHook", interval=50))
env_cfg = dict(mp_cfg=dict(opencv_num_threads=0))
wandb = dict(mode="disabled")
trainer = dict(accelerator="cpu")
