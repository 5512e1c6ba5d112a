"""What is checked before a job is queued: everything that would fail for certain hours later.

Inputs belong to whoever asks, models are known, formats can be written, paths of the server stay
below its allowed roots, and the disk has room.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import (
    ConflictError,
    ForbiddenError,
    InputError,
    MissingPathError,
    StorageError,
)
from lamella.jobs.machine import NewJob
from lamella.server.artifacts.make import check_suffix
from lamella.server.volumes.owned import owned_volume
from lamella.server.volumes.paths import volume_of
from lamella.wire.problem import Problem
from lamella.wire.upload import VolumeSpec

if TYPE_CHECKING:
    from lamella.engines.engine import EngineDescriptor
    from lamella.server.auth import Principal
    from lamella.server.services import Services
    from lamella.server.volumes.rows import VolumeRecord
    from lamella.wire.job import JobSpec
    from lamella.wire.request import SegmentRequest

__all__ = ["Submission", "check_key"]

_FETCH_S = 20.0
"""How long a request waits for its input to be fetched or probed; then it has to come again."""
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_PATH_WORDS = ("path", "folder", "file", "dir", "weights", "checkpoint")
"""Names of engine options that may name files."""


def check_key(key: str | None) -> str | None:
    """An idempotency key as it came.

    Raises:
        InputError: for one that is too long or not plain text.
    """
    if key is None or _KEY.fullmatch(key):
        return key
    raise InputError(
        f"an Idempotency-Key has 1 to 255 visible ASCII characters, got {len(key)} characters",
        hint="send a random UUID",
    )


class Submission:
    """The jobs of one request; what they have in common is checked once.

    Args:
        services: of the server.
        who: asks for them.
    """

    def __init__(self, services: Services, who: Principal) -> None:
        _check_disk(services)
        self._services = services
        self._who = who
        self._engines: dict[tuple[str, str | None], EngineDescriptor] = {}
        self._volumes: dict[str, VolumeRecord | None] = {}
        self._named: set[str] = set()

    def job(self, spec: JobSpec, key: str | None = None) -> NewJob:
        """A job that can be queued.

        Args:
            spec: what is asked for.
            key: the same key is the same job.

        Raises:
            LamellaError: of the kind that fits what is wrong with it.
        """
        services, who, request = self._services, self._who, spec.request
        for suffix in spec.exports:
            check_suffix(suffix)
        _check_paths(services, request)
        engine = self._engine(request)
        owner = None if who.is_admin else who.user
        text = request.input.path
        if text not in self._volumes:
            self._volumes[text] = _input_volume(services, who, text, owner)
        volume = self._volumes[text]
        if volume is not None:
            self._named.add(volume.id)
        if request.restore is not None and request.restore.psf is not None:
            services.volumes.resolve(request.restore.psf, owner)
            if (psf := volume_of(request.restore.psf)) is not None:
                self._named.add(psf[0])
        return NewJob(
            owner=who.user,
            kind=spec.kind,
            spec=spec.model_dump(mode="json"),
            name=spec.name,
            priority=spec.priority,
            resources=_resources(services, request, engine),
            volume=None if volume is None else volume.id,
            idempotency_key=key,
            cost=_n_voxels(volume),
            estimate_key=f"{spec.kind}:{request.model}"[:128],
        )

    def confirm(self, job_ids: Iterable[str]) -> None:
        """See that no volume was removed between the look at it and the jobs that need it.

        From now on none is: those who remove look for jobs that have not ended.

        Raises:
            MissingPathError: when one was; the jobs are cancelled.
        """
        services = self._services
        gone = [volume for volume in sorted(self._named) if not services.volumes.touch(volume)]
        if not gone:
            return
        for job_id in job_ids:
            # One that was started at once has failed by itself.
            with contextlib.suppress(ConflictError):
                services.jobs.cancel(job_id)
            services.dispatcher.changed(job_id)
        raise MissingPathError(
            f"volume {gone[0]} was removed while the job was submitted",
            hint="send the volume again",
        )

    def _engine(self, request: SegmentRequest) -> EngineDescriptor:
        key = (request.model, request.engine)
        if key not in self._engines:
            self._engines[key] = _check_model(self._services, request)
        return self._engines[key]


def _check_disk(services: Services) -> None:
    settings = services.settings
    free = shutil.disk_usage(settings.data_dir).free
    if free < settings.min_free_bytes:
        raise StorageError(
            f"the server's disk has {free / 1e9:,.1f} GB free and keeps"
            f" {settings.min_free_bytes / 1e9:,.1f} GB free: no jobs are taken",
            hint="remove jobs and volumes that nobody needs, or ask whoever runs the server",
        )


def _input_volume(
    services: Services, who: Principal, text: str, owner: str | None
) -> VolumeRecord | None:
    """The volume that an input is, fetched where it lies in S3; None for a path of the server."""
    known = volume_of(text)
    if text.lower().startswith("s3://"):
        record = services.volumes.create(who.user, VolumeSpec(url=text))
    elif known is None:
        services.volumes.resolve(text, owner)
        return None
    else:
        record = owned_volume(services, who, known[0])
    record = services.volumes.wait(record.id, _FETCH_S)
    if record.state == "preparing":
        raise ConflictError(
            f"the input {text[:200]} is still being prepared, as volume {record.id}",
            hint="submit the job again in a while; what is fetched is kept",
            details={"volume": record.id, "retry_after_s": 10},
        )
    if record.state == "refused" and record.problem is not None:
        raise Problem.model_validate(record.problem).to_error()
    if known is not None:
        services.volumes.resolve(text, owner)
    return record


def _check_paths(services: Services, request: SegmentRequest) -> None:
    """Let no request reach beyond the allowed roots by the name of a model or an option."""
    _, colon, rest = request.model.partition(":")
    for reference in {request.model, rest} if colon else {request.model}:
        if _is_path(reference) and not request.model.lower().startswith("http"):
            _check_root(services, "a model", reference)
    for name, value in request.options.items():
        is_named = any(word in name.lower() for word in _PATH_WORDS)
        if isinstance(value, str) and (_is_path(value) or (is_named and Path(value).exists())):
            _check_root(services, f"the option {name!r}", value)


def _is_path(text: str) -> bool:
    """Whether a name could mean a file: ids and task names have no such characters."""
    return any(mark in text for mark in ("/", "\\", "\0")) or text.startswith((".", "~"))


def _check_root(services: Services, what: str, text: str) -> None:
    path = text.partition(":")[2] if ":" in text and not text.startswith("/") else text
    try:
        services.volumes.roots.resolve(path)
    except (InputError, ForbiddenError):
        raise InputError(
            f"{what} named {text[:200]!r} is a path, and not one that this server reads",
            hint="name a model by its id (GET /api/v1/models), or let whoever runs the server allow"
            " the folder with --allow-root",
        ) from None


def _check_model(services: Services, request: SegmentRequest) -> EngineDescriptor:
    """The engine of the request's model, which is here.

    Raises:
        LamellaError: for a model or an engine that is not.
    """
    from lamella.workflows.prepare import find_model_of

    if Path(request.model).exists() and not Path(request.model).is_absolute():
        # A name of the server's own folder by chance; models are never looked for there.
        raise InputError(f"{request.model!r} is no id of a model", hint="GET /api/v1/models")
    return find_model_of(request, services.places)


def _resources(
    services: Services, request: SegmentRequest, engine: EngineDescriptor
) -> dict[str, float]:
    has_gpus = services.dispatcher is not None and services.dispatcher.limits().get("gpu", 0) > 0
    device = request.device.partition(":")
    if device[0] == "cuda":
        if not has_gpus:
            raise InputError(
                f"the request asks for the device {request.device!r}; this server has no GPU",
                hint="leave the device out, or say cpu",
            )
        if device[2] not in ("", "0"):
            raise InputError(
                f"the server chooses among its GPUs; the request asks for {request.device!r}",
                hint="say cuda",
            )
        return {"gpu": 1}
    wants_gpu = device[0] == "auto" and "cuda" in engine.devices
    return {"gpu": 1} if wants_gpu and has_gpus else {}


def _n_voxels(volume: VolumeRecord | None) -> float | None:
    """How much work it is; None where nobody knows."""
    geometry = (volume.facts or {}).get("geometry") if volume is not None else None
    return None if not geometry else float(math.prod(geometry["shape"]))
