"use strict";
// Live panels: only where `explore --serve` answers. It runs one request at a time.
async function ask(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const value = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(value.error ?? `the server answered ${answer.status}`);
  return value;
}

// One request at a time: a new one cancels the one before.
function useAsk() {
  const [state, set] = useState({ busy: false });
  const control = useRef(null);
  useEffect(() => () => control.current?.abort(), []);
  const run = async (path, body) => {
    control.current?.abort();
    const own = (control.current = new AbortController());
    set((before) => ({ busy: true, value: before.value }));
    try {
      const value = await ask(path, body, own.signal);
      if (own === control.current) set({ busy: false, value });
    } catch (error) {
      if (own === control.current) set({ busy: false, error: error.name === "AbortError" ? new Error("cancelled") : error });
    }
  };
  const cancel = () => control.current?.abort();
  return { ...state, run, cancel };
}

function LivePage({ app }) {
  const [text, setText] = useState("Paste any text here, and see which latents fire on it.");
  const [at, setAt] = useState(null);
  const { busy, value, error, run, cancel } = useAsk();
  const columns = useLoaded(() => loadIndex(app.sae), [app.sae.name]);
  const read = (event) => {
    event.preventDefault();
    setAt(null);
    run("api/read", { sae: app.sae.name, text });
  };
  return html`<article aria-label="live text">
    <header class="head"><h1>Read a text</h1><span class="note">at most ${app.live.max_tokens} tokens</span></header>
    <form onSubmit=${read}>
      <label class="note-box">text<textarea rows="4" value=${text} onInput=${(event) => setText(event.target.value)}></textarea></label>
      <button type="submit" disabled=${busy}>read</button>
      ${busy && html`<button type="button" onClick=${cancel}>cancel</button>`}
      <span role="status">${busy ? "reading …" : ""}</span>
    </form>
    ${error && html`<${Failed} error=${error} />`}
    ${value && html`<${ReadText} ...${{ app, value, at, setAt, columns }} />`}
  </article>`;
}

function ReadText({ app, value, at, setAt, columns }) {
  const chosen = at === null ? null : value.tokens[at];
  return html`<p class="note">Choose a token: its latents appear below.</p>
  <p class="read">${value.tokens.map(
    (token, i) => html`<button type="button" class="token" aria-pressed=${i === at ? "true" : "false"}
      onClick=${() => setAt(i)}><bdi>${tokenPieces(token.text)}</bdi></button>`,
  )}</p>
  ${chosen && html`<div class="sides" tabindex="0" role="group" aria-label="negative side, then positive side">
    ${LEFT_TO_RIGHT.map((side) => html`<section class=${`side ${SIDES[side].className}`} aria-label=${`${SIDES[side].name} side`}>
      <h2><span class="sign">${SIDES[side].sign}</span> ${SIDES[side].name}</h2>
      <ul class="firing">${chosen.latents
        .filter(([, z]) => (z < 0 ? 1 : 0) === side)
        .map(([latent, z]) => html`<li><${LatentLink} sae=${app.sae} latent=${latent} />
          <span class="value">${signed(z)}</span>
          <span class="both">${columns?.count && html`<${Labels} ...${{ app, columns, side, latent }} />`}</span></li>`)}</ul>
    </section>`)}
  </div>`}`;
}

function SteerPanel({ app, latent }) {
  const [value, setValue] = useState(0.5);
  const [prompt, setPrompt] = useState("I think that");
  const { busy, value: found, error, run, cancel } = useAsk();
  const steer = (event) => {
    event.preventDefault();
    run("api/steer", { sae: app.sae.name, latent, value: Number(value), prompt, max_new_tokens: app.live.max_new_tokens });
  };
  const side = value < 0 ? "neg" : value > 0 ? "pos" : "";
  return html`<section class="steer" aria-label="steer">
    <h2>turn the dial</h2>
    <form onSubmit=${steer}>
      <label class="note-box">prompt<input type="text" value=${prompt} onInput=${(event) => setPrompt(event.target.value)} /></label>
      <label class="slider"><span class="neg">−1</span>
        <input type="range" min="-1" max="1" step="0.05" value=${value} aria-label="dial"
          aria-valuetext=${signed(Number(value))} onInput=${(event) => setValue(event.target.value)} />
        <span class="pos">+1</span><output class=${side}>${signed(Number(value))}</output></label>
      <button type="submit" disabled=${busy}>steer</button>
      ${busy && html`<button type="button" onClick=${cancel}>cancel</button>`}
      <span role="status">${busy ? "writing …" : found ? `cost ${short(found.cost)} nats per token` : ""}</span>
    </form>
    ${error && html`<${Failed} error=${error} />`}
    ${found && html`<div class="texts">
      <section aria-label="unsteered text"><h3>unsteered</h3><q dir="auto">${visible(found.unsteered)}</q></section>
      <section aria-label="steered text"><h3 class=${found.value < 0 ? "neg" : "pos"}>steered, ${signed(found.value)}</h3><q dir="auto">${visible(found.steered)}</q></section>
    </div>
    ${found.extrapolated && html`<p class="note">This side never fired on the text: what the model does there is extrapolated.</p>`}`}
  </section>`;
}
