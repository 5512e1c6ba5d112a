"""The model card: everything a model needs to run rightly and to be trusted, in ``model.json``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamella.wire.document import Document, JsonValue
from lamella.wire.request import SpacingDoc

__all__ = [
    "CalibrationDoc",
    "ClassDoc",
    "DecoderDoc",
    "MetricDoc",
    "ModelCard",
    "NetworkDoc",
    "NormalisationDoc",
    "TrainingDoc",
]


class ClassDoc(Document):
    """A class the model tells apart; value 0 is background and is listed too."""

    value: Annotated[int, Field(ge=0)]
    name: str
    color: tuple[int, int, int] | None = None


class NormalisationDoc(Document):
    """How intensities become the network's input, float32.

    * ``zscore``: (v - mean) / std of the scope;
    * ``percentile``: linear so that ``low`` and ``high`` percentiles of the scope become 0 and 1
      (clipped to 0..1 with ``clip``);
    * ``fixed``: (v - mean) / std with the numbers given (CT: Hounsfield units), after clipping to
      ``low``..``high`` where given;
    * ``none``: as they are.
    """

    kind: Literal["zscore", "percentile", "fixed", "none"] = "zscore"
    scope: Literal["volume", "slice"] = "volume"
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    clip: bool = False


class NetworkDoc(Document):
    """A network by registry id and plain arguments: never a class name or code from a file."""

    id: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    n_parameters: int | None = None


class DecoderDoc(Document):
    """How logits become labels.

    * ``argmax``: softmax classes; the output channel is the class value;
    * ``threshold``: sigmoid channels; channel i is class i + 1 where its probability exceeds
      ``threshold``, the highest where several do;
    * ``boundary_watershed``: two sigmoid channels (foreground, boundary) → instances;
    * ``distance_watershed``: foreground (sigmoid) and distance channel → instances;
    * ``affinities``: foreground and one affinity per offset (all sigmoid) → instances, by mutex
      watershed where ``offsets`` go beyond the neighbours, by watershed from seeds otherwise;
    * ``flows``: foreground (sigmoid) and one vector component per axis, stored as (v + 1) / 2,
      pointing to the middle of the object → instances, by following them.
    """

    kind: Literal[
        "argmax", "threshold", "boundary_watershed", "distance_watershed", "affinities", "flows"
    ] = "argmax"
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class TrainingDoc(Document):
    """Where the model comes from."""

    data: str
    data_licence: str
    recipe: str
    seed: int | None = None
    steps: int | None = None
    notes: str = ""


class MetricDoc(Document):
    """A score with the data it was measured on; a number without its data set says nothing."""

    name: str
    value: float
    data: str
    n: int | None = None
    conditions: dict[str, JsonValue] = Field(default_factory=dict)


class CalibrationDoc(Document):
    """Temperature that makes probabilities honest (Guo et al. 2017), and on what it was fitted."""

    temperature: Annotated[float, Field(gt=0)]
    data: str


class ModelCard(Document):
    """What a model segments and how it has to be run."""

    format_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    version: str = "1"
    title: str
    description: str
    task: Literal["semantic", "instance"]
    axes: Literal["zyx", "yx"]
    n_channels: Annotated[int, Field(ge=1)] = 1
    classes: tuple[ClassDoc, ...]
    spacing: SpacingDoc | None = None
    """Spacing the network was trained at; None: native voxels of whatever comes."""
    spacing_tolerance: Annotated[float, Field(ge=0)] = 0.1
    """Input is resampled where its spacing is off by more than this fraction."""
    normalisation: NormalisationDoc = NormalisationDoc()
    network: NetworkDoc
    n_outputs: Annotated[int, Field(ge=1)]
    decoder: DecoderDoc = DecoderDoc()
    tile: tuple[int, ...]
    overlap_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5
    divisor: tuple[int, ...] = ()
    """Every tile extent must be a multiple of this, per axis; empty = any."""
    mirror_axes: tuple[str, ...] = ()
    """Axes along which mirroring is allowed at test time; empty = all spatial axes of the card."""
    tta: bool = False
    """Average over mirrored copies (test-time augmentation) unless a request says otherwise."""
    licence: str
    citation: str = ""
    training: TrainingDoc
    metrics: tuple[MetricDoc, ...] = ()
    calibration: CalibrationDoc | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 (hex) of every other file in the folder, by name."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelCard":
        if len(self.tile) != len(self.axes):
            raise ValueError(f"tile {self.tile} does not fit axes {self.axes!r}")
        if self.divisor and len(self.divisor) != len(self.axes):
            raise ValueError(f"divisor {self.divisor} does not fit axes {self.axes!r}")
        values = [known.value for known in self.classes]
        if len(set(values)) != len(values):
            raise ValueError(f"class values repeat: {values}")
        if self.spacing is not None and len(self.spacing.values) != len(self.axes):
            raise ValueError(f"spacing {self.spacing.values} does not fit axes {self.axes!r}")
        return self
