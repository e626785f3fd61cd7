"use strict";
// Small drawings in SVG: the trend in a table row, and the plot of one tag with its forecast.

const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// values: 0..100 or null; holes stay holes
function sparkPath(values) {
  let path = "", pen = false;
  values.forEach((value, i) => {
    if (value === null) { pen = false; return; }
    path += `${pen ? "L" : "M"}${i} ${(100 - value).toFixed(0)}`;
    if (!pen && (i + 1 === values.length || values[i + 1] === null)) path += `L${i + 0.6} ${(100 - value).toFixed(0)}`;
    pen = true;
  });
  return path;
}

function spark(kind) {
  const svg = draw("svg", { viewBox: "0 -8 59 116", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(draw("path", { class: `spark ${kind || ""}` }));
  return svg;
}

function niceSteps(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999) || 10 * power;
  const steps = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) steps.push(n * step);
  return { steps, digits: Math.max(0, Math.min(8, -Math.floor(Math.log10(step) + 1e-9) + (Math.abs(step / power - 2.5) < 1e-9 ? 1 : 0))) };
}

function clockText(ms, seconds) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined, hour12: false });
}

// data: the body of /api/history; span: seconds back. Past and future have scales of their own:
// an hour behind and some seconds ahead would not fit on one.
function drawPlot(area, data, span, say) {
  const width = Math.max(300, area.clientWidth), height = Math.max(180, area.clientHeight);
  const points = data.points.filter((p) => p[0] > data.now - span * 1000 - data.bucket_ms);
  const ahead = data.forecast;
  const left = 56, right = 12, top = 8, bottom = 22;
  const future = ahead.length ? Math.round((width - left - right) * 0.22) : 0;
  const nowX = width - right - future;
  const begin = data.now - span * 1000;
  const horizon = ahead.length ? Math.max(...ahead.map((p) => p[0]), data.now + 1) - data.now : 1;
  const x = (ms) => ms <= data.now
    ? left + (Math.max(ms, begin) - begin) / (data.now - begin) * (nowX - left)
    : nowX + (ms - data.now) / horizon * future;

  const numbers = [...points.flatMap((p) => [p[1], p[2]]), ...ahead.flatMap((p) => [p[1], p[2], p[3]])];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${data.device}/${data.tag} over time` });
  area.replaceChildren(svg);
  if (!numbers.length) {
    svg.append(draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing recorded yet"));
    say("");
    return;
  }
  let low = Math.min(...numbers), high = Math.max(...numbers);
  const room = (high - low) * 0.08 || Math.max(Math.abs(high) * 0.01, 0.5);
  low -= room; high += room;
  const y = (value) => top + (high - value) / (high - low) * (height - top - bottom);

  if (future) svg.append(draw("rect", { class: "future", x: nowX, y: top, width: future, height: height - top - bottom }));
  const { steps, digits } = niceSteps(low, high, Math.max(3, Math.floor(height / 60)));
  for (const value of steps) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)));
  }
  for (const bound of data.range || []) {
    if (bound > low && bound < high) svg.append(draw("line", { class: "bound", x1: left, x2: width - right, y1: y(bound), y2: y(bound) }));
  }
  const every = [60, 120, 300, 600, 900, 1800].find((s) => span / s <= (nowX - left) / 72) * 1000;
  for (let ms = Math.ceil(begin / every) * every; ms < data.now; ms += every) {
    if (nowX - x(ms) > 34 && x(ms) - left > 12) svg.append(draw("text", { x: x(ms), y: height - 6, "text-anchor": "middle" }, clockText(ms)));
  }
  svg.append(draw("text", { x: nowX, y: height - 6, "text-anchor": future ? "middle" : "end" }, "now"));
  if (future) {
    const seconds = horizon / 1000;
    const words = seconds >= 120 ? `+${(seconds / 60).toFixed(0)} min` : `+${seconds >= 10 ? seconds.toFixed(0) : seconds.toFixed(1)} s`;
    svg.append(draw("text", { x: width - right, y: height - 6, "text-anchor": "end" }, words));
    svg.append(draw("line", { class: "now", x1: nowX, x2: nowX, y1: top, y2: height - bottom }));
  }

  const middle = (p) => Math.min(p[0] + data.bucket_ms / 2, data.now);
  for (const run of runs(points, data.bucket_ms * 1.5)) {
    const upper = run.map((p) => `${x(middle(p)).toFixed(1)},${y(p[2]).toFixed(1)}`);
    const lower = run.map((p) => `${x(middle(p)).toFixed(1)},${y(p[1]).toFixed(1)}`).reverse();
    svg.append(draw("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
    if (run.length === 1) svg.append(draw("circle", { class: "knot", r: 2, cx: x(middle(run[0])), cy: y(run[0][3]) }));
    svg.append(draw("polyline", { class: "curve", points: run.map((p) => `${x(middle(p)).toFixed(1)},${y(p[3]).toFixed(1)}`).join(" ") }));
  }
  const newest = points[points.length - 1];
  if (ahead.length && newest) {
    const start = [data.now, newest[3], newest[3], newest[3]];
    const fan = newest[0] > data.now - 2 * data.bucket_ms ? [start, ...ahead] : ahead;
    const later = fan.filter((p) => p[0] >= data.now);
    const at = (p, i) => `${x(p[0]).toFixed(1)},${y(p[i]).toFixed(1)}`;
    svg.append(draw("polygon", { class: "fan", points: [...later.map((p) => at(p, 3)), ...later.map((p) => at(p, 2)).reverse()].join(" ") }));
    svg.append(draw("polyline", { class: "ahead", points: later.map((p) => at(p, 1)).join(" ") }));
  }

  const cursor = draw("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const knot = draw("circle", { class: "knot", r: 3.5, visibility: "hidden" });
  svg.append(cursor, knot);
  const marks = [
    ...points.map((p) => ({ x: x(middle(p)), value: p[3], later: false, words: `${clockText(p[0], true)}   last ${short(p[3])}   between ${short(p[1])} and ${short(p[2])}` })),
    ...ahead.filter((p) => p[0] >= data.now).map((p) => ({ x: x(p[0]), value: p[1], later: true, words: `forecast for +${((p[0] - data.now) / 1000).toFixed(1)} s   ${short(p[1])}   between ${short(p[2])} and ${short(p[3])}` })),
  ];
  const rest = ahead.length ? "band: lowest and highest of each ten seconds   ·   beyond now: forecast and its interval, on a time scale of its own" : "band: lowest and highest of each ten seconds";
  say(rest);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * width / box.width;
    const mark = marks.reduce((best, one) => Math.abs(one.x - at) < Math.abs(best.x - at) ? one : best);
    for (const [element, values] of [[cursor, { x1: mark.x, x2: mark.x }], [knot, { cx: mark.x, cy: y(mark.value), class: mark.later ? "knot later" : "knot" }]]) {
      for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
      element.setAttribute("visibility", "visible");
    }
    say(mark.words);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    knot.setAttribute("visibility", "hidden");
    say(rest);
  });

  function short(value) { return formatNumber(value) + (data.unit ? ` ${data.unit}` : ""); }
}

function runs(points, longest) {
  const found = [];
  points.forEach((point, i) => {
    if (i && point[0] - points[i - 1][0] <= longest) found[found.length - 1].push(point);
    else found.push([point]);
  });
  return found;
}

function formatNumber(value) {
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e9 || size < 1e-4) return value.toPrecision(4);
  return value.toFixed(size >= 1000 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4);
}
