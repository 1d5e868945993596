"""Activity interfaces: what a workflow may ask for. `activities/` subclasses them; workflows call by method.

ControlActivities run on any control worker (SQL). HostActivities run on one host's agent, on its own queue,
because only that host has the bytes and the GPUs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from temporalio import activity

from firstlight.contracts import draining, freeing, hosts, instances, migrations, starts


class ControlActivities(ABC):
    @activity.defn(name="replan_start")
    @abstractmethod
    async def replan_start(self, request: starts.ReplanInput) -> starts.ReplanReceipt:
        """Release the failed plan's GPUs and reserve another host's, in one transaction, or give up."""

    @activity.defn(name="abandon_start")
    @abstractmethod
    async def abandon_start(self, request: starts.AbandonInput) -> starts.AbandonReceipt:
        """Release the GPUs, mark the instance failed or stopped, forget the route. Idempotent.

        A failed start that an operator has resumed is told its new plan instead.
        """

    @activity.defn(name="record_start")
    @abstractmethod
    async def record_start(self, request: starts.RecordStartInput) -> starts.Nothing:
        """Keep predicted beside actual and let the estimator learn from it. Idempotent per instance."""

    @activity.defn(name="begin_drain")
    @abstractmethod
    async def begin_drain(self, request: instances.BeginDrainInput) -> instances.BeginDrainReceipt:
        """Take the route away so that no new request goes there."""

    @activity.defn(name="finish_instance")
    @abstractmethod
    async def finish_instance(self, request: instances.FinishInput) -> starts.Nothing:
        """Release the GPUs under the epoch and close the row. Idempotent."""

    @activity.defn(name="watch_lease")
    @abstractmethod
    async def watch_lease(self, request: hosts.LeaseWatchInput) -> hosts.LeaseWatchReceipt:
        """Heartbeats until the host's lease has run out or a newer registration exists."""

    @activity.defn(name="fail_host")
    @abstractmethod
    async def fail_host(self, request: hosts.FailHostInput) -> hosts.FailHostReceipt:
        """Mark the host lost and fail all it ran, in one transaction. Idempotent per registration."""

    @activity.defn(name="list_hosts")
    @abstractmethod
    async def list_hosts(self, request: hosts.ReconcileInput) -> hosts.HostList:
        """Hosts that are not lost."""

    @activity.defn(name="mend_host")
    @abstractmethod
    async def mend_host(self, request: hosts.MendInput) -> hosts.MendReceipt:
        """Make Postgres agree with what the host reports; name engines that no row owns."""

    @activity.defn(name="consolidate_fleet")
    @abstractmethod
    async def consolidate_fleet(self, request: hosts.ConsolidateInput) -> hosts.ConsolidateReceipt:
        """Begin to move what a nearly idle host runs onto busier ones."""

    @activity.defn(name="serve_on")
    @abstractmethod
    async def serve_on(self, request: migrations.ServeOnInput) -> starts.Nothing:
        """Give the source of a migration that came to nothing its route back. `ok`: it serves. Idempotent."""

    @activity.defn(name="evict_instance")
    @abstractmethod
    async def evict_instance(self, request: freeing.EvictInput) -> starts.Nothing:
        """Have an idle instance end for somebody who needs its GPUs; one that is busy or needed stays."""

    @activity.defn(name="join_migration")
    @abstractmethod
    async def join_migration(self, request: freeing.JoinMigrationInput) -> starts.Nothing:
        """Heartbeats until a migration that somebody else began has completed; fails as it fails."""

    @activity.defn(name="move_off")
    @abstractmethod
    async def move_off(self, request: draining.DrainInput) -> draining.MoveOffReceipt:
        """Begin a migration of every instance of a draining host that does not move yet."""

    @activity.defn(name="finish_migration")
    @abstractmethod
    async def finish_migration(
        self, request: migrations.FinishMigrationInput
    ) -> migrations.FinishMigrationReceipt:
        """Close the migration's row with its figures. Idempotent: the first end stays.

        An attempt that an operator has followed up by another is told that one instead.
        """


class HostActivities(ABC):
    @activity.defn(name="download_checkpoint")
    @abstractmethod
    async def download_checkpoint(self, request: starts.DownloadInput) -> starts.DownloadReceipt:
        """Bring the checkpoint onto this host's SSD; joins a download under way; resumable."""

    @activity.defn(name="bring_up")
    @abstractmethod
    async def bring_up(self, request: starts.BringUpInput) -> starts.BringUpReceipt:
        """Load to DRAM, attach an engine, publish the route under the epoch. Idempotent per epoch."""

    @activity.defn(name="watch_instance")
    @abstractmethod
    async def watch_instance(self, request: instances.WatchInput) -> instances.WatchReceipt:
        """Heartbeats until the engine has been idle for keep_alive_s or has exited."""

    @activity.defn(name="stop_instance")
    @abstractmethod
    async def stop_instance(self, request: instances.StopInstanceInput) -> starts.Nothing:
        """Drain and end the engine. Idempotent; the engine of a newer epoch is left alone."""

    @activity.defn(name="move_requests")
    @abstractmethod
    async def move_requests(self, request: migrations.MoveInput) -> migrations.MoveReceipt:
        """Move every request of an engine of this host to another engine; heartbeats with each round."""

    @activity.defn(name="report_inventory")
    @abstractmethod
    async def report_inventory(self, request: hosts.InventoryInput) -> hosts.HostReport:
        """What this host's store and supervisor really hold."""
