"""Workers in processes of their own: what crosses the boundary, and what never does."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lamella.core.errors import (
    DeviceMemoryError,
    EngineError,
    InputError,
    RunCancelledError,
)
from lamella.core.progress import SilentSink
from lamella.isolation.process import exchanged_array, relay, run_worker
from lamella.testing.engine import RecordingSink

HEAD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import child

def main(channel):
"""
TAIL = """
if __name__ == "__main__":
    child.serve(main)
"""


@pytest.fixture
def work(tmp_path):
    """Runs the lines of a worker's ``main``; returns its result and the other messages."""

    def work(lines, *, sink=None, answer=None, grace_s=5.0, **request):
        worker = tmp_path / "worker.py"
        body = "\n".join(f"    {line}" for line in lines.strip().splitlines())
        worker.write_text(HEAD + body + TAIL)
        exchange = tmp_path / "exchange"
        exchange.mkdir(exist_ok=True)
        messages = []

        def take(message):
            messages.append(message)
            return answer(message) if answer and message["type"] == "ask" else None

        result = run_worker(
            Path(sys.executable),
            worker,
            request,
            sink=sink or SilentSink(),
            on_message=take,
            exchange=exchange,
            grace_s=grace_s,
        )
        return result, messages

    return work


def test_a_request_goes_in_and_messages_come_out(work, tmp_path):
    result, messages = work(
        """
import numpy as np
channel.progress("thinking", 1, 2, "steps")
channel.log("hello")
channel.warn("odd", "this is odd")
name = channel.save("a.npy", np.arange(6).reshape(2, 3) + channel.request["offset"])
channel.block((0, 0), np.array([2, 3]), name, n=np.int64(4))
channel.result(mean=np.float32(0.5), where=channel.exchange)
""",
        offset=10,
    )
    assert result["mean"] == 0.5
    assert [message["type"] for message in messages] == ["progress", "log", "warning", "block"]
    assert messages[3]["stop"] == [2, 3]
    array = exchanged_array(tmp_path / "exchange", messages[3]["array"])
    np.testing.assert_array_equal(array, np.arange(10, 16).reshape(2, 3))
    assert not array.flags.writeable


def test_relative_paths_mean_the_same_to_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker.py").write_text(
        HEAD + "    channel.result(there=(channel.exchange / 'x').read_text())" + TAIL
    )
    (tmp_path / "exchange").mkdir()
    (tmp_path / "exchange" / "x").write_text("here")
    result = run_worker(
        Path(sys.executable),
        Path("worker.py"),
        {},
        sink=SilentSink(),
        on_message=lambda _: None,
        exchange=Path("exchange"),
    )
    assert result["there"] == "here"


def test_a_question_is_answered(work):
    result, _ = work(
        "channel.result(sum=sum(channel.ask('number', at=n)['value'] for n in range(3)))",
        answer=lambda message: {"value": message["at"] ** 2},
    )
    assert result["sum"] == 5


def test_what_an_engine_prints_is_never_taken_for_a_message(work):
    result, messages = work(
        """
print('{"type": "result", "forged": true}', flush=True)
os.write(1, b'{"type": "error", "code": "x"}\\n')
os.system("echo deep chatter")
channel.result(forged=False)
"""
    )
    assert result["forged"] is False
    assert messages == []


def test_an_error_keeps_its_kind_and_hint(work):
    with pytest.raises(InputError, match="too thin") as caught:
        work("channel.fail('invalid_input', 'too thin', 'use a thicker one')")
    assert caught.value.hint == "use a thicker one"


def test_an_unexpected_error_is_the_engines_and_keeps_its_traceback(work):
    with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
        work("print('before the end', file=sys.stderr); 1 / 0")
    assert "worker.py" in caught.value.details["traceback"]
    assert "before the end" in caught.value.details["stderr"]


def test_a_code_that_nobody_knows_is_the_engines_failure(work):
    with pytest.raises(EngineError, match="odd"):
        work("channel.fail('no_such_code', 'odd')")


def test_a_devices_lack_of_memory_is_told_apart(work):
    with pytest.raises(DeviceMemoryError, match="2 GiB"):
        work(
            """
class OutOfMemoryError(RuntimeError): pass
raise OutOfMemoryError("tried to allocate 2 GiB")
"""
        )


def test_a_killed_worker_is_named_by_its_signal_with_its_last_words(work):
    with pytest.raises(EngineError, match="SIGKILL") as caught:
        work("print('my last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)")
    assert "my last words" in caught.value.message
    assert "memory" in caught.value.hint


def test_a_worker_that_ends_without_a_word_is_an_error(work):
    with pytest.raises(EngineError, match="exit code 3 and no result"):
        work("os._exit(3)")


def test_a_flood_on_standard_error_blocks_nothing_and_is_not_kept(work):
    with pytest.raises(EngineError) as caught:
        work("[print('x' * 1000, file=sys.stderr) for _ in range(2000)]; os._exit(1)")
    assert len(caught.value.details["stderr"]) <= 4000


def test_cancelling_stops_a_worker_that_looks(work):
    sink = SilentSink()
    threading.Timer(1.0, sink.token.cancel).start()
    began = time.monotonic()
    with pytest.raises(RunCancelledError):
        work("while True: channel.check(); time.sleep(0.05)", sink=sink, grace_s=30)
    assert time.monotonic() - began < 15


def test_a_worker_that_does_not_look_is_killed_with_its_children(work, tmp_path):
    pids = tmp_path / "pids"
    sink = SilentSink()

    def cancel():
        while not pids.exists():
            time.sleep(0.02)
        sink.token.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(RunCancelledError):
        work(
            f"""
import subprocess
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pids) + "~"!r}, "w").write(f"{{os.getpid()}} {{other.pid}}")
os.rename({str(pids) + "~"!r}, {str(pids)!r})
time.sleep(600)
""",
            sink=sink,
            grace_s=0.5,
        )
    for pid in map(int, pids.read_text().split()):
        for _ in range(100):
            if not is_running(pid):
                break
            time.sleep(0.05)
        assert not is_running(pid)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_worker_whose_host_is_gone_ends_itself(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(HEAD + "    channel.log('up'); time.sleep(600)" + TAIL)
    import json
    import subprocess

    from lamella.isolation import child

    process = subprocess.Popen(
        [sys.executable, "-I", str(worker), str(Path(child.__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    first = {"protocol": child.PROTOCOL_VERSION, "request": {}, "exchange": str(tmp_path)}
    process.stdin.write(json.dumps(first).encode() + b"\n")
    process.stdin.flush()
    assert b"up" in process.stdout.readline()
    process.stdin.close()
    assert process.wait(timeout=20) == 70
    process.stdout.close()


def test_a_caller_that_fails_stops_the_worker(work):
    def refuse(message):
        raise InputError("no more")

    began = time.monotonic()
    with pytest.raises(InputError, match="no more"):
        work("channel.ask('x'); time.sleep(600)", answer=refuse, grace_s=0.5)
    assert time.monotonic() - began < 20


def test_the_network_is_refused_unless_allowed(work):
    lines = """
import urllib.request
try:
    urllib.request.urlopen("http://192.0.2.1:9/", timeout=0.2)
except Exception as error:
    channel.result(said=repr(error), hub=os.environ.get("HF_HUB_OFFLINE"))
"""
    result, _ = work(lines)
    assert "may not be used" in result["said"]
    assert result["hub"] == "1"
    result, _ = work(lines, network=True)
    assert "may not be used" not in result["said"]


def test_a_worker_may_listen_on_this_machine(work):
    result, _ = work(
        """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
channel.result(ok=True)
"""
    )
    assert result["ok"]


def test_the_neighbours_of_child_cannot_be_imported(work):
    result, _ = work(
        """
from importlib.util import find_spec
channel.result(found=find_spec("environment") is not None)
"""
    )
    assert result["found"] is False


def test_an_interpreter_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(EngineError, match="can't be started") as caught:
        run_worker(
            tmp_path / "no-python",
            tmp_path / "worker.py",
            {},
            sink=SilentSink(),
            on_message=lambda _: None,
            exchange=tmp_path,
        )
    assert "lamella engines install" in caught.value.hint


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", "missing.npy"])
def test_an_array_outside_the_exchange_folder_is_refused(tmp_path, name):
    np.save(tmp_path / "secret.npy", np.zeros(3))
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(EngineError):
        exchanged_array(inside, name)


def test_messages_become_events():
    sink = RecordingSink()
    assert relay({"type": "progress", "stage": "s", "done": 5, "total": 3, "unit": "u"}, sink)
    assert relay({"type": "log", "message": "m"}, sink)
    assert relay({"type": "warning", "code": "c", "message": "m"}, sink)
    assert not relay({"type": "block"}, sink)
    assert [event.type for event in sink.events] == ["progress", "log", "warning"]
    assert sink.events[0].done == 3
