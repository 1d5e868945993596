// What asks before it acts: deploy, drain, move, and the admin key.

import { admin, call, key, keep_key } from './calls.js';
import { h, show } from './dom.js';
import { count } from './format.js';
import { state } from './state.js';

const dialog = document.getElementById('dialog');
const toast = document.getElementById('toast');
let toast_timer = 0;
let submit = null;

export function say(text, tone = 'good') {
  toast.textContent = text;
  toast.dataset.tone = tone;
  toast.hidden = false;
  clearTimeout(toast_timer);
  toast_timer = setTimeout(() => { toast.hidden = true; }, 8000);
}

/** `on_submit(form data)` may throw; its message is then shown in the dialog, which stays. */
function open(title, content, verb, on_submit, { is_danger = false } = {}) {
  submit = on_submit;
  show(
    dialog,
    h(
      'form',
      { method: 'dialog', 'data-key': `${title}-${Date.now()}` },
      h('h2', { id: 'dialog-title' }, title),
      content,
      h('p', { class: 'failure', role: 'alert', id: 'dialog-failure', hidden: true }),
      h(
        'div',
        { class: 'dialog-foot' },
        h('button', { type: 'button', 'data-act': 'close' }, 'Cancel'),
        h('button', { type: 'submit', class: is_danger ? 'danger' : 'main' }, verb),
      ),
    ),
  );
  if (!dialog.open) dialog.showModal();
  const first = dialog.querySelector('input, select, button[type=submit]');
  if (first) first.focus();
}

export function close() {
  dialog.close();
}

dialog.addEventListener('close', () => show(dialog));
dialog.addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = event.target;
  const failure = form.querySelector('#dialog-failure');
  const verb = form.querySelector('button[type=submit]');
  failure.hidden = true;
  verb.disabled = true;
  try {
    const told = await submit(new FormData(form));
    dialog.close();
    if (told) say(told);
  } catch (error) {
    failure.textContent = error.message;
    failure.hidden = false;
  } finally {
    verb.disabled = false;
  }
});

function field(name, label, input, hint) {
  return h(
    'div',
    { class: 'field' },
    h('label', { for: `field-${name}` }, label),
    h(input.tag || 'input', { id: `field-${name}`, name, ...input.attributes, 'aria-describedby': hint ? `hint-${name}` : null }, input.options),
    hint ? h('p', { class: 'quiet', id: `hint-${name}` }, hint) : null,
  );
}

const option = (value, text) => h('option', { value }, text);
const number = (value, min, more) => ({ attributes: { type: 'number', min, value, required: true, ...more } });

export function ask_deploy() {
  open(
    'Deploy a model',
    [
      h('p', { class: 'quiet' }, 'It becomes known under its name. No GPU is taken and nothing is fetched until it is asked for.'),
      field('name', 'Name', { attributes: { required: true, autocomplete: 'off', spellcheck: 'false', maxlength: 96 } }, 'What clients write as “model”.'),
      field(
        'source',
        'Source',
        { attributes: { required: true, autocomplete: 'off', spellcheck: 'false', placeholder: 'hf://owner/name' } },
        'hf://, s3://, gs://, az://, https:// or file:// of the server.',
      ),
      h(
        'div',
        { class: 'fields' },
        field('dtype', 'Type of numbers', { tag: 'select', options: ['float32', 'bfloat16', 'float16'].map((one) => option(one, one)) }),
        field('gpu_count', 'GPUs', number(1, 1)),
        field('min_instances', 'Instances at least', number(0, 0)),
        field('max_instances', 'Instances at most', number(1, 1)),
        field('keep_alive_s', 'Keep-alive (s)', { attributes: { type: 'number', min: 0, step: 'any', placeholder: 'default' } }),
      ),
    ],
    'Deploy',
    async (data) => {
      const wish = { name: data.get('name').trim(), source: data.get('source').trim(), dtype: data.get('dtype') };
      for (const name of ['gpu_count', 'min_instances', 'max_instances']) wish[name] = Number(data.get(name));
      if (data.get('keep_alive_s')) wish.keep_alive_s = Number(data.get('keep_alive_s'));
      const model = await call('POST', admin('models'), wish);
      location.hash = `#/models/${encodeURIComponent(model.name)}`;
      return `${model.name} is deployed.`;
    },
  );
}

export function ask_drain(host_id) {
  const here = state.instances.filter((one) => one.host_id === host_id);
  const running = state.load.requests.filter((request) => here.some((one) => one.instance_id === request.instance_id));
  open(
    `Drain ${host_id}?`,
    h(
      'p',
      null,
      `Nothing new starts there, and ${count(here.length, 'instance', 'instances')} with ${count(running.length, 'running request', 'running requests')} `,
      'move to other hosts. Streams do not break. “Undrain” calls it off.',
    ),
    'Drain',
    async () => {
      const told = await call('POST', admin('hosts', host_id, 'drain'), {});
      return `${host_id} is draining: ${count(told.live_instances, 'instance', 'instances')} to move.`;
    },
    { is_danger: true },
  );
}

export async function undrain(host_id) {
  await call('POST', admin('hosts', host_id, 'undrain'), {});
  return `${host_id} takes work again.`;
}

export async function start(model) {
  const told = await call('POST', admin('models', model, 'start'), { wait: false });
  if (told.state === 'ready') return `${model} runs already.`;
  return told.state === 'starting' ? `${model} starts on ${told.host_id}.` : `${model} waits: ${told.reason}`;
}

export function ask_migrate(instance_id) {
  const one = state.instances.find((found) => found.instance_id === instance_id);
  if (!one) return;
  const others = (state.hosts || []).filter((host) => host.host_id !== one.host_id && host.state === 'ready');
  open(
    `Move ${one.model}`,
    [
      h('p', null, `Instance ${instance_id} and its running requests leave ${one.host_id}. Their streams do not break.`),
      field('to', 'Where to', {
        tag: 'select',
        options: [option('', 'where it is ready soonest'), ...others.map((host) => option(host.host_id, host.host_id))],
      }),
    ],
    'Move',
    async (data) => {
      const told = await call('POST', admin('instances', instance_id, 'migrate'), { to: data.get('to') || null });
      return `${told.model} moves from ${told.source_host_id} to ${told.destination_host_id}.`;
    },
  );
}

// A header carries no others: a request with one would fail like one that nobody answers.
const SENDABLE = /^[\x20-\x7e\x80-\xff]*$/;

/** `on_change` after a key was given or forgotten. */
export function ask_key(on_change, why = '') {
  open(
    'Admin key',
    [
      h('p', { class: 'quiet' }, why || 'Kept in this browser tab until it is closed, and sent with every request to this server.'),
      field('key', 'Key', { attributes: { type: 'password', autocomplete: 'off', spellcheck: 'false' } }, key() ? 'Leave it empty to forget the present key.' : null),
    ],
    'Use this key',
    async (data) => {
      const given = data.get('key').trim();
      if (!SENDABLE.test(given)) throw new Error('There is a character here that no key has: copy it once more.');
      keep_key(given);
      on_change();
      return key() ? '' : 'The key is forgotten.';
    },
  );
}
