"""What every reader promises, damaged files above all, as a pytest class to inherit.

Formats that are also written inherit :class:`lamella.testing.io.FormatContract` instead, which
includes this.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from lamella.core.errors import LamellaError, MissingPathError, StorageError
from lamella.io.format import OpenOptions, descriptors, open_volume
from lamella.testing.strategies import boxes_of

__all__ = ["FEW", "MANY", "ReaderContract"]

# How many examples is the profile's matter: dev few, nightly a thousand.
MANY = settings(
    deadline=None,
    # One method, many inheriting classes: they share nothing but the code.
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.differing_executors,
    ],
)
_NOBODY = 65534
FEW = settings(MANY, max_examples=max(20, MANY.max_examples // 10))


class ReaderContract:
    """What every reader promises, damaged files above all. Inherit and give :meth:`make_example`.

    Attributes:
        format_id: id of the descriptor.
        suffix: suffix of a file of this format; empty for folders without one.
        is_folder: whether a volume is a folder.
        is_lazy: whether a slice is read without reading the whole.
    """

    format_id: ClassVar[str]
    suffix: ClassVar[str]
    is_folder: ClassVar[bool] = False
    is_lazy: ClassVar[bool] = True

    def make_example(self, folder: Path) -> Path:
        """Write a valid file (or folder) of this format, at most some kilobytes, noise inside."""
        raise AssertionError("a reader's suite must say how to make an example")

    def load(self, path: Path) -> NDArray[Any]:
        """Open and read everything."""
        return open_volume(path, self.open_options(path)).load()

    def open_options(self, path: Path) -> OpenOptions:
        """Options that the format needs to open ``path``."""
        del path
        return OpenOptions()

    def test_is_declared(self) -> None:
        known = {known.id: known for known in descriptors()}
        assert self.format_id in known
        assert callable(known[self.format_id].load().probe)
        assert callable(known[self.format_id].load().read)

    def test_example_opens_with_its_path(self, tmp_path: Path) -> None:
        path = self.make_example(tmp_path)
        volume = open_volume(path, self.open_options(path))
        assert volume.path == path
        assert volume.dtype.isnative
        whole = volume.load()
        assert whole.shape == volume.shape
        assert whole.dtype == volume.dtype

    def test_spaces_and_unicode_in_the_path(self, tmp_path: Path) -> None:
        folder = tmp_path / "Zürich data µm 細胞"
        folder.mkdir()
        path = self.make_example(folder)
        moved = folder / f"a name with spaces é (1){self.suffix}"
        path.rename(moved)
        assert_array_equal(self.load(moved), self.load(self.make_example(folder)))

    @FEW
    @given(data=st.data())
    def test_slices_equal_the_whole(self, tmp_path: Path, data: st.DataObject) -> None:
        path = tmp_path / f"example{self.suffix}"
        if not path.exists():
            made = self.make_example(tmp_path)
            path = made
        volume = open_volume(path, self.open_options(path))
        whole = volume.load()
        box = data.draw(boxes_of(volume.shape))
        part = np.asarray(volume.data[box])
        assert part.dtype == volume.dtype
        assert_array_equal(part, whole[box])
        first = np.asarray(volume.data[box[0].start])
        assert_array_equal(first, whole[box[0].start])

    def test_threads_read_what_one_reads(self, tmp_path: Path) -> None:
        path = self.make_example(tmp_path)
        volume = open_volume(path, self.open_options(path))
        whole = volume.load()
        wrong: list[BaseException | str] = []

        def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            try:
                for _ in range(20):
                    starts = [int(random.integers(0, n)) for n in volume.shape]
                    box = tuple(
                        slice(s, int(random.integers(s, n)) + 1)
                        for s, n in zip(starts, volume.shape, strict=True)
                    )
                    if not np.array_equal(
                        np.asarray(volume.data[box]),
                        whole[box],
                        equal_nan=whole.dtype.kind in "fc",
                    ):
                        wrong.append(f"{box} differs")
            except Exception as error:  # noqa: BLE001 - handed to the test's own thread
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(MissingPathError):
            open_volume(tmp_path / f"nothing{self.suffix}")

    def test_empty_file_or_folder(self, tmp_path: Path) -> None:
        path = tmp_path / f"empty{self.suffix}"
        if self.is_folder:
            path.mkdir()
        else:
            path.touch()
        self._refuses(path)

    def test_truncated(self, tmp_path: Path) -> None:
        path = self.make_example(tmp_path)
        if self.is_folder:
            pytest.skip("folders: the fuzz below cuts each file inside")
        whole = path.read_bytes()
        for fraction in (0.01, 0.25, 0.5, 0.75, 0.95):
            path.write_bytes(whole[: max(1, int(len(whole) * fraction))])
            self._refuses(path, f"cut to {fraction:.0%}")

    def test_wrong_magic_and_garbage(self, tmp_path: Path) -> None:
        if self.is_folder:
            pytest.skip("a folder has no magic")
        path = tmp_path / f"garbage{self.suffix}"
        noise = np.random.default_rng(0).bytes(5000)
        for content in (b"\0" * 5000, noise, b"not an image\n" * 300, b"%PDF-1.7\n" + noise, b"x"):
            path.write_bytes(content)
            self._refuses(path, repr(content[:12]))

    @MANY
    @given(data=st.data())
    def test_damage_gives_one_error_or_a_volume(self, tmp_path: Path, data: st.DataObject) -> None:
        """Flipped, cut and overwritten bytes: an error of ours or an array, nothing else."""
        folder = tmp_path / f"fuzz-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        path = self.make_example(folder)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        victim = data.draw(st.sampled_from(files))
        content = bytearray(victim.read_bytes())
        # Headers matter most: half of the damage goes to the first 2 kB.
        reach = data.draw(st.sampled_from([min(len(content), 2048), len(content)]))
        for _ in range(data.draw(st.integers(1, 8))):
            if content:
                at = data.draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
                content[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content))) :]
        victim.write_bytes(bytes(content))
        try:
            volume = open_volume(path, self.open_options(path))
            if volume.nbytes < 2**28:
                volume.load()
        except LamellaError:
            return

    def test_no_permission(self) -> None:
        # Not under pytest's own folder, which only its owner may enter.
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            path = self.make_example(folder)
            open_volume(path, self.open_options(path))  # loads what is imported late
            path.chmod(0)
            try:
                with _without_privilege(), pytest.raises(StorageError, match="may not be read"):
                    open_volume(path, self.open_options(path))
            finally:
                path.chmod(0o755)

    @FEW
    @given(head=st.binary(max_size=4096))
    def test_probe_never_raises(self, tmp_path: Path, head: bytes) -> None:
        module = next(known for known in descriptors() if known.id == self.format_id).load()
        path = tmp_path / f"some{self.suffix}"
        if self.is_folder:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(head)
        probe = module.probe(path, b"" if self.is_folder else head)
        assert probe.verdict in ("yes", "no", "maybe")
        assert probe.reason

    def _refuses(self, path: Path, what: str = "") -> None:
        with pytest.raises(LamellaError) as caught:
            self.load(path)
        assert caught.value.message, what
        assert len(caught.value.message.splitlines()) <= 3, what
        assert caught.value.hint, f"{what}: {caught.value.message!r} has no hint"


@contextmanager
def _without_privilege() -> Iterator[None]:
    """Root may read everything: act as nobody for a moment."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
