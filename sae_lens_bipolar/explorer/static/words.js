"use strict";
// The token index: one token's latents, and two tokens against each other.
function rankOfId(app, id) {
  const rank = app.vocabulary.ids.indexOf(id);
  return rank >= 0 && app.vocabulary.counts[rank] > 0 ? rank : -1;
}

function TokenPage({ app, id }) {
  const { site, sae } = app;
  const rank = rankOfId(app, id);
  const loaded = useLoaded(async () => {
    if (rank < 0) throw new Error("this token is not in the text");
    const [columns, word] = await Promise.all([loadIndex(sae), loadWord(site, sae, rank)]);
    return { columns, word };
  }, [sae.name, id]);
  if (loaded instanceof Error) return html`<${Failed} error=${loaded} />`;
  if (!loaded) return html`<${Waiting} />`;
  const { columns, word } = loaded;
  const [positive, negative] = [0, 1].map((side) => word.entries.filter((one) => one.side === side));
  return html`<article aria-label="token">
    <header class="head"><h1>Token <${Token} app=${app} rank=${rank} plain=${true} /></h1>
      <span class="note">${grouped(app.vocabulary.counts[rank])} times in the text; the first
        ${" "}${grouped(word.counted)} that count are indexed</span>
    </header>
    <p><a class="button" href=${link("words", sae.name, id)}>compare with another token</a></p>
    <div class="sides" tabindex="0" role="group" aria-label="negative side, then positive side">
      <${Firing} ...${{ app, columns, entries: negative, side: 1 }} />
      <${Firing} ...${{ app, columns, entries: positive, side: 0 }} />
    </div>
  </article>`;
}

function Firing({ app, columns, entries, side }) {
  const { name, sign, className } = SIDES[side];
  return html`<section class=${`side ${className}`} aria-label=${`${name} side`}>
    <h2><span class="sign">${sign}</span> fires ${name}</h2>
    ${!entries.length && html`<p class="note">no latent among the strongest</p>`}
    <ul class="firing">${entries.map(
      (one) => html`<li>
        <${LatentLink} sae=${app.sae} latent=${one.latent} />
        <span class="value" title="mean |z| on this token, as a share of the side's largest"
          >${Math.round(100 * one.strength)}%</span>
        <span class="note">on ${percent(one.share)} of its places</span>
        <span class="both"><${Labels} ...${{ app, columns, side, latent: one.latent }} /></span>
      </li>`,
    )}</ul>
  </section>`;
}

// Latents of two tokens, side by side: those that turn their sign first.
function compareWords(first, second) {
  const rows = new Map();
  [first, second].forEach((word, which) => {
    for (const { latent, side, strength } of word.entries) {
      if (!rows.has(latent)) rows.set(latent, { latent, z: [0, 0] });
      rows.get(latent).z[which] += side ? -strength : strength;
    }
  });
  const list = [...rows.values()];
  for (const row of list) {
    row.flips = row.z[0] * row.z[1] < 0;
    row.difference = Math.abs(row.z[0] - row.z[1]);
  }
  return list.sort((a, b) => b.flips - a.flips || b.difference - a.difference || a.latent - b.latent);
}

function WordsPage({ app, ids }) {
  const { site, sae } = app;
  const ranks = ids.map((id) => (id === null ? -1 : rankOfId(app, id)));
  const both = ranks.every((rank) => rank >= 0);
  const loaded = useLoaded(async () => {
    const columns = await loadIndex(sae);
    if (!both) return { columns, rows: null };
    const words = await Promise.all(ranks.map((rank) => loadWord(site, sae, rank)));
    return { columns, rows: compareWords(...words) };
  }, [sae.name, ids]);
  if (loaded instanceof Error) return html`<${Failed} error=${loaded} />`;
  const choose = (which) => (rank) => {
    const next = [...ids];
    next[which] = app.vocabulary.ids[rank];
    go("words", sae.name, next[0] ?? "", next[1] ?? "");
  };
  return html`<article aria-label="two words">
    <header class="head"><h1>Word against word</h1>
      <span class="note">latents that turn their sign between two tokens come first</span></header>
    <div class="two">
      ${[0, 1].map((which) => html`<${TokenBox} app=${app} label=${which ? "second token" : "first token"}
        rank=${ranks[which]} onChoose=${choose(which)} />`)}
    </div>
    ${!both && html`<p class="note">Choose two tokens, such as “ man” and “ woman”.</p>`}
    ${loaded?.rows && html`<${WordRows} ...${{ app, ranks, ...loaded }} />`}
  </article>`;
}

function WordRows({ app, ranks, columns, rows }) {
  const bar = (z) => html`<${Strength} sides=${[Math.max(0, z), Math.max(0, -z)]} />`;
  const flips = rows.filter((row) => row.flips).length;
  return html`<p class="note" role="status">${flips} of ${rows.length} latents turn their sign</p>
  <table class="words">
    <thead><tr><th scope="col">latent</th>
      ${ranks.map((rank) => html`<th scope="col"><${Token} app=${app} rank=${rank} plain=${true} /></th>`)}
      <th class="left neg" scope="col">negative side fires on</th>
      <th class="right pos" scope="col">positive side fires on</th></tr></thead>
    <tbody>${rows.slice(0, 100).map(
      (row) => html`<tr key=${row.latent} class=${row.flips ? "flips" : ""}>
        <td><${LatentLink} sae=${app.sae} latent=${row.latent} />${row.flips && html` <b class="flip" title="turns its sign">⇄</b>`}</td>
        ${row.z.map((z) => html`<td class="bar">${bar(z)}<small>${z ? signed(z) : "0"}</small></td>`)}
        <td class="labels left"><${Labels} ...${{ app, columns, side: 1, latent: row.latent }} /></td>
        <td class="labels right"><${Labels} ...${{ app, columns, side: 0, latent: row.latent }} /></td>
      </tr>`,
    )}</tbody>
  </table>`;
}

// A box to choose a token in: what is typed is looked up, and the suggestions are buttons.
function TokenBox({ app, label, rank, onChoose }) {
  const text = rank >= 0 ? app.vocabulary.texts[rank] : "";
  const [typed, setTyped] = useState(text);
  useEffect(() => setTyped(text), [text]);
  const found = typed && typed !== text ? app.search.suggestions(typed, 6) : [];
  const submit = (event) => {
    event.preventDefault();
    if (found.length) onChoose(found[0]);
  };
  return html`<form class="token-box" onSubmit=${submit}>
    <label>${label}<input type="text" value=${typed} spellcheck=${false} autocomplete="off"
      onInput=${(event) => setTyped(event.target.value)} /></label>
    <div class="suggestions">${found.map(
      (one) => html`<button type="button" onClick=${() => onChoose(one)}>
        <${Token} app=${app} rank=${one} plain=${true} /></button>`,
    )}</div>
  </form>`;
}
