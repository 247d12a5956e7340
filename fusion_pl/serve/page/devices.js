// The camera and the microphone.
import { element, seconds } from "./elements.js";

// Only pages of this machine and of https have devices.
export const hasDevices = Boolean(navigator.mediaDevices?.getUserMedia);

/** Explain why a device cannot be used. */
function deviceError(device, error) {
  const reasons = {
    NotAllowedError: `The browser may not use the ${device}: allow it in the address bar.`,
    NotFoundError: `There is no ${device}: choose a file instead.`,
  };
  return new Error(reasons[error.name] ?? `The ${device} cannot be used (${error.message}): choose a file instead.`);
}

function stopStream(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** Show the camera in an element until a picture is taken; return it as a JPEG file, or null. */
export async function takePhoto(place) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw deviceError("camera", error);
  }
  const label = "Picture of the camera";
  const video = element("video", { muted: true, autoplay: true, playsInline: true, "aria-label": label });
  const take = element("button", { type: "button", className: "primary", disabled: true }, "Take the picture");
  const cancel = element("button", { type: "button" }, "Cancel");
  const camera = element("div", { className: "camera" }, video, element("div", { className: "row" }, take, cancel));
  place.append(camera);
  video.srcObject = stream;
  video.onloadeddata = () => {
    take.disabled = false;
    take.focus();
  };
  try {
    const taken = await new Promise((resolve) => {
      take.onclick = () => resolve(true);
      cancel.onclick = () => resolve(false);
    });
    if (!taken) return null;
    const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  } finally {
    stopStream(stream);
    camera.remove();
  }
}

/** Record the microphone, and return a function that stops and returns a WAV file.
 *
 * `onTime` gets the text of the recorded time; `onFull` is called after `maxSeconds`, or `maxBytes` of the file.
 */
export async function startRecording(maxSeconds, maxBytes, onTime, onFull) {
  let stream;
  try {
    // Without the corrections for calls, which change the sound.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw deviceError("microphone", error);
  }
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("recorder.js");
  } catch (error) {
    stopStream(stream);
    await context.close();
    throw deviceError("microphone", error);
  }
  const maxLength = Math.min(maxSeconds * context.sampleRate, maxBytes / 2);
  const channels = { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };
  const recorder = new AudioWorkletNode(context, "recorder", channels);
  const chunks = [];
  let length = 0;
  recorder.port.onmessage = ({ data }) => {
    if (length + data.length > maxLength) return onFull();
    chunks.push(data);
    length += data.length;
    onTime(seconds(length / context.sampleRate));
  };
  context.createMediaStreamSource(stream).connect(recorder);
  return async () => {
    recorder.port.onmessage = null;
    stopStream(stream);
    await context.close();
    if (!length) throw new Error("Nothing was recorded: record for a second.");
    return encodeWav(chunks, length, context.sampleRate);
  };
}

/** Return samples between -1 and 1 as a WAV file of one channel with 16 bits. */
function encodeWav(chunks, length, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * length));
  const text = (offset, letters) => {
    for (let i = 0; i < letters.length; i++) view.setUint8(offset + i, letters.charCodeAt(i));
  };
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); // bytes per second
  view.setUint16(32, 2, true); // bytes per sample
  view.setUint16(34, 16, true); // bits
  text(36, "data");
  view.setUint32(40, 2 * length, true);
  let offset = 44;
  for (const chunk of chunks) {
    for (const sample of chunk) {
      view.setInt16(offset, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
      offset += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}
