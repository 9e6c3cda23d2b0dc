import pytest
import torch

from bench.ops.correctness import WrongResultError, check_results

EXACT = {"output": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)}
PLAIN = {"output": torch.tensor([1.0, -2.0, 3.0 + 3e-6])}


def check(*numbers):
    return check_results({"output": torch.tensor(numbers)}, PLAIN, EXACT, torch.float32)


def test_an_error_like_plain_pytorchs_passes():
    assert check(1.0, -2.0 - 5e-6, 3.0)["output"] == pytest.approx(5e-6 / 3, rel=0.1)


@pytest.mark.parametrize("numbers", [(1.0, -2.0, 3.0 + 2e-5), (1.0, -2.0, float("nan")), (1.0, 2.0, 3.0)])
def test_larger_errors_are_refused(numbers):
    with pytest.raises(WrongResultError, match="output: off by"):
        check(*numbers)


def test_torch_compile_may_add_up_in_another_order():
    numbers = {"output": torch.tensor([1.0, -2.0, 3.0 + 2e-5])}
    assert check_results(numbers, PLAIN, EXACT, torch.float32, by_torch=True)
    with pytest.raises(WrongResultError, match="output: off by"):
        check_results({"output": numbers["output"] + 1e-3}, PLAIN, EXACT, torch.float32, by_torch=True)


def test_plain_pytorch_itself_is_checked():
    wrong = {"output": torch.zeros(3)}
    with pytest.raises(WrongResultError, match="plain PyTorch itself"):
        check_results(wrong, wrong, EXACT, torch.float32)
