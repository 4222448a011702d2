"use strict";
// Two SAEs: each latent of one beside its counterparts along and against its direction in the other.
const COMPARE_SORTS = [
  ["axis", "splits into two"],
  ["same", "has a twin"],
  ["cofiring", "fires together"],
  ["alone", "has no counterpart"],
  ["number", "number"],
];

// Shares of tokens on which either fires that both fire on: [positive side, negative side] of a.
function overlap(own, other, one) {
  const against = one.cosine < 0 ? 1 : 0;
  return [0, 1].map((side) => {
    const theirs = side ^ against;
    const joint = one.joint[2 * side + theirs];
    const either = own[side] + other[theirs] - joint;
    return either > 0 ? joint / either : 0;
  });
}

function compareRows(pair, a, b) {
  return pair.map((found, latent) => {
    const half = found.length / 2;
    const [along, against] = [found[0], found[half]];
    const own = a.count.map((count) => count[latent]);
    const share = (one) =>
      one ? overlap(own, b.count.map((count) => count[one.latent]), one) : [0, 0];
    const [same, opposite] = [share(along), share(against)];
    return {
      latent, along, against, same, opposite,
      live: own[0] + own[1] > 0,
      axis: Math.min(along?.cosine ?? 0, -(against?.cosine ?? 0)),
      cofiring: Math.max(...same, ...opposite),
    };
  });
}

function ComparePage({ app, other }) {
  const { site, sae } = app;
  const [sort, setSort] = useState("axis");
  const [shown, setShown] = useState(PAGE);
  const partners = site.pairs.filter(([a]) => a === sae.name).map(([, b]) => b);
  const name = partners.includes(other) ? other : partners[0];
  const theirs = site.saes.find((one) => one.name === name);
  const loaded = useLoaded(async () => {
    if (!theirs) throw new Error("There is no second SAE here: build the explorer with several.");
    const [a, b, pair] = await Promise.all([loadIndex(sae), loadIndex(theirs), loadPair(sae, theirs)]);
    return { a, b, rows: compareRows(pair, a, b).filter((row) => row.live) };
  }, [sae.name, name ?? ""]);
  const rows = useMemo(() => {
    if (!loaded?.rows) return [];
    const keys = {
      axis: (row) => row.axis,
      same: (row) => row.along?.cosine ?? 0,
      cofiring: (row) => row.cofiring,
      alone: (row) => -Math.max(row.along?.cosine ?? 0, -(row.against?.cosine ?? 0)),
      number: (row) => -row.latent,
    };
    return [...loaded.rows].sort((x, y) => keys[sort](y) - keys[sort](x) || x.latent - y.latent);
  }, [loaded, sort]);
  if (loaded instanceof Error) return html`<${Failed} error=${loaded} />`;
  if (!loaded) return html`<${Waiting} />`;
  const options = partners.map((one) => [one, one]);
  return html`<article aria-label="two SAEs">
    <header class="head"><h1>${sae.name} against ${name}</h1></header>
    <p class="note">Each latent of ${sae.name} in the middle. Left of it the latent of ${name} that
      points most against it, right the one that points most along it: cosine of the decoder rows,
      and the share of tokens on which both fire, of those on which either does.</p>
    <div class="filters">
      <${Choice} label="with" value=${name} options=${options} onChange=${(one) => go("compare", sae.name, one)} />
      <${Choice} label="sort by" value=${sort} options=${COMPARE_SORTS} onChange=${setSort} />
    </div>
    <${CompareRows} ...${{ app, theirs, ...loaded, rows: rows.slice(0, shown) }} />
    ${rows.length > shown && html`<button class="more" type="button" onClick=${() => setShown(shown + 4 * PAGE)}>
      show more (${grouped(rows.length - shown)} left)</button>`}
  </article>`;
}

function CompareRows({ app, theirs, a, b, rows }) {
  const counterpart = (one, shares, side) => {
    if (!one) return html`<td colspan="2" class="none">—</td>`;
    const cell = html`<td class=${side ? "labels left" : "labels right"}>
      <${LatentLink} sae=${theirs} latent=${one.latent} />
      <small><${Labels} app=${app} columns=${b} side=${labelSide(b, one.latent)} latent=${one.latent} /></small></td>`;
    const told = html`<td class=${`rate ${side ? "neg" : "pos"}`}>${signed(one.cosine)}
      <small>${percent(Math.max(...shares))}</small></td>`;
    return side ? html`${cell}${told}` : html`${told}${cell}`;
  };
  const labelSide = (columns, latent) => (columns.count[0][latent] >= columns.count[1][latent] ? 0 : 1);
  return html`<table class="compare">
    <thead><tr><th class="left" scope="col">${theirs.name}, against</th>
      <th class="rate neg" scope="col">cosine<small>together</small></th>
      <th class="middle" scope="col">${app.sae.name}</th>
      <th class="rate pos" scope="col">cosine<small>together</small></th>
      <th class="right" scope="col">${theirs.name}, along</th></tr></thead>
    <tbody>${rows.map(
      (row) => html`<tr key=${row.latent}>
        ${counterpart(row.against, row.opposite, 1)}
        <td class="middle"><${LatentLink} sae=${app.sae} latent=${row.latent} />
          <small class="both"><${Labels} app=${app} columns=${a} side=${1} latent=${row.latent} /><i class="or">|</i>
          <${Labels} app=${app} columns=${a} side=${0} latent=${row.latent} /></small></td>
        ${counterpart(row.along, row.same, 0)}
      </tr>`,
    )}</tbody>
  </table>`;
}
