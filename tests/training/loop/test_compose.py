"""Configurations from pieces, files and words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, MissingPathError
from lamella.training.compose import compose, group_options, shipped_configs, to_yaml
from lamella.training.configuration_keys import known_keys, nearest_keys

NEEDED = ("data.root=scans", "task.classes=[mito]")
OURS = ("em2d_semantic", "volume_semantic", "volume_instance")


def write(folder, name, text):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", OURS)
def test_shipped_configurations_compose_and_read_back(name, tmp_path):
    config = compose(name, NEEDED)
    path = write(tmp_path, "again", to_yaml(config))
    assert compose(path) == config


def test_what_a_shipped_configuration_leaves_open_is_asked_for():
    assert set(OURS) <= set(shipped_configs())
    for name, key in (("em2d_semantic", "task.classes"), ("volume_instance", "data.root")):
        with pytest.raises(InputError, match=f"{key} must be given") as raised:
            compose(name)
        assert f"add {key}=" in raised.value.hint


@pytest.mark.parametrize("group", ["network", "loss", "optimiser", "schedule", "augmentation"])
def test_every_piece_fits(group):
    for piece in group_options()[group]:
        compose("volume_semantic", (*NEEDED, f"{group}={piece}"))


@pytest.mark.parametrize("piece", ["semantic", "multilabel", "boundary", "distance", "affinities"])
def test_every_task_fits(piece):
    compose("volume_semantic", ("data.root=x", f"task={piece}", "task.classes=[a]"))


@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-6, 10),
    root=st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1).filter(
        lambda text: text.strip() == text and "$" not in text
    ),
)
def test_values_arrive_as_they_are(steps, rate, root):
    config = compose(
        "em2d_semantic",
        [f"trainer.steps={steps}", f"optimiser.learning_rate={rate!r}",
         "task.classes=[a]", f"data.root='{root.replace(chr(39), chr(39) * 2)}'"],
    )  # fmt: skip
    assert config.trainer.steps == steps
    assert config.optimiser.learning_rate == rate
    assert config.data.root == root


@pytest.mark.parametrize("root", ["/a=b (1), [2]", "*.tif", "C:\\data", "~/x", "{a,b}/*"])
def test_paths_need_no_quotes(root):
    config = compose("em2d_semantic", (f"data.root={root}", "task.classes=[a]"))
    assert config.data.root == root


def test_a_file_of_ones_own_builds_on_shipped_ones(tmp_path):
    write(tmp_path, "network/tiny", "id: compact_unet2d\narguments: {widths: [4, 8]}\n")
    path = write(
        tmp_path,
        "mine",
        "defaults:\n  - em2d_semantic\n  - override network: tiny\n  - _self_\n"
        "trainer:\n  steps: 7\ndata: {root: x}\ntask: {classes: [mito]}\n",
    )
    config = compose(path)
    assert (config.network.id, config.trainer.steps) == ("compact_unet2d", 7)
    assert config.network.arguments == {"widths": [4, 8]}
    assert compose(path, ["network=mednext_s"]).network.id == "mednext-s"
    assert compose(path, ["schedule=poly", "trainer.steps=9"]).trainer.steps == 9


def test_a_value_of_a_class_can_be_set_in_its_place():
    config = compose("em2d_semantic", (*NEEDED, "task.classes.0.color=[255,0,0]"))
    assert config.task.classes[0].name == "mito"
    assert config.task.classes[0].color == (255, 0, 0)


def test_a_value_can_be_taken_out():
    config = compose("em2d_semantic", (*NEEDED, "trainer.minutes=5"))
    assert config.trainer.minutes == 5
    assert compose("em2d_semantic", (*NEEDED, "~trainer.precision")).trainer.precision == "fp32"


def test_numbers_become_text_where_text_is_wanted():
    assert compose("em2d_semantic", (*NEEDED, "model.version=2")).model.version == "2"


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("trainer.step=3", "trainer.steps"),
        ("optimizer.learning_rate=1", "optimiser.learning_rate"),
        ("learning_rate=1", "optimiser.learning_rate"),
        ("lr=1", "optimiser.learning_rate"),
        ("epochs=1", "trainer.steps"),
        ("trainer.num_workers=1", "trainer.workers"),
        ("data.rot=x", "data.root"),
        ("network.encoder=resnet34", "network.arguments.encoder"),
        ("task.classes.0.colour=[1,2,3]", "task.classes.color"),
        ("optimiser=adam", "adamw"),
        ("augmentation.options.noise=1", "noise_"),
        ("network.arguments.encodr=x", "encoder"),
    ],
)
def test_the_nearest_valid_name_is_told(word, wanted):
    with pytest.raises(InputError) as raised:
        compose("em2d_semantic", (*NEEDED, word))
    assert wanted in raised.value.hint


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.steps=0", "trainer.steps: input should be greater than or equal to 1, got 0"),
        ("trainer.steps=many", "got 'many'"),
        ("trainer.ema_decay=1.5", "less than 1, got 1.5"),
        ("trainer.precision=fp8", "'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ("network.arguments.in_channels=3", "follows from data and task"),
        ("network.arguments.encoder_depth=9", "encoder_depth"),
        ("augmentation.options.scale_range=[2,1]", "scale_range is"),
        ("task.classes.7.name=x", "a list of 1"),
        ("trainer", "has no '='"),
        ("data.kind=pears", "pears"),
    ],
)
def test_impossible_values_say_what_came(word, message):
    with pytest.raises(InputError, match=re.escape(message)):
        compose("em2d_semantic", (*NEEDED, word))


def test_files_that_are_wrong(tmp_path):
    with pytest.raises(MissingPathError, match="no configuration"):
        compose(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="no valid YAML"):
        compose(write(tmp_path, "a", "defaults: [em2d_semantic\n"))
    with pytest.raises(InputError, match="does not exist") as raised:
        compose(write(tmp_path, "b", "defaults:\n  - em2d_semantc\n"))
    assert "em2d_semantic" in raised.value.hint
    with pytest.raises(InputError, match=r"unknown key 'trainr'") as raised:
        compose(write(tmp_path, "c", "defaults: [em2d_semantic]\ntrainr: {steps: 3}\n"), NEEDED)
    (tmp_path / "d.yml").write_text("a: 1")
    with pytest.raises(InputError, match=r"called d\.yaml"):
        compose(str(tmp_path / "d.yml"))
    with pytest.raises(InputError, match="takes no piece for network"):
        compose(
            write(tmp_path, "e", to_yaml(compose("em2d_semantic", NEEDED))), ["network=dynunet"]
        )


def test_hydra_is_left_as_it_was_found():
    from hydra import compose as join
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lamella.training.compose import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("em2d_semantic", NEEDED)
        assert join("volume_semantic").model.id == "volume-semantic"
    assert not GlobalHydra.instance().is_initialized()


def test_every_key_is_known_by_name_and_type():
    keys = known_keys()
    assert keys["trainer.steps"].default == 2000
    assert keys["network.arguments"].is_open
    assert keys["optimiser.kind"].type_name == "adamw | sgd | radam"
    assert all(nearest_keys(name)[0] == name for name in keys if name.count(".") == 1)
