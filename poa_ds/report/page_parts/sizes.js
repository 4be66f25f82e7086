// Which size: the facts, cost against accuracy, the curves, width and depth.
function facts() {
  const r = run(), f = r.facts, v = last(), k = readout(), top = most(v), best = v.indexOf(top);
  const gains = k ? present(v.map((x, i) => x == null || k.random[i] == null ? null : x - k.random[i])) : [];
  const cards = [
    [best < 0 ? "–" : `${percent(top)} %`, best < 0 ? "no evaluation yet" : `the highest of ${present(v).length} sizes: ${r.sizes[best].size}, ${short(r.sizes[best].parameters)} parameters; ± ${error(top, k.queries).toFixed(1)}`],
    [gains.length ? `${percent(least(gains), true)} to ${percent(most(gains), true)}` : "–", "points over the same size with random weights"],
    [k?.pixels == null ? "–" : `${percent(k.pixels)} %`, "raw pixels, the other floor"],
    [!f.rows ? "–" : f.alarms_on ? `▲ ${f.alarms_on} on` : f.rows_with_alarm ? "▲ over" : "✓ none", f.rows_with_alarm ? `health alarms; on in ${count(f.rows_with_alarm)} of ${count(f.rows)} rows` : "health alarms"],
    [f.images_per_second == null ? "–" : short(f.images_per_second) + " /s", `images, median; ${f.waiting == null ? "–" : (100 * f.waiting).toFixed(1)} % of the time waiting for data`],
    [span(f.seconds), `from the first row to the last; ${count(r.events.filter(e => e.kind === "resume").length)} restarts, ${count(f.skipped)} skipped steps`],
  ];
  $.facts.replaceChildren(...cards.map(([b, s]) => el("div", { class: "fact" }, el("b", {}, b), el("span", {}, s))));
}

const about = s => `${short(s.parameters)} parameters, ${number(s.gflops)} GFLOPs${s.latency == null ? "" : `, ${number(s.latency)} ms`}`;
const named = (s, r) => s.size + (s.name ? ` ${s.name}` : "") + (R.length > 1 ? ` · ${r.name}` : "");
// the best within a budget, and the cheapest that is not shown to be worse: by the error of their difference where that is known
function chosen(own, budget, queries) {
  const fits = own.filter(p => p.cost <= budget).sort((a, b) => a.cost - b.cost || a.s.parameters - b.s.parameters || a.s.gflops - b.s.gflops);
  const best = fits.reduce((a, b) => !a || b.y > a.y ? b : a, null);
  if (!best) return null;
  const e = error(best.y, queries), sure = S.k === best.r.report_k ? best.r.sure[best.s.size] : null, allowed = p => sure?.[p.i] ?? e;
  const cheapest = fits.find(p => best.y - p.y <= allowed(p));
  return { best, error: e, cheapest, paired: sure?.[cheapest.i] };
}
function fronts() {
  const k = readout(), key = S.cost;
  const here = r => key !== "latency" || r.times.place === run().times.place; // times of two places are not compared
  const points = R.flatMap((r, q) => r.sizes.map((s, i) => ({ q, r, s, i, cost: s[key], y: last(r)[i] }))).filter(p => p.cost != null && p.y != null && here(p.r));
  if (!k || !points.length) { instead($.fronts, k && key === "latency" ? "No times of this run are known." : "Nothing has been evaluated yet."); return $.answer.replaceChildren(); }
  const costs = points.map(p => p.cost), [low, high] = [least(costs), most(costs)], budget = Math.exp(Math.log(low) + Math.log(high / low) * S.budget) * 1.0001;
  const own = points.filter(p => p.q === S.run), found = chosen(own, budget, k.queries), traces = [], of = [];
  R.forEach((r, q) => { // nothing cheaper than the front is better
    let top = -1;
    const mine = points.filter(p => p.q === q), front = [...mine].sort((a, b) => a.cost - b.cost || b.y - a.y).filter(p => p.y > top && (top = p.y, true));
    traces.push({ x: front.map(p => p.cost), y: front.map(p => p.y), mode: "lines", line: { shape: "hv", width: 1.8, color: R.length > 1 ? ofRun(q) : css("--soft") }, opacity: q === S.run ? 1 : 0.6, hoverinfo: "skip" });
    of.push([]);
    const lit = p => (S.width == null || p.s.width === S.width) && (S.depth == null || p.s.depth === S.depth) && p.cost <= budget;
    traces.push({
      x: mine.map(p => p.cost), y: mine.map(p => p.y), mode: "markers+text", hoverinfo: "none", text: mine.map(p => q === S.run ? label(p.s.name) : ""), textposition: "bottom center", textfont: { color: css("--ink") }, cliponaxis: false,
      marker: { size: points.length > 200 ? 7 : 10, symbol: q % 2 ? "square" : "circle", color: mine.map(p => R.length > 1 ? ofRun(q) : shade(p.s.width, widths)), opacity: mine.map(p => lit(p) ? 1 : 0.25), line: { width: 1, color: css("--card") } },
    });
    of.push(mine);
  });
  if (found) {
    const { best, error: e } = found;
    traces.push({ x: [best.cost], y: [best.y], mode: "markers", hoverinfo: "skip", marker: { size: 17, symbol: "circle-open", color: css("--ink"), line: { width: 2 } }, error_y: { type: "data", array: [e], color: css("--ink"), thickness: 1.4, width: 4 } });
  }
  const line = { type: "line", x0: budget, x1: budget, yref: "paper", y0: 0, y1: 1, line: { color: css("--accent"), width: 2, dash: "5px,3px" } };
  const xaxis = { type: "log", title: { text: `${COST[key]}${key === "gflops" ? ` at ${run().crop} px` : key === "latency" ? " of a batch" : ""} (logarithmic)` }, range: [Math.log10(low) - 0.03 - 0.03 * Math.log10(high / low), Math.log10(high) + 0.03 + 0.03 * Math.log10(high / low)], tickformat: "~s", dtick: "D2" };
  $.fronts.sizes = of;
  plot($.fronts, traces, layout($.fronts.clientWidth < 500 ? 320 : 400, { xaxis, yaxis: { ticksuffix: " %" }, shapes: [line], margin: { l: 50, r: 24, t: 12, b: 46 } }), ({ curve, index }) => {
    const p = of[curve]?.[index];
    return p && [[named(p.s, p.r)], [`${percent(p.y)} % ± ${error(p.y, k.queries).toFixed(1)}`], about(p.s)];
  }, `${measure()} accuracy against ${COST[key]}; the table below has the same numbers`);
  answer(found, budget, k);
}
function dots(box, lit) { // the same for the dots of all runs
  box.classList.toggle("dim", lit !== null);
  if (!lit) return;
  box.querySelectorAll(".scatterlayer > .trace").forEach((trace, curve) => {
    const own = box.sizes[curve] ?? [];
    trace.classList.toggle("lit", true);
    trace.querySelectorAll(".points > path").forEach((dot, i) => dot.classList.toggle("away", !!own.length && !lit(own[i].s)));
  });
}
const label = name => name.replace(/[<>&]/g, c => ({ "<": "‹", ">": "›", "&": "＆" })[c]); // plotly reads a little HTML
function answer(found, budget, k) {
  if (!found) return $.answer.replaceChildren("No evaluated size of this run is within this budget.");
  const { best, error: e, cheapest, paired } = found, command = `poa-ds extract ${run().shell} --size ${cheapest.s.size} --out ${cheapest.s.size}`;
  const other = cheapest === best ? "No cheaper size comes as near." : [el("b", { class: "cheapest" }, cheapest.s.size), ` (${percent(cheapest.y)} %) is not shown to be worse${paired == null ? "" : `, query by query (± ${paired.toFixed(1)})`}, at ${(100 * cheapest.cost / best.cost).toFixed(0)} % of the ${COST[S.cost]}.`];
  const { place, unsteady } = run().times, where = S.cost !== "latency" || !place ? null : `Measured on ${place}${unsteady.length ? `; not steady: ${unsteady.join(", ")}` : ""}.`;
  $.answer.replaceChildren(
    el("div", {}, `Up to ${short(budget / 1.0001)} ${COST[S.cost]}: `, el("b", { class: "best" }, best.s.size), ` reaches ${percent(best.y)} % (± ${e.toFixed(1)} on ${count(k.queries)} queries, 95 %) with ${about(best.s)}. `, other),
    ...(where ? [el("p", { class: "why small-print" }, where)] : []),
    el("div", { class: "bar", style: "margin:6px 0 0" }, el("code", {}, command), el("button", { class: "noprint", onclick: async event => {
      const button = event.target;
      try { await navigator.clipboard.writeText(command); button.textContent = "copied"; } catch { getSelection().selectAllChildren(button.previousSibling); button.textContent = "selected"; }
    } }, "copy")));
}

function curves() {
  const several = R.length > 1, all = R.flatMap((r, q) => readout(r) ? r.sizes.map((s, i) => ({ q, r, s, i, k: readout(r) })) : []);
  if (!all.length) { $.curvesWhy.textContent = ""; return instead($.curves, "No evaluation yet."); }
  const shades = S.by === "width" ? widths : depths, others = S.by === "width" ? depths : widths;
  const lines = all.filter(l => (!S.few || l.s.name || S.width != null || S.depth != null) && (S.width == null || l.s.width === S.width) && (S.depth == null || l.s.depth === S.depth));
  const traces = lines.map(l => ({
    x: l.k.steps, y: l.k.values.map(row => row[l.i] == null || (S.minus && l.k.random[l.i] == null) ? null : row[l.i] - (S.minus ? l.k.random[l.i] : 0)),
    mode: l.k.steps.length < 12 ? "lines+markers" : "lines", connectgaps: true, hoverinfo: "none", marker: { size: l.k.steps.length < 2 ? 9 : 5, symbol: several && l.q % 2 ? "square" : "circle" },
    line: { color: several ? ofRun(l.q) : shade(l.s[S.by], shades), dash: several ? DASHES[l.q % 6] : others.length <= 6 ? DASHES[others.indexOf(l.s[S.by === "width" ? "depth" : "width"])] : "solid", width: all.length > 60 && !S.few ? 1 : 1.8 },
  }));
  const ends = present(traces.map(t => t.y.at(-1))), heights = present(traces.flatMap(t => t.y)), k = readout() ?? all[0].k, steps = [least(traces.flatMap(t => t.x)), most(traces.flatMap(t => t.x))];
  const along = steps[0] < steps[1] ? steps : [steps[0] - 1, steps[0] + 1]; // else they would be dots that hide a size's
  const floors = [], lower = under([], marks(run())), flat = (y, name, colour) => {
    floors.push(name);
    traces.push({ x: along, y: [y, y], mode: "lines", line: { color: css(colour), dash: "3px,4px", width: 1.6 }, hoverinfo: "none" });
    lower.annotations.push({ x: 1, xref: "paper", xanchor: "right", y, yanchor: "bottom", text: name, showarrow: false, font: { size: 11, color: css(colour) } });
  };
  let low = least(heights), off = "";
  if (S.minus) flat(0, "random weights", "--floor");
  else {
    const random = present(k.random);
    if (random.length) { flat(most(random), "best size with random weights", "--floor"); low = Math.min(low, ...random); }
    if (k.pixels != null && k.pixels > low - 0.6 * (most(heights) - low)) flat(k.pixels, "raw pixels", "--pixels");
    else if (k.pixels != null) off = `Raw pixels, ${percent(k.pixels)} %, lie below this chart. `;
  }
  $.curvesWhy.textContent = `${off}${ends.length ? `${ends.length} lines end between ${percent(least(ends))} and ${percent(most(ends))}. ` : ""}A difference below about ± ${error(Math.max(most(last()), 0), k.queries).toFixed(1)} points is noise of the ${count(k.queries)} queries. Point at a line; drag to zoom, double-click to see all.`;
  $.curves.dims = true;
  const xaxis = steps[0] < steps[1] ? { tickformat: "~s" } : { tickvals: [steps[0]], ticktext: [`step ${count(steps[0])}`] }; // of one evaluation
  $.curves.lines = lines;
  plot($.curves, traces, layout(innerWidth < 600 ? 330 : 440, { xaxis, yaxis: { ticksuffix: S.minus ? "" : " %" }, ...lower }), ({ curve, index }, p) => {
    const l = lines[curve];
    if (!l) return [floors[curve - lines.length], [`${percent(p.y)}${S.minus ? "" : " %"}`]];
    const v = l.k.values[index][l.i], random = l.k.random[l.i], step = l.k.steps[index];
    const elsewhere = R.filter(o => o !== l.r).map(o => {
      const j = o.sizes.findIndex(s => s.size === l.s.size), x = readout(o)?.values[readout(o).steps.indexOf(step)]?.[j];
      return x == null ? null : `${o.name}: ${percent(x)} (${percent(x - v, true)})`;
    });
    return [[named(l.s, l.r)], [`${percent(v)} % at step ${count(step)}`], random == null ? null : `${percent(v - random, true)} over random weights`, about(l.s), ...elsewhere];
  }, `${measure()} accuracy of every size over steps; the table below has the last values`);
}

function heat() {
  const r = run(), k = readout(), n = k?.steps.length ?? 0;
  $.slider.disabled = $.play.disabled = n < 2;
  if (!n) { $.stepText.textContent = ""; return instead($.heat, "No evaluation yet."); }
  const at = S.at < 0 || S.at >= n ? n - 1 : S.at, shown = (e, i) => {
    const v = k.values[e][i], minus = S.map === "gain" ? k.random[i] : S.map === "change" ? k.values[e - 1]?.[i] : 0;
    return v == null || minus == null ? null : v - minus;
  };
  const index = new Map(r.sizes.map((s, i) => [`${s.width}x${s.depth}`, i])), ds = depths.filter(d => r.sizes.some(s => s.depth === d)), ws = widths.filter(w => r.sizes.some(s => s.width === w)), aside = ds.length >= 25; // a column of 93 depths would be a page high
  const [xs, ys] = aside ? [ds, ws] : [ws, ds], cell = (x, y) => index.get(aside ? `${y}x${x}` : `${x}x${y}`);
  const z = ys.map(y => xs.map(x => cell(x, y) == null ? null : shown(at, cell(x, y)))), values = S.whole ? k.values.flatMap((_, e) => r.sizes.map((_, i) => shown(e, i))) : z.flat();
  const room = xs.length * 34 <= $.heat.clientWidth - 60, [lo, hi] = [least(values), most(values)];
  const trace = { type: "heatmap", x: xs.map(String), y: ys.map(String), z, zmin: lo, zmax: hi > lo ? hi : lo + 1, colorscale: [0, 0.25, 0.5, 0.75, 1].map(t => [t, viridis(t)]), hoverinfo: "none", xgap: 1, ygap: 1, ...(room ? { texttemplate: "%{z:.1f}" } : {}), colorbar: { thickness: 10, outlinewidth: 0, ticksuffix: S.map === "value" ? " %" : "" } };
  const titles = ["width (channels)", ds.some(d => d.includes("-")) ? "depth (blocks of the stages)" : "depth (blocks)"], [xt, yt] = aside ? titles.reverse() : titles;
  plot($.heat, [trace], layout(Math.max(240, Math.min(560, 30 * ys.length + 80)), { xaxis: { type: "category", title: { text: xt } }, yaxis: { type: "category", title: { text: yt } }, dragmode: false, margin: { l: 50, r: 10, t: 8, b: 46 } }), (_, p) => {
    const i = cell(...[p.x, p.y].map((v, a) => (a === 0) === aside ? v : +v));
    return i != null && [[named(r.sizes[i], r)], [`${percent(k.values[at][i])} % at step ${count(k.steps[at])}`], S.map === "value" ? null : `${percent(shown(at, i), true)} points`, about(r.sizes[i])];
  }, `width and depth at step ${k.steps[at]}; the table below has the last values`);
  // the sizes of that row and column stand out in the charts above
  $.heat.pointed = (place, p) => {
    const [width, depth] = place ? [p.x, p.y].map(String)[aside ? "reverse" : "slice"]() : [];
    const same = s => String(s.width) === width || s.depth === depth;
    if ($.curves.data) light($.curves, place && ((_, i) => i < $.curves.lines.length && same($.curves.lines[i].s)));
    if ($.fronts.data) dots($.fronts, place && (s => same(s)));
  };
  $.stepText.textContent = ` step ${count(k.steps[at])} `;
  Object.assign($.slider, { max: n - 1, value: at });
  $.slider.setAttribute("aria-valuetext", "step " + k.steps[at]);
}
