"use strict";
// From what is typed to tokens of the vocabulary: exactly, as a text of several tokens, or nearly.
function makeSearch(vocabulary) {
  const { texts, counts } = vocabulary;
  const seen = counts.filter((count) => count > 0).length; // the others are promoted only
  const byText = new Map();
  for (let rank = seen - 1; rank >= 0; rank--) byText.set(texts[rank], rank);
  let index = null; // made when it is first needed, after the first paint

  function engine() {
    if (index) return index;
    index = new MiniSearch({
      fields: ["text"],
      tokenize: (text) => [text.trim()],
      processTerm: (term) => term.toLowerCase() || null,
    });
    const rows = [];
    for (let id = 0; id < seen; id++) if (texts[id].trim()) rows.push({ id, text: texts[id] });
    index.addAll(rows);
    return index;
  }

  const exact = (text) => byText.get(text);

  // The tokens that make up a text, the longest first at each place; null where one is missing.
  function segments(text) {
    const found = [];
    for (let at = 0; at < text.length; ) {
      let end = Math.min(text.length, at + 40);
      while (end > at && !byText.has(text.slice(at, end))) end--;
      if (end === at) return null;
      found.push(byText.get(text.slice(at, end)));
      at = end;
    }
    return found;
  }

  // Ranks of tokens like a text, the best first.
  function suggestions(query, most = 12) {
    const word = query.trim();
    const forms = [query, " " + word, word, " " + word.toLowerCase(), word.toLowerCase()];
    const found = new Set(forms.map(exact).filter((rank) => rank !== undefined));
    if (word) {
      const options = { prefix: true, fuzzy: word.length > 3 ? 0.2 : false };
      for (const { id } of engine().search(word, options).slice(0, 4 * most)) found.add(id);
    }
    return [...found].slice(0, most);
  }

  // What a query means: {latent}, or {ranks} of the tokens it stands for.
  function resolve(query) {
    const number = /^\s*#?(\d+)\s*$/.exec(query);
    if (number && query.includes("#")) return { latent: Number(number[1]), ranks: [] };
    const word = query.trim();
    if (!word && !query) return { ranks: [] };
    for (const form of [query, " " + word, word]) {
      if (exact(form) !== undefined) return { ranks: [exact(form)] };
    }
    if (/\s/.test(word)) {
      const parts = segments(query.startsWith(" ") ? query : " " + query) ?? segments(query);
      if (parts) return { ranks: [...new Set(parts)] };
    }
    return { ranks: suggestions(query, 1) };
  }

  return { exact, segments, suggestions, resolve };
}

// Latents that fire on all of some tokens, or on as many as possible: latent -> [score+, score-].
function matching(words) {
  const found = new Map();
  for (const word of words) {
    const here = new Map();
    for (const { latent, side, strength } of word.entries) {
      if (!here.has(latent)) here.set(latent, [0, 0]);
      here.get(latent)[side] = strength;
    }
    for (const [latent, sides] of here) {
      const before = found.get(latent) ?? { n: 0, sides: [0, 0] };
      before.n += 1;
      before.sides = before.sides.map((sum, side) => sum + sides[side] / words.length);
      found.set(latent, before);
    }
  }
  const most = Math.max(0, ...[...found.values()].map((one) => one.n));
  return new Map(
    [...found].filter(([, one]) => one.n === most).map(([latent, one]) => [latent, one.sides]),
  );
}
