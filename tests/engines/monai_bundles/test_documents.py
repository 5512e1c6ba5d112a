"""Bundles as data: what is read, and what is refused by name, without running any of it."""

import json
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import AxesError, MissingPathError, ModelError, UnknownModelError
from lamella.core.places import Places
from lamella.engines.monai.bundle import Bundle, Metadata
from lamella.engines.monai.classes import label_classes
from lamella.engines.monai.models import check_fit, describe, find_model, recognise
from lamella.engines.monai.output import read_inferer, read_output
from lamella.engines.monai.reading import read_bundle
from lamella.engines.monai.recipe import read_preprocessing
from lamella.engines.monai.resolver import Resolver
from lamella.volume import Volume

WEIGHTS = b"any bytes: nobody reads them here"


def refused(function, *arguments, **named):
    """The message of what is refused; the hint must name the way out."""
    with pytest.raises(ModelError) as caught:
        function(*arguments, **named)
    assert "--trust" in caught.value.hint
    return caught.value.message


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["a", "b c", "", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner),
    max_leaves=8,
)


class TestResolver:
    @given(plain)
    def test_plain_values_are_left_as_they_are(self, value):
        assert Resolver({"a": value}).value("@a", where="x") == value

    @given(plain)
    def test_literals_lose_their_dollar(self, value):
        assert Resolver({}).value(f"${value!r}", where="x") == value

    def test_references_are_followed_into_components_and_lists(self):
        config = {"n": {"_target_": "UNet", "c": [1, {"d": "@m"}]}, "m": "$(2, 3)"}
        resolver = Resolver(config)
        assert resolver.value("@n::c::1::d", where="x") == (2, 3)
        assert resolver.value("$@n#c#0", where="x") == 1

    @pytest.mark.parametrize(
        "text",
        ["$__import__('os').system('true')", "$@a + 1", "$lambda: 0", "%other.json", "@a + 1"],
    )
    def test_code_is_never_run(self, text):
        assert "x" in refused(Resolver({"a": 1}).value, text, where="x")

    def test_what_leads_nowhere_or_round_in_circles_is_an_error(self):
        with pytest.raises(ModelError, match="@b, which its configuration lacks"):
            Resolver({"a": 1}).value("@b", where="x")
        with pytest.raises(ModelError, match="refers to itself"):
            Resolver({"a": "@b", "b": "@a"}).value("@a", where="x")

    @pytest.mark.parametrize(
        ("node", "words"),
        [
            ({"_target_": "scripts.net.Mine"}, "no class of MONAI"),
            ({"_target_": "os.system", "command": "true"}, "no class of MONAI"),
            ({"_target_": "UNet", "_mode_": "partial"}, "_mode_"),
            ({"channels": 3}, "names no class"),
            ("$torch.nn.Conv3d(1, 2, 3)", "is code"),
        ],
    )
    def test_components_are_classes_of_monai(self, node, words):
        assert words in refused(Resolver({"n": node}).component, "n")

    def test_disabled_ones_are_left_out(self):
        node = {"_target_": "UNet", "_disabled_": "$True"}
        assert Resolver({"n": node}).component("n") is None


def preprocessing(*transforms):
    return Resolver({"preprocessing": {"_target_": "Compose", "transforms": list(transforms)}})


class TestSteps:
    @pytest.mark.parametrize(
        ("transform", "words"),
        [
            ({"_target_": "RandFlipd", "keys": "image"}, "RandFlipd"),
            ({"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}, "Lambdad"),
            ({"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1, 1], "mode": 3}, "mode=3"),
            (
                {"_target_": "Spacingd", "keys": "image", "pixdim": 1, "padding_mode": "zeros"},
                "padding_mode='zeros'",
            ),
            ({"_target_": "Orientationd", "keys": "image", "axcodes": "RRS"}, "axcodes"),
            ({"_target_": "CropForegroundd", "keys": "image", "margin": 4}, "margin=4"),
            (
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 1, "a_max": 1},
                "a_min",
            ),
            ({"_target_": "Resized", "keys": "image", "spatial_size": [64] * 3}, "Resized"),
        ],
    )
    def test_what_is_not_understood_is_named(self, transform, words):
        message = refused(read_preprocessing, preprocessing(transform))
        assert words in message
        assert "preprocessing::0" in message

    def test_names_with_and_without_the_ending_mean_the_same(self):
        bare = preprocessing({"_target_": "NormalizeIntensity", "nonzero": True})
        keyed = preprocessing(
            {"_target_": "NormalizeIntensityd", "keys": ["image"], "nonzero": True},
            {"_target_": "Lambdad", "keys": "image", "_disabled_": True},
        )
        assert read_preprocessing(bare) == read_preprocessing(keyed)

    def test_steps_about_labels_are_passed_over(self):
        about = {"_target_": "EnsureTyped", "keys": "label"}
        other = {"_target_": "NormalizeIntensityd", "keys": ["label"]}
        assert read_preprocessing(preprocessing(about, other)) == ()

    @pytest.mark.parametrize(
        ("inferer", "words"),
        [
            ({"_target_": "SliceInferer", "roi_size": [64, 64]}, "SliceInferer"),
            ({"_target_": "SlidingWindowInferer", "roi_size": [64, 64]}, "roi_size"),
            (
                {
                    "_target_": "SlidingWindowInferer",
                    "roi_size": [8] * 3,
                    "padding_mode": "reflect",
                },
                "pads",
            ),
        ],
    )
    def test_inferers_that_are_not_understood(self, inferer, words):
        assert words in refused(read_inferer, Resolver({"inferer": inferer}), n_axes=3)

    @pytest.mark.parametrize(
        ("steps", "words"),
        [
            ([{"_target_": "Lambdad", "keys": "pred"}], "Lambdad"),
            (
                [{"_target_": "AsDiscreted", "keys": "pred", "rounding": "torchrounding"}],
                "rounding",
            ),
            (
                [
                    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                    {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.7},
                ],
                "softmax",
            ),
        ],
    )
    def test_outputs_that_are_not_understood(self, steps, words):
        config = {"postprocessing": {"_target_": "Compose", "transforms": steps}}
        assert words in refused(read_output, Resolver(config), n_outputs=3, is_resampled=False)

    def test_a_bundle_that_says_nothing_of_labels_is_assumed_aloud(self):
        several = read_output(Resolver({}), n_outputs=3, is_resampled=True)
        assert several.threshold is None
        assert len(several.notes) == 2
        one = read_output(Resolver({}), n_outputs=1, is_resampled=False)
        assert (one.activation, one.threshold) == ("sigmoid", 0.5)


class TestBundle:
    def test_folder_and_zip_say_the_same(self, kit, tmp_path):
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS)
        archive = tmp_path / "balls.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, f"inner/{path.relative_to(folder)}")
        first, second = Bundle.open(folder), Bundle.open(archive)
        assert first.sha256 == second.sha256
        assert first.metadata == second.metadata
        assert recognise(folder)
        assert recognise(archive)
        model = find_model(str(archive), Places())
        assert (model.engine, model.version) == ("monai", "0.1.0")

    def test_facts_for_the_store(self, kit, tmp_path):
        folder = kit.write_bundle(tmp_path / "Ball Finder", WEIGHTS)
        (folder / "LICENSE").write_text("\n  Apache License\nVersion 2.0\n")
        facts = describe(folder)
        assert facts["id"] == "ball-finder"
        assert facts["classes"] == {1: "ball"}
        assert facts["axes"] == "zyx"
        assert facts["licence"] == "Apache License"
        assert set(facts["files"]) >= {"configs/metadata.json", "models/model.pt", "LICENSE"}

    def test_what_is_no_bundle_is_not_recognised(self, tmp_path):
        (tmp_path / "model.json").write_text("{}")
        (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 cut")
        assert not recognise(tmp_path)
        assert not recognise(tmp_path / "broken.zip")
        assert not recognise(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("configs/metadata.json", "no MONAI bundle"),
            ("configs/inference.json", "no configs/inference.json"),
            ("models/model.pt", "no models/model.pt"),
        ],
    )
    def test_a_missing_file_is_named(self, kit, tmp_path, name, words):
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS)
        (folder / name).unlink()
        with pytest.raises(ModelError, match=words) as caught:
            find_model(str(folder), Places())
        assert caught.value.hint

    @pytest.mark.parametrize("content", ["{not json", "[1, 2]", '"text"'])
    def test_documents_that_are_none(self, kit, tmp_path, content):
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS)
        (folder / "configs" / "metadata.json").write_text(content)
        with pytest.raises(ModelError, match=r"metadata\.json"):
            find_model(str(folder), Places())

    def test_yaml_is_read_without_running_it(self, kit, tmp_path):
        pytest.importorskip("yaml")
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS)
        (folder / "configs" / "inference.json").unlink()
        bad = folder / "configs" / "inference.yaml"
        bad.write_text("network_def: !!python/object/apply:os.system ['true']\n")
        with pytest.raises(ModelError, match=r"inference\.yaml"):
            read_bundle(Bundle.open(folder), is_trusted=False)
        bad.write_text(json.dumps(kit.inference()))
        assert read_bundle(Bundle.open(folder), is_trusted=False).n_outputs == 2

    def test_names_that_are_nothing(self, tmp_path):
        with pytest.raises(UnknownModelError):
            find_model("no-such-bundle", Places(models=tmp_path))
        with pytest.raises(MissingPathError):
            find_model("./no/such/bundle", Places())

    def test_early_refusals_of_volumes(self, kit, tmp_path, balls):
        model = find_model(str(kit.write_bundle(tmp_path / "balls", WEIGHTS)), Places())
        with pytest.raises(AxesError, match="1 channel"):
            check_fit(Volume.from_array(balls[None].repeat(2, 0), axes="czyx"), None, model)
        with pytest.raises(AxesError, match="segments volumes"):
            check_fit(Volume.from_array(balls[0], axes="yx"), None, model)
        check_fit(Volume.from_array(balls), None, model)

    @pytest.mark.parametrize(
        ("network", "words"),
        [
            ({"_target_": "scripts.net.Mine"}, "no class of MONAI"),
            ({"_target_": "EfficientNetBN", "spatial_dims": 3}, "EfficientNetBN"),
            ({"_target_": "UNet", "spatial_dims": "$len('abc')"}, "is code"),
        ],
    )
    def test_networks_beyond_the_list_are_named(self, kit, tmp_path, network, words):
        config = kit.inference(network_def=network)
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS, config=config)
        assert words in refused(read_bundle, Bundle.open(folder), is_trusted=False)

    def test_torchscript_alone_needs_trust(self, kit, tmp_path):
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS)
        (folder / "models" / "model.pt").rename(folder / "models" / "model.ts")
        assert "TorchScript" in refused(read_bundle, Bundle.open(folder), is_trusted=False)

    def test_documents_that_contradict_each_other(self, kit, tmp_path):
        config = kit.inference(network_def={**kit.NETWORK, "out_channels": 5})
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS, config=config)
        with pytest.raises(ModelError, match=r"gives 5 channel\(s\), its metadata says 2"):
            read_bundle(Bundle.open(folder), is_trusted=False)

    def test_another_version_of_monai_is_a_warning(self, kit, tmp_path):
        meta = kit.metadata(monai_version="0.8.1")
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS, meta=meta)
        (note,) = read_bundle(Bundle.open(folder), is_trusted=False).notes
        assert note.code == "version_differs"
        assert "0.8.1" in note.message

    def test_finding_and_describing_imports_nothing_heavy(self, kit, tmp_path):
        folder = kit.write_bundle(tmp_path / "balls", WEIGHTS)
        code = (
            "import sys; from lamella.engines.monai import models;"
            "from lamella.core.places import Places;"
            f"path = models.Path({str(folder)!r});"
            "models.find_model(str(path), Places()); models.describe(path);"
            "print({'torch', 'monai', 'zarr', 'openvino'} & set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "set()"


class TestClasses:
    def metadata(self, **channels):
        pred = {"num_channels": len(channels), "channel_def": channels}
        return Metadata.parse({"network_data_format": {"outputs": {"pred": pred}}})

    def test_the_largest_of_all_channels(self):
        found = label_classes(
            self.metadata(**{"0": "background", "1": "spleen", "2": "liver"}), is_argmax=True
        )
        assert [(known.value, known.name) for known in found] == [(1, "spleen"), (2, "liver")]

    def test_every_channel_by_itself(self):
        found = label_classes(self.metadata(**{"0": "core", "1": "whole"}), is_argmax=False)
        assert [(known.value, known.name) for known in found] == [(1, "core"), (2, "whole")]
        named = label_classes(self.metadata(**{"0": "Background", "1": "x"}), is_argmax=False)
        assert [(known.value, known.name) for known in named] == [(1, "x")]

    def test_names_that_are_lacking(self):
        found = label_classes(Metadata.parse({}), n_outputs=3, is_argmax=True)
        assert [known.name for known in found] == ["class 1", "class 2"]
