// The event stream: read with fetch, because an EventSource cannot send a key; comes back by itself.

import { headers } from './calls.js';

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
// The server says something every ten seconds.
const SILENT_MS = 30000;

/** `on_event(section, value)`; `on_link(state, retry_at_ms, message)` with live, lost or refused. */
export class Stream {
  constructor(on_event, on_link) {
    this.on_event = on_event;
    this.on_link = on_link;
    this.pause_ms = FIRST_PAUSE_MS;
    this.run = 0;
  }

  /** Connect now, also with another key; an earlier connection ends. */
  restart() {
    this.stop();
    this.pause_ms = FIRST_PAUSE_MS;
    this.connect(this.run);
  }

  stop() {
    this.run += 1;
    clearTimeout(this.timer);
    if (this.abort) this.abort.abort();
  }

  async connect(run) {
    this.abort = new AbortController();
    let answer = null;
    try {
      answer = await fetch('admin/v1/events', {
        headers: headers(),
        signal: this.abort.signal,
        cache: 'no-store',
      });
      if (answer.ok) await this.read(answer, run);
    } catch {
      // Cut off, or nobody there: comes back below.
    }
    if (run !== this.run) return;
    if (answer && (answer.status === 401 || answer.status === 403)) {
      this.on_link('refused', 0, await message_of(answer));
      return;
    }
    // Not all consoles at the same moment.
    const wait_ms = this.pause_ms * (0.75 + Math.random() / 2);
    this.pause_ms = Math.min(LONGEST_PAUSE_MS, this.pause_ms * 2);
    this.on_link('lost', Date.now() + wait_ms, '');
    this.timer = setTimeout(() => this.connect(run), wait_ms);
  }

  async read(answer, run) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const silence = setTimeout(() => this.abort.abort(), SILENT_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done || run !== this.run) return;
      const blocks = (rest + value).split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) this.take(block);
      if (this.pause_ms !== FIRST_PAUSE_MS || blocks.length) {
        this.pause_ms = FIRST_PAUSE_MS;
        this.on_link('live', 0, '');
      }
    }
  }

  take(block) {
    let section = '';
    let data = '';
    for (const line of block.split('\n')) {
      if (line.startsWith('event: ')) section = line.slice(7);
      else if (line.startsWith('data: ')) data += line.slice(6);
    }
    if (section && data) this.on_event(section, JSON.parse(data));
  }
}

async function message_of(answer) {
  const told = await answer.json().catch(() => null);
  return (told && told.error && told.error.message) || `The API answered ${answer.status}.`;
}
