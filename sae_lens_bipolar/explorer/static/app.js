"use strict";
// The page: which view the address names, the search box, and the keys.
const VIEWS = { latents: "Latents", words: "Two words", compare: "Compare", dials: "Dials", notes: "Notes" };

async function start() {
  const [site, vocabulary, live] = await Promise.all([
    explorer.load("site"),
    loadVocabulary(),
    explorer.load("live"),
  ]);
  return { site, vocabulary, live, search: makeSearch(vocabulary) };
}

function App({ base }) {
  const route = useRoute();
  const [view, name] = route;
  const sae = base.site.saes.find((one) => one.name === name) ?? base.site.saes[0];
  const app = { ...base, sae };
  const [help, setHelp] = useState(false);
  useKeys(app, route, setHelp);
  useEffect(() => {
    document.title = [...route.slice(1), base.site.title].filter(Boolean).join(" · ");
  }, [route]);
  return html`
    <${Header} app=${app} route=${route} />
    <main id="main" tabindex="-1"><${View} app=${app} route=${route} /></main>
    <footer>
      ${base.site.title}, ${base.site.hook_name}; ${grouped(base.site.sequences * base.site.context_size)} tokens of
      ${" "}${base.site.text}. <button type="button" class="plain" onClick=${() => setHelp(!help)}>keys (?)</button>
      <${Theme} />
    </footer>
    ${help && html`<${Help} close=${() => setHelp(false)} />`}
  `;
}

function View({ app, route }) {
  const [view, , third, fourth] = route;
  const id = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : null);
  switch (view) {
    case "latent": return html`<${LatentPage} app=${app} latent=${id(third)} />`;
    case "token": return html`<${TokenPage} app=${app} id=${id(third)} />`;
    case "words": return html`<${WordsPage} app=${app} ids=${[id(third), id(fourth)]} />`;
    case "compare": return html`<${ComparePage} app=${app} other=${third} />`;
    case "dials": return html`<${DialsPage} app=${app} />`;
    case "notes": return html`<${NotesPage} app=${app} />`;
    case "live": if (app.live) return html`<${LivePage} app=${app} key=${app.sae.name} />`;
    default: return html`<${LatentTable} app=${app} query=${third ?? ""} key=${app.sae.name} />`;
  }
}

function Header({ app, route }) {
  const [view] = route;
  const views = { ...VIEWS, ...(app.live ? { live: "Live text" } : {}) };
  const here = view in views ? view : "latents";
  const names = app.site.saes.map((one) => [one.name, one.name]);
  const change = (name) => {
    if (here === "compare") return go("compare", name, app.sae.name);
    return go(here, name, ...(here === "latents" || here === "words" ? route.slice(2) : []));
  };
  return html`<header class="top">
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>skip to the content</a>
    <div class="controls">
      <${Choice} label="SAE" value=${app.sae.name} options=${names} onChange=${change} />
      <${SearchBox} app=${app} query=${view === "latents" ? (route[2] ?? "") : ""} />
    </div>
    <nav aria-label="views">${Object.entries(views).map(
      ([key, words]) => html`<a href=${link(key, app.sae.name)} aria-current=${key === here && view !== "latent" && view !== "token" ? "page" : undefined}>${words}</a>`,
    )}</nav>
  </header>`;
}

function SearchBox({ app, query }) {
  const [typed, setTyped] = useState(query);
  const [open, setOpen] = useState(false);
  useEffect(() => setTyped(query), [query]);
  const found = open && typed.trim() ? app.search.suggestions(typed, 8) : [];
  const search = (text) => {
    setOpen(false);
    const { latent } = app.search.resolve(text);
    if (latent !== undefined) return go("latent", app.sae.name, latent);
    return text ? go("latents", app.sae.name, text) : go("latents", app.sae.name);
  };
  return html`<form class="search" role="search" onSubmit=${(event) => { event.preventDefault(); search(typed); }}
    onFocusOut=${(event) => event.currentTarget.contains(event.relatedTarget) || setOpen(false)}
    onKeyDown=${(event) => event.key === "Escape" && setOpen(false)}>
    <label><span>search latents</span><input id="search" type="search" value=${typed} spellcheck=${false} autocomplete="off"
      placeholder="a token, a text, or #number" onInput=${(event) => { setTyped(event.target.value); setOpen(true); }} /></label>
    ${found.length > 0 && html`<div class="suggestions floating">${found.map(
      (rank) => html`<button type="button" onClick=${() => search(app.vocabulary.texts[rank])}>
        <${Token} app=${app} rank=${rank} plain=${true} /> <small>${grouped(app.vocabulary.counts[rank])}</small></button>`,
    )}</div>`}
  </form>`;
}

function useKeys(app, route, setHelp) {
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") return setHelp(false);
      if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
      const latent = route[0] === "latent" ? Number(route[2]) : null;
      const step = (by) => go("latent", app.sae.name, (latent + by + app.sae.d_sae) % app.sae.d_sae);
      const keys = {
        "/": () => document.getElementById("search").select(),
        "?": () => setHelp((shown) => !shown),
        j: () => moveRow(1),
        k: () => moveRow(-1),
      };
      if (latent !== null && !event.target.closest(".sides")) {
        keys.ArrowLeft = () => step(-1);
        keys.ArrowRight = () => step(1);
      }
      if (latent !== null) {
        keys.b = () => document.querySelector(".bookmark")?.click();
        keys.n = () => document.querySelector(".note-box textarea")?.focus();
      }
      if (!(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [app.sae.name, route]);
}

// The next or last link to a latent in the table gets the focus; Enter then follows it.
function moveRow(by) {
  const rows = [...document.querySelectorAll("tbody .middle .latent-link, tbody td:first-child .latent-link, .firing .latent-link")];
  const at = rows.indexOf(document.activeElement);
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by))];
  next?.focus();
}

function Help({ close }) {
  const rows = [["/", "search"], ["j, k", "next, last row"], ["Enter", "open it"], ["←, →", "last, next latent"],
    ["b", "bookmark"], ["n", "write a note"], ["?", "these keys"], ["Esc", "close"]];
  const button = useRef(null);
  useEffect(() => button.current?.focus(), []);
  return html`<div class="help" role="dialog" aria-label="keys"><dl>${rows.map(
    ([key, words]) => html`<dt><kbd>${key}</kbd></dt><dd>${words}</dd>`)}</dl>
    <button type="button" ref=${button} onClick=${close}>close</button></div>`;
}

function Theme() {
  const [theme, set] = useState(document.documentElement.dataset.theme ?? "auto");
  const change = (next) => {
    set(next);
    kept.write("theme", next);
    applyTheme(next);
  };
  return html`<${Choice} label="theme" value=${theme} onChange=${change}
    options=${[["auto", "as the system"], ["light", "light"], ["dark", "dark"]]} />`;
}
function applyTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

applyTheme(kept.read("theme", "auto"));
const root = document.getElementById("explorer");
start().then(
  (base) => { root.textContent = ""; render(html`<${App} base=${base} />`, root); },
  (error) => { root.textContent = `The explorer cannot be shown: ${error.message}`; },
);
