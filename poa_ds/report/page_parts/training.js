// Is it learning: the signs of health with their bounds, and every other series that was logged.
const smoothed = ys => { let m = null; return ys.map(y => m = m == null ? y : 0.9 * m + 0.1 * y); };
const SERIES = [
  ["Losses", /^loss\//, "The total is what is minimised; a term that is 0 is not active yet."],
  ["Gradient norms", /^gradient_norm\//, "Before clipping."],
  ["Schedules", /^schedule\//, ""],
  ["Online probe", /^online\//, "Share of the batch's crops (%) that a linear layer on the teacher's features answers right before it learns from them."],
  ["Speed, memory", /^(speed|memory)\//, "Data wait above 5 % of a step means too few loader workers."],
  ["Other", /^(?!loss\/|gradient_norm\/|schedule\/|online\/|speed\/|memory\/|health\/|knn_)/, ""],
];
const keysOf = test => uniq(R.flatMap(r => Object.keys(r.series))).filter(k => test.test(k)).sort((a, b) => (b === "loss/total") - (a === "loss/total") || a.localeCompare(b));
const SMOOTH = /^(loss|gradient_norm|online|speed)\//; // never health: an alarm is about single values

function series(box, test) {
  const made = keysOf(test).map(key => { const place = el("div", { class: "plot low", "data-key": key }); soon(place, () => one(place, key)); return el("div", {}, el("h3", {}, key), place); });
  box.replaceChildren(...made);
}
function one(place, key, bounds = []) {
  const shown = R.map((r, q) => ({ r, q, s: r.series[key] })).filter(x => x.s);
  const traces = shown.map(({ q, s }) => ({
    x: s.steps, y: S.smooth && SMOOTH.test(key) ? smoothed(s.values) : s.values, mode: s.steps.length < 12 ? "lines+markers" : "lines", hoverinfo: "none", marker: { size: 5 },
    line: { width: 1.4, color: R.length > 1 ? ofRun(q) : css("--accent"), dash: R.length > 1 ? DASHES[q % 6] : "solid" },
  }));
  const ys = traces.flatMap(t => t.y), pad = 0.08 * (most(ys) - least(ys) || Math.abs(most(ys)) || 1);
  const figure = layout(170, { xaxis: { tickformat: "~s", nticks: 5 }, yaxis: { range: [least(ys) - pad, most(ys) + pad], nticks: 5 }, margin: { l: 46, r: 10, t: 6, b: 26 }, ...under(bounds, marks(run())) });
  plot(place, traces, figure, ({ curve, index }) => {
    const { r, s } = shown[curve];
    return [R.length > 1 ? r.name : key, [number(s.values[index])], `step ${count(s.steps[index])}`];
  }, key);
  place.pointed = (_, p) => cursor(p?.x);
}

function health() {
  const r = run(), metrics = uniq(D.signs.map(s => s.metric));
  const beyond = (s, v) => s.begins < s.ends ? v < s.begins : v > s.begins;
  $.health.replaceChildren(...metrics.map(metric => {
    const signs = D.signs.filter(s => s.metric === metric), own = r.series[metric];
    const judged = own ? own.values.filter((_, i) => own.steps[i] > r.warmup || signs[0].always) : [], now = judged.at(-1);
    const [kind, word] = !own ? ["na", "not measured"] : !judged.length ? ["na", "warm-up: not judged yet"] : signs.some(s => beyond(s, now)) ? ["on", "▲ alarm"] : signs.some(s => judged.some(v => beyond(s, v))) ? ["on", "▲ was on"] : ["ok", "✓ in bounds"];
    const place = el("div", { class: "plot low", "data-key": metric });
    if (R.some(x => x.series[metric])) soon(place, () => one(place, metric, signs));
    const meaning = signs.map(s => `alarm ${s.begins < s.ends ? "below" : "above"} ${number(s.begins)}: ${s.meaning}`).join("; ");
    return el("div", {}, el("h3", {}, metric.replace("health/", "").replaceAll("_", " "), " ", el("span", { class: "badge " + kind }, word)), place, el("p", { class: "why small-print" }, `now ${number(own?.values.at(-1))}. ${meaning}`));
  }));
}
