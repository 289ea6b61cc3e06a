# COCO 2017 as mmdet has it, in data/coco: annotations/, train2017/, val2017/.
_base_ = "mmdet::_base_/datasets/coco_detection.py"
data_name = "coco"
