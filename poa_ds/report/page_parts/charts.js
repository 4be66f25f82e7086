// Charts: plotly draws, the page says what a point means. One tip for all, filled with text nodes.
const tip = el("div", { class: "tip", hidden: "", role: "status" });
function show(lines, event) { // [[text, bold]] each on a line of its own
  tip.replaceChildren(...lines.filter(l => l).map(l => el("div", {}, Array.isArray(l) ? el("b", {}, l[0]) : l)));
  tip.hidden = false;
  const b = tip.getBoundingClientRect(), { clientX: x = 0, clientY: y = 0 } = event ?? {};
  tip.style.left = Math.max(6, Math.min(innerWidth - b.width - 6, x + 14)) + "px";
  tip.style.top = Math.max(6, y + b.height + 20 > innerHeight ? y - b.height - 12 : y + 14) + "px";
}
const hide = () => tip.hidden = true;

const axis = more => ({ gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, exponentformat: "SI", ...more });
function layout(height, more = {}) {
  const { xaxis, yaxis, ...rest } = more;
  return {
    height, margin: { l: 44, r: 14, t: 10, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--soft"), size: 12, family: "system-ui, sans-serif" }, showlegend: false, hovermode: "closest", hoverdistance: 26,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // or a finger could not scroll the page
    xaxis: axis(xaxis), yaxis: axis(yaxis), ...rest,
  };
}
// told(point) gives the lines of the tip; point: {curve, index} of traces
function plot(box, traces, figure, told, label) {
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  const fresh = !box.data;
  if (fresh) box.replaceChildren();
  Plotly.react(box, traces, { ...figure, width: Math.max(200, box.clientWidth) }, { displayModeBar: false, displaylogo: false });
  box.told = told;
  if (!fresh) return;
  box.on("plotly_hover", e => {
    const p = e.points[0], of = box.querySelectorAll(".scatterlayer > .trace");
    const lines = box.told({ curve: p.curveNumber, index: p.pointIndex ?? p.pointNumber }, p);
    if (!lines) return;
    show(lines, e.event);
    if (box.dims) { // others step back: two classes, nothing is drawn again
      box.classList.add("dim");
      of.forEach((t, i) => t.classList.toggle("lit", i === p.curveNumber));
    }
  });
  box.on("plotly_unhover", () => { hide(); box.classList.remove("dim"); });
}

function instead(box, words) { // where there is nothing to draw
  if (box.data) Plotly.purge(box);
  box.replaceChildren(el("p", { class: "why" }, words));
}

const marks = r => r.events.map(e => ({ step: e.step, sign: { resume: "↻", alarm: "▲", skipped: "×", }[e.kind], bad: e.kind !== "resume" })).filter(m => m.sign);
// what lies under the lines of a chart over steps: zones where a sign is an alarm, and when things happened
function under(bounds, happened) {
  const zones = bounds.map(b => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: b.begins, y1: b.begins < b.ends ? -1e6 : 1e6, fillcolor: css("--bad"), opacity: 0.13, line: { width: 0 }, layer: "below" }));
  const limits = bounds.map(b => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: b.begins, y1: b.begins, line: { color: css("--bad"), width: 1, dash: "4px,4px" } }));
  const lines = happened.map(m => ({ type: "line", yref: "paper", x0: m.step, x1: m.step, y0: 0, y1: 1, line: { color: css(m.bad ? "--bad" : "--accent"), width: 1, dash: "dot" } }));
  const signs = happened.map(m => ({ x: m.step, y: 1, yref: "paper", yanchor: "top", xanchor: "left", text: m.sign, showarrow: false, font: { size: 11, color: css(m.bad ? "--bad" : "--accent") } }));
  return { shapes: [...zones, ...limits, ...lines], annotations: signs };
}

// many charts on one page: each is drawn when it comes into view
const waiting = new Map(), seen = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) drawNow(target);
}, { rootMargin: "300px" });
function drawNow(box) {
  const work = waiting.get(box);
  waiting.delete(box);
  seen.unobserve(box);
  if (box.isConnected) work?.(); // or another has taken its place
}
function soon(box, work) { waiting.set(box, work); seen.unobserve(box); seen.observe(box); }
const drawAll = () => [...waiting.keys()].forEach(drawNow);
