"""Where a network runs, where the request leaves it open."""

import pytest

from lamella.core.errors import InputError
from lamella.inference import device
from lamella.inference.device import Machine, choose_device, choose_machine


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (("cpu", "auto", "auto"), ("cpu", "openvino", "fp32")),
        (("cpu", "torch", "auto"), ("cpu", "torch", "fp32")),
        (("cpu", "auto", "bf16"), ("cpu", "openvino", "bf16")),
        (("cuda", "auto", "auto"), ("cuda", "torch", "fp16")),
        (("cuda:1", "torch", "fp32"), ("cuda:1", "torch", "fp32")),
    ],
)
def test_what_is_named_stays_and_the_rest_is_chosen(asked, chosen):
    assert choose_machine(*asked) == Machine(*chosen)


def test_openvino_on_another_device_is_refused():
    with pytest.raises(InputError, match="OpenVINO runs on the CPU here, not on cuda:1") as caught:
        choose_machine("cuda:1", "openvino", "auto")
    assert "--device cpu" in (caught.value.hint or "")


def test_without_openvino_only_those_who_may_lack_it_take_pytorch(monkeypatch):
    monkeypatch.setattr(device, "is_importable", lambda name: name != "openvino")
    assert choose_machine("cpu", "auto", "auto").runtime == "openvino"
    assert choose_machine("cpu", "auto", "auto", may_lack_openvino=True).runtime == "torch"
    asked = choose_machine("cpu", "openvino", "auto", may_lack_openvino=True)
    assert asked.runtime == "openvino", "an error will say what is missing"


def test_without_pytorch_or_a_driver_the_cpu_is_chosen(monkeypatch):
    assert choose_device("cuda:3") == "cuda:3"
    monkeypatch.setattr(device, "is_importable", lambda name: False)
    monkeypatch.setattr(device.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert choose_device("auto") == "cpu"
