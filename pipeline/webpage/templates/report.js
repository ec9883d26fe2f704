"use strict";
// Draws the map of tiles, and shows the figures of the one that is chosen. All else on the page works without it.
(async () => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const by = (id) => document.getElementById(id);
  const root = document.documentElement;

  for (const [id, name] of [["colour-blind-choice", "colour-blind"], ["overlay-choice", "no-overlay"]]) {
    by(id)?.addEventListener("change", (event) => {
      root.classList.toggle(name, event.target.checked === (name === "colour-blind"));
    });
  }
  by("alpha")?.addEventListener("input", (event) => root.style.setProperty("--alpha", event.target.value / 100));

  const canvas = by("map");
  if (!canvas) return;

  const { cells: [depth, height, width], group, side, columns } = report.map;
  const VIRIDIS = [0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725];
  const slider = by("slice"), measure = by("measure");
  const [, rows, wide] = report.shape;
  const [, high, across] = report.voxel_size_um ?? [1, 1, 1];
  let [z, y, x] = report.start, said = z;

  // The pictures work without the map.
  const dialog = by("enlarged");
  for (const button of document.querySelectorAll(".tiles button")) {
    button.addEventListener("click", () => {
      const cell = button.dataset.cell.split(",").map(Number);
      choose([cell[0], Math.floor(cell[1] / group), Math.floor(cell[2] / group)]);
      by("enlarged-picture").replaceChildren(button.querySelector("svg").cloneNode(true));
      by("enlarged-words").textContent = button.parentElement.querySelector("figcaption").textContent;
      showLine("enlarged-line", button.dataset.at);
      dialog.showModal();
    });
  }
  by("to-map").addEventListener("click", () => {
    dialog.close();
    canvas.scrollIntoView({ block: "center" });
    canvas.focus();
  });

  try {
    for (const column of Object.values(columns)) column.values = await unpack(column);
  } catch (error) {
    const warning = document.createElement("p");
    warning.className = "warning";
    warning.textContent = `The map needs a newer browser (${error}); all else on this page does not.`;
    canvas.closest(".map").replaceWith(warning);
    for (const useless of [slider.closest(".controls"), by("map-note"), by("chart-note"), by("slice-words"), by("to-map")]) useless.remove();
    return;
  }

  async function unpack({ step, data }) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const plain = await new Response(stream).arrayBuffer();
    return step ? new Uint8Array(plain) : new Float64Array(plain);
  }

  function value(name, index) {
    const column = columns[name];
    if (!column) return NaN;
    const code = column.values[index];
    if (!column.step) return code;
    return code ? column.low + (code - 1) * column.step : NaN;
  }

  // Colours go from the lowest to the highest of all slices; a score's are the same in every report.
  const limits = { mcc: [0, 1] };
  function span(name) {
    if (!limits[name]) {
      let low = Infinity, top = -Infinity;
      for (let at = 0; at < depth * height * width; at++) {
        const found = value(name, at);
        if (found < low) low = found;
        if (found > top) top = found;
      }
      limits[name] = [low, top];
    }
    return limits[name];
  }

  function colour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), first = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const mix = (shift) => {
      const a = (VIRIDIS[first] >> shift) & 255, b = (VIRIDIS[first + 1] >> shift) & 255;
      return Math.round(a + (b - a) * (place - first));
    };
    return `rgb(${mix(16)} ${mix(8)} ${mix(0)})`;
  }

  const position = () => (z * height + y) * width + x;

  // A cell's corners on the canvas: those at the far edges are smaller, as their tiles are.
  function place(row, column) {
    const right = Math.min((column + 1) * side, wide), bottom = Math.min((row + 1) * side, rows);
    const scale = [canvas.width / wide, canvas.height / rows];
    return [column * side * scale[0], row * side * scale[1], (right - column * side) * scale[0], (bottom - row * side) * scale[1]];
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.width * rows * high / (wide * across)));
    const pen = canvas.getContext("2d"), style = getComputedStyle(root), name = measure.value;
    const of = (variable) => style.getPropertyValue(`--${variable}`).trim();
    const [low, top] = name === "flags" ? [0, 1] : span(name);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const index = (z * height + row) * width + column, state = report.states[value("state", index)];
        const found = name === "flags" ? Math.min(1, value(name, index)) : value(name, index);
        const [left, upper, w, h] = place(row, column);
        pen.fillStyle = ["absent", "pending", "failed"].includes(state) ? of(state)
          : Number.isNaN(found) ? of("paper") : colour(top > low ? (found - low) / (top - low) : 0.5);
        pen.fillRect(left, upper, w + 0.5, h + 0.5);
        if (state === "failed" || (Number.isNaN(found) && state !== "absent")) cross(pen, left, upper, w, h, of("soft"), state === "failed");
      }
    }
    const [left, upper, w, h] = place(y, x);
    for (const [line, shade] of [[5, "#000"], [2.5, "#fff"]]) {
      pen.lineWidth = line * ratio;
      pen.strokeStyle = shade;
      pen.strokeRect(left + 2 * ratio, upper + 2 * ratio, w - 4 * ratio, h - 4 * ratio);
    }
    by("low").textContent = { flags: "like the others", mcc: "0 or less" }[name] ?? written(name, low);
    by("top").textContent = { flags: "unlike them", mcc: "1" }[name] ?? written(name, top);
  }

  function cross(pen, left, upper, w, h, shade, both) {
    pen.strokeStyle = shade;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(left, upper + h);
    pen.lineTo(left + w, upper);
    if (both) { pen.moveTo(left, upper); pen.lineTo(left + w, upper + h); }
    pen.stroke();
  }

  function written(name, found) {
    if (!Number.isFinite(found)) return "none";
    const step = columns[name]?.step ?? 0, about = step && step !== 1 ? "about " : "";
    if (name === "vessel") return `${about}${(100 * found).toFixed(2)} %`;
    if (name === "mcc") return about + found.toFixed(about ? 2 : 4).replace("-", "\u2212");
    return about + (Number.isInteger(found) ? found.toLocaleString("en-US") : found.toFixed(1));
  }

  // A number of a cell. An MCC is 0 / 0 where truth or mask has one class; what it is then is by a rule.
  function number(name, index) {
    const [tp, fp, fn, tn] = ["tp", "fp", "fn", "tn"].map((kind) => value(kind, index));
    const undefinedScore = name === "mcc" && [tp + fp, tp + fn, tn + fp, tn + fn].includes(0);
    return written(name, value(name, index)) + (undefinedScore ? " (undefined)" : "");
  }

  const unusual = (flags) => report.flags.filter((_, bit) => flags & (1 << bit)).join(", ") || "nothing";
  const NAMES = { mcc: "MCC", level: "Level", vessel: "Vessel", tp: "Found (TP)", fp: "Too much (FP)", fn: "Missed (FN)", tn: "Background (TN)" };

  function show() {
    const index = position(), right = Math.min((x + 1) * side, wide), bottom = Math.min((y + 1) * side, rows);
    const facts = [
      ["Tile", group > 1 ? `slice ${z}, ${group} × ${group} tiles` : `slice ${z}, row ${y}, column ${x}`],
      ["Voxels", `y ${y * side} to ${bottom}, x ${x * side} to ${right}`],
      ["State", report.states[value("state", index)]],
      ...Object.entries(NAMES).filter(([name]) => columns[name]).map(([name, words]) => [words, number(name, index)]),
      ...(columns.flags ? [["Unusual", unusual(value("flags", index))]] : []),
    ];
    by("figures-list").replaceChildren(...facts.map(([name, words]) => {
      const entry = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      text.textContent = words;
      entry.append(term, text);
      return entry;
    }));
    showLine("view-line", `${z},${Math.floor((y * side + bottom) / 2)},${Math.floor((x * side + right) / 2)}`);
    canvas.dataset.cell = [z, y, x].join(",");
  }

  // A command in parts that no line should end inside of: "--" before a break would be typed as a word of its own.
  function options(line) {
    const parts = [];
    for (const [word] of line.matchAll(/(?:'[^']*'|"[^"]*"|[^\s'"])+/g)) {
      if (/^--\S+$/.test(parts.at(-1) ?? "")) parts.push(`${parts.pop()} ${word}`);
      else parts.push(word);
    }
    return parts;
  }

  function showLine(id, at) {
    by(id).replaceChildren(...options(`${report.view} --at ${at}`).flatMap((words, index) => {
      const whole = document.createElement("span");
      whole.textContent = words;
      return index ? [" ", whole] : [whole];
    }));
  }

  function showSlice() {
    slider.value = z;
    slider.setAttribute("aria-valuetext", `slice ${z}`);
    const profile = report.profile, known = (values) => values && values[z] !== null;
    const words = [
      known(profile.mcc) && `MCC ${profile.mcc[z].toFixed(4).replace("-", "\u2212")}${profile.undefined.includes(z) ? " (undefined)" : ""}`,
      known(profile.middle) && `median level ${Number(profile.middle[z].toFixed(2))}`,
      known(profile.vessel) && `${(100 * profile.vessel[z]).toFixed(2)} % vessel`,
    ].filter(Boolean);
    by("slice-words").textContent = `Slice ${z} (0 to ${depth - 1}): ${words.join(", ") || "nothing is known"}`;
    for (const chart of document.querySelectorAll(".profile svg.chart")) {
      const { left, right, low, high: last } = chart.dataset, frame = chart.viewBox.baseVal;
      let marker = chart.querySelector(".marker");
      if (!marker) {
        marker = document.createElementNS(chart.namespaceURI, "line");
        marker.setAttribute("class", "marker");
        marker.setAttribute("y1", 10);
        marker.setAttribute("y2", frame.height - 38);
        chart.append(marker);
      }
      const at = Number(left) + (z - low) / (last - low) * (right - left);
      marker.setAttribute("x1", at);
      marker.setAttribute("x2", at);
    }
  }

  // One sentence for who does not see the map, which is read out whenever it changes.
  function say() {
    const name = measure.value, index = position(), found = value(name, index), state = report.states[value("state", index)];
    const words = name === "flags" && Number.isFinite(found) ? unusual(found)
      : NAMES[name] && Number.isFinite(found) ? `${NAMES[name]} ${number(name, index)}` : state;
    by("tile-words").textContent = `${z === said ? "" : `slice ${z}, `}row ${y}, column ${x}: ${words}`;
    said = z;
  }

  function choose(next) {
    const bound = (number, length) => Math.min(Math.max(number, 0), length - 1);
    [z, y, x] = [bound(next[0], depth), bound(next[1], height), bound(next[2], width)];
    if (root.dataset.ready) update();
  }

  function update() {
    showSlice();
    show();
    draw();
    if (root.dataset.ready) say();
  }

  slider.addEventListener("input", () => choose([Number(slider.value), y, x]));
  measure.addEventListener("change", update);
  canvas.addEventListener("click", (event) => {
    const frame = canvas.getBoundingClientRect();
    const row = (event.clientY - frame.top) / frame.height * rows, column = (event.clientX - frame.left) / frame.width * wide;
    choose([z, Math.floor(row / side), Math.floor(column / side)]);
  });
  const moves = {
    ArrowLeft: () => [z, y, x - 1], ArrowRight: () => [z, y, x + 1], ArrowUp: () => [z, y - 1, x], ArrowDown: () => [z, y + 1, x],
    PageUp: () => [z - 1, y, x], PageDown: () => [z + 1, y, x], Home: () => [z, y, 0], End: () => [z, y, width - 1],
  };
  canvas.addEventListener("keydown", (event) => {
    if (!moves[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(moves[event.key]());
  });
  for (const chart of document.querySelectorAll(".profile svg.chart")) {
    chart.addEventListener("click", (event) => {
      const frame = chart.getBoundingClientRect(), { left, right, low, high: last } = chart.dataset;
      const at = (event.clientX - frame.left) / frame.width * chart.viewBox.baseVal.width;
      choose([Math.round(Number(low) + (at - left) / (right - left) * (last - low)), y, x]);
    });
  }

  window.addEventListener("resize", draw);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  update();
  root.dataset.ready = "true";
})();
