"""mmengine registries of scope ``dk_bench``: a configuration names what is in them as ``type='dk_bench.NAME'``.

mmengine imports this module by itself when it meets the scope, and the locations when it first looks a name up. From
then on ``torch.load`` reads what mmengine's runner saved, and pipelines of mmdet open images as all else here does, see
`dk_bench.detection.image_loading`.
Raises UserError, on import, where the mm packages are absent or of the wrong version.
"""

import dk_bench.detection  # noqa: F401  (first: it says what to install, where mmengine's absence would not)

from mmengine.registry import DATASETS as ROOT_DATASETS  # isort: skip
from mmengine.registry import MODELS as ROOT_MODELS  # isort: skip
from mmengine.registry import Registry  # isort: skip

from dk_bench.detection.mmengine_files import allow_what_mmengine_writes  # isort: skip

allow_what_mmengine_writes()  # here, as a configuration that names one of ours imports this before weights are read

DATASETS = Registry("dataset", parent=ROOT_DATASETS, scope="dk_bench", locations=["dk_bench.detection.scene_files"])
MODELS = Registry(
    "model",
    parent=ROOT_MODELS,
    scope="dk_bench",
    locations=["dk_bench.detection.backbone", "dk_bench.detection.roi_extractor"],
)

import dk_bench.detection.image_loading  # noqa: E402, F401  (puts the transform that opens images into mmdet's registry)
