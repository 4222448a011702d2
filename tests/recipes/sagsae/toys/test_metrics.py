"""Each measurement of the toy protocols on hand-made latents, directions and magnitudes."""

import pytest
import torch

from recipes.sagsae.toys import metrics
from recipes.sagsae.toys.world import World, generator, ground_truth, with_anomalies
from sae_lens_bipolar.errors import ConfigError, DataError

# Two axes in the plane; rays +x, +y, -x, -y.
RAYS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
# Four tokens, one ray each.
MAGNITUDES = torch.diag(torch.tensor([1.0, 2.0, 4.0, 1.0]))


def signed_code() -> tuple[torch.Tensor, torch.Tensor]:
    """Latent 0 carries both sides of x, three quarters of -x; latents 1 and 2 a side of y each."""
    W_dec = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    latents = torch.tensor([[-0.5, 0, 0], [0, 2.0, 0], [1.5, 0, 0], [0, 0, 1.0]])
    return latents, W_dec


def test_carriers_and_their_parts() -> None:
    found = metrics.carriers(*signed_code(), MAGNITUDES, RAYS)
    assert found.latent.tolist() == [0, 1, 0, 2]
    assert found.side.tolist() == [-1, 1, 1, 1]
    assert found.part.tolist() == pytest.approx([1.0, 1.0, 0.75, 1.0])


def test_consolidation_counts_pairs_on_one_latent() -> None:
    found = metrics.carriers(*signed_code(), MAGNITUDES, RAYS)
    assert metrics.consolidated(found).tolist() == [True, False]
    assert metrics.consolidated(found, 0.75).tolist() == [True, False]
    assert metrics.consolidated(found, 0.76).tolist() == [False, False]
    assert metrics.two_latents(found, 0.9).tolist() == [False, True]
    assert metrics.two_latents(found, 1.1).tolist() == [False, False]


def test_a_code_of_zeros_carries_nothing() -> None:
    _, W_dec = signed_code()
    found = metrics.carriers(torch.zeros(4, 3), W_dec, MAGNITUDES, RAYS)
    assert found.side.tolist() == [0, 0, 0, 0]
    assert found.part.tolist() == [0, 0, 0, 0]
    assert not metrics.consolidated(found).any()
    assert not metrics.two_latents(found, 0.1).any()


def test_non_negative_latents_never_consolidate() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        latents, W_dec = torch.rand(4, 5), torch.randn(5, 2)
        found = metrics.carriers(latents, W_dec, MAGNITUDES, RAYS)
        assert not metrics.consolidated(found).any()


def test_tokens_with_both_sides_firing_are_left_out() -> None:
    latents, W_dec = signed_code()
    both = torch.tensor([[3.0, 0.0, 3.0, 0.0]])
    more = torch.cat([latents, torch.tensor([[7.0, 0.0, 0.0]])]), W_dec
    magnitudes = torch.cat([MAGNITUDES, both])
    assert not metrics.fires_alone(magnitudes)[-1].any()
    assert metrics.carriers(*more, magnitudes, RAYS).part.tolist() == pytest.approx(
        metrics.carriers(latents, W_dec, MAGNITUDES, RAYS).part.tolist()
    )


def test_calibration_slopes() -> None:
    """Along +x the gain 1 is met, +y is doubled, -x (gain 4) shrinks to 3, -y is never shown."""
    gains = torch.tensor([1.0, 1.0, 4.0, 1.0])
    intensity = torch.cat([MAGNITUDES / gains, 2 * MAGNITUDES / gains])
    latents, W_dec = signed_code()
    latents = torch.cat([latents, 2 * latents])
    latents[:, 1] *= 2
    latents[:, 2] = 0
    found = metrics.carriers(latents, W_dec, intensity * gains, RAYS)
    slopes = metrics.calibration_slopes(found, latents, W_dec, intensity * gains, gains, RAYS)
    assert slopes.tolist() == pytest.approx([1.0, 2.0, 3.0, 0.0])


def test_slope_is_least_squares_through_the_origin() -> None:
    magnitudes = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])  # one axis: rays +x, -x
    latents, W_dec = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([[1.0, 0.0]])
    rays = RAYS[[0, 2]]
    found = metrics.carriers(latents, W_dec, magnitudes, rays)
    slopes = metrics.calibration_slopes(found, latents, W_dec, magnitudes, torch.ones(2), rays)
    assert slopes.tolist() == pytest.approx([(2 * 2 + 3 * 2) / (1 + 4 + 9), 0.0])


def test_anomaly_scores_read_known_directions_only() -> None:
    latents, W_dec = signed_code()
    scores = metrics.anomaly_scores(latents, W_dec, RAYS[[2]], cosine=0.7)  # -x: latent 0, + side
    assert scores.tolist() == pytest.approx([0.0, 0.0, 3.0, 0.0])
    diagonal = torch.tensor([[1.0, 1.0]]) / 2**0.5
    assert not metrics.anomaly_scores(latents, W_dec, diagonal, cosine=0.8).any()
    assert metrics.anomaly_scores(latents, W_dec, diagonal, cosine=0.7).tolist() == pytest.approx(
        [1.0, 2.0, 0.0, 0.0]
    )


@pytest.mark.parametrize(
    ("anomalous", "normal", "area"),
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0, 2.0], [3.0, 4.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0, 0.0], 0.5),
        ([2.0, 0.0], [1.0, 0.0], 0.625),  # wins of 4: 2 > 1, 2 > 0, and half of 0 = 0
    ],
)
def test_roc_area(anomalous: list[float], normal: list[float], area: float) -> None:
    assert metrics.roc_area(torch.tensor(anomalous), torch.tensor(normal)) == pytest.approx(area)


def test_roc_area_needs_both_kinds() -> None:
    with pytest.raises(DataError, match="found none"):
        metrics.roc_area(torch.zeros(0), torch.zeros(3))


def test_detection_at_a_false_positive_rate() -> None:
    normal = torch.arange(101.0)
    anomalous = torch.tensor([98.0, 99.0, 99.5, 200.0])
    assert metrics.detection_rate(anomalous, normal, 0.01) == pytest.approx(0.5)  # above 99
    assert metrics.detection_rate(anomalous, normal, 0.0) == pytest.approx(0.25)
    # Scores that are all alike detect nothing, whatever the rate.
    assert metrics.detection_rate(torch.zeros(5), torch.zeros(5), 0.5) == 0.0


def test_ray_cosines_match_sides_that_fire() -> None:
    latents, W_dec = signed_code()
    assert metrics.ray_cosines(latents, W_dec, RAYS).tolist() == pytest.approx([1, 1, 1, 1])
    latents[0] = 0  # latent 0 loses its negative side, which was +x
    assert metrics.ray_cosines(latents, W_dec, RAYS).tolist() == pytest.approx([0, 1, 1, 1])
    assert not metrics.ray_cosines(torch.zeros(4, 3), W_dec, RAYS).any()


def test_world_has_antipodal_features_with_gains() -> None:
    truth = ground_truth(World(3, 8, negative_gains=(0.5, 2.0)), seed=1)
    assert truth.gains.tolist() == [1, 1, 1, 0.5, 2, 0.5]
    vectors = truth.dictionary.feature_vectors
    assert torch.allclose(vectors, truth.rays * truth.gains[:, None])
    assert torch.allclose(truth.axes.norm(dim=1), torch.ones(3))
    again = ground_truth(World(3, 8), seed=1)
    assert torch.equal(truth.axes, again.axes)


@pytest.mark.parametrize("rho", [-1.0, -0.5, 0.0])
def test_pairs_fire_as_the_correlation_says(rho: float) -> None:
    torch.manual_seed(0)
    world = World(8, 4, active=4.0, correlation=rho)
    fires = generator(world).sample(50_000) > 0
    positive, negative = fires.chunk(2, dim=1)
    both = 0.25 + torch.asin(torch.tensor(rho)).item() / (2 * torch.pi)  # given the pair is on
    assert (positive & negative).float().mean().item() == pytest.approx(0.5 * both, abs=0.003)
    assert fires.float().mean().item() == pytest.approx(0.25, abs=0.003)
    l0 = (positive | negative).float().sum(1).mean().item()
    assert l0 == pytest.approx(world.l0, rel=0.01)


def test_rare_and_unseen_negative_sides() -> None:
    torch.manual_seed(0)
    for share in (0.0, 0.1):
        features = generator(World(4, 4, negative_share=share)).sample(20_000)
        fires = (features > 0).float().sum(0)
        assert (fires[4:].sum() / fires.sum()).item() == pytest.approx(share, abs=0.01)


def test_exactly_one_pair_is_on_at_a_time() -> None:
    torch.manual_seed(0)
    world = World(3, 2, active=1, one_at_a_time=True)
    positive, negative = (generator(world).sample(30_000) > 0).chunk(2, dim=1)
    on = positive | negative
    assert on.sum(1).max() == 1
    # The magnitude of a pair that is on, 1 + 0.3 normal, is cut at 0 once in 2300 tokens.
    assert on.sum(1).float().mean().item() == pytest.approx(world.l0, abs=1e-3)
    assert torch.allclose(on.float().mean(0), torch.full((3,), 1 / 3), atol=0.01)


def test_one_pair_at_a_time_is_one_active_pair() -> None:
    with pytest.raises(ConfigError, match="active=2"):
        World(3, 2, active=2, one_at_a_time=True)


def test_anomalies_move_one_feature_to_the_other_side() -> None:
    torch.manual_seed(0)
    features = torch.tensor([[1.0, 2.0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3.0]])
    normal, anomalous = with_anomalies(features)
    assert torch.equal(normal, features[[0, 2]])
    assert anomalous[0].tolist() in ([0, 2.0, 1.0, 0], [1.0, 0, 0, 2.0])
    assert anomalous[1].tolist() == [0, 3.0, 0, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("correlation", 0.5), ("active", 9.0), ("n_axes", 0), ("negative_gains", (0.0,))],
)
def test_worlds_that_cannot_be(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        World(**{"n_axes": 8, "d_in": 4, field: value})


def test_rare_sides_need_exclusive_pairs() -> None:
    with pytest.raises(ConfigError, match="negative_share"):
        World(8, 4, correlation=0.0, negative_share=0.1)
