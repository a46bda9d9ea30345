"use strict";
(() => {
  document.documentElement.classList.add("js");

  // Tables: a heading's button sorts, a second press turns the order round; what is not there stays below.
  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return a.localeCompare(b);
    return x < y ? -1 : x > y ? 1 : 0;
  }

  function sort(heading, direction) {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [a.cells[column].dataset.sort, b.cells[column].dataset.sort];
      return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
    });
    table.tBodies[0].append(...rows);
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction);
  }

  for (const button of document.querySelectorAll("th[aria-sort] button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      sort(heading, heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
    });
  }

  // Hardware: every time to the target again, with the model's part of each seed R times as fast.
  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  function fill(cell, value, text) {
    cell.dataset.sort = value === null ? "" : String(value);
    cell.textContent = value === null ? "–" : text;
  }

  function rank(table, speed) {
    const lines = [...table.tBodies[0].rows].map((row) => {
      const seeds = JSON.parse(row.dataset.seeds);
      const times = seeds.map((seed) => (seed.reached ? seed.model / speed + seed.optimizer : Infinity));
      return { row, time: times.length ? median(times) : null };
    });
    const base = lines.find((line) => "baseline" in line.row.dataset);
    const reached = lines.filter((line) => line.time !== null && line.time < Infinity);
    reached.sort((a, b) => a.time - b.time);
    for (const { row, time } of lines) {
      const place = time < Infinity ? 1 + reached.filter((other) => other.time < time).length : null;
      const faster = base && base.time < Infinity && time < Infinity && time > 0 ? base.time / time : null;
      fill(row.querySelector(".rank"), time === null ? null : place, String(place));
      fill(row.querySelector(".time"), time, time < Infinity ? time.toFixed(2) : "not reached");
      fill(row.querySelector(".faster"), faster, faster === null ? "" : `${faster.toFixed(2)}×`);
    }
    const sorted = table.querySelector("th[aria-sort$='ending']");
    if (sorted) sort(sorted, sorted.getAttribute("aria-sort"));
    const names = reached.map((line, i) => `${i + 1}. ${line.row.dataset.name}`);
    table.closest("details").querySelector(".ranking").textContent =
      names.length ? `With R = ${speed}: ${names.join(", ")}.` : "No optimizer reaches the target.";
  }

  for (const input of document.querySelectorAll("input.speed")) {
    const table = input.closest("details").querySelector("table.hardware");
    const recompute = () => {
      const speed = Number(input.value);
      const valid = input.value !== "" && speed > 0 && speed < Infinity;
      input.setAttribute("aria-invalid", String(!valid));
      if (valid) rank(table, speed);
    };
    input.addEventListener("input", recompute);
    recompute();
  }

  // Plots: drawn when they come near the screen, in the colours of the scheme.
  const scheme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // On a phone the first plot alone has a legend, of the curves that are shown.
  const phone = matchMedia("(max-width: 40rem)");
  function listed(spec, axis) {
    if (!phone.matches) return spec.curves;
    return axis === "steps" ? spec.curves.filter((curve) => curve.shown) : [];
  }

  function traces(spec, axis) {
    const named = new Set(listed(spec, axis));
    const found = [];
    for (const curve of spec.curves) {
      const colour = curve.colour ?? scheme("--ink");
      const visible = curve.shown || "legendonly";
      const shared = { name: curve.name, legendgroup: curve.name, visible, showlegend: named.has(curve) };
      const x = curve[axis];
      if (curve.low) {
        found.push({
          ...shared, x: x.concat([...x].reverse()), y: curve.high.concat([...curve.low].reverse()), mode: "lines",
          fill: "toself", fillcolor: colour, opacity: 0.18, line: { width: 0 }, showlegend: false, hoverinfo: "skip",
        });
      }
      const line = { ...shared, x, y: curve.loss, mode: "lines", line: { color: colour, width: 2, dash: curve.dash } };
      if (curve.symbol) {
        line.mode = "lines+markers";
        line.marker = { symbol: curve.symbol, size: 7, color: colour, maxdisplayed: 12 };
      }
      found.push(line);
    }
    if (spec.target !== null && found.length) {
      const ends = [0, Math.max(...spec.curves.map((curve) => curve[axis].at(-1)))];
      const line = { color: scheme("--ink"), width: 1, dash: "dot" };
      const y = [spec.target, spec.target];
      found.push({ name: "target", x: ends, y, mode: "lines", line, hoverinfo: "y", showlegend: named.size > 0 });
    }
    return found;
  }

  // The legend stands below the axis; the plot keeps its 300 pixels however many rows the legend takes.
  function layout(spec, axis, width) {
    const names = listed(spec, axis).map((curve) => curve.name);
    let [rows, end] = [0, Infinity];
    for (const name of names.length ? [...names, "target"] : []) {
      const length = 50 + 6.5 * name.length;
      if (end + length > width - 70) [rows, end] = [rows + 1, 0];
      end += length;
    }
    const lines = { gridcolor: scheme("--line"), linecolor: scheme("--soft"), zeroline: false };
    const title = axis === "steps" ? "optimizer steps" : "seconds of training";
    return {
      height: 30 + 300 + 65 + 25 * rows,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: scheme("--ink"), family: "system-ui, sans-serif" },
      margin: { l: 60, r: 10, t: 30, b: 65 + 25 * rows },
      legend: { orientation: "h", yanchor: "top", y: -60 / 300 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: scheme("--soft"), activecolor: scheme("--ink") },
      xaxis: { ...lines, title: { text: title } },
      yaxis: {
        ...lines, title: { text: "training loss, smoothed" }, exponentformat: "power",
        type: spec.logarithmic ? "log" : "linear", tickformat: "~g",
      },
    };
  }

  // Named one by one: among plotly's own choice is a button that sends the chart to a server.
  const BUTTONS = [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]];
  const drawn = new Set();
  function draw(place) {
    const spec = JSON.parse(document.getElementById(place.dataset.curves).textContent);
    if (!spec.curves.length) return;
    drawn.add(place);
    const { axis } = place.dataset;
    Plotly.react(place, traces(spec, axis), layout(spec, axis, place.clientWidth), { responsive: true, displaylogo: false, modeBarButtons: BUTTONS });
  }

  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "500px" });
  for (const place of document.querySelectorAll(".plot")) watch.observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
})();
