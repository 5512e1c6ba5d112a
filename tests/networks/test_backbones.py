"""The list of encoders says the truth: a sample of it, and one of each family, built anew."""

import random
import subprocess
import sys

import pytest
import torch

from lamella.core.errors import InputError, ModelError
from lamella.networks import backbones
from lamella.networks.backbones import HEADS, find_backbone, list_backbones
from lamella.networks.registry import build_network

SAMPLE_SEED = random.randrange(2**32)
LARGEST = 12_000_000


def smallest_of_each_family():
    found = {}
    for one in list_backbones():
        found.setdefault(one.family, one)
    return [one for one in found.values() if one.n_parameters < 4 * LARGEST]


def check(one, head, device="cpu"):
    arguments = {"in_channels": 2, "out_channels": 3, "encoder": one.name}
    if head == "dpt":
        arguments |= {"fusion_channels": 32, "intermediate_channels": [16, 16, 32, 32]}
    with torch.device(device), torch.inference_mode():
        network = build_network(head, arguments).eval()
        # Patches of transformers are 8, 14, 16, 28 or 32 pixels wide.
        for shape in ((256, 192), (280, 224)):
            try:
                found = tuple(network(torch.zeros(1, 2, *shape)).shape)
            except InputError:
                continue
            assert found == (1, 3, *shape)
            break
        else:
            pytest.fail(f"{one.name} takes neither multiples of 64 nor of 56 pixels")


def installed():
    import segmentation_models_pytorch as smp
    import timm

    return {"timm": timm.__version__, "segmentation_models_pytorch": smp.__version__}


def test_the_list_is_sound():
    found = list_backbones()
    assert len(found) > 100
    assert len({one.family for one in found}) > 30
    assert all(one.heads and set(one.heads) <= set(HEADS) for one in found)
    assert all(one.n_parameters > 1000 for one in found)
    for head in HEADS:
        n_families = len({one.family for one in found if head in one.heads})
        assert n_families >= (2 if head == "dpt" else 4)
    assert not set(backbones.tested_backbones().failed) & {one.name for one in found}


def test_patterns_search_names_and_families():
    assert all("resnet" in f"{one.name} {one.family}" for one in list_backbones("resnet"))
    assert {one.family for one in list_backbones("convnext")} >= {"convnext"}
    assert [one.name for one in list_backbones("resnet1[8]")] == ["resnet18"]
    assert list_backbones("no such thing") == ()
    sizes = [one.n_parameters for one in list_backbones() if one.family == "regnet"]
    assert sizes == sorted(sizes)


def test_a_name_with_a_tag_of_weights_is_found():
    found = find_backbone("tu-convnext_atto.d2_in1k")
    assert found is not None
    assert found.family == "convnext"
    assert "M" in str(found)
    assert find_backbone("resnot") is None


@pytest.mark.filterwarnings("ignore")
def test_a_sample_builds():
    """Another sample at every run; the seed is in the message."""
    if backbones.tested_backbones().versions != installed():
        pytest.skip("the list is of other versions of timm or smp")
    rng = random.Random(SAMPLE_SEED)
    small = [one for one in list_backbones() if one.n_parameters < LARGEST]
    for one in rng.sample(small, 3):
        try:
            check(one, rng.choice(one.heads))
        except (ModelError, AssertionError) as error:
            pytest.fail(f"{one.name} (sample {SAMPLE_SEED}): {error}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_every_family_builds():
    if backbones.tested_backbones().versions != installed():
        pytest.skip("the list is of other versions of timm or smp")
    failed = []
    for one in smallest_of_each_family():
        try:
            check(one, one.heads[0])
        except (ModelError, AssertionError) as error:
            failed.append(f"{one.name}: {error}")
    assert not failed


def test_listing_imports_neither_torch_nor_timm():
    code = (
        "import sys; from lamella.networks.backbones import list_backbones; list_backbones();"
        "print({'torch', 'timm', 'segmentation_models_pytorch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
