// Puts the page together: what the stream says is drawn, what is pressed is done.

import { admin, call, key } from './calls.js';
import { ask_deploy, ask_drain, ask_key, ask_migrate, close, say, start, undrain } from './dialogs.js';
import { h, show } from './dom.js';
import { fleet_page } from './fleet.js';
import { model_page, models_page } from './models.js';
import { button } from './parts.js';
import { is_active, now_s, state, take } from './state.js';
import { Stream } from './stream.js';

const main = document.getElementById('main');
const link = document.getElementById('link');
const trouble = document.getElementById('trouble');
const TICK_MS = matchMedia('(prefers-reduced-motion: reduce)').matches ? 1000 : 200;
let is_due = false;
let last_history = '';

const stream = new Stream(
  (section, value) => {
    take(section, value);
    if (section === 'starts') refresh_history();
    redraw();
  },
  (link_state, retry_at_ms, message) => {
    state.link = link_state;
    state.retry_at_ms = retry_at_ms;
    state.refusal = message;
    redraw();
  },
);

function route() {
  const [, page = '', name = ''] = location.hash.split('/');
  if (page !== 'models') return { page: 'fleet' };
  return name ? { page: 'model', name: decode(name) } : { page: 'models' };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function redraw() {
  if (is_due) return;
  is_due = true;
  requestAnimationFrame(() => {
    is_due = false;
    draw();
  });
}

function draw() {
  draw_link();
  draw_trouble();
  const at = route();
  for (const one of document.querySelectorAll('nav a')) {
    const is_here = one.dataset.page === at.page || (at.page === 'model' && one.dataset.page === 'models');
    if (is_here) one.setAttribute('aria-current', 'page');
    else one.removeAttribute('aria-current');
  }
  document.title = `${at.name || (at.page === 'models' ? 'Models' : 'Fleet')} · Firstlight`;
  main.dataset.stale = String(state.link !== 'live');
  if (state.link === 'refused') show(main, refused());
  else if (at.page === 'fleet') show(main, fleet_page());
  else if (at.page === 'models') show(main, models_page());
  else show(main, model_page(at.name));
}

function refused() {
  return h(
    'div',
    { class: 'empty', 'data-key': 'refused' },
    h('h1', null, key() ? 'This key does not open the console' : 'The console needs an admin key'),
    h('p', null, state.refusal),
    h('p', null, 'Create one on the server with ', h('code', null, 'firstlight keys create --name NAME --scope admin'), '.'),
    button('key', key() ? 'Give another key' : 'Give a key', {}, { class: 'main' }),
  );
}

function draw_link() {
  const is_lost = state.link === 'lost';
  const words = { waiting: 'connecting…', live: 'live', lost: 'connection lost, trying again', refused: 'key needed' };
  if (link.textContent !== words[state.link]) link.textContent = words[state.link];
  link.dataset.state = state.link;
  document.getElementById('key-button').textContent = key() ? 'Change key' : 'Admin key';
  if (is_lost) link.title = 'What is shown is as it was last heard of';
  else link.removeAttribute('title');
}

function draw_trouble() {
  const told = [];
  if (state.link === 'lost') told.push('The API does not answer: the figures below are as they were.');
  else if (state.link === 'live') {
    if (state.trouble) told.push(`${state.trouble}: the figures below are as they were.`);
    for (const [name, word] of [['postgres', 'Postgres'], ['temporal', 'Temporal']]) {
      if (state.health && state.health[name] !== 'ok') told.push(`${word}: ${state.health[name]}; starts and moves wait for it.`);
    }
  }
  const text = told.join(' ');
  if (trouble.textContent !== text) trouble.textContent = text;
  trouble.hidden = !text;
}

/** The page of a model reads its history anew when one of its starts has changed. */
async function refresh_history(is_forced = false) {
  const at = route();
  if (at.page !== 'model' || state.link === 'refused') return;
  const mark = JSON.stringify([at.name, state.starts.filter((start) => start.model === at.name)]);
  if (mark === last_history && !is_forced) return;
  last_history = mark;
  try {
    const told = await call('GET', `${admin('starts')}?limit=50&candidates=false&model=${encodeURIComponent(at.name)}`);
    // Somebody may have gone on to another page, whose own answer is there already.
    if (route().name !== at.name) return;
    state.history = { model: at.name, starts: told.starts, failure: null };
  } catch (error) {
    if (route().name !== at.name) return;
    const kept = state.history.model === at.name ? state.history.starts : null;
    state.history = { model: at.name, starts: kept, failure: error.message };
  }
  redraw();
}

async function attempt(work) {
  try {
    say(await work);
  } catch (error) {
    say(error.message, 'bad');
  }
}

const ACTS = {
  deploy: () => ask_deploy(),
  key: () => ask_key(connect),
  close: () => close(),
  drain: (data) => ask_drain(data.host),
  undrain: (data) => attempt(undrain(data.host)),
  start: (data) => attempt(start(data.model)),
  migrate: (data) => ask_migrate(data.instance),
  jump: (data) => {
    const title = document.getElementById(`${data.to}-title`);
    title.focus();
    title.scrollIntoView();
  },
};

function connect() {
  state.link = 'waiting';
  last_history = '';
  stream.restart();
  refresh_history(true);
  redraw();
}

document.addEventListener('click', (event) => {
  const pressed = event.target.closest('[data-act]');
  if (pressed) ACTS[pressed.dataset.act](pressed.dataset);
});
document.addEventListener('input', (event) => {
  if (event.target.id !== 'host-filter') return;
  state.host_filter = event.target.value;
  redraw();
});
document.querySelector('.skip').addEventListener('click', (event) => {
  // The address says which page is open; it must not be overwritten.
  event.preventDefault();
  main.focus();
});
addEventListener('hashchange', () => {
  draw();
  main.focus();
  scrollTo(0, 0);
  refresh_history();
});
addEventListener('online', () => stream.restart());
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && state.link === 'lost') stream.restart();
});

// What goes on grows while one looks; ages count on.
setInterval(() => {
  const goes_on = state.starts.some(is_active) || state.migrations.some((one) => one.state === 'running');
  if (!document.hidden && (goes_on || Math.floor(now_s()) % 5 === 0)) redraw();
}, TICK_MS);

connect();
