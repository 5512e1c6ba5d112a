"""Which encoders work under which heads: writes src/lamella/networks/backbones.tsv.

    python recipes/backbones.py [--processes 2] [--minutes 60] [--fresh]

Every network of timm and every encoder of segmentation_models_pytorch is built on PyTorch's meta
device, which knows shapes and computes nothing, and run under every head with five channels and
images of two sizes that are not square. What failed is listed too, with ``-`` for its heads. What
the same versions of the libraries tried before is not tried again, so that the script may be
stopped at any time and goes on where it was; it takes an hour on two cores.
tests/networks/test_backbones.py runs a sample of the list with numbers.
"""

import argparse
import fnmatch
import importlib
import itertools
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import segmentation_models_pytorch as smp
import timm
import torch

from lamella.networks import semantic2d
from lamella.networks.encoders import encoder_family, encoder_options, has_one_stride

TARGET = Path(__file__).resolve().parents[1] / "src/lamella/networks/backbones.tsv"
HEAD = f"# timm={timm.__version__} segmentation_models_pytorch={smp.__version__}"
COLUMNS = "name\tfamily\tparameters\theads"
SIZES = ((4, 6), (10, 3))
CHANNELS = 5
# What most people ask for is tried first.
USUAL = (
    "tu-swin_*", "tu-vit_*_patch16_224", "tu-convnext_*", "tu-resnet[1-9]*", "resnet*",
    "tu-efficientnet_b*", "efficientnet-*", "tu-regnet[xy]_*", "tu-mobilenetv3_*", "mobilenet*",
    "tu-vit_*dino*", "tu-pvt_v2_*", "vgg*", "densenet*", "tu-deit*", "tu-eva02_*", "tu-maxvit_*",
)  # fmt: skip
PYRAMID_HEADS = {
    "unet": ("Unet", "unet", {}),
    "fpn": ("FPN", "fpn", {}),
    # At the full depth, where it may fail, rather than the usual one.
    "pspnet": ("PSPNet", "pspnet", {"upsampling": 32, "encoder_depth": 5}),
    "upernet": ("UPerNet", "upernet", {}),
    "deeplabv3plus": ("DeepLabV3Plus", "deeplabv3", {"encoder_output_stride": 16}),
}


def try_sizes(network: torch.nn.Module, stride: int) -> None:
    """Run a network on the meta device; raises where logits do not lie on the image's grid."""
    for rows, columns in SIZES:
        shape = (rows * stride, columns * stride)
        found = tuple(network.eval()(torch.zeros(2, CHANNELS, *shape)).shape)
        if found != (2, 3, *shape):
            raise ValueError(f"{shape} became {found}")


def try_pyramid(name: str) -> tuple[int, list[str]]:
    """Parameters, and heads that work, of an encoder with a pyramid; built once a stride."""
    encoders: dict[int, torch.nn.Module] = {}
    passed: list[str] = []
    for head, (architecture, folder, words) in PYRAMID_HEADS.items():
        module = importlib.import_module(f"segmentation_models_pytorch.decoders.{folder}.model")
        stride = words.get("encoder_output_stride", 32)
        try:
            if stride not in encoders:
                encoders[stride] = smp.encoders.get_encoder(
                    name, in_channels=CHANNELS, output_stride=stride, **encoder_options(name)
                )
            encoder = encoders[stride]
            with mock.patch.object(module, "get_encoder", lambda *_, e=encoder, **__: e):
                network = getattr(smp, architecture)(
                    name, encoder_weights=None, in_channels=CHANNELS, classes=3, **words
                )
            try_sizes(network, max(8, int(encoder.output_stride)))
        except Exception:  # noqa: BLE001 - whatever it is, it does not work
            if head == "unet":
                return 0, []
            continue
        passed.append(head)
    return sum(parameter.numel() for parameter in encoders[32].parameters()), passed


def try_plain(name: str) -> tuple[int, list[str]]:
    """The same of a plain vision transformer."""
    count, passed = 0, []
    for head, architecture, kind in (
        ("fpn", "FPN", semantic2d.EncoderArguments),
        ("dpt", "DPT", semantic2d.DPTArguments),
    ):
        try:
            network, stride = semantic2d.build_over_plain(architecture, kind(CHANNELS, 3, name))
            try_sizes(network, stride)
        except Exception:  # noqa: BLE001 - whatever it is, it does not work
            continue
        count = sum(parameter.numel() for parameter in network.encoder.parameters())
        passed.append(head)
    return count, passed


def survey(name: str) -> str:
    """A line of the list."""
    torch.set_num_threads(1)
    with warnings.catch_warnings(), torch.device("meta"), torch.no_grad():
        warnings.simplefilter("ignore")
        count, heads = try_plain(name) if has_one_stride(name) else try_pyramid(name)
    return f"{name}\t{encoder_family(name)}\t{count}\t{','.join(heads) or '-'}"


def in_turns(names: list[str]) -> list[str]:
    """What is usual first; then one of every family, another of every family, and so on."""
    usual = [name for pattern in USUAL for name in names if fnmatch.fnmatch(name, pattern)]
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(encoder_family(name), []).append(name)
    rounds = itertools.zip_longest(*families.values())
    rest = [name for turn in rounds for name in turn if name is not None]
    return list(dict.fromkeys(usual + rest))


def known_rows() -> dict[str, str]:
    """Rows of the list that the same versions have written."""
    if not TARGET.is_file() or not TARGET.read_text(encoding="utf-8").startswith(HEAD):
        return {}
    rows = TARGET.read_text(encoding="utf-8").splitlines()[2:]
    return {row.split("\t")[0]: row for row in rows}


def main() -> None:
    """Try what was not tried yet and write the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--fresh", action="store_true", help="try all of them again")
    words = parser.parse_args()
    until = time.monotonic() + 60 * words.minutes
    # smp's own copies of timm's networks are deprecated; timm's are listed instead.
    names = [name for name in smp.encoders.encoders if not name.startswith("timm-")]
    names += [f"tu-{name}" for name in timm.list_models()]
    rows = {} if words.fresh else known_rows()
    left = in_turns([name for name in names if name not in rows])
    with multiprocessing.Pool(words.processes, maxtasksperchild=200) as pool:
        for done, row in enumerate(pool.imap_unordered(survey, left, chunksize=1), start=1):
            rows[row.split("\t")[0]] = row
            n_good = sum(not known.endswith("\t-") for known in rows.values())
            print(f"\r{len(rows)} of {len(names)} tried, {n_good} work", end="", file=sys.stderr)
            if done % 20 == 0 or done == len(left) or time.monotonic() > until:
                text = "\n".join([HEAD, COLUMNS, *sorted(rows.values())]) + "\n"
                TARGET.write_text(text, encoding="utf-8")
            if time.monotonic() > until:
                pool.terminate()
                break


if __name__ == "__main__":
    main()
