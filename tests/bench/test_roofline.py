from bench.ops import roofline
from bench.ops.roofline import Work


def test_attention_by_hand():
    # Sequences of 2 and 3 tokens, 2 heads of size 4: a product is 2 * 2 * 4 * (4 + 9) operations, a tensor 40
    # numbers.
    work = roofline.attention([2, 3], heads=2, head_size=4, itemsize=4)
    assert work["forward"] == Work(2 * 208, 4 * 160)
    assert work["backward"] == Work(4 * 208, 7 * 160)
    assert work["full"] == Work(6 * 208, 11 * 160)


def test_feed_forward_by_hand():
    # 5 tokens of width 3, 7 neurons: a product is 2 * 105 operations.
    work = roofline.feed_forward(5, 3, 7, itemsize=2)
    assert work["forward"] == Work(420, 2 * (2 * 15 + 2 * 21))
    assert work["backward"] == Work(840, 2 * (3 * 15 + 4 * 21))


def test_dropout_add_layer_norm_by_hand():
    work = roofline.dropout_add_layer_norm(5, 3, itemsize=4)
    assert work == {"forward": Work(0, 180), "backward": Work(0, 240), "full": Work(0, 420)}


def test_masked_lm_loss_by_hand():
    # 10 tokens, 2 of them labelled, width 3, 11 words.
    work = roofline.masked_lm_loss(10, 2, 3, 11, itemsize=4)
    assert work["forward"] == Work(2 * 66, 4 * (6 + 33))
    assert work["backward"] == Work(4 * 66, 4 * (6 + 2 * 33 + 30))


def test_a_training_step_by_hand():
    # 5 tokens, width 4, 112 weights, each 6 operations a token; attention as above, one head of size 4.
    one_layer = 6 * 5 * 112 + 6 * 2 * 4 * (4 + 9)
    assert roofline.training_step([2, 3], layers=3, hidden=4, weights=112) == Work(3 * one_layer, 0)


def test_adam_by_hand():
    assert roofline.adam(10, 4) == Work(0, 280)


def test_the_slower_of_arithmetic_and_memory_counts():
    assert Work(100, 30).seconds(flops_per_second=100, bytes_per_second=10) == 3
    assert Work(100, 30).seconds(flops_per_second=10, bytes_per_second=10) == 10
