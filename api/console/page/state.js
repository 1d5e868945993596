// What the page knows: the latest of every section that the stream has sent.

export const state = {
  hello: null,
  hosts: null,
  instances: [],
  starts: [],
  migrations: [],
  // What goes on has said of itself lately, by instance and by migration.
  progress: { starts: {}, migrations: {} },
  models: [],
  load: { models: {}, requests: [], more_requests: 0 },
  health: null,
  trouble: null,
  // Connection: waiting, live, lost or refused.
  link: 'waiting',
  retry_at_ms: 0,
  // Seconds that the server's clock is ahead of this one.
  ahead_s: 0,
  host_filter: '',
  // Of the model whose page is open.
  history: { model: null, starts: null, failure: null },
};

export function take(section, value) {
  state[section] = value;
  if (section === 'hello') state.ahead_s = value.now_unix_s - Date.now() / 1000;
}

export function now_s() {
  return Date.now() / 1000 + state.ahead_s;
}

/** The model a checkpoint belongs to, or the checkpoint itself where no deployed model has it. */
export function model_of(checkpoint_id) {
  const found = state.models.find((model) => model.checkpoint_id === checkpoint_id);
  return found ? found.name : checkpoint_id.split('@')[0];
}

// An instance can serve while the rest of its bytes come; what its start took is written behind that.
const WRITTEN_WITHIN_S = 120;

export function is_active(start) {
  if (start.state === 'starting') return true;
  const is_unwritten = start.state === 'ready' && !start.actual && !start.failure;
  return is_unwritten && now_s() - start.decided_at_unix_s < WRITTEN_WITHIN_S;
}
