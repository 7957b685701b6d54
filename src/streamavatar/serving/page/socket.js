// The events of a session: JSON both ways, and binary audio on the user's lane. Comes back by itself when cut off.

const KEEP_ALIVE = 10_000;
const FIRST_WAIT = 400;
const LONGEST_WAIT = 5_000;
const USER_LANE = 1;

export class Events {
  #socket = null;
  #timer = 0;
  #keepAlive = 0;
  #tries = 0;
  #closed = false;
  #userIndex = 0n; // samples sent on the user's lane; it goes on over reconnects, so that gaps show

  // handlers: event(message), lost(), back(), check() -> promise of whether the session still exists
  constructor(session, handlers) {
    this.session = session;
    this.handlers = handlers;
    this.#connect();
    this.#keepAlive = setInterval(() => this.send({ type: "session.keep_alive" }), KEEP_ALIVE);
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (this.open) this.#socket.send(JSON.stringify(message));
    return this.open;
  }

  // samples: Int16Array at the session's user rate. What is not sent leaves a gap in the index, as it should.
  sendUser(samples) {
    const packet = new DataView(new ArrayBuffer(9 + 2 * samples.length));
    packet.setUint8(0, USER_LANE);
    packet.setBigUint64(1, this.#userIndex);
    samples.forEach((sample, i) => packet.setInt16(9 + 2 * i, sample, true));
    this.#userIndex += BigInt(samples.length);
    if (this.open) this.#socket.send(packet.buffer);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#keepAlive);
    this.#socket?.close(1000);
  }

  #connect() {
    const url = new URL(this.session.events, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("token", this.session.token);
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onopen = () => {
      if (this.#tries > 0) this.handlers.back();
      this.#tries = 0;
    };
    socket.onmessage = (event) => this.handlers.event(JSON.parse(event.data));
    socket.onclose = () => this.#cut();
  }

  #cut() {
    if (this.#closed) return;
    if (this.#tries === 0) this.handlers.lost();
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#tries) * (0.75 + Math.random() / 2);
    this.#tries += 1;
    this.#timer = setTimeout(async () => {
      const exists = await this.handlers.check();
      if (!this.#closed && exists) this.#connect();
    }, wait);
  }
}
