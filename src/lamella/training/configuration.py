"""What a training is told: documents, every field of which is checked.

A configuration is composed of YAML pieces by :mod:`lamella.training.compose` and validated here:
unknown keys are refused, each with the nearest valid one. It is written into the run folder as it
was resolved, so that a training can be repeated from that folder alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lamella.wire.card import NormalisationDoc
from lamella.wire.document import Document, JsonValue
from lamella.wire.request import SpacingDoc

__all__ = [
    "AugmentationConfig",
    "CellmapConfig",
    "ClassConfig",
    "DataConfig",
    "LossConfig",
    "LossTermConfig",
    "MixtureConfig",
    "ModelConfig",
    "NetworkConfig",
    "OptimiserConfig",
    "PairsConfig",
    "ScheduleConfig",
    "SimulationConfig",
    "SplitConfig",
    "TaskConfig",
    "TrainConfig",
    "TrainerConfig",
    "UnsureConfig",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ClassConfig(Document):
    """A class that is learnt; background needs none."""

    name: str
    values: tuple[int, ...] = ()
    """Values of it in the label files; empty: its place in the list, counted from 1."""
    color: tuple[int, int, int] | None = None


class TaskConfig(Document):
    """What the network is to give for every voxel.

    * ``semantic``: one class of several (softmax; background is output 0);
    * ``multilabel``: every class for itself (sigmoid; classes may overlap and be unknown);
    * ``boundary``, ``distance``, ``affinities``, ``flows``: what single objects are made of by the
      decoder of the same name in :class:`lamella.wire.card.DecoderDoc`.
    """

    kind: Literal["semantic", "multilabel", "boundary", "distance", "affinities", "flows"]
    classes: tuple[ClassConfig, ...]
    """Documents, or just names."""
    ignore_values: tuple[int, ...] = ()
    """Values in the label files of which nothing is known."""
    boundary_width: Annotated[float, Field(gt=0)] = 1.5
    """Half width of a boundary between objects, in voxels of the finest axis (``boundary``)."""
    offsets: tuple[tuple[int, ...], ...] = ()
    """Of affinities, in voxels; empty: the direct neighbours and some longer ones."""
    decoder: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of the decoder that go into the model's card."""

    @field_validator("classes", mode="before")
    @classmethod
    def _named(cls, classes: Any) -> Any:
        if not isinstance(classes, list | tuple):
            return classes
        return [{"name": item} if isinstance(item, str) else item for item in classes]


class SplitConfig(Document):
    """Which specimens are learnt from, and which only judge.

    Names are patterns as in a shell (``sub-rat3*``), matched against specimens, and against the
    paths of image files (below the root, or their last part); for data without specimens, each
    file is one.
    """

    train: tuple[str, ...] = ()
    """Empty: everything that is neither validation nor test."""
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation_fraction: Fraction = 0.2
    """Share of specimens, drawn by ``seed``, where ``validation`` is empty."""
    test_fraction: Fraction = 0.0
    """Share of specimens, drawn by ``seed``, where ``test`` is empty."""
    by: Literal["specimen", "file", "part"] = "specimen"
    """``file`` lets slices of one specimen stand on both sides, ``part`` cuts each image along its
    longest axis (train, validation, test in this order); both are reported as leakage."""
    seed: int = 0


class UnsureConfig(Document):
    """A border between two classes that nothing is learnt of, nor judged by."""

    between: tuple[str, str]
    """Names of the classes; ``background`` is one."""
    width: Positive = 2.0
    """Voxels on either side that are left out."""


class PairsConfig(Document):
    """Images and labels in files of any format that Lamella reads."""

    kind: Literal["pairs"] = "pairs"
    root: str = ""
    """Folder that relative patterns start from."""
    images: str = "images/**/*"
    """Pattern of the image files, or one file. ``**`` stands for any folders, a slash at the end
    for folders of slices, and ``FILE::NAME`` for a data set inside an HDF5 or OME-Zarr file."""
    labels: str | dict[str, str] = "labels/**/*"
    """Pattern of the label files; pairs are found by the part that the names have in common. Or a
    pattern for each class by name: masks of one class, grey edges cut at half."""
    masks: str = ""
    """Pattern of files that are not 0 where labels are known; empty: everywhere."""
    index: str = ""
    """A document written by ``lamella dataset index`` instead of patterns."""
    specimen: str = ""
    """Regular expression searched in the path below the root; what it (or its first group) finds is
    the specimen. Empty: the folder of the file, or the file where all lie in one folder."""
    threshold: float | None = None
    """Labels are intensities, the class is above it (one class)."""
    colors: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    """Labels are pictures: colour of each class by name; ``__ignore__`` is unknown."""
    other_values: Literal["refuse", "background", "ignore"] = "refuse"
    """What label values and colours that no class names stand for."""
    unsure: UnsureConfig | None = None
    """A border that was drawn unlike that of other data; left out of training and scores here."""
    channels: tuple[int, ...] = ()
    """Channels of the images that are used; empty: all."""
    spacing: SpacingDoc | None = None
    """Instead of what the files say; training is at native voxels either way."""
    split: SplitConfig = SplitConfig()
    foreground_fraction: Fraction = 0.5
    """Share of patches that are centred on a voxel of a class, classes in turn."""
    description: str = ""
    licence: str = ""


class CellmapConfig(Document):
    """Crops of CellMap challenge data."""

    kind: Literal["cellmap"] = "cellmap"
    root: str
    """Folder or address with the data sets."""
    spacing: tuple[Positive, Positive, Positive] = (8.0, 8.0, 8.0)
    """Voxels that the network sees, nm."""
    data_sets: tuple[str, ...] = ()
    """Patterns of data sets; empty: all."""
    crops: tuple[str, ...] = ()
    """Patterns of crops; empty: all."""
    instances: str = ""
    """Class whose ids are learnt, for the tasks that make objects."""
    split: SplitConfig = SplitConfig()
    """Specimens are data sets; ``by: file`` splits by crops."""
    class_balance: Fraction = 0.75
    """0: patches are drawn by the crops' volumes; 1: every class equally often."""
    context_nm: Annotated[float, Field(ge=0)] = 0.0
    """Raw beyond the crops that patches may show, where fetched; labels are unknown there."""
    implied: Literal["none", "siblings", "all"] = "siblings"
    """What other annotations of a crop may say of a class that has none there: nothing, all that
    follows where a class was annotated that shares a group with it, or all that follows."""
    description: str = "CellMap challenge data"
    licence: str = ""


class SimulationConfig(Document):
    """Samples of :mod:`lamella.simulation`, whose labels are known exactly."""

    kind: Literal["simulation"] = "simulation"
    sample: Literal["tomogram", "nuclei"]
    n_samples: Count = 120
    """Different ones that are trained on; each data worker keeps its own in memory."""
    n_validation: Annotated[int, Field(ge=0)] = 4
    n_test: Annotated[int, Field(ge=0)] = 4
    shape: tuple[Count, ...] = ()
    """Voxels of a sample; empty: 112 along every axis of volumes, 256 of images."""
    snr: tuple[Positive, Positive] = (0.05, 0.6)
    """Of tomograms: range of the signal-to-noise ratios, variance over variance."""
    coarse_fraction: Fraction = 0.0
    """Of tomograms: share of patches averaged over 2 x 2 x 2 voxels, as coarse previews are."""
    seed: Annotated[int, Field(ge=0)] = 1


class MixtureConfig(Document):
    """Several data sets, drawn from by weight."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[PairsConfig | CellmapConfig | SimulationConfig, ...]
    weights: tuple[Positive, ...] = ()
    """One a part; empty: all equal."""

    @model_validator(mode="after")
    def _consistent(self) -> MixtureConfig:
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.parts)} parts, but {len(self.weights)} weights")
        return self


DataConfig = Annotated[
    PairsConfig | CellmapConfig | SimulationConfig | MixtureConfig, Field(discriminator="kind")
]


class NetworkConfig(Document):
    """A network of the registry; its channels follow from data and task."""

    id: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    pretrained: bool = False
    """Fetch the encoder's published weights (2-D encoders; needs a network once)."""
    start: str = ""
    """Model (id or folder) whose weights training starts from."""


class LossTermConfig(Document):
    """One loss of a weighted sum; see :func:`lamella.training.losses.build_loss`."""

    name: str
    weight: Annotated[float, Field(ge=0)] = 1.0
    channels: tuple[int, ...] | None = None
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class LossConfig(Document):
    """Weighted sum of losses; empty terms: those that suit the task."""

    terms: tuple[LossTermConfig, ...] = ()
    deep_supervision: bool = False
    """Coarser outputs of the network learn too (dynunet, MedNeXt)."""
    class_weights: tuple[Positive, ...] = ()
    """Of cross-entropy, background first; empty: all one."""


class OptimiserConfig(Document):
    """How weights move."""

    kind: Literal["adamw", "sgd", "radam"] = "adamw"
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Fraction = 0.9
    """Of ``sgd`` (Nesterov)."""
    max_gradient_norm: Annotated[float, Field(ge=0)] = 1.0
    """0: gradients are not clipped."""


class ScheduleConfig(Document):
    """How the learning rate changes over the steps."""

    kind: Literal["constant", "cosine", "poly"] = "cosine"
    warmup_fraction: Fraction = 0.05
    power: Positive = 0.9
    """Of ``poly``."""
    final_fraction: Fraction = 0.0
    """Of the peak, reached at the last step."""


class AugmentationConfig(Document):
    """Fields of :class:`lamella.training.augment.AugmentOptions`, where they differ from it."""

    enabled: bool = True
    options: dict[str, JsonValue] = Field(default_factory=dict)


class TrainerConfig(Document):
    """The loop around it all."""

    steps: Count = 2000
    batch_size: Count = 4
    accumulate: Count = 1
    """Batches per optimiser step."""
    patch: tuple[Count, ...]
    validate_every: Count = 200
    """Steps; checkpoints are written at the same time."""
    patience: int = 0
    """Stop after so many validations without a better score; 0: never."""
    keep_best: Count = 1
    """Checkpoints with the best scores that are kept, beside the last one."""
    minutes: float | None = None
    """Stop in time to end after so many minutes."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Of the moving average of weights, which is what is validated and kept; 0: none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    devices: int | str = "auto"
    """Number of GPUs (DDP where more than one), ``auto`` or ``cpu``."""
    nodes: Count = 1
    workers: Annotated[int, Field(ge=0)] = 2
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of PyTorch on the CPU; 0: as PyTorch chooses."""
    deterministic: bool = True
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)


class ModelConfig(Document):
    """What the card of the trained model says beside what follows from the training."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str = ""
    description: str = ""
    version: str = "1"
    licence: str = "unknown"
    citation: str = ""
    tile: tuple[Count, ...] = ()
    """Of inference; empty: the patch."""
    overlap_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5
    tta: bool = False
    """Inference averages over mirrored copies unless told not to; scores here never do."""
    use_native_spacing: bool = False
    """The card names no spacing: the model takes voxels as they come."""
    half: bool = True
    """Weights are stored in half precision (and judged so)."""
    example: bool = True
    """A small crop of a validation image and its labels are put into the model folder."""


class TrainConfig(Document):
    """Everything a training depends on."""

    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    network: NetworkConfig
    normalisation: NormalisationDoc = NormalisationDoc()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    trainer: TrainerConfig
    seed: int = 0
