"use strict";
// Records as records.py writes them, read into objects. Side 0 is positive, side 1 negative.
const BINS = 32;
const PEAK_STEPS = 4095;
const WINDOW_STEPS = 63;
const EFFECT_STEPS = 127;
const COSINE_STEPS = 1000;
const STRENGTH_STEPS = 127;
const TOGETHER_STEPS = 1000;
const LABELS = 3;

function reader(text) {
  const values = unpack(text);
  let at = 0;
  return {
    next: () => values[at++],
    take: (n) => values.slice(at, (at += n)),
    more: () => at < values.length,
  };
}

function readLatent(text) {
  const { next, take } = reader(text);
  const largest = take(2).map(bitsToFloat);
  const mean = take(2).map((steps, side) => (steps / PEAK_STEPS) * largest[side]);
  const exponent = next() - 1000;
  const histogram = { width: 2 ** exponent, counts: [take(BINS), take(BINS)] };
  const contexts = [0, 1].map((side) => {
    const found = [];
    for (let n = next(); n > 0; n--) found.push(readContext(next, take, largest, side));
    return found;
  });
  const k = next();
  const most = bitsToFloat(next());
  const outputs = [0, 1].map(() =>
    Array.from({ length: k }, () => [next(), (unzigzag(next()) / EFFECT_STEPS) * most]),
  );
  const n = next();
  const [nearest, antipodal] = [0, 1].map(() =>
    Array.from({ length: n }, () => [next(), unzigzag(next()) / COSINE_STEPS]),
  );
  return { largest, mean, histogram, contexts, outputs, nearest, antipodal };
}

function readContext(next, take, largest, side) {
  const [sequence, position, before, n, peak, bits] = take(6);
  const tokens = take(n);
  const z = new Array(n).fill(0); // as shares of the largest |z| of its own side
  for (let i = 0; i < n; i++) {
    if (Math.floor(bits / 2 ** i) % 2) z[i] = unzigzag(next()) / WINDOW_STEPS;
  }
  return { sequence, position, before, peak: (peak / PEAK_STEPS) * largest[side], tokens, z };
}

// One SAE's columns over latents, as typed arrays.
async function loadIndex(sae) {
  const packed = await explorer.load(`${sae.name}/index`);
  if (packed.columns) return packed.columns;
  const sides = ["positive", "negative"];
  const count = sides.map((side) => Float64Array.from(unpack(packed[`${side}_count`])));
  const largest = sides.map((side) =>
    Float64Array.from(unpack(packed[`${side}_largest`]), (bits) => bitsToFloat(bits * 65536)),
  );
  const labels = sides.map((side) => Int32Array.from(unpack(packed[`${side}_tokens`])));
  packed.columns = { count, largest, labels, n: sae.n_tokens };
  return packed.columns;
}

// The peak tokens of a side of a latent, each once.
function labelsOf(columns, side, latent) {
  const ranks = columns.labels[side].subarray(latent * LABELS, (latent + 1) * LABELS);
  return [...new Set(ranks)].filter((rank) => rank > 0).map((rank) => rank - 1);
}

async function loadLatent(site, sae, latent) {
  const records = await explorer.load(`${sae.name}/latents-${Math.floor(latent / site.shard)}`);
  return readLatent(records[latent % site.shard]);
}

// What an SAE's latents do on one token: {counted, entries: [{latent, side, strength, share}]}.
async function loadWord(site, sae, rank) {
  const shard = Math.floor(rank / site.token_shard);
  const records = await explorer.load(`${sae.name}/words-${shard}`);
  const { next, more } = reader(records[rank % site.token_shard]);
  const counted = next();
  const entries = [];
  while (more()) {
    const key = next();
    const strength = next() / STRENGTH_STEPS;
    const share = next() / counted;
    entries.push({ latent: Math.floor(key / 2), side: key % 2, strength, share });
  }
  return { counted, entries };
}

// Counterparts in b of every latent of a: the one along it and the one against it, each
// {latent, cosine, together: [positive side, negative side]}; none of a latent that never fires.
async function loadPair(a, b) {
  const records = await explorer.load(`${a.name}/with-${b.name}`);
  return records.map((text) => {
    const { next, take, more } = reader(text);
    const found = [];
    while (more()) {
      const [latent, cosine] = [next(), unzigzag(next()) / COSINE_STEPS];
      found.push({ latent, cosine, together: take(2).map((steps) => steps / TOGETHER_STEPS) });
    }
    return found;
  });
}

async function loadVocabulary() {
  const packed = await explorer.load("tokens");
  if (!packed.ready) {
    packed.ready = { texts: packed.texts, ids: unpack(packed.ids), counts: unpack(packed.counts) };
  }
  return packed.ready;
}
