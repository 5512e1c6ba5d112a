"""From what was asked for to what a worker is given: inputs found, and names kept for paths."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lamella.core.errors import LamellaError
from lamella.server.problems import ProtocolError
from lamella.server.volumes.paths import volume_of
from lamella.server.worker import NamedPath, SegmentWork
from lamella.wire.job import JobSpec

if TYPE_CHECKING:
    from lamella.jobs.machine import JobRecord
    from lamella.server.services import Services

__all__ = ["name_of", "prepare_job", "recall_inputs"]

logger = logging.getLogger(__name__)


def prepare_job(services: Services, record: JobRecord) -> dict[str, Any]:
    """The document for the worker of a job whose turn has come.

    Whether its owner may read the inputs was checked when it was submitted; whether they are still
    there is found out now.

    Raises:
        LamellaError: for an input that is gone, or no longer allowed.
    """
    spec = JobSpec.model_validate(record.spec)
    request = spec.request
    psf = request.restore.psf if request.restore is not None else None
    settings, places = services.settings, services.places
    hidden = {str(settings.data_dir): "(server)"}
    if places.models is not None:
        hidden[str(places.models)] = "(models)"
    if places.environments is not None:
        hidden[str(places.environments)] = "(environments)"
    work = SegmentWork(
        request=request,
        input=_named(services, request.input.path, record.volume),
        psf=None if psf is None else _named(services, psf, None),
        exports=spec.exports,
        hidden=hidden,
        models=None if places.models is None else str(places.models),
        environments=None if places.environments is None else str(places.environments),
        is_offline=places.is_offline,
        block_min_voxels=settings.block_min_voxels if settings.is_on_cluster else 0,
    )
    return work.model_dump(mode="json")


def recall_inputs(services: Services, record: JobRecord) -> None:
    """See that the volumes of a job are on this disk before it waits for its turn.

    What else is wrong with an input is told when its turn has come.

    Raises:
        ProtocolError: 503, one is on its way from the storage.
    """
    try:
        prepare_job(services, record)
    except ProtocolError:
        raise
    except LamellaError as error:
        logger.info("job %s: %s", record.id, error)


def name_of(services: Services, text: str) -> str:
    """What the owner of an input calls it."""
    known = volume_of(text)
    if known is None:
        return text
    volume_id, inside = known
    name = services.volumes.get(volume_id).name or volume_id
    return f"{name}/{inside}" if inside else name


def _named(services: Services, text: str, volume: str | None) -> NamedPath:
    if volume is not None and volume_of(text) is None:
        # Fetched from S3 when the job was submitted.
        path = services.volumes.path_of(volume)
        services.volumes.touch(volume)
    else:
        path = services.volumes.resolve(text, None)
    return NamedPath(path=str(path), name=name_of(services, text))
