// Line charts that share one x axis: small multiples that stay where they are while their data grow.
//
// Streamlit calls the entry function again at every rerun with the same parent: what is on the page is updated, never
// built anew, so that zoom, crosshair and switched-off series survive. All text is set as text.

const SVG = "http://www.w3.org/2000/svg"
const MARGIN = { left: 46, right: 10, top: 6, bottom: 20 }
const HEIGHT = 150
const instances = new WeakMap()

export default function (component) {
  const { data, parentElement } = component
  let one = instances.get(parentElement)
  if (!one || !one.root.isConnected) {
    one = new Lines(parentElement.querySelector(".lines"))
    instances.set(parentElement, one)
  }
  one.update(data)
  return () => {
    one.close()
    instances.delete(parentElement)
  }
}

const element = (name, className, text) => {
  const made = document.createElement(name)
  if (className) made.className = className
  if (text !== undefined) made.textContent = text
  return made
}

const shape = (name, attributes) => {
  const made = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  return made
}

const shortNumber = (value) => {
  if (value === null || value === undefined) return "-"
  const size = Math.abs(value)
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1)
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 4)
}

class Lines {
  constructor(root) {
    this.root = root
    this.range = null // the steps zoomed to, or null for all
    this.at = null // the step under the crosshair, or null for the latest
    this.hidden = new Set()
    this.charts = new Map()
    this.bar = element("div", "bar")
    this.legend = element("div", "legend")
    this.reset = element("button", "reset", "Show all steps")
    this.reset.type = "button"
    this.reset.addEventListener("click", () => this.zoom(null))
    this.bar.append(this.legend, this.reset)
    this.grid = element("div", "grid")
    this.grid.tabIndex = 0
    this.grid.setAttribute("role", "group")
    this.grid.addEventListener("keydown", (event) => this.onKey(event))
    this.root.replaceChildren(this.bar, this.grid)
    this.watcher = new ResizeObserver(() => this.draw())
    this.watcher.observe(this.grid)
  }

  close() {
    this.watcher.disconnect()
  }

  update(data) {
    if (this.data && this.data.of !== data.of) {
      this.range = this.at = null
      this.hidden.clear()
      this.legend.replaceChildren()
    }
    this.data = data
    this.grid.setAttribute("aria-label", data.label)
    const wanted = data.charts.map((chart) => chart.id)
    for (const [id, chart] of this.charts) {
      if (wanted.includes(id)) continue
      chart.figure.remove()
      this.charts.delete(id)
    }
    for (const chart of data.charts) if (!this.charts.has(chart.id)) this.addChart(chart)
    for (const id of wanted) this.grid.append(this.charts.get(id).figure)
    if (this.range && this.range[0] >= data.x_max) this.range = null
    this.drawLegend()
    this.draw()
  }

  // The theme's colour of a series: read anew at every draw, since the theme may have been switched.
  readColors() {
    const listed = getComputedStyle(this.root).getPropertyValue("--st-chart-categorical-colors")
    this.colors = listed.split(",").map((one) => one.trim())
  }

  color({ number }) {
    return this.colors[(number - 1) % this.colors.length] || "currentColor"
  }

  addChart({ id }) {
    const figure = element("figure", "chart")
    const head = element("figcaption", "head")
    const title = element("span", "title")
    const values = element("span", "values")
    head.append(title, values)
    const svg = shape("svg", { height: HEIGHT, role: "img" })
    figure.append(head, svg)
    const chart = { figure, title, values, svg }
    svg.addEventListener("pointermove", (event) => this.onMove(chart, event))
    svg.addEventListener("pointerleave", () => this.point(null))
    svg.addEventListener("pointerdown", (event) => this.onDown(chart, event))
    svg.addEventListener("pointerup", (event) => this.onUp(chart, event))
    svg.addEventListener("pointercancel", () => this.endDrag())
    svg.addEventListener("dblclick", () => this.zoom(null))
    this.charts.set(id, chart)
  }

  drawLegend() {
    this.readColors()
    const names = this.data.names
    for (const one of this.legend.children) one.firstChild.style.background = this.color({ number: one.dataset.number })
    const known = [...this.legend.children].map((one) => one.dataset.name)
    if (names.length === known.length && names.every((one, place) => one.name === known[place])) return
    this.legend.replaceChildren(
      ...names.map(({ name, number }) => {
        const button = element("button", "entry")
        button.type = "button"
        button.dataset.name = name
        button.dataset.number = number
        const swatch = element("span", "swatch")
        swatch.style.background = this.color({ number })
        button.append(swatch, element("span", "", name))
        button.setAttribute("aria-pressed", String(!this.hidden.has(name)))
        button.addEventListener("click", () => {
          if (!this.hidden.delete(name)) this.hidden.add(name)
          button.setAttribute("aria-pressed", String(!this.hidden.has(name)))
          this.draw()
        })
        return button
      }),
    )
    this.legend.hidden = names.length < 2
  }

  draw() {
    if (!this.data) return
    this.readColors()
    this.reset.disabled = this.range === null
    for (const chart of this.data.charts) this.drawChart(this.charts.get(chart.id), chart)
    this.drawCrosshair()
  }

  drawChart(chart, { title, series }) {
    const width = Math.max(160, chart.figure.clientWidth)
    const [from, to] = this.range ?? [this.data.x_min, this.data.x_max]
    const shown = series.filter((one) => !this.hidden.has(one.name))
    const low_high = extent(shown, from, to)
    chart.x = (step) => MARGIN.left + ((step - from) / (to - from || 1)) * (width - MARGIN.left - MARGIN.right)
    chart.step = (x) => from + ((x - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (to - from || 1)
    const y = (value) =>
      HEIGHT - MARGIN.bottom - ((value - low_high[0]) / (low_high[1] - low_high[0])) * (HEIGHT - MARGIN.top - MARGIN.bottom)
    chart.y = y
    chart.series = series
    chart.title.textContent = title
    chart.svg.setAttribute("width", width)
    chart.svg.setAttribute("aria-label", `${title}: ${spoken(shown)}`)
    const inside = shape("g", {})
    const right = width - MARGIN.right
    for (const tick of niceTicks(...low_high, 4).values) {
      inside.append(shape("line", { class: "rule", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) }))
      inside.append(label(shortTick(tick), { x: MARGIN.left - 6, y: y(tick) + 3.5, "text-anchor": "end" }))
    }
    // No more of them than there are steps, so that each is a whole number.
    for (const tick of niceTicks(from, to, Math.min(4, to - from)).values) {
      inside.append(label(String(tick), { x: chart.x(tick), y: HEIGHT - 5, "text-anchor": "middle" }))
    }
    const clip = shape("svg", { x: MARGIN.left, y: 0, width: right - MARGIN.left, height: HEIGHT - MARGIN.bottom + 2 })
    const moved = shape("g", { transform: `translate(${-MARGIN.left} 0)` })
    for (const one of shown) {
      if (one.raw) moved.append(shape("path", { class: "raw", d: path(one.x, one.raw, chart), stroke: this.color(one) }))
      moved.append(shape("path", { class: "line", d: path(one.x, one.y, chart), stroke: this.color(one) }))
    }
    clip.append(moved)
    chart.band = shape("rect", { class: "band", y: MARGIN.top, height: HEIGHT - MARGIN.top - MARGIN.bottom, width: 0 })
    chart.cross = shape("g", { class: "cross" })
    const empty = shown.some((one) => one.y.some((value) => value !== null))
      ? []
      : [label("nothing yet", { x: (MARGIN.left + right) / 2, y: HEIGHT / 2, "text-anchor": "middle" })]
    chart.svg.replaceChildren(inside, clip, chart.band, chart.cross, ...empty)
  }

  drawCrosshair() {
    for (const [, chart] of this.charts) {
      if (!chart.cross) continue
      chart.cross.replaceChildren()
      const found = chart.series
        .filter((one) => !this.hidden.has(one.name))
        .map((one) => ({ one, place: nearest(one, this.at) }))
        .filter(({ place }) => place >= 0)
      if (this.at !== null && found.length) {
        const x = chart.x(found[0].one.x[found[0].place])
        chart.cross.append(shape("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }))
        for (const { one, place } of found) {
          const dot = { cx: chart.x(one.x[place]), cy: chart.y(one.y[place]), r: 3, fill: this.color(one) }
          chart.cross.append(shape("circle", dot))
        }
      }
      chart.values.replaceChildren(...readout(found, this.at, this.data.x_label, (one) => this.color(one)))
    }
  }

  point(step) {
    this.at = step
    this.drawCrosshair()
  }

  zoom(range) {
    this.range = range
    this.draw()
  }

  stepAt(chart, event) {
    const x = event.clientX - chart.svg.getBoundingClientRect().left
    return Math.min(this.data.x_max, Math.max(this.data.x_min, chart.step(x)))
  }

  onDown(chart, event) {
    if (event.button !== 0) return
    this.drag = { chart, from: this.stepAt(chart, event) }
    chart.svg.setPointerCapture(event.pointerId)
  }

  onMove(chart, event) {
    const step = this.stepAt(chart, event)
    this.point(Math.round(step))
    if (this.drag?.chart !== chart) return
    const [left, right] = [this.drag.from, step].map(chart.x).sort((a, b) => a - b)
    chart.band.setAttribute("x", left)
    chart.band.setAttribute("width", right - left)
  }

  onUp(chart, event) {
    if (this.drag?.chart !== chart) return
    const [from, to] = [this.drag.from, this.stepAt(chart, event)].sort((a, b) => a - b).map(Math.round)
    this.endDrag()
    if (to - from >= 2) this.zoom([from, to])
  }

  endDrag() {
    this.drag = null
    for (const [, chart] of this.charts) chart.band?.setAttribute("width", 0)
  }

  onKey(event) {
    const { x_min, x_max } = this.data
    const now = this.at ?? x_max
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: x_min, End: x_max }
    if (event.key === "Escape") {
      this.at === null ? this.zoom(null) : this.point(null)
    } else if (event.key in moves) {
      this.point(Math.min(x_max, Math.max(x_min, moves[event.key])))
    } else return
    event.preventDefault()
  }
}

const label = (text, attributes) => {
  const made = shape("text", attributes)
  made.textContent = text
  return made
}

const shortTick = (value) => (Math.abs(value) >= 1e4 ? value.toExponential(0) : String(Number(value.toPrecision(4))))

// The lowest and the highest value on screen, with room around them.
const extent = (series, from, to) => {
  let low = Infinity
  let high = -Infinity
  for (const one of series) {
    one.x.forEach((step, place) => {
      if (step < from || step > to) return
      for (const value of [one.y[place], one.raw ? one.raw[place] : null]) {
        if (value === null) continue
        low = Math.min(low, value)
        high = Math.max(high, value)
      }
    })
  }
  if (low > high) return [0, 1]
  const room = spanOf(low, high) * 0.06
  return [low - room, high + room]
}

const path = (x_S, y_S, chart) => {
  let text = ""
  let pen = "M"
  x_S.forEach((step, place) => {
    const value = y_S[place]
    if (value === null) pen = "M"
    else {
      text += `${pen}${chart.x(step).toFixed(1)} ${chart.y(value).toFixed(1)}`
      pen = "L"
    }
  })
  // A line of one point is a dot, thanks to its round ends.
  return text.lastIndexOf("M") === 0 && !text.includes("L") ? `${text}h0.01` : text
}

// The place of the measured step that is nearest to `at`, of the latest where `at` is null; -1 where there is none.
const nearest = (one, at) => {
  let best = -1
  one.x.forEach((step, place) => {
    if (one.y[place] === null) return
    if (best < 0 || at === null || Math.abs(step - at) <= Math.abs(one.x[best] - at)) best = place
  })
  return best
}

const readout = (found, at, unit, color) => {
  if (!found.length) return []
  const steps = found.map(({ one, place }) => one.x[place])
  const where = element("span", "where", at === null ? "latest" : `${unit} ${Math.max(...steps)}`)
  const values = found.map(({ one, place }) => one.y[place])
  if (found.length > 4) {
    return [where, element("span", "", `${shortNumber(Math.min(...values))} to ${shortNumber(Math.max(...values))}`)]
  }
  return [
    where,
    ...found.map(({ one }, place) => {
      const made = element("span", "value", shortNumber(values[place]))
      const swatch = element("span", "swatch")
      swatch.style.background = color(one)
      made.prepend(swatch)
      return made
    }),
  ]
}

const spoken = (shown) => {
  const said = shown.map((one) => {
    const place = nearest(one, null)
    return place < 0 ? "" : `${one.name} ${shortNumber(one.y[place])} at ${one.x[place]}`
  })
  return said.filter(Boolean).join(", ") || "nothing yet"
}
