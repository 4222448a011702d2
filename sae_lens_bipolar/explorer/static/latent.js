"use strict";
// A latent's page: negative side left, positive side right.
function LatentPage({ app, latent }) {
  const { site, sae } = app;
  const inside = Number.isInteger(latent) && latent >= 0 && latent < sae.d_sae;
  const loaded = useLoaded(async () => {
    if (!inside) throw new Error(`${sae.name} has latents 0 to ${sae.d_sae - 1}`);
    const [columns, record] = await Promise.all([loadIndex(sae), loadLatent(site, sae, latent)]);
    return { columns, record };
  }, [sae.name, latent]);
  const curves = useLoaded(() => explorer.load(`${sae.name}/dials`), [sae.name]);
  if (loaded instanceof Error) return html`<${Failed} error=${loaded} />`;
  if (!loaded) return html`<${Waiting} />`;
  const { columns, record } = loaded;
  const fires = record.contexts.some((side) => side.length > 0);
  const curve = Array.isArray(curves) ? curves.find((one) => one.latent === latent) : null;
  return html`<article class="latent" aria-label=${`latent ${latent} of ${sae.name}`}>
    <${LatentHead} ...${{ app, latent, columns }} />
    ${fires
      ? html`<${LatentBody} ...${{ app, latent, columns, record, curve }} />`
      : html`<p class="note">It fires on no token of this text, so nothing is known of its sides.</p>`}
    <${Note} app=${app} latent=${latent} />
  </article>`;
}

function LatentBody({ app, latent, columns, record, curve }) {
  const { sae } = app;
  return html`
    <${Histogram} histogram=${record.histogram} largest=${record.largest} />
    <div class="sides" tabindex="0" role="group" aria-label="negative side, then positive side">
      ${LEFT_TO_RIGHT.map(
        (side) => html`<${Side} ...${{ app, latent, columns, record, side }} />`,
      )}
    </div>
    <${Neighbours} ...${{ app, columns, record }} />
    ${curve && html`<${DialCurve} curve=${curve} sae=${sae} />`}
    ${app.live && html`<${SteerPanel} app=${app} latent=${latent} key=${`${sae.name}/${latent}`} />`}
    <${AsPython} ...${{ app, latent, record }} />`;
}

function LatentHead({ app, latent, columns }) {
  const { sae } = app;
  const rates = [0, 1].map((side) => columns.count[side][latent] / columns.n);
  const kind = rates[0] && rates[1] ? "fires on both sides" : rates[0] || rates[1] ? "fires on one side" : "never fires";
  const step = (by) => (latent + by + sae.d_sae) % sae.d_sae;
  return html`<header class="head">
    <h1>Latent ${latent} <small>of ${sae.name}</small></h1>
    <span class="note">${kind}; balance ${balanceOf(columns, latent).toFixed(2)}</span>
    <span class="steps">
      <a href=${link("latent", sae.name, step(-1))} aria-label="previous latent" title="←">‹</a>
      <a href=${link("latent", sae.name, step(1))} aria-label="next latent" title="→">›</a>
      <${Bookmark} app=${app} latent=${latent} />
    </span>
  </header>`;
}

function Side({ app, latent, columns, record, side }) {
  const { name, sign, className } = SIDES[side];
  const contexts = record.contexts[side];
  const rate = columns.count[side][latent] / columns.n;
  const outputs = record.outputs[side];
  return html`<section class=${`side ${className}`} aria-label=${`${name} side`}>
    <h2><span class="sign">${sign}</span> ${name} side</h2>
    <p class="note">
      ${contexts.length
        ? `on ${percent(rate)} of tokens; |z| ${short(record.mean[side])} on average, ${short(record.largest[side])} at most`
        : "never fires on this text"}
    </p>
    ${outputs.length > 0 &&
    html`<h3>${contexts.length ? "promotes" : "would promote"}</h3>
      <p class="tokens">
        ${outputs.map(([rank, effect]) => html`<${Token} app=${app} rank=${rank} value=${Math.abs(effect)} />`)}
      </p>`}
    ${contexts.length > 0 &&
    html`<h3>fires most on</h3>
      <ol class="contexts">
        ${contexts.map((context) => html`<${Context} ...${{ app, context, side }} />`)}
      </ol>`}
  </section>`;
}

function Neighbours({ app, columns, record }) {
  const lists = [
    ["antipodal latents", "decoder rows that point the other way", record.antipodal],
    ["nearest latents", "decoder rows that point the same way", record.nearest],
  ];
  return html`<div class="neighbours">
    ${lists.map(
      ([title, words, rows]) => html`<section aria-label=${title}>
        <h2>${title}</h2>
        <p class="note">${words}</p>
        <ul>${rows.map(
          ([other, cosine]) => html`<li>
            <span class="value">${signed(cosine)}</span> <${LatentLink} sae=${app.sae} latent=${other} />
            <span class="both"><${Labels} ...${{ app, columns, side: 1, latent: other }} /> <i class="or">|</i>
            <${Labels} ...${{ app, columns, side: 0, latent: other }} /></span>
          </li>`,
        )}</ul>
      </section>`,
    )}
  </div>`;
}

function AsPython({ app, latent, record }) {
  const { site, sae } = app;
  const side = record.largest[0] >= record.largest[1] ? 0 : 1;
  const value = (side ? -1 : 1) * record.largest[side];
  const text = `from sae_lens_bipolar.inputs.models import load_model
from sae_lens_bipolar.runs.sources import find_saes
from sae_lens_bipolar.steering import EditLatents, steering

model = load_model(${JSON.stringify(site.model)})
(source,) = find_saes(["path/to/${sae.name}"])
sae = source.load()
# ${rounded(value)} is as far as this side went; turn the sign for the other side
edit = EditLatents(sae, {${latent}: ${rounded(value)}}, mode="clamp", unit="raw")
with steering(model, edit):
    print(model.generate("The", max_new_tokens=40, do_sample=False))`;
  return html`<details class="python"><summary>as Python</summary><${Copy} text=${text} /></details>`;
}
