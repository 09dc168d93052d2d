// Making elements. Text only ever becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: properties, attributes (aria-..., role, ...), children (elements or text). */
function html(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  setAll(node, properties);
  node.append(...children);
  return node;
}

/** An SVG element. */
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  setAll(node, attributes);
  node.append(...children);
  return node;
}

function setAll(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) node.removeAttribute(name);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
}

/** Set a text only if it differs: writing the same one again would cost a layout. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Outline of a marker around (0, 0). */
function glyph(shape, r) {
  if (shape === "circle") return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
  const corners = {
    square: [4, 1.25, 45],
    diamond: [4, 1.35, 0],
    triangle: [3, 1.35, 0],
    star: [10, 1.75, 0],
    cross: [12, 1.2, 15],
  }[shape];
  const [count, size, turn] = corners;
  const points = Array.from({ length: count }, (_, i) => {
    const isInner = (shape === "star" && i % 2) || (shape === "cross" && i % 3 === 2);
    const radius = r * size * (isInner ? 0.42 : 1);
    const angle = ((turn + (360 * i) / count - 90) * Math.PI) / 180;
    return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${points.join("L")}z`;
}

/** Width of a text in pixels, as a canvas measures it: no layout of the page is needed. */
function textWidth(text, font) {
  const context = (textWidth.context ??= document.createElement("canvas").getContext("2d"));
  context.font = font;
  return context.measureText(text).width;
}
