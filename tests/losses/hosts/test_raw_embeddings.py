"""Losses that read the length of embeddings get it, whatever normalises them afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.multiprocessing

from nearfar.errors import InputError
from nearfar.losses import AdaFaceLoss, ForSentenceTransformer, ThresholdConsistentMarginLoss, WeightedSum
from nearfar.losses.hosts.raw_embeddings import raw_embeddings
from tests.losses.hosts.models import DIM, assert_same_gradients, features, gradients, texts, tiny_bert

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 1])


def adaface():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return AdaFaceLoss(4, DIM, ema=0.5).double()


def run(model, loss, mini_batch_size=None):
    host = ForSentenceTransformer(model, copy.deepcopy(loss), mini_batch_size)
    value = host(features(model, [texts(8, 0)]), LABELS)
    value = sum(value.values()) if isinstance(value, dict) else value
    value.backward()
    return value.detach(), gradients(host)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_a_final_normalize_does_not_matter(bert, mini_batch_size):
    value, expected = run(tiny_bert(bert), adaface())
    found_value, found = run(tiny_bert(bert, normalize=True), adaface(), mini_batch_size)
    torch.testing.assert_close(found_value, value)
    assert_same_gradients(found, expected)


def test_a_sum_gives_raw_embeddings_to_all_its_parts(bert):
    loss = WeightedSum({adaface(): 1, ThresholdConsistentMarginLoss(): 0.5})
    value, expected = run(tiny_bert(bert), loss)
    found_value, found = run(tiny_bert(bert, normalize=True), loss)
    torch.testing.assert_close(found_value, value)
    assert_same_gradients(found, expected)


def test_the_model_is_left_as_it_was(bert):
    model = tiny_bert(bert, normalize=True)
    before = model(features(model, [texts(8, 0)])[0])
    run(model, adaface())
    after = model(features(model, [texts(8, 0)])[0])
    assert before.keys() == after.keys()
    torch.testing.assert_close(after["sentence_embedding"].norm(dim=1), torch.ones(8, dtype=torch.float64))


def test_matryoshka_shortens_raw_embeddings(bert):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    loss, model = adaface(), tiny_bert(bert, normalize=True)
    plain = tiny_bert(bert)
    raw = plain(features(plain, [texts(8, 0)])[0])["sentence_embedding"]
    again = copy.deepcopy(loss)
    # Longest first, as the wrapper does: the loss keeps a moving average.
    expected = sum(weight * again(raw[:, :dim], LABELS) for dim, weight in ((DIM, 1), (6, 0.5)))
    wrapped = MatryoshkaLoss(model, ForSentenceTransformer(model, loss), [DIM, 6], [1, 0.5])
    torch.testing.assert_close(wrapped(features(model, [texts(8, 0)]), LABELS), expected)
    cached = MatryoshkaLoss(model, ForSentenceTransformer(model, loss, 3), [DIM, 6], [1, 0.5])
    with pytest.raises(InputError, match="without mini_batch_size"):
        cached(features(model, [texts(8, 0)]), LABELS)


def test_wrapped_models(bert):
    model = tiny_bert(bert, normalize=True)

    class Wrapper(torch.nn.Module):
        """As DistributedDataParallel does."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, inputs):
            return self.module(inputs)

    plain = tiny_bert(bert)
    expected = plain(features(plain, [texts(8, 0)])[0])["sentence_embedding"]
    wrapped = Wrapper(model)
    with raw_embeddings(wrapped):
        found = wrapped(features(model, [texts(8, 0)])[0])["sentence_embedding"]
    torch.testing.assert_close(found, expected)


def one_of_two_processes(rank: int, bert: str, folder: str) -> None:
    """The averaged gradient is the mean of what each process finds alone."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    alone = []
    for seed in range(2):
        host = ForSentenceTransformer(tiny_bert(bert), adaface())
        host(features(host.model, [texts(8, seed)]), LABELS).backward()
        alone.append(gradients(host.model))
    for mini_batch_size in (None, 3):
        model = tiny_bert(bert, normalize=True)
        host = ForSentenceTransformer(model, adaface(), mini_batch_size)
        host.model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        host(features(model, [texts(8, rank)]), LABELS).backward()
        assert_same_gradients(gradients(model), {name: (g + alone[1][name]) / 2 for name, g in alone[0].items()})
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(bert, tmp_path):
    torch.multiprocessing.spawn(one_of_two_processes, args=(bert, str(tmp_path)), nprocs=2)


def test_a_model_that_normalises_out_of_reach_is_refused(bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router

    inner = tiny_bert(bert, normalize=True)
    routes = list(inner.children())
    router = SentenceTransformer(modules=[Router.for_query_document(routes, copy.deepcopy(routes))], device="cpu")
    with pytest.raises(InputError, match="behind the Router"), raw_embeddings(router):
        pass
    with pytest.raises(InputError, match="before its Normalize"), raw_embeddings(torch.nn.Sequential(Normalize())):
        pass
