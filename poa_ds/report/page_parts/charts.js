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
  for (const [name, value] of Object.entries({ role: "application", "aria-roledescription": "chart", "aria-label": `${label}; arrow keys go from point to point`, tabindex: 0 })) box.setAttribute(name, value);
  const fresh = !box.data;
  if (fresh) box.replaceChildren();
  Plotly.react(box, traces, { ...figure, width: Math.max(200, box.clientWidth) }, { displayModeBar: false, displaylogo: false });
  Object.assign(box, { told, place: null });
  if (!fresh) return;
  box.on("plotly_hover", e => {
    const p = e.points[0];
    point(box, { curve: p.curveNumber, index: p.pointIndex ?? p.pointNumber }, p, e.event);
  });
  box.on("plotly_unhover", () => leave(box));
  box.onkeydown = e => walk(box, e);
  box.onblur = () => leave(box);
}
function point(box, at, p, event) { // says what stands there; whether anything does
  const lines = box.told(at, p);
  if (!lines) return false;
  show(lines, event);
  if (box.dims) light(box, (_, curve) => curve === at.curve);
  box.pointed?.(at, p);
  return true;
}
function leave(box) { hide(); light(box, null); box.pointed?.(null); }
// others step back: two classes, nothing is drawn again. Of a chart of dots each dot, else each line
function light(box, lit) {
  box.classList.toggle("dim", lit !== null);
  if (lit) box.querySelectorAll(".scatterlayer > .trace").forEach((t, i) => t.classList.toggle("lit", lit(t, i)));
}
// by keyboard: left and right along a line, up and down to the next one
function walk(box, event) {
  const turn = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Escape") return leave(box);
  if (!turn) return;
  event.preventDefault();
  const rows = paths(box);
  if (!rows.length) return;
  const clip = (i, n) => Math.max(0, Math.min(n - 1, i)), from = box.place ?? [0, -1];
  const row = clip(from[0] + turn[0], rows.length), next = box.place || turn[1] ? from[1] + turn[1] : 0;
  box.place = [row, clip(next, rows[row].length)];
  const { at, p } = rows[row][box.place[1]], { xaxis, yaxis } = box._fullLayout, area = box.querySelector(".nsewdrag").getBoundingClientRect();
  point(box, at, p, { clientX: area.left + xaxis.d2p(p.x), clientY: area.top + yaxis.d2p(p.y) });
}
function paths(box) { // of each line its points, left to right; of a heat map each row, the upper one first
  const told = ({ at, p }) => p.y != null && box.told(at, p);
  const rows = box.data.flatMap((t, curve) => t.type === "heatmap"
    ? t.y.map((y, r) => t.x.map((x, c) => ({ at: { curve, index: [r, c] }, p: { x, y } }))).reverse()
    : [[...t.x.keys()].map(index => ({ at: { curve, index }, p: { x: t.x[index], y: t.y[index] } })).sort((a, b) => a.p.x - b.p.x)]);
  return rows.map(row => row.filter(told)).filter(row => row.length);
}

function instead(box, words) { // where there is nothing to draw
  if (box.data) Plotly.purge(box);
  box.replaceChildren(el("p", { class: "why" }, words));
}

// one step in all small charts: a line in each that has come into view
function cursor(step) {
  for (const box of [...document.querySelectorAll(".small .plot")].filter(b => b.data)) {
    const { xaxis, _size: m } = box._fullLayout, x = step == null ? -1 : xaxis.d2p(step);
    const line = box.querySelector(":scope > .cursor") ?? box.appendChild(el("div", { class: "cursor" }));
    line.hidden = x < 0 || x > m.w;
    Object.assign(line.style, { left: `${m.l + x}px`, top: `${m.t}px`, height: `${m.h}px` });
  }
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
