// The moving part of the plot: predicted curve with its band, marker with cross hair, KL budget, zoom box. It has an
// SVG of its own, so that the browser need not paint the points again, and nothing in it takes the mouse.

class Live {
  constructor(node) {
    this.node = node;
    this.clip = svg("rect");
    const clipped = { "clip-path": "url(#pilot-live-clip)" };
    this.over = svg("rect", { class: "over-budget" });
    this.band = svg("path", { class: "band", ...clipped });
    this.curve = svg("path", { class: "predicted", ...clipped });
    this.cross = svg("path", { class: "cross" });
    this.budget = svg("g", { class: "budget" },
      svg("path", { class: "line" }), svg("rect", { class: "grip", x: -5, width: 10, height: 22, rx: 3 }), svg("text"));
    this.tags = ["x", "y"].map((name) =>
      svg("g", { class: `tag ${name}` }, svg("rect", { rx: 3, height: 18 }), svg("text")));
    const circles = [["halo", 9], ["ring", 9], ["dot", 2]].map(([name, r]) => svg("circle", { class: name, r }));
    this.marker = svg("g", { class: "marker" }, ...circles);
    this.hover = svg("circle", { class: "hover", r: 11 });
    this.box = svg("rect", { class: "zoom-box" });
    const clipPath = svg("clipPath", { id: "pilot-live-clip" }, this.clip);
    node.append(svg("defs", {}, clipPath), this.over, this.band, this.curve, this.cross, this.budget);
    node.append(...this.tags, this.hover, this.marker, this.box);
    this.pixels = null;
    this.position = null;
  }

  /** Place what does not depend on the position. */
  resize(frame) {
    const { width, height, left, right, top, bottom } = frame;
    setAll(this.node, { width, height, viewBox: `0 0 ${width} ${height}` });
    setAll(this.clip, { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) });
    this.drawn = null;
  }

  /** Draw the position: called on every frame of a drag, so it only writes, and the curve only if it moved. */
  draw(model, frame) {
    this.drawCurve(model, frame);
    this.drawBudget(model, frame);
    this.drawMarker(model, frame);
  }

  drawCurve(model, frame) {
    const [xs, ys] = [model.curve(model.x), model.curve(model.y)];
    const isHidden = !xs || !ys || model.hidden.has("predicted");
    const drawn = isHidden ? "none" : model.ray;
    const isSame = this.drawn?.ray === drawn && this.drawn.frame === frame;
    if (isSame && this.drawn.x === model.x && this.drawn.y === model.y) return;
    this.drawn = { ray: drawn, frame, x: model.x, y: model.y };
    this.pixels = isHidden ? null : { x: xs.map((v) => frame.x.at(v)), y: ys.map((v) => frame.y.at(v)) };
    setAll(this.curve, { d: this.pixels ? polyline(this.pixels.x, this.pixels.y) : "" });
    const error = this.pixels && model.surface.metrics[model.y].loo_rmse;
    setAll(this.band, { d: error ? bandPath(this.pixels, Math.abs(error * frame.y.slope)) : "" });
  }

  drawBudget(model, frame) {
    const isShown = model.budget !== null && model.x === "kl";
    this.budget.classList.toggle("shown", isShown);
    this.over.classList.toggle("shown", isShown);
    this.budgetX = isShown ? Math.min(Math.max(frame.x.at(model.budget), frame.left), frame.right) : null;
    if (!isShown) return;
    const [line, , text] = this.budget.children;
    this.budget.setAttribute("transform", `translate(${this.budgetX.toFixed(2)} 0)`);
    setAll(line, { d: `M0 ${frame.top}V${frame.bottom}` });
    this.budget.children[1].setAttribute("y", frame.top);
    const isLeft = this.budgetX > frame.right - 76;
    setAll(text, { x: isLeft ? -10 : 10, y: frame.top + 15, "text-anchor": isLeft ? "end" : "start" });
    setText(text, `KL \u2264 ${formatNumber(model.budget)}`);
    setAll(this.over, {
      x: this.budgetX, y: frame.top,
      width: Math.max(0, frame.right - this.budgetX), height: Math.max(0, frame.bottom - frame.top),
    });
  }

  drawMarker(model, frame) {
    const here = model.here;
    const [x, y] = [here.value(model.x), here.value(model.y)];
    const isKnown = Boolean(x && y);
    this.node.classList.toggle("placed", isKnown);
    this.position = null;
    if (!isKnown) return;
    const px = Math.min(Math.max(frame.x.at(x.value), frame.left), frame.right);
    const py = Math.min(Math.max(frame.y.at(y.value), frame.top), frame.bottom);
    this.position = { x: px, y: py };
    const isMeasured = x.isMeasured && y.isMeasured;
    this.marker.setAttribute("transform", `translate(${px.toFixed(2)} ${py.toFixed(2)})`);
    this.marker.classList.toggle("measured", isMeasured);
    this.marker.classList.toggle("outside", !frame.x.contains(x.value) || !frame.y.contains(y.value));
    setAll(this.cross, { d: `M${frame.left} ${py.toFixed(1)}H${px.toFixed(1)}V${frame.bottom}` });
    this.drawTag(this.tags[0], formatNumber(x.value), frame, px, null);
    this.drawTag(this.tags[1], formatNumber(y.value), frame, null, py);
  }

  drawTag(tag, text, frame, px, py) {
    const [rect, label] = tag.children;
    const width = textWidth(text, frame.font) + 10;
    setText(label, text);
    setAll(rect, { width: width.toFixed(1), x: (-width / 2).toFixed(1), y: -9 });
    const x = px === null ? Math.max(frame.left - 4 - width / 2, width / 2) : Math.min(px, frame.width - width / 2);
    const y = py === null ? frame.bottom + 13 : py;
    tag.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
  }

  /** Ring around the point under the mouse or the keys; null: none. */
  showHover(target) {
    this.hover.classList.toggle("shown", Boolean(target));
    if (target) setAll(this.hover, { cx: target.x, cy: target.y });
  }

  /** The box that is being pulled up for a zoom: two corners, or null. */
  showBox(corners) {
    this.box.classList.toggle("shown", Boolean(corners));
    if (!corners) return;
    const [a, b] = corners;
    setAll(this.box, {
      x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y),
    });
  }

  /** Index along the predicted curve of what is nearest to a pixel, with its distance; null without a curve. */
  nearestOnCurve(x, y) {
    if (!this.pixels) return null;
    const best = { index: 0, distance: Infinity };
    for (let i = 0; i < this.pixels.x.length; i++) {
      const distance = Math.hypot(this.pixels.x[i] - x, this.pixels.y[i] - y);
      if (distance < best.distance) Object.assign(best, { index: i, distance });
    }
    return best;
  }
}

/** Area of the curve shifted up and down by so many pixels. */
function bandPath({ x, y }, height) {
  const upper = polyline(x, y.map((v) => v - height));
  const lower = polyline([...x].reverse(), [...y].reverse().map((v) => v + height));
  return `${upper}L${lower.slice(1)}z`;
}
