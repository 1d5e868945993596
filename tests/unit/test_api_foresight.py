"""The guess is the scheduler's answer to the last picture and what happened since, and never an old one's."""

from __future__ import annotations

from dataclasses import replace

from api.foresight import FRESH_FOR_S, GUESSED_AHEAD, Foreseen, Foresight
from firstlight.database.fleet_view import FleetPicture, WantedModel
from firstlight.domain.fleet import FleetSnapshot, Gpu, Host, Model, Running, StartRequest, Tier
from firstlight.domain.lifecycle import HostState, ModelState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName
from firstlight.domain.scheduler import Place, decide

MODEL = Model(ModelName("m"), CheckpointId("m@abcd"), size_bytes=1 << 30, source_bytes=1 << 30)
WANTED = WantedModel(
    model_id=1,
    model=MODEL,
    state=ModelState.ACTIVE,
    source="hf://m",
    dtype="float32",
    manifest_digest="d" * 64,
    context_length=0,
    max_instances=1,
    max_concurrency=1,
    keep_alive_s=1.0,
)


def host(name: str, tier: Tier | None, *, peer_endpoint: str = "") -> Host:
    return Host(
        host_id=HostId(name),
        host_class="test",
        state=HostState.READY,
        gpus=(Gpu(index=0, memory_bytes=1 << 34),),
        edges={},
        tiers={} if tier is None else {MODEL.checkpoint_id: tier},
        peer_endpoint=peer_endpoint,
    )


def picture(*hosts: Host) -> FleetPicture:
    return FleetPicture(models={"m": WANTED}, snapshot=FleetSnapshot(1000.0, hosts), addresses={})


def picture_of(*models: str) -> FleetPicture:
    return replace(picture(host("near", Tier.DRAM)), models=dict.fromkeys(models, WANTED))


NEAR_AND_FAR = picture(host("far", Tier.SSD), host("near", Tier.DRAM))


def guessed(foresight: Foresight, *, now_unix_s: float = 1001.0) -> HostId | None:
    found = foresight.guess("m", now_unix_s=now_unix_s)
    return None if found is None else found.host_id


def test_nothing_is_guessed_without_a_picture_or_of_a_model_it_lacks() -> None:
    foresight = Foresight()
    assert guessed(foresight) is None
    foresight.see(replace(NEAR_AND_FAR, models={}))
    assert guessed(foresight) is None


def test_a_model_that_was_never_started_is_guessed_with_all_that_its_host_must_know() -> None:
    foresight = Foresight()
    foresight.see(NEAR_AND_FAR)
    assert foresight.guess("m", now_unix_s=1001.0) == Foreseen(
        HostId("near"), MODEL.checkpoint_id, "hf://m", "float32", "d" * 64
    )


def test_a_host_without_the_bytes_is_told_of_the_peers() -> None:
    full = replace(host("near", Tier.DRAM, peer_endpoint="10.0.0.1:9"), gpus=())
    foresight = Foresight()
    foresight.see(picture(full, host("empty", None)))
    found = foresight.guess("m", now_unix_s=1001.0)
    assert found is not None and found.host_id == "empty" and found.peer_endpoints == ("10.0.0.1:9",)


def test_what_has_happened_since_the_picture_counts() -> None:
    foresight = Foresight()
    foresight.see(NEAR_AND_FAR)
    first = decide(StartRequest(MODEL), NEAR_AND_FAR.snapshot)
    assert isinstance(first, Place) and first.host_id == "near"
    foresight.placed(first, "i-1")
    assert guessed(foresight) == "far"
    foresight.ended("i-1", "near")
    assert guessed(foresight) == "near"


def test_an_instance_that_ended_since_the_picture_counts_against_no_maximum() -> None:
    model = replace(MODEL, max_instances=1)
    held = replace(host("near", Tier.DRAM), gpus=(Gpu(0, 1 << 34, instance_id=InstanceId("i-1")),))
    running = (Running(InstanceId("i-1"), model, HostId("near"), (0,), idle_s=1.0),)
    foresight = Foresight()
    foresight.see(
        FleetPicture(
            models={"m": replace(WANTED, model=model)},
            snapshot=FleetSnapshot(1000.0, (held,), running=running),
            addresses={},
        )
    )
    assert guessed(foresight) is None
    foresight.ended("i-1", "near")
    assert guessed(foresight) == "near"


def test_an_old_picture_says_nothing() -> None:
    foresight = Foresight()
    foresight.see(NEAR_AND_FAR)
    assert guessed(foresight, now_unix_s=1000.0 + FRESH_FOR_S + 1) is None


def test_models_asked_about_lately_are_guessed_ahead_and_the_last_one_first() -> None:
    foresight = Foresight()
    assert foresight.likely() == []
    foresight.see(picture_of(*(f"m{number}" for number in range(2 * GUESSED_AHEAD))))
    assert foresight.likely() == [f"m{number}" for number in range(GUESSED_AHEAD)]
    for number in range(2 * GUESSED_AHEAD):
        foresight.guess(f"m{number}", now_unix_s=1001.0)
    assert foresight.likely() == [f"m{2 * GUESSED_AHEAD - 1 - number}" for number in range(GUESSED_AHEAD)]
    foresight.guess("m3", now_unix_s=1001.0)
    assert foresight.likely()[:2] == ["m3", f"m{2 * GUESSED_AHEAD - 1}"]
    foresight.guess_ahead("m0", now_unix_s=1001.0)
    assert "m0" not in foresight.likely(), "nobody has asked about it"


def test_a_guess_made_ahead_is_the_one_that_is_given() -> None:
    asked: list[str] = []

    class Counting(dict[str, WantedModel]):
        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            asked.append(key)
            return super().get(key)

    foresight = Foresight()
    foresight.see(replace(NEAR_AND_FAR, models=Counting({"m": WANTED})))
    foresight.guess_ahead("m", now_unix_s=1001.0)
    assert asked == ["m"]
    assert guessed(foresight) == "near"
    assert asked == ["m"], "the scheduler was not asked again"
