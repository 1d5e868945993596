// Requests to the API. The key lives in this tab's session only, and leaves it only as a header.

const NAME = 'firstlight.key';

export function key() {
  return sessionStorage.getItem(NAME) || '';
}

export function keep_key(value) {
  if (value) sessionStorage.setItem(NAME, value);
  else sessionStorage.removeItem(NAME);
}

export function headers() {
  return key() ? { authorization: `Bearer ${key()}` } : {};
}

/** The answer's JSON. Throws an Error whose message a person can read, with the answer's `status`. */
export async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { ...headers(), ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store',
    });
  } catch {
    throw failure('The API does not answer.', 0);
  }
  const told = await answer.json().catch(() => null);
  if (!answer.ok) {
    throw failure((told && told.error && told.error.message) || `The API answered ${answer.status}.`, answer.status);
  }
  return told;
}

function failure(message, status) {
  const made = new Error(message);
  made.status = status;
  return made;
}

export const admin = (...parts) => `admin/v1/${parts.map(encodeURIComponent).join('/')}`;
