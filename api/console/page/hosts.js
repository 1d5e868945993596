// Hosts as cards: who holds each GPU, and which checkpoints lie in DRAM and on SSD.

import { h } from './dom.js';
import { size } from './format.js';
import { button, empty, model_link, pill, section, workflow_link } from './parts.js';
import { model_of, state } from './state.js';

const FILTERED_FROM = 6;
const CARDS_SHOWN = 48;

export function hosts_section() {
  const hosts = state.hosts;
  const wanted = state.host_filter.toLowerCase();
  const found = (hosts || []).filter((host) => !wanted || words_of(host).some((word) => word.toLowerCase().includes(wanted)));
  return section(
    'hosts',
    'Hosts',
    hosts && hosts.length > FILTERED_FROM
      ? h('input', { type: 'search', id: 'host-filter', 'aria-label': 'Show hosts with this name, state or model', placeholder: 'name, state or model' })
      : null,
    hosts === null
      ? empty('Waiting for the first figures…')
      : hosts.length === 0
        ? empty('No GPU host has joined. Start one with ', h('code', null, 'firstlight serve gpu-host'), '.')
        : h('ul', { class: 'cards' }, found.slice(0, CARDS_SHOWN).map(card)),
    hosts && hosts.length && !found.length ? empty('No host is like that.') : null,
    found.length > CARDS_SHOWN ? h('p', { class: 'quiet' }, `and ${found.length - CARDS_SHOWN} more: narrow them down above`) : null,
  );
}

function words_of(host) {
  return [host.host_id, host.state, host.host_class, ...host.gpus.map((one) => one.model || '')];
}

function card(host) {
  const act = host.state === 'draining' ? ['undrain', 'Undrain'] : ['drain', 'Drain…'];
  return h(
    'li',
    { class: 'card', 'data-key': `host-${host.host_id}`, 'data-state': host.state },
    h(
      'div',
      { class: 'card-head' },
      h('h3', null, host.host_id),
      pill(host.state),
      h('span', { class: 'quiet class' }, host.host_class),
      host.state === 'lost'
        ? null
        : button(act[0], act[1], { 'data-host': host.host_id }, { 'aria-label': `${act[1].replace('…', '')} ${host.host_id}` }),
    ),
    h('h4', null, 'GPU'),
    h('ul', { class: 'gpus' }, host.gpus.map(gpu)),
    host.tiers.map((tier) => tier_rows(tier)),
    h('p', { class: 'card-foot' }, workflow_link(host.workflow_id, host.state === 'draining' ? 'drain workflow' : 'host workflow')),
  );
}

function gpu(one) {
  return h(
    'li',
    {
      class: 'gpu',
      'data-key': `gpu-${one.gpu_index}`,
      'data-state': one.instance_state || 'free',
      title: `${one.name || 'engine slot'}, ${size(one.memory_bytes)}`,
    },
    h('span', { class: 'gpu-index' }, one.gpu_index),
    one.model ? model_link(one.model) : h('span', { class: 'quiet' }, 'free'),
    one.instance_state && one.instance_state !== 'ready' ? pill(one.instance_state) : null,
    h('span', { class: 'quiet gpu-size' }, size(one.memory_bytes)),
  );
}

function tier_rows(tier) {
  const name = tier.tier.toUpperCase();
  const percent = tier.capacity_bytes ? (tier.used_bytes / tier.capacity_bytes) * 100 : 0;
  return h(
    'div',
    { class: 'tier', 'data-key': tier.tier, 'data-full': percent > 90 },
    h(
      'div',
      { class: 'tier-head' },
      h('h4', null, name),
      h('span', { class: 'quiet' }, `${size(tier.used_bytes)} of ${size(tier.capacity_bytes)}`),
    ),
    h(
      'div',
      {
        class: 'fill',
        role: 'meter',
        'aria-label': `${name} in use`,
        'aria-valuemin': 0,
        'aria-valuemax': 100,
        'aria-valuenow': Math.round(percent),
      },
      tier.checkpoints.map((one) =>
        h('span', {
          class: 'filled',
          'data-state': one.state,
          title: `${model_of(one.checkpoint_id)}: ${size(one.size_bytes)}, ${one.state}`,
          style: { width: tier.capacity_bytes ? `${((one.size_bytes / tier.capacity_bytes) * 100).toFixed(2)}%` : '0%' },
        }),
      ),
    ),
    h(
      'ul',
      { class: 'chips' },
      tier.checkpoints.map((one) =>
        h(
          'li',
          { 'data-key': one.checkpoint_id, 'data-state': one.state, title: one.checkpoint_id },
          model_link(model_of(one.checkpoint_id)),
          h('span', { class: 'quiet' }, ` ${size(one.size_bytes)}`),
          one.state === 'ready' ? null : [' ', pill(one.state)],
        ),
      ),
      tier.more ? h('li', { class: 'quiet' }, `and ${tier.more} more`) : null,
      tier.checkpoints.length ? null : h('li', { class: 'quiet' }, 'empty'),
    ),
  );
}
