"use strict";
// State, elements, colours and words. Every control changes S and draws again what depends on it.
const D = JSON.parse(document.getElementById("data").textContent), R = D.runs;
const root = document.documentElement, $ = {};
const uniq = xs => [...new Set(xs)];
const present = xs => xs.filter(x => x != null);
const least = xs => present(xs).reduce((a, b) => Math.min(a, b), Infinity);
const most = xs => present(xs).reduce((a, b) => Math.max(a, b), -Infinity);

const S = {
  run: 0, // which run leads
  k: R[0].readouts.some(r => r.k === R[0].report_k) ? R[0].report_k : R[0].readouts[0]?.k,
  cost: "parameters", budget: 1, // a share of the logarithmic axis
  by: "width", width: null, depth: null, minus: false,
  few: R.length > 1 && R.flatMap(r => r.readouts[0]?.values.at(-1).filter(x => x != null) ?? []).length > 40 && R.some(r => r.sizes.some(s => s.name)),
  map: "value", whole: false, at: -1, // the evaluation that the heat map shows; -1: the last
  smooth: R.some(r => r.series["loss/total"]?.steps.length > 150),
};

function el(tag, attributes = {}, ...inside) { // strings become text, never HTML
  const made = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) k.startsWith("on") ? made[k] = v : made.setAttribute(k, v);
  made.append(...inside.flat().filter(x => x != null));
  return made;
}

const run = () => R[S.run];
const readout = (r = run()) => r.readouts.find(x => x.k === S.k);
const last = (r = run()) => readout(r)?.values.at(-1) ?? r.sizes.map(() => null);
const ofKnn = k => typeof k !== "string"; // else the name of another measure
const measure = (k = S.k) => k == null || ofKnn(k) ? "k-NN" : k;
const widths = uniq(R.flatMap(r => r.sizes.map(s => s.width))).sort((a, b) => a - b);
const depths = uniq(R.flatMap(r => r.sizes).sort((a, b) => a.blocks - b.blocks || a.depth.localeCompare(b.depth)).map(s => s.depth));
const COST = { parameters: "parameters", gflops: "GFLOPs", ...(R.some(r => r.times.place) ? { latency: "milliseconds" } : {}) };
const error = (p, n) => 1.96 * Math.sqrt(p * (100 - p) / n); // 95 %, each size on its own

const count = n => n.toLocaleString("en");
const short = n => n == null ? "–" : n >= 999500 ? +(n / 1e6).toPrecision(3) + " M" : n >= 1000 ? +(n / 1e3).toPrecision(3) + " K" : String(+n.toPrecision(3));
const percent = (x, signed) => x == null ? "–" : (signed && x > 0 ? "+" : "") + x.toFixed(2);
const number = x => x == null ? "–" : Math.abs(x) >= 1e5 || (x && Math.abs(x) < 1e-3) ? x.toExponential(2) : String(+x.toPrecision(4));
const span = s => s > 172800 ? (s / 86400).toFixed(1) + " days" : s > 5400 ? (s / 3600).toFixed(1) + " h" : (s / 60).toFixed(1) + " min";

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const OF_RUN = { // Okabe and Ito's, darkened for white
  light: ["#0072b2", "#d55e00", "#00805f", "#a8487f", "#6b6b00", "#3a3a3a"],
  dark: ["#56b4e9", "#ff9a52", "#2fc39a", "#e79cc6", "#e0d24a", "#cfcfcf"],
};
const DASHES = ["solid", "7px,3px", "2px,3px", "9px,3px,2px,3px", "14px,4px", "4px,2px,1px,2px"];
const css = name => getComputedStyle(root).getPropertyValue(name).trim();
const dark = () => root.dataset.theme === "dark";
const ofRun = i => OF_RUN[dark() ? "dark" : "light"][i % 6];
function viridis(t) { // clipped so that both ends stand out from the page
  t = dark() ? 0.24 + 0.76 * t : 0.88 * t;
  const x = Math.min(8.9999, Math.max(0, t * 9)), i = Math.floor(x), f = x - i;
  const [a, b] = [VIRIDIS[i], VIRIDIS[i + 1]].map(h => [1, 3, 5].map(k => parseInt(h.substr(k, 2), 16)));
  return "rgb(" + a.map((v, k) => Math.round(v + f * (b[k] - v))).join(",") + ")";
}
const shade = (value, among) => viridis(among.length > 1 ? among.indexOf(value) / (among.length - 1) : 0.4);

function group(label, key, choices, after) { // [[value, name, colour]]
  return el("span", { class: "group", role: "group", "aria-label": label }, el("em", {}, label), choices.map(([value, name, colour]) =>
    el("button", { "data-set": `${key}=${value}`, "aria-pressed": S[key] === value, onclick: () => { S[key] = value; after(); } },
      colour ? el("span", { class: "swatch", style: `background:${colour}` }) : null, name)));
}
function choose(label, key, choices, after) {
  const options = choices.map(([v, n]) => el("option", { value: JSON.stringify(v), ...(S[key] === v ? { selected: "" } : {}) }, n));
  return el("label", { class: "group" }, el("em", {}, label), el("select", { "aria-label": label, onchange: e => { S[key] = JSON.parse(e.target.value); after(); } }, options));
}
const few = (label, key, choices, after, fewest = 6) => (choices.length > fewest ? choose : group)(label, key, choices, after);
const card = (title, why, ...inside) => el("section", { class: "card" }, el("h2", {}, title), typeof why === "string" ? (why ? el("p", { class: "why" }, why) : null) : why, ...inside);
