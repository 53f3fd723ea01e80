"""The page of a live view: it needs nothing but what it asks this machine for."""

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>filterdyn</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ground: #ffffff; --text: #222222; --quiet: #5a5a5a;
  --line: #0072b2; --band: #0072b233; --data: #222222; --alarm: #b34700; --grid: #dddddd; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --text: #e8e8e8; --quiet: #a8a8a8;
  --line: #56b4e9; --band: #56b4e940; --data: #e8e8e8; --alarm: #ff9d4d; --grid: #3a3d44; } }
body { margin: 0 auto; padding: 1rem 1.25rem; max-width: 76rem; background: var(--ground);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } h2 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
#state { color: var(--quiet); margin: 0; font-variant-numeric: tabular-nums; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: .75rem; }
figure { margin: 0; } figcaption { display: flex; justify-content: space-between; gap: 1rem; }
figcaption output { color: var(--quiet); font-variant-numeric: tabular-nums; }
svg { width: 100%; height: 150px; display: block; }
svg text { fill: var(--quiet); font-size: 11px; }
.line { fill: none; stroke: var(--line); stroke-width: 1.5; } .band { fill: var(--band); }
.data { fill: var(--data); } .guide { stroke: var(--grid); } .alarm { stroke: var(--alarm);
  stroke-width: 1.5; stroke-dasharray: 4 3; }
#alarms { padding-left: 1.2rem; margin: .25rem 0; } #alarms li { color: var(--alarm); }
.none { color: var(--quiet); } [hidden] { display: none; }
</style>
</head>
<body>
<h1 id="title">filterdyn</h1>
<p id="state" role="status">waiting for the first row</p>
<section id="s-alarms" hidden><h2>Alarms</h2><p id="evidence" class="none"></p>
<ul id="alarms" aria-live="polite"></ul></section>
<section id="s-states" hidden><h2>States</h2><div class="panels" id="states"></div></section>
<section id="s-parameters" hidden><h2>Parameters</h2><div class="panels" id="parameters"></div></section>
<section id="s-innovations" hidden><h2>Innovations, in standard deviations</h2>
<div class="panels" id="innovations"></div></section>
<noscript>This page draws with JavaScript.</noscript>
<script>
"use strict";
const H = 150, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 20, EVERY = 500, MOST = 50;
const NS = "http://www.w3.org/2000/svg";
let rows = [], facts = null, alarms = [], panels = {};
const $ = (id) => document.getElementById(id);
const show = (x) => x === null || x === undefined ? "-" : String(Number(x.toPrecision(4)));
const name = (names, k, symbol) => names && k < names.length ? names[k] : `${symbol}[${k}]`;

function clock(t) {
  if (t === null) return "-";
  // Seconds since 1970 are shown as a time of day.
  return t > 1e8 ? new Date(1000 * t).toISOString().slice(11, 19) : show(t);
}

function panel(group, label) {
  const key = group + " " + label;
  if (panels[key]) return panels[key];
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const text = document.createElement("span"), value = document.createElement("output");
  text.textContent = label;
  caption.append(text, value);
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("role", "img");
  figure.append(caption, svg);
  $(group).append(figure);
  $("s-" + group).hidden = false;
  return panels[key] = { label, value, svg };
}

function element(svg, kind, attributes, text) {
  const found = document.createElementNS(NS, kind);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text !== undefined) found.textContent = text;
  svg.append(found);
  return found;
}

// points: [t, middle, low, high] of which all but t may be null; dots: [t, value].
function draw(at, points, dots, guides, words) {
  const { svg } = at, W = svg.clientWidth || 520;
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  const seen = rows.map((row) => row.t).filter((t) => t !== null);
  if (!seen.length) return;
  const t0 = Math.min(...seen), t1 = Math.max(...seen), length = t1 - t0 || 1;
  const values = [...points.flatMap((p) => p.slice(1)), ...dots.map((d) => d[1]), ...guides]
    .filter((v) => v !== null && v !== undefined);
  let low = values.length ? Math.min(...values) : -1, high = values.length ? Math.max(...values) : 1;
  const room = 0.06 * (high - low) || 0.5 * Math.abs(high) || 1;
  low -= room;
  high += room;
  const x = (t) => LEFT + (W - LEFT - RIGHT) * (t - t0) / length;
  const y = (v) => TOP + (H - TOP - BOTTOM) * (high - v) / (high - low);
  const place = (t, v) => x(t).toFixed(1) + "," + y(v).toFixed(1);
  svg.replaceChildren();
  element(svg, "title", {}, `${at.label}: ${words}`);
  for (const v of guides)
    element(svg, "line", { class: "guide", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) });
  for (const v of [low + room, high - room])
    element(svg, "text", { x: LEFT - 5, y: y(v) + 4, "text-anchor": "end" }, show(v));
  element(svg, "text", { x: LEFT, y: H - 5 }, clock(t0));
  element(svg, "text", { x: W - RIGHT, y: H - 5, "text-anchor": "end" }, clock(t1));
  // A missing number ends a piece of a line.
  for (const piece of pieces(points.filter((p) => p[0] !== null), 2))
    element(svg, "polygon", { class: "band", points:
      [...piece.map((p) => place(p[0], p[3])), ...piece.reverse().map((p) => place(p[0], p[2]))].join(" ") });
  for (const piece of pieces(points.filter((p) => p[0] !== null), 1))
    element(svg, "polyline", { class: "line", points: piece.map((p) => place(p[0], p[1])).join(" ") });
  for (const [t, v] of dots)
    if (t !== null && v !== null && v !== undefined)
      element(svg, "circle", { class: "data", cx: x(t), cy: y(v), r: dots.length > 200 ? 1.3 : 2 });
  for (const alarm of alarms)
    if (alarm.t >= t0 && alarm.t <= t1)
      element(svg, "line", { class: "alarm", x1: x(alarm.t), x2: x(alarm.t), y1: TOP, y2: H - BOTTOM });
}

function pieces(points, column) {
  const found = [[]];
  for (const p of points)
    if (p[column] === null || p[column] === undefined) found.push([]);
    else found[found.length - 1].push(p);
  return found.filter((piece) => piece.length > 0);
}

function redraw() {
  if (!rows.length) return;
  const last = rows[rows.length - 1];
  $("title").textContent = document.title = facts.title;
  const failed = rows.find((row) => row.status);
  $("state").textContent = failed ? `the filter has failed: ${failed.status}, at ${clock(failed.t)}`
    : `row ${last.n}, time ${clock(last.t)}`;
  const level = `${100 * facts.probability} % band`;
  last.mean.forEach((middle, k) => {
    const label = name(facts.names, k, "x"), at = panel("states", label);
    const measured = (facts.observation_names || []).indexOf(label);
    const points = rows.map((row) => {
      const m = row.mean[k], half = row.half ? row.half[k] : null;
      return m === null || half === null ? [row.t, m, null, null] : [row.t, m, m - half, m + half];
    });
    const dots = measured < 0 ? [] : rows.filter((row) => row.y).map((row) => [row.t, row.y[measured]]);
    const half = last.half ? last.half[k] : null;
    at.value.textContent = half === null ? show(middle) : `${show(middle)} ± ${show(half)}`;
    draw(at, points, dots, [], `now ${at.value.textContent}, ${level}`);
  });
  if (last.e) last.e.forEach((e, k) => {
    const at = panel("innovations", name(facts.observation_names, k, "y"));
    at.value.textContent = e === null ? "missing" : show(e);
    const dots = rows.filter((row) => row.e).map((row) => [row.t, row.e[k]]);
    draw(at, [], dots, [-2, 0, 2], `now ${at.value.textContent}, guides at -2, 0 and 2`);
  });
  const learning = rows.filter((row) => row.parameters);
  if (learning.length) {
    const now = learning[learning.length - 1].parameters;
    for (const [label, [middle, low, high]] of Object.entries(now)) {
      const at = panel("parameters", label);
      at.value.textContent = low === undefined ? show(middle)
        : `${show(middle)}, ${show(low)} to ${show(high)}`;
      const points = learning.map((row) => [row.t, ...(row.parameters[label] || [null])]);
      draw(at, points, [], [], `now ${at.value.textContent}, ${level}`);
    }
  }
  const raised = rows.filter((row) => row.raised);
  if (alarms.length || raised.length) {
    $("s-alarms").hidden = false;
    const open = raised.length && !alarms.some((a) => a.n >= raised[raised.length - 1].n);
    $("evidence").textContent = open ? "something has changed; what it is, is not decided yet" : "";
  }
}

function listed(alarm) {
  const item = document.createElement("li");
  item.textContent = `${clock(alarm.t)}: ${alarm.alarm} (${alarm.since} rows ago)`;
  $("alarms").prepend(item);
  while ($("alarms").children.length > MOST) $("alarms").lastChild.remove();
}

async function ask() {
  try {
    const after = rows.length ? rows[rows.length - 1].n : 0;
    const answer = await fetch("/rows?after=" + after, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const found = await answer.json();
    if (facts && facts.id !== found.id) return location.reload();
    facts = found;
    for (const row of found.found) {
      rows.push(row);
      if (row.alarm) { alarms.push(row); listed(row); }
    }
    rows = rows.slice(-facts.rows);
    alarms = alarms.slice(-MOST);
    if (!document.hidden) redraw();
    setTimeout(ask, EVERY);
  } catch (error) {
    $("state").textContent = rows.length ? `row ${rows[rows.length - 1].n}; the stream has ended, or its `
      + "page was closed" : "no answer";
    setTimeout(ask, 4 * EVERY);
  }
}
ask();
</script>
</body>
</html>
"""
