// What the server answers, as elements of the page.
import { element, percent, signed } from "./elements.js";

const SHOWN_CLASSES = 8;

/** Return the predicted class or labels, and the probabilities of the classes. */
export function predictionNode(prediction) {
  const { label, labels, set, abstained, outlier_p_values: outliers } = prediction;
  const names = labels ?? (label === null || label === undefined ? [] : [label]);
  const node = element("div", { className: "card" });
  const title = abstained ? "The model abstains" : names.length ? names.join(", ") : "No label";
  node.append(element("p", { className: "label" }, title));
  if (abstained) node.append(element("p", { className: "hint" }, "It has too much doubt about this sample."));
  if (set) node.append(element("p", {}, `Prediction set: ${set.join(", ") || "empty"}`));
  for (const [name, value] of Object.entries(outliers ?? {})) {
    if (value !== null && value < 0.01) node.append(element("p", { className: "warning" }, `${name} is unlike the data of the training (p = ${value.toFixed(3)}).`));
  }
  const classes = Object.entries(prediction.probabilities).sort(([, a], [, b]) => b - a);
  node.append(probabilityList(classes.slice(0, SHOWN_CLASSES), names));
  if (classes.length > SHOWN_CLASSES) {
    const summary = element("summary", {}, `${classes.length - SHOWN_CLASSES} more classes`);
    node.append(element("details", {}, summary, probabilityList(classes.slice(SHOWN_CLASSES), names)));
  }
  return node;
}

function probabilityList(classes, predicted) {
  const rows = classes.map(([name, probability]) => {
    const fill = element("span", { className: "fill" });
    fill.style.width = `${100 * probability}%`;
    const bar = element("span", { className: "bar", "aria-hidden": "true" }, fill);
    const className = predicted.includes(name) ? "predicted" : "";
    return element("li", { className }, element("span", { className: "name" }, name), bar, element("span", { className: "number" }, percent(probability)));
  });
  return element("ul", { className: "probabilities", "aria-label": "Probabilities" }, ...rows);
}

/** Return what each input contributed, with a choice of the class and a button for the evidence.
 *
 * `onTarget` gets the class that is chosen; `onEvidence` is called by the button.
 */
export function explanationNode(explanation, classes, onTarget, onEvidence) {
  const target = explanation.explained_class;
  const select = element("select", { id: "target" }, ...classes.map((name) => element("option", { value: name, selected: name === target }, name)));
  select.onchange = () => onTarget(select.value);
  const effects = Object.entries(explanation.inputs).sort(([, a], [, b]) => Math.abs(b.shapley) - Math.abs(a.shapley));
  const largest = Math.max(...effects.map(([, effect]) => Math.abs(effect.shapley))) || 1;
  const head = element("tr", {}, ...["Input", "Contribution", "Without it"].map((title) => element("th", { scope: "col" }, title)));
  const rows = effects.map(([name, effect]) => effectRow(name, effect, target, largest));
  const button = element("button", { type: "button", id: "show-evidence" }, "Highlight what mattered");
  button.onclick = onEvidence;
  return element(
    "div",
    { className: "card" },
    element("div", { className: "row" }, element("h3", {}, "Why?"), element("label", { htmlFor: "target" }, "Class"), select),
    element("p", {}, explanation.summary),
    element("table", {}, element("caption", {}, `Contributions to the log-odds of ${target} (Shapley values)`), element("thead", {}, head), element("tbody", {}, ...rows)),
    element("div", { className: "row actions" }, button),
  );
}

function effectRow(name, effect, target, largest) {
  const raises = effect.shapley >= 0;
  const fill = element("span", { className: `fill ${raises ? "raises" : "lowers"}` });
  fill.style.width = `${50 * Math.abs(effect.shapley) / largest}%`;
  const text = element("span", { className: "number" }, signed(effect.shapley), element("span", { className: "unseen" }, raises ? " raises it" : " lowers it"));
  const bar = element("span", { className: "bar diverging", "aria-hidden": "true" }, fill);
  const decision = effect.decision_without.join(", ") || "no label";
  const without = effect.decision_without.includes(target)
    ? element("td", {}, `still ${target}`, element("span", { className: "hint" }, ` ${percent(effect.without)}`))
    : element("td", {}, element("strong", {}, decision), element("br"), element("span", { className: "hint" }, `${target}: ${percent(effect.without)}`));
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", { className: "effect" }, text, bar), without);
}

/** Return the values of the inputs with the effects of their parts in colour. */
export function evidenceNode(explanation) {
  const legend = element("p", { className: "legend" }, swatch("raises"), ` raises ${explanation.explained_class} `, swatch("lowers"), " lowers it; the strongest part of each input has the strongest colour");
  const figures = Object.entries(explanation.views).map(([name, view]) => evidenceFigure(name, view, explanation.inputs[name].parts.spans));
  return element("div", { className: "card" }, element("h3", { tabIndex: -1 }, "What mattered"), legend, ...figures);
}

const swatch = (kind) => element("span", { className: `swatch ${kind}`, "aria-hidden": "true" });

function evidenceFigure(name, view, spans) {
  const figure = element("figure", {}, element("h4", {}, name), ...contentNodes(name, view));
  const note = element("figcaption", { className: "hint" }, view.note);
  if (spans.length) {
    const strongest = spans.reduce((a, b) => (Math.abs(b.effect) > Math.abs(a.effect) ? b : a));
    const direction = strongest.effect < 0 ? "lowers" : "raises";
    note.prepend(`Strongest: ${describe(strongest, spans, view)}, which ${direction} the log-odds by ${Math.abs(strongest.effect).toFixed(2)}. `);
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
  if (view.outline) return [soundDrawing(name, view), element("audio", { src: view.sound, controls: true, "aria-label": name })];
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
  if (!color) return text;
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
  const drawing = create("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Curve of ${name}, with the effects in colour`, preserveAspectRatio: "none" });
  for (const [x, bandWidth, color] of view.bands) {
    if (color) drawing.append(create("rect", { x, y: 0, width: bandWidth, height, fill: color }));
  }
  drawing.append(create("polygon", { points: view.outline, class: "outline" }));
  return drawing;
}
