// One field per input of the model. A field has `node`, `read()`, which returns a value of the request or null,
// `write(value)`, and `problem(text)`, which shows why a value is wrong.
import { hasDevices, startRecording, takePhoto } from "./devices.js";
import { element, soundPlayer, toDataURL } from "./elements.js";

const BASE64_SIZE = 4 / 3; // characters per byte

export function createField(name, kind, limits) {
  const field = ["text", "vector", "json"].includes(kind) ? writtenField(name, kind) : fileField(name, kind, limits);
  field.name = name;
  field.kind = kind;
  return field;
}

/** Return the frame of a field, and a function that shows a problem in it. */
function frame(name, kind, ...children) {
  const note = element("p", { className: "error", role: "alert" });
  const shown = kind === "json" ? "JSON" : kind;
  const isTold = name === shown || (name === "audio" && kind === "sound");
  const legend = element("legend", {}, name, isTold ? null : element("span", { className: "kind" }, shown));
  const node = element("fieldset", { className: "field" }, legend, ...children, note);
  return { node, problem: (text) => { note.textContent = text; } };
}

function writtenField(name, kind) {
  const hints = { vector: "numbers, separated by commas or spaces", json: "JSON" };
  const label = `${name}, ${hints[kind] ?? "text"}`;
  const area = element("textarea", { rows: kind === "text" ? 3 : 2, "aria-label": label });
  if (hints[kind]) area.placeholder = hints[kind];
  const field = frame(name, kind, area);
  area.addEventListener("input", () => field.problem(""));
  field.write = (value) => {
    area.value = value === null ? "" : kind === "text" ? value : JSON.stringify(value);
    field.problem("");
  };
  field.read = () => {
    const text = area.value;
    if (!text.trim()) return null;
    if (kind === "text") return text;
    try {
      return kind === "json" || text.trim().startsWith("[") ? JSON.parse(text) : parseNumbers(text);
    } catch {
      area.focus();
      throw new Error(`${name} cannot be read: expected ${hints[kind]}.`);
    }
  };
  return field;
}

/** Return a list of numbers, in which null is a missing one. */
function parseNumbers(text) {
  return text.trim().split(/\s*[,;]\s*|\s+/).map((word) => {
    const number = word === "null" ? null : Number(word);
    if (word === "" || (number !== null && !Number.isFinite(number))) throw new Error(word);
    return number;
  });
}

const FILES = {
  image: { accept: "image/*", choose: "Choose a picture", drop: "or drop one here" },
  sound: { accept: "audio/*", choose: "Choose a sound", drop: "or drop one here" },
  file: { accept: "", choose: "Choose a file", drop: "or drop one here" },
};

function fileField(name, kind, limits) {
  const { accept, choose, drop } = FILES[kind];
  const input = element("input", { type: "file", accept, hidden: true, "aria-label": name, tabIndex: -1 });
  const chooser = element("button", { type: "button" }, choose);
  const remove = element("button", { type: "button", hidden: true }, "Remove");
  const dropHint = element("span", { className: "hint drop" }, drop);
  const buttons = element("div", { className: "row" }, chooser);
  const preview = element("div", { className: "preview" });
  const place = element("div");
  const field = frame(name, kind, buttons, input, place, preview);
  let value = null;

  const attempt = async (action) => {
    field.problem("");
    try {
      await action();
    } catch (error) {
      field.problem(error.message);
    }
  };
  const changed = () => field.node.dispatchEvent(new Event("input", { bubbles: true }));
  field.read = () => value;
  field.write = (dataURL, fileName = "") => {
    value = dataURL;
    remove.hidden = value === null;
    dropHint.hidden = !remove.hidden;
    field.problem("");
    preview.replaceChildren(...(value === null ? [] : [showFile(kind, value, fileName || `the ${kind}`)]));
  };
  field.open = (file) => attempt(async () => {
    if (file.size * BASE64_SIZE > limits.megabytes * 1e6) {
      const most = (limits.megabytes / BASE64_SIZE).toFixed(1);
      const size = (file.size / 1e6).toFixed(1);
      throw new Error(`${file.name} has ${size} MB, expected at most ${most} MB: choose a smaller file.`);
    }
    field.write(await toDataURL(file), file.name);
    changed();
  });

  chooser.onclick = () => input.click();
  input.onchange = () => {
    if (input.files.length) field.open(input.files[0]);
    input.value = ""; // the same file can be chosen again
  };
  remove.onclick = () => {
    field.write(null);
    changed();
    chooser.focus();
  };
  addDropping(field);
  if (kind === "image") buttons.append(cameraButton(field, place, attempt));
  if (kind === "sound" && hasDevices) buttons.append(recordButton(field, limits, attempt));
  buttons.append(remove, dropHint);
  return field;
}

function showFile(kind, url, name) {
  const caption = element("p", { className: "hint" }, name);
  if (kind === "file") return caption;
  if (kind === "image") {
    const image = element("img", { src: url, alt: name });
    image.onerror = () => image.replaceWith(caption); // a format that the browser cannot show
    return image;
  }
  const player = soundPlayer(url, name);
  player.onerror = () => player.replaceWith(caption);
  return player;
}

function addDropping({ node, open }) {
  const mark = (isOver) => (event) => {
    event.preventDefault();
    node.classList.toggle("over", isOver);
  };
  node.addEventListener("dragover", mark(true));
  node.addEventListener("dragleave", mark(false));
  node.addEventListener("drop", (event) => {
    mark(false)(event);
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
}

function cameraButton(field, place, attempt) {
  const button = element("button", { type: "button" }, "Take a photo");
  if (!hasDevices) { // phones take a photo for a file input, also without https
    const input = element("input", { type: "file", accept: "image/*", capture: "environment", hidden: true });
    input.onchange = () => input.files.length && field.open(input.files[0]);
    button.onclick = () => input.click();
    return button;
  }
  button.onclick = () => attempt(async () => {
    if (place.childElementCount) return;
    const photo = await takePhoto(place);
    button.focus();
    if (photo) await field.open(new File([photo], "the photo", { type: photo.type }));
  });
  return button;
}

function recordButton(field, limits, attempt) {
  const button = element("button", { type: "button" }, "Record");
  const maxBytes = limits.megabytes * 1e6 / BASE64_SIZE * 0.9;
  let stop = null;
  const start = async () => {
    const time = (text) => { button.textContent = `Stop (${text})`; };
    stop = await startRecording(limits.seconds, maxBytes, time, () => button.click());
    button.classList.add("recording");
  };
  const end = () => {
    const finish = stop;
    stop = null;
    button.textContent = "Record";
    button.classList.remove("recording");
    return finish();
  };
  field.finish = async () => { // a recording that is still running when the form is sent
    if (stop) await field.open(new File([await end()], "the recording", { type: "audio/wav" }));
  };
  field.discard = () => stop && end().catch(() => {}); // also if nothing was recorded
  button.onclick = () => attempt(async () => {
    button.disabled = true; // until the microphone has started or stopped
    try {
      await (stop ? field.finish() : start());
    } finally {
      button.disabled = false;
      button.focus();
    }
  });
  return button;
}
