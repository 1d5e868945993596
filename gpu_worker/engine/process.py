"""One engine process: forked from the zygote, spare until it is attached, then serving until it is stopped.

Who connects to whom. The supervisor listens on ONE Unix socket (`gpu_worker.engine.client.Nursery`); the
zygote and every engine connect to it, so that "ready" is an accepted connection and nobody polls. JSON, one
object a line.

    zygote  -> {"hello":"zygote","pid":P}                 imports done, may fork
            <- {"id":N,"fork":{EngineConfig}}
            -> {"id":N,"forked":P}
            -> {"exited":P,"status":S}                    exit code, or minus the signal
    engine  -> {"hello":"engine","pid":P}                 first line of its own connection
            -> {"event":"spare","endpoint":"host:port"}   arena mapped and populated, Inference served
            <- {"id":N,"call":"prepare","arguments":{PrepareCommand}}
            -> {"id":N,"result":{"skeleton_s":…}}
            <- {"id":N,"call":"attach","arguments":{AttachCommand}}
            -> {"id":N,"result":{Attached}}               Generate serves from now on, at `endpoint`
            <- {"id":N,"call":"stop","arguments":{"drain_timeout_s":…}}
            -> {"id":N,"result":{"aborted":…}}            and the process exits with 0
    any call -> {"id":N,"error":{"code":…,"message":…}}   a code of firstlight.domain.errors

Life. `spare -> attaching -> ready -> draining -> exit`. An engine attaches once; after a failed attach it
exits (1) and the supervisor forks another. A repeat of the same (instance_id, epoch) gets the first outcome;
a lower epoch StaleEpoch; anything else EngineBusy. The checkpoint's files (config.json, manifest.json) are
found in the directory the store names with the pin; the pin lasts as long as the engine's connection to the
store.

Deaths. Zygote and engines watch the supervisor's pidfd and end with it. Engines outlive the zygote. A spare
whose store is gone exits (3); a bound one serves on, for the arena lives as long as someone maps it.

Threads of an engine: asyncio (gRPC and control), the decode loop, the supervisor watch, and for a moment the
one that populates the arena's pages.
"""
