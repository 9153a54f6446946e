// The level of the sound, drawn: the last seconds as bars, or one bar where motion is not wanted.

const BAR = 3;
const GAP = 2;
/** From here on a level counts as sound, in full scale: -50 dB. */
export const AUDIBLE = 0.003;

/** Return the root mean square of samples. */
export function levelOf(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / Math.max(1, samples.length));
}

export class Meter {
  #canvas;
  #levels = [];
  #still = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(canvas) {
    this.#canvas = canvas;
  }

  clear() {
    this.#levels = [];
    this.#draw();
  }

  push(level) {
    // 60 dB of range, as one hears it
    this.#levels.push(Math.max(0, 1 + Math.log10(Math.max(level, 1e-6)) / 3));
    this.#draw();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    const context = this.#canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = getComputedStyle(this.#canvas).color;
    if (this.#still.matches) {
      context.fillRect(0, height / 2 - 3, width * (this.#levels.at(-1) ?? 0), 6);
      return;
    }
    const count = Math.floor(width / (BAR + GAP));
    this.#levels = this.#levels.slice(-count);
    this.#levels.forEach((level, index) => {
      const tall = Math.max(2, level * height);
      const left = width - (this.#levels.length - index) * (BAR + GAP);
      context.beginPath();
      context.roundRect(left, (height - tall) / 2, BAR, tall, BAR / 2);
      context.fill();
    });
  }
}
