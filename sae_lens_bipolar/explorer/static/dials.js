"use strict";
// Dial curves: what turning a latent from one end of its range to the other does to the model.
function DialCurve({ curve, sae, small }) {
  const { values, shift, cost } = curve;
  const most = Math.max(...shift.map(Math.abs), 1e-6);
  const dearest = Math.max(...cost.map(Math.abs), 1e-6);
  const x = (value) => 50 + 46 * value;
  const y = (told, top) => 20 - (17 * told) / top;
  const path = (row, top) => row.map((told, i) => `${i ? "L" : "M"}${x(values[i])},${y(told, top)}`).join("");
  const words = `at −1 the logits shift by ${signed(shift[0])}, at +1 by ${signed(shift.at(-1))}; ` +
    `the cost is ${short(cost[0])} and ${short(cost.at(-1))} nats per token`;
  return html`<figure class=${small ? "dial small" : "dial"}>
    ${small ? html`<h2><${LatentLink} sae=${sae} latent=${curve.latent} /></h2>` : html`<h2>dial curve</h2>`}
    <svg viewBox="0 0 100 40" role="img" aria-label=${words}>
      <line x1="0" x2="100" y1="20" y2="20" /><line x1="50" x2="50" y1="0" y2="40" />
      <path class="cost" d=${path(cost, dearest)} />
      <path class="shift" d=${path(shift, most)} />
      ${values.map((value, i) => html`<circle class=${value < 0 ? "neg" : value > 0 ? "pos" : "zero"}
        cx=${x(value)} cy=${y(shift[i], most)} r="1.1"><title>${signed(value)}: logits ${signed(shift[i])}, cost ${short(cost[i])} nats</title></circle>`)}
    </svg>
    <figcaption><span>−1</span><span>${words}</span><span>+1</span></figcaption>
  </figure>`;
}

function DialsPage({ app }) {
  const curves = useLoaded(() => explorer.load(`${app.sae.name}/dials`), [app.sae.name]);
  if (curves instanceof Error) return html`<${Failed} error=${curves} />`;
  if (!curves) return html`<${Waiting} />`;
  return html`<article aria-label="dial curves">
    <header class="head"><h1>Dial curves of ${app.sae.name}</h1></header>
    <p class="note">Each latent is clamped to a value from −1 (as far as its negative side went) to +1
      (as far as its positive side went); 0 switches it off. Solid: how far the logits of the tokens
      that its positive side promotes rise over those that its negative side promotes. Dashed: the
      cost, the rise of the cross-entropy of the next token.</p>
    ${curves.length
      ? html`<div class="dials">${curves.map((curve) => html`<${DialCurve} key=${curve.latent} curve=${curve} sae=${app.sae} small=${true} />`)}</div>`
      : html`<p class="note">none was computed: build with --dials above 0</p>`}
  </article>`;
}
