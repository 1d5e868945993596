// Starts and migrations as waterfalls: what was predicted above what happened, on one scale.

import { h } from './dom.js';
import { age, count, off, seconds, size } from './format.js';
import { heads, model_link, pill, workflow_link } from './parts.js';
import { is_active, now_s, state } from './state.js';

// In the order in which they happen, with the words of the command line.
export const PHASES = [
  ['queue', 'queue'],
  ['download', 'download'],
  ['load', 'load'],
  ['free', 'making room'],
  ['attach', 'attach'],
  ['control', 'workflow'],
];
const MOVES = [
  ['start', 'start at destination'],
  ['move', 'move requests'],
];
// Shorter than this is nothing.
const LEAST_S = 0.0005;
export const LEGEND = [...PHASES, ...MOVES];

// What is being done in a phase, for who reads and does not look at bars.
const DOING = {
  queue: 'waits for its turn to load',
  download: 'downloads',
  load: 'loads',
  free: 'waits for room',
  attach: 'attaches its engine',
  control: 'lets requests in',
};

/** Phases of one start: [{id, name, predicted, actual, running_s}]; actual is null until it has ended. */
export function start_phases(start, told = null, elapsed_s = 0) {
  const done = start.actual ? null : told ? told.done : {};
  const rows = PHASES.map(([id, name]) => ({
    id,
    name,
    predicted: start.predicted[`${id}_s`],
    actual: done ? (done[id] ?? null) : start.actual[`${id}_s`],
    running_s: null,
  }));
  if (told) {
    const done_s = rows.reduce((sum, row) => sum + (row.actual || 0), 0);
    const running = rows.find((row) => row.id === told.phase);
    // A hint sets bytes moving before the decision that all is counted from.
    if (running) running.running_s = Math.min(Math.max(0, now_s() - told.since_unix_s), Math.max(0, elapsed_s - done_s));
  }
  return shown(rows);
}

const shown = (rows) => rows.filter((row) => row.running_s !== null || (row.predicted || 0) + (row.actual || 0) >= LEAST_S);

/** What its host said of a start lately, if that was of this very plan. */
export function told_of(instance_id, epoch) {
  const told = state.progress.starts[instance_id];
  return told && (epoch === undefined || told.epoch === epoch) ? told : null;
}

export function doing(told) {
  const moved = told.bytes_total ? ` ${size(told.bytes_done)} of ${size(told.bytes_total)}` : '';
  return `${DOING[told.phase] || told.phase}${moved}`;
}

/** Its engine answers with what has come, while the rest still comes. */
function serving(start, told) {
  const first_s = start.request_to_first_token_s;
  const first = first_s ? `first token after ${seconds(first_s)}, ` : '';
  return `serves, ${first}${told && told.bytes_total ? doing(told) : 'loads on'}`;
}

export function start_row(start, with_model = true) {
  const elapsed_s = is_active(start) ? Math.max(0, now_s() - start.decided_at_unix_s) : null;
  const ready_s = start.ready_at_unix_s ? start.ready_at_unix_s - start.decided_at_unix_s : null;
  const told = elapsed_s === null ? null : told_of(start.instance_id, start.epoch);
  return item({
    key: `start-${start.instance_id}`,
    kind: 'start',
    begun_s: start.decided_at_unix_s,
    title: [with_model ? model_link(start.model) : null, with_model ? ' on ' : 'on ', start.host_id || 'no host'],
    note: `from ${start.tier}`,
    doing: elapsed_s === null ? null : start.state === 'ready' ? serving(start, told) : told ? doing(told) : null,
    state: start.state,
    // One that ended well long ago is `stopped` now, which says nothing of its start.
    outcome: start.actual && !start.failure ? 'ready' : start.state,
    phases: start_phases(start, told, elapsed_s || 0),
    predicted_s: start.predicted.total_s,
    actual_s: start.actual ? start.actual.total_s : ready_s,
    elapsed_s,
    serves: start.state === 'ready',
    failure: start.failure,
    facts: start_facts(start),
    workflow_id: start.workflow_id || `cold-start/${start.model}/${start.instance_id}`,
  });
}

function start_facts(start) {
  const facts = [['Instance', start.instance_id], ['Asked for by', start.request_id || '–']];
  if (start.actual) facts.push(['Bytes moved', size(start.actual.bytes_moved)]);
  if (start.actual && start.actual.plans_tried > 1) facts.push(['Plans tried', start.actual.plans_tried]);
  if (start.request_to_first_token_s) facts.push(['Request to first token', seconds(start.request_to_first_token_s)]);
  return facts;
}

export function migration_row(one) {
  const is_running = one.state === 'running';
  const elapsed_s = is_running ? Math.max(0, now_s() - one.started_at_unix_s) : null;
  const destination = state.instances.find((found) => found.instance_id === one.destination_instance_id);
  const ready_at_s = is_running && destination && destination.ready_at_unix_s;
  // One that is reused was ready before.
  const started_s = ready_at_s ? Math.max(0, ready_at_s - one.started_at_unix_s) : null;
  const actual = { start: is_running ? started_s : one.start_s, move: is_running ? null : one.move_s };
  const running = is_running ? { [ready_at_s ? 'move' : 'start']: Math.max(0, elapsed_s - (started_s || 0)) } : {};
  const predicted = { start: one.predicted_start_s, move: one.predicted_move_s };
  const known_s = (one.predicted_start_s || 0) + (one.predicted_move_s || 0);
  const told = is_running ? state.progress.migrations[one.migration_id] : null;
  return item({
    key: `migration-${one.migration_id}`,
    kind: 'migration',
    begun_s: one.started_at_unix_s,
    title: [model_link(one.model), ` ${one.source_host_id} → ${one.destination_host_id}`],
    note: is_running ? null : count(one.requests_moved, 'request', 'requests'),
    doing: is_running ? moving(told, ready_at_s ? null : told_of(one.destination_instance_id), ready_at_s) : null,
    state: one.state,
    outcome: one.state,
    phases: shown(
      MOVES.map(([id, name]) => ({ id, name, predicted: predicted[id], actual: actual[id], running_s: running[id] ?? null })),
    ),
    predicted_s: known_s || null,
    actual_s: is_running ? null : one.start_s + one.move_s,
    elapsed_s,
    failure: one.failure,
    facts: [
      ['Why', one.reason],
      ['From instance', one.source_instance_id],
      ['To instance', one.destination_instance_id],
      ['Longest pause of a stream', is_running ? '–' : seconds(one.pause_s)],
      ['Rounds', told ? told.rounds : one.rounds],
      ['Tokens', told ? told.tokens : one.tokens_moved],
      ['Sent', size(told ? told.sent_bytes : one.bytes_moved)],
    ],
    workflow_id: one.workflow_id,
  });
}

/** What a running migration does: `told` of its requests, `told_start` of the start at its destination. */
function moving(told, told_start, is_ready) {
  if (!is_ready && !told) return told_start ? `destination ${doing(told_start)}` : 'destination starts';
  if (!told || !told.rounds) return 'requests move';
  const of = told.moved + told.left;
  return [
    `requests move: ${count(told.rounds, 'round', 'rounds')}, ${count(told.tokens, 'token', 'tokens')}`,
    of ? `, ${told.moved} of ${of} there` : null,
  ];
}

function item(one) {
  const live = one.elapsed_s === null ? null : live_parts(one);
  const scale_s = Math.max(one.predicted_s || 0, one.actual_s || 0, live ? one.elapsed_s + live.rest_s : 0, LEAST_S);
  return h(
    'li',
    { class: 'fall', 'data-key': one.key, 'data-kind': one.kind, 'data-active': one.elapsed_s !== null },
    h(
      'div',
      { class: 'fall-head' },
      h('span', { class: 'kind' }, one.kind),
      h('span', { class: 'fall-title' }, one.title),
      one.note ? h('span', { class: 'quiet' }, one.note) : null,
      pill(one.outcome),
      one.doing ? h('span', { class: 'doing' }, one.doing) : null,
      h('span', { class: 'when quiet' }, `${age(now_s() - one.begun_s)} ago`),
      h('span', { class: 'fall-link' }, workflow_link(one.workflow_id)),
    ),
    h(
      'div',
      { class: 'tracks' },
      track('predicted', one.phases, scale_s, one.predicted_s),
      live === null
        ? track('actual', one.phases, scale_s, one.actual_s, off(one.predicted_s, one.actual_s))
        : live_track(one, live, scale_s),
    ),
    one.failure ? h('p', { class: 'failure' }, one.failure) : null,
    details(one, scale_s),
  );
}

/**
 * What goes on, in parts: `own_s` that no phase has taken (the control plane's, so far), `running` or null
 * where nobody has said what goes on, and of the phases that are still to come what was predicted.
 */
function live_parts(one) {
  const done_s = one.phases.reduce((sum, row) => sum + (row.actual || 0), 0);
  const at = one.phases.findIndex((row) => row.running_s !== null);
  if (at < 0) return { own_s: 0, running: null, running_s: Math.max(0, one.elapsed_s - done_s), rest: [], rest_s: 0 };
  const running = one.phases[at];
  const own_s = Math.max(0, one.elapsed_s - done_s - running.running_s);
  const rest = one.phases
    // Who serves has its engine already: only the bytes still come.
    .filter((row, index) => index >= at && row.actual === null && (row === running || !one.serves))
    .map((row) => {
      const spent_s = row === running ? row.running_s : row.id === 'control' ? own_s : 0;
      return { ...row, predicted: Math.max(0, (row.predicted || 0) - spent_s) };
    })
    .filter((row) => row.predicted >= LEAST_S);
  return { own_s, running, running_s: running.running_s, rest, rest_s: rest.reduce((sum, row) => sum + row.predicted, 0) };
}

function track(kind, phases, scale_s, total_s, note = '') {
  return [
    h('span', { class: 'track-name' }, kind),
    h(
      'span',
      { class: `track ${kind}`, 'aria-hidden': 'true' },
      total_s === null ? null : phases.map((row) => bar(row, kind, scale_s)),
    ),
    h('span', { class: 'track-total' }, total_s === null ? '–' : seconds(total_s), note ? h('span', { class: 'quiet' }, ` ${note}`) : null),
  ];
}

function live_track(one, live, scale_s) {
  const is_late = one.predicted_s !== null && one.elapsed_s > one.predicted_s * 1.25 + 0.5;
  const own = { id: 'control', name: 'workflow', actual: live.own_s };
  const { running } = live;
  return [
    h('span', { class: 'track-name' }, 'actual'),
    h(
      'span',
      { class: 'track actual', 'aria-hidden': 'true' },
      live.own_s >= LEAST_S ? bar(own, 'actual', scale_s) : null,
      one.phases.filter((row) => row.actual).map((row) => bar(row, 'actual', scale_s)),
      h('span', {
        class: 'phase live',
        'data-phase': running ? running.id : null,
        'data-late': is_late,
        title: running ? `${running.name}: ${seconds(live.running_s)} so far` : null,
        style: { width: share(live.running_s, scale_s) },
      }),
      live.rest.map((row) => bar(row, 'predicted', scale_s, 'rest')),
    ),
    h('span', { class: 'track-total' }, seconds(one.elapsed_s), h('span', { class: is_late ? 'late' : 'quiet' }, is_late ? ' late' : ' so far')),
  ];
}

function bar(row, kind, scale_s, more = '') {
  return h('span', {
    class: `phase ${more}`.trim(),
    'data-phase': row.id,
    title: `${row.name}: ${seconds(row[kind])} ${kind}`,
    style: { width: share(row[kind] || 0, scale_s) },
  });
}

const share = (value_s, scale_s) => `${((value_s / scale_s) * 100).toFixed(2)}%`;

/** The same phase by phase, each bar where in time it stood, with its figures. */
function details(one, scale_s) {
  let predicted_s = 0;
  let actual_s = 0;
  const rows = one.phases.map((row) => {
    const made = h(
      'tr',
      null,
      h('th', { scope: 'row' }, h('span', { class: 'swatch', 'data-phase': row.id, 'aria-hidden': 'true' }), row.name),
      h('td', { class: 'number' }, seconds(row.predicted)),
      h('td', { class: 'number' }, row.running_s === null ? seconds(row.actual) : `${seconds(row.running_s)} so far`),
      h(
        'td',
        { class: 'steps', 'aria-hidden': 'true' },
        step('predicted', row.id, row.predicted, predicted_s, scale_s),
        step(row.running_s === null ? 'actual' : 'live', row.id, row.running_s ?? row.actual, actual_s, scale_s),
      ),
    );
    predicted_s += row.predicted || 0;
    actual_s += row.running_s ?? (row.actual || 0);
    return made;
  });
  return h(
    'details',
    null,
    h('summary', null, 'Phases and figures', h('span', { class: 'unseen' }, ` of ${one.key}`)),
    h(
      'div',
      { class: 'wide' },
      h(
        'table',
        { class: 'phases' },
        h(
          'thead',
          null,
          h('tr', null, heads(['Phase', 'Predicted', 'Actual'], 1), h('td', { 'aria-hidden': 'true' })),
        ),
        h('tbody', null, rows),
      ),
    ),
    h('dl', { class: 'facts' }, one.facts.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value)))),
  );
}

function step(kind, phase, taken_s, begin_s, scale_s) {
  if (!taken_s) return h('span', { class: 'step' });
  return h(
    'span',
    { class: 'step' },
    h('span', {
      class: `phase ${kind}`,
      'data-phase': phase,
      style: { 'margin-left': share(begin_s, scale_s), width: share(taken_s, scale_s) },
    }),
  );
}

export function legend() {
  return h(
    'ul',
    { class: 'legend', 'aria-label': 'Colours of the phases' },
    LEGEND.map(([id, name]) => h('li', null, h('span', { class: 'swatch', 'data-phase': id, 'aria-hidden': 'true' }), name)),
  );
}
