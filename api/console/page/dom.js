// Elements from data, and a tree brought up to date in place. Text only ever becomes a text node.

const SAFE_LINK = /^(#|https?:\/\/)/i;

/** An element; children are elements, text, numbers, lists of these, or nothing. */
export function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) set(made, name, value);
  append(made, children);
  return made;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === 'style') {
    // Through the object model: the page's policy forbids style attributes in markup.
    for (const [property, given] of Object.entries(value)) element.style.setProperty(property, given);
    return;
  }
  // A link from data must not be a script.
  if (name === 'href' && !SAFE_LINK.test(value)) return;
  element.setAttribute(name, value === true ? '' : String(value));
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === '') continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * Make the children of `there` what `wanted` is, keeping elements that stay: focus, open details and text
 * selections survive. Children with the same data-key are the same; others match by their place and tag.
 */
export function show(there, ...wanted) {
  const fresh = document.createElement(there.tagName);
  append(fresh, wanted);
  morphChildren(there, fresh);
}

function morphChildren(there, fresh) {
  const keyed = new Map();
  for (const child of there.children) if (child.dataset.key) keyed.set(child.dataset.key, child);
  let cursor = there.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const found = match(cursor, wanted, keyed);
    if (!found) {
      there.insertBefore(wanted, cursor);
      continue;
    }
    if (found === cursor) cursor = cursor.nextSibling;
    else there.insertBefore(found, cursor);
    if (found.nodeType === Node.TEXT_NODE) {
      if (found.data !== wanted.data) found.data = wanted.data;
    } else {
      morphElement(found, wanted);
    }
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

function match(cursor, wanted, keyed) {
  const key = wanted.nodeType === Node.ELEMENT_NODE ? wanted.dataset.key : undefined;
  if (key) {
    const found = keyed.get(key);
    keyed.delete(key);
    return found && found.tagName === wanted.tagName ? found : null;
  }
  const is_same =
    cursor && cursor.nodeType === wanted.nodeType && cursor.nodeName === wanted.nodeName &&
    !(cursor.dataset && cursor.dataset.key);
  return is_same ? cursor : null;
}

function morphElement(there, wanted) {
  for (const { name } of [...there.attributes]) {
    // What a person has opened stays open.
    if (name !== 'open' && name !== 'style' && !wanted.hasAttribute(name)) there.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (name !== 'style' && name !== 'open' && there.getAttribute(name) !== value) {
      there.setAttribute(name, value);
    }
  }
  if (there.style.cssText !== wanted.style.cssText) there.style.cssText = wanted.style.cssText;
  morphChildren(there, wanted);
}
