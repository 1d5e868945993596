"""Laws of what a start still has to move, and of documents kept in the database."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firstlight.database.decision_json import (
    candidates_from_json,
    candidates_markdown,
    candidates_to_json,
    estimate_from_json,
    estimate_to_json,
    planned_estimate,
)
from firstlight.database.edges import edges_from_json, edges_to_json, prior_edge, remaining_bytes
from firstlight.domain.estimator import StartEstimate
from firstlight.domain.fleet import Edge, EdgeModel, Tier
from firstlight.domain.names import HostId
from firstlight.domain.scheduler import Candidate

sizes = st.integers(min_value=0, max_value=10**13)
seconds = st.floats(min_value=0, max_value=1e6)
edge_models = st.builds(
    EdgeModel,
    overhead_s=st.floats(min_value=0, max_value=100),
    bandwidth_bytes_per_s=st.floats(min_value=1.0, max_value=1e12),
    observations=st.integers(min_value=0, max_value=1000),
)
edges = st.dictionaries(st.sampled_from(Edge), edge_models)
estimates = st.builds(
    StartEstimate,
    queue_s=seconds,
    download_s=seconds,
    load_s=seconds,
    attach_s=seconds,
    control_s=seconds,
    tier=st.sampled_from(Tier),
)
candidates = st.lists(
    st.builds(
        Candidate,
        host_id=st.from_regex(r"[a-z]{1,8}", fullmatch=True).map(HostId),
        estimate=st.none() | estimates,
        reason=st.none() | st.text(max_size=20),
        gpu_indices=st.lists(st.integers(0, 7), max_size=3).map(tuple),
    ),
    max_size=40,
)


@given(edges, st.sampled_from(Tier), sizes, sizes, seconds, seconds)
def test_what_is_left_shrinks_with_time_and_never_below_nothing(
    model: dict[Edge, EdgeModel],
    tier: Tier,
    size_bytes: int,
    source_bytes: int,
    first_s: float,
    more_s: float,
) -> None:
    def left(elapsed_s: float) -> dict[Edge, int]:
        return remaining_bytes(
            model, tier=tier, size_bytes=size_bytes, source_bytes=source_bytes, elapsed_s=elapsed_s
        )

    early, late = left(first_s), left(first_s + more_s)
    assert early.keys() == late.keys()
    assert all(0 <= late[edge] <= early[edge] for edge in early)
    whole = left(0.0)
    assert (
        set(whole)
        == {
            Tier.REMOTE: {Edge.REMOTE_TO_SSD},
            Tier.PEER: {Edge.PEER_TO_DRAM},
            Tier.SSD: {Edge.SSD_TO_DRAM},
            Tier.DRAM: set(),
        }[tier]
    )
    assert whole.get(Edge.REMOTE_TO_SSD, max(size_bytes, source_bytes)) == max(size_bytes, source_bytes)
    assert whole.get(Edge.SSD_TO_DRAM, size_bytes) == size_bytes


@given(edges, sizes, sizes, seconds)
def test_what_does_not_fit_the_pool_is_not_read_from_the_disk_before_the_download_has_ended(
    model: dict[Edge, EdgeModel], size_bytes: int, source_bytes: int, elapsed_s: float
) -> None:
    left = remaining_bytes(
        model,
        tier=Tier.REMOTE,
        size_bytes=size_bytes,
        source_bytes=source_bytes,
        elapsed_s=elapsed_s,
        lands_in_dram=False,
    )
    # A byte is lost to rounding at most.
    assert left[Edge.REMOTE_TO_SSD] <= 1 or left[Edge.SSD_TO_DRAM] == size_bytes


@given(edges)
def test_edges_survive_their_document(model: dict[Edge, EdgeModel]) -> None:
    assert edges_from_json(edges_to_json(model)) == model
    assert edges_from_json({**edges_to_json(model), "of_a_later_release": {}}) == model


@given(candidates)
def test_candidates_survive_their_document_and_their_table_never_grows_beyond_reading(
    rows: list[Candidate],
) -> None:
    assert candidates_from_json(candidates_to_json(rows)) == tuple(rows)
    chosen = rows[0].host_id if rows else None
    assert candidates_markdown(rows, chosen=chosen).count("\n") <= 33


@given(estimates)
def test_a_kept_estimate_predicts_what_was_predicted(estimate: StartEstimate) -> None:
    assert estimate_from_json(estimate_to_json(estimate)) == planned_estimate(estimate)
    assert planned_estimate(estimate).total_s == estimate.total_s


@given(st.floats(min_value=1, max_value=1e12))
def test_the_probe_speaks_for_the_disk_alone(measured: float) -> None:
    assert prior_edge(Edge.SSD_TO_DRAM, ssd_read_bytes_per_s=measured).bandwidth_bytes_per_s == measured
    for edge in Edge:
        assert prior_edge(edge, ssd_read_bytes_per_s=0).bandwidth_bytes_per_s > 0
    link = prior_edge(Edge.REMOTE_TO_SSD, ssd_read_bytes_per_s=measured)
    assert link == prior_edge(Edge.REMOTE_TO_SSD, ssd_read_bytes_per_s=0)
