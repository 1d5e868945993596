// Run in the console's page by its tests: what somebody with other eyes, or without a mouse, would miss.
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return [255, 255, 255, 1];
  };
  const faint = [];
  for (const element of document.querySelectorAll('body *')) {
    const has_text = [...element.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!has_text || !element.checkVisibility() || element.closest('.unseen, noscript, option')) continue;
    const [one, other] = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))].sort();
    const contrast = (other + 0.05) / (one + 0.05);
    if (contrast < 4.5) faint.push(`${element.className || element.tagName} “${element.textContent.trim().slice(0, 30)}” ${contrast.toFixed(2)}`);
  }
  const nameless = [...document.querySelectorAll('a[href], button, input, select, [role=meter]')]
    .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim() || (one.labels && one.labels.length)))
    .map((one) => one.outerHTML.slice(0, 80));
  const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);
  return {
    faint: [...new Set(faint)],
    nameless,
    twice: ids.filter((one, index) => ids.indexOf(one) !== index),
    levels: [...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1])),
    // Tables may scroll in themselves, the page may not.
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()
