"use strict";
// Two SAEs: each latent of one beside its counterparts along and against its direction in the other.
const COMPARE_SORTS = [
  ["axis", "splits into two"],
  ["same", "has a twin"],
  ["cofiring", "fires together"],
  ["alone", "has no counterpart"],
  ["number", "number"],
];

function compareRows(pair) {
  return pair.map(([along, against], latent) => {
    const shares = [along, against].map((one) => Math.max(0, ...(one?.together ?? [])));
    return {
      latent, along, against,
      live: along !== undefined,
      axis: Math.min(along?.cosine ?? 0, -(against?.cosine ?? 0)),
      cofiring: Math.max(...shares),
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
    return { a, b, rows: compareRows(pair).filter((row) => row.live) };
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
      points most against it, right the one that points most along it, of those that fire on this
      text: the cosine of the decoder rows, and the share of tokens on which both fire, of those on
      which either does.</p>
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
  const counterpart = (one, side) => {
    if (!one) return html`<td colspan="2" class="none">—</td>`;
    const cell = html`<td class=${side ? "labels left" : "labels right"}>
      <${LatentLink} sae=${theirs} latent=${one.latent} />
      <small><${Labels} app=${app} columns=${b} side=${labelSide(b, one.latent)} latent=${one.latent} /></small></td>`;
    const told = html`<td class=${`rate ${side ? "neg" : "pos"}`}>${signed(one.cosine)}
      <small>${percent(Math.max(...one.together))}</small></td>`;
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
        ${counterpart(row.against, 1)}
        <td class="middle"><${LatentLink} sae=${app.sae} latent=${row.latent} />
          <small class="both"><${Labels} app=${app} columns=${a} side=${1} latent=${row.latent} /><i class="or">|</i>
          <${Labels} app=${app} columns=${a} side=${0} latent=${row.latent} /></small></td>
        ${counterpart(row.along, 0)}
      </tr>`,
    )}</tbody>
  </table>`;
}
