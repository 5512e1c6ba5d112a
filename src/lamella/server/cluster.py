"""The cluster of a server: runs its jobs, and says why it cannot where it cannot."""

from __future__ import annotations

from lamella.jobs.cluster import ClusterExecutor

__all__ = ["ServerCluster"]


class ServerCluster(ClusterExecutor):
    """A :class:`~lamella.jobs.cluster.ClusterExecutor` that knows how it is.

    Args:
        options: which cluster.
    """

    def problem(self) -> str | None:
        """Why no job can run now; None when some can. Asks nobody: what was heard last counts.

        The scheduler's address is not told: whoever asks has shown no token.
        """
        with self._lock:
            if self._client.status != "running":
                return "the scheduler cannot be reached"
            # A batch system starts workers when there is something to do.
            if not self._workers and not self.options.maximum:
                return "the scheduler has no workers"
        return None
