// Running instances, and what each is doing.

import { h } from './dom.js';
import { age, count } from './format.js';
import { button, empty, heads, model_link, pill, section, workflow_link } from './parts.js';
import { now_s, state } from './state.js';
import { doing, told_of } from './waterfall.js';

export function instances_section(model) {
  const found = state.instances.filter((one) => !model || one.model === model);
  const waiting = waiting_rows(model);
  return section(
    'instances',
    'Running instances',
    null,
    waiting,
    found.length === 0
      ? empty(model ? 'No instance runs; the next request starts one.' : 'Nothing runs. The next request for a model starts it.')
      : h(
          'div',
          { class: 'wide' },
          h(
            'table',
            { class: 'rows' },
            h(
              'thead',
              null,
              h(
                'tr',
                null,
                heads(['Model', 'State', 'Where', 'Requests', 'Age', 'Workflow'], 4, 5),
                h('th', { scope: 'col' }, h('span', { class: 'unseen' }, 'Actions')),
              ),
            ),
            found.map(body),
          ),
        ),
  );
}

function waiting_rows(model) {
  const rows = Object.entries(state.load.models).filter(([name, load]) => load.waiting && (!model || name === model));
  if (!rows.length) return null;
  return h(
    'p',
    { class: 'waiting' },
    'Waiting here: ',
    rows.map(([name, load], index) => [index ? ', ' : '', count(load.waiting, 'request', 'requests'), ' for ', model_link(name)]),
  );
}

function body(one) {
  const requests = state.load.requests.filter((request) => request.instance_id === one.instance_id);
  return h(
    'tbody',
    { 'data-key': one.instance_id },
    h(
      'tr',
      null,
      h('th', { scope: 'row' }, model_link(one.model), h('span', { class: 'quiet id' }, one.instance_id)),
      h('td', null, pill(one.state)),
      h('td', { class: 'line' }, one.host_id, one.gpu_indices.length ? h('span', { class: 'quiet id' }, ` GPU ${one.gpu_indices.join(', ')}`) : null),
      h('td', { class: one.state === 'starting' ? null : 'line' }, load(one, requests)),
      h('td', { class: 'number' }, age(now_s() - one.created_at_unix_s)),
      h('td', { class: 'line' }, workflow_link(one.workflow_id)),
      h(
        'td',
        null,
        one.state === 'ready'
          ? button('migrate', 'Move…', { 'data-instance': one.instance_id }, { 'aria-label': `Move ${one.model} ${one.instance_id} to another host` })
          : null,
      ),
    ),
    requests.length ? h('tr', { class: 'inner' }, h('td', { colspan: 7 }, request_list(requests))) : null,
  );
}

function load(one, requests) {
  if (one.state === 'starting') {
    const told = told_of(one.instance_id, one.epoch);
    return h('span', { class: 'quiet' }, told ? doing(told) : '–');
  }
  // Hosts' agents see all replicas of the API, a few seconds late; this process sees its own at once.
  const elsewhere = Math.max(0, (one.seen_requests || 0) - requests.length);
  return [
    h(
      'span',
      {
        class: 'places',
        role: 'meter',
        'aria-label': 'Places taken',
        'aria-valuemin': 0,
        'aria-valuemax': one.max_concurrency,
        'aria-valuenow': Math.min(requests.length, one.max_concurrency),
      },
      h('span', { class: 'filled', style: { width: `${Math.min(100, (requests.length / one.max_concurrency) * 100).toFixed(1)}%` } }),
    ),
    ` ${requests.length} of ${one.max_concurrency}`,
    elsewhere ? h('span', { class: 'quiet', title: 'As its host saw last: through other API processes, or just ended' }, ` +${elsewhere} elsewhere`) : null,
  ];
}

function request_list(requests) {
  return h(
    'ul',
    { class: 'requests', 'aria-label': 'Its requests' },
    requests.map((one, index) =>
      h(
        'li',
        { 'data-key': `${one.request_id}-${index}` },
        h('code', null, one.request_id),
        h('span', { class: 'progress', 'aria-hidden': 'true' }, h('span', { class: 'filled', style: { width: `${Math.min(100, (one.tokens / Math.max(1, one.max_tokens)) * 100).toFixed(1)}%` } })),
        h('span', null, one.max_tokens ? `${one.tokens} of at most ${one.max_tokens} tokens` : 'embeddings'),
        h('span', { class: 'quiet' }, `${one.prompt_tokens} in the prompt, here for ${age(now_s() - one.since_unix_s)}`),
        one.moves ? h('span', { class: 'pill', 'data-tone': 'plain' }, count(one.moves, 'move', 'moves')) : null,
        one.resumes ? h('span', { class: 'pill', 'data-tone': 'busy' }, count(one.resumes, 'resume', 'resumes')) : null,
      ),
    ),
    state.load.more_requests ? h('li', { class: 'quiet' }, `and ${state.load.more_requests} more, over all instances`) : null,
  );
}
