// Build the form from what the server says about its model, and show its answers.
import { explanationNode, predictionNode } from "./answer.js";
import { element } from "./elements.js";
import { evidenceNode } from "./evidence.js";
import { createField } from "./fields.js";

const $ = (id) => document.getElementById(id);
const state = { token: null, info: null, fields: [], sample: null, turn: 0 };

/** Send a request, and return the answer; an error has one sentence. */
async function ask(path, body = null) {
  const headers = body === null ? {} : { "Content-Type": "application/json" };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  let response;
  try {
    const method = body === null ? "GET" : "POST";
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  const content = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (response.ok && !content.error) return content;
  throw Object.assign(new Error(sentence(content.error)), { status: response.status });
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Show the form; ask for the token first if the server has one. */
async function start() {
  try {
    state.info = await ask("info");
  } catch (error) {
    if (error.status === 401) return askForToken();
    $("model").replaceChildren(element("span", { className: "error", role: "alert" }, error.message));
    return undefined;
  }
  const { checkpoint, classes, inputs, limits } = state.info;
  const shown = classes.slice(0, 12).join(", ") + (classes.length > 12 ? " …" : "");
  $("model").textContent = `${checkpoint.file} has ${classes.length} classes: ${shown}`;
  state.fields = Object.entries(inputs).map(([name, kind]) => createField(name, kind, limits));
  $("fields").replaceChildren(...state.fields.map((field) => field.node));
  $("token-form").hidden = true;
  document.querySelector("main").hidden = false;
  showExamples((await ask("examples")).examples);
  return undefined;
}

function askForToken() {
  const form = $("token-form");
  form.hidden = false;
  form.querySelector(".error").textContent = state.token ? "This token is wrong." : "";
  $("model").textContent = "";
  $("token").focus();
  form.onsubmit = (event) => {
    event.preventDefault();
    state.token = $("token").value.trim();
    start();
  };
}

function showExamples(examples) {
  $("examples").hidden = !examples.length;
  const buttons = examples.map(({ name, inputs }) => {
    const values = Object.values(inputs).filter((value) => typeof value === "string");
    const picture = values.find((value) => value.startsWith("data:image/"));
    const text = values.find((value) => !value.startsWith("data:"));
    const label = element("span", {}, text && text.trim() ? text.slice(0, 40) : name);
    const image = picture ? element("img", { src: picture, alt: "" }) : null;
    const button = element("button", { type: "button", title: `Example ${name}` }, image, label);
    button.onclick = () => {
      fill(inputs);
      predict();
    };
    return element("li", {}, button);
  });
  $("examples").querySelector("ul").replaceChildren(...buttons);
}

/** Write values into the fields, and end a recording that is still running. */
function fill(inputs) {
  for (const field of state.fields) {
    field.discard?.();
    field.write(inputs[field.name] ?? null);
  }
}

/** Show the prediction for the form, then what each input contributed. */
async function predict() {
  const turn = ++state.turn; // a later question makes this one obsolete
  show("Predicting …");
  clearAnswer();
  try {
    for (const field of state.fields) await field.finish?.();
    const values = state.fields.map((field) => [field.name, field.read()]).filter(([, value]) => value !== null);
    if (!values.length) throw new Error("Fill in at least one of the inputs.");
    state.sample = Object.fromEntries(values);
    const prediction = await ask("predict", state.sample);
    if (turn !== state.turn) return;
    $("prediction").replaceChildren(predictionNode(prediction));
    const label = $("prediction").querySelector(".label").textContent;
    $("answer-title").append(element("span", { className: "unseen" }, `: ${label}`)); // read aloud on focus
    $("answer-title").focus({ preventScroll: matchMedia("(min-width: 900px)").matches });
    await explain(null, turn);
  } catch (error) {
    if (turn === state.turn) fail(error);
  }
}

/** Show what each input contributed to a class; null = the predicted one. */
async function explain(target, turn = ++state.turn) {
  show("Computing what each input contributed …");
  $("evidence").replaceChildren();
  try {
    const query = target === null ? "" : `?target=${encodeURIComponent(target)}`;
    const explanation = await ask(`explain${query}`, state.sample);
    if (turn !== state.turn) return;
    const change = async (name) => {
      await explain(name);
      $("target")?.focus();
    };
    const evidence = () => showEvidence(explanation.explained_class);
    $("explanation").replaceChildren(explanationNode(explanation, state.info.classes, change, evidence));
    show("");
  } catch (error) {
    if (turn === state.turn) fail(error);
  }
}

async function showEvidence(target) {
  const turn = ++state.turn;
  show("Leaving out each word, cell and window once …");
  try {
    const explanation = await ask(`explain?evidence=true&target=${encodeURIComponent(target)}`, state.sample);
    if (turn !== state.turn) return;
    $("evidence").replaceChildren(evidenceNode(explanation));
    $("evidence").querySelector("h3").focus();
    show("");
  } catch (error) {
    if (turn === state.turn) fail(error);
  }
}

function clearAnswer() {
  $("answer-title").textContent = "Answer";
  for (const id of ["prediction", "explanation", "evidence"]) $(id).replaceChildren();
}

function show(text) {
  $("status").textContent = text;
  $("error").hidden = true;
}

function fail(error) {
  $("status").textContent = "";
  $("error").hidden = false;
  $("error").textContent = error.message;
  $("error").scrollIntoView({ block: "nearest" });
}

$("inputs").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
$("inputs").addEventListener("input", () => {
  if ($("prediction").childElementCount) show("The inputs have changed since this answer.");
});
$("inputs").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) predict();
});
$("clear").onclick = () => {
  state.turn++;
  fill({});
  clearAnswer();
  show("");
};
document.addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  const kinds = { image: "image", audio: "sound" };
  const field = file && state.fields.find(({ kind }) => kind === kinds[file.type.split("/")[0]]);
  if (field) field.open(file);
});
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

start();
