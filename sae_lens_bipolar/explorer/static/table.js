"use strict";
// The table of latents: filtered, sorted, and searched by token or text.
const PAGE = 50;
const SORTS = [
  ["balance", "balance of the sides"],
  ["rate", "firing rate"],
  ["negative", "negative rate"],
  ["positive", "positive rate"],
  ["largest", "largest |z|"],
  ["number", "number"],
];
const KINDS = [
  ["live", "live"],
  ["both", "both sides"],
  ["negative", "only negative"],
  ["positive", "only positive"],
  ["dead", "dead"],
  ["all", "all"],
];
const RATES = [["1", "any rate"], ["0.1", "≤ 10%"], ["0.01", "≤ 1%"], ["0.001", "≤ 0.1%"]];
const BALANCES = [["0", "any balance"], ["0.1", "≥ 0.1"], ["0.3", "≥ 0.3"], ["0.6", "≥ 0.6"]];

const balanceOf = (columns, i) => {
  const [a, b] = [columns.count[0][i], columns.count[1][i]];
  return a || b ? Math.min(a, b) / Math.max(a, b) : 0;
};

// Latents that a filter lets through, in order. `scores`: latent -> [score+, score-], or null.
function chooseLatents(columns, { kind, sort, rate, balance }, scores) {
  const { count, largest, n } = columns;
  const total = (i) => count[0][i] + count[1][i];
  const tests = {
    live: (i) => total(i) > 0,
    both: (i) => count[0][i] > 0 && count[1][i] > 0,
    negative: (i) => count[1][i] > 0 && !count[0][i],
    positive: (i) => count[0][i] > 0 && !count[1][i],
    dead: (i) => total(i) === 0,
    all: () => true,
  };
  const keys = {
    balance: (i) => balanceOf(columns, i) * 1e6 + Math.min(total(i), 1e5) / 1e5,
    rate: total,
    negative: (i) => count[1][i],
    positive: (i) => count[0][i],
    largest: (i) => Math.max(largest[0][i], largest[1][i]),
    number: (i) => -i,
  };
  const most = Number(rate) * n;
  const least = Number(balance);
  const chosen = [];
  const candidates = scores ? scores.keys() : count[0].keys();
  for (const i of candidates) {
    if (tests[kind](i) && total(i) <= most && balanceOf(columns, i) >= least) chosen.push(i);
  }
  const key = scores ? (i) => Math.max(...scores.get(i)) : keys[sort];
  const values = new Map(chosen.map((i) => [i, key(i)]));
  return chosen.sort((a, b) => values.get(b) - values.get(a) || a - b);
}

// The latents that fire on a query's tokens; null without a query.
async function scoresOf(app, query) {
  const { ranks, latent } = app.search.resolve(query);
  if (latent !== undefined) return { ranks, scores: new Map([[latent, [0, 0]]]) };
  if (!query) return { ranks, scores: null };
  const words = await Promise.all(ranks.map((rank) => loadWord(app.site, app.sae, rank)));
  return { ranks, scores: words.length ? matching(words) : new Map() };
}

function LatentTable({ app, query }) {
  const { sae } = app;
  const [filter, setFilter] = useState({ kind: "live", sort: "balance", rate: "1", balance: "0" });
  const [shown, setShown] = useState(PAGE);
  const columns = useLoaded(() => loadIndex(sae), [sae.name]);
  const found = useLoaded(() => scoresOf(app, query), [sae.name, query]);
  const scores = found?.scores;
  const ready = columns && !(columns instanceof Error) && found && !(found instanceof Error);
  const chosen = useMemo(
    () => (ready ? chooseLatents(columns, filter, scores) : []),
    [ready && columns, filter, scores, sae.name],
  );
  useEffect(() => setShown(PAGE), [filter, query, sae.name]);
  if (columns instanceof Error) return html`<${Failed} error=${columns} />`;
  if (found instanceof Error) return html`<${Failed} error=${found} />`;
  if (!columns) return html`<${Waiting} />`;
  const change = (key) => (value) => setFilter({ ...filter, [key]: value });
  return html`<section aria-label="latents">
    <header class="head"><h1>Latents <small>of ${sae.name}</small></h1>
      <span class="note">${visible(sae.title)}; ${grouped(sae.d_sae)} latents${sae.signed ? "" : ", none negative"}</span></header>
    <div class="filters">
      <${Choice} label="show" value=${filter.kind} options=${KINDS} onChange=${change("kind")} />
      <${Choice} label="sort by" value=${filter.sort} options=${SORTS} onChange=${change("sort")} />
      <${Choice} label="fires on" value=${filter.rate} options=${RATES} onChange=${change("rate")} />
      <${Choice} label="balance" value=${filter.balance} options=${BALANCES} onChange=${change("balance")} />
    </div>
    <${Found} app=${app} query=${query} ranks=${found?.ranks ?? []} n=${chosen.length} ready=${ready} />
    ${ready && html`<${Rows} ...${{ app, columns, chosen, shown, scores }} />`}
    ${chosen.length > shown &&
    html`<button class="more" type="button" onClick=${() => setShown(shown + 4 * PAGE)}>
      show more (${grouped(chosen.length - shown)} left)
    </button>`}
  </section>`;
}

function Found({ app, query, ranks, n, ready }) {
  if (!ready) return html`<p class="note" role="status">searching …</p>`;
  if (!query) return html`<p class="note" role="status">${grouped(n)} latents</p>`;
  if (!ranks.length && !query.includes("#"))
    return html`<p class="note" role="status">
      No token of the text is like “${visible(query)}”.
    </p>`;
  const chips = ranks.map((rank) => html`<${Token} app=${app} rank=${rank} />`);
  return html`<p class="note" role="status">
    ${grouped(n)} latents ${ranks.length ? html`that fire on ${chips}, the strongest first` : null}
  </p>`;
}

function Rows({ app, columns, chosen, shown, scores }) {
  const { sae } = app;
  const body = chosen.slice(0, shown).map((i) => {
    const rates = [0, 1].map((side) => columns.count[side][i] / columns.n);
    const sides = scores?.get(i);
    return html`<tr key=${i} data-latent=${i}>
      <td class="rate neg">${percent(rates[1])}</td>
      <td class="labels left"><${Labels} ...${{ app, columns, side: 1, latent: i }} /></td>
      <td class="middle">
        <${LatentLink} sae=${sae} latent=${i} />
        ${sides ? html`<${Strength} sides=${sides} />` : html`<${Balance} rates=${rates} />`}
      </td>
      <td class="labels right"><${Labels} ...${{ app, columns, side: 0, latent: i }} /></td>
      <td class="rate pos">${percent(rates[0])}</td>
    </tr>`;
  });
  return html`<table class="latents">
    <thead><tr>
      <th class="rate neg" scope="col">− rate</th>
      <th class="left neg" scope="col">negative side fires on</th>
      <th class="middle" scope="col">latent</th>
      <th class="right pos" scope="col">positive side fires on</th>
      <th class="rate pos" scope="col">+ rate</th>
    </tr></thead>
    <tbody>${body}</tbody>
  </table>`;
}
