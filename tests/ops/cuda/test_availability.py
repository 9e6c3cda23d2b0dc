"""Whether the CUDA backend is there goes by the code in the extension and the GPUs of the machine."""

import pytest
import torch

from earlybert_kernels import env
from earlybert_kernels.backends import cuda
from earlybert_kernels.ops import dispatch

#: Builds by what nvcc made, and GPUs by whether any of it runs there.
BUILDS = [
    (["sm_90a"], {80: False, 86: False, 90: True, 100: False, 120: False}),
    (["sm_80", "compute_80"], {75: False, 80: True, 86: True, 90: True, 120: True}),
    (["sm_86"], {80: False, 86: True, 89: True, 90: False}),
    (["sm_100"], {90: False, 100: True, 103: True, 110: False, 120: False}),
    (["sm_100f"], {90: False, 100: True, 103: True, 120: False}),
    (["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "compute_80"], {70: False, 80: True, 90: True, 103: True}),
]


@pytest.fixture
def machine(monkeypatch):
    """Plays a machine with these GPUs and a build of the extension with that code."""

    def play(code, *gpus):
        flags = ["-O3", *(f"-gencode=arch={each.replace('sm', 'compute')},code={each}" for each in code)]
        monkeypatch.setattr(cuda, "build_record", lambda: {"_cuda": {"built": True, "flags": flags}})
        monkeypatch.setattr(cuda, "architecture_of", lambda gpu: gpus[gpu])
        monkeypatch.setattr(cuda, "EMULATED", False)
        monkeypatch.setattr(cuda, "missing", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        forget()

    def forget():
        cuda.unavailable.cache_clear()
        cuda._lacks_code.cache_clear()

    yield play
    monkeypatch.undo()
    forget()


class OnGpu:
    """What the backend looks at of a tensor on a GPU."""

    def __init__(self, gpu):
        self.device, self.dtype = torch.device("cuda", gpu), torch.float32

    def is_floating_point(self):
        return True

    def get_device(self):
        return self.device.index


@pytest.mark.parametrize(("code", "gpus"), BUILDS, ids=[" ".join(code) for code, _ in BUILDS])
def test_code_runs_where_it_was_made_for(machine, code, gpus):
    for architecture, runs in gpus.items():
        machine(code, architecture)
        reasons = [cuda.unavailable(), cuda.refuses(OnGpu(0))]
        if runs:
            assert reasons == [None, None], architecture
        else:
            assert all(f"code for {', '.join(code)}, and none of it runs on this GPU (sm_{architecture})" in r
                       for r in reasons)  # fmt: skip


def test_one_of_two_gpus_is_enough_and_the_other_ones_tensors_are_refused(machine):
    machine(["sm_90a"], 80, 90)
    assert cuda.unavailable() is None
    assert "(sm_80)" in cuda.refuses(OnGpu(0)) and cuda.refuses(OnGpu(1)) is None
    machine(["sm_90a"], 80, 86)
    assert "(sm_80)" in cuda.unavailable()


def test_without_a_gpu_that_is_the_reason(machine):
    machine(["sm_90a"])
    assert cuda.unavailable() == "torch sees no CUDA GPU"


def test_the_reason_is_reported_and_raised(machine, monkeypatch):
    machine(["sm_90a"], 86)
    # torch has no GPU to tell about.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(dispatch, "architecture_of", lambda gpu: 86)
    reason = "code for sm_90a, and none of it runs on this GPU (sm_86)"
    assert reason in dispatch.unavailable("attention")["cuda"] and "cuda" not in dispatch.backends("attention")
    rows = list(env._ops())
    assert sum(name.strip() == "not cuda" and reason in value for name, value in rows) >= len(dispatch.op_names()) - 1
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="none of it runs on this GPU"):
        dispatch.choose("dropout_add_layer_norm", "cuda", x, x, x, x)
