"""TotalSegmentator with its joints replaced: parts that are kept, tiles that are counted.

Loaded by ``worker.py`` inside the environment of the package; see there for the joints.
"""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["Session", "Tiles"]

_UNUSABLE = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What weights of another make, or half of them, lead to."""


class Tiles:
    """How many tiles there are and how many are done, over all parts of a run.

    The tiles of a part are known when it begins; those of later parts are estimated from the
    size of the image, and put right as they come.
    """

    def __init__(self, channel: Any, stage: str, estimates: list[int]) -> None:
        self._channel = channel
        self._stage = stage
        self._later = estimates
        self.done = 0
        self._part_known = 0
        self._part_done = 0
        self._part_estimate = 0

    def begin_part(self) -> None:
        """The next call of the predictor."""
        self._part_known = self._part_done = 0
        self._part_estimate = self._later.pop(0) if self._later else 0
        self.report()

    def announce(self, n: int) -> None:
        """So many tiles of the present part are to come."""
        self._part_known += n

    def restart(self, n: int) -> None:
        """The last ``n`` tiles announced are done anew."""
        self._part_done = self._part_known - n

    def step(self) -> None:
        """A tile is done."""
        self._part_done = min(self._part_done + 1, self._part_known)
        self.report()

    def end_part(self, n: int | None = None) -> int:
        """The part is finished: all its tiles, or ``n`` that were done in an earlier run."""
        count = self._part_known if n is None else n
        self.done += count
        self._part_known = self._part_done = self._part_estimate = 0
        self.report()
        return count

    def close(self) -> None:
        """Nothing more comes: what was expected beyond is dropped."""
        self._later = []
        self.report()

    def report(self) -> None:
        """Tell the host."""
        done = self.done + self._part_done
        total = self.done + max(self._part_known, self._part_estimate) + sum(self._later)
        self._channel.progress(self._stage, done, max(total, done), "tiles")


class Session:
    """The package with its joints replaced; :meth:`run` may be called again after :meth:`begin`."""

    def __init__(self, channel: Any, make_follower: Any) -> None:
        self.channel = channel
        self.request = channel.request
        self.folder = Path(channel.request["parts"])
        self.tiles = Tiles(channel, "tiles", [])
        self._make_follower = make_follower
        self.follower = make_follower([])
        self._is_coarse = False
        self._coarse_ids: set[int] = set()
        self._part_maps: dict[str, Any] = {}
        self._device = ""

    # -- life

    def install(self, api: Any, package: Any, device: str) -> None:
        """Replace the joints."""
        self._device = device
        self._package = package
        raw = import_module("nnunetv2.inference.predict_from_raw_data")
        for name in ("download_pretrained_weights", "increase_prediction_counter"):
            setattr(api, name, lambda *_: None)
        api.send_usage_stats = lambda *_: None
        package.get_output_folder = self._model_folder
        self._predict_part = package.nnUNetv2_predict
        package.nnUNetv2_predict = self._predict
        self._predict_image = package.nnUNet_predict_image
        package.nnUNet_predict_image = self._begin_image
        self._resample, self._turn, self._paste = (
            package.change_spacing,
            package.undo_canonical,
            package.undo_crop,
        )
        package.change_spacing = self._change_spacing
        package.undo_canonical = self._undo_canonical
        package.undo_crop = self._undo_crop
        self._hook_predictor(raw.nnUNetPredictor, raw)

    def begin(
        self,
        stage: str,
        stages: list[dict[str, Any]],
        *,
        is_coarse: bool = False,
        measures: list[str] | None = None,
    ) -> None:
        """Prepare for a pass over the volume."""
        self.tiles = Tiles(self.channel, stage, self._estimates(stages))
        self.follower = self._make_follower(measures or [])
        self._is_coarse = is_coarse
        self._coarse_ids = set(stages[-1]["datasets"]) if is_coarse else set()

    def run(self, api: Any, image: Any, device: str, arguments: dict[str, Any]) -> Any:
        """Run the package; returns uint8 labels, (z, y, x), on the image's grid."""
        import numpy as np

        self.channel.check()
        found: Any = None
        try:
            found = api.totalsegmentator(
                image,
                # With a path, an organ that is not there gives an empty result; without one the
                # package takes the whole image for the crop.
                self.channel.exchange / "segmentation.nii.gz",
                ml=True,
                quiet=True,
                skip_saving=True,
                device=device,
                nr_thr_saving=1,
                **arguments,
            )
        except SystemExit as error:
            self.channel.fail("engine_failed", f"TotalSegmentator gave up ({error.code})")
        labels = np.asarray(found.dataobj, dtype=np.uint8)
        return np.ascontiguousarray(labels.transpose(2, 1, 0))

    # -- weights and progress

    def _model_folder(self, dataset: Any, trainer: str, plans: str, model: str) -> str:
        known = self.request["weights"].get(str(dataset)) or self._refuse(dataset)
        return str(Path(known["path"]) / f"{trainer}__{plans}__{model}")

    def _refuse(self, dataset: Any) -> Any:
        self.channel.fail("unknown_model", f"the weights of dataset {dataset} are not there")

    def _estimates(self, stages: list[dict[str, Any]]) -> list[int]:
        return [
            self._estimate(stage, dataset)
            for stage in stages
            for dataset in stage["datasets"]
            if str(dataset) in self.request["weights"]
        ]

    def _estimate(self, stage: dict[str, Any], dataset: int) -> int:
        """Tiles of a dataset's network if it saw the whole image."""
        folder = self._model_folder(dataset, stage["trainer"], stage["plans"], stage["model"])
        try:
            plans = json.loads((Path(folder) / "plans.json").read_text(encoding="utf-8"))
            configuration = plans["configurations"][stage["model"]]
            patch = configuration["patch_size"]
            spacing = [float(value) for value in configuration["spacing"]]
        except (OSError, ValueError, KeyError):
            return 1
        size = [n * s for n, s in zip(*self._size_zyx(), strict=True)]
        count, step = 1, float(stage["step"])
        is_halved = self._is_coarse and dataset in self._coarse_ids
        for length, fine, tile in zip(size, spacing, patch, strict=True):
            n = round(length / fine) / (2 if is_halved else 1)
            count *= 1 if n <= tile else -int(-(n - tile) // (tile * step)) + 1
        return count * len(stage["folds"] or [0])

    def _size_zyx(self) -> tuple[list[int], list[float]]:
        """Extent and spacing with the axes in the order the networks see them."""
        import numpy as np

        nib: Any = import_module("nibabel")
        turn = nib.orientations.io_orientation(np.asarray(self.request["affine_xyz"]))[:, 0]
        shape, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
        for axis, world in enumerate(turn):
            shape[2 - int(world)] = self.request["shape_xyz"][axis]
            spacing[2 - int(world)] = self.request["spacing_xyz"][axis]
        return shape, spacing

    def _hook_predictor(self, predictor: Any, raw: Any) -> None:
        session = self
        cut, run, one = (
            predictor._internal_get_sliding_window_slicers,
            predictor._internal_predict_sliding_window_return_logits,
            predictor._internal_maybe_mirror_and_predict,
        )

        def slicers(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = cut(self, *args, **kwargs)
            session.tiles.announce(len(found))
            return found

        def tile(self: Any, *args: Any, **kwargs: Any) -> Any:
            session.channel.check()
            result = one(self, *args, **kwargs)
            session.tiles.step()
            return result

        def window(self: Any, data: Any, slicers: Any, do_on_device: bool = True) -> Any:
            if session.request["spares_device"]:
                do_on_device = False
            elif self.device.type == "cuda" and not do_on_device:
                session.tiles.restart(len(slicers))
                session.channel.warn(
                    "results_in_main_memory",
                    "the GPU's memory did not hold the results; this part is done again with them"
                    " in main memory",
                )
            return run(self, data, slicers, do_on_device)

        initialize = predictor.initialize_from_trained_model_folder

        def load(self: Any, folder: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return initialize(self, folder, *args, **kwargs)
            except _UNUSABLE as error:
                session.channel.fail(
                    "invalid_model",
                    f"the weights in {folder} can't be used by this version:"
                    f" {type(error).__name__}: {(str(error) or 'no reason').splitlines()[0]}",
                    "remove them and pull or import them again",
                )

        def predict_from_files(self: Any, source: str, output: str, **kwargs: Any) -> None:
            session._predict_files(raw, self, source, output, kwargs)

        predictor._internal_get_sliding_window_slicers = slicers
        predictor._internal_maybe_mirror_and_predict = tile
        predictor._internal_predict_sliding_window_return_logits = window
        predictor.initialize_from_trained_model_folder = load
        predictor.predict_from_files = predict_from_files

    # -- one part: kept once it is finished

    def _predict(self, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(self._predict_part).bind(*args, **kwargs)
        bound.apply_defaults()
        wish = bound.arguments
        source = Path(wish["dir_in"])
        is_coarse = self._is_coarse and wish["task_id"] in self._coarse_ids
        names = sorted({path.name[:3] for path in source.glob("s??_????.nii.gz")})
        kept = self.folder / self._key(wish, source, is_coarse)
        self.tiles.begin_part()
        self._part_maps = {}
        if (kept / "part.json").is_file():
            facts = json.loads((kept / "part.json").read_text(encoding="utf-8"))
            self.tiles.end_part(facts["tiles"])
        else:
            if is_coarse:
                self._predict_coarsely(wish, names)
            else:
                self._predict_part(*bound.args, **bound.kwargs)
            count = self.tiles.end_part()
            self._keep(kept, Path(wish["dir_out"]), names, count, wish["task_id"])
        for name in names:
            shutil.copyfile(kept / f"{name}.nii.gz", Path(wish["dir_out"]) / f"{name}.nii.gz")
            self.follower.merge(name, kept)

    def _key(self, wish: dict[str, Any], source: Path, is_coarse: bool) -> str:
        """Everything the labels of a part depend on."""
        facts = [
            str(wish.get(name))
            for name in ("task_id", "model", "folds", "trainer", "plans", "tta", "step_size")
        ]
        facts.append(str(wish.get("use_cropped_logits_resampling", False)))
        facts.append(self.request["weights"].get(str(wish["task_id"]), {}).get("sha256", ""))
        facts += [self._device.partition(":")[0], str(is_coarse), *self.follower.measures]
        facts.append(json.dumps(self.request["versions"], sort_keys=True))
        digest = hashlib.sha256("\n".join(facts).encode())
        for path in sorted(source.glob("s??_????.nii.gz")):
            with gzip.open(path) as stream:
                digest.update(path.name.encode())
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"{wish['task_id']}-{digest.hexdigest()[:24]}"

    def _keep(self, kept: Path, output: Path, names: list[str], tiles: int, dataset: Any) -> None:
        import numpy as np

        partial = kept.with_name(kept.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in names:
            shutil.copyfile(output / f"{name}.nii.gz", partial / f"{name}.nii.gz")
            if name in self._part_maps:
                np.save(partial / f"{name}.npy", self._part_maps[name])
        facts = {"tiles": tiles, "dataset": dataset}
        (partial / "part.json").write_text(json.dumps(facts), encoding="utf-8")
        shutil.rmtree(kept, ignore_errors=True)
        partial.rename(kept)
        self.channel.log(f"dataset {dataset} is done ({tiles} tiles) and kept")

    def _predict_coarsely(self, wish: dict[str, Any], names: list[str]) -> None:
        """The same network on every second voxel, tiles side by side."""
        import numpy as np

        nib: Any = import_module("nibabel")
        source, output = Path(wish["dir_in"]), Path(wish["dir_out"])
        with tempfile.TemporaryDirectory() as folder:
            coarse = Path(folder)
            for path in source.glob("s??_????.nii.gz"):
                image = nib.load(path)
                data = np.asarray(image.dataobj)[::2, ::2, ::2]
                nib.save(nib.Nifti1Image(data, image.affine), coarse / path.name)
            changed = {**wish, "dir_in": coarse, "dir_out": coarse, "step_size": 1.0}
            self._predict_part(**changed)
            for name in names:
                full = nib.load(source / f"{name}_0000.nii.gz")
                found = np.asarray(nib.load(coarse / f"{name}.nii.gz").dataobj)
                picks = [
                    np.minimum(np.arange(n) // 2, m - 1)
                    for n, m in zip(full.shape, found.shape, strict=True)
                ]
                grown = found[np.ix_(*picks)]
                nib.save(nib.Nifti1Image(grown, full.affine), output / f"{name}.nii.gz")

    def _predict_files(
        self, raw: Any, predictor: Any, source: str, output: str, wish: dict[str, Any]
    ) -> None:
        """What the predictor does with files, without its pools of processes."""
        import torch

        is_saved = bool(wish.get("save_probabilities", False))
        cases = predictor._manage_input_and_output_lists(
            source, output, wish.get("folder_with_segs_from_prev_stage"), True, 0, 1, is_saved
        )
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        special = {
            name: wish[name] for name in ("use_cropped_logits_resampling",) if wish.get(name)
        }
        for files, truncated, previous in zip(*cases, strict=True):
            data, _, properties = preprocessor.run_case(
                files,
                previous,
                predictor.plans_manager,
                predictor.configuration_manager,
                predictor.dataset_json,
            )
            if self.request["is_deterministic"]:
                torch.backends.cudnn.benchmark = False
                torch.backends.cudnn.deterministic = True
            tensor = torch.from_numpy(data).to(dtype=torch.float32)
            logits = predictor.predict_logits_from_preprocessed_data(tensor).cpu().numpy()
            if self.follower.measures:
                self._part_maps[Path(truncated).name] = self.follower.of_part(
                    predictor, logits, properties
                )
            raw.export_prediction_from_logits(
                logits,
                properties,
                predictor.configuration_manager,
                predictor.plans_manager,
                predictor.dataset_json,
                truncated,
                is_saved,
                **special,
            )

    # -- the way back to the input's grid

    def _begin_image(self, *args: Any, **kwargs: Any) -> Any:
        self.follower.begin()
        return self._predict_image(*args, **kwargs)

    def _change_spacing(self, image: Any, spacing: Any, *args: Any, **kwargs: Any) -> Any:
        result = self._resample(image, spacing, *args, **kwargs)
        if kwargs.get("force_affine") is not None:
            self.follower.resample(result.shape)
        return result

    def _undo_canonical(self, image: Any, original: Any) -> Any:
        self.follower.turn(self._turn, image, original)
        return self._turn(image, original)

    def _undo_crop(self, image: Any, reference: Any, box: Any) -> Any:
        self.follower.paste(reference.shape, box)
        return self._paste(image, reference, box)
