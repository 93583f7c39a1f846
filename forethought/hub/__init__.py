"""Models and data sets of the Hugging Face hub as local folders.

Everything that takes a path goes through :func:`model_folder` or :func:`fetch_dataset` before it reads:
what is beyond them sees folders alone. Replicas of a run have no paths, so they never download.
"""

from forethought.hub.datasets import fetch_dataset
from forethought.hub.models import fetch_model, model_folder
from forethought.hub.snapshot import Snapshot
from forethought.hub.splits import DatasetCard, Selection
from forethought.hub_id import HubId

__all__ = [
    "DatasetCard",
    "HubId",
    "Selection",
    "Snapshot",
    "fetch_dataset",
    "fetch_model",
    "model_folder",
]
