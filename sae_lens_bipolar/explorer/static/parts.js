"use strict";
// What several views show: tokens, contexts, histograms. Left is negative, right is positive.
const SIDES = [
  { name: "positive", sign: "+", className: "pos" },
  { name: "negative", sign: "−", className: "neg" },
];
const LEFT_TO_RIGHT = [1, 0]; // sides as they stand on the page

// The pieces of a token as nodes: spaces at its start, line breaks and tabs made visible.
function tokenPieces(text) {
  const marks = { " ": "·", "\n": "⏎", "\t": "⇥" };
  const pieces = text.split(/(^[ \n\t]+|[\n\t])/).map((piece, i) => {
    if (i % 2 === 0) return visible(piece);
    return html`<i class="mark">${[...piece].map((c) => marks[c]).join("")}</i>`;
  });
  return text ? pieces : html`<i class="mark">∅</i>`;
}

function Token({ app, rank, value, plain }) {
  const text = app.vocabulary.texts[rank] ?? "?";
  const told = value === undefined ? "" : ` ${signed(value)}`;
  const body = html`<bdi>${tokenPieces(text)}</bdi>${value === undefined
    ? null
    : html`<small>${signed(value)}</small>`}`;
  if (plain || !(app.vocabulary.counts[rank] > 0)) return html`<span class="token">${body}</span>`;
  return html`<a
    class="token"
    href=${link("token", app.sae.name, app.vocabulary.ids[rank])}
    aria-label=${`token ${visible(text)}${told}`}
    title="what fires on this token"
    >${body}</a
  >`;
}

// A context: text around a peak; the stronger a latent fires, the deeper the colour of its side.
function Context({ app, context, side }) {
  const { tokens, z, before } = context;
  const spans = tokens.map((rank, i) => {
    const text = visible(app.vocabulary.texts[rank] ?? "?").replace(/\n/g, "⏎ ").replace(/\t/g, " ");
    if (!z[i] && i !== before) return html`<bdi>${text}</bdi>`;
    const level = Math.ceil(8 * Math.min(1, Math.abs(z[i])));
    const sideHere = z[i] < 0 ? "neg" : z[i] > 0 ? "pos" : SIDES[side].className;
    const name = `fired ${sideHere} a${level}${i === before ? " peak" : ""}`;
    return html`<bdi class=${name} title=${`${Math.round(100 * z[i])}% of this side's largest`}
      >${text}</bdi
    >`;
  });
  return html`<li class="context">
    <span class="value">${short((side ? -1 : 1) * context.peak)}</span>
    <q dir="auto">${spans}</q>
  </li>`;
}

// Counts by |z|, on a logarithmic scale, mirrored about 0.
function Histogram({ histogram, largest }) {
  const { width, counts } = histogram;
  const used = Math.max(1, ...counts.map((side) => side.findLastIndex((n) => n > 0) + 1));
  const top = Math.log1p(Math.max(1, ...counts.flat()));
  const size = 50 / used;
  const bars = counts.flatMap((side, which) =>
    side.slice(0, used).map((n, bin) => {
      if (!n) return null;
      const height = Math.max(0.8, (38 * Math.log1p(n)) / top);
      const x = which ? 50 - (bin + 1) * size : 50 + bin * size;
      const low = short(bin * width);
      const label = `${grouped(n)} tokens, |z| from ${low} to ${short((bin + 1) * width)}`;
      return html`<rect x=${x + size * 0.06} y=${40 - height} width=${size * 0.88} height=${height}
        class=${SIDES[which].className}><title>${SIDES[which].name}: ${label}</title></rect>`;
    }),
  );
  const told = SIDES.map((side, i) => `${side.name} up to ${short(largest[i])}`).join(", ");
  return html`<figure class="histogram">
    <svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label=${`histogram: ${told}`}>
      ${bars}<line x1="0" x2="100" y1="40" y2="40" /><line x1="50" x2="50" y1="0" y2="40" />
    </svg>
    <figcaption>
      <span>${largest[1] ? `−${short(used * width)}` : ""}</span><span>z, and tokens on a logarithmic scale</span>
      <span>${largest[0] ? `+${short(used * width)}` : ""}</span>
    </figcaption>
  </figure>`;
}

// A bar about a middle: how often each side fires, on a logarithmic scale from 1 in 100,000.
function Balance({ rates }) {
  const share = (rate) => (rate > 0 ? Math.max(4, (100 * (5 + Math.log10(rate))) / 5) : 0);
  return html`<svg class="balance" viewBox="-100 0 200 10" preserveAspectRatio="none" aria-hidden="true">
    <rect class="neg" x=${-share(rates[1])} width=${share(rates[1])} y="1" height="8" />
    <rect class="pos" x="0" width=${share(rates[0])} y="1" height="8" />
    <line x1="0" x2="0" y1="0" y2="10" />
  </svg>`;
}

// A row of strengths in [0, 1] of both sides, for the token index.
function Strength({ sides }) {
  return html`<svg class="balance" viewBox="-100 0 200 10" preserveAspectRatio="none" aria-hidden="true">
    <rect class="neg" x=${-100 * sides[1]} width=${100 * sides[1]} y="1" height="8" />
    <rect class="pos" x="0" width=${100 * sides[0]} y="1" height="8" />
    <line x1="0" x2="0" y1="0" y2="10" />
  </svg>`;
}

const LatentLink = ({ sae, latent, children }) =>
  html`<a class="latent-link" href=${link("latent", sae.name, latent)}>${children ?? `#${latent}`}</a>`;

function Labels({ app, columns, side, latent }) {
  const ranks = labelsOf(columns, side, latent);
  if (!ranks.length) return html`<span class="none">—</span>`;
  return ranks.map((rank) => html`<${Token} app=${app} rank=${rank} plain=${true} />`);
}

const Waiting = () => html`<p class="note" role="status">loading …</p>`;
const Failed = ({ error }) => html`<p class="failed" role="alert">${visible(error.message)}</p>`;

// Text with a button that copies it, where the browser lets a page do so.
function Copy({ text, label = "copy" }) {
  const [done, set] = useState("");
  const area = useRef(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      set("copied");
    } catch {
      const range = document.createRange();
      range.selectNodeContents(area.current);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      set("selected: press Ctrl-C");
    }
  };
  return html`<div class="copy"><pre ref=${area} tabindex="0">${text}</pre>
    <button type="button" onClick=${copy}>${label}</button>
    <span role="status">${done}</span></div>`;
}

// A number typed or chosen from a list of [value, words].
const Choice = ({ label, value, options, onChange }) =>
  html`<label class="choice"><span>${label}</span>
    <select value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([key, words]) => html`<option value=${key} selected=${key === value}>${words}</option>`)}
    </select></label>`;
