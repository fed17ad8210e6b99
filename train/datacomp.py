"""DataComp's evaluation (Gadre et al., 2023): which tasks there are, the metric that counts in each, and the averages over groups of them.

Its folders are called `wds_{task}_test`, with `-` for `/`; CLIP_benchmark's own, on the Hugging Face Hub, lack the `_test`. Three come as sets of the
Hub, which `datasets` keeps in folders called `nlphuji___{set}`. Averages are given where every task of the group was evaluated; otherwise
that of those that were goes by another name, and the others are listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ACCURACY = "acc1"
_PREFIX, _SUFFIX, _HUB_PREFIX = "wds_", "_test", "nlphuji___"
_RECALL = "mean_per_class_recall"
_RETRIEVAL = "mean_recall@1"


@dataclass(frozen=True)
class DataCompTask:
    """A task: its name in DataComp's reports, the middle of its folder's name, its metric and what else its tars hold."""

    name: str
    folders: tuple[str, ...]
    metric: str = ACCURACY  # of the names that `evaluate` gives; "": not part of the average
    metadata: tuple[str, ...] = ()  # the columns of its KEY.npy members
    group: str = ""  # the one that metrics are split by
    is_shift: bool = False  # of ImageNet
    is_vtab: bool = False
    is_retrieval: bool = False
    hub: str = ""  # the set of the Hub, in the namespace nlphuji


def _vtab(name: str, folder: str, metric: str = ACCURACY) -> DataCompTask:
    return DataCompTask(name, (folder, f"vtab-{folder}"), metric, is_vtab=True)


def _shift(name: str, folder: str) -> DataCompTask:
    return DataCompTask(name, (folder,), is_shift=True)


_CAMERA = ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y")
_FACES = ("age", "gender", "race", "race_binary")

TASKS: tuple[DataCompTask, ...] = (
    DataCompTask("ImageNet 1k", ("imagenet1k",)),
    _shift("ImageNet Sketch", "imagenet_sketch"),
    _shift("ImageNet v2", "imagenetv2"),
    _shift("ImageNet-A", "imagenet-a"),
    _shift("ImageNet-O", "imagenet-o"),
    _shift("ImageNet-R", "imagenet-r"),
    _shift("ObjectNet", "objectnet"),
    _vtab("Caltech-101", "caltech101", _RECALL),
    _vtab("CIFAR-100", "cifar100"),
    _vtab("CLEVR Counts", "clevr_count_all"),
    _vtab("CLEVR Distance", "clevr_closest_object_distance"),
    _vtab("Describable Textures", "dtd"),
    _vtab("EuroSAT", "eurosat"),
    _vtab("KITTI Vehicle Distance", "kitti_closest_vehicle_distance"),
    _vtab("Oxford Flowers-102", "flowers", _RECALL),
    _vtab("Oxford-IIIT Pet", "pets", _RECALL),
    _vtab("PatchCamelyon", "pcam"),
    _vtab("RESISC45", "resisc45"),
    DataCompTask("SUN397", ("sun397", "vtab-sun397"), is_vtab=True),
    _vtab("SVHN", "svhn"),
    DataCompTask("CIFAR-10", ("cifar10",)),
    DataCompTask("Country211", ("country211",)),
    DataCompTask("FGVC Aircraft", ("fgvc_aircraft",), _RECALL),
    DataCompTask("Food-101", ("food101",)),
    DataCompTask("GTSRB", ("gtsrb",)),
    DataCompTask("MNIST", ("mnist",)),
    DataCompTask("Pascal VOC 2007", ("voc2007",)),
    DataCompTask("Rendered SST2", ("renderedsst2",)),
    DataCompTask("Stanford Cars", ("cars",)),
    DataCompTask("STL-10", ("stl10",)),
    DataCompTask(
        "Flickr",
        ("flickr30k", "retrieval-flickr30k", "retrieval-flickr_1k_test_image_text_retrieval"),
        _RETRIEVAL,
        is_retrieval=True,
        hub="flickr_1k_test_image_text_retrieval",
    ),
    DataCompTask(
        "MSCOCO",
        ("mscoco_captions", "retrieval-mscoco", "retrieval-mscoco_2014_5k_test_image_text_retrieval"),
        _RETRIEVAL,
        is_retrieval=True,
        hub="mscoco_2014_5k_test_image_text_retrieval",
    ),
    DataCompTask("WinoGAViL", ("winogavil", "misc-winogavil"), "jaccard_10_12", is_retrieval=True, hub="winogavil"),
    DataCompTask("iWildCam", ("wilds-iwildcam",), "macro_f1", _CAMERA),
    DataCompTask("Camelyon17", ("wilds-camelyon17",), ACCURACY, ("hospital", "slide", "y")),
    DataCompTask("FMoW", ("wilds-fmow",), "worst_region_acc1", ("region", "year", "y"), "region"),
    DataCompTask(
        "Dollar Street",
        ("dollar_street", "fairness-dollar_street"),
        "worst_income_ds_acc5",
        ("income_ds", "income_meta", "region"),
        "income_ds",
    ),
    DataCompTask("GeoDE", ("geode", "fairness-geode"), "worst_region_acc1", ("region", "country"), "region"),
    DataCompTask("FairFace", ("fairface", "fairness-fairface"), "", _FACES),
    DataCompTask("UTKFace", ("utkface", "fairness-utkface"), "", _FACES),
)
SCORED = tuple(task for task in TASKS if task.metric)


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """The plain mean of the main metrics of a group's tasks that were evaluated, and the tasks that were not."""

    mean: float
    num_tasks: int
    missing: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """DataComp's view of an evaluation: the metric that counts of each task, and the groups of which any task was evaluated."""

    scores: Mapping[str, float]
    groups: Mapping[str, GroupScore]


def find_task(folder: str) -> DataCompTask | None:
    """Return the task of a folder called `wds_{task}_test`, `wds_{task}` or `nlphuji___{set}`, or None where it is none of DataComp's."""
    if folder.startswith(_HUB_PREFIX):
        name = folder.removeprefix(_HUB_PREFIX)
        return next((task for task in TASKS if task.hub and name == task.hub), None)
    if not folder.startswith(_PREFIX):
        return None
    middle = folder.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return next((task for task in TASKS if middle in task.folders), None)


def _rank(folder: str) -> int:
    """Return how near a folder's name is to what DataComp itself reads, of several folders of one task; the lowest counts."""
    return (folder.startswith(_HUB_PREFIX), folder.endswith(_SUFFIX), True).index(True)


def summarise(results: Mapping[str, Mapping[str, float]]) -> Summary | None:
    """Return the scores of the evaluated DataComp tasks (`results` by folder name) and the means, or None where there are none.

    Where several folders are one task, that which DataComp reads counts: the Hub's set, then `wds_{task}_test`, then `wds_{task}`.
    """
    found: dict[str, float] = {}
    named = [(folder.rstrip("/").rpartition("/")[2], metrics) for folder, metrics in results.items()]
    for folder, metrics in sorted(named, key=lambda entry: _rank(entry[0])):
        task = find_task(folder)
        if task is not None and task.metric in metrics:
            found.setdefault(task.name, metrics[task.metric])
    scores = {task.name: found[task.name] for task in SCORED if task.name in found}
    if not scores:
        return None
    members = {
        "ImageNet dist. shifts": [task.name for task in SCORED if task.is_shift],
        "VTAB": [task.name for task in SCORED if task.is_vtab],
        "Retrieval": [task.name for task in SCORED if task.is_retrieval],
        "Average": [task.name for task in SCORED],
    }
    groups = {}
    for name, tasks in members.items():
        own = [scores[task] for task in tasks if task in scores]
        if own:
            groups[name] = GroupScore(
                mean=sum(own) / len(own),
                num_tasks=len(tasks),
                missing=tuple(task for task in tasks if task not in scores),
            )
    return Summary(scores=scores, groups=groups)
