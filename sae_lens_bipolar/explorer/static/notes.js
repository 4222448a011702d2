"use strict";
// Notes and bookmarks: kept in this browser, and saved as JSON when asked.
const NOTES = "notes";
const listeners = new Set();
let notes = kept.read(NOTES, {});
if (typeof notes !== "object" || Array.isArray(notes)) notes = {};

// A note belongs to the SAE's weights, not to its name, so that another build does not take it.
const noteKey = (sae, latent) => `${sae.digest}/${latent}`;

function setNote(sae, latent, change) {
  const key = noteKey(sae, latent);
  const next = { sae: sae.name, digest: sae.digest, latent, text: "", bookmark: false, ...notes[key], ...change };
  notes = { ...notes, [key]: next };
  if (!next.text && !next.bookmark) delete notes[key];
  kept.write(NOTES, notes);
  listeners.forEach((tell) => tell(notes));
}

function useNotes() {
  const [found, set] = useState(notes);
  useEffect(() => {
    listeners.add(set);
    return () => listeners.delete(set);
  }, []);
  return found;
}

function Bookmark({ app, latent }) {
  const note = useNotes()[noteKey(app.sae, latent)];
  const on = Boolean(note?.bookmark);
  return html`<button type="button" class="bookmark" aria-pressed=${on ? "true" : "false"} title="b"
    onClick=${() => setNote(app.sae, latent, { bookmark: !on })}>${on ? "★ bookmarked" : "☆ bookmark"}</button>`;
}

function Note({ app, latent }) {
  const note = useNotes()[noteKey(app.sae, latent)];
  return html`<label class="note-box">note
    <textarea rows="3" value=${note?.text ?? ""} placeholder="what is this latent about? (kept in this browser)"
      onInput=${(event) => setNote(app.sae, latent, { text: event.target.value })}></textarea></label>`;
}

function NotesPage({ app }) {
  const all = Object.values(useNotes());
  const [said, say] = useState("");
  const text = () => JSON.stringify({ format: 1, notes: all }, null, 1) + "\n";
  const save = () => {
    const address = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    const anchor = Object.assign(document.createElement("a"), { href: address, download: "sae-notes.json" });
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  const read = async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      say(`${readNotes(JSON.parse(await file.text()))} notes read`);
    } catch (error) {
      say(`not read: ${error.message}`);
    }
    event.target.value = "";
  };
  const known = new Map(app.site.saes.map((sae) => [sae.digest, sae]));
  return html`<article aria-label="notes">
    <header class="head"><h1>Notes</h1></header>
    <p><button type="button" onClick=${save} disabled=${!all.length}>save as JSON</button>
      <label class="button file">read JSON<input type="file" accept=".json,application/json" onChange=${read} /></label>
      <span role="status">${visible(said)}</span></p>
    ${!all.length && html`<p class="note">Nothing is noted yet: write on a latent's page, or press b there.</p>`}
    <ul class="notes">${all.map((note) => html`<li>
      ${known.has(note.digest)
        ? html`<${LatentLink} sae=${known.get(note.digest)} latent=${note.latent}>${note.sae} #${note.latent}<//>`
        : html`<span>${visible(note.sae)} #${note.latent} (not in this explorer)</span>`}
      ${note.bookmark && html` <span title="bookmarked">★</span>`} <span>${visible(note.text)}</span></li>`)}
    </ul>
  </article>`;
}

// Notes from a file: each is checked, and merged over what is kept.
function readNotes(value) {
  if (value?.format !== 1 || !Array.isArray(value.notes)) throw new Error("this file holds no notes of an explorer");
  const whole = value.notes.every((one) => typeof one.sae === "string" && /^[0-9a-f]{64}$/.test(one.digest) &&
    Number.isInteger(one.latent) && typeof one.text === "string" && typeof one.bookmark === "boolean");
  if (!whole) throw new Error("a note lacks sae, digest, latent, text or bookmark");
  for (const { sae, digest, latent, text, bookmark } of value.notes) {
    setNote({ name: sae, digest }, latent, { text, bookmark });
  }
  return value.notes.length;
}
