// Points at every curve, dot and cell, moves the budget, and leaves what the page said in its document.
(async () => {
  const pause = () => new Promise(go => setTimeout(go, 150));
  const said = { curves: [], dots: [], cells: [], answers: [] };
  const at = async (box, x, y) => { // the mouse really goes there
    const area = box.querySelector(".nsewdrag"), corner = area.getBoundingClientRect();
    const { xaxis, yaxis } = box._fullLayout;
    hide();
    const clientX = corner.left + xaxis.d2p(x), clientY = corner.top + yaxis.d2p(y);
    area.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY, bubbles: true }));
    await pause();
    return tip.hidden ? "" : tip.innerText;
  };
  for (const i of [...R.keys(), 0]) { // each run leads once
    S.run = i;
    draw();
    drawAll();
  }
  await pause();
  drawAll();
  await pause();
  for (const e of readout()?.steps.keys() ?? [])
    for (const c of run().sizes.keys()) {
      const { x, y } = $.curves.data[c];
      said.curves.push(await at($.curves, x[e], y[e]));
    }
  for (const i of readout() ? run().sizes.keys() : []) {
    const { x, y } = $.fronts.data[1];
    said.dots.push(await at($.fronts, x[i], y[i]));
  }
  const { x: across = [], y: up = [] } = $.heat.data?.[0] ?? {};
  for (const y of up.keys()) for (const x of across.keys()) said.cells.push(await at($.heat, x, y));
  for (const share of [0, 0.5, 1]) {
    $.budget.value = share;
    $.budget.oninput({ target: $.budget });
    said.answers.push($.answer.innerText);
  }
  document.getElementById("theme").click();
  await pause();
  said.theme = [root.dataset.theme, getComputedStyle(document.body).backgroundColor];
  said.table = $.table.innerText;
  said.wide = document.documentElement.scrollWidth - innerWidth;
  said.inner = innerWidth;
  said.wrong = wrong;
  said.bold = document.querySelectorAll("b[onmouseover]").length;
  said.asked = performance.getEntriesByType("resource").map(r => r.name);
  document.body.replaceChildren(el("pre", { id: "said" }, JSON.stringify(said)));
  parent.postMessage(JSON.stringify(said), "*"); // to the page around it, where there is one
})();
