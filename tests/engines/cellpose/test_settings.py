"""What a Cellpose run decides before anything starts; needs no environment."""

import numpy as np
import pytest

from lamella.core.errors import AxesError, GeometryError, InputError, UnknownModelError
from lamella.core.places import Places
from lamella.engines.cellpose import cellpose3, cellpose4, settings
from lamella.engines.cellpose.descriptor import CELLPOSE3, CELLPOSE4
from lamella.engines.cellpose.image import open_image
from lamella.engines.cellpose.settings import resolve
from lamella.testing.engine import RecordingSink
from lamella.volume import Volume
from lamella.wire.request import InputDoc, SegmentRequest


def request(options=None, **changes):
    return SegmentRequest(
        input=InputDoc(path="image"), model="cellpose3:cyto3", options=options or {}, **changes
    )


def volume(shape, spacing=None, unit="um", **words):
    data = np.zeros(shape, np.uint16)
    if spacing is None:
        return Volume.from_array(data, **words)
    return Volume.from_array(data, spacing=spacing, unit=unit, **words)


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((64, 64), (1.0, 1.0), "slices"),
        ((1, 64, 64), (1.0, 1.0, 1.0), "slices"),
        ((4, 64, 64), (1.0, 1.0, 1.0), "hybrid"),
        ((32, 64, 64), (1.0, 1.0, 1.0), "ortho"),
        ((32, 64, 64), (9.0, 1.0, 1.0), "hybrid"),
    ],
)
def test_auto_decides_by_the_shape_and_says_why(shape, spacing, expected):
    words = {"axes": "yx"} if len(shape) == 2 else {}
    decided = resolve(CELLPOSE3, volume(shape, spacing, **words), request())
    assert decided.strategy == expected
    assert decided.reason


def test_flows_that_do_not_fit_into_memory_are_refused_or_avoided(monkeypatch):
    monkeypatch.setattr(settings, "available_bytes", lambda: 1_000_000)
    large = volume((32, 64, 64), (1.0, 1.0, 1.0))
    assert resolve(CELLPOSE3, large, request()).strategy == "hybrid"
    with pytest.raises(InputError, match="GiB of memory") as caught:
        resolve(CELLPOSE3, large, request(instances="ortho"))
    assert "hybrid" in caught.value.hint


def test_a_diameter_as_a_length_needs_a_spacing():
    options = {"diameter": 8, "diameter_unit": "um"}
    found = resolve(CELLPOSE3, volume((8, 64, 64), (2.0, 0.5, 0.5)), request(options))
    assert found.options["diameter"] == pytest.approx(16)
    assert found.options["anisotropy"] == pytest.approx(4)
    with pytest.raises(GeometryError, match="how large its pixels are"):
        resolve(CELLPOSE3, volume((8, 64, 64)), request(options))


def test_channels_are_said_not_guessed():
    colored = volume((3, 64, 64), axes="cyx")
    with pytest.raises(AxesError, match="3 channels") as caught:
        resolve(CELLPOSE3, colored, request())
    assert "channels=1" in caught.value.hint
    assert resolve(CELLPOSE3, colored, request({"channels": "2,0"})).channels == (2, 0)
    for wrong in ("3", "a", "0,1,2", ""):
        with pytest.raises(InputError):
            resolve(CELLPOSE3, colored, request({"channels": wrong}))
    assert resolve(CELLPOSE4, colored, request({"channels": "0,1,2"})).channels == (0, 1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"percentile_low": 99, "percentile_high": 1}},
        {"options": {"flow_treshold": 1}},
        {"options": {"diameter": -3}},
        {"precision": "fp16"},
        {"tile": (8, 8)},
    ],
)
def test_what_does_not_fit_is_one_clear_error(changes):
    with pytest.raises(InputError) as caught:
        resolve(CELLPOSE3, volume((64, 64), axes="yx"), request(**changes))
    assert caught.value.hint


def test_cellpose_sam_has_one_size_of_tile():
    with pytest.raises(InputError, match="256 x 256"):
        resolve(CELLPOSE4, volume((64, 64), axes="yx"), request(tile=(224, 224)))


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (cellpose3, "cyto33", "cyto3"),
        (cellpose3, "cpsam", "cellpose4:cpsam"),
        (cellpose4, "cyto3", "cellpose3:cyto3"),
        (cellpose4, "cpdino", "dinov3"),
        (cellpose3, "no/such/file", "no/such/file"),
    ],
)
def test_an_unknown_model_is_an_error_never_another_model(module, name, said):
    with pytest.raises(UnknownModelError) as caught:
        module.find_model(name, Places())
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_percentiles_are_those_of_the_whole_volume():
    data = np.random.default_rng(0).integers(0, 1000, (6, 32, 32)).astype(np.uint16)
    data[3] = 7
    whole = Volume.from_array(data)
    decided = resolve(CELLPOSE3, whole, request())
    image = open_image(whole, decided, RecordingSink())
    low, high = np.percentile(data, (1, 99))
    expected = (data[0].astype(np.float32) - np.float32(low)) / np.float32(high - low)
    np.testing.assert_allclose(image.plane(0)[..., 0], expected, rtol=1e-6)
    # A slice of one value is not blown up to noise.
    assert np.ptp(image.plane(3)) == 0


def test_images_of_small_range_are_not_turned_into_zeros():
    data = np.random.default_rng(0).random((32, 32), np.float32) * 1e-6
    one = Volume.from_array(data, axes="yx")
    image = open_image(one, resolve(CELLPOSE3, one, request()), RecordingSink())
    assert np.ptp(image.plane(0)) > 0.9


def test_nan_is_refused_with_its_slice():
    data = np.zeros((4, 8, 8), np.float32)
    data[2, 1, 1] = np.nan
    one = Volume.from_array(data)
    image = open_image(one, resolve(CELLPOSE3, one, request()), RecordingSink())
    with pytest.raises(InputError, match="slice 2"):
        image.plane(2)
