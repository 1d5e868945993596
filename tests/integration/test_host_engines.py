"""Laws of spares and bound engines, with real processes that only pretend to bind a model."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest

from firstlight.domain.errors import (
    AttachFailed,
    Cancelled,
    Conflict,
    EngineGone,
    FirstlightError,
    InvalidInput,
    StaleEpoch,
)
from gpu_worker.engine.control import AttachCommand, EngineConfig, PrepareCommand
from gpu_worker.host.engines import AttachOutcome, Engines, EngineState
from gpu_worker.host.fences import Fences
from gpu_worker.host.kept_for import KeptFor
from gpu_worker.host.spares import Spares
from gpu_worker.host.zygote import KeptZygote
from tests.integration.store_processes import descendants, is_alive, until

ZYGOTE = (sys.executable, str(Path(__file__).with_name("fake_zygote.py")))


@dataclass
class Host:
    zygote: KeptZygote
    spares: Spares
    engines: Engines
    store_ready: asyncio.Event
    log: Path

    def attach(
        self, instance: str, epoch: int, *gpus: int, checkpoint: str = "m@aaaa"
    ) -> asyncio.Task[AttachOutcome]:
        command = AttachCommand(
            instance_id=instance, epoch=epoch, model="m", checkpoint_id=checkpoint, max_concurrency=4
        )
        return asyncio.ensure_future(self.engines.attach(command, gpus or (0,)))

    def pid(self, instance: str) -> int:
        (engine,) = [one for one in self.engines.bound if one.command.instance_id == instance]
        assert engine.handle is not None
        return engine.handle.pid

    async def until_spares(self, number: int) -> None:
        await until(lambda: self.ready_spares() == number, within_s=10, what=f"{number} spares")

    def ready_spares(self) -> int:
        return sum(spare.is_ready and spare.handle.is_alive for spare in self.spares.all)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def command(name: str) -> PrepareCommand:
    return PrepareCommand(checkpoint_id=name, checkpoint_dir="/x")


def said(
    skeletons_s: Mapping[str, float] = {}, *, spare_s: float = inf, good_for_s: float = 600.0
) -> KeptFor:
    now_s = time.monotonic()
    return KeptFor(
        skeletons_until_s={name: now_s + kept_s for name, kept_s in skeletons_s.items()},
        spares_until_s=now_s + spare_s,
        counts_until_s=now_s + good_for_s,
    )


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setenv("FAKE_ENGINE_LOG", str(tmp_path / "engines.log"))
    zygote = KeptZygote(tmp_path, executable=ZYGOTE)
    store_ready = asyncio.Event()
    store_ready.set()
    spares = Spares(
        zygote=zygote,
        devices=("cpu",),
        per_device=1,
        engine_config=lambda device: EngineConfig(store_socket="unused", device=device),
        store_ready=store_ready,
    )
    fences = Fences(tmp_path / "epochs.json")
    engines = Engines(spares=spares, fences=fences, device_kind="cpu", gpu_count=2)
    zygote.start()
    spares.start()
    made = Host(zygote, spares, engines, store_ready, tmp_path / "engines.log")
    yield made
    pids = [one.handle.pid for one in engines.bound if one.handle is not None]
    pids += [spare.handle.pid for spare in spares.all]
    await spares.stop()
    await engines.close(drain_timeout_s=0.1)
    await zygote.close()
    assert not [pid for pid in pids if is_alive(pid)]


async def test_an_attach_takes_the_spare_and_another_is_made(host: Host) -> None:
    await host.until_spares(1)
    spare = host.spares.all[0].handle
    outcome = await host.attach("i1", 1)
    assert outcome.attached.endpoint == spare.endpoint and outcome.wait_spare_s < 0.5
    assert host.pid("i1") == spare.pid and host.engines.bound[0].state is EngineState.READY
    await host.until_spares(1)


async def test_a_repeat_gets_the_first_outcome_even_when_the_first_caller_left(host: Host) -> None:
    first, second = host.attach("i1", 1), host.attach("i1", 1)
    first.cancel()
    outcome = await second
    assert await host.attach("i1", 1) == outcome
    assert host.said().count("attach m@aaaa") == 1
    with pytest.raises(Conflict):
        await host.attach("i1", 1, checkpoint="other@aaaa")


async def test_an_attach_remembers_that_it_was_asked_for_ahead(host: Host) -> None:
    await host.attach("i1", 1)
    command = AttachCommand(instance_id="i2", epoch=2, model="m", checkpoint_id="m@aaaa", max_concurrency=4)
    first = await host.engines.attach(command, (1,), is_ahead=True)
    repeat = await host.engines.attach(command, (1,))
    assert repeat == first and repeat.was_ahead
    assert not (await host.attach("i1", 1)).was_ahead


async def test_a_lower_epoch_is_refused_for_good(host: Host) -> None:
    await host.attach("i5", 5)
    with pytest.raises(StaleEpoch):
        await host.attach("i4", 4)
    with pytest.raises(StaleEpoch):
        await host.engines.stop(instance_id="i5", epoch=4, drain_timeout_s=0, reason="stale")
    assert await host.engines.stop(instance_id="i5", epoch=5, drain_timeout_s=0, reason="test")
    with pytest.raises(StaleEpoch):
        await host.attach("i4", 4)
    await host.attach("i6", 6)


async def test_a_higher_epoch_takes_the_gpu_from_its_holder(host: Host) -> None:
    await host.attach("old", 1)
    await host.attach("other", 2, 1)
    old, other = host.pid("old"), host.pid("other")
    await host.attach("new", 3)
    assert not is_alive(old) and is_alive(other)
    assert {one.command.instance_id for one in host.engines.bound} == {"new", "other"}
    assert host.engines.take_exited() == ()


async def test_one_epoch_is_one_instances(host: Host) -> None:
    await host.attach("a", 3)
    with pytest.raises(Conflict):
        await host.attach("b", 3)


async def test_a_death_is_noticed_and_told_once(host: Host) -> None:
    await host.attach("i1", 1)
    pid = host.pid("i1")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not host.engines.bound, within_s=5, what="the death is noticed")
    (exited,) = host.engines.take_exited()
    assert exited.command.instance_id == "i1" and exited.state is EngineState.EXITED
    assert host.engines.take_exited() == ()
    assert not await host.engines.stop(instance_id="i1", epoch=1, drain_timeout_s=0, reason="late")


async def test_a_failed_attach_can_be_tried_again(host: Host) -> None:
    with pytest.raises(AttachFailed, match="shapes differ"):
        await host.attach("i1", 1, checkpoint="fail@aaaa")
    assert host.engines.bound == () and host.engines.take_exited() == ()
    await host.attach("i1", 1)


async def test_engines_that_die_while_binding_are_replaced_and_then_it_is_said(host: Host) -> None:
    with pytest.raises(EngineGone):
        await host.attach("i1", 1, checkpoint="die@aaaa")
    assert host.said().count("attach die@aaaa") == 3
    assert host.engines.bound == ()


async def test_a_stop_ends_an_attach_that_hangs(host: Host) -> None:
    hanging = host.attach("i1", 1, checkpoint="slow@aaaa")
    await until(lambda: "attach slow@aaaa" in host.said(), within_s=10, what="attaching")
    pid = host.pid("i1")
    stops = [host.engines.stop(instance_id="i1", epoch=1, drain_timeout_s=5, reason="test") for _ in range(2)]
    assert all(await asyncio.gather(*stops))
    with pytest.raises(Cancelled):
        await hanging
    assert not is_alive(pid)


async def test_a_dead_spare_is_replaced(host: Host) -> None:
    await host.until_spares(1)
    dead = host.spares.all[0].handle.pid
    os.kill(dead, signal.SIGKILL)
    await until(
        lambda: host.ready_spares() == 1 and host.spares.all[0].handle.pid != dead,
        within_s=5,
        what="another spare",
    )


async def test_bound_engines_outlive_the_zygote_and_another_makes_spares(host: Host) -> None:
    await host.attach("i1", 1)
    zygote, bound = host.zygote.pid, host.pid("i1")
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    await until(lambda: host.zygote.pid not in (None, zygote), within_s=10, what="another zygote")
    await host.attach("i2", 2, 1)
    assert is_alive(bound)
    os.kill(bound, signal.SIGKILL)
    await until(lambda: len(host.engines.bound) == 1, within_s=5, what="the death is noticed")
    assert [one.command.instance_id for one in host.engines.take_exited()] == ["i1"]


async def test_no_spare_is_made_without_a_store(host: Host) -> None:
    await host.until_spares(1)
    host.store_ready.clear()
    os.kill(host.spares.all[0].handle.pid, signal.SIGKILL)
    await host.until_spares(0)
    waiting = host.attach("i1", 1)
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    host.store_ready.set()
    await waiting


async def test_spares_build_the_skeletons_of_what_the_host_holds(host: Host) -> None:
    await host.until_spares(1)
    host.spares.expect({"a@aaaa": command("a@aaaa")})
    assert host.spares.prepare(command("b@aaaa"))
    wanted = {"prepare a@aaaa", "prepare b@aaaa"}
    await until(lambda: wanted <= set(host.said()), within_s=5, what="both skeletons")
    await host.attach("i1", 1)
    await until(lambda: host.said().count("prepare a@aaaa") == 2, within_s=5, what="in the next spare too")


async def test_spares_not_worth_keeping_end_and_one_is_made_for_whoever_waits(host: Host) -> None:
    await host.until_spares(1)
    spare, zygote = host.spares.all[0].handle, host.zygote.pid
    await host.attach("kept", 1)
    await host.until_spares(1)
    idle = host.spares.all[0].handle
    await host.spares.keep_for(said(spare_s=0.0))
    await until(lambda: not is_alive(idle.pid), within_s=5, what="the spare ends")
    assert host.spares.all == () and host.spares.are_let_go
    assert is_alive(spare.pid) and host.zygote.pid == zygote, "what was taken, and the imports, stay"
    await asyncio.gather(host.attach("i2", 2), host.attach("i3", 3, 1))
    await until(lambda: not host.spares.all, within_s=5, what="none is left over")
    # Told anew.
    await host.spares.keep_for(said(spare_s=600.0))
    await host.until_spares(1)


async def test_a_word_runs_out_by_itself(host: Host) -> None:
    await host.until_spares(1)
    await host.spares.keep_for(said(spare_s=0.05, good_for_s=0.3))
    await host.until_spares(0)
    await host.until_spares(1)
    await host.spares.keep_for(said(spare_s=0.0, good_for_s=0.0))
    assert not host.spares.are_let_go


async def test_a_start_on_its_way_brings_a_spare_back(host: Host) -> None:
    await host.until_spares(1)
    await host.spares.keep_for(said({"m@aaaa": 0.0}, spare_s=0.0))
    await host.until_spares(0)
    assert host.spares.prepare(command("m@aaaa")) == []
    await host.until_spares(1)
    await until(lambda: "prepare m@aaaa" in host.said(), within_s=5, what="its skeleton too")


async def test_a_skeleton_not_worth_keeping_is_built_no_more_until_it_is_again(host: Host) -> None:
    def built(name: str) -> int:
        return host.said().count(f"prepare {name}")

    held = {name: command(name) for name in ("cold@aaaa", "warm@aaaa")}
    await host.until_spares(1)
    host.spares.expect(held)
    await until(lambda: built("cold@aaaa") == built("warm@aaaa") == 1, within_s=5, what="both skeletons")
    await host.spares.keep_for(said({"cold@aaaa": 0.0, "warm@aaaa": 600.0}))
    await host.attach("i1", 1)
    await until(lambda: built("warm@aaaa") == 2, within_s=5, what="one, in the next spare")
    # The store is asked time and again for what it holds.
    host.spares.expect(held)
    await host.spares.keep_for(said({"cold@aaaa": 600.0}))
    await until(lambda: built("cold@aaaa") == 2, within_s=5, what="told anew")
    assert built("warm@aaaa") == 2


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_attach_gets_a_spare_that_was_let_go(host: Host, seed: int) -> None:
    """Words fall at any moment of attaches; none of these ever loses its spare, or waits for ever."""
    print("seed", seed)
    chance = random.Random(seed)
    for epoch in range(1, 31):
        attaching = host.attach(f"i{epoch}", epoch)
        while not attaching.done():
            await host.spares.keep_for(said(spare_s=chance.choice((0.0, 600.0))))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
        await attaching
        assert is_alive(host.pid(f"i{epoch}"))
    assert host.said().count("attach m@aaaa") == 30, "none was tried on a spare that was gone"


async def test_wrong_gpus_are_refused(host: Host) -> None:
    for gpus in ((2,), (0, 0), (-1,)):
        with pytest.raises(InvalidInput):
            await host.attach("i1", 1, *gpus)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_gpu_is_ever_held_twice_whatever_happens(host: Host, seed: int) -> None:
    """Random attaches, stops and kills; a reservation gives each attach a higher epoch than the last."""
    print("seed", seed)
    chance = random.Random(seed)
    calls: list[asyncio.Task[object]] = []
    for epoch in range(1, 41):
        bound = host.engines.bound
        match chance.choice(("attach", "attach", "stop", "kill", "late")):
            case "attach":
                gpus = chance.choice(((0,), (1,), (0, 1)))
                kind = chance.choice(("m@aaaa", "m@aaaa", "fail@aaaa", "slow@aaaa"))
                calls.append(
                    asyncio.ensure_future(_quiet(host.attach(f"i{epoch}", epoch, *gpus, checkpoint=kind)))
                )
            case "stop" if bound:
                one = chance.choice(bound)
                stop = host.engines.stop(
                    instance_id=one.command.instance_id, epoch=epoch, drain_timeout_s=0.1, reason="chance"
                )
                calls.append(asyncio.ensure_future(_quiet(stop)))
            case "kill" if bound and (handle := chance.choice(bound).handle) is not None:
                handle.kill()
            case "late" if epoch > 2:
                calls.append(asyncio.ensure_future(_quiet(host.attach(f"late{epoch}", 1))))
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
        await asyncio.sleep(chance.random() * 0.02)
        _no_gpu_twice(host)
    for one in host.engines.bound:
        if one.command.checkpoint_id.startswith("slow"):
            await host.engines.stop(
                instance_id=one.command.instance_id, epoch=99, drain_timeout_s=0, reason="end"
            )
    async with asyncio.timeout(30):
        await asyncio.gather(*calls)
    _no_gpu_twice(host)
    kept = {one.handle.pid for one in host.engines.bound if one.handle is not None}
    kept |= {spare.handle.pid for spare in host.spares.all}
    zygote = host.zygote.pid
    assert zygote is not None
    await until(
        lambda: descendants(zygote) <= kept | {spare.handle.pid for spare in host.spares.all},
        within_s=5,
        what="no engine is left over",
    )


def _no_gpu_twice(host: Host) -> None:
    ready = [one for one in host.engines.bound if one.state is EngineState.READY and one.stopping is None]
    gpus = [gpu for one in ready for gpu in one.gpu_indices]
    assert len(gpus) == len(set(gpus))


async def _quiet(call: Awaitable[object]) -> object:
    try:
        return await call
    except FirstlightError as refusal:
        return refusal
