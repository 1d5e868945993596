"""What a simulated fleet does, against results worked out by hand."""

from __future__ import annotations

import pytest
from simulator_scenes import DRAM_START_S, SSD_START_S, ask, put_in_dram, run_checked, scene, stage

from firstlight.domain.fleet import Tier
from simulator.agenda import Agenda
from simulator.entities import InstanceState
from simulator.link import Background, Link

# 100 tokens of prompt at 1000 a second, and 10 more tokens at 10 a second.
PREFILL_S = 0.1
DECODE_S = 1.0
SERVICE_S = PREFILL_S + DECODE_S


def test_a_start_from_ssd_takes_the_slower_of_disk_and_copy_then_attaches() -> None:
    cluster = stage(scene(), "random")
    (request,) = ask(cluster, (1.0, 0))
    run_checked(cluster)
    assert request.waited_s == pytest.approx(SSD_START_S)
    assert request.start_tier is Tier.SSD
    assert request.first_token_s == pytest.approx(1.0 + SSD_START_S + PREFILL_S)
    assert request.end_s == pytest.approx(1.0 + SSD_START_S + SERVICE_S)


def test_what_was_loaded_once_starts_from_dram_and_what_runs_is_joined() -> None:
    cluster = stage(scene(), "random", keep_alive_s=1.0)
    first, joins, again = ask(cluster, (0.0, 0), (4.0, 0), (20.0, 0))
    run_checked(cluster)
    # The first ends at 3.4 and its instance is kept until 4.4; by 20 it has gone, DRAM has its bytes.
    assert first.end_s == pytest.approx(SSD_START_S + SERVICE_S)
    assert joins.waited_s == 0 and joins.start_tier is None
    assert again.waited_s == pytest.approx(DRAM_START_S) and again.start_tier is Tier.DRAM


def test_requests_beyond_the_gpus_wait_their_turn_and_give_up_at_the_time_out() -> None:
    cluster = stage(scene(timeout_s=4.0), "random", keep_alive_s=0.0)
    first, second, third = ask(cluster, (0.0, 0), (0.5, 1), (0.6, 1))
    run_checked(cluster)
    # The GPU is free again at 3.4; the second model's start, 2.3 s, ends after both gave up.
    assert not first.has_timed_out
    assert second.has_timed_out and second.waited_s == pytest.approx(4.0)
    assert third.has_timed_out and third.first_token_s is None


def test_two_loads_on_one_disk_stand_in_line() -> None:
    cluster = stage(scene(fleet__gpus_per_host=2), "random")
    first, second = ask(cluster, (0.0, 0), (0.0, 1))
    run_checked(cluster)
    assert first.waited_s == pytest.approx(SSD_START_S)
    assert second.waited_s == pytest.approx(SSD_START_S + 2.0)


def test_a_second_start_of_what_is_on_its_way_reads_it_once() -> None:
    cluster = stage(scene(fleet__gpus_per_host=2), "random")
    first, second = ask(cluster, (0.0, 0), (1.0, 0))
    run_checked(cluster)
    assert first.waited_s == pytest.approx(SSD_START_S)
    assert second.waited_s == pytest.approx(SSD_START_S - 1.0)


def test_each_start_downloads_where_nothing_is_kept() -> None:
    cluster = stage(scene(), "ray-serve", keep_alive_s=0.0)
    first, again = ask(cluster, (0.0, 0), (30.0, 0))
    run_checked(cluster)
    # 10 s over the network, half a second to the GPU when all is there, and a second of its own.
    assert first.waited_s == pytest.approx(10.0 + 0.5 + 1.0 + 0.3)
    assert again.waited_s == pytest.approx(first.waited_s)
    assert cluster.journal.starts[Tier.REMOTE] == 2


def test_an_ssd_cache_is_filled_by_the_first_start() -> None:
    cluster = stage(scene(), "ray-serve-cached", keep_alive_s=0.0)
    first, again = ask(cluster, (0.0, 0), (30.0, 0))
    run_checked(cluster)
    assert first.start_tier is Tier.REMOTE
    assert again.waited_s == pytest.approx(4.0 + 1.0 + 0.3)


def test_serverlessllm_moves_a_running_instance_out_of_the_way() -> None:
    cluster = stage(scene(fleet__hosts=2), "serverlessllm")
    victim, arrival = cluster.models
    put_in_dram(cluster, 0, arrival)
    put_in_dram(cluster, 1, victim)
    # The victim runs on host 1, where the arrival's bytes are; host 2 is free and has the victim's.
    source = cluster.start(victim, cluster.hosts[0], [0])
    moved, arrived = ask(cluster, (0.0, 0), (10.0, 1), output_tokens=1001)
    run_checked(cluster)
    assert (moved.migrations, moved.preemptions) == (1, 0)
    assert source.state is InstanceState.GONE
    # At 10: the destination loads from DRAM (0.8), then 0.1 s + 1 ms a token: 100 + (10.8 − 2.4) · 10 = 184.
    assert arrived.start_tier is Tier.DRAM
    move_s = DRAM_START_S + 0.1 + 0.184
    assert arrived.waited_s == pytest.approx(move_s + DRAM_START_S, abs=0.002)
    # The stream goes on: nothing is lost but the pause.
    assert moved.end_s == pytest.approx(SSD_START_S + PREFILL_S + 100.0 + 0.05)


def test_shepherd_stops_a_running_instance_and_its_request_starts_over_elsewhere() -> None:
    cluster = stage(scene(fleet__hosts=2), "shepherd")
    victim, arrival = cluster.models
    put_in_dram(cluster, 0, arrival)
    put_in_dram(cluster, 1, victim)
    cluster.start(victim, cluster.hosts[0], [0])
    stopped, arrived = ask(cluster, (0.0, 0), (10.0, 1), output_tokens=1001)
    run_checked(cluster)
    assert (stopped.preemptions, stopped.migrations) == (1, 0)
    assert arrived.waited_s == pytest.approx(DRAM_START_S)
    # 76 tokens were sent by then; they and the prompt are computed again where it starts anew.
    assert cluster.journal.preempted_tokens == 176
    assert stopped.waited_s == pytest.approx(SSD_START_S + DRAM_START_S)
    assert stopped.end_s == pytest.approx(10.0 + DRAM_START_S + 0.176 + (1001 - 76 - 1) / 10.0)


def test_firstlight_ends_an_idle_instance_and_brings_the_bytes_meanwhile() -> None:
    cluster = stage(scene(), "firstlight", prefetch=0.0)
    first, other = ask(cluster, (0.0, 0), (10.0, 1))
    run_checked(cluster)
    assert cluster.journal.evictions == 1
    # The eviction's 0.1 s pass while the disk is read; of the prompt one layer is left to compute.
    assert other.waited_s == pytest.approx(SSD_START_S)
    assert other.first_token_s == pytest.approx(10.0 + SSD_START_S + PREFILL_S / 32)
    assert first.waited_s == pytest.approx(SSD_START_S)


def test_firstlight_brings_checkpoints_into_dram_before_anybody_asks() -> None:
    cluster = stage(scene(), "firstlight")
    (request,) = ask(cluster, (20.0, 1))
    run_checked(cluster)
    assert request.waited_s == pytest.approx(DRAM_START_S)


def test_firstlight_takes_a_checkpoint_from_a_peer_where_that_is_soonest() -> None:
    # The source gives a tenth of what the network carries; host 2 has no copy, host 1's only GPU is taken.
    scenario = scene(fleet__hosts=2, fleet__ssd_copies=1, fleet__source_gb_per_s=0.1)
    cluster = stage(scenario, "firstlight", prefetch=0.0)
    _, second = ask(cluster, (0.0, 0), (5.0, 0), output_tokens=2000)
    run_checked(cluster)
    assert second.start_tier is Tier.PEER
    assert second.waited_s == pytest.approx(10.3)


def test_a_link_serves_in_order_and_lends_only_its_idle_time() -> None:
    agenda = Agenda()
    link = Link(10.0)
    done: list[float] = []
    Background(agenda, link, 50.0, lambda: done.append(agenda.now_s))
    agenda.at(2.0, lambda: done.append(-link.reserve(30.0, now_s=agenda.now_s)[1]))
    agenda.run(is_over=lambda: len(done) == 2)
    # Two seconds of five are done when three of something else come between.
    assert done == [-5.0, 8.0]
    assert link.queued_bytes(4.0) == 10
