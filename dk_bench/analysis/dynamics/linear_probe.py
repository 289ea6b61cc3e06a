"""Linear probes: how well a linear function of some features predicts what is known of an object.

The same for all features: standardised, five folds with all objects of an image in one of them, predictions on what
was held out. Numbers are ridge regressions whose strength is chosen inside the training folds; their R2 is 0 where the
features tell no more than the mean, and below where they tell less. Classes are a logistic regression.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
STRENGTHS = np.logspace(-2, 5, 15)  # of ridge regression, for standardised features
RESAMPLES = 1000
CLASS = "class"


class Score(NamedTuple):
    """Accuracy in percent for a class, R2 for a number; the 95 % interval is by a bootstrap over images."""

    value: float
    low: float
    high: float


def targets_of(label: np.ndarray, scale: np.ndarray, pose: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tells what probes predict, by name: class, log scale, and sine and cosine of the rotation and bend where known.
    What is the same for all objects is left out. Raises ValueError where that is everything."""
    targets = {CLASS: label, "log scale": np.log(scale)}
    if "rotation" in pose:
        targets |= {"sin rotation": np.sin(pose["rotation"]), "cos rotation": np.cos(pose["rotation"])}
    if "bend" in pose:
        targets["bend"] = pose["bend"]
    differing = {name: target for name, target in targets.items() if np.ptp(target) > 0}
    if not differing:
        raise ValueError("expected objects of several classes or scales, these are all alike")
    return differing


def probe(
    features: np.ndarray, targets: Mapping[str, np.ndarray], groups: np.ndarray, *, dims: int | None = None
) -> dict[str, Score]:
    """Scores linear probes of features (M, D), one a target (M,): integers are classes, floats are numbers.

    ``groups`` (M,) says which image an object is on. With ``dims`` the probes see that many principal components, so
    that features of different sizes can be compared. Raises ValueError for fewer images than folds, and for folds in
    which there is but one class.
    """
    if (images := len(np.unique(groups))) < FOLDS:
        raise ValueError(f"expected objects on at least {FOLDS} images, got {images}")
    folds = list(GroupKFold(FOLDS, shuffle=True, random_state=0).split(features, groups=groups))
    before = [StandardScaler()] + ([PCA(min(dims, len(folds[-1][0])), random_state=0)] if dims else [])
    scores = {}
    for name, target in targets.items():
        if np.issubdtype(target.dtype, np.integer):
            if any(len(np.unique(target[train])) < 2 for train, _ in folds):
                raise ValueError(f"{name}: expected at least two classes among the objects of every fold")
            model = make_pipeline(*before, LogisticRegression(max_iter=500, tol=1e-3))
            wrong = _predicted(model, features, target, folds) != target
            scores[name] = _score(wrong, np.ones(len(target)), groups, 100.0)
    if numbers := {name: target for name, target in targets.items() if name not in scores}:
        known = np.stack(list(numbers.values()), axis=1)
        model = make_pipeline(*before, RidgeCV(STRENGTHS, alpha_per_target=True))
        errors = np.square(_predicted(model, features, known, folds).reshape(known.shape) - known)
        spreads = np.square(known - known.mean(0))
        scores |= {name: _score(errors[:, i], spreads[:, i], groups, 1.0) for i, name in enumerate(numbers)}
    return {name: scores[name] for name in targets}


def _predicted(model: Pipeline, features: np.ndarray, target: np.ndarray, folds: list) -> np.ndarray:
    """Returns each object's prediction by a model fitted to the other folds."""
    with np.errstate(invalid="ignore"):  # principal components of what does not vary
        return cross_val_predict(model, features, target, cv=folds)


def _score(errors: np.ndarray, spreads: np.ndarray, groups: np.ndarray, unit: float) -> Score:
    """Returns one minus the errors' sum over the spreads', of all images and of resampled ones."""
    _, of_image = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(of_image, each) for each in (errors, spreads)])  # (2, images)
    error, spread = sums @ _resamples(sums.shape[1])
    low, high = np.quantile(1 - error / spread, [0.025, 0.975])
    return Score(*(float(unit * value) for value in (1 - errors.sum() / spreads.sum(), low, high)))


@lru_cache(1)
def _resamples(images: int) -> np.ndarray:
    """Returns how often each image is drawn, (images, RESAMPLES)."""
    rng = np.random.default_rng(0)
    drawn = (np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(RESAMPLES))
    return np.stack(list(drawn), axis=1).astype(float)
