"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("timeline");
  if (!canvas || !data.bars.length) return;
  const bars = data.bars, rows = data.rows, height = 22, left = 130, top = 22;
  const hue = (stage) => `hsl(${(stage * 137.5) % 360} 62% 52%)`;
  const legend = document.getElementById("legend");
  data.stages.forEach((name, stage) => {
    const entry = document.createElement("span"), mark = document.createElement("i");
    mark.style.background = hue(stage);
    entry.append(mark, document.createTextNode(name));
    legend.append(entry);
  });
  let end = 1;
  for (let i = 0; i < bars.length; i += 4) end = Math.max(end, bars[i + 2] + bars[i + 3]);
  let from = 0, to = end, grabbed = null;
  canvas.style.height = `${Math.min(900, top + rows.length * height + 6)}px`;

  const time = (us) => us >= 1e6 ? `${+(us / 1e6).toPrecision(4)} s` : us >= 1e3 ? `${+(us / 1e3).toPrecision(4)} ms` : `${Math.round(us)} us`;
  const wide = () => canvas.clientWidth - left;
  const step = () => Math.min(height, (canvas.clientHeight - top) / rows.length);

  function draw() {
    const ratio = window.devicePixelRatio || 1, look = getComputedStyle(document.body);
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    const scale = wide() / (to - from), high = step();
    for (let i = 0; i < bars.length; i += 4) {
      const x = left + (bars[i + 2] - from) * scale, w = Math.max(0.7, bars[i + 3] * scale);
      if (x + w < left || x > canvas.clientWidth) continue;
      pen.fillStyle = hue(bars[i + 1]);
      const begin = Math.max(left, x);
      pen.fillRect(begin, top + bars[i] * high + 1, x + w - begin, Math.max(1, high - 3));
    }
    pen.fillStyle = look.color;
    rows.forEach((name, row) => { if (high >= 9 || row % Math.ceil(9 / high) === 0) pen.fillText(name.slice(0, 20), 4, top + row * high + Math.min(14, high)); });
    for (let i = 0; i <= 5; i++) {
      const x = left + wide() * i / 5;
      pen.fillText(time(from + (to - from) * i / 5), Math.min(x, canvas.clientWidth - 60), 13);
      pen.globalAlpha = 0.15;
      pen.fillRect(x, top - 4, 1, canvas.clientHeight);
      pen.globalAlpha = 1;
    }
  }
  const at = (event) => from + (event.offsetX - left) / wide() * (to - from);
  function show(event) {
    const us = at(event), row = Math.floor((event.offsetY - top) / step()), slack = (to - from) / wide();
    let found = "";
    for (let i = 0; i < bars.length; i += 4)
      if (bars[i] === row && us >= bars[i + 2] - slack && us <= bars[i + 2] + bars[i + 3] + slack)
        found = `${rows[row]}: ${data.stages[bars[i + 1]]}, ${time(bars[i + 3])}, from ${time(bars[i + 2])}`;
    document.getElementById("tip").textContent = found;
  }
  function move(a, b) {
    const span = Math.min(end, Math.max(1, b - a));
    from = Math.max(0, Math.min(a, end - span));
    to = from + span;
    draw();
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const us = at(event), by = event.deltaY > 0 ? 1.25 : 0.8;
    move(us - (us - from) * by, us + (to - us) * by);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { grabbed = at(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { grabbed = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (grabbed === null) return show(event);
    const by = grabbed - at(event);
    move(from + by, to + by);
  });
  canvas.addEventListener("dblclick", () => move(0, end));
  window.addEventListener("resize", draw);
  draw();
})();
