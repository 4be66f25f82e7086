// The page from top to bottom, its controls, and what makes it draw again.
function controls() {
  const again = () => { controls(); curves(); fronts(); }, several = R.length > 1;
  const all = (key, values) => few(key, key, [[null, "all"], ...values.map(v => [v, String(v), !several && S.by === key ? shade(v, values) : null])], again, 14);
  const legend = several ? el("span", { class: "group" }, R.map((r, q) => el("span", {}, el("span", { class: "swatch", style: `background:${ofRun(q)}` }), r.name, " "))) : null;
  const anyNamed = R.some(r => r.sizes.some(s => s.name));
  $.curveBar.replaceChildren(...[several ? null : group("colour by", "by", [["width", "width"], ["depth", "depth"]], again), all("width", widths), all("depth", depths), anyNamed ? group("sizes", "few", [[false, "all"], [true, "named"]], again) : null, group("show", "minus", [[false, "accuracy"], [true, "gain over random weights"]], again), legend].filter(Boolean));
  $.frontBar.replaceChildren(group("cost", "cost", Object.entries(COST), () => { controls(); fronts(); }), el("label", { class: "group noprint" }, el("em", {}, "budget"), $.budget));
  const map = () => { controls(); heat(); };
  $.heatBar.replaceChildren(group("show", "map", [["value", "accuracy"], ["gain", "gain over random"], ["change", "change since the last"]], map), group("colours span", "whole", [[false, "this step"], [true, "all steps"]], map));
}
function header() {
  const r = run(), ks = uniq(R.flatMap(x => x.readouts.map(o => o.k))).sort((a, b) => ofKnn(b) - ofKnn(a) || (ofKnn(a) ? a - b : a.localeCompare(b))), names = ks.every(ofKnn) ? "" : "k-NN, ";
  const state = `${r.sizes.length} sizes · step ${count(r.step)}${r.steps ? ` of ${count(r.steps)}` : ""} · ${r.ended || "running, or ended without a word"}`;
  $.header.replaceChildren(...[el("h1", {}, D.title), el("span", { class: "state" }, state), el("span", { class: "grow" }), R.length > 1 ? few("run", "run", R.map((x, i) => [i, x.name, ofRun(i)]), draw) : null, ks.length > 1 ? few(names ? "by" : "k-NN", "k", ks.map(k => [k, ofKnn(k) ? `${names}k = ${k}` : k]), draw) : null, el("button", { class: "noprint", id: "theme", "aria-label": "dark or light", onclick: () => { root.dataset.theme = dark() ? "light" : "dark"; draw(); } }, "◐")].filter(Boolean));
}
const bySeries = () => SERIES.forEach(([name, test]) => series($[name], test));
function draw() {
  header(); controls(); facts(); fronts(); curves();
  soon($.heat, heat);
  bySeries(); health(); ahead(); table(); happened(); measured(); recipe();
}
let playing = 0; // the evaluations one after the other in the heat map, until the last
function play(goes = !playing) {
  clearInterval(playing);
  playing = 0;
  $.play.textContent = goes ? "❚❚ pause" : "▶ play";
  if (!goes) return;
  const count = () => readout()?.steps.length ?? 0;
  if (S.at >= count() - 1) S.at = -1;
  const next = () => { S.at++; heat(); if (S.at >= count() - 1) play(false); };
  playing = setInterval(next, 500);
  next();
}
function start() {
  root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const place = (name, tag = "div", attributes = {}) => $[name] = el(tag, attributes);
  place("header", "header"); place("facts", "div", { class: "facts" }); place("curvesWhy", "p", { class: "why" }); place("answer", "div", { class: "answer", "aria-live": "polite" });
  for (const name of ["curveBar", "frontBar", "heatBar"]) place(name, "div", { class: "bar" });
  for (const name of ["fronts", "curves", "heat", "ahead", "table", "events", "measured", "recipe"]) place(name, "div", { class: "plot", "data-panel": name });
  for (const name of ["health", ...SERIES.map(([n]) => n)]) place(name, "div", { class: "small" });
  $.budget = el("input", { type: "range", min: 0, max: 1, step: 0.005, value: S.budget, "aria-label": "budget", oninput: e => { S.budget = +e.target.value; fronts(); } });
  $.slider = el("input", { type: "range", min: 0, max: 1, "aria-label": "step of the heat map", oninput: e => { play(false); S.at = +e.target.value; heat(); } });
  $.stepText = el("b");
  $.play = el("button", { class: "noprint", onclick: () => play() }, "▶ play");
  const smooth = el("label", { class: "bar noprint" }, el("input", { type: "checkbox", ...(S.smooth ? { checked: "" } : {}), onchange: e => { S.smooth = e.target.checked; bySeries(); } }), "smoothed (losses, gradients, probe, speed)");
  document.getElementById("page").append($.header, $.facts,
    card("Choose a size", "Each dot is a size; nothing cheaper than the line is better. Move the budget.", $.frontBar, $.fronts, $.answer),
    ...(R.length > 1 ? [card("Who is ahead", "", $.ahead)] : []),
    card("Accuracy of every size", $.curvesWhy, $.curveBar, $.curves),
    card("Width and depth", "Which side pays: wider or deeper?", $.heatBar, el("div", { class: "bar noprint" }, $.play, el("label", {}, $.slider, $.stepText)), $.heat),
    card("Is it learning?", "Signs of a collapse or a spike. Beyond the red line is an alarm, after the warm-up. ▲ an alarm began, × a step was skipped, ↻ the run went on.", $.health),
    ...SERIES.filter(([, test]) => keysOf(test).length).map(([name, , why]) => card(name, why, name === "Losses" ? smooth : null, $[name])),
    card("All numbers", "Click a heading to sort. The best is bold.", $.table),
    card("What happened", "", $.events), card("How it was measured", "", $.measured), card("Recipe", "", $.recipe));
  document.body.append(tip);
  draw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  addEventListener("scroll", hide, { passive: true });
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; draw(); drawAll(); });
  addEventListener("afterprint", () => { root.dataset.theme = before; draw(); });
  document.body.dataset.ready = Math.round(performance.now());
}
start();
