import contextlib

import pytest
import torch

from bench.device_timer import DeviceTimer

CUDA = torch.device("cuda")


class Gpu:
    """Stands for torch.cuda: a device on which every call takes `seconds`, and what it was asked for."""

    def __init__(self, monkeypatch, seconds):
        self.log, self.seconds = [], seconds
        log = self.log

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                log.append("event")

            def elapsed_time(self, end):
                return 1e3 * seconds * log.count("call")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append(("wait", cycles)))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("done"))
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def prepare(self, copy):
        self.log.append(f"prepared {copy}")
        return lambda: self.log.append("call")


@pytest.mark.parametrize(("seconds", "calls"), [(2e-5, 10), (4e-4, 3), (0.1, 1)])
def test_short_calls_are_measured_several_at_once(monkeypatch, seconds, calls):
    gpu = Gpu(monkeypatch, seconds)
    timer = DeviceTimer(gpu.prepare, CUDA)
    for _ in range(2):
        gpu.log.clear()
        timer.warm_up()
    assert timer.calls == calls
    gpu.log.clear()
    assert timer.seconds() == pytest.approx(seconds)
    *before, (wait, cycles), begin = gpu.log[: calls + 3]
    assert before == [*(f"prepared {copy}" for copy in range(calls)), "done"]
    assert wait == "wait" and 0 < cycles <= 1e8 and begin == "event"
    assert gpu.log[calls + 3 :] == ["call"] * calls + ["event", "done"]


def test_a_slow_first_call_makes_no_long_wait(monkeypatch):
    gpu = Gpu(monkeypatch, 1e-3)
    timer = DeviceTimer(gpu.prepare, CUDA)
    timer._host_seconds = 60.0
    timer.seconds()
    assert ("wait", 100_000_000) in gpu.log


def test_a_processor_is_timed_by_the_clock():
    timer = DeviceTimer(lambda copy: lambda: sum(range(100_000)), torch.device("cpu"))
    timer.warm_up()
    assert timer.calls == 1 and 1e-5 < timer.seconds() < 10
