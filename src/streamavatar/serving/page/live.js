// One session from its first call to its end: the events, the WebRTC connection, and coming back when they are cut.

import { Events } from "./socket.js";
import { Peer } from "./rtc.js";

const GRACE = 30_000; // how long the server keeps a session whose client has gone
const RENEW_WAIT = 1_000;
const BLOCKED =
  "Picture and sound do not get through. A firewall may block them; then the server needs a TURN server (see its documentation).";
const GONE = new Set([401, 403, 404, 410]);

export class Live {
  #events = null;
  #peer = null;
  #microphone = null;
  #held = false; // the microphone is not sent
  #over = false;
  #cutSince = 0;
  #renewing = false;
  #connected = false; // whether picture and sound have ever come through

  // handlers: event(message), stream(MediaStream), measured(figures), trouble(text or ""), ended({reason, retry})
  constructor(api, session, handlers) {
    Object.assign(this, { api, session, handlers });
  }

  async begin(microphone, signal) {
    this.#microphone = microphone;
    this.#events = new Events(this.session, {
      event: (message) => this.#event(message),
      lost: () => this.#trouble("The connection to the server is lost. Trying to get it back …"),
      back: () => this.#trouble(""),
      check: () => this.#exists(),
    });
    await this.#connect(signal);
  }

  microphone(track) {
    this.#microphone = track;
    return this.#peer?.microphone(this.#voice);
  }

  // While a recording stands in for the user, the microphone is not sent.
  holdMicrophone(yes) {
    this.#held = yes;
    return this.#peer?.microphone(this.#voice);
  }

  get #voice() {
    return this.#held ? null : this.#microphone;
  }

  sendUser(samples) {
    this.#events.sendUser(samples);
  }

  report(figures) {
    this.#events.send({ type: "client.metrics", ...figures });
  }

  bargeIn(yes) {
    this.#events.send({ type: "session.update", server_barge_in: yes });
  }

  // The open socket is the quickest way; without it the ordinary call does the same.
  async interrupt() {
    if (!this.#events.send({ type: "agent.interrupt" })) await this.api.interrupt(this.session);
  }

  // Ends quietly from this side.
  async close() {
    if (this.#over) return;
    this.#finish();
    await this.api.close(this.session).catch(() => {}); // it may be gone already, which is what is wanted
  }

  #finish() {
    this.#over = true;
    this.#events?.close();
    this.#peer?.close();
  }

  #end(reason, retry) {
    if (this.#over) return;
    this.#finish();
    this.handlers.ended({ reason, retry });
  }

  #trouble(text) {
    if (this.#over) return;
    this.#cutSince = text ? this.#cutSince || performance.now() : 0;
    this.handlers.trouble(text);
  }

  get #patient() {
    return performance.now() - this.#cutSince < GRACE;
  }

  #event(message) {
    if (message.type === "session.state_updated" && message.state === "closed") {
      this.#end(message.reason ?? "", message.retryable ?? true);
      return;
    }
    this.handlers.event(message);
  }

  // Whether it is worth connecting again. A server that cannot be reached may come back while the grace lasts.
  async #exists() {
    try {
      await this.api.look(this.session);
      return true;
    } catch (error) {
      if (GONE.has(error.status)) this.#end("The session is over.", true);
      else if (!this.#patient) this.#end("The server cannot be reached any more.", false);
      return !this.#over;
    }
  }

  async #connect(signal) {
    const peer = new Peer(this.session.ice_servers, {
      stream: (stream) => this.handlers.stream(stream),
      measured: (figures) => this.handlers.measured(figures),
      failed: () => this.#renew(),
      unsteady: (yes) => {
        this.#connected ||= !yes;
        this.#trouble(yes ? "The connection is unsteady …" : "");
      },
      candidate: (candidate) => this.api.candidate(this.session, candidate).catch(() => {}), // one of many
    });
    this.#peer = peer;
    await peer.connect(async (sdp) => (await this.api.offer(this.session, sdp, signal)).sdp, this.#voice);
  }

  // The media path is dead: a new connection to the same session, which has kept its memory.
  async #renew() {
    if (this.#renewing || this.#over) return;
    if (!this.#connected) return this.#end(BLOCKED, false);
    this.#renewing = true;
    this.#trouble("Picture and sound are cut off. Connecting again …");
    for (let renewed = false; !renewed && !this.#over; ) {
      this.#peer.close();
      try {
        await this.#connect();
        renewed = true;
      } catch (error) {
        if (GONE.has(error.status) || !this.#patient) this.#end("The connection could not be made again.", true);
        await new Promise((resolve) => setTimeout(resolve, RENEW_WAIT));
      }
    }
    this.#renewing = false;
  }
}
