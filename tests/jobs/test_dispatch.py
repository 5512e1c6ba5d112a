"""The embedded queue: SQLite and processes of this machine."""

from lamella.testing.dispatch import DispatcherContract


class TestEmbedded(DispatcherContract):
    def executor_source(self):
        return (
            "from lamella.jobs.local import LocalExecutor, LocalOptions\n"
            f"executor = LocalExecutor(LocalOptions(n_workers=2, grace_s={self.grace_s}))\n"
        )
