import statistics

import pytest

from bench.lengths import HISTOGRAMS, draw_lengths, is_known, mean_length


@pytest.mark.parametrize(("name", "examples", "mean", "shortest", "longest"), [
    ("sst2", 67_349, 13.319, 3, 66),
    ("squad", 11_877, 160.48, 33, 384),
])  # fmt: skip
def test_the_histograms_are_those_of_the_data(name, examples, mean, shortest, longest):
    histogram = HISTOGRAMS[name]
    count = sum(histogram.values())
    assert count == examples
    assert mean_length(name) == pytest.approx(mean, abs=0.05)
    assert (min(histogram), max(histogram)) == (shortest, longest)


def test_draws_follow_the_histogram_and_repeat():
    lengths = draw_lengths("sst2", 4000, seed=1)
    assert statistics.mean(lengths) == pytest.approx(13.32, abs=0.6)
    assert lengths == draw_lengths("sst2", 4000, seed=1) != draw_lengths("sst2", 4000, seed=2)


def test_a_number_is_a_batch_without_padding():
    assert draw_lengths("128", 3) == [128, 128, 128]
    assert mean_length("128") == 128


@pytest.mark.parametrize("name", ["long", "0", "-3", "1.5", ""])
def test_other_names_are_refused(name):
    assert not is_known(name)
    with pytest.raises(ValueError, match="known: sst2, squad, or a number"):
        draw_lengths(name, 1)


def test_they_are_what_the_tokenizer_gives(data_dir, minilm):
    from transformers import AutoTokenizer

    from bench.step.examples import read_squad

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    lengths = read_squad(data_dir / "squad", 600, tokenizer, 384).lengths()
    assert statistics.mean(lengths) == pytest.approx(160.5, abs=10)
    assert max(lengths) <= 384
