// The microphone with its level, and samples that stand in for the user's voice.

export class Microphone {
  #stream = null;
  #context = null;
  #frame = 0;

  get track() {
    return this.#stream?.getAudioTracks()[0] ?? null;
  }

  // level(value 0..1) is called for every picture of the screen.
  async on(level) {
    this.#stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    this.#context = new AudioContext();
    const analyser = this.#context.createAnalyser();
    analyser.fftSize = 1024;
    this.#context.createMediaStreamSource(this.#stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const draw = () => {
      analyser.getFloatTimeDomainData(samples);
      level(loudness(samples));
      this.#frame = requestAnimationFrame(draw);
    };
    draw();
    return this.track;
  }

  off() {
    cancelAnimationFrame(this.#frame);
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#context?.close();
    this.#stream = this.#context = null;
  }
}

// -60 to 0 dB of full scale as 0 to 1: what the ear calls loud.
function loudness(samples) {
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  return Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-12) / 6));
}

// Plays a recording aloud and gives it to `send` in pieces of 40 ms as it is heard.
export class UserSample {
  #context = new AudioContext();
  #timer = 0;
  #stopped = false;
  #end;
  #over = new Promise((resolve) => (this.#end = resolve));

  constructor(rate, send) {
    Object.assign(this, { rate, send });
  }

  // `begins` is called when it begins to be heard. Tells at the end whether all of it was.
  async play(blob, begins) {
    try {
      const heard = await this.#context.decodeAudioData(await blob.arrayBuffer());
      const samples = int16(await resampled(heard, this.rate));
      if (this.#stopped) return false;
      const source = this.#context.createBufferSource();
      source.buffer = heard;
      source.connect(this.#context.destination);
      source.start();
      this.#give(samples);
      begins();
      return await this.#over;
    } finally {
      this.stop();
    }
  }

  stop(whole = false) {
    if (this.#stopped) return;
    this.#stopped = true;
    clearInterval(this.#timer);
    this.#context.close();
    this.#end(whole);
  }

  #give(samples) {
    const piece = Math.round(this.rate / 25);
    const begin = performance.now();
    let sent = 0;
    this.#timer = setInterval(() => {
      const due = Math.min(samples.length, Math.floor((performance.now() - begin) / 40 + 1) * piece);
      for (; sent < due; sent += piece) this.send(samples.subarray(sent, Math.min(sent + piece, samples.length)));
      if (sent >= samples.length) this.stop(true);
    }, 40);
  }
}

async function resampled(buffer, rate) {
  const offline = new OfflineAudioContext(1, Math.ceil(buffer.duration * rate), rate);
  const source = offline.createBufferSource();
  source.buffer = buffer;
  source.connect(offline.destination);
  source.start();
  return (await offline.startRendering()).getChannelData(0);
}

function int16(samples) {
  return Int16Array.from(samples, (sample) => Math.max(-1, Math.min(1, sample)) * 32767);
}
