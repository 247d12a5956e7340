// The parts of the inputs that mattered: words, cells of pictures and windows of sounds in colour.
import { element, soundPlayer } from "./elements.js";

/** Return the values of the inputs with the effects of their parts in colour. */
export function evidenceNode(explanation) {
  const legend = element("p", {}, swatch("raises"), ` raises ${explanation.explained_class} `);
  legend.append(swatch("lowers"), " lowers it; the strongest part of each input has the strongest colour");
  const figures = Object.entries(explanation.views).map(([name, view]) => {
    return evidenceFigure(name, view, explanation.inputs[name].parts.spans);
  });
  return element("div", { className: "card" }, element("h3", { tabIndex: -1 }, "What mattered"), legend, ...figures);
}

const swatch = (kind) => element("span", { className: `swatch ${kind}`, "aria-hidden": "true" });

function evidenceFigure(name, view, spans) {
  const figure = element("figure", {}, element("h4", {}, name), ...contentNodes(name, view));
  const note = element("figcaption", { className: "hint" }, view.note);
  if (spans.length) {
    const strongest = spans.reduce((a, b) => (Math.abs(b.effect) > Math.abs(a.effect) ? b : a));
    const direction = strongest.effect < 0 ? "lowers" : "raises";
    const size = Math.abs(strongest.effect).toFixed(2);
    const sentence = `Strongest: ${describe(strongest, spans, view)}, which ${direction} the log-odds by ${size}. `;
    note.prepend(size === "0.00" ? "No single part changes the log-odds. " : sentence);
  }
  figure.append(note);
  return figure;
}

function contentNodes(name, view) {
  if (view.images.length) {
    const [original, colored] = view.images;
    const pictures = [element("img", { src: original, alt: `${name}, as it was given` })];
    if (colored) pictures.push(element("img", { src: colored, alt: `${name}, with the effects in colour` }));
    return [element("div", { className: "pictures" }, ...pictures)];
  }
  if (view.outline) return [soundDrawing(name, view), soundPlayer(view.sound, name)];
  return [element("p", { className: isText(view) ? "text" : "numbers" }, ...view.pieces.map(coloredPiece))];
}

// The pieces of a text have their effects beside the text, those of numbers in it.
const isText = (view) => view.pieces.some((piece) => piece[2]);

/** Return which part of a value has an effect. */
function describe({ span }, spans, view) {
  if (view.images.length) return position(span, spans);
  if (view.outline) return `${span[0].map((edge) => edge.toFixed(2)).join(" to ")} s`;
  if (!isText(view)) return `number ${view.pieces[spans.findIndex((one) => one.span === span)][0].split(":")[0]}`;
  const [start, end] = span[0];
  return `“${[...view.pieces.map(([text]) => text).join("")].slice(start, end).join("").trim()}”`;
}

function coloredPiece([text, color, effect]) {
  if (!color) return element("span", {}, text);
  const mark = element("mark", { title: effect }, text);
  mark.style.backgroundColor = color;
  return mark;
}

/** Return where a cell of a picture is, such as "top left". */
function position(span, spans) {
  const words = [["top", "middle", "bottom"], ["left", "centre", "right"]];
  const third = span.map(([start, end], axis) => {
    const size = Math.max(...spans.map((one) => one.span[axis][1]));
    return words[axis][Math.min(2, Math.floor(1.5 * (start + end) / size))];
  });
  return third.join(" ");
}

function soundDrawing(name, view) {
  const [width, height] = view.size;
  const create = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const label = `Curve of ${name}, with the effects in colour`;
  const viewBox = `0 0 ${width} ${height}`;
  const drawing = create("svg", { viewBox, preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const [x, bandWidth, color] of view.bands) {
    if (color) drawing.append(create("rect", { x, y: 0, width: bandWidth, height, fill: color }));
  }
  drawing.append(create("polygon", { points: view.outline, class: "outline" }));
  return drawing;
}
