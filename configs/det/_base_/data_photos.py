# 394 + 100 photographs of four classes in data/photos_det, in COCO's format: annotations/{train,val}.json, images/.
_base_ = "data_procedural.py"
data_name = "photos_det"
data_root = "data/photos_det"
_classes = ("apple", "banana", "orange", "raccoon")
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CocoDataset",
        data_root=data_root,
        ann_file="annotations/train.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=_classes),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline={{_base_.train_pipeline}},
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CocoDataset",
        data_root=data_root,
        ann_file="annotations/val.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=_classes),
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "/annotations/val.json")
test_evaluator = val_evaluator
