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
export const LEGEND = [...PHASES, ['move', 'move requests']];

/** Phases of one start: [{id, name, predicted, actual}], actual null while it runs. */
export function start_phases(start) {
  const rows = PHASES.map(([id, name]) => ({
    id,
    name,
    predicted: start.predicted[`${id}_s`],
    actual: start.actual ? start.actual[`${id}_s`] : null,
  }));
  return rows.filter((row) => (row.predicted || 0) + (row.actual || 0) >= LEAST_S);
}

export function start_row(start, with_model = true) {
  const elapsed_s = is_active(start) ? Math.max(0, now_s() - start.decided_at_unix_s) : null;
  const ready_s = start.ready_at_unix_s ? start.ready_at_unix_s - start.decided_at_unix_s : null;
  return item({
    key: `start-${start.instance_id}`,
    kind: 'start',
    begun_s: start.decided_at_unix_s,
    title: [with_model ? model_link(start.model) : null, with_model ? ' on ' : 'on ', start.host_id || 'no host'],
    note: `from ${start.tier}`,
    state: start.state,
    // One that ended well long ago is `stopped` now, which says nothing of its start.
    outcome: start.actual && !start.failure ? 'ready' : start.state,
    phases: start_phases(start),
    predicted_s: start.predicted.total_s,
    actual_s: start.actual ? start.actual.total_s : ready_s,
    elapsed_s,
    so_far: start.state === 'ready' ? 'serves, loads on' : 'so far',
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
  const destination = state.instances.find((found) => found.instance_id === one.destination_instance_id);
  const is_moving = is_running && destination && destination.ready_at_unix_s;
  const started_s = is_moving ? Math.max(0, destination.ready_at_unix_s - one.started_at_unix_s) : null;
  const actual = {
    start: is_running ? started_s : one.start_s,
    move: is_running ? null : one.move_s,
  };
  const predicted = { start: one.predicted_start_s, move: one.predicted_move_s };
  const known_s = (one.predicted_start_s || 0) + (one.predicted_move_s || 0);
  return item({
    key: `migration-${one.migration_id}`,
    kind: 'migration',
    begun_s: one.started_at_unix_s,
    title: [model_link(one.model), ` ${one.source_host_id} → ${one.destination_host_id}`],
    note: is_moving ? 'requests move' : is_running ? 'destination starts' : count(one.requests_moved, 'request', 'requests'),
    state: one.state,
    outcome: one.state,
    phases: MOVES.map(([id, name]) => ({ id, name, predicted: predicted[id], actual: actual[id] })).filter(
      (row) => (row.predicted || 0) + (row.actual || 0) >= LEAST_S,
    ),
    predicted_s: known_s || null,
    actual_s: is_running ? null : one.start_s + one.move_s,
    elapsed_s: is_running ? Math.max(0, now_s() - one.started_at_unix_s) : null,
    so_far: 'so far',
    failure: one.failure,
    facts: [
      ['Why', one.reason],
      ['From instance', one.source_instance_id],
      ['To instance', one.destination_instance_id],
      ['Longest pause of a stream', seconds(one.pause_s)],
      ['Rounds', one.rounds],
      ['Tokens', one.tokens_moved],
      ['Sent', size(one.bytes_moved)],
    ],
    workflow_id: one.workflow_id,
  });
}

function item(one) {
  const scale_s = Math.max(one.predicted_s || 0, one.actual_s || 0, one.elapsed_s || 0, LEAST_S);
  return h(
    'li',
    { class: 'fall', 'data-key': one.key, 'data-kind': one.kind, 'data-active': one.elapsed_s !== null },
    h(
      'div',
      { class: 'fall-head' },
      h('span', { class: 'kind' }, one.kind),
      h('span', { class: 'fall-title' }, one.title),
      h('span', { class: 'quiet' }, one.note),
      pill(one.outcome),
      h('span', { class: 'when quiet' }, `${age(now_s() - one.begun_s)} ago`),
      h('span', { class: 'fall-link' }, workflow_link(one.workflow_id)),
    ),
    h(
      'div',
      { class: 'tracks' },
      track('predicted', one.phases, scale_s, one.predicted_s),
      one.elapsed_s === null
        ? track('actual', one.phases, scale_s, one.actual_s, off(one.predicted_s, one.actual_s))
        : live_track(one, scale_s),
    ),
    one.failure ? h('p', { class: 'failure' }, one.failure) : null,
    details(one, scale_s),
  );
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

function live_track(one, scale_s) {
  const known = one.phases.filter((row) => row.actual);
  const known_s = known.reduce((sum, row) => sum + row.actual, 0);
  const is_late = one.predicted_s !== null && one.elapsed_s > one.predicted_s * 1.25 + 0.5;
  return [
    h('span', { class: 'track-name' }, 'actual'),
    h(
      'span',
      { class: 'track actual', 'aria-hidden': 'true' },
      known.map((row) => bar(row, 'actual', scale_s)),
      h('span', {
        class: 'phase live',
        'data-late': is_late,
        style: { width: share(Math.max(0, one.elapsed_s - known_s), scale_s) },
      }),
    ),
    h('span', { class: 'track-total' }, seconds(one.elapsed_s), h('span', { class: is_late ? 'late' : 'quiet' }, is_late ? ' late' : ` ${one.so_far}`)),
  ];
}

function bar(row, kind, scale_s) {
  return h('span', {
    class: 'phase',
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
      h('td', { class: 'number' }, seconds(row.actual)),
      h(
        'td',
        { class: 'steps', 'aria-hidden': 'true' },
        step('predicted', row, predicted_s, scale_s),
        step('actual', row, actual_s, scale_s),
      ),
    );
    predicted_s += row.predicted || 0;
    actual_s += row.actual || 0;
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

function step(kind, row, begin_s, scale_s) {
  if (!row[kind]) return h('span', { class: 'step' });
  return h(
    'span',
    { class: 'step' },
    h('span', {
      class: `phase ${kind}`,
      'data-phase': row.id,
      style: { 'margin-left': share(begin_s, scale_s), width: share(row[kind], scale_s) },
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
