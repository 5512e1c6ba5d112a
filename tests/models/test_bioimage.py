"""What a BioImage.io description says is what the card says."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ModelError
from lamella.models.bioimage_cover import cover_png
from lamella.models.bioimage_tensors import (
    channel_names,
    extents_of,
    fitted,
    input_axes,
    output_axes,
    postprocessing,
    preprocessing,
)
from lamella.models.bioimage_words import citations, documentation, name_of, tags_of, version_of
from lamella.models.spdx import spdx_id
from lamella.volume.labels import LabelClass, Labels
from lamella.wire.card import (
    CalibrationDoc,
    ClassDoc,
    DecoderDoc,
    MetricDoc,
    ModelCard,
    NetworkDoc,
    NormalisationDoc,
    TrainingDoc,
)
from lamella.wire.request import SpacingDoc

_SPEC = importlib.util.spec_from_file_location(
    "exported_models_bioimage", Path(__file__).with_name("exported_models.py")
)
made = importlib.util.module_from_spec(_SPEC)
sys.modules["exported_models_bioimage"] = made
_SPEC.loader.exec_module(made)


def card_of(axes="yx", **changes):
    n = len(axes)
    return ModelCard(
        **{
            "id": "m",
            "title": "Membranes: 8 nm / été",
            "description": "d",
            "task": "semantic",
            "axes": axes,
            "classes": (ClassDoc(value=0, name="background"), ClassDoc(value=1, name="mito")),
            "network": NetworkDoc(id="compact_unet2d", arguments={}),
            "n_outputs": 2,
            "tile": (64,) * n,
            "divisor": (8,) * n,
            "licence": "MIT",
            "training": TrainingDoc(data="", data_licence="", recipe=""),
            **changes,
        }
    )


# --- licences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-nc 4.0", "CC-BY-NC-4.0"),
        ("CC0", "CC0-1.0"),
        ("Apache License 2.0", "Apache-2.0"),
        ("BSD-3-Clause", "BSD-3-Clause"),
        ("OLDAP-2.8", "OLDAP-2.8"),
    ],
)
def test_licences_become_spdx(written, known):
    assert spdx_id(written) == known


@pytest.mark.parametrize("written", ["unknown", "", "ask me", "all rights reserved"])
def test_no_licence_is_guessed(written):
    with pytest.raises(ModelError, match="no id of SPDX") as raised:
        spdx_id(written)
    assert "--licence CC-BY-4.0" in raised.value.hint


def test_licences_with_several_versions_are_asked_for():
    with pytest.raises(ModelError, match="several versions") as raised:
        spdx_id("BSD")
    assert "BSD-3-Clause" in raised.value.hint


# --- tensors ------------------------------------------------------------------------------------


@given(
    tile=st.integers(2, 12),
    overlap=st.floats(0, 0.9),
    divisor=st.sampled_from([1, 2, 8, 16, 32]),
    n=st.integers(1, 300),
)
def test_extents_fit_network_and_halo(tile, overlap, divisor, n):
    card = card_of(tile=(tile * divisor,) * 2, divisor=(divisor,) * 2, overlap_fraction=overlap)
    for smallest, step, halo in extents_of(card):
        assert smallest % divisor == 0 == step % divisor
        assert smallest - 2 * halo >= 1
    image = fitted(np.arange(n * (n + 5)).reshape(1, n, n + 5), extents_of(card))
    for size, (smallest, step, _) in zip(image.shape[1:], extents_of(card), strict=True):
        assert size >= smallest
        assert (size - smallest) % step == 0


@given(st.floats(1e-3, 1e4))
def test_scales_can_be_divided_again(scale):
    card = card_of(spacing=SpacingDoc(values=(scale, scale), unit="nm"))
    told = input_axes(card, extents_of(card))[-1]["scale"]
    assert told == pytest.approx(scale, rel=1e-6)
    n = np.arange(1, 5000)
    assert (n * told / told == n).all()


def test_axes_tell_unit_scale_and_halo():
    card = card_of("zyx", spacing=SpacingDoc(values=(8.0, 4.0, 4.0), unit="nm"))
    batch, channel, *space = input_axes(card, extents_of(card))
    assert (batch["type"], channel["channel_names"]) == ("batch", ["intensity"])
    assert [a["scale"] for a in space] == [8.0, 4.0, 4.0]
    assert {a["unit"] for a in space} == {"nanometer"}
    assert space[0]["size"] == {"min": 40, "step": 8}
    assert [a.get("halo") for a in output_axes(card, extents_of(card))[2:]] == [16] * 3
    free = card_of(overlap_fraction=0.0)
    assert "halo" not in output_axes(free, extents_of(free))[-1]
    assert "unit" not in input_axes(free, extents_of(free))[-1]


@pytest.mark.parametrize(
    ("doc", "steps"),
    [
        (NormalisationDoc(kind="zscore"), [("zero_mean_unit_variance", {"axes": ["z", "y", "x"]})]),
        (
            NormalisationDoc(kind="zscore", scope="slice"),
            [("zero_mean_unit_variance", {"axes": ["y", "x"]})],
        ),
        (
            NormalisationDoc(kind="percentile", low=2, high=98, clip=True),
            [
                (
                    "scale_range",
                    {"axes": ["z", "y", "x"], "min_percentile": 2.0, "max_percentile": 98.0},
                ),
                ("clip", {"min": 0.0, "max": 1.0}),
            ],
        ),
        (
            NormalisationDoc(kind="fixed", mean=40.0, std=400.0, low=-1000.0),
            [
                ("clip", {"min": -1000.0}),
                ("fixed_zero_mean_unit_variance", {"mean": 40.0, "std": 400.0}),
            ],
        ),
        (
            NormalisationDoc(kind="fixed", mean=0.0, std=1e-9),
            [("scale_linear", {"gain": 1e9, "offset": -0.0})],
        ),
        (NormalisationDoc(kind="none"), []),
    ],
)
def test_normalisation_becomes_operations(doc, steps):
    first, *rest = preprocessing(card_of("zyx", normalisation=doc))
    assert first == {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    assert [(step["id"], step["kwargs"]) for step in rest] == [
        (name, pytest.approx(told) if name == "scale_linear" else told) for name, told in steps
    ]


@pytest.mark.parametrize(
    ("decoder", "n", "names", "operation"),
    [
        (DecoderDoc(), 2, ["background", "mito"], "softmax"),
        (DecoderDoc(kind="threshold"), 1, ["mito"], "sigmoid"),
        (DecoderDoc(kind="boundary_watershed"), 2, ["foreground", "boundary"], "sigmoid"),
        (DecoderDoc(kind="distance_watershed"), 2, ["foreground", "distance"], None),
        (DecoderDoc(kind="flows"), 3, ["foreground", "flow y", "flow x"], None),
        (
            DecoderDoc(kind="affinities", parameters={"offsets": [[-1, 0], [0, -1]]}),
            3,
            ["foreground", "affinity -1,0", "affinity 0,-1"],
            "sigmoid",
        ),
    ],
)
def test_decoders_become_operations_and_names(decoder, n, names, operation):
    card = card_of(decoder=decoder, n_outputs=n)
    assert channel_names(card) == names
    assert [step["id"] for step in postprocessing(card)] == ([operation] if operation else [])


# --- words --------------------------------------------------------------------------------------


def test_names_hold_only_what_is_allowed():
    assert name_of(card_of()) == "Membranes 8 nm ete"
    assert name_of(card_of(title="ER")) == "ER segmentation"
    assert len(name_of(card_of(title="a" * 200))) == 64


def test_versions_have_three_numbers():
    assert version_of(card_of(version="2")) == "2.0.0"
    assert version_of(card_of(version="2.1.3")) == "2.1.3"
    assert version_of(card_of(version="spring")) is None


def test_only_works_with_a_doi_are_cited():
    card = card_of(citation="Doe (2020), doi:10.1234/abc.5; Roe, https://example.org")
    assert citations(card) == [{"text": "Doe (2020), doi:10.1234/abc.5", "doi": "10.1234/abc.5"}]


def test_documentation_says_what_matters():
    card = card_of(
        spacing=SpacingDoc(values=(4.0, 4.0), unit="nm"),
        metrics=(MetricDoc(name="Dice", value=0.9, data="left-out rat", conditions={"snr": 1}),),
        calibration=CalibrationDoc(temperature=1.7, data="validation"),
        decoder=DecoderDoc(kind="boundary_watershed"),
    )
    text = documentation(card)
    assert "## Validation" in text
    assert "| Dice | 0.9 | left-out rat | snr 1 |" in text
    assert "4 x 4 nm (y, x)" in text
    assert "watershed" in text
    assert "divided by 1.7" in text
    assert "was not scored" in documentation(card_of())


def test_tags():
    tags = tags_of(card_of(), ("electron-microscopy",))
    assert {"2d", "semantic-segmentation", "mitochondria", "unet", "electron-microscopy"} <= set(
        tags
    )


def test_covers_show_image_and_labels():
    import io

    from PIL import Image

    image = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (60, 1))[None]
    values = np.zeros((60, 50), np.uint8)
    values[10:30, 10:30] = 1
    labels = Labels.from_array(values, classes=(LabelClass(1, "thing", (255, 0, 0)),))
    picture = np.asarray(Image.open(io.BytesIO(cover_png(image, labels))))
    assert picture.shape == (400, 800, 3)
    left, right = picture[:, :400].astype(int), picture[:, 400:].astype(int)
    assert (left[..., 0] == left[..., 1]).all()
    inside = right[120:200, 120:200]
    assert (inside[..., 0] > inside[..., 1] + 60).all()
    assert (right[350:, 350:] == left[350:, 350:]).all()
