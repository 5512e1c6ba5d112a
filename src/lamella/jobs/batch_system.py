"""Where the Dask scheduler comes from: it runs somewhere, or this server starts a cluster."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lamella.core.errors import InputError, ServerConnectionError
from lamella.core.optional import require

__all__ = ["ClusterOptions", "connect", "start_cluster"]

ClusterKind = Literal["", "local", "slurm", "pbs", "lsf"]

_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
_CONNECT_S = 10.0
_IMPORTING = threading.Lock()
# It has no log-in, so it is not for the network; a free port is one that nobody else has taken.
_NO_DASHBOARD = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Which cluster runs the jobs.

    Attributes:
        scheduler: address of a running Dask scheduler, ``tls://HOST:8786`` or ``tcp://...``.
        kind: start workers as jobs of a batch system instead, or ``local`` ones.
        options: arguments of dask-jobqueue's cluster (``cores``, ``memory``, ``queue``, ...), and
            ``minimum`` and ``maximum``: how many workers there are at least and at most.
        resources: tags of every worker that is started here, such as ``{"gpu": 1}``.
        folder: seen by all nodes, for the certificates of a cluster that is started here; without
            it, and without certificates of one's own, its connections are not encrypted.
        tls_ca: certificate of the authority that signed scheduler, workers and this client.
        tls_cert: certificate of this client.
        tls_key: its key.
        grace_s: how long a cancelled attempt may go on before its worker is killed, seconds.
        name: who runs the jobs, as the queue knows it.
    """

    scheduler: str = ""
    kind: ClusterKind = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    folder: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    grace_s: float = 15.0
    name: str = "cluster"

    def __post_init__(self) -> None:
        if bool(self.scheduler) == bool(self.kind):
            raise InputError(
                "name either the address of a Dask scheduler or the kind of a cluster",
                hint="--scheduler tls://HOST:8786, or --cluster slurm",
            )
        if self.scheduler and not self.scheduler.startswith(("tls://", "tcp://")):
            raise InputError(
                f"expected the address of a Dask scheduler, got {self.scheduler!r}",
                hint="write it as tls://HOST:8786 or tcp://HOST:8786",
            )

    @property
    def maximum(self) -> int:
        """Workers that a cluster of our own may have; 0 for a scheduler that runs elsewhere."""
        return int(self.options.get("maximum", 1)) if self.kind else 0


def connect(options: ClusterOptions, cluster: Any = None) -> Any:
    """A :class:`distributed.Client` that is no process-wide default.

    Args:
        options: name the scheduler, and the certificates that it wants.
        cluster: of :func:`start_cluster`, whose own ones are taken instead.

    Raises:
        InputError: when it wants certificates.
        ServerConnectionError: when no scheduler answers.
        MissingDependencyError: when Dask is not installed here.
    """
    distributed = _distributed()
    target = options.scheduler if cluster is None else cluster.scheduler_address
    try:
        return distributed.Client(
            target,
            security=getattr(cluster, "security", None) or _security(options),
            timeout=_CONNECT_S,
            set_as_default=False,
            name=f"lamella-{options.name}",
        )
    except TypeError as error:
        raise InputError(
            f"{target} wants certificates, and none are named: {error}",
            hint="name files with --cluster-option tls_ca=FILE, tls_cert=FILE and tls_key=FILE",
        ) from error
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise ServerConnectionError(
            f"no Dask scheduler answers at {target}: {error}",
            hint="start it with `dask scheduler`, and check address, certificates and firewall",
        ) from error


def start_cluster(options: ClusterOptions) -> Any:
    """A cluster whose workers come and go with the work, with its scheduler in this process.

    Raises:
        InputError: for options that the kind of cluster does not know.
        MissingDependencyError: when dask-jobqueue is not installed here.
    """
    given = dict(options.options)
    minimum, maximum = int(given.pop("minimum", 0)), int(given.pop("maximum", 1))
    if not 0 <= minimum <= maximum or maximum < 1:
        raise InputError(
            f"a cluster of {minimum} to {maximum} workers cannot be",
            hint="set minimum and maximum with --cluster-option: 0 or more, and 1 or more",
        )
    try:
        if options.kind == "local":
            cluster = _distributed().LocalCluster(
                **{
                    "n_workers": minimum,
                    "threads_per_worker": 1,
                    "dashboard_address": _NO_DASHBOARD,
                }
                | {"resources": _dask_resources(options)}
                | given
            )
        else:
            cluster = getattr(_jobqueue(), _CLASSES[options.kind])(
                **_jobqueue_arguments(options, given)
            )
        cluster.adapt(minimum=minimum, maximum=maximum, interval="1s", wait_count=30)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the {options.kind} cluster does not take these options: {error}",
            hint="see the arguments of dask-jobqueue's clusters; cores and memory are needed",
        ) from error
    return cluster


def _jobqueue_arguments(options: ClusterOptions, given: dict[str, Any]) -> dict[str, Any]:
    """One worker a job of the batch system, one attempt at a time, all cores for the attempt."""
    extra = list(given.pop("worker_extra_args", []))
    # The last one counts: dask-jobqueue would start as many threads as there are cores.
    extra += ["--nthreads", "1"]
    resources = _dask_resources(options)
    if resources:
        extra += ["--resources", ",".join(f"{name}={n:g}" for name, n in resources.items())]
    prologue = list(given.pop("job_script_prologue", []))
    n_threads = int(given.get("cores", 1)) // max(1, int(given.get("processes", 1)))
    prologue += [
        f"export {name}={max(1, n_threads)}"
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ]
    scheduler = {"dashboard_address": _NO_DASHBOARD} | given.pop("scheduler_options", {})
    arguments = {"processes": 1, "job_name": "lamella-worker"} | given
    security = _security(options)
    if security is None and options.folder:
        # Whoever reaches a scheduler can run anything on its workers.
        security = _security(_with_certificates(options))
    return arguments | {
        "scheduler_options": scheduler,
        "worker_extra_args": extra,
        "job_script_prologue": prologue,
        "security": security,
    }


def _with_certificates(options: ClusterOptions) -> ClusterOptions:
    """The same with certificates made for this cluster, in files that only this user can read."""
    made = _distributed().Security.temporary()
    folder = Path(options.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    texts = {
        "tls_ca": made.tls_ca_file,
        "tls_cert": made.tls_client_cert,
        "tls_key": made.tls_client_key,
    }
    paths: dict[str, str] = {}
    for name, text in texts.items():
        path = folder / f"{name}.pem"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text, encoding="ascii")
        paths[name] = str(path)
    return replace(options, **paths)


def _dask_resources(options: ClusterOptions) -> dict[str, float]:
    return {name.upper(): amount for name, amount in options.resources.items()}


def _security(options: ClusterOptions) -> Any:
    if not (options.tls_ca or options.tls_cert):
        return None
    return _distributed().Security(
        tls_ca_file=options.tls_ca or None,
        tls_client_cert=options.tls_cert or None,
        tls_client_key=options.tls_key or None,
        tls_scheduler_cert=options.tls_cert or None,
        tls_scheduler_key=options.tls_key or None,
        tls_worker_cert=options.tls_cert or None,
        tls_worker_key=options.tls_key or None,
        require_encryption=True,
    )


def _jobqueue() -> Any:
    """dask-jobqueue, whose import would set what this process does on Ctrl-C.

    Outside of the main thread, where a server makes its cluster, the import would fail at that.
    """
    with _IMPORTING:
        set_handler = signal.signal
        signal.signal = lambda number, _handler: signal.getsignal(number)
        try:
            return require("dask_jobqueue", extra="cluster", purpose="starting workers as jobs")
        finally:
            signal.signal = set_handler


def _distributed() -> Any:
    # Its import would make it talkative again, whatever the program had said before.
    logger = logging.getLogger("distributed")
    level = logger.level
    module = require("distributed", extra="cluster", purpose="running jobs on a Dask cluster")
    if level != logging.NOTSET:
        logger.setLevel(level)
    return module
