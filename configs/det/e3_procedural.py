# Claim: on procedural scenes of deformable shapes a tiny Faster R-CNN with a rigid backbone learns from random weights
# in a minute or two of one core, with room above: AP50 over 40 % on 1,000 images it has not seen.
# sweeps/e3_detection.yaml runs this file for each kind of kernel.
# Check: dk-bench train configs/det/e3_procedural.py model.backbone.model_name=test_resnetdw_dk
_base_ = ["_base_/tiny.py", "_base_/data_procedural.py"]
name = "detection"
data_name = "procedural_scenes"
data_root = "data/procedural_scenes"
_scenes = dict(train_images=600, val_images=1000, size=96, seed=0, classes=2, shares=(0, 0.7, 0.3))
# Few channels and proposals; the pyramid's levels and the head's share of them are for objects of 13 to 47 pixels, and
# batch normalisation is in the pyramid too, since all weights start at random.
model = dict(
    neck=dict(out_channels=32, num_outs=4, norm_cfg=dict(type="BN")),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(scales=[2.5], strides=[4, 8, 16, 32]),  # 10 to 80 pixels
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, finest_scale=14),  # stride 8 from 28 pixels, 16 from 56
        bbox_head=dict(in_channels=32, fc_out_channels=128, num_classes=2),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)), rpn_proposal=dict(nms_pre=100, max_per_img=50), rcnn=dict(sampler=dict(num=48))
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=30)),
)
_resize = dict(type="Resize", scale=(96, 96), keep_ratio=True)
train_pipeline = [{{_base_.load}}, {{_base_.boxes}}, _resize, {{_base_.flip}}, {{_base_.pack}}]
test_pipeline = [{{_base_.load}}, _resize, {{_base_.boxes}}, {{_base_.pack_for_scores}}]
_loader = dict(num_workers=0, persistent_workers=False)  # reading a small image takes less than handing it over
_data = dict(data_root=data_root, scenes=_scenes)
train_dataloader = dict(batch_size=8, **_loader, dataset=dict(**_data, pipeline=train_pipeline))
val_dataloader = dict(batch_size=20, **_loader, dataset=dict(**_data, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "/annotations/val.json")
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.1))
train_cfg = dict(max_epochs=6, val_interval=6)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", begin=0, by_epoch=True, convert_to_iter_based=True),
]
wandb = dict(mode="disabled")
