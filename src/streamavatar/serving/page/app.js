// Ties the page together: what is chosen, the session that runs, and what the controls do to it.

import { Api } from "./api.js";
import { Microphone } from "./audio.js";
import { OwnFaces } from "./faces.js";
import { Live } from "./live.js";
import { Talk } from "./talk.js";
import * as ui from "./ui.js";

const { $ } = ui;
const api = new Api();
const figures = new ui.Figures();
const microphone = new Microphone();
const faces = new OwnFaces(api);

let phase = "off";
let live = null;
let talk = null; // what is said in it
let run = null; // AbortController of the session that runs or is being opened
let avatars = [];
let chosen = null;
let conversing = false;
const waiting = []; // what to do once the session runs, or does not
let restarts = 0; // in a row, without a session that lasted
let lastEnd = ""; // why the session before ended, until the next one shows a picture
const RESTARTS = 5;
const LASTED = 20_000;
const REPORT_EVERY = 2_000;

function setPhase(next) {
  phase = next;
  ui.showPhase(next);
}

const seconds = (count) => `${count} ${count === 1 ? "second" : "seconds"}`;

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

// starting and stopping -------------------------------------------------------------------------------

async function start() {
  if (run) return;
  run = new AbortController();
  const { signal } = run;
  setPhase("starting");
  ui.caption("Connecting …");
  figures.clear();
  try {
    const session = await openSession(signal);
    if (signal.aborted) return void api.close(session).catch(() => {});
    live = new Live(api, session, handlers(signal));
    talk = new Talk(api, live, ui.subtitle);
    ui.caption("Connected. The first picture is being made …");
    showEngine(session);
    showServer().catch(() => {}); // only a label
    await live.begin(microphone.track, signal);
  } catch (error) {
    if (!signal.aborted) await stop(sentence(error.message), "error");
  }
}

// Waits for a free place.
async function openSession(signal) {
  const wishes = { avatar: chosen?.id, server_barge_in: $("barge-in").checked };
  for (;;) {
    try {
      return await withToken(() => api.open(wishes, signal));
    } catch (error) {
      if (error.status !== 429 && error.status !== 503) throw error;
      await countDown(error, signal);
    }
  }
}

async function countDown(error, signal) {
  setPhase("waiting");
  showServer().catch(() => {}); // only a label
  const why = lastEnd || (error.code === "full" ? "The server is full." : sentence(error.message));
  for (let left = Math.ceil(error.retryAfter ?? 5); left > 0; left -= 1) {
    ui.caption(`${why} Trying again in ${seconds(left)}.`, "warning");
    await pause(1000, signal);
  }
  setPhase("starting");
}

// Runs a call; asks for the server's token and runs it again as long as the server wants one.
async function withToken(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 401) throw error;
      const token = await ui.askToken(api.token !== "");
      if (!token) throw error;
      api.token = token;
    }
  }
}

async function stop(message = "Stopped.", kind = "") {
  const ending = live;
  run?.abort();
  talk?.close();
  run = live = talk = null;
  for (const { reject } of waiting.splice(0)) reject(new Stopped());
  $("video").srcObject = null;
  document.documentElement.dataset.state = "idle";
  $("screen").classList.remove("playing");
  setPhase("off");
  ui.caption(message, kind);
  await ending?.close();
  showServer().catch(() => {});
}

class Stopped extends Error {}

// The person wants a session.
function startAfresh() {
  restarts = 0;
  lastEnd = "";
  start();
}

const running = () => phase === "live" || phase === "trouble";

// Talk of the session that runs; one is started where there is none. Rejects with Stopped if it comes to nothing.
function talking() {
  if (running()) return Promise.resolve(talk);
  const opened = new Promise((resolve, reject) => waiting.push({ resolve, reject }));
  if (!run) startAfresh();
  return opened;
}

// The session ended without being asked to.
async function ended({ reason, retry }) {
  const why = sentence(reason) || "The session has ended.";
  lastEnd = why;
  restarts += 1;
  const again = retry && restarts <= RESTARTS;
  await stop(again ? `${why} Starting a new one …` : `${why} Press Start for a new one.`, again ? "warning" : "error");
  if (!again) return;
  run = new AbortController();
  setPhase("waiting");
  try {
    await pause(500 * restarts, run.signal);
  } catch {
    return; // stopped by hand
  }
  run = null;
  await start();
}

function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

function handlers(signal) {
  const current = (handle) => (value) => signal.aborted || handle(value);
  let reported = 0;
  return {
    event: current(onEvent),
    stream: current((stream) => {
      if ($("video").srcObject !== stream) $("video").srcObject = stream;
    }),
    measured: current((measured) => {
      figures.browser(measured);
      if (performance.now() - reported < REPORT_EVERY) return;
      reported = performance.now();
      live.report({ av_skew_seconds: measured.skew, received_fps: measured.fps });
    }),
    trouble: current((text) => {
      if (!running()) return;
      setPhase(text ? "trouble" : "live");
      if (text) ui.caption(text, "warning");
      else ui.showState(document.documentElement.dataset.state);
    }),
    ended: current(ended),
  };
}

// what the server tells -------------------------------------------------------------------------------

const EVENTS = {
  "agent.state_updated": ({ state }) => {
    document.documentElement.dataset.state = state;
    if (phase === "live") ui.showState(state);
  },
  "agent.speak_started": ({ speech }) => talk.started(speech),
  "agent.speak_ended": ({ speech, interrupted, playback_position: position }) => {
    talk.ended(speech, interrupted);
    if (interrupted && position > 0) ui.announce(`Interrupted after ${position.toFixed(1)} seconds of speech.`);
  },
  "audio_buffer.full": ({ lane }) => {
    if (lane === "agent") ui.note("say-note", "The avatar still has a lot to say. Please wait a little.", "warning");
  },
  metrics: (message) => figures.server(message),
  error: ({ message }) => ui.note("say-note", sentence(message)),
};

function onEvent(message) {
  EVENTS[message.type]?.(message);
}

function onPicture() {
  $("screen").classList.add("playing");
  if (phase !== "starting") return;
  lastEnd = "";
  setPhase("live");
  ui.showState(document.documentElement.dataset.state);
  for (const { resolve } of waiting.splice(0)) resolve(talk);
  const lasting = run.signal;
  setTimeout(() => lasting.aborted || (restarts = 0), LASTED);
}

// what the person does --------------------------------------------------------------------------------

// Lets something be said in the session. What the server refuses is shown under the text box.
// Gives what `lines` gives, null where it failed.
async function tell(lines) {
  ui.note("say-note", "");
  try {
    return await lines(await talking());
  } catch (error) {
    if (!(error instanceof Stopped) && running()) ui.note("say-note", sentence(error.message));
    return null;
  }
}

async function say() {
  const text = $("say-text").value.trim();
  if (!text) return;
  $("say-text").value = "";
  const said = await tell((session) => session.say(text));
  if (said === null && !$("say-text").value) $("say-text").value = text; // to try again
}

async function converse(lines) {
  if (conversing) return running() ? interrupt() : stop();
  conversing = true;
  ui.showConversing(true);
  await tell((session) => session.converse(lines));
  conversing = false;
  ui.showConversing(false);
}

async function toggleMicrophone() {
  talk?.hush();
  if (microphone.track) {
    await live?.microphone(null);
    microphone.off();
    return ui.showMicrophone(false);
  }
  try {
    await microphone.on(ui.showLevel);
    ui.showMicrophone(true);
    await live?.microphone(microphone.track);
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    ui.caption(denied ? "The browser does not allow the microphone. Allow it next to the address." : `No microphone: ${error.message}`, "warning");
  }
}

async function interrupt() {
  await talk?.interrupt().catch((error) => ui.caption(sentence(error.message), "warning"));
}

// avatars ---------------------------------------------------------------------------------------------

async function choose(avatar) {
  chosen = avatar;
  ui.showPoster(avatar);
  if (!run) return;
  await stop(`Changing to ${avatar.name} …`);
  await start();
}

async function loadAvatars(wanted) {
  avatars = [...(await withToken(() => api.avatars())), ...(await faces.load())];
  const next = avatars.find((avatar) => avatar.id === wanted) ?? avatars[0] ?? null;
  ui.showFaces(avatars, next?.id, choose, removeFace);
  if (next && next.id !== chosen?.id) await choose(next);
}

async function uploadFace(file, crop = "face") {
  ui.note("face-note", "");
  $("face-anyway").hidden = true;
  $("face-progress").hidden = false;
  $("face-progress").value = 0;
  const progress = (part) => ($("face-progress").value = part);
  try {
    const made = await withToken(() => api.uploadAvatar(file, crop, progress));
    faces.add(made);
    await loadAvatars(made.id);
    ui.note("face-note", "Your picture is ready.", "good");
  } catch (error) {
    ui.note("face-note", sentence(error.message));
    $("face-anyway").hidden = error.code !== "no_face";
    $("face-anyway").onclick = () => uploadFace(file, "centre");
  } finally {
    $("face-progress").hidden = true;
  }
}

async function removeFace(avatar) {
  try {
    await withToken(() => api.deleteAvatar(avatar.id));
    faces.remove(avatar);
    ui.note("face-note", `${avatar.name} is deleted.`, "good");
  } catch (error) {
    ui.note("face-note", sentence(error.message));
  }
  await loadAvatars(chosen?.id);
}

// the server ------------------------------------------------------------------------------------------

function showEngine(session) {
  $("engine-size").textContent = `${session.width}×${session.height} pixels, ${session.fps} frames per second.`;
}

async function showServer() {
  const capacity = await api.capacity();
  const { active, sessions, model, device, draining } = capacity;
  const places = draining ? "shutting down" : `${active} of ${sessions} ${sessions === 1 ? "place" : "places"} taken`;
  $("server").textContent = places;
  $("engine").textContent = `${model} on ${device}.`;
  figures.capacity(capacity);
  if (!capacity.speech) ui.noSynthesizer();
}

// The engine takes a while to start; until then the server does not know what it can carry.
async function waitForServer() {
  try {
    await showServer();
  } catch (error) {
    $("server").textContent = error.status === 503 ? "starting …" : "";
    setTimeout(waitForServer, 1000 * (error.retryAfter ?? 3));
  }
}

function bind() {
  $("play").addEventListener("click", startAfresh);
  $("stop").addEventListener("click", () => stop());
  $("microphone").addEventListener("click", toggleMicrophone);
  $("interrupt").addEventListener("click", interrupt);
  $("barge-in").addEventListener("change", () => live?.bargeIn($("barge-in").checked));
  $("sound").addEventListener("click", () => ui.showSound($("video").muted));
  $("video").addEventListener("playing", onPicture);
  $("say-form").addEventListener("submit", (event) => (event.preventDefault(), say()));
  $("say-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("token-dialog").open) interrupt();
  });
  ui.onFile($("drop"), $("audio-file"), (file) => tell((session) => session.speak(file)));
  ui.onFile($("who"), $("face-file"), uploadFace);
  // A file dropped beside the areas must not replace the page.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  window.addEventListener("pagehide", () => stop());
}

async function load() {
  bind();
  ui.showSound(true);
  $("connection").open = matchMedia("(min-width: 860px)").matches; // where there is room for it
  waitForServer();
  try {
    const lines = await api.samples();
    ui.showSamples(lines, (line) => tell((session) => session.play(line)));
    $("conversation").addEventListener("click", () => converse(lines));
    await loadAvatars();
  } catch (error) {
    ui.caption(sentence(error.message), "error");
  }
}

load();
