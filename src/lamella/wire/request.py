"""What to segment, with which model, with which options: the one document every door takes."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lamella.volume.spacing import Spacing, Unit
from lamella.wire.document import Document, JsonValue

__all__ = ["InputDoc", "LinkingDoc", "RestoreDoc", "SegmentRequest", "SizeDoc", "SpacingDoc"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SpacingDoc(Document):
    """Distance between voxel centres per spatial axis, (z, y, x) or (y, x)."""

    values: tuple[Positive, ...]
    unit: Unit

    @field_validator("values")
    @classmethod
    def _two_or_three(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) not in (2, 3):
            raise ValueError(f"expected 2 or 3 values, got {len(values)}")
        return values

    @classmethod
    def of(cls, spacing: Spacing) -> "SpacingDoc":
        """The document of a spacing."""
        return cls(values=spacing.values, unit=spacing.unit)

    def to_spacing(self) -> Spacing:
        """The value object."""
        return Spacing(self.values, self.unit)


class SizeDoc(Document):
    """An amount of space: voxels, or a volume in unit³ (an area in 2-D)."""

    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    unit: Unit = "voxel"


class InputDoc(Document):
    """Which image: a path and, where it holds several, which part of it."""

    path: str
    dataset: str | None = None
    series: str | None = None
    channel: int | None = None
    time: int | None = None
    level: int = 0
    axes: str | None = None
    spacing: SpacingDoc | None = None
    """Replaces the header's spacing."""
    resample_irregular: bool = False
    """Resample gantry tilt, uneven or missing slices instead of refusing them."""


class LinkingDoc(Document):
    """How objects of single slices become objects of the volume."""

    min_overlap_ratio: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Smallest overlap (of union, or of the smaller one) of two slices of an object."""
    max_distance_z: Annotated[int, Field(ge=1, le=16)] = 2
    """Slices that may lie between two parts of an object, the next one counted as 1."""
    max_centroid_distance: SizeDoc | None = None
    """How far the centre may move from slice to slice, a length; decided from the objects' size."""


class RestoreDoc(Document):
    """What is done to a degraded image before it is segmented; it is measured as it came."""

    mode: Literal["none", "auto", "denoise", "deblur"] = "auto"
    method: Literal["auto", "blind_spot", "non_local_means", "richardson_lucy", "cellpose3"] = (
        "auto"
    )
    strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    psf_sigma: SizeDoc | None = None
    """Width (standard deviation) of a Gaussian point spread function, a length."""
    psf: str | None = None
    """Path of a measured point spread function."""
    model: str | None = None
    """Name of a restoration model, for methods that have several."""


class SegmentRequest(Document):
    """A segmentation, complete: the same document gives the same labels."""

    format_version: Literal[1] = 1
    input: InputDoc
    model: str
    """A model id, a model folder, or ``ENGINE:NAME`` (``classical:otsu``, ``nnunet:FOLDER``)."""
    engine: str | None = None
    """Set only to choose among engines that can run the model."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of the engine itself, checked by it."""
    tile: tuple[int, ...] | None = None
    """Tile in voxels, (z, y, x); the model's own unless given."""
    overlap_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    tta: bool | None = None
    """Average over mirrored copies (test-time augmentation).

    As the model's card says unless given; models without a card of ours are not mirrored then.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """"auto" is fp32 on CPU and mixed half precision on CUDA."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    deterministic: bool = False
    """Bit-identity on CUDA too (slower); CPU runs always are."""
    preview: bool = True
    instances: Literal[
        "auto", "none", "components", "watershed", "slices", "hybrid", "volumetric", "ortho"
    ] = "auto"
    """How single objects are told apart.

    ``auto``: as the model's card asks, objects of a 2-D model linked through a volume, connected
    components for measurements otherwise. ``none``, ``components`` and ``watershed`` are about the
    labels of classes. The others choose how objects arise in 3-D: ``slices`` (each slice on its
    own), ``hybrid`` (slices, then linked), ``volumetric`` (a 3-D network), ``ortho`` (a 2-D network
    along all three axes).
    """
    linking: LinkingDoc = LinkingDoc()
    restore: RestoreDoc | None = None
    confidence: bool = False
    """Also tell how sure the engine is of every object and class."""
    modality: Literal["auto", "CT", "MR"] = "auto"
    """What kind of medical image this is, where the file does not say."""
    seed_distance: SizeDoc | None = None
    """Watershed: smallest distance between seeds, a length in its unit."""
    min_size: SizeDoc | None = None
    """Objects smaller than this are removed."""
    fill_holes: bool = False
    keep_largest: bool = False
    seed: int = 0
