"""The network of a trained configuration, built by nnU-Net's own function and filled.

``plans.json`` names classes by their import path. Only those of ``dynamic_network_architectures``
and ``torch.nn`` are built; any other would mean importing whatever a file says, and needs the
user's word that the model can be trusted.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from lamella.core.errors import ModelError
from lamella.core.optional import require
from lamella.engines.nnunet.checkpoint import Checkpoint
from lamella.engines.nnunet.classes import ClassRule
from lamella.engines.nnunet.folder import TrainedFolder

__all__ = ["Blueprint", "build_network", "n_inputs"]

_NETWORK = re.compile(r"dynamic_network_architectures\.architectures\.\w+\.[A-Za-z]\w*")
_PART = re.compile(r"torch\.nn\.(modules\.\w+\.)?[A-Z]\w*|dynamic_network_architectures\.[\w.]+")
_OLD_NETWORKS = {
    "PlainConvUNet": ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "conv"),
    "ResidualEncoderUNet": (
        "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet",
        "blocks",
    ),
}
_STANDARD_TRAINER = "nnUNetTrainer"


def n_inputs(folder: TrainedFolder, rule: ClassRule) -> int:
    """Channels of the network's input: the image's, and in a cascade one a foreground label."""
    return len(folder.channels) + (len(rule.foreground) if folder.previous else 0)


class Blueprint:
    """Name and arguments of a network, checked against the allow-list.

    Args:
        folder: whose plans name it.
        is_trusted: whether any import path may be followed.

    Raises:
        ModelError: a class that is not on the list, or plans of an unknown version.
    """

    def __init__(self, folder: TrainedFolder, *, is_trusted: bool) -> None:
        known = folder.settings.get("architecture")
        if known is None:
            known = _from_old_plans(folder)
        try:
            self.name = str(known["network_class_name"])
            self.arguments: dict[str, Any] = dict(known["arch_kwargs"])
            self.imported: list[str] = [str(key) for key in known["_kw_requires_import"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{folder.root / 'plans.json'} describes no network that is understood: {error}",
                hint="these plans were written by a version of nnU-Net that is not supported",
            ) from error
        if is_trusted:
            return
        if not _NETWORK.fullmatch(self.name):
            raise _refused(folder, self.name)
        for key in self.imported:
            value = self.arguments.get(key)
            if value is not None and not _PART.fullmatch(str(value)):
                raise _refused(folder, str(value))


def _refused(folder: TrainedFolder, name: str) -> ModelError:
    return ModelError(
        f"{folder.root / 'plans.json'} asks for {name!r}, which is neither of"
        " dynamic_network_architectures nor of torch.nn",
        hint="if you trust where this model comes from, run again with --trust",
    )


def build_network(
    folder: TrainedFolder, rule: ClassRule, checkpoint: Checkpoint, *, is_trusted: bool
) -> Any:
    """Build a network and fill it with the weights of a checkpoint.

    Args:
        folder: whose plans name it.
        rule: how many outputs it has.
        checkpoint: its weights.
        is_trusted: whether any import path may be followed.

    Returns:
        ``torch.nn.Module`` in evaluation mode.

    Raises:
        ModelError: weights that do not fit the plans.
    """
    if checkpoint.configuration and checkpoint.configuration != folder.configuration:
        raise ModelError(
            f"the checkpoints in {folder.root} were trained as {checkpoint.configuration!r}, the"
            f" folder says {folder.configuration!r}",
            hint="files of two models were mixed up: copy the folder again",
        )
    blueprint = Blueprint(folder, is_trusted=is_trusted)
    extents = (n_inputs(folder, rule), rule.n_outputs)
    network = _from_plans(blueprint, extents)
    problem = _misfit(network, checkpoint)
    if problem and checkpoint.trainer not in ("", _STANDARD_TRAINER):
        # Trainers that came with nnU-Net may build the network in their own way.
        special = _from_trainer(folder, blueprint, checkpoint.trainer, extents)
        if special is not None:
            network, problem = special, _misfit(special, checkpoint)
    if problem:
        raise ModelError(
            f"the checkpoint in {folder.root} does not fit its plans.json and dataset.json:"
            f" {problem}",
            hint="the number of labels or channels, the plans and the weights must be of one model",
        )
    network.load_state_dict(dict(checkpoint.weights))
    return network.eval()


def _from_plans(blueprint: Blueprint, extents: tuple[int, int]) -> Any:
    require("dynamic_network_architectures", extra="nnunet", purpose="building nnU-Net networks")
    module = require(
        "nnunetv2.utilities.get_network_from_plans",
        extra="nnunet",
        purpose="building nnU-Net networks",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module.get_network_from_plans(
                blueprint.name,
                blueprint.arguments,
                blueprint.imported,
                *extents,
                allow_init=False,
                deep_supervision=False,
            )
    except (TypeError, ValueError, ImportError, KeyError, AssertionError) as error:
        raise ModelError(
            f"nnU-Net cannot build the network {blueprint.name!r} of these plans: {error}",
            hint="the plans are damaged, or of another version: pip install -U nnunetv2",
        ) from error


def _from_trainer(
    folder: TrainedFolder, blueprint: Blueprint, trainer: str, extents: tuple[int, int]
) -> Any | None:
    """The network as a trainer that is installed with nnU-Net builds it, or None."""
    import inspect
    from pathlib import Path

    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = str(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")
        found = recursive_find_python_class(place, trainer, "nnunetv2.training.nnUNetTrainer")
        if found is None:
            return None
        build = found.build_network_architecture
        options = {"enable_deep_supervision": False}
        if "plans_manager" not in inspect.signature(build).parameters:
            named = (blueprint.name, blueprint.arguments, blueprint.imported)
            return build(*named, *extents, **options)
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(dict(folder.plans))
        return build(manager, manager.get_configuration(folder.configuration), *extents, **options)


def _misfit(network: Any, checkpoint: Checkpoint) -> str:
    """How weights and network differ, empty where they fit."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in checkpoint.weights.items()}
    wrong = [
        f"{name} has shape {given[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name] != given[name]
    ]
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    told = wrong[:1]
    told += [f"{len(missing)} weights are missing, such as {missing[0]}"] if missing else []
    told += [f"{len(extra)} are not known, such as {extra[0]}"] if extra else []
    return "; ".join(told)


def _from_old_plans(folder: TrainedFolder) -> Mapping[str, Any]:
    """The network of plans written before nnU-Net 2.4, which named its parts one by one.

    Source: nnU-Net ``ConfigurationManager.__init__`` (Apache-2.0).
    """
    old = folder.settings
    name = str(old.get("UNet_class_name", ""))
    if name not in _OLD_NETWORKS:
        raise ModelError(
            f"{folder.root / 'plans.json'} names no network that is known"
            + (f": {name!r}" if name else ""),
            hint="these plans were written by a version of nnU-Net that is not supported",
        )
    path, kind = _OLD_NETWORKS[name]
    n_axes = folder.n_axes
    stages = old["n_conv_per_stage_encoder"]
    features = [
        min(old["UNet_base_num_features"] * 2**i, old["unet_max_num_features"])
        for i in range(len(stages))
    ]
    arguments: dict[str, Any] = {
        "n_stages": len(stages),
        "features_per_stage": features,
        "conv_op": f"torch.nn.modules.conv.Conv{n_axes}d",
        "kernel_sizes": old["conv_kernel_sizes"],
        "strides": old["pool_op_kernel_sizes"],
        f"n_{kind}_per_stage": stages,
        "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n_axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": path,
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
