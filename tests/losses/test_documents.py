"""Query-document losses: worked numbers, parity with other libraries, and what only one of them has."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from nearfar.errors import InputError
from nearfar.losses import BiXSELoss, InfoNCELoss, MannWhitneyLoss, SigLIPLoss, SoftTopKLoss
from nearfar.losses.engine import Space
from nearfar.losses.pairwise_sigmoid import _softplus_sums
from nearfar.losses.soft_top_k import _SigmoidSum, best_of_rows, soft_top_k_threshold
from tests.losses.inputs import DocumentInputs, points
from tests.losses.outcome import assert_same, outcome
from tests.losses.test_worked_numbers import FX_A, cosines


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


C = double([0.8, 0.1, -0.2], [0.3, 0.6, 0.0], [-0.1, 0.2, 0.7])
GRADES = torch.diag(double(1.0, 0.75, 0.5))
FX_B = cosines(C, torch.eye(3))
FX_B_GRADED = cosines(C, GRADES)
FX_B_HARD = cosines(
    torch.cat([C, torch.diag(double(0.5, 0.4, 0.1))], 1),
    torch.cat([GRADES, torch.diag(double(0.25, 0.0, 0.25))], 1),
    torch.cat([torch.zeros(3, 3), 1 - torch.eye(3)], 1).bool(),
)
SIGLIP = DocumentInputs(double([1.0, 0.0], [0.6, 0.8]), double([0.8, 0.6], [0.0, 1.0]))
FX_MW = cosines(double([0.7, 0.2, 0.5, 0.1], [0.3, 0.6, 0.0, 0.4]), torch.eye(2, 4))
PAIRS, SUM = {"normalise": "pairs"}, {"normalise": "positives"}

NUMBERS = [
    (SoftTopKLoss, {"k": 2, "scale": 4}, FX_A, 0.240439),
    (SoftTopKLoss, {"k": 3, "scale": 4}, FX_A, 0.074744),
    (BiXSELoss, {"bias": 0}, FX_B_GRADED, 7.661929),
    (BiXSELoss, {"bias": 0, **PAIRS}, FX_B_GRADED, 2.553976),
    (BiXSELoss, {"bias": -10}, FX_B_GRADED, 0.889522),
    (BiXSELoss, {"bias": -10, **PAIRS}, FX_B_GRADED, 0.296507),
    (BiXSELoss, {"scale": 10, "bias": -math.log(2)}, FX_B_GRADED, 3.311279),
    (BiXSELoss, {"scale": 10, "bias": -math.log(2), **PAIRS}, FX_B_GRADED, 1.103760),
    (BiXSELoss, {"bias": -10}, FX_B_HARD, 1.829659),
    (BiXSELoss, {"bias": -10, **PAIRS}, FX_B_HARD, 0.457415),
    (SigLIPLoss, {}, SIGLIP, 2.383458),
    (SigLIPLoss, {"bias": -2.71}, SIGLIP, 3.482746),
    (MannWhitneyLoss, {"temperature": 1, **SUM}, FX_B, 2.544503),
    (MannWhitneyLoss, {"temperature": 1}, FX_B, 0.424084),
    (MannWhitneyLoss, {"temperature": 0.1, **SUM}, FX_B, 0.038831),
    (MannWhitneyLoss, {"temperature": 0.1}, FX_B, 0.006472),
    (MannWhitneyLoss, {"temperature": 1, **SUM}, FX_MW, 3.100866),
    (MannWhitneyLoss, {"temperature": 1}, FX_MW, 0.516811),
    (MannWhitneyLoss, {"temperature": 0.1, **SUM}, FX_MW, 0.359943),
    (MannWhitneyLoss, {"temperature": 0.1, "method": "table"}, FX_MW, 0.059990),
]


@pytest.mark.parametrize("path", ["streamed", "dense"])
@pytest.mark.parametrize(("loss", "options", "inputs", "value"), NUMBERS)
def test_worked_number(loss, options, inputs, value, path):
    assert inputs.call(loss(**options, path=path).double()).item() == pytest.approx(value, abs=1.5e-6)


def test_coupled_softmax_sums_over_positives_in_the_official_code():
    values = FX_A.call(InfoNCELoss(scale=4, reduction="none"))
    assert (values * double(2.0, 1.0)).mean().item() == pytest.approx(1.437860, abs=1e-6)


def test_soft_top_k_gradient_on_the_similarities():
    inputs = FX_A.fresh()
    inputs.call(SoftTopKLoss(k=2, scale=4)).backward()
    expected = double(
        [-0.015188, -0.122594, 0.081156, 0.008666, 0.047959], [0.040232, 0.024249, -0.124133, 0.044149, 0.015504]
    )
    # The queries are the first two axes and the documents of unit length, so that along the documents' axes
    # dL/dq = 4 dL/ds D, minus what points along the query itself.
    found = inputs.queries.grad
    for row, slopes in enumerate(expected):
        full = 4 * slopes @ FX_A.documents
        full[row] = 0.0
        torch.testing.assert_close(found[row], full, rtol=0, atol=5e-6)


def test_soft_top_k_threshold_of_the_worked_example():
    scores = 2 * double([2.0, 1.0, 0.5, -1.0, 0.0], [0.3, -0.2, 1.5, 0.7, -0.5])
    best, places = scores.sort(1, descending=True)
    kth = best[:, 1:2]
    found = soft_top_k_threshold(scores - kth, places, torch.tensor([2, 2])) - kth
    torch.testing.assert_close(found.squeeze(1) / 2, double(-0.845540, -0.618209), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_top_k_threshold_is_exact(spread, k, dtype):
    generator = torch.Generator().manual_seed(k)
    scores = spread * torch.randn(40, 64, generator=generator, dtype=dtype)
    best, places = scores.topk(k + 1)
    scores = scores - best[:, k - 1 : k]
    size = torch.full((40,), k)
    found = soft_top_k_threshold(scores, places, size)
    for row, t in zip(scores.double(), found.double().squeeze(1), strict=True):
        shifted = row + t
        # The sum to k without cancellation, and its slope: their quotient is the error of t.
        low, high = shifted[shifted <= 0].sigmoid().sum(), (-shifted[shifted > 0]).sigmoid().sum()
        excess = (shifted > 0).sum() - k + low - high
        slope = (shifted.sigmoid() * (-shifted).sigmoid()).sum()
        precision = 40 * torch.finfo(dtype).eps * max(1.0, t.abs().item())
        assert abs(excess) <= precision * slope + 1e-300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 5.0, 60.0, 170.0, 3000.0])
def test_soft_top_k_slopes_across_a_gap(gap, dtype):
    """Across a wide one all slopes underflow, and still each document has its share of them."""
    logits = torch.tensor([[4.0, 1.0, 0.0, -gap, -gap - 1, -gap - 3, -gap - 9, -gap - 12]], dtype=dtype)
    k, places = torch.tensor([3]), torch.arange(4)[None]
    threshold = soft_top_k_threshold(logits, places, k)
    shares = _SigmoidSum(logits.clone(), places, k, Space()).slopes_(threshold, torch.ones(1, dtype=dtype))
    shifted = logits.double() + threshold.double()
    exact = (F.logsigmoid(shifted) + F.logsigmoid(-shifted)).softmax(1)
    torch.testing.assert_close(shares.double(), exact, rtol=1000 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("columns", "number"), [(6, 6), (64, 6), (999, 6), (4096, 2), (4099, 33), (5000, 200)])
def test_the_best_of_rows_are_those_of_topk(columns, number):
    generator = torch.Generator().manual_seed(columns)
    scores = torch.randn(20, columns, generator=generator)
    scores[10:] = scores[10:].mul(3).round()  # many ties
    best, places = best_of_rows(scores, number)
    assert torch.equal(best, scores.topk(number).values)
    assert torch.equal(scores.gather(1, places), best)
    assert all(len(set(row)) == number for row in places.tolist())


def test_a_query_with_k_documents_or_fewer_does_not_count():
    inputs = DocumentInputs(points(3, torch.Generator()), points(3, torch.Generator().manual_seed(1)))
    value = inputs.fresh().call(SoftTopKLoss(k=3))
    assert value.item() == 0
    assert value.requires_grad


# Parity


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    return DocumentInputs(points(12, generator, 16), points(30, generator, 16))


def test_equals_cross_entropy(batch):
    logits = F.normalize(batch.queries) @ F.normalize(batch.documents).T / 0.05
    forward, backward = F.cross_entropy(logits, torch.arange(12)), F.cross_entropy(logits.T[:12], torch.arange(12))
    torch.testing.assert_close(batch.call(InfoNCELoss()), forward, rtol=1e-12, atol=0)
    both = batch.call(InfoNCELoss(symmetric=True))
    torch.testing.assert_close(both, (forward + backward) / 2, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_sentence_transformers(batch, symmetric):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)

    def theirs(queries, documents):
        loss = losses.MultipleNegativesRankingLoss(
            torch.nn.Identity(), directions=directions, partition_mode="per_direction" if symmetric else "joint"
        )
        return loss.compute_loss_from_embeddings([queries, documents[:12], documents[12:24]], None)

    first, second = batch.fresh(), batch.fresh()
    ours = InfoNCELoss(symmetric=symmetric)(first.queries, first.documents[:24])
    other = theirs(second.queries, second.documents)
    ours.backward()
    other.backward()
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=0)
    torch.testing.assert_close(first.queries.grad, second.queries.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first.documents.grad, second.documents.grad, rtol=1e-9, atol=1e-12)


def test_symmetric_refuses_values_per_query():
    with pytest.raises(InputError, match="symmetric=True"):
        InfoNCELoss(symmetric=True, reduction="none")


@pytest.mark.parametrize("loss", [BiXSELoss, SigLIPLoss, SoftTopKLoss, InfoNCELoss, MannWhitneyLoss])
def test_exactly_one_of_temperature_and_scale(loss):
    assert loss(temperature=0.25).scale == loss(scale=4).scale == 4
    with pytest.raises(InputError, match="exactly one of temperature and scale"):
        loss(temperature=0.05, scale=20)


# Mann-Whitney by table


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("options", [{}, {"false_negative_margin": 0.1}])
def test_the_table_errs_by_less_than_it_says(temperature, options):
    generator = torch.Generator().manual_seed(9)
    inputs = DocumentInputs(points(60, generator, 8), points(90, generator, 8))
    exact = outcome(MannWhitneyLoss(temperature, method="exact", **options), inputs)
    for path in ("streamed", "dense"):
        table = outcome(MannWhitneyLoss(temperature, method="table", path=path, **options), inputs)
        assert abs(table.value - exact.value) < 7e-7
        for name, gradient in exact.gradients.items():
            error = (table.gradients[name] - gradient).abs().max()
            assert error < 2e-6 * gradient.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "same"), [(512, "exact"), (513, "table")])
def test_auto_turns_to_the_table_above_512_positives(count, same):
    generator = torch.Generator().manual_seed(2)
    inputs = DocumentInputs(points(count, generator, 4), points(count, generator, 4))
    found = {method: inputs.call(MannWhitneyLoss(0.1, method=method)).item() for method in ("auto", "exact", "table")}
    assert found["exact"] != found["table"]
    assert found["auto"] == found[same]
    assert found["table"] == pytest.approx(found["exact"], abs=7e-7)


# The bias of BiXSE


def expected_bias(inputs, scale, mean_target):
    cosine = F.normalize(inputs.queries) @ F.normalize(inputs.documents).T
    negatives = ~torch.eye(*cosine.shape, dtype=torch.bool)
    return math.log(mean_target / (1 - mean_target)) - scale * cosine[negatives].mean().item()


def test_the_first_training_batch_sets_the_bias(batch):
    loss = BiXSELoss().double()
    first = batch.call(loss)
    assert loss.bias_initialised
    bias = expected_bias(batch, 20, 1 / 30)
    assert loss.bias.item() == pytest.approx(bias, abs=1e-9)
    assert first.item() == pytest.approx(batch.call(BiXSELoss(bias=bias).double()).item())
    DocumentInputs(batch.documents, batch.documents).call(loss)
    assert loss.bias.item() == pytest.approx(bias, abs=1e-9)


def test_evaluation_uses_a_fitting_bias_without_keeping_it(batch):
    loss = BiXSELoss().double().eval()
    value = batch.call(loss)
    assert not loss.bias_initialised
    assert loss.bias.item() == 0
    assert value.item() == pytest.approx(batch.call(loss.train()).item())


def test_the_state_says_whether_the_bias_is_set(batch):
    trained, fresh = BiXSELoss().double(), BiXSELoss().double()
    batch.call(trained)
    fresh.load_state_dict(trained.state_dict())
    other = DocumentInputs(batch.documents, batch.documents)
    other.call(fresh)
    assert fresh.bias.item() == trained.bias.item()
    fresh.load_state_dict(BiXSELoss().double().state_dict())
    other.call(fresh)
    assert fresh.bias.item() != trained.bias.item()
    for twin in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert_same(outcome(twin, batch), outcome(trained, batch))


def test_a_batch_without_pairs_leaves_the_bias_for_the_next():
    loss = BiXSELoss()
    nothing = DocumentInputs(torch.zeros(0, 4), torch.zeros(0, 4))
    nothing.call(loss)
    assert not loss.bias_initialised


def test_a_learned_scale_stays_within_its_bounds(batch):
    loss = BiXSELoss(bias=-5, learn_scale=True).double()
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    assert batch.call(loss).item() == pytest.approx(batch.call(BiXSELoss(100, bias=-5).double()).item())
    with pytest.raises(InputError, match=r"\[1, 100\]"):
        BiXSELoss(0.5, learn_scale=True)


def test_a_bias_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="bias='big'"):
        BiXSELoss(bias="big")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.2, 1.0])
@pytest.mark.parametrize("scale", [64, 65, 100, 700])
def test_one_exponential_serves_both_directions_where_it_can(scale, spread, dtype, tiny_tiles):
    """Narrow tiles, wide tiles, and tiles whose logits lie far from those of others."""
    generator = torch.Generator().manual_seed(scale)
    queries, documents = torch.randn(2, 12, 5, generator=generator).to(dtype)
    offset = torch.tensor([1.0, 0, 0, 0, 0])
    queries, documents = offset + spread * queries, offset + spread * documents
    documents[6:] -= 1.5 * offset
    inputs = DocumentInputs(queries, documents)
    exact = outcome(InfoNCELoss(scale=scale, symmetric=True, path="dense"), inputs.fresh(torch.float64))
    found = outcome(InfoNCELoss(scale=scale, symmetric=True), inputs)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.value.double(), exact.value, rtol=tolerance, atol=tolerance)
    for name, gradient in exact.gradients.items():
        assert (found.gradients[name].double() - gradient).norm() <= scale * tolerance * gradient.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [1.0, 79.9, 500.0])
def test_softplus_and_its_slope_from_one_exponential(largest, dtype):
    logits = torch.cat([torch.linspace(-300, largest, 301, dtype=dtype), torch.tensor([-torch.inf], dtype=dtype)])
    exact = logits.double()[:, None].clone().requires_grad_()
    values = F.softplus(exact, threshold=1000).sum(1)
    (slope,) = torch.autograd.grad(values.sum(), exact)
    found, found_slope = _softplus_sums(logits[:, None].clone(), Space())
    torch.testing.assert_close(found.double(), values.detach(), rtol=4 * torch.finfo(dtype).eps, atol=1e-30)
    torch.testing.assert_close(found_slope.double(), slope, rtol=8 * torch.finfo(dtype).eps, atol=1e-30)


def test_the_slope_is_finite_beyond_the_largest_exponential():
    inputs = FX_B.fresh(torch.float32)
    loss = SigLIPLoss(scale=1000, bias=100)
    found, exact = outcome(loss, inputs), outcome(copy.deepcopy(loss).double(), FX_B)
    torch.testing.assert_close(found.value.double(), exact.value, rtol=1e-6, atol=0)
    for name, gradient in exact.gradients.items():
        assert (found.gradients[name].double() - gradient).norm() <= 1e-5 * gradient.norm(), name
