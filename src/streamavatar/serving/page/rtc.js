// The WebRTC connection of a session: video and audio in, microphone out, and what the browser measures about them.

const WATCH = 1000;

export class Peer {
  #connection;
  #audio; // transceiver of the avatar's voice and the microphone
  #early = []; // candidates found before the server knows the offer
  #answered = false;
  #watch = 0;
  #last = null;

  // handlers: stream(MediaStream), failed(), unsteady(bool), candidate(candidate or null), measured(figures)
  constructor(iceServers, handlers) {
    this.handlers = handlers;
    this.#connection = new RTCPeerConnection({ iceServers: iceServers ?? [], bundlePolicy: "max-bundle" });
    this.#audio = this.#connection.addTransceiver("audio", { direction: "sendrecv" });
    const video = this.#connection.addTransceiver("video", { direction: "recvonly" });
    preferVp8(video);
    const stream = new MediaStream(); // one stream of both tracks: the browser keeps them in step
    this.#connection.ontrack = ({ track, streams, receiver }) => {
      if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
      if (streams[0]) return handlers.stream(streams[0]);
      stream.addTrack(track);
      handlers.stream(stream);
    };
    this.#connection.onicecandidate = ({ candidate }) => this.#found(candidate);
    this.#connection.onconnectionstatechange = () => {
      const state = this.#connection.connectionState;
      if (state === "failed") handlers.failed();
      if (state === "disconnected" || state === "connected") handlers.unsteady(state === "disconnected");
    };
  }

  // exchange: async (offer sdp) -> answer sdp
  async connect(exchange, microphone) {
    if (microphone) await this.#audio.sender.replaceTrack(microphone);
    await this.#connection.setLocalDescription();
    const answer = await exchange(this.#connection.localDescription.sdp);
    if (this.#connection.signalingState === "closed") return;
    await this.#connection.setRemoteDescription({ type: "answer", sdp: answer });
    this.#answered = true;
    for (const candidate of this.#early.splice(0)) this.handlers.candidate(candidate);
    this.#watch = setInterval(() => this.#measure(), WATCH);
  }

  // One that is closed needs none: the next is given it when it connects.
  async microphone(track) {
    if (this.#connection.signalingState !== "closed") await this.#audio.sender.replaceTrack(track);
  }

  close() {
    clearInterval(this.#watch);
    this.#connection.onconnectionstatechange = null;
    this.#connection.onicecandidate = null;
    this.#connection.close();
  }

  #found(candidate) {
    const found = candidate?.toJSON() ?? null;
    if (this.#answered) this.handlers.candidate(found);
    else this.#early.push(found);
  }

  async #measure() {
    const report = [...(await this.#connection.getStats()).values()];
    const inbound = (kind) => report.find((entry) => entry.type === "inbound-rtp" && entry.kind === kind);
    const video = inbound("video");
    const audio = inbound("audio");
    const pair = report.find((entry) => entry.type === "candidate-pair" && entry.nominated);
    if (!video || !audio) return;
    const figures = {
      frames: video.framesDecoded ?? 0,
      fps: null,
      packetsLost: (video.packetsLost ?? 0) + (audio.packetsLost ?? 0),
      roundTrip: pair?.currentRoundTripTime ?? null,
      skew: skew(video, audio),
    };
    if (this.#last) {
      figures.fps = (1000 * (figures.frames - this.#last.frames)) / (video.timestamp - this.#last.time);
    }
    this.#last = { frames: figures.frames, time: video.timestamp };
    this.handlers.measured(figures);
  }
}

// Both tracks say which moment of the sender's clock they play now; the difference in seconds is how far the picture
// is ahead of the sound. Known once a sender report of each has come.
function skew(video, audio) {
  const [picture, sound] = [video.estimatedPlayoutTimestamp, audio.estimatedPlayoutTimestamp];
  if (!picture || !sound) return null;
  return (picture - sound) / 1000;
}

// VP8 first: every browser has it, and it is the quickest to encode on a CPU. Must precede the offer.
function preferVp8(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  if (!codecs || !transceiver.setCodecPreferences) return;
  const first = codecs.filter((codec) => codec.mimeType === "video/VP8");
  transceiver.setCodecPreferences([...first, ...codecs.filter((codec) => !first.includes(codec))]);
}
