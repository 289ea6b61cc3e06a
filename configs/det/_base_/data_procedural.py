# Procedural images in COCO's format, written to data/procedural_det when they are first asked for.
data_name = "procedural_det"
data_root = "data/procedural_det"
scenes = dict(train_images=400, val_images=100, size=256, seed=0)
# Steps of the pipelines, by names, for files that take other ones between them.
load = dict(type="LoadImageFromFile")
boxes = dict(type="LoadAnnotations", with_bbox=True)
flip = dict(type="RandomFlip", prob=0.5)
pack = dict(type="PackDetInputs")
pack_for_scores = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
_resize = dict(type="Resize", scale=(256, 256), keep_ratio=True)
train_pipeline = [load, boxes, _resize, flip, pack]
test_pipeline = [load, _resize, boxes, pack_for_scores]  # boxes last: in the original image's coordinates
_loader = dict(batch_size=4, num_workers=1, persistent_workers=True)
_images = dict(type="dk_bench.ProceduralCoco", data_root=data_root, scenes=scenes)
_used = dict(filter_empty_gt=True, min_size=32)
train_dataloader = dict(
    **_loader,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(**_images, split="train", filter_cfg=_used, pipeline=train_pipeline),
)
val_dataloader = dict(
    **_loader,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**_images, split="val", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file=data_root + "/annotations/val.json", metric="bbox", format_only=False)
test_evaluator = val_evaluator
