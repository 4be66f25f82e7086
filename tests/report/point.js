// Points at every curve, dot and cell, by mouse and by keyboard, moves the budget, and leaves what
// the page said in its document. PARTS: "all", "curves" alone, or nothing of this.
(async () => {
  const pause = (time = 150) => new Promise(go => setTimeout(go, time));
  const said = { curves: [], dots: {}, cells: [], answers: [] };
  const at = async (box, x, y) => { // the mouse really goes there
    const area = box.querySelector(".nsewdrag"), corner = area.getBoundingClientRect();
    const { xaxis, yaxis } = box._fullLayout;
    hide();
    const clientX = corner.left + xaxis.d2p(x), clientY = corner.top + yaxis.d2p(y);
    area.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY, bubbles: true }));
    await pause();
    return tip.hidden ? "" : tip.innerText;
  };
  const press = (box, key) => { box.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true })); return tip.innerText; };
  const walked = box => { // each line from its left end to its right
    const rows = paths(box).map(row => row.length), texts = [];
    box.place = null;
    rows.forEach((length, row) => {
      if (row) press(box, "ArrowDown");
      for (let i = 0; i < length; i++) press(box, "ArrowLeft");
      texts.push(press(box, "ArrowLeft"));
      for (let i = 1; i < length; i++) texts.push(press(box, "ArrowRight"));
    });
    press(box, "Escape");
    return tip.hidden ? texts : ["it is still there"];
  };
  for (const i of [...R.keys(), 0]) { // each run leads once
    S.run = i;
    draw();
    drawAll();
  }
  await pause();
  drawAll();
  await pause();
  const measured = readout() && PARTS === "all" ? [...run().sizes.keys()] : [];
  for (const e of PARTS ? readout()?.steps.keys() ?? [] : [])
    for (const c of run().sizes.keys()) {
      const { x, y } = $.curves.data[c];
      said.curves.push(await at($.curves, x[e], y[e]));
    }
  for (const cost of measured.length ? Object.keys(COST) : []) {
    S.cost = cost;
    for (const share of [0, 0.6, 1]) {
      $.budget.value = share;
      $.budget.oninput({ target: $.budget });
      said.answers.push([cost, $.fronts.layout.shapes[0].x0, $.answer.innerText]);
    }
    const { x, y } = $.fronts.data[1];
    said.dots[cost] = [];
    for (const i of measured) said.dots[cost].push(await at($.fronts, x[i], y[i]));
  }
  const { x: across = [], y: up = [] } = $.heat.data?.[0] ?? {};
  for (const e of measured.length ? readout().steps.keys() : []) {
    S.at = e;
    heat();
    for (const y of up.keys()) for (const x of across.keys()) said.cells.push(await at($.heat, x, y));
  }
  if (measured.length) { // the last cell's row and column stand out above
    said.lit = [...$.curves.querySelectorAll(".scatterlayer > .trace.lit")].length;
    said.near = [...$.fronts.querySelectorAll(".scatterlayer > .trace:nth-child(2) .points > path:not(.away)")].length;
    said.keys = { curves: walked($.curves), dots: walked($.fronts), cells: walked($.heat) };
    said.after = document.querySelectorAll(".plot.dim").length;
    S.at = -1;
    play();
    said.played = [];
    for (let i = 0; i < readout().steps.length + 1; i++) { said.played.push($.stepText.innerText.trim(), $.play.innerText); await pause(500); }
  }
  const loss = PARTS ? document.querySelector('[data-key="loss/total"]') : null, half = loss?.data[0].x.length >> 1;
  if (loss) await at(loss, loss.data[0].x[half], loss.data[0].y[half]);
  said.cursors = [...document.querySelectorAll(".cursor")].filter(line => !line.hidden).length;
  document.getElementById("theme").click();
  await pause();
  said.theme = [root.dataset.theme, getComputedStyle(document.body).backgroundColor];
  said.table = $.table.innerText;
  said.ahead = $.ahead.innerText;
  said.ended = document.querySelector(".state").innerText;
  said.wide = document.documentElement.scrollWidth - innerWidth;
  said.inner = innerWidth;
  said.wrong = wrong;
  said.bold = document.querySelectorAll("b[onmouseover]").length;
  said.asked = performance.getEntriesByType("resource").map(r => r.name);
  return said;
})().catch(fault => ({ fault: String(fault.stack) })).then(said => {
  document.body.replaceChildren(el("pre", { id: "said" }, JSON.stringify(said)));
  parent.postMessage(JSON.stringify(said), "*"); // to the page around it, where there is one
});
