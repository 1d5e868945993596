// All models, and the page of one.

import { h } from './dom.js';
import { count, seconds, size } from './format.js';
import { instances_section } from './instances.js';
import { button, empty, heads, model_link, pill, section } from './parts.js';
import { state } from './state.js';
import { legend, start_row } from './waterfall.js';

export function models_page() {
  return [
    h('h1', { 'data-key': 'title' }, 'Models'),
    state.models.length === 0
      ? empty(state.hosts === null ? 'Waiting for the first figures…' : 'No model is deployed. ', state.hosts === null ? null : button('deploy', 'Deploy a model'))
      : h(
          'div',
          { class: 'wide', 'data-key': 'models' },
          h(
            'table',
            { class: 'rows' },
            h('thead', null, h('tr', null, heads(['Model', 'State', 'Size', 'GPUs', 'Instances', 'Running', 'Waiting', 'Where it lies'], 2, 7))),
            h('tbody', null, state.models.map(row)),
          ),
        ),
  ];
}

function row(model) {
  const load = state.load.models[model.name] || { running: 0, waiting: 0 };
  const live = state.instances.filter((one) => one.model === model.name).length;
  return h(
    'tr',
    { 'data-key': model.name },
    h('th', { scope: 'row' }, model_link(model.name)),
    h('td', null, pill(model.state)),
    h('td', { class: 'number' }, `${model.size_is_exact ? '' : '≈ '}${size(model.size_bytes)}`),
    h('td', { class: 'number' }, model.gpu_count),
    h('td', { class: 'number' }, `${live} (${model.min_instances} to ${model.max_instances})`),
    h('td', { class: 'number' }, load.running),
    h('td', { class: 'number' }, load.waiting),
    h('td', null, places(model).join(', ') || h('span', { class: 'quiet' }, 'at its source only')),
  );
}

/** `host-a DRAM+SSD` for every host that has it. */
function places(model) {
  return (state.hosts || [])
    .map((host) => [
      host.host_id,
      host.tiers.filter((tier) => tier.checkpoints.some((one) => one.checkpoint_id === model.checkpoint_id && one.state === 'ready')),
    ])
    .filter(([, tiers]) => tiers.length)
    .map(([host_id, tiers]) => `${host_id} ${tiers.map((tier) => tier.tier.toUpperCase()).join(' + ')}`);
}

export function model_page(name) {
  const model = state.models.find((one) => one.name === name);
  return [
    h('p', { 'data-key': 'back' }, h('a', { href: '#/models' }, '← All models')),
    h('h1', { 'data-key': 'title' }, name, ' ', model ? pill(model.state) : null),
    model ? settings(model) : empty(state.hosts === null ? 'Waiting for the first figures…' : 'No model has this name. It may have been deleted.'),
    model ? instances_section(name) : null,
    history_section(name),
  ];
}

function settings(model) {
  const rows = [
    ['Source', model.source],
    ['Revision', model.source_revision],
    ['Size', `${model.size_is_exact ? '' : '≈ '}${size(model.size_bytes)}, ${model.dtype}`],
    ['GPUs', model.gpu_count],
    ['Instances', `${model.min_instances} to ${model.max_instances}`],
    ['Keep-alive', seconds(model.keep_alive_s)],
    ['Requests at once', `${model.max_concurrency} an instance`],
    ['Priority', model.priority],
    ['Where it lies', places(model).join(', ') || 'at its source only'],
  ];
  return h(
    'div',
    { 'data-key': 'settings' },
    h('dl', { class: 'facts' }, rows.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value)))),
    model.state === 'active' ? h('p', null, button('start', 'Start it now', { 'data-model': model.name })) : null,
  );
}

function history_section(name) {
  const history = state.history.model === name ? state.history : { starts: null, failure: null };
  const starts = history.starts;
  return section(
    'history',
    'Start history',
    null,
    history.failure ? h('p', { class: 'failure', role: 'alert' }, history.failure) : null,
    starts === null
      ? history.failure ? null : empty('Reading…')
      : starts.length === 0
        ? empty('It has never been started.')
        : [summary(starts), legend(), h('ol', { class: 'falls' }, starts.map((start) => start_row(start, false)))],
  );
}

function summary(starts) {
  const done = starts.filter((start) => start.actual);
  const failed = starts.filter((start) => start.failure).length;
  if (!done.length) return failed ? h('p', null, count(failed, 'start failed', 'starts failed'), '.') : null;
  const middle = (values) => values.sort((one, other) => one - other)[Math.floor((values.length - 1) / 2)];
  const took = middle(done.map((start) => start.actual.total_s));
  const error = middle(done.map((start) => Math.abs(start.actual.total_s - start.predicted.total_s) / Math.max(start.actual.total_s, 1e-9)));
  return [
    h(
      'p',
      null,
      done.length === 1
        ? `One start: it took ${seconds(took)}, the prediction was off by ${Math.round(error * 100)}% of that`
        : `The last ${done.length} starts took ${seconds(took)} at the median, predictions were off by ${Math.round(error * 100)}% of that`,
      failed ? `; ${count(failed, 'start', 'starts')} failed.` : '.',
    ),
    chart(done),
  ];
}

/** Oldest to newest, left to right: a column for what each took, a mark for what was predicted. */
function chart(done) {
  const rows = done.slice(0, 40).reverse();
  const most_s = Math.max(...rows.map((start) => Math.max(start.actual.total_s, start.predicted.total_s)), 1e-9);
  const percent = (value) => `${((value / most_s) * 100).toFixed(1)}%`;
  return h(
    'figure',
    { class: 'chart' },
    h('figcaption', { class: 'quiet' }, `Each start, oldest first: column actual, line predicted; the top is ${seconds(most_s)}`),
    h(
      'div',
      { class: 'columns-chart', 'aria-hidden': 'true' },
      rows.map((start) =>
        h(
          'span',
          { class: 'column', title: `${seconds(start.actual.total_s)}, predicted ${seconds(start.predicted.total_s)}, from ${start.tier}` },
          h('span', { class: 'column-actual', style: { height: percent(start.actual.total_s) } }),
          h('span', { class: 'column-predicted', style: { bottom: percent(start.predicted.total_s) } }),
        ),
      ),
    ),
  );
}
