"""The guess is the scheduler's answer to the last picture, and never an old one's."""

from __future__ import annotations

from dataclasses import replace

from api.foresight import FRESH_FOR_S, MODELS_AT_MOST, Foreseen, Foresight
from firstlight.domain.fleet import FleetSnapshot, Gpu, Host, Model, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName

MODEL = Model(ModelName("m"), CheckpointId("m@abcd"), size_bytes=1 << 30, source_bytes=1 << 30)


def host(name: str, tier: Tier) -> Host:
    return Host(
        host_id=HostId(name),
        host_class="test",
        state=HostState.READY,
        gpus=(Gpu(index=0, memory_bytes=1 << 34),),
        edges={},
        tiers={MODEL.checkpoint_id: tier},
    )


SNAPSHOT = FleetSnapshot(1000.0, (host("far", Tier.SSD), host("near", Tier.DRAM)))


def test_nothing_is_guessed_of_a_model_never_seen() -> None:
    assert Foresight().guess("m", now_unix_s=1000.0) is None


def test_the_guess_is_the_nearest_host_of_the_last_picture() -> None:
    foresight = Foresight()
    foresight.note(MODEL, SNAPSHOT)
    assert foresight.guess("m", now_unix_s=1001.0) == Foreseen(HostId("near"), MODEL.checkpoint_id)
    near, far = SNAPSHOT.hosts[1], SNAPSHOT.hosts[0]
    taken = replace(near, gpus=(replace(near.gpus[0], instance_id=InstanceId("i-1")),))
    foresight.note(MODEL, FleetSnapshot(1002.0, (far, taken)))
    assert foresight.guess("m", now_unix_s=1003.0) == Foreseen(HostId("far"), MODEL.checkpoint_id)


def test_an_old_picture_says_nothing() -> None:
    foresight = Foresight()
    foresight.note(MODEL, SNAPSHOT)
    assert foresight.guess("m", now_unix_s=1000.0 + FRESH_FOR_S + 1) is None


def test_pictures_are_bounded() -> None:
    foresight = Foresight()
    foresight.note(MODEL, SNAPSHOT)
    for index in range(MODELS_AT_MOST):
        foresight.note(replace(MODEL, name=ModelName(f"m{index}")), SNAPSHOT)
    assert foresight.guess("m", now_unix_s=1001.0) is None
    assert foresight.guess("m0", now_unix_s=1001.0) is not None
