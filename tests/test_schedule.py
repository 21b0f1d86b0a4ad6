import pytest
import torch

from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas, respaced_timesteps, spaced_timesteps


def test_alpha_bar_is_the_product_of_signal_kept():
    betas = linear_betas(10, 0.1, 0.3)
    kept = 1.0
    for beta, alpha_bar in zip(betas.tolist(), alpha_bar_from_betas(betas).tolist(), strict=True):
        kept *= 1 - beta
        assert alpha_bar == pytest.approx(kept, rel=1e-14)
    assert alpha_bar_from_betas(betas.float()).dtype == torch.float64


def test_spaced_timesteps_take_a_whole_stride_where_there_is_one():
    assert spaced_timesteps(1000, 50).tolist() == list(range(980, -1, -20))
    assert spaced_timesteps(1000, 1000).tolist() == list(range(999, -1, -1))


def test_spaced_timesteps_span_the_schedule_otherwise():
    assert spaced_timesteps(1000, 4 * 3).tolist()[::11] == [999, 0]
    assert spaced_timesteps(10, 4).tolist() == [9, 6, 3, 0]


@pytest.mark.parametrize("spacing", ["10,20,30", "5,5"])
def test_sections_are_spanned_by_their_timesteps(spacing):
    counts = [int(count) for count in spacing.split(",")]
    ascending = respaced_timesteps(1000, spacing).flip(0).tolist()
    size, longer = divmod(1000, len(counts))
    start = 0
    for section, count in enumerate(counts):
        length, mine = size + (section < longer), [ascending.pop(0) for _ in range(count)]
        assert (mine[0], mine[-1]) == (start, start + length - 1)
        start += length
    assert not ascending


def test_ddim_notation_gives_a_whole_stride():
    assert respaced_timesteps(1000, "ddim50").tolist() == list(range(980, -1, -20))


@pytest.mark.parametrize("spacing", ["", "0", "a", "ddim333", "2000", "10,,5"])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(ValueError, match="got"):
        respaced_timesteps(1000, spacing)


@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_T_is_refused(count):
    with pytest.raises(ValueError, match="1000 training timesteps"):
        spaced_timesteps(1000, count)
