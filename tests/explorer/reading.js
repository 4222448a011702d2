// What test_reading.py asks of the page.
const unnamed = () =>
  [...document.querySelectorAll("a, button, input, select, textarea, [role=img]")]
    .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()))
    .map((e) => e.outerHTML);

// The least ratio of contrast (WCAG 2.1) of any text shown, and what it is of.
function contrast() {
  const number = (x) => (x.endsWith("%") ? parseFloat(x) / 100 : parseFloat(x));
  const parse = (text) => {
    const n = text.match(/[\d.]+%?/g).map(number);
    return [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, under) =>
    [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.push(parse(getComputedStyle(at).backgroundColor));
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (c) =>
    [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
      const v = c[i] / 255;
      return sum + w * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    }, 0);
  let worst = [99, ""];
  for (const element of document.querySelectorAll("#explorer *")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || element.closest("svg, [disabled], option") || !element.checkVisibility()) continue;
    const under = behind(element);
    const ink = parse(getComputedStyle(element).color);
    ink[3] *= parseFloat(getComputedStyle(element).opacity);
    const [a, b] = [light(over(ink, under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const where = `${element.className}: ${element.textContent.slice(0, 40)}`;
    if (ratio < worst[0]) worst = [ratio, where];
  }
  return worst;
}
