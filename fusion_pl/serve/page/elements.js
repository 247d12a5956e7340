// Small functions that the other files share.

/** Create an element: `element("p", { className: "hint" }, "text", child, …)`. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const percent = (probability) => `${(100 * probability).toFixed(1)}\u00a0%`;

export const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;

export const seconds = (number) => `${Math.floor(number / 60)}:${String(Math.floor(number % 60)).padStart(2, "0")}`;

/** Return a player; under that of a short sound is its length, because the controls show whole seconds only. */
export function soundPlayer(url, name) {
  const player = element("audio", { src: url, controls: true, "aria-label": name });
  player.onloadedmetadata = () => {
    if (player.duration < 10) player.after(element("p", { className: "hint" }, `${player.duration.toFixed(1)} s`));
  };
  return player;
}

/** Return a file as a data URL, the form in which the server takes it. */
export function toDataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read: choose it again."));
    reader.readAsDataURL(blob);
  });
}
