// All numbers, what happened, how it was measured, the recipe.
function table() {
  const r = run(), k = readout(), v = last(), several = R.length > 1, others = R.filter(o => o !== r);
  const times = r.times.place ? ["ms"] : [], head = ["size", "name", "parameters", "GFLOPs", ...times, several ? r.name : ofKnn(S.k) ? "k-NN top-1 %" : `${S.k} %`, "± 95 %", ...(several ? others.flatMap(o => [o.name, `${o.name} − ${r.name}`]) : ["random weights", "gain"])];
  const text = [String, String, short, number, ...times.map(() => number), percent, x => x == null ? "–" : x.toFixed(1), ...(several ? others.flatMap(() => [percent, x => percent(x, true)]) : [percent, x => percent(x, true)])];
  const minus = (a, b) => a == null || b == null ? null : +(a - b).toFixed(4);
  const rows = r.sizes.map((s, i) => {
    const more = several ? others.flatMap(o => { const j = o.sizes.findIndex(t => t.size === s.size), x = last(o)[j] ?? null; return [x, minus(x, v[i])]; }) : [k?.random[i] ?? null, minus(v[i], k?.random[i])];
    return [s.size, s.name, s.parameters, s.gflops, ...times.map(() => s.latency), v[i], v[i] == null ? null : error(v[i], k.queries), ...more];
  });
  const top = most(v), body = el("tbody");
  let by = 2, up = 1;
  const before = (a, b) => a == null ? 1 : b == null ? -1 : up * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const fill = () => body.replaceChildren(...[...rows].sort((a, b) => before(a[by], b[by])).map(x => el("tr", top > -Infinity && x[4 + times.length] === top ? { class: "best" } : {}, x.map((c, j) => el("td", {}, text[j](c))))));
  const sort = j => { up = by === j ? -up : 1; by = j; fill(); };
  const titles = head.map((h, j) => el("th", { scope: "col" }, el("button", { onclick: () => sort(j) }, h)));
  fill();
  $.table.replaceChildren(el("div", { class: "bar noprint" }, el("button", { onclick: () => save(head, rows) }, "save as CSV")), el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {}, titles)), body)));
}
// of each size that several runs have, the best before the second, as `poa-ds compare` has it
function ahead() {
  const own = R.map(r => ({ r, k: readout(r), v: last(r) })).filter(o => o.k), say = words => $.ahead.replaceChildren(el("p", { class: "why" }, words));
  const sizes = [...new Map(own.flatMap(o => o.r.sizes.map(s => [s.size, s]))).values()].sort((a, b) => a.parameters - b.parameters);
  const rows = sizes.map(s => ({ s, found: own.map(o => ({ ...o, x: o.v[o.r.sizes.findIndex(t => t.size === s.size)] })).filter(o => o.x != null).sort((a, b) => b.x - a.x) })).filter(row => row.found.length > 1);
  if (!rows.length) return say("No size was evaluated in several of these runs.");
  if (uniq(own.map(o => JSON.stringify(o.k.protocol))).length > 1) return say("The runs were measured in different ways (see below): nothing can be said.");
  const pair = (a, b, size) => D.pairs.find(p => p.k === S.k && [a, b].every(r => p.runs.includes(R.indexOf(r))))?.errors[size];
  const leads = rows.map(({ s, found }) => {
    const [a, b] = found, paired = pair(a.r, b.r, s.size), e = paired ?? Math.hypot(error(a.x, a.k.queries), error(b.x, b.k.queries)), by = a.x - b.x;
    return { s, name: a.r.name, shown: by > e, by, e, rough: paired == null, found };
  });
  const won = R.map(r => leads.filter(l => l.name === r.name)).filter(ls => ls.length).sort((a, b) => b.length - a.length);
  const words = won.map(ls => `${ls[0].name} in ${ls.length} (shown in ${ls.filter(l => l.shown).length})`).join(", ");
  const head = ["size", ...R.map(r => r.name), "ahead of the second"];
  const cells = l => [l.s.size, ...R.map(r => percent(l.found.find(o => o.r === r)?.x)), `${l.name} ${percent(l.by, true)} ± ${l.e.toFixed(1)}${l.rough ? " ~" : ""}${l.shown ? "" : ", not shown"}`];
  const why = `± is the 95 % error of the difference, on these ${count(own[0].k.queries)} queries; another seed moves a run too.${leads.some(l => l.rough) ? " ~ not paired by query: larger than it is." : ""}`;
  $.ahead.replaceChildren(el("p", { class: "answer" }, `Of ${leads.length} size${leads.length > 1 ? "s" : ""} that several runs have, ahead: ${words}.`), wide(head, leads.map(cells)), el("p", { class: "why small-print" }, why));
}
function save(head, rows) {
  const field = c => c == null ? "" : /[",\n]/.test(c) ? `"${String(c).replaceAll('"', '""')}"` : String(c);
  const lines = [head, ...rows].map(row => row.map(field).join(",")).join("\n");
  el("a", { download: "sizes.csv", href: "data:text/csv;charset=utf-8," + encodeURIComponent(lines + "\n") }).click();
}

const wide = (head, rows) => el("div", { class: "scroll" }, el("table", { class: "wrap" }, el("tr", {}, head.map(h => el("th", {}, h))), rows.map(row => el("tr", {}, row.map(c => el("td", {}, c))))));
function recipe() {
  const keys = uniq(R.flatMap(r => Object.keys(r.recipe))), head = ["key", ...R.map(r => r.name)], rows = ks => ks.map(k => [k, ...R.map(r => r.recipe[k] ?? "–")]);
  const differ = keys.filter(k => uniq(R.map(r => r.recipe[k])).length > 1);
  $.recipe.replaceChildren(...(R.length > 1 ? [el("h3", {}, `${differ.length} keys differ`), wide(head, rows(differ))] : []), el("details", {}, el("summary", {}, `the whole recipe, ${keys.length} keys`), wide(head, rows(keys))));
}
function measured() {
  const parts = R.filter(r => readout(r)).flatMap(r => {
    const k = readout(r);
    return [R.length > 1 ? el("h3", {}, r.name) : null, ...k.protocols.map(p => el("p", { class: "tight" }, `${ofKnn(k.k) ? `k-NN, k = ${k.k}` : k.k}: ${p}`)), el("details", {}, el("summary", {}, "in full"), el("code", { class: "block" }, JSON.stringify(k.protocol, null, 1)))];
  });
  const protocols = uniq(R.flatMap(r => readout(r)?.protocols ?? []));
  const warning = protocols.length > 1 ? el("p", {}, el("span", { class: "badge on" }, "▲ these protocols differ: the accuracies cannot be compared")) : null;
  const cut = R.some(r => r.cut) ? el("p", { class: "why" }, "The other k were left out to keep this page small.") : null;
  $.measured.replaceChildren(...[warning, cut, ...parts, parts.length ? null : el("p", { class: "why" }, "Nothing has been measured yet."), el("p", { class: "why" }, "± is 1.96 √(p (100 − p) / n) of each size alone. Two sizes see the same queries, so that their difference is usually surer. Charts hold five significant digits; long series keep their least and greatest values.")].filter(Boolean));
}
function happened() {
  const rows = run().events.map(e => [`step ${count(e.step)}`, e.kind, e.text ?? ""]);
  $.events.replaceChildren(rows.length ? wide(["when", "what", ""], rows) : el("p", { class: "why" }, "Nothing was logged."));
}
