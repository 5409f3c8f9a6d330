"""``gather_across_devices`` in real processes: the averaged gradients are those of one process with everything."""

from __future__ import annotations

import pytest

from nearfar.errors import InputError
from nearfar.losses import CircleLoss, LinearSoftmaxLoss, NBCSoftmaxLoss
from nearfar.losses.contract import Capabilities, LabelLoss
from tests.losses.cases import BY_NAME, CASES, each
from tests.losses.distributed.checks import CHECKS, every_check
from tests.losses.distributed.worker import WORLDS, every_loss, run
from tests.losses.inputs import typical
from tests.losses.outcome import assert_same, outcome

GATHERING = [case.name for case in CASES if case.capabilities.gathers]


def _everything(world):
    return every_loss(world) + every_check(world)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return run(_everything, tmp_path_factory.mktemp("gloo"))


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", GATHERING)
def test_averaged_gradients_are_those_of_the_whole_batch(records, name, world):
    own = [record for record in records if record.get("case") == name and record["world"] == world]
    assert len(own) >= 2 * len(BY_NAME[name].options)
    worst = max(own, key=lambda record: max(record["gradient"], record["value"]))
    print(f"{name}, {world} processes: gradient {worst['gradient']:.1e}, value {worst['value']:.1e} ({worst['job']})")
    assert worst["gradient"] < 1e-6, worst
    assert worst["value"] < 1e-6, worst
    assert max(record["largest"] for record in own) > 1e-3  # there was something to get wrong


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_the_table_does_not_show(records, check, world):
    (record,) = [r for r in records if r.get("check") == check.__name__ and r["world"] == world]
    assert record["error"] < 1e-6


@each()
def test_without_other_processes_it_changes_nothing(case):
    inputs = typical(case.capabilities)
    if not case.capabilities.gathers:
        pytest.skip("refuses")
    assert_same(outcome(case.build(gather_across_devices=True), inputs), outcome(case.build(), inputs), 0.0)


def test_a_loss_that_cannot_gather_refuses():
    class Lonely(LabelLoss):
        capabilities = Capabilities(inputs="labels", gathers=False)

    assert not Lonely().gather_across_devices
    with pytest.raises(InputError, match="Lonely cannot honour gather_across_devices=True"):
        Lonely(gather_across_devices=True)


def test_a_base_must_gather_as_well():
    sizes = {"num_classes": 3, "embedding_size": 2}
    with pytest.raises(InputError, match="needs a base that gathers as well; make LinearSoftmaxLoss with it"):
        NBCSoftmaxLoss(**sizes, base=LinearSoftmaxLoss(**sizes), gather_across_devices=True)
    NBCSoftmaxLoss(**sizes, base=LinearSoftmaxLoss(**sizes, gather_across_devices=True), gather_across_devices=True)


def test_a_loss_of_ones_own_gathers_the_whole_batch_unless_it_says_otherwise():
    assert not LabelLoss.splits_rows
    assert CircleLoss.splits_rows


def test_settings_name_it_where_it_is_on():
    assert CircleLoss(gather_across_devices=True).settings()["gather_across_devices"] is True
    assert "gather_across_devices" not in CircleLoss().settings()
