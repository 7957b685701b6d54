// What is said in one session: by the avatar, and by the user where a recording stands in for the microphone.
// Whatever plays a line tells, once it is over, whether it was heard to its end.

import { UserSample } from "./audio.js";

export class Talk {
  #speeches = new Map(); // the avatar's, by number: their words, and the promise of their end
  #now = 0; // the number of the speech that is heard
  #lines = new Map(); // the words that are heard, by who says them, the newest last
  #recording = null; // of the user's voice, while it plays
  #interruptions = 0; // what was asked for before one of them is not said after it
  #over = false;

  // subtitle(who, words) shows what is heard; without words nothing is.
  constructor(api, live, subtitle) {
    Object.assign(this, { api, live, subtitle });
  }

  say(text) {
    return this.#speak(this.api.say(this.live.session, text), text);
  }

  // audio: a Blob
  speak(audio, words = "") {
    return this.#speak(this.api.speak(this.live.session, audio, audio.type), words);
  }

  // One of the server's lines, said by the avatar or heard as the user's voice.
  async play(line) {
    const before = this.#interruptions;
    const audio = await this.api.sample(line.id);
    if (before !== this.#interruptions || this.#over) return false;
    return line.lane === "user" ? this.#hear(audio, line.title) : this.speak(audio, line.title);
  }

  // Lines one after the other, until one is not heard to its end.
  async converse(lines) {
    for (const line of lines) if (!(await this.play(line))) return;
  }

  async interrupt() {
    this.#interruptions += 1;
    this.hush();
    await this.live.interrupt();
  }

  // Stops a recording of the user's voice.
  hush() {
    this.#recording?.stop();
  }

  // The session is over, and with it whatever was to be said.
  close() {
    this.#over = true;
    this.hush();
    for (const speech of this.#speeches.values()) speech.end(false);
    this.subtitle("", "");
  }

  // what the server tells -----------------------------------------------------------------------------

  started(number) {
    this.#now = number;
    this.#show("Avatar", this.#speech(number).words);
  }

  ended(number, interrupted) {
    this.#speech(number).end(!interrupted);
    if (number !== this.#now) return;
    this.#now = 0;
    this.#show("Avatar", "");
  }

  // Its events may come before the answer to the call that made it.
  #speech(number) {
    if (!this.#speeches.has(number)) {
      const speech = { words: "" };
      speech.over = new Promise((resolve) => (speech.end = resolve));
      this.#speeches.set(number, speech);
    }
    return this.#speeches.get(number);
  }

  // ---------------------------------------------------------------------------------------------------

  async #speak(call, words) {
    const before = this.#interruptions;
    const { speech: number } = await call;
    if (this.#over) return false;
    if (before !== this.#interruptions) await this.live.interrupt(); // it came to the server after the interruption
    const speech = this.#speech(number);
    speech.words = words;
    if (number === this.#now) this.#show("Avatar", words);
    return speech.over;
  }

  async #hear(audio, words) {
    this.hush();
    const recording = new UserSample(this.live.session.user_rate, (samples) => this.live.sendUser(samples));
    this.#recording = recording;
    this.live.holdMicrophone(true); // one voice at a time
    try {
      return await recording.play(audio, () => this.#show("You", words));
    } finally {
      if (this.#recording === recording) {
        this.#recording = null;
        this.#show("You", "");
        this.live.holdMicrophone(false);
      }
    }
  }

  #show(who, words) {
    if (this.#over) return;
    this.#lines.delete(who);
    if (words) this.#lines.set(who, words);
    this.subtitle(...([...this.#lines].at(-1) ?? ["", ""]));
  }
}
