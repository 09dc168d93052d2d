// Input fields: a slider with a number beside it, a number alone, a row of choices.

const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -1, PageUp: 1 };

/** Where a key moves a slider from `value`; null for other keys. Arrows 0.01; with shift, and page keys, 0.1. */
function keyTarget(event, value, max) {
  if (event.ctrlKey || event.altKey || event.metaKey) return null;
  if (event.key === "Home") return 0;
  if (event.key === "End") return max;
  if (!(event.key in KEYS)) return null;
  const step = event.shiftKey || event.key.startsWith("Page") ? PAGE_STEP : KEY_STEP;
  const moved = Math.round((value + KEYS[event.key] * step) * 1e4) / 1e4;
  return Math.min(Math.max(moved, 0), max);
}

/** A text field that takes a number from 0 to `max()`. What it does not understand stays, marked, with a word why. */
class NumberField {
  constructor(input, { name, max, say, take }) {
    Object.assign(this, { input, name, max, say, take, isTouched: false });
    input.addEventListener("input", () => {
      this.isTouched = true;
    });
    input.addEventListener("change", () => this.read());
    input.addEventListener("focus", () => input.select());
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.accept(this.shown);
      event.stopPropagation(); // Streamlit's own keys (r, c) cannot see that somebody types in here
    });
  }

  read() {
    const value = parseNumber(this.input.value);
    const isFine = value >= 0 && value <= this.max();
    setAll(this.input, { "aria-invalid": isFine ? null : "true" });
    const most = this.max() === Infinity ? "of 0 or more" : `from 0 to ${this.max()}`;
    this.say(isFine ? "" : `${this.name} takes a number ${most}`);
    if (!isFine) return;
    this.isTouched = false;
    this.take(value);
  }

  accept(text) {
    this.isTouched = false;
    setAll(this.input, { "aria-invalid": null });
    this.say("");
    this.input.value = text;
  }

  draw(text) {
    if (this.isTouched || (this.shown === text && this.input.value === text)) return;
    this.shown = text;
    this.input.value = text;
  }
}

/** A native range input, for the keyboard and for screen readers, and a NumberField for the same value. */
class SliderField {
  constructor({ label, name, step, owner, say, max, toChange, onDouble }) {
    Object.assign(this, { owner, max, toChange, value: 0 });
    this.range = html("input", { type: "range", min: 0, max: 1, step, "aria-label": name });
    const number = html("input", {
      class: "number", type: "text", inputmode: "decimal", autocomplete: "off", "aria-label": `${name}, as a number`,
    });
    this.marks = html("span", { class: "marks", "aria-hidden": "true" });
    this.label = html("span", { class: "name", title: label }, label);
    const track = html("span", { class: "track" }, this.range, this.marks);
    this.node = html("div", { class: "field" }, this.label, track, number);
    this.number = new NumberField(number, { name, max, say, take: (value) => owner.set(toChange(value)) });
    this.listen(onDouble);
  }

  listen(onDouble) {
    const { range, owner } = this;
    range.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      owner.begin();
      const options = { once: true, capture: true };
      const end = () => {
        window.removeEventListener("pointerup", end, options);
        window.removeEventListener("pointercancel", end, options);
        owner.end();
      };
      window.addEventListener("pointerup", end, options);
      window.addEventListener("pointercancel", end, options);
    });
    range.addEventListener("input", () => {
      const change = this.toChange(Number(range.value));
      if (owner.isDragging) owner.move(change);
      else owner.setSoon(change);
    });
    range.addEventListener("keydown", (event) => {
      const value = keyTarget(event, this.value, this.max());
      if (value === null) return;
      event.preventDefault();
      if (value === this.value) return;
      this.value = value; // the next key may come before the next frame
      owner.setSoon(this.toChange(value));
    });
    range.addEventListener("blur", () => owner.flush());
    if (onDouble) range.addEventListener("dblclick", onDouble);
  }

  /** Show a value; spoken: what a screen reader says of it. */
  draw(value, spoken) {
    this.value = value;
    const max = this.max();
    if (Number(this.range.max) !== max) this.range.max = max;
    if (Number(this.range.value) !== value) this.range.value = value;
    this.node.style.setProperty("--fill", (value / max).toFixed(4));
    setAll(this.range, { "aria-valuetext": spoken });
    this.number.draw(formatShare(value));
  }

  /** Small marks under the track. */
  drawMarks(values) {
    const drawn = values.join() + this.max();
    if (drawn === this.drawnMarks) return;
    this.drawnMarks = drawn;
    this.marks.replaceChildren(...values.map((value) => html("i", { "--at": (value / this.max()).toFixed(4) })));
  }
}

/** A row of choices of which one holds: native radio buttons. */
class Choice {
  constructor(name, label, pick) {
    this.name = name;
    this.buttons = html("div", { class: "segments", role: "radiogroup", "aria-label": label });
    this.node = html("div", { class: "choice" }, html("span", { class: "name" }, label), this.buttons);
    this.buttons.addEventListener("change", (event) => pick(event.target.value));
  }

  /** options: [value, text] pairs. */
  draw(options, value, isDisabled = false) {
    const drawn = JSON.stringify(options);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      this.buttons.replaceChildren(...options.map(([id, text]) =>
        html("label", {}, html("input", { type: "radio", name: this.name, value: id }), html("span", {}, text))));
    }
    for (const input of this.buttons.querySelectorAll("input")) {
      input.checked = input.value === String(value);
      input.disabled = isDisabled;
    }
  }
}
