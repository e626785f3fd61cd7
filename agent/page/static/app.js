"use strict";
// The page: one message a second by server-sent events, drawn into elements that stay; nothing is loaded from elsewhere.

const $ = (id) => document.getElementById(id);
const QUALITY = { good: "good", uncertain: "warn", stale: "warn", missing: "warn" };
const STATE = { ok: "good", slow: "warn", degraded: "warn", silent: "bad", link: "bad" };
const LOST_AFTER = 5000;
const TREND = 60, YOUNG = 12; // values of a small trend; with fewer buckets than YOUNG the last minute is shown instead

let source = null, newest = 0, first = 0, sparks = {}, minute = new Map(), young = true, control = false, plotted = null, span = 3600;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// changes only what differs, so that a night's screen stays still
function put(element, text, className) {
  if (element.textContent !== text) element.textContent = text;
  if (className !== undefined && element.className !== className) element.className = className;
}

// as many children as there are items; `build` makes one, `fill` writes an item into it
function fill(parent, items, build, write) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(build());
  items.forEach((item, i) => write(parent.children[i], item));
}

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

function uptime(seconds) {
  const d = Math.floor(seconds / 86400), h = Math.floor(seconds / 3600) % 24, m = Math.floor(seconds / 60) % 60;
  if (d) return `${d} d ${h} h`;
  return h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(seconds)} s`;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let i = 0;
  while (count >= 1024 && i < 3) { count /= 1024; i++; }
  return `${i && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[i]}`;
}

const grouped = (number) => Number(number).toLocaleString("en").replaceAll(",", " ");
const ms = (value) => `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)} ms`;
const number = (value) => value === null || value === undefined ? "–" : formatNumber(value);

function listen() {
  if (source) source.close();
  const query = new URLSearchParams({ find: $("find").value.trim(), first: String(first), bad: $("bad").checked ? "1" : "0" });
  source = new EventSource(`/events?${query}`);
  source.onmessage = (message) => {
    newest = Date.now();
    document.body.classList.remove("lost");
    show(JSON.parse(message.data));
  };
}

function show(body) {
  const status = body.status;
  control = Boolean(body.control);
  showHead(body, status);
  showProblems(body, status);
  showLines(status, body.states || {});
  if (body.sparks) {
    sparks = body.sparks;
    young = !Object.values(sparks).some((values) => values.filter((value) => value !== null).length >= YOUNG);
    put($("span"), young ? "1 min" : "10 min");
  }
  keepMinute(body);
  if (body.table) showTags(body.table, body.bad);
  showHealth(body.health || {});
  showLoops(body.loops || {});
  showEvents(body.events || []);
}

function showHead(body, status) {
  const calm = status.healthy && !(status.problems || []).length;
  put($("gateway"), status.gateway || "Edgetwin");
  document.title = `${status.healthy ? "" : "! "}${status.gateway || "Edgetwin"}`;
  put($("state"), calm ? "healthy" : status.healthy ? "running, with problems" : "not healthy", `state ${calm ? "good" : status.healthy ? "warn" : "bad"}`);
  const uplink = status.uplink || {}, outbox = status.outbox || {};
  const facts = [
    ["broker", uplink.state ? `${uplink.state}${uplink.protocol ? `, MQTT ${uplink.protocol === 4 ? "3.1.1" : uplink.protocol}` : ""}` : "–", uplink.state === "online" ? "good" : "warn"],
    ["outbox", outbox.batches === undefined ? "–" : outbox.batches ? `${grouped(outbox.batches)} batches, ${bytes(outbox.bytes)}` : "empty", outbox.batches > 100 ? "warn" : ""],
    ["dropped", outbox.dropped === undefined ? "–" : grouped(outbox.dropped), outbox.dropped ? "bad" : ""],
    ["clock", status.clock || "–", status.clock === "ok" ? "" : "warn"],
    ["up", status.since ? uptime(Math.max(0, (body.now - status.since) / 1000)) : "–", ""],
    ["version", status.version ? `${status.version}${status.kernels === "numba" ? "" : `, ${status.kernels}`}` : "–", ""],
  ];
  fill($("facts"), facts, () => { const div = make("div"); div.append(make("dt"), make("dd")); return div; }, (div, [name, value, kind]) => {
    put(div.children[0], name);
    put(div.children[1], value, kind);
  });
}

function showProblems(body, status) {
  const problems = [...(status.problems || [])];
  if (body.age > 10) problems.unshift(`the values below are ${duration(body.age)} old: the polling loop does not answer`);
  if (!body.table) problems.push("starting: no values yet");
  $("problems").hidden = !problems.length;
  $("problems").className = `problems ${status.healthy && !(body.age > 10) ? "" : "bad"}`;
  fill($("problems"), problems.slice(0, 12), () => make("p"), (p, text) => put(p, text));
}

function showLines(status, states) {
  fill($("lines"), Object.entries(status.lines || {}), () => {
    const div = make("div", "line"), head = make("div", "row");
    head.append(make("span", "url"), make("span", "word"));
    const meter = make("div", "meter");
    meter.append(make("i"));
    div.append(head, meter, make("p", "small"), make("div"));
    return div;
  }, (div, [url, line]) => {
    const [head, meter, facts, devices] = div.children;
    put(head.children[0], url);
    put(head.children[1], line.state, `word ${line.state === "up" ? "good" : "bad"}`);
    meter.firstElementChild.style.width = `${Math.round(100 * line.utilisation)}%`;
    meter.className = `meter ${line.utilisation > 0.95 ? "bad" : line.utilisation > 0.8 ? "warn" : ""}`;
    const errors = Object.entries(line.errors).filter(([, count]) => count).map(([kind, count]) => `${grouped(count)} ${kind}`).join(", ");
    const trip = line.rtt_ms.p50 === null ? "no round trip yet" : `round trip ${ms(line.rtt_ms.p50)}, p99 ${ms(line.rtt_ms.p99)}`;
    put(facts, `${Math.round(100 * line.utilisation)} % busy · ${trip} · ${grouped(line.requests)} requests · ${errors || "no errors"}`);
    fill(devices, Object.entries(line.devices), () => {
      const one = make("div", "device"), row = make("div", "row");
      row.append(make("b"), make("span", "word"));
      one.append(row, make("p", "small"));
      return one;
    }, (one, [name, device]) => {
      const state = states[name] || device.state;
      put(one.children[0].children[0], name);
      put(one.children[0].children[1], device.retry_s ? `${state}, next try in ${duration(device.retry_s)}` : state, `word ${STATE[state] || "warn"}`);
      const learnt = (device.learnt || []).filter((text) => !text.startsWith("#"));
      put(one.children[1], learnt.length ? `learnt: ${learnt.join("; ")}` : "");
    });
  });
}

function buildRow() {
  const row = make("tr");
  const name = make("td", "name");
  name.append(make("span"), document.createTextNode(""));
  const quality = make("td");
  quality.append(make("span", "quality"));
  const trend = make("td", "trend");
  trend.append(spark());
  row.append(name, make("td", "value number"), make("td", "unit"), quality, make("td", "age number"), trend);
  const open = () => { if (row.dataset.plot) openPlot(row.dataset.key); };
  row.addEventListener("click", open);
  row.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  return row;
}

function valueText(tag) {
  if (tag.v === null) return "–";
  if (tag.state !== null) return `${tag.state} (${tag.v})`;
  if (typeof tag.v === "number") return formatNumber(tag.v);
  return String(tag.v);
}

function showTags(table, bad) {
  put($("count"), `${grouped(table.total)}${table.total === table.of ? "" : ` of ${grouped(table.of)}`}${bad ? `, ${grouped(bad)} not good` : ""}`);
  fill($("rows"), table.tags, buildRow, (row, tag) => {
    const [name, value, unit, quality, age, trend] = row.children, key = `${tag.device}/${tag.tag}`;
    if (row.dataset.key !== key) {
      row.dataset.key = key;
      put(name.firstElementChild, `${tag.device}/`);
      name.lastChild.data = tag.tag;
      row.dataset.plot = tag.numeric ? "1" : "";
      row.className = tag.numeric ? "plotted" : "";
      if (tag.numeric) row.tabIndex = 0; else row.removeAttribute("tabindex");
    }
    const text = valueText(tag);
    put(value, text);
    if (text.length > 24) value.title = text; else value.removeAttribute("title");
    put(unit, tag.unit || "");
    put(quality.firstElementChild, tag.q, `quality ${QUALITY[tag.q] || "bad"}`);
    put(age, tag.age === null ? "never" : duration(tag.age));
    setSpark(trend.firstElementChild, key);
  });
  const last = table.first + table.tags.length;
  $("pages").hidden = table.total <= table.size && table.first === 0;
  put($("where"), `${table.total ? grouped(table.first + 1) : 0} to ${grouped(last)} of ${grouped(table.total)}`);
  $("back").disabled = table.first === 0;
  $("next").disabled = last >= table.total;
  if (table.first && !table.tags.length) turn(-table.first);
}

// one value a second of what is shown: all that there is in the first minutes after a start
function keepMinute(body) {
  const shown = body.table ? body.table.tags.map((tag) => [`${tag.device}/${tag.tag}`, tag.numeric && tag.v !== null ? Number(tag.v) : null]) : [];
  for (const loop of Object.values(body.loops || {})) shown.push([loop.pv_tag, loop.pv], [loop.out_tag, loop.out]);
  const kept = minute;
  minute = new Map();
  for (const [key, value] of shown) {
    if (!minute.has(key)) minute.set(key, [...(kept.get(key) || []), Number.isFinite(value) ? value : null].slice(-TREND));
  }
}

function minuteOf(key) {
  const values = minute.get(key) || [], known = values.filter((value) => value !== null);
  const low = Math.min(...known), high = Math.max(...known);
  const scaled = values.map((value) => value === null ? null : high > low ? 100 * ((value - low) / (high - low)) : 50);
  return [...Array(TREND - scaled.length).fill(null), ...scaled];
}

function setSpark(svg, key) {
  const path = sparkPath((young ? minuteOf(key) : sparks[key]) || []);
  if (svg.firstElementChild.getAttribute("d") !== path) svg.firstElementChild.setAttribute("d", path);
}

function showHealth(health) {
  const devices = Object.entries(health);
  $("health-panel").hidden = !devices.length;
  fill($("health"), devices, () => {
    const div = make("div", "device"), row = make("div", "row"), meter = make("div", "meter");
    row.append(make("b"), make("span"));
    meter.append(make("i"));
    div.append(row, meter, make("p", "small"));
    return div;
  }, (div, [device, one]) => {
    const [row, meter, causes] = div.children, known = one.score !== null;
    const kind = !known ? "" : one.score < 0.5 ? "bad" : one.score < 0.8 ? "warn" : "";
    put(row.children[0], device);
    put(row.children[1], known ? one.score.toFixed(2) : "still learning", kind || (known ? "good" : "dim"));
    meter.className = `meter ${kind}`;
    meter.firstElementChild.style.width = known ? `${Math.round(100 * one.score)}%` : "0";
    put(causes, one.causes.length ? one.causes.join("; ") : "");
  });
}

function share(value, span) {
  return Math.max(0, Math.min(100, 100 * (value - span[0]) / (span[1] - span[0] || 1)));
}

function buildScale(kind) {
  const scale = make("div", `scale ${kind}`);
  scale.append(make("i", "track"), make("i", "fill"), make("i", "goal"), make("span"), make("span"));
  return scale;
}

function fillScale(scale, kind, value, goal, span, unit) {
  scale.hidden = !span;
  if (!span) return;
  const [, bar, mark, low, high] = scale.children;
  if (scale.className !== `scale ${kind}`) scale.className = `scale ${kind}`;
  bar.style.width = `${value === null ? 0 : share(value, span)}%`;
  mark.hidden = goal === null || goal === undefined;
  if (!mark.hidden) mark.style.left = `${share(goal, span)}%`;
  put(low, number(span[0]));
  put(high, `${number(span[1])}${unit ? ` ${unit}` : ""}`);
}

function buildLoop() {
  const div = make("div", "loop"), head = make("div", "row"), figures = make("div", "figures"), trends = make("div", "trends");
  head.append(make("b"), make("span", "mode"));
  for (const name of ["setpoint", "process", "output"]) {
    const cell = make("div"), figure = make("b");
    figure.append(document.createTextNode("–"), make("small"));
    cell.append(make("span", "", name), figure);
    figures.append(cell);
  }
  trends.append(spark(), spark("out"));
  const tools = make("div", "control");
  for (const mode of ["auto", "manual", "shadow", "off"]) {
    const button = make("button", "", mode);
    button.type = "button";
    button.addEventListener("click", () => ask(div.dataset.name, { mode }, `${div.dataset.name}: ${mode}`));
    tools.append(button);
  }
  const input = make("input");
  input.type = "number";
  input.step = "any";
  input.placeholder = "setpoint";
  input.setAttribute("aria-label", "new setpoint");
  const set = make("button", "", "set");
  set.type = "button";
  set.addEventListener("click", () => {
    if (input.value !== "") ask(div.dataset.name, { setpoint: Number(input.value) }, `${div.dataset.name}: setpoint ${input.value}`);
  });
  const own = make("span");
  own.append(input, set);
  tools.append(own);
  div.append(head, figures, buildScale(""), trends, buildScale("output"), make("p", "small"), tools);
  return div;
}

function showLoops(loops) {
  const all = Object.entries(loops);
  $("loops-panel").hidden = !all.length;
  fill($("loops"), all, buildLoop, (div, [name, loop]) => {
    const [head, figures, scale, trends, output, words, tools] = div.children;
    div.dataset.name = name;
    put(head.children[0], name);
    put(head.children[1], loop.mode, `mode ${loop.mode}`);
    [[loop.sp, loop.unit], [loop.pv, loop.unit], [loop.out, loop.out_unit]].forEach(([value, unit], i) => {
      const figure = figures.children[i].lastElementChild, text = number(value);
      if (figure.firstChild.data !== text) figure.firstChild.data = text;
      put(figure.lastChild, value === null ? "" : unit || "");
    });
    fillScale(scale, "", loop.pv, loop.sp, loop.span, loop.unit);
    trends.hidden = !loop.pv_tag;
    setSpark(trends.children[0], loop.pv_tag);
    setSpark(trends.children[1], loop.out_tag);
    fillScale(output, loop.limited ? "output limited" : "output", loop.out, null, loop.limits, loop.out_unit);
    const tags = loop.pv_tag ? `${loop.pv_tag} by ${loop.out_tag}` : "";
    put(words, [loop.reason, loop.limited ? "at its limit" : "", tags].filter(Boolean).join(" · "), `small ${loop.mode === "fail" ? "bad" : ""}`);
    tools.hidden = !control;
    for (const button of tools.querySelectorAll("button")) {
      if (button.textContent !== "set") button.setAttribute("aria-pressed", String(button.textContent === loop.mode));
    }
  });
}

function showEvents(events) {
  if (!events.length) events = [{ t: null, text: "nothing yet", state: "cleared" }];
  fill($("events"), events, () => { const li = make("li"); li.append(make("time"), make("span", "text")); return li; }, (li, event) => {
    put(li.children[0], event.t === null ? "" : when(event.t));
    const kind = event.state === "cleared" ? "cleared" : event.severity === "alarm" ? "bad" : event.severity === "warning" ? "warn" : "";
    put(li.children[1], `${event.state === "cleared" && event.t !== null ? "cleared: " : ""}${event.text}`, `text ${kind}`);
  });
}

function when(ms) {
  const date = new Date(ms), today = new Date().toDateString() === date.toDateString();
  return today ? clockText(ms, true) : date.toLocaleDateString([], { day: "numeric", month: "short" }) + " " + clockText(ms);
}

function turn(by) {
  first = Math.max(0, first + by);
  listen();
}

async function openPlot(key) {
  plotted = key;
  put($("plot-name"), key);
  $("plot-area").replaceChildren();
  if (!$("plot").open) $("plot").showModal();
  await refreshPlot();
}

async function refreshPlot() {
  if (plotted === null) return;
  const key = plotted;
  for (const button of $("plot").querySelectorAll("[data-span]")) button.setAttribute("aria-pressed", String(Number(button.dataset.span) === span));
  try {
    const answer = await fetch(`/api/history?${new URLSearchParams({ tag: key })}`);
    if (!answer.ok) throw new Error(await answer.text());
    const data = await answer.json();
    if (key === plotted) drawPlot($("plot-area"), data, span, (words) => put($("plot-note"), words));
  } catch (error) {
    put($("plot-note"), `the history cannot be read: ${error.message}`);
  }
}

// the token is kept in this page alone, until it is closed
function ask(loop, wish, words) {
  put($("ask-name"), words);
  $("ask-error").hidden = true;
  $("ask").onsubmit = async (event) => {
    event.preventDefault();
    let error = "";
    try {
      const answer = await fetch("/api/loop", {
        method: "POST",
        headers: { "Content-Type": "application/json", Authorization: `Bearer ${$("token").value}` },
        body: JSON.stringify({ loop, ...wish }),
      });
      const text = await answer.text();
      error = answer.ok ? JSON.parse(text).error || "" : text.trim();
    } catch (failure) {
      error = failure.message;
    }
    if (!error) { $("ask").close(); return; }
    put($("ask-error"), error);
    $("ask-error").hidden = false;
  };
  $("ask").showModal();
}

function start() {
  let typing = 0;
  $("find").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { first = 0; listen(); }, 250);
  });
  $("bad").addEventListener("change", () => { first = 0; listen(); });
  $("back").addEventListener("click", () => turn(-100));
  $("next").addEventListener("click", () => turn(100));
  $("plot-close").addEventListener("click", () => $("plot").close());
  $("plot").addEventListener("close", () => { plotted = null; });
  $("plot").addEventListener("click", (event) => {
    if (event.target === $("plot")) $("plot").close();
    if (event.target.dataset && event.target.dataset.span) { span = Number(event.target.dataset.span); refreshPlot(); }
  });
  $("ask-no").addEventListener("click", () => $("ask").close());
  setInterval(refreshPlot, 2000);
  setInterval(() => {
    if (newest && Date.now() - newest > LOST_AFTER) {
      document.body.classList.add("lost");
      put($("state"), `no answer from the agent for ${duration((Date.now() - newest) / 1000)}`, "state bad");
    }
    if (source.readyState === EventSource.CLOSED) listen();
  }, 2000);
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.get("tag")) openPlot(asked.get("tag"));
  listen();
}

start();
