"""The shipped models: small, licensed, whole, and as good as their cards say."""

import subprocess
import sys

import numpy as np
import pytest

from lamella.engines.engine import EngineJob
from lamella.engines.registry import load_engine
from lamella.evaluation.contingency import count_overlaps
from lamella.evaluation.instance import match_objects
from lamella.models.catalogue import list_models
from lamella.models.store import find_model
from lamella.networks.registry import parse_arguments
from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.testing.engine import RecordingSink
from lamella.volume import Volume
from lamella.wire.request import InputDoc, SegmentRequest

STARTERS = [entry for entry in list_models() if entry.origin == "starter"]


@pytest.mark.parametrize("entry", STARTERS, ids=lambda entry: entry.id)
class TestEveryStarterModel:
    def test_is_small_whole_and_named_as_its_folder(self, entry):
        assert entry.problem == ""
        assert entry.path.name == entry.id
        assert entry.n_bytes <= 5_000_000
        find_model(entry.id)

    def test_says_what_it_was_made_of_and_how_good_it_is(self, entry):
        card = entry.card
        assert card.licence
        assert card.training.data_licence
        assert card.training.recipe.startswith(("recipes/", "lamella train "))
        assert card.metrics
        assert all(metric.data for metric in card.metrics)

    def test_names_a_network_of_the_registry(self, entry):
        parse_arguments(entry.card.network.id, entry.card.network.arguments)


def test_listing_models_imports_neither_torch_nor_openvino():
    code = (
        "import sys; from lamella.models.catalogue import list_models; list_models();"
        "print({'torch', 'openvino', 'numpy'} & set(sys.modules) - {'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def nuclei_of(image, folder):
    """Instances of an image, or of the slices of a volume, as the engine gives them."""
    job = EngineJob(
        volume=Volume.from_array(image),
        request=SegmentRequest(input=InputDoc(path="image"), model="nuclei-2d", preview=False),
        model=find_model("nuclei-2d"),
        run_dir=folder,
    )
    return load_engine("lamella").segment(job, RecordingSink()).labels.load()


def average_precision(found, reference):
    return match_objects(count_overlaps(found, reference.astype(np.uint32)), 0.5).average_precision


def test_nuclei_2d_finds_simulated_nuclei(tmp_path):
    made = draw_nuclei(NucleiOptions(shape=(240, 200), n_nuclei=25), seed=12345)
    assert average_precision(nuclei_of(made.image, tmp_path), made.labels) >= 0.85


def test_nuclei_2d_does_not_care_for_gain_and_offset(tmp_path):
    made = draw_nuclei(NucleiOptions(shape=(128, 128), n_nuclei=12), seed=5)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = nuclei_of(made.image.astype(np.float32), tmp_path / "a")
    scaled = nuclei_of(made.image.astype(np.float32) * 0.25 + 1000, tmp_path / "b")
    assert np.mean((plain > 0) == (scaled > 0)) > 0.999


def test_nuclei_2d_runs_over_the_slices_of_a_volume(tmp_path):
    made = draw_nuclei(NucleiOptions(shape=(3, 96, 96), n_nuclei=8, psf_sigma_um=(0, 0.4, 0.4)))
    found = nuclei_of(made.image, tmp_path)
    assert found.shape == made.image.shape
    overlap = np.mean((found > 0) == (made.labels > 0))
    assert overlap > 0.9


def test_nuclei_2d_reaches_its_goal_on_images_left_out_of_training(tmp_path, data_dir):
    import tifffile
    from PIL import Image

    card = find_model("nuclei-2d").card
    left_out = card.metrics[0]
    scores = []
    for name in left_out.conditions:
        (tmp_path / name).mkdir()
        path = data_dir / "fluorescence" / "dsb2018_D" / f"{name}_fluor.png"
        reference = tifffile.imread(path.with_name(f"{name}_fluor_labels.tif"))
        found = nuclei_of(np.array(Image.open(path)), tmp_path / name)
        scores.append(average_precision(found, reference))
    assert len(scores) == left_out.n == 3
    assert np.mean(scores) >= 0.75
    assert np.mean(scores) == pytest.approx(left_out.value, abs=0.03)
