// The plot: axes, zoom, what the mouse and the keys do to it. Drawing itself is in drawing.js and live.js.

const NEAR = 14; // pixels: what counts as on a point or on the marker
const NEAR_LINE = 7; // pixels: what counts as on the line of the KL budget
const STILL = 4; // pixels: less movement than this is a click

class Plot {
  constructor(root, owner) {
    this.owner = owner;
    this.model = owner.model;
    this.canvas = root.querySelector(".canvas");
    this.tip = root.querySelector(".tip");
    this.empty = root.querySelector(".empty");
    this.reset = root.querySelector(".reset");
    this.drawing = new Drawing(root.querySelector("svg.still"));
    this.live = new Live(root.querySelector("svg.live"));
    this.legend = new Legend(root.querySelector(".legend"), owner);
    this.selects = { x: root.querySelector("select.x"), y: root.querySelector("select.y") };
    this.evaluations = root.querySelector("select.evaluation");
    this.dominated = root.querySelector(".dominated");
    this.zoom = null;
    this.gesture = null;
    this.focused = null;
    this.observer = new ResizeObserver(() => owner.redraw());
    this.listen();
  }

  wake() {
    this.observer.observe(this.canvas);
  }

  sleep() {
    this.observer.disconnect();
  }

  listen() {
    const { canvas, owner } = this;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => this.abandon());
    canvas.addEventListener("pointerleave", () => this.gesture || this.point(null));
    canvas.addEventListener("dblclick", () => this.setZoom(null));
    canvas.addEventListener("keydown", (event) => this.pressKey(event));
    canvas.addEventListener("focusin", (event) => this.focusPoint(event.target));
    canvas.addEventListener("focusout", () => this.focusPoint(null));
    this.reset.addEventListener("click", () => this.setZoom(null));
    this.dominated.addEventListener("click", () => owner.toggle("dominated"));
    for (const [axis, select] of Object.entries(this.selects)) {
      select.addEventListener("change", () => {
        this.zoom = null;
        owner.set({ [axis]: select.value });
      });
    }
    this.evaluations.addEventListener("change", () => {
      this.model.showEvaluation(this.evaluations.value);
      owner.redraw();
    });
  }

  /** Draw everything. The only place that reads the layout. */
  drawAll() {
    const { model } = this;
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width || !height) return;
    const font = `12px ${getComputedStyle(this.canvas).fontFamily}`;
    const held = this.focused?.dataset.key;
    const isEmpty = !model.series.some((series) => series.kind !== "training" && series.points.length);
    // Points that come in the middle of a drag must not shift the axes under the pointer.
    const isHeld = this.owner.isDragging && this.frame;
    const zoom = isHeld ? [this.frame.x, this.frame.y].map(({ low, high }) => [low, high]) : this.zoom;
    this.frame = makeFrame(model, { width, height }, zoom, font);
    this.drawing.draw(model, this.frame, isEmpty);
    if (this.zoom && !this.drawing.targets.length) this.setZoom(null); // other points: nothing of them is in the box
    this.live.resize(this.frame);
    this.drawBars();
    this.legend.draw(model);
    this.empty.hidden = !isEmpty;
    this.drawLive();
    const here = held ?? model.here.measured?.key;
    const stop = this.drawing.targets.find(({ point }) => point.key === here) ?? this.reachable()[0];
    stop?.node.setAttribute("tabindex", 0);
    if (held && stop?.point.key === held) stop.node.focus({ preventScroll: true });
    else this.point(null);
  }

  drawLive() {
    if (!this.frame) return;
    this.live.draw(this.model, this.frame);
    this.drawing.makeRoom(this.frame, this.live.position);
  }

  drawBars() {
    const { model } = this;
    for (const [axis, select] of Object.entries(this.selects)) {
      const names = [...new Set([...model.data.metrics, model[axis]])];
      fillSelect(select, names.map((name) => [name, metricText(name).title]), model[axis]);
    }
    const notes = evaluationsOf(model.data);
    fillSelect(this.evaluations, notes.map((note) => [note.id, note.label]), model.evaluation);
    this.evaluations.hidden = notes.length < 2;
    this.reset.hidden = !this.zoom;
    setAll(this.dominated, { "aria-pressed": String(model.hidden.has("dominated")) });
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.owner.redraw();
  }

  /** Points that can be chosen, from left to right. */
  reachable() {
    return this.drawing.targets.filter((target) => target.canChoose);
  }

  nearest({ x, y }, targets) {
    let best = null;
    let least = NEAR;
    for (const target of targets) {
      const distance = Math.hypot(target.x - x, target.y - y);
      if (distance <= least) [best, least] = [target, distance];
    }
    return best;
  }

  /** Position of an event in the canvas; its corner was read when the button went down or the mouse came in. */
  locate(event) {
    return { x: event.clientX - this.corner.left, y: event.clientY - this.corner.top };
  }

  /** What a press at a position takes hold of. */
  grip(at) {
    const { position, budgetX } = this.live;
    const isOnMarker = position && Math.hypot(position.x - at.x, position.y - at.y) <= NEAR;
    if (isOnMarker && this.live.pixels) return "marker";
    if (budgetX !== null && Math.abs(budgetX - at.x) <= NEAR_LINE) return "budget";
    return "box";
  }

  press(event) {
    if (event.button !== 0 || !this.frame || this.gesture) return;
    this.corner = this.canvas.getBoundingClientRect();
    const start = this.locate(event);
    const isTouch = event.pointerType === "touch";
    this.gesture = { kind: this.grip(start), start, at: start, isMoving: false, isTouch };
    this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.frame) return;
    if (!this.gesture) {
      this.corner = this.canvas.getBoundingClientRect();
      this.owner.onFrame("hover", () => this.hoverAt(this.locate(event)));
      return;
    }
    const { gesture } = this;
    gesture.at = this.locate(event);
    if (!gesture.isMoving) {
      if (Math.hypot(gesture.at.x - gesture.start.x, gesture.at.y - gesture.start.y) < STILL) return;
      if (gesture.kind === "box" && gesture.isTouch) return;
      gesture.isMoving = true;
      this.point(null);
      if (gesture.kind !== "box") this.owner.begin();
    }
    this.owner.onFrame("drag", () => this.follow());
  }

  /** Let what is held follow the pointer. */
  follow() {
    const { gesture } = this;
    if (!gesture?.isMoving) return;
    if (gesture.kind === "box") this.live.showBox([gesture.start, gesture.at]);
    else if (gesture.kind === "budget") this.owner.move(this.budgetAt(gesture.at.x));
    else {
      const found = this.live.nearestOnCurve(gesture.at.x, gesture.at.y);
      if (found) this.owner.move({ place: { eta: etaOf(found.index) } });
    }
  }

  budgetAt(pixel) {
    const { x } = this.frame;
    const step = niceStep((x.high - x.low) / 200, 1);
    const budget = Math.max(0, Math.round(x.valueAt(Math.min(Math.max(pixel, x.start), x.end)) / step) * step);
    return this.owner.withBudget(Number(budget.toFixed(6)));
  }

  release(event) {
    const { gesture } = this;
    if (!gesture) return;
    gesture.at = this.locate(event);
    if (gesture.isMoving) this.follow();
    this.gesture = null;
    if (!gesture.isMoving) this.click(gesture.start);
    else if (gesture.kind === "box") this.zoomTo(gesture.start, gesture.at);
    else this.owner.end();
  }

  /** The browser took the pointer away: back to where it was. */
  abandon() {
    const { gesture } = this;
    this.gesture = null;
    this.live.showBox(null);
    if (gesture?.isMoving && gesture.kind !== "box") this.owner.cancel();
  }

  click(at) {
    const target = this.nearest(at, this.reachable()) ?? this.nearest(at, this.drawing.pinTargets);
    if (target) this.choose(target.point);
  }

  choose(point) {
    // Every place with eta 0 is the SFT policy: the other sliders stay where they are.
    this.owner.set({ place: isSft(point.place) ? { eta: 0, towards: "sft" } : point.place });
  }

  zoomTo(a, b) {
    this.live.showBox(null);
    const { x, y } = this.frame;
    const clamp = (scale, pixel) =>
      scale.valueAt(Math.min(Math.max(pixel, Math.min(scale.start, scale.end)), Math.max(scale.start, scale.end)));
    if (Math.abs(a.x - b.x) < 8 || Math.abs(a.y - b.y) < 8) return;
    const range = (scale, p, q) => [clamp(scale, p), clamp(scale, q)].sort((low, high) => low - high);
    this.setZoom([range(x, a.x, b.x), range(y, a.y, b.y)]);
  }

  hoverAt(at) {
    if (this.gesture) return;
    const grip = this.grip(at);
    const target = this.nearest(at, this.drawing.targets) ?? this.nearest(at, this.drawing.pinTargets);
    this.canvas.dataset.cursor = target?.canChoose && grip !== "marker" ? "point" : grip;
    if (target) this.point(target);
    else this.pointCurve(at);
  }

  /** Show ring and tooltip of a point; null: none. */
  point(target) {
    this.live.showHover(target);
    if (!target) {
      this.tip.classList.remove("shown");
      return;
    }
    this.showTip(describePoint(this.model, target.point), target);
  }

  pointCurve(at) {
    this.live.showHover(null);
    const found = this.live.nearestOnCurve(at.x, at.y);
    if (!found || found.distance > 9) {
      this.tip.classList.remove("shown");
      return;
    }
    const eta = etaOf(found.index);
    const lines = [`predicted at eta ${formatShare(eta)}`];
    for (const metric of new Set(["reward", "kl", this.model.y, this.model.x])) {
      const curve = this.model.curve(metric);
      if (!curve) continue;
      const { name, unit } = metricText(metric);
      const error = this.model.surface.metrics[metric].loo_rmse;
      lines.push(`${name} ${formatWithError(curve[found.index], error)} ${unit}`.trim());
    }
    this.showTip(lines, { x: this.live.pixels.x[found.index], y: this.live.pixels.y[found.index] });
  }

  showTip([title, ...lines], { x, y }) {
    this.tip.replaceChildren(html("strong", {}, title), ...lines.map((line) => html("span", {}, line)));
    this.tip.classList.add("shown");
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    const left = x + 16 + width > this.frame.width ? x - 16 - width : x + 16;
    const top = Math.min(Math.max(y - height / 2, 2), this.frame.height - height - 2);
    this.tip.style.transform = `translate(${Math.round(Math.max(left, 2))}px, ${Math.round(top)}px)`;
  }

  focusPoint(node) {
    const target = node && this.drawing.targets.find((each) => each.node === node);
    this.focused = target ? node : null;
    this.point(target || null);
  }

  pressKey(event) {
    const list = this.reachable();
    const index = list.findIndex(({ node }) => node === this.focused);
    if (index < 0) return;
    const last = list.length - 1;
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowUp: index + 1, ArrowDown: index - 1,
      Home: 0, End: last }[event.key];
    if (next !== undefined) {
      const { node } = list[Math.min(Math.max(next, 0), last)];
      list[index].node.setAttribute("tabindex", -1);
      node.setAttribute("tabindex", 0);
      node.focus();
    } else if (event.key === "Enter" || event.key === " ") this.choose(list[index].point);
    else return;
    event.preventDefault();
  }
}

function etaOf(index) {
  return Math.round(index * ETA_STEP * 1e4) / 1e4;
}

function fillSelect(select, options, value) {
  const drawn = JSON.stringify(options);
  if (select.dataset.drawn !== drawn) {
    select.dataset.drawn = drawn;
    select.replaceChildren(...options.map(([id, text]) => html("option", { value: id }, text)));
  }
  select.value = value;
}
