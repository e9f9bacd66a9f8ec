// Recordings from the microphone, as WAV: browsers record WebM or MP4, which models do not take.

import { element } from "./dom.js";

const RATE = 16_000;
const HEAD_BYTES = 44;

/** Samples from -1 to 1 as a WAV file of 16 bits, mono (RIFF, 1991, chapter 3). */
function wav(samples) {
  const view = new DataView(new ArrayBuffer(HEAD_BYTES + 2 * samples.length));
  const name = (place, text) => [...text].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  name(0, "RIFF");
  view.setUint32(4, HEAD_BYTES - 8 + 2 * samples.length, true);
  name(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  name(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, place) => {
    const clipped = Math.max(-1, Math.min(1, sample));
    view.setInt16(HEAD_BYTES + 2 * place, Math.round(32_767 * clipped), true);
  });
  return new Blob([view], { type: "audio/wav" });
}

/** What a browser recorded, decoded, mixed to mono and resampled. */
async function converted(blob) {
  const data = await blob.arrayBuffer();
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(data);
  const length = Math.max(1, Math.ceil(decoded.duration * RATE));
  const context = new OfflineAudioContext(1, length, RATE);
  const source = context.createBufferSource();
  source.buffer = decoded;
  source.connect(context.destination);
  source.start();
  return wav((await context.startRendering()).getChannelData(0));
}

/** A button that records and then gives the recording; nothing where there is no microphone. */
export function recorder(onRecording) {
  const status = element("p", { className: "hint", role: "status" });
  let running = null;
  const leaving = new MutationObserver(() => {
    if (!node.isConnected) stop(); // another model, or signed out: nobody sees that it records
  });

  function stop() {
    leaving.disconnect();
    button.textContent = "Record";
    status.textContent = "";
    running?.stop();
    running = null;
  }

  async function start() {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const off = () => stream.getTracks().forEach((track) => track.stop());
    if (!node.isConnected || running) {
      off();
      return;
    }
    const parts = [];
    const recording = new MediaRecorder(stream);
    recording.ondataavailable = (event) => parts.push(event.data);
    recording.onstop = async () => {
      off();
      try {
        onRecording(await converted(new Blob(parts, { type: recording.mimeType })));
      } catch (error) {
        status.textContent = `The recording cannot be read: ${error.message}`;
      }
    };
    running = recording;
    recording.start();
    leaving.observe(document.body, { childList: true, subtree: true });
    button.textContent = "Stop recording";
    status.textContent = "Recording …";
  }

  async function toggle() {
    try {
      if (running) stop();
      else await start();
    } catch (error) {
      stop();
      status.textContent = `The microphone cannot be used: ${error.message}`;
    }
  }

  if (!navigator.mediaDevices) {
    return element("p", { className: "hint" }, "Recording needs https, or an address of this machine.");
  }
  const button = element("button", { type: "button", className: "second", onclick: toggle }, "Record");
  const node = element("div", {}, button, status);
  return node;
}
