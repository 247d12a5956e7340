// The prediction, and what each input contributed to it, as elements of the page.
import { element, percent, signed } from "./elements.js";

const SHOWN_CLASSES = 8;
const span = (className, ...children) => element("span", { className }, ...children);

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
    if (value === null || value >= 0.01) continue;
    const text = `${name} is unlike the data of the training (p = ${value.toFixed(3)}).`;
    node.append(element("p", { className: "warning" }, text));
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
    return element("li", { className }, span("name", name), bar, span("number", percent(probability)));
  });
  return element("ul", { className: "probabilities", "aria-label": "Probabilities" }, ...rows);
}

/** Return what each input contributed, with a choice of the class and a button for the evidence.
 *
 * `onTarget` gets the class that is chosen; `onEvidence` is called by the button.
 */
export function explanationNode(explanation, classes, onTarget, onEvidence) {
  const target = explanation.explained_class;
  const options = classes.map((name) => element("option", { value: name, selected: name === target }, name));
  const select = element("select", { id: "target" }, ...options);
  select.onchange = () => onTarget(select.value);
  const button = element("button", { type: "button", id: "show-evidence" }, "Highlight what mattered");
  button.onclick = onEvidence;
  const label = element("label", { htmlFor: "target" }, "Class");
  return element(
    "div",
    { className: "card" },
    element("div", { className: "row" }, element("h3", {}, "Why?"), label, select),
    element("p", {}, explanation.summary),
    effectTable(explanation),
    element("div", { className: "row actions" }, button),
  );
}

/** Return the table of the inputs, the one that contributed most first. */
function effectTable({ inputs, explained_class: target }) {
  const effects = Object.entries(inputs).sort(([, a], [, b]) => Math.abs(b.shapley) - Math.abs(a.shapley));
  const largest = Math.max(...effects.map(([, effect]) => Math.abs(effect.shapley))) || 1;
  const titles = ["Input", "Contribution", "Without it"].map((title) => element("th", { scope: "col" }, title));
  const rows = effects.map(([name, effect]) => effectRow(name, effect, target, largest));
  return element(
    "table",
    {},
    element("caption", {}, `Contributions to the log-odds of ${target} (Shapley values)`),
    element("thead", {}, element("tr", {}, ...titles)),
    element("tbody", {}, ...rows),
  );
}

function effectRow(name, effect, target, largest) {
  const raises = effect.shapley >= 0;
  const fill = element("span", { className: `fill ${raises ? "raises" : "lowers"}` });
  fill.style.width = `${50 * Math.abs(effect.shapley) / largest}%`;
  const text = span("number", signed(effect.shapley), span("unseen", raises ? " raises it" : " lowers it"));
  const bar = element("span", { className: "bar diverging", "aria-hidden": "true" }, fill);
  const decision = effect.decision_without.join(", ") || "no label";
  const probability = percent(effect.without);
  const without = effect.decision_without.includes(target)
    ? [`still ${target} `, span("hint", probability)]
    : [element("strong", {}, decision), element("br"), span("hint", `${target}: ${probability}`)];
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    element("td", { className: "effect" }, text, bar),
    element("td", {}, ...without),
  );
}
