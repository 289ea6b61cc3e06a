# 394 + 100 photographs of four classes in data/photos_det, in COCO's format: annotations/{train,val}.json, images/.
_base_ = "data_procedural.py"
data_name = "photos_det"
data_root = "data/photos_det"
_photos = dict(
    type="CocoDataset",
    data_root=data_root,
    data_prefix=dict(img="images/"),
    metainfo=dict(classes=("apple", "banana", "orange", "raccoon")),
)
_train = dict(ann_file="annotations/train.json", filter_cfg=dict(filter_empty_gt=True, min_size=32))
_val = dict(ann_file="annotations/val.json", test_mode=True)
train_dataloader = dict(dataset=dict(_delete_=True, **_photos, **_train, pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(_delete_=True, **_photos, **_val, pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "/annotations/val.json")
test_evaluator = val_evaluator
