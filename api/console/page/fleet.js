// The first page: the fleet at a glance.

import { h } from './dom.js';
import { hosts_section } from './hosts.js';
import { instances_section } from './instances.js';
import { button, empty, section } from './parts.js';
import { is_active, state } from './state.js';
import { legend, migration_row, start_row } from './waterfall.js';

// The rest is opened on demand.
const ROWS_SHOWN = 10;

export function fleet_page() {
  return [
    h('h1', { class: 'unseen', 'data-key': 'title' }, 'Fleet'),
    glance(),
    h(
      'div',
      { class: 'columns', 'data-key': 'columns' },
      hosts_section(),
      h('div', { class: 'column-of', 'data-key': 'right' }, instances_section(), activity_section()),
    ),
  ];
}

function glance() {
  const hosts = state.hosts || [];
  const gpus = hosts.filter((host) => host.state !== 'lost').flatMap((host) => host.gpus);
  const loads = Object.values(state.load.models);
  const sum = (name) => loads.reduce((total, load) => total + load[name], 0);
  const figures = [
    ['Hosts ready', `${hosts.filter((host) => host.state === 'ready').length} of ${hosts.length}`, 'hosts'],
    ['GPUs in use', `${gpus.filter((gpu) => gpu.instance_id).length} of ${gpus.length}`],
    ['Models', state.models.length],
    ['Instances ready', state.instances.filter((one) => one.state === 'ready').length, 'instances'],
    ['Starting', state.instances.filter((one) => one.state === 'starting').length, 'activity'],
    ['Moving', state.migrations.filter((one) => one.state === 'running').length],
    ['Requests running', sum('running')],
    ['Requests waiting', sum('waiting')],
  ];
  return h(
    'dl',
    { class: 'glance', 'aria-label': 'At a glance', 'data-key': 'glance' },
    figures.map(([name, value, part]) => h('div', { 'data-key': name }, h('dt', null, name), h('dd', null, figure(name, value, part)))),
  );
}

/** A large fleet is a long page: some figures lead to what they count, by mouse and by keyboard. */
function figure(name, value, part) {
  const text = state.hosts === null ? '–' : value;
  return part ? button('jump', text, { 'data-to': part }, { 'aria-label': `${name}: ${text}, go there` }) : text;
}

function activity_section() {
  const rows = [
    ...state.starts.map((start) => [is_active(start), start.decided_at_unix_s, start_row(start)]),
    ...state.migrations.map((one) => [one.state === 'running', one.started_at_unix_s, migration_row(one)]),
  ].sort((one, other) => other[0] - one[0] || other[1] - one[1]);
  return section(
    'activity',
    'Starts and migrations',
    null,
    legend(),
    rows.length
      ? [
          h('ol', { class: 'falls' }, rows.slice(0, ROWS_SHOWN).map(([, , row]) => row)),
          rows.length > ROWS_SHOWN
            ? h(
                'details',
                { 'data-key': 'older' },
                h('summary', null, `${rows.length - ROWS_SHOWN} older`),
                h('ol', { class: 'falls' }, rows.slice(ROWS_SHOWN).map(([, , row]) => row)),
              )
            : null,
        ]
      : empty('Nothing has been started yet. Each start shows here what was predicted, and what it took.'),
  );
}
