// Runs in the audio thread: gives the page blocks of mono samples at the browser's own rate.

const BLOCK_SECONDS = 0.04;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate * BLOCK_SECONDS));
    this.filled = 0;
    this.running = true;
    this.port.onmessage = () => {
      this.post();
      this.port.postMessage(null); // that was all
      this.running = false;
    };
  }

  process([[channel]]) {
    let taken = 0;
    while (this.running && channel && taken < channel.length) {
      const count = Math.min(channel.length - taken, this.block.length - this.filled);
      this.block.set(channel.subarray(taken, taken + count), this.filled);
      this.filled += count;
      taken += count;
      if (this.filled === this.block.length) this.post();
    }
    return this.running;
  }

  post() {
    if (this.filled) this.port.postMessage(this.block.slice(0, this.filled));
    this.filled = 0;
  }
}

registerProcessor("recorder", Recorder);
