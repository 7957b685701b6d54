// What the page shows. Nothing here talks to the server.

export const $ = (id) => document.getElementById(id);

const STATES = {
  idle: ["idle", "The avatar is waiting."],
  listening: ["listening", "The avatar is listening."],
  talking: ["talking", "The avatar is talking."],
  interrupting: ["stopping", "The avatar stops."],
};
const ANNOUNCED = 3_000; // milliseconds that an announcement stays before the states speak again
const HISTORY = 60; // seconds of the chart

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// phase: off, starting, waiting, live, trouble
export function showPhase(phase) {
  document.documentElement.dataset.phase = phase;
  const on = phase !== "off";
  const live = phase === "live" || phase === "trouble";
  $("play").hidden = on;
  $("stop").disabled = !on;
  for (const id of ["microphone", "interrupt"]) $(id).disabled = !live;
  const words = { off: "off", starting: "connecting", waiting: "waiting", trouble: "reconnecting" };
  if (phase in words) $("pill-text").textContent = words[phase];
}

export function showState(state) {
  document.documentElement.dataset.state = state;
  const [word, sentence] = STATES[state] ?? [state, ""];
  $("pill-text").textContent = word;
  stateSentence = sentence;
  if (!announcement) caption(sentence);
}

// The one line that screen readers hear and that says what is going on.
export function caption(text, kind = "") {
  clearTimeout(announcement);
  announcement = 0;
  $("caption").textContent = text;
  $("caption").dataset.kind = kind;
}

let announcement = 0; // the timer of one that is up
let stateSentence = "";

export function announce(text) {
  caption(text);
  announcement = setTimeout(() => caption(stateSentence), ANNOUNCED);
}

// The words that are heard now, for those who do not hear them.
export function subtitle(who, words) {
  $("subtitle").hidden = !words;
  $("subtitle-who").textContent = `${who}:`;
  $("subtitle-words").textContent = words;
}

export function note(id, text, kind = "error") {
  $(id).hidden = !text;
  $(id).textContent = text;
  $(id).dataset.kind = kind;
}

// The server cannot turn text into speech; recordings still work.
export function noSynthesizer() {
  $("say-text").disabled = $("say-send").disabled = true;
  $("say-hint").textContent =
    "No speech synthesiser is installed on the server (see the extra “tts”). Lines and audio files work.";
}

export function showPoster(avatar) {
  $("poster").src = avatar.picture;
  $("poster").alt = `${avatar.name}, ${avatar.description || "your picture"}`;
  $("poster").hidden = false;
}

export function showLevel(value) {
  $("level").style.transform = `scaleX(${value.toFixed(3)})`;
}

export function showMicrophone(on) {
  $("microphone").setAttribute("aria-pressed", String(on));
  $("microphone-label").textContent = on ? "Mic on" : "Mic off";
  if (!on) showLevel(0);
}

export function showSound(on) {
  $("sound").setAttribute("aria-pressed", String(on));
  $("sound-label").textContent = on ? "Sound on" : "Sound off";
  $("video").muted = !on;
}

// choose(avatar), remove(avatar)
export function showFaces(avatars, chosen, choose, remove) {
  $("faces").replaceChildren(
    ...avatars.map((avatar) => {
      const radio = element("input", { type: "radio", name: "avatar", value: avatar.id, checked: avatar.id === chosen });
      radio.addEventListener("change", () => choose(avatar));
      const picture = element("img", { src: avatar.picture, alt: avatar.description || "", loading: "lazy" });
      const label = element("label", { title: avatar.description || "" }, radio, picture, element("span", { textContent: avatar.name }));
      const tile = element("div", { className: "face" }, label);
      if (avatar.own) {
        const button = element("button", { type: "button", className: "remove", textContent: "×" });
        button.setAttribute("aria-label", `Delete ${avatar.name}`);
        button.addEventListener("click", () => remove(avatar));
        tile.append(button);
      }
      return tile;
    }),
  );
}

// play(sample)
export function showSamples(samples, play) {
  $("samples").replaceChildren(
    ...samples.map((sample) => {
      const who = element("small", { textContent: `${sample.lane === "user" ? "You" : "Avatar"} ` });
      const title = sample.lane === "user" ? "The avatar hears this as your voice" : "The avatar says this";
      const button = element("button", { type: "button", className: `sample ${sample.lane}`, title }, who, sample.title);
      button.dataset.sample = sample.id;
      button.addEventListener("click", () => play(sample));
      return element("li", {}, button);
    }),
  );
}

export function showConversing(yes) {
  $("conversation").classList.toggle("on", yes);
  $("conversation-label").textContent = yes ? "Stop the conversation" : "Whole conversation";
}

// Drag and drop onto an area, and its file input, give one file each time.
export function onFile(area, input, take) {
  const dropping = (yes) => (event) => {
    event.preventDefault();
    area.classList.toggle("over", yes);
  };
  area.addEventListener("dragover", dropping(true));
  area.addEventListener("dragleave", dropping(false));
  area.addEventListener("drop", (event) => {
    dropping(false)(event);
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files[0]);
    input.value = ""; // the same file may be chosen again
  });
}

const ms = (seconds) => `${Math.round(1000 * seconds)} ms`;

// Label, value from what the server and the browser say, how to write it. Unknown values show a dash. Those that matter
// most come first, and large.
const LARGE = 4;
const FIGURES = {
  firstFrame: ["First frame", (all) => all.first_frame_seconds, ms],
  rtf: ["Real-time factor", (all) => all.rtf, (value) => value.toFixed(2)],
  skew: ["Lip-sync skew", (all) => all.skew, (value) => `${value < 0 ? "−" : ""}${ms(Math.abs(value))}`],
  dropped: ["Ticks dropped", (all) => all.dropped_ticks, String],
  fps: ["Frames received", (all) => all.fps, (value) => `${value.toFixed(1)} /s`],
  chunk: ["Chunk now", (all) => all.chunk_seconds?.total, ms],
  p50: ["Chunk, median", (all) => all.p50, ms],
  p99: ["Chunk, slowest 1 %", (all) => all.p99, ms],
  lead: ["Lead", (all) => all.lead_seconds, ms],
  mouth: ["Speech to mouth", (all) => all.speech_to_mouth_seconds, ms],
  silence: ["Interrupt to silence", (all) => all.interrupt_to_silence_seconds, ms],
  queued: ["Speech queued", (all) => all.queued_seconds, (value) => `${value.toFixed(1)} s`],
  roundTrip: ["Round trip", (all) => all.roundTrip, ms],
  late: ["Late chunks", (all) => all.underrun_total?.repeat + all.underrun_total?.freeze, String],
  repeated: ["Ticks repeated", (all) => all.repeated_ticks, String],
  lost: ["Packets lost", (all) => all.packetsLost, String],
};

export class Figures {
  #known = {};
  #chunks = [];
  #limit = 0; // seconds; a chunk that takes longer than it plays is late

  constructor() {
    const rows = Object.entries(FIGURES).map(([name, [label]], place) => {
      const value = element("dd", { textContent: "–" });
      value.dataset.figure = name;
      const className = place < LARGE ? "large" : "";
      return element("div", { className }, element("dt", { textContent: label }), value);
    });
    $("figures").replaceChildren(...rows);
  }

  clear() {
    this.#known = {};
    this.#chunks = [];
    this.#show();
  }

  // What the server measured when it started.
  capacity({ chunk_seconds: chunks, chunk_budget_seconds: budget }) {
    Object.assign(this.#known, chunks["1"]);
    this.#limit = budget;
    this.#show();
  }

  // From the server once a second.
  server(message) {
    Object.assign(this.#known, message);
    this.#chunks = [...this.#chunks, message.chunk_seconds?.total].slice(-HISTORY);
    this.#show();
  }

  // From the browser once a second.
  browser(measured) {
    Object.assign(this.#known, measured);
    this.#show();
  }

  #show() {
    for (const [name, [, read, write]] of Object.entries(FIGURES)) {
      const value = read(this.#known);
      const cell = $("figures").querySelector(`[data-figure="${name}"]`);
      cell.textContent = Number.isFinite(value) ? write(value) : "–";
    }
    this.#draw();
  }

  #draw() {
    const y = (seconds) => (24 - 22 * Math.min(1, seconds / this.#limit)).toFixed(2);
    const first = HISTORY - this.#chunks.length;
    const points = this.#chunks.map((seconds, i) => (Number.isFinite(seconds) ? `${first + i},${y(seconds)}` : ""));
    $("spark-line").setAttribute("points", this.#limit ? points.join(" ") : "");
  }
}

// Asks for the server's token; resolves with it, or with null when the person gives up.
export function askToken(refused) {
  const dialog = $("token-dialog");
  $("token-text").textContent = refused
    ? "That token was not accepted. Whoever runs the server can give you the right one."
    : "Whoever runs the server can give it to you.";
  $("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    $("token-cancel").onclick = () => dialog.close();
    $("token-form").onsubmit = () => resolve($("token").value);
    dialog.onclose = () => resolve(null); // without effect after a submit
  });
}
