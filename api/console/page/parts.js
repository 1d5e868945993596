// Small pieces that every part of the page uses.

import { h } from './dom.js';
import { state } from './state.js';

const TONES = {
  ready: 'good', completed: 'good', active: 'good',
  starting: 'busy', draining: 'busy', running: 'busy', loading: 'busy', deleting: 'busy',
  failed: 'bad', lost: 'bad', quarantined: 'bad',
};

/** A state as a word in its colour: the colour alone says nothing. */
export function pill(word) {
  return h('span', { class: 'pill', 'data-tone': TONES[word] || 'plain' }, word);
}

export function model_link(name) {
  return h('a', { href: `#/models/${encodeURIComponent(name)}` }, name);
}

/** To the workflow's page in the Temporal UI; without one, its id to copy. */
export function workflow_link(workflow_id, text) {
  const base = state.hello && state.hello.temporal_ui_url;
  if (!base) return h('code', { class: 'quiet', title: 'Workflow id in Temporal' }, workflow_id);
  const namespace = encodeURIComponent(state.hello.temporal_namespace);
  return h(
    'a',
    {
      href: `${base.replace(/\/+$/, '')}/namespaces/${namespace}/workflows/${encodeURIComponent(workflow_id)}`,
      target: '_blank',
      rel: 'noopener noreferrer',
      title: `${workflow_id} in the Temporal UI, in a new tab`,
    },
    text || 'workflow',
    h('span', { 'aria-hidden': 'true' }, ' ↗'),
    h('span', { class: 'unseen' }, ` ${workflow_id}, opens the Temporal UI in a new tab`),
  );
}

export function button(act, text, data, more) {
  return h('button', { type: 'button', 'data-act': act, ...data, ...more }, text);
}

/** Heads of a table's columns; from `numbers` on (and before `words`) they stand over figures. */
export function heads(names, numbers = names.length, words = names.length) {
  return names.map((name, index) => h('th', { scope: 'col', class: index >= numbers && index < words ? 'number' : null }, name));
}

export function section(id, title, aside, ...content) {
  return h(
    'section',
    { 'aria-labelledby': `${id}-title`, 'data-key': id, id },
    h('div', { class: 'section-head' }, h('h2', { id: `${id}-title`, tabindex: -1 }, title), aside),
    content,
  );
}

export const empty = (...text) => h('p', { class: 'empty' }, text);
