"""Detection on mmdet: a backbone of any timm model, data in COCO's format, training under Lightning.

Begin with module.py, whose losses and metrics are mmdet's; backbone.py is what mmdet configurations name.

mmengine registers the modules by itself (`dk_bench.registry`). Raises UserError, on import, that says what to install
where mmengine, mmcv or mmdet is absent or of a version that does not serve.
"""

from dk_bench.detection.requirements import require_mm

require_mm()
