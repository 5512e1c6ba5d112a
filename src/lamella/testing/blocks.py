"""What every runner of blocks promises: a suite to inherit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest

from lamella.core.errors import EngineError, LamellaError
from lamella.workflows.blocks import BlockRunner

__all__ = ["BlockRunnerContract"]

_FUNCTION = "lamella.testing.block_work:work"


class BlockRunnerContract(ABC):
    """Inherit, name the class ``Test…``, and give a runner with two workers."""

    @abstractmethod
    @pytest.fixture
    def runner(self) -> BlockRunner:
        """The runner."""
        ...

    def run(self, runner: BlockRunner, folder: Path, n: int, **how: Any) -> dict[int, Any]:
        """Answers of ``n`` documents; ``how`` says what the k-th does, as ``k3="die"``."""
        answers = [answer for answer in self.start(runner, folder, n, **how) if answer is not None]
        assert len({number for number, _ in answers}) == len(answers), "answered twice"
        return dict(answers)

    def start(self, runner: BlockRunner, folder: Path, n: int, **how: Any) -> Any:
        """The iterator of answers; ``pause_s`` slows every document down."""
        pause_s = how.pop("pause_s", 0.0)
        documents = {
            k: {"n": k, "folder": str(folder), "how": how.get(f"k{k}", ""), "pause_s": pause_s}
            for k in range(n)
        }
        return runner.run(_FUNCTION, documents)

    def test_every_document_is_answered_once(self, runner: BlockRunner, tmp_path: Path) -> None:
        answers = self.run(runner, tmp_path, 12)
        assert answers == {k: {"n": k, "square": k * k} for k in range(12)}
        assert runner.n_workers >= 2

    def test_nothing_to_do_is_done_at_once(self, runner: BlockRunner, tmp_path: Path) -> None:
        assert self.run(runner, tmp_path, 0) == {}

    def test_it_runs_again_and_again(self, runner: BlockRunner, tmp_path: Path) -> None:
        for n in (2, 3):
            assert len(self.run(runner, tmp_path, n)) == n

    def test_several_at_once(self, runner: BlockRunner, tmp_path: Path) -> None:
        self.run(runner, tmp_path, 6, pause_s=0.4)
        pids = {path.read_text().strip() for path in tmp_path.glob("*.ran")}
        assert len(pids) >= 2

    def test_waiting_yields_none(self, runner: BlockRunner, tmp_path: Path) -> None:
        assert None in list(self.start(runner, tmp_path, 1, pause_s=1.0))

    def test_an_error_is_an_answer_and_others_go_on(
        self, runner: BlockRunner, tmp_path: Path
    ) -> None:
        answers = self.run(runner, tmp_path, 5, k2="raise")
        assert isinstance(answers[2], EngineError)
        assert (answers[2].message, answers[2].hint) == ("it does not work", "try another")
        assert all(answers[k] == {"n": k, "square": k * k} for k in (0, 1, 3, 4))

    def test_a_worker_that_dies_costs_nothing(self, runner: BlockRunner, tmp_path: Path) -> None:
        answers = self.run(runner, tmp_path, 6, k3="die once")
        assert answers == {k: {"n": k, "square": k * k} for k in range(6)}
        assert len((tmp_path / "3.ran").read_text().splitlines()) >= 2

    def test_a_document_that_always_kills_is_an_error(
        self, runner: BlockRunner, tmp_path: Path
    ) -> None:
        answers = self.run(runner, tmp_path, 1, k0="die")
        assert isinstance(answers[0], LamellaError)
        assert "died" in answers[0].message
        assert "memory" in str(answers[0].hint)

    def test_closing_takes_back_what_has_not_begun(
        self, runner: BlockRunner, tmp_path: Path
    ) -> None:
        answers = self.start(runner, tmp_path, 200, pause_s=0.2)
        while next(answers) is None:
            pass
        answers.close()
        time.sleep(1.0)
        n_ran = len(list(tmp_path.glob("*.ran")))
        time.sleep(0.6)
        assert len(list(tmp_path.glob("*.ran"))) == n_ran < 100
