// All numbers, what happened, how it was measured, the recipe.
function table() {
  const r = run(), k = readout(), v = last(), several = R.length > 1, others = R.filter(o => o !== r);
  const head = ["size", "name", "parameters", "GFLOPs", several ? r.name : "k-NN top-1 %", "± 95 %", ...(several ? others.flatMap(o => [o.name, `${o.name} − ${r.name}`]) : ["random weights", "gain"])];
  const text = [String, String, short, number, percent, x => x == null ? "–" : x.toFixed(1), ...(several ? others.flatMap(() => [percent, x => percent(x, true)]) : [percent, x => percent(x, true)])];
  const minus = (a, b) => a == null || b == null ? null : +(a - b).toFixed(4);
  const rows = r.sizes.map((s, i) => {
    const more = several ? others.flatMap(o => { const j = o.sizes.findIndex(t => t.size === s.size), x = last(o)[j] ?? null; return [x, minus(x, v[i])]; }) : [k?.random[i] ?? null, minus(v[i], k?.random[i])];
    return [s.size, s.name, s.parameters, s.gflops, v[i], v[i] == null ? null : error(v[i], k.queries), ...more];
  });
  const top = most(v), body = el("tbody");
  let by = 2, up = 1;
  const before = (a, b) => a == null ? 1 : b == null ? -1 : up * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const fill = () => body.replaceChildren(...[...rows].sort((a, b) => before(a[by], b[by])).map(x => el("tr", x[4] != null && x[4] === top ? { class: "best" } : {}, x.map((c, j) => el("td", {}, text[j](c))))));
  const sort = j => { up = by === j ? -up : 1; by = j; fill(); };
  const titles = head.map((h, j) => el("th", { scope: "col" }, el("button", { onclick: () => sort(j) }, h)));
  fill();
  $.table.replaceChildren(el("div", { class: "bar noprint" }, el("button", { onclick: () => save(head, rows) }, "save as CSV")), el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {}, titles)), body)));
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
    return [R.length > 1 ? el("h3", {}, r.name) : null, ...k.protocols.map(p => el("p", { class: "tight" }, `k-NN, k = ${k.k}: ${p}`)), el("details", {}, el("summary", {}, "in full"), el("code", { class: "block" }, JSON.stringify(k.protocol, null, 1)))];
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
