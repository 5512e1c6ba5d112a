"""OpenVINO is imported without its usage statistics."""

import os
import subprocess
import sys


def test_importing_openvino_leaves_no_trace_in_the_home_folder(tmp_path):
    code = (
        "from lamella.core.optional import import_openvino; ov = import_openvino();"
        "import sys; assert sys.modules['openvino_telemetry'] is None;"
        "import openvino.tools.ovc.telemetry_utils as t; print(t.tm.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
        check=True,
    )
    assert done.stdout.strip().endswith("telemetry_stub")
    assert list(tmp_path.iterdir()) == []
