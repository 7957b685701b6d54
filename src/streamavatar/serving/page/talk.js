// Who speaks: the words of the speeches that are under way, and the user's lines when they are played from a recording.

import { UserSample } from "./audio.js";

export class Talk {
  #waiting = new Map(); // speeches that are not over, by number: their words, and who waits for their end
  #now = 0; // the number of the speech that is heard
  #last = 0; // of the last one that ended
  #user = null;

  // subtitle(who, words) shows who says what now; without words nothing is said.
  constructor(api, subtitle) {
    Object.assign(this, { api, subtitle });
  }

  // `call` makes the avatar speak. Gives `over`: whether the speech was heard to its end, once it is over.
  async speak(call, words) {
    const { speech } = await call;
    const over = new Promise((resolve) => this.#waiting.set(speech, { words, resolve }));
    if (speech <= this.#last) this.ended(speech, true); // it was over before the call was answered
    else if (speech === this.#now) this.subtitle("Avatar", words);
    return { over };
  }

  // Plays a recording as the user's voice, in place of the microphone. Gives `over` as `speak` does.
  async hear(live, sample, track) {
    this.#user?.stop();
    const audio = await this.api.sample(sample.id);
    await live.microphone(null); // one voice at a time
    let finish;
    const over = new Promise((resolve) => (finish = resolve));
    const user = new UserSample(live.session.user_rate, (samples) => live.sendUser(samples), (whole) => {
      if (this.#user === user) this.#user = null;
      this.subtitle("", "");
      live.microphone(track());
      finish(whole);
    });
    this.#user = user;
    await user.play(audio);
    this.subtitle("You", sample.title);
    return { over };
  }

  started(speech) {
    this.#now = speech;
    this.subtitle("Avatar", this.#waiting.get(speech)?.words ?? "");
  }

  ended(speech, interrupted) {
    this.#last = Math.max(this.#last, speech);
    if (speech === this.#now) this.subtitle("", "");
    this.#waiting.get(speech)?.resolve(!interrupted);
    this.#waiting.delete(speech);
  }

  hush() {
    this.#user?.stop();
  }

  // The session is over, and with it whatever was to be said.
  clear() {
    this.hush();
    for (const { resolve } of this.#waiting.values()) resolve(false);
    this.#waiting.clear();
    this.#now = this.#last = 0;
    this.subtitle("", "");
  }
}
