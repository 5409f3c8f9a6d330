"""The bank of proxies: class means of an epoch, kept where an epoch saw nothing."""

from __future__ import annotations

import torch

from nearfar.miners.proxy_bank import ProxyBank

CPU = torch.device("cpu")


def test_a_proxy_is_the_unit_mean_of_its_class_over_the_epoch():
    vectors = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    classes = torch.arange(30) % 4
    bank = ProxyBank(4)
    assert bank.proxies is None
    for part in range(0, 30, 7):
        bank.add(vectors[part : part + 7], classes[part : part + 7])
    bank.end_epoch(CPU)
    for c in range(4):
        mean = vectors[classes == c].double().mean(0)
        torch.testing.assert_close(bank.proxies[c].double(), mean / mean.norm(), atol=1e-6, rtol=0)


def test_an_unvisited_class_keeps_its_proxy_and_sums_start_anew():
    bank = ProxyBank(3)
    bank.add(torch.eye(3)[:2], torch.tensor([0, 1]))
    bank.end_epoch(CPU)
    assert bank.proxies.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    bank.add(torch.eye(3)[2:], torch.tensor([1]))
    bank.end_epoch(CPU)
    assert bank.proxies.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_an_epoch_without_any_batch_changes_nothing():
    bank = ProxyBank(2)
    bank.end_epoch(CPU)
    assert bank.proxies is None
    bank.add(torch.eye(2), torch.tensor([0, 1]))
    bank.end_epoch(CPU)
    before = bank.proxies.clone()
    bank.end_epoch(CPU)
    assert torch.equal(bank.proxies, before)


def test_no_graph_is_kept():
    bank = ProxyBank(1)
    bank.add(torch.ones(1, 2, requires_grad=True) * 2, torch.tensor([0]))
    assert not any(value.requires_grad for value in bank.state().values())


def test_a_loaded_state_goes_on_exactly():
    first, second = ProxyBank(3), ProxyBank(3)
    first.add(torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 2, 0]))
    second.load({name: value.clone() for name, value in first.state().items()})
    for bank in (first, second):
        bank.add(torch.rand(2, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1]))
        bank.end_epoch(CPU)
    assert torch.equal(first.proxies, second.proxies)
