"""Everything that can be said of a data set before it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamella.core.errors import LamellaError
from lamella.training.pairs.finding import Finding
from lamella.training.pairs.guess import guess_task
from lamella.training.pairs.index import IndexDoc, PairDoc
from lamella.training.pairs.opening import duplicates
from lamella.training.pairs.pairing import Pair, find_pairs
from lamella.training.pairs.split import SPLITS, assign_splits, groups_of, leakage
from lamella.training.pairs.survey import survey_pairs

if TYPE_CHECKING:
    from lamella.core.progress import ProgressSink
    from lamella.training.configuration import PairsConfig, TaskConfig

__all__ = ["Report", "check_pairs"]

K = TypeVar("K")
_RARE = 1e-4
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        config: how the files were found and understood.
        task: classes.
        pairs: that were found, with their splits where these are possible.
        documents: of the pairs that could be read.
        findings: the worst first.
    """

    config: PairsConfig
    task: TaskConfig
    pairs: tuple[Pair, ...]
    documents: tuple[PairDoc, ...]
    findings: tuple[Finding, ...]

    @property
    def is_trainable(self) -> bool:
        """Whether nothing prevents training."""
        return not any(found.severity == "error" for found in self.findings)

    @property
    def classes(self) -> list[dict[str, object]]:
        """Voxels and images of each class, in all and by split."""
        names = list(
            dict.fromkeys(name for document in self.documents for name in document.class_counts)
        )
        total = sum(document.n_valid for document in self.documents)
        rows: list[dict[str, object]] = []
        for name in names:
            counts = [document.class_counts.get(name, 0) for document in self.documents]
            by_split = {
                split: sum(
                    count
                    for count, document in zip(counts, self.documents, strict=True)
                    if document.split == split
                )
                for split in SPLITS
            }
            rows.append(
                {
                    "name": name,
                    "n_voxels": sum(counts),
                    "fraction": sum(counts) / total if total else 0.0,
                    "n_images": sum(count > 0 for count in counts),
                    "by_split": by_split,
                }
            )
        return rows

    def to_index(self, folder: Path) -> IndexDoc:
        """The document of the data set, to lie in a folder."""
        root = Path(self.config.root).resolve()
        try:
            below = root.relative_to(folder.resolve()).as_posix()
        except ValueError:
            below = str(root)
        kept = self.config.model_dump(
            mode="json", exclude_defaults=True, exclude={"kind", "root", "index", "split"}
        )
        return IndexDoc(
            root=below,
            pairs=self.documents,
            data=kept,
            classes=tuple(known.model_dump(mode="json") for known in self.task.classes),
            ignore_values=self.task.ignore_values,
            task=self.task.kind,
        )

    def as_json(self) -> dict[str, object]:
        """As plain values."""
        groups = groups_of(self.pairs)
        return {
            "root": str(self.config.root),
            "is_trainable": self.is_trainable,
            "n_pairs": len(self.pairs),
            "data": self.config.model_dump(mode="json", exclude_defaults=True),
            "task": self.task.model_dump(mode="json", exclude_defaults=True),
            "splits": {split: list(names) for split, names in groups.items()},
            "classes": self.classes,
            "pairs": [document.model_dump(mode="json") for document in self.documents],
            "findings": [found.as_json() for found in self.findings],
        }


def check_pairs(
    config: PairsConfig,
    task: TaskConfig | None = None,
    *,
    kind: str | None = None,
    sink: ProgressSink | None = None,
) -> Report:
    """Check a data set: names, sizes, values, balance, copies, splits.

    Args:
        config: where it is and what its files mean.
        task: classes; None = what the files seem to hold.
        kind: of the task, where only that is known.
        sink: progress and cancellation.

    Raises:
        MissingPathError: when a pattern finds nothing at all.
        InputError: for patterns, classes or colours that contradict each other.
    """
    findings: list[Finding] = []
    given: dict[str, str] = {}
    if config.index:
        index = IndexDoc.read(Path(config.index))
        pairs = tuple(entry.to_pair() for entry in index.pairs)
        given = {pair.image: pair.split for pair in pairs}
        if not config.root:
            root = Path(config.index).parent / index.root
            config = config.model_copy(update={"root": str(root)})
    else:
        pairs, found = find_pairs(config)
        findings += found
    if task is None:
        task, config, guessed = guess_task(config, pairs, kind=kind)
        findings += guessed
    survey = survey_pairs(config, task, pairs, sink=sink)
    findings += survey.findings
    pairs, found = _split(pairs, config, given)
    findings += found
    splits = {pair.image: pair.split for pair in pairs}
    documents = tuple(
        document.model_copy(update={"split": splits.get(document.image, "")})
        for document in survey.documents
    )
    findings += leakage(pairs, config.split) if pairs else []
    findings += duplicates(pairs, survey.hashes)
    findings += _about_images(documents)
    findings += _about_classes(documents, task)
    findings.sort(key=lambda one: _ORDER[one.severity])
    return Report(config, task, pairs, documents, tuple(findings))


def _split(
    pairs: tuple[Pair, ...], config: PairsConfig, given: dict[str, str]
) -> tuple[tuple[Pair, ...], list[Finding]]:
    says_sides = any((config.split.train, config.split.validation, config.split.test))
    if any(given.values()) and not says_sides:
        return pairs, []
    if not pairs:
        return pairs, [
            Finding("error", "no_pairs", "there is no pair of image and labels", (), "see above")
        ]
    try:
        return assign_splits([replace(p, split="") for p in pairs], config.split), []
    except LamellaError as error:
        code = "too_few_specimens" if error.message.startswith("only ") else "split"
        return pairs, [Finding("error", code, error.message, (), error.hint or "")]


def _about_images(documents: Sequence[PairDoc]) -> list[Finding]:
    """Images that do not go together."""
    found = []
    channels = _groups(documents, lambda d: d.n_channels)
    if len(channels) > 1:
        text = ", ".join(f"{len(files)} with {n}" for n, files in sorted(channels.items()))
        found.append(
            Finding(
                "error",
                "channels_differ",
                f"images differ in their channels: {text}",
                tuple(files[0] for files in channels.values()),
                "choose channels that all have (data.channels=[0]), or narrow data.images",
            )
        )
    axes = _groups(documents, lambda d: len(d.shape))
    if len(axes) > 1:
        found.append(
            Finding(
                "warning",
                "axes_differ",
                "some files are images and some are volumes; 2-D networks take the slices of both",
                tuple(files[0] for files in axes.values()),
                "keep images and volumes apart for 3-D networks",
            )
        )
    types = _groups(documents, lambda d: d.dtype)
    if len(types) > 1:
        found.append(
            Finding(
                "note",
                "dtypes_differ",
                f"intensities are stored as {', '.join(sorted(types))}",
                tuple(files[0] for files in types.values()),
                "each image is normalised by itself (unless normalisation is fixed or none)",
            )
        )
    spacings = _groups(
        [d for d in documents if d.spacing is not None],
        lambda d: d.spacing.to_spacing().to("nm").values if d.spacing is not None else (),
    )
    spread = max(
        (max(c) / min(c) for c in zip(*((s[-2:]) for s in spacings), strict=False)), default=1.0
    )
    if spread > 1.02:
        found.append(
            Finding(
                "warning",
                "spacings_differ",
                f"spacings differ by a factor of up to {spread:.3g}"
                + (": a wrong unit?" if spread >= 100 else ""),
                tuple(files[0] for files in spacings.values()),
                "voxels are taken as they come; the model is told no spacing",
            )
        )
    return found


def _about_classes(documents: Sequence[PairDoc], task: TaskConfig) -> list[Finding]:
    if not documents:
        return []
    found = []
    total = sum(document.n_valid for document in documents)
    names = list(documents[0].class_counts)
    sums = {name: sum(d.class_counts.get(name, 0) for d in documents) for name in names}
    absent = [name for name in names if not sums[name]]
    if absent and len(absent) == len(names):
        found.append(
            Finding(
                "error",
                "no_class_occurs",
                f"no image has a voxel of {', '.join(absent)}",
                (),
                "check --threshold, --class NAME=VALUES and the label files",
            )
        )
    elif absent:
        found.append(
            Finding(
                "warning",
                "class_never_occurs",
                f"no image has a voxel of {', '.join(absent)}",
                (),
                "remove it from the classes, or check the values it has in the files",
            )
        )
    for name in names:
        share = sums[name] / total if total else 0.0
        if 0 < share < _RARE:
            text = f"{name} is {share:.2g} of all voxels"
            found.append(
                Finding("note", "rare_class", text, (), "patches are drawn for it in turn")
            )
        missing = [
            split
            for split in SPLITS
            if sums[name]
            and any(d.split == split for d in documents)
            and not any(d.class_counts.get(name, 0) for d in documents if d.split == split)
        ]
        if missing:
            found.append(
                Finding(
                    "warning",
                    "class_missing_in_split",
                    f"{name} does not occur in {' and '.join(missing)}",
                    (),
                    "choose other specimens for the splits",
                )
            )
    return found


def _groups(documents: Sequence[PairDoc], key: Callable[[PairDoc], K]) -> dict[K, list[str]]:
    groups: dict[K, list[str]] = {}
    for document in documents:
        groups.setdefault(key(document), []).append(document.image)
    return groups
