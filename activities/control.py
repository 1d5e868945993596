"""Activities of the control plane: each one transaction, or one patient look at the database."""

from __future__ import annotations

import time
from contextlib import suppress

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from activities.consolidating import consolidate_fleet
from activities.errors import answering
from activities.evicting import evict
from activities.heartbeat import beating
from activities.leases import watch_lease
from activities.moving_off import move_off
from firstlight.contracts import draining, freeing, hosts, instances, migrations, starts
from firstlight.contracts.activities import ControlActivities
from firstlight.contracts.failures import error_of
from firstlight.contracts.naming import cold_start_id
from firstlight.database import (
    hosts_repository,
    instances_repository,
    migrations_repository,
    models_repository,
    starts_repository,
)
from firstlight.database.connection import Database
from firstlight.domain.errors import MigrationFailed, UnknownModel
from firstlight.domain.lifecycle import HostState, ModelState
from firstlight.rpc.channels import Channels
from firstlight.rpc.engine_loads import EngineLoads

# A migration whose workflow has not begun by then never will: who planned it is dead.
LOST_AFTER_S = 30.0


class Control(ControlActivities):
    def __init__(
        self, *, database: Database, client: Client, consolidate_requests: int | None = None
    ) -> None:
        """`consolidate_requests`: hosts that run at most so many are emptied; None: never."""
        self._database = database
        self._client = client
        self._consolidate_requests = consolidate_requests

    @activity.defn(name="replan_start")
    @answering
    async def replan_start(self, request: starts.ReplanInput) -> starts.ReplanReceipt:
        async with Channels() as channels:
            return await starts_repository.replan_start(
                self._database,
                request,
                now_unix_s=time.time(),
                ask_engines=EngineLoads(channels).ask,
            )

    @activity.defn(name="abandon_start")
    @answering
    async def abandon_start(self, request: starts.AbandonInput) -> starts.AbandonReceipt:
        async with self._database.transaction() as session:
            resumed = await starts_repository.abandon_start(session, request)
        await self._finish_delete(request.plan.model)
        return starts.AbandonReceipt(resumed)

    @activity.defn(name="record_start")
    @answering
    async def record_start(self, request: starts.RecordStartInput) -> starts.Nothing:
        async with self._database.transaction() as session:
            await starts_repository.record_start(session, request)
        return starts.Nothing()

    @activity.defn(name="begin_drain")
    @answering
    async def begin_drain(self, request: instances.BeginDrainInput) -> instances.BeginDrainReceipt:
        async with self._database.transaction() as session:
            return await instances_repository.begin_drain(session, request)

    @activity.defn(name="finish_instance")
    @answering
    async def finish_instance(self, request: instances.FinishInput) -> starts.Nothing:
        async with self._database.transaction() as session:
            await instances_repository.finish_instance(session, request)
            model = (await instances_repository.get_instance(session, request.instance_id)).model
        await self._finish_delete(model)
        return starts.Nothing()

    @activity.defn(name="serve_on")
    @answering
    async def serve_on(self, request: migrations.ServeOnInput) -> starts.Nothing:
        async with self._database.transaction() as session:
            return starts.Nothing(ok=await migrations_repository.serve_on(session, request))

    @activity.defn(name="evict_instance")
    @answering
    async def evict_instance(self, request: freeing.EvictInput) -> starts.Nothing:
        async with Channels() as channels:
            await evict(self._database, self._client, channels, request)
        return starts.Nothing()

    @activity.defn(name="join_migration")
    @answering
    async def join_migration(self, request: freeing.JoinMigrationInput) -> starts.Nothing:
        async with beating("join"):
            try:
                await self._client.get_workflow_handle(request.migration_id).result()
            except WorkflowFailureError as failure:
                raise MigrationFailed(error_of(failure.cause).message) from failure
        return starts.Nothing()

    @activity.defn(name="move_off")
    @answering
    async def move_off(self, request: draining.DrainInput) -> draining.MoveOffReceipt:
        async with Channels() as channels:
            return await move_off(self._database, self._client, channels, request)

    @activity.defn(name="finish_migration")
    @answering
    async def finish_migration(
        self, request: migrations.FinishMigrationInput
    ) -> migrations.FinishMigrationReceipt:
        async with self._database.transaction() as session:
            resumed = await migrations_repository.finish_migration(session, request)
        return migrations.FinishMigrationReceipt(resumed)

    async def _finish_delete(self, model: str) -> None:
        """The last instance of a model being deleted takes the model with it."""
        with suppress(UnknownModel):
            async with self._database.transaction() as session:
                if (await models_repository.get_model(session, model)).state is ModelState.DELETING:
                    await models_repository.finish_delete(session, model)

    @activity.defn(name="watch_lease")
    @answering
    async def watch_lease(self, request: hosts.LeaseWatchInput) -> hosts.LeaseWatchReceipt:
        async with beating("lease"):
            return await watch_lease(self._database, request)

    @activity.defn(name="fail_host")
    @answering
    async def fail_host(self, request: hosts.FailHostInput) -> hosts.FailHostReceipt:
        async with self._database.transaction() as session:
            return await hosts_repository.fail_host(session, request)

    @activity.defn(name="list_hosts")
    @answering
    async def list_hosts(self, request: hosts.ReconcileInput) -> hosts.HostList:
        async with self._database.session() as session:
            found = await hosts_repository.list_hosts(session)
        return hosts.HostList(
            [host.host_id for host in found if host.state is not HostState.LOST],
            consolidates=self._consolidate_requests is not None,
        )

    @activity.defn(name="consolidate_fleet")
    @answering
    async def consolidate_fleet(self, request: hosts.ConsolidateInput) -> hosts.ConsolidateReceipt:
        if self._consolidate_requests is None:
            return hosts.ConsolidateReceipt()
        async with Channels() as channels:
            done = await consolidate_fleet(
                self._database, self._client, channels, most_requests=self._consolidate_requests
            )
        return hosts.ConsolidateReceipt(done)

    @activity.defn(name="mend_host")
    @answering
    async def mend_host(self, request: hosts.MendInput) -> hosts.MendReceipt:
        async with self._database.session() as session:
            stale = await hosts_repository.list_stale_starts(
                session, host_id=request.report.host_id, older_than_s=request.stale_start_s
            )
        abandoned = frozenset(
            [
                s.instance_id
                for s in stale
                if not await self._is_running(cold_start_id(s.model, s.instance_id))
            ]
        )
        await self._close_lost_migrations()
        async with self._database.transaction() as session:
            return await hosts_repository.mend_host(session, request, abandoned_starts=abandoned)

    async def _close_lost_migrations(self) -> None:
        """Whoever wrote them died before their workflow began: the sources serve on."""
        async with self._database.session() as session:
            stale = await migrations_repository.stale_migrations(session, older_than_s=LOST_AFTER_S)
        for lost in stale:
            if await self._is_running(lost.migration_id):
                continue
            ending = migrations.FinishMigrationInput(lost.migration_id, "failed", failure="it never began")
            async with self._database.transaction() as session:
                await migrations_repository.serve_on(session, lost)
                await migrations_repository.finish_migration(session, ending)

    async def _is_running(self, workflow_id: str) -> bool:
        try:
            found = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            # Only "there is none" is a no; a Temporal that does not answer lets this attempt fail.
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return found.status is WorkflowExecutionStatus.RUNNING
