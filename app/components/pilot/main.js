// The component: one Pilot for each place where Streamlit shows it.

const KEY_WAIT_MS = 250; // a position set by keys is sent when no key came for so long

class Pilot {
  constructor(root) {
    this.model = new Model();
    this.root = root.querySelector(".pilot");
    this.isDragging = false;
    this.seq = 0; // of the latest event that was sent
    this.timer = null;
    this.jobs = new Map();
    this.plot = new Plot(this.root, this);
    this.controls = new Controls(this.root, this);
  }

  /** New data, or the same once more: Streamlit calls on every script run and whenever the theme changes. */
  update(component) {
    const { data, setStateValue } = component;
    this.send = setStateValue;
    this.data = data;
    this.root.style.setProperty("--pilot-height", `${data.height}px`);
    this.model.takeData(data);
    this.takeView();
    this.plot.wake();
    this.onFrame("draw", () => this.drawMoving());
    if (this.lookChanged()) this.redraw();
  }

  /** Whether anything differs that the still part of the plot shows. */
  lookChanged() {
    const { points_revision, geometry_revision, prediction_revision, pins, reference, policies, metrics } = this.data;
    const shown = [points_revision, geometry_revision, prediction_revision, pins, reference, policies, metrics];
    const look = JSON.stringify([...shown, this.snapshot()]);
    const isNew = look !== this.look;
    this.look = look;
    return isNew;
  }

  /** Not shown any more. Another `update` wakes it. */
  sleep() {
    this.plot.sleep();
    clearTimeout(this.timer);
    this.timer = null;
  }

  /** Take the position from Python, unless the user has moved on since, or is just moving. */
  takeView() {
    const isOther = this.model.weights.length !== this.data.policies.length; // other models: their sliders are others
    if (!isOther && (this.isDragging || this.timer !== null || this.data.seq < this.seq)) return;
    this.seq = this.data.seq;
    this.model.takeView(this.data);
    this.known = JSON.stringify(this.snapshot());
  }

  /** A drag begins: until `end` nothing is sent and nothing taken. */
  begin() {
    this.flush();
    this.isDragging = true;
    const { place, budget, isMixed } = this.model;
    this.start = { place, budget, isMixed };
  }

  /** A step of a drag. */
  move(change) {
    this.apply(change);
    this.onFrame("draw", () => this.drawMoving());
  }

  /** The drag ended: send where, if it is elsewhere. */
  end() {
    this.isDragging = false;
    if (!this.commit()) this.takeView();
    this.redraw();
  }

  /** The drag never happened. */
  cancel() {
    this.isDragging = false;
    this.apply(this.start);
    this.takeView();
    this.redraw();
  }

  /** A change that is complete by itself: a click, a typed number. */
  set(change) {
    this.apply(change);
    this.commit();
    this.redraw();
  }

  /** A change by keys, of which more may follow. */
  setSoon(change) {
    this.apply(change);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), KEY_WAIT_MS);
    this.onFrame("draw", () => this.drawMoving());
  }

  /** Send what `setSoon` left. */
  flush() {
    if (this.timer === null) return;
    this.commit();
    this.redraw();
  }

  toggle(id) {
    const hidden = new Set(this.model.hidden);
    if (!hidden.delete(id)) hidden.add(id);
    this.set({ hidden });
  }

  /** The change that a budget means: eta goes to where the predicted KL meets it. */
  withBudget(budget) {
    const eta = this.model.etaWithin(budget);
    return eta === null ? { budget } : { budget, place: { eta } };
  }

  apply({ place, weight, ...rest }) {
    if (place) this.model.moveTo(place);
    if (weight) this.model.setWeight(...weight);
    Object.assign(this.model, rest);
  }

  snapshot() {
    const { budget, x, y, extrapolate, hidden } = this.model;
    return { place: this.model.sentPlace(), budget, x, y, extrapolate, hidden: [...hidden] };
  }

  /** Send what Python does not know yet. Returns whether there was anything. */
  commit() {
    clearTimeout(this.timer);
    this.timer = null;
    const now = JSON.stringify(this.snapshot());
    if (now === this.known) return false;
    this.known = now;
    this.seq += 1;
    this.send("view", { ...this.snapshot(), seq: this.seq });
    this.onFrame("announce", () => this.controls.readout.announce(this.model));
    return true;
  }

  drawMoving() {
    this.controls.draw();
    this.plot.drawLive();
  }

  redraw() {
    this.onFrame("draw", () => this.drawMoving());
    this.onFrame("plot", () => this.plot.drawAll());
  }

  /** Do something once in the next frame, the latest of its name. */
  onFrame(name, job) {
    if (this.jobs.size === 0) {
      requestAnimationFrame(() => {
        const jobs = [...this.jobs.values()];
        this.jobs.clear();
        for (const each of jobs) each();
      });
    }
    this.jobs.set(name, job);
  }
}

const pilots = new WeakMap();

export default function (component) {
  const { parentElement } = component;
  if (!pilots.has(parentElement)) pilots.set(parentElement, new Pilot(parentElement));
  const pilot = pilots.get(parentElement);
  // Streamlit may call the cleanup of an earlier call while a later one is shown: only the latest one's counts.
  const call = (pilot.call = Symbol("call"));
  pilot.update(component);
  return () => {
    if (pilot.call === call) pilot.sleep();
  };
}
