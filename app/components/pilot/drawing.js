// The still part of the plot: grid, axes, curves, points. Drawn anew when data, axes, size or switches change, and
// never while something is dragged; what moves lies in an SVG of its own above it (live.js).

const RADIUS = 4.6;
const REACH = 0.6; // RL runs and predictions may stretch an axis by this part of the measured points' span

/** Lowest and highest value of an axis: measured points with their errors, and what else fits beside them. */
function extentOf(model, metric) {
  const measured = [];
  const further = [...(model.curve(metric) ?? [])];
  for (const series of model.series) {
    for (const point of series.points) {
      const [mean, error] = point.metrics[metric] ?? [];
      if (mean === undefined) continue;
      if (series.kind === "training") further.push(mean);
      else measured.push(mean - (error ?? 0), mean + (error ?? 0));
    }
  }
  if (!measured.length) return metric === "kl" ? [0, 10] : [0, 1];
  let low = measured.reduce((a, b) => Math.min(a, b));
  let high = measured.reduce((a, b) => Math.max(a, b));
  const stretch = (model.etaMax > 1 ? 2.5 : 1) * REACH * spanOf(low, high);
  const [least, most] = [low - stretch, high + stretch];
  for (const value of further) {
    low = Math.min(low, Math.max(value, least));
    high = Math.max(high, Math.min(value, most));
  }
  if (metric === "kl") low = Math.min(low, 0);
  const pad = 0.04 * spanOf(low, high);
  return [low - (metric === "kl" && low === 0 ? pad / 2 : pad), high + pad];
}

/** From values of a metric to pixels and back. */
class Scale {
  constructor([low, high], start, end) {
    Object.assign(this, { low, high, start, end, slope: (end - start) / (high - low) });
  }

  at(value) {
    return this.start + (value - this.low) * this.slope;
  }

  valueAt(pixel) {
    return this.low + (pixel - this.start) / this.slope;
  }

  contains(value) {
    return value >= this.low && value <= this.high;
  }
}

/** Where the axes are: pixels of the inner area and both scales. Layout only, nothing is drawn. */
function makeFrame(model, size, zoom, font) {
  const [xs, ys] = zoom ?? [extentOf(model, model.x), extentOf(model, model.y)];
  const top = 10;
  const bottom = size.height - 24;
  const right = size.width - 16;
  const yTicks = niceTicks(...ys, (bottom - top) / 52);
  const labels = yTicks.values.map((value) => fixed(value, yTicks.decimals));
  const left = Math.ceil(Math.max(30, ...labels.map((label) => textWidth(label, font) + 14)));
  return {
    ...size, left, right, top, bottom, font, yTicks,
    xTicks: niceTicks(...xs, (right - left) / 86),
    x: new Scale(xs, left, right),
    y: new Scale(ys, bottom, top),
  };
}

/** A path through points, in pixels rounded to a hundredth. */
function polyline(xs, ys) {
  let path = "";
  for (let i = 0; i < xs.length; i++) path += `${i ? "L" : "M"}${xs[i].toFixed(2)} ${ys[i].toFixed(2)}`;
  return path;
}

class Drawing {
  constructor(node) {
    this.node = node;
    this.clip = svg("rect");
    const clipPath = svg("clipPath", { id: "pilot-clip" }, this.clip);
    const clipped = (name) => svg("g", { class: name, "clip-path": "url(#pilot-clip)" });
    this.grid = svg("g", { class: "grid", "aria-hidden": "true" });
    this.lines = clipped("lines");
    this.front = svg("path", { class: "front-line", "clip-path": "url(#pilot-clip)" });
    this.errors = clipped("errors");
    this.points = svg("g", { class: "points" });
    this.pins = svg("g", { class: "pins", "aria-hidden": "true" });
    node.append(svg("defs", {}, clipPath), this.grid, this.front, this.lines, this.errors, this.points, this.pins);
    this.targets = [];
  }

  /** Draw everything; `targets` then holds what the mouse and the keys can reach. */
  draw(model, frame, isEmpty) {
    setAll(this.node, { width: frame.width, height: frame.height, viewBox: `0 0 ${frame.width} ${frame.height}` });
    const { left, right, top, bottom } = frame;
    setAll(this.clip, { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) });
    this.drawGrid(frame, isEmpty);
    this.drawLines(model, frame);
    this.drawFront(model, frame);
    this.drawPoints(model, frame);
    this.drawPins(model, frame);
  }

  drawGrid(frame, isEmpty) {
    const { left, right, top, bottom, x, y, xTicks, yTicks } = frame;
    const parts = [];
    this.tickTexts = { x: [], y: [] };
    for (const value of xTicks.values) {
      const at = x.at(value).toFixed(1);
      parts.push(svg("path", { d: `M${at} ${top}V${bottom}` }));
      if (!isEmpty) this.tickTexts.x.push(svg("text", { x: at, y: bottom + 17 }, fixed(value, xTicks.decimals)));
    }
    for (const value of yTicks.values) {
      const at = y.at(value).toFixed(1);
      parts.push(svg("path", { d: `M${left} ${at}H${right}` }));
      const place = { x: left - 8, y: at, dy: "0.33em", class: "y" };
      if (!isEmpty) this.tickTexts.y.push(svg("text", place, fixed(value, yTicks.decimals)));
    }
    parts.push(svg("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` }));
    this.grid.replaceChildren(...parts, ...this.tickTexts.x, ...this.tickTexts.y);
  }

  /** Hide the numbers of the axes that the tags of the position (pixels, null: none) would lie on. */
  makeRoom(frame, position) {
    const hide = (texts, ticks, scale, at, room) => texts.forEach((text, i) => {
      const isHidden = Boolean(position) && Math.abs(scale.at(ticks.values[i]) - at) < room;
      if (text.classList.contains("covered") !== isHidden) text.classList.toggle("covered", isHidden);
    });
    hide(this.tickTexts.x, frame.xTicks, frame.x, position?.x, 32);
    hide(this.tickTexts.y, frame.yTicks, frame.y, position?.y, 15);
  }

  drawLines(model, frame) {
    const parts = [];
    this.polylines = [];
    for (const series of model.series) {
      if (model.hidden.has(series.id)) continue;
      for (const path of series.paths) {
        const known = path.filter((point) => point.metrics[model.x] && point.metrics[model.y]);
        const xs = known.map((point) => frame.x.at(point.metrics[model.x][0]));
        const ys = known.map((point) => frame.y.at(point.metrics[model.y][0]));
        this.polylines.push([xs, ys]);
        const name = series.kind === "training" ? "run" : `liti ${series.kind} ${series.towards}`;
        parts.push(svg("path", { class: name, d: polyline(xs, ys), "--c": series.color }));
      }
    }
    this.lines.replaceChildren(...parts);
  }

  drawFront(model, frame) {
    const corners = paretoPoints(model.series);
    const isShown = model.x === "kl" && model.y === "reward" && corners.length && !model.hidden.has("front");
    let path = "";
    corners.forEach(({ metrics: { kl, reward } }, i) => {
      const [x, y] = [frame.x.at(kl[0]).toFixed(2), frame.y.at(reward[0]).toFixed(2)];
      path += i ? `H${x}V${y}` : `M${x} ${y}`;
    });
    setAll(this.front, { d: isShown ? `${path}H${Math.max(frame.right, 0)}` : "" });
  }

  drawPoints(model, frame) {
    const [groups, bars] = [[], []];
    this.targets = [];
    for (const series of model.series) {
      if (model.hidden.has(series.id)) continue;
      const group = svg("g", { class: `series ${series.kind}`, "--c": series.color ?? "var(--ink)" });
      let errors = "";
      for (const point of series.points) {
        const [mx, my] = [point.metrics[model.x], point.metrics[model.y]];
        if (!mx || !my || (point.dominated && model.hidden.has("dominated"))) continue;
        if (!frame.x.contains(mx[0]) || !frame.y.contains(my[0])) continue;
        const target = { point, x: frame.x.at(mx[0]), y: frame.y.at(my[0]), canChoose: Boolean(point.place) };
        target.node = this.pointNode(model, series, target);
        group.append(target.node);
        this.targets.push(target);
        if (series.kind !== "training" && !point.dominated) errors += errorBars(frame, mx, my);
      }
      groups.push(group);
      if (errors) bars.push(svg("path", { d: errors, "--c": series.color ?? "var(--ink)" }));
    }
    this.points.replaceChildren(...groups.reverse()); // the SFT policy on top, RL runs at the bottom
    this.errors.replaceChildren(...bars);
    this.targets.sort((a, b) => a.x - b.x || b.y - a.y);
  }

  pointNode(model, series, { point, x, y, canChoose }) {
    const isRun = series.kind === "training";
    const size = isRun ? 2 : point.kind === "policy" ? RADIUS + 0.6 : RADIUS;
    const node = svg("path", {
      d: glyph(isRun ? "circle" : series.shape, size),
      transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`,
      class: point.dominated ? "dominated" : null,
    });
    if (canChoose) {
      setAll(node, { role: "button", tabindex: -1, "aria-label": describePoint(model, point).join(", ") });
      node.dataset.key = point.key;
    }
    return node;
  }

  drawPins(model, frame) {
    const marks = model.data.pins.map((pin, i) => ({ ...pin, isReference: model.data.reference === i }));
    if (model.data.reference === null) marks.unshift({ place: SFT_PLACE, label: "", isReference: true });
    const parts = [];
    const taken = [];
    this.pinTargets = [];
    const obstacles = [...this.targets, ...this.curvePoints(model, frame)];
    for (const mark of marks) {
      const position = model.positionOf(mark.place);
      if (!position || !frame.x.contains(position[0]) || !frame.y.contains(position[1])) continue;
      const [x, y] = [frame.x.at(position[0]), frame.y.at(position[1])];
      parts.push(svg("circle", { cx: x, cy: y, r: 9.5, class: mark.isReference ? "reference" : null }));
      if (mark.label) this.pinTargets.push({ point: { ...mark, kind: "pin", metrics: {} }, x, y, canChoose: true });
      const text = [mark.label, mark.isReference ? (mark.label ? "(reference)" : "reference") : ""].join(" ").trim();
      const box = placeLabel(frame, obstacles, taken, { x, y, width: textWidth(text, frame.font) });
      taken.push(box);
      if (box.isFar) parts.push(svg("path", { d: leader({ x, y }, box) }));
      parts.push(svg("text", { x: box.x, y: box.y + 11 }, text));
    }
    this.pins.replaceChildren(...parts);
  }

  /** Pixels along the curves, for labels to keep clear of. */
  curvePoints(model, frame) {
    const found = [];
    for (const [xs, ys] of this.polylines) {
      for (let i = 1; i < xs.length && found.length < 4000; i++) {
        const steps = Math.ceil(Math.hypot(xs[i] - xs[i - 1], ys[i] - ys[i - 1]) / 10);
        for (let s = 0; s <= steps; s++) {
          const at = s / Math.max(steps, 1);
          found.push({ x: xs[i - 1] + at * (xs[i] - xs[i - 1]), y: ys[i - 1] + at * (ys[i] - ys[i - 1]) });
        }
      }
    }
    const [xs, ys] = [model.curve(model.x), model.curve(model.y)];
    if (xs && ys) xs.forEach((x, i) => found.push({ x: frame.x.at(x), y: frame.y.at(ys[i]) }));
    return found;
  }
}

const SFT_PLACE = { iteration: 1, method: "slerp", weights: [], eta: 0, towards: "sft" };

function errorBars(frame, [x, xError], [y, yError]) {
  const at = (scale, value) => scale.at(value).toFixed(1);
  const across = xError ? `M${at(frame.x, x - xError)} ${at(frame.y, y)}H${at(frame.x, x + xError)}` : "";
  const along = yError ? `M${at(frame.x, x)} ${at(frame.y, y - yError)}V${at(frame.y, y + yError)}` : "";
  return across + along;
}

/** Where a label of a mark collides least with points, curves, other labels and the frame; near places come first. */
function placeLabel(frame, obstacles, taken, { x, y, width }) {
  const height = 14;
  const boxes = [
    [x + 14, y - 7], [x - 14 - width, y - 7], [x - width / 2, y - 27], [x - width / 2, y + 13],
    [x + 10, y - 24], [x + 10, y + 10], [x - 10 - width, y - 24], [x - 10 - width, y + 10],
    [x + 22, y - 42], [x + 22, y + 28], [x - 22 - width, y - 42], [x - 22 - width, y + 28],
  ].map(([left, top], i) => ({ x: left, y: top, width, height, isFar: i > 7 }));
  const overlaps = (a, b) =>
    a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
  const cost = (box) => {
    const isOut = box.x < frame.left || box.x + width > frame.width || box.y < 0 || box.y + height > frame.bottom;
    const hits = obstacles.filter((o) => overlaps(box, { x: o.x - 4, y: o.y - 4, width: 8, height: 8 })).length;
    return (isOut ? 1000 : 0) + 100 * taken.filter((other) => overlaps(box, other)).length + hits;
  };
  return boxes.reduce((best, box) => (cost(box) < cost(best) ? box : best));
}

/** A line from the ring of a mark to its label. */
function leader({ x, y }, box) {
  const to = { x: Math.min(Math.max(x, box.x), box.x + box.width), y: box.y > y ? box.y : box.y + box.height };
  const length = Math.hypot(to.x - x, to.y - y);
  return `M${x + (9.5 * (to.x - x)) / length} ${y + (9.5 * (to.y - y)) / length}L${to.x} ${to.y}`;
}

/** What a tooltip and a screen reader say of a point: one line per entry, the name first. */
function describePoint(model, point) {
  const shown = new Set(["reward", "kl", model.y, model.x]);
  const lines = [point.label];
  for (const metric of shown) {
    const known = point.metrics[metric];
    if (!known) continue;
    const { name, unit } = metricText(metric);
    lines.push(`${name} ${formatWithError(...known)} ${unit}`.trim());
  }
  if (point.n) lines.push(`n = ${point.n}`);
  if (point.kind === "pin") lines.push("pin");
  else if (point.kind === "training") lines.push("while training");
  else if (!point.place) lines.push("the sliders cannot reach it");
  if (point.dominated) lines.push("dominated: another point has no more KL and no less reward");
  return lines;
}
