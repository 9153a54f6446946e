// A conversation with the server at /onebest: samples in, text out, over connections that may break.
//
// Nothing is lost when one does: audio is kept until the server has it and the text of it is settled. A session
// that the server still knows is resumed; otherwise a new one goes on where the settled text ends.

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 4000;
const MESSAGE_SECONDS = 0.25;
/** More than this is not handed to a socket that cannot send it. */
const MOST_BUFFERED_BYTES = 1 << 18;
/** A server that gets audio answers each step; one that is silent for so long is not there any more. */
const LONGEST_SILENCE_MS = 15000;
/** Words are found a little before they sound settled. */
const LEAD_SECONDS = 0.5;
/** Audio kept for a new session, should the old one be gone. */
const KEPT_SECONDS = 60;
const BLOCK = 16384;
/** How a server closes that takes no messages as long as ours; another connection would end alike. */
const TOO_LONG = 1009;
/** Why a connection is not tried again, and what is said of it; a token is asked for. */
const REFUSALS = {
  token: null,
  origin: "The server does not let a page at this address connect. Its option --origin names pages that may.",
};

/** Samples by their number; those at the front can be forgotten. */
class Outbox {
  end = 0;
  first = 0;
  #blocks = new Map();

  push(samples) {
    for (let taken = 0; taken < samples.length; ) {
      const number = Math.floor(this.end / BLOCK);
      if (!this.#blocks.has(number)) this.#blocks.set(number, new Float32Array(BLOCK));
      const part = samples.subarray(taken, taken + BLOCK - (this.end % BLOCK));
      this.#blocks.get(number).set(part, this.end % BLOCK);
      this.end += part.length;
      taken += part.length;
    }
  }

  read(start, length) {
    const samples = new Float32Array(Math.min(length, this.end - start));
    for (let filled = 0; filled < samples.length; ) {
      const offset = (start + filled) % BLOCK;
      const block = this.#blocks.get(Math.floor((start + filled) / BLOCK));
      const part = block.subarray(offset, Math.min(BLOCK, offset + samples.length - filled));
      samples.set(part, filled);
      filled += part.length;
    }
    return samples;
  }

  forget(before) {
    for (const number of this.#blocks.keys()) {
      if ((number + 1) * BLOCK <= before) this.#blocks.delete(number);
    }
    this.first = Math.max(this.first, before);
  }
}

export class Session {
  #address;
  #rate;
  #listener;
  #outbox = new Outbox();
  #socket = null;
  #ready = false; // the server takes audio
  #name = null; // what the session can be resumed by
  #base = 0; // first sample of the server's session
  #sent = 0;
  #acknowledged = 0;
  #settled = 0; // up to here the text is final
  #finals = 0; // of the server's session
  #finishing = false;
  #finishSent = false;
  #over = false;
  #pause = FIRST_PAUSE_MS;
  #heard = 0;
  #timers = [];
  #mostWaiting;

  /**
   * `listener` has onPartial(text, start), onFinal(text, start), onState(state), onProgress(seconds),
   * onBehind(seconds), onDone() and onFail(message); states are "live", "lost" and "busy".
   * More than `mostWaitingSeconds` of audio that the server does not have is a failure.
   */
  constructor({ token, sampleRate, mostWaitingSeconds = Infinity, listener }) {
    const address = new URL("onebest", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    // A load balancer that goes by this parameter leads the page back to the server that has its session.
    const parameters = new URLSearchParams({ client: Math.random().toString(36).slice(2) });
    if (token) parameters.set("token", token);
    address.search = parameters.toString();
    address.hash = "";
    this.#address = address;
    this.#rate = sampleRate;
    this.#mostWaiting = mostWaitingSeconds * sampleRate;
    this.#listener = listener;
    this.#timers.push(setInterval(() => this.#watch(), 100));
    this.reconnect = () => !this.#socket && !this.#over && this.#connect();
    addEventListener("online", this.reconnect);
    this.#connect();
  }

  /** Take the next samples, a Float32Array. */
  send(samples) {
    if (this.#over) return;
    this.#outbox.push(samples);
    if (this.#outbox.end - this.#acknowledged > this.#mostWaiting) {
      this.#fail("The server has been away for too long. What came after the text above is lost.");
    }
    this.#pump();
  }

  /** No more samples come; onDone follows when their text is complete. */
  finish() {
    this.#finishing = true;
    this.#pump();
  }

  /** End without the rest of the text. */
  cancel() {
    this.#end();
  }

  #connect() {
    clearTimeout(this.#timers[1]);
    const socket = new WebSocket(this.#address);
    let opened = false;
    this.#socket = socket;
    this.#heard = performance.now();
    socket.onopen = () => {
      opened = true;
      this.#greet();
    };
    socket.onmessage = ({ data }) => {
      this.#heard = performance.now();
      if (this.#socket === socket) this.#take(JSON.parse(data));
    };
    socket.onclose = ({ code }) => {
      if (this.#socket !== socket) return;
      if (code === TOO_LONG) this.#fail("The server takes only shorter messages; see its option --message-bytes.");
      else this.#lose(opened);
    };
  }

  #greet() {
    if (this.#name) {
      this.#say({ type: "resume", session: this.#name, segments: this.#finals });
      return;
    }
    this.#base = this.#sent = this.#acknowledged = Math.max(this.#settled, this.#outbox.first);
    this.#finals = 0;
    this.#say({ type: "start", sample_rate: this.#rate, encoding: "float32" });
  }

  async #lose(opened) {
    this.#socket = null;
    this.#ready = this.#finishSent = false;
    if (this.#over) return;
    const pause = this.#pause;
    this.#pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    const reason = opened ? "lost" : await findReason(this.#address.search);
    if (this.#over || this.#socket) return;
    if (reason in REFUSALS) {
      this.#fail(REFUSALS[reason], reason);
      return;
    }
    this.#listener.onState(reason);
    this.#timers[1] = setTimeout(this.reconnect, pause);
  }

  #take(message) {
    switch (message.type) {
      case "started":
        this.#name = message.session;
        this.#begin();
        break;
      case "resumed":
        this.#sent = this.#base + message.acknowledged;
        this.#begin();
        break;
      case "partial":
        this.#settle(this.#offset(message.start - LEAD_SECONDS), message.acknowledged);
        this.#listener.onPartial(message.text, this.#seconds(message.start));
        break;
      case "final":
        this.#finals += 1;
        this.#settle(this.#offset(message.end), message.acknowledged);
        this.#listener.onFinal(message.text, this.#seconds(message.start));
        break;
      case "behind":
        this.#listener.onBehind(message.seconds);
        break;
      case "finished":
        if (message.requested) {
          this.#end();
          this.#listener.onDone();
          break;
        }
        this.#settle(this.#offset(message.seconds), this.#offset(message.seconds) - this.#base);
        this.#name = null; // the server ended it; another session takes what follows
        break;
      case "error":
        if (message.message.startsWith("No such session")) this.#name = null;
        else this.#fail(message.message);
    }
    this.#pump();
  }

  #begin() {
    this.#ready = true;
    this.#pause = FIRST_PAUSE_MS;
    this.#listener.onState("live");
    this.#pump();
  }

  #pump() {
    while (this.#ready && this.#sent < this.#outbox.end && this.#socket.bufferedAmount < MOST_BUFFERED_BYTES) {
      const samples = this.#outbox.read(this.#sent, Math.round(MESSAGE_SECONDS * this.#rate));
      this.#socket.send(samples);
      this.#sent += samples.length;
    }
    if (this.#ready && this.#finishing && !this.#finishSent && this.#sent === this.#outbox.end) {
      this.#finishSent = true;
      this.#say({ type: "finish" });
    }
  }

  #watch() {
    this.#pump();
    const waits = this.#sent > this.#acknowledged || this.#finishSent || !this.#ready;
    if (!waits) this.#heard = performance.now();
    else if (this.#socket && performance.now() - this.#heard > LONGEST_SILENCE_MS) {
      const socket = this.#socket;
      const opened = socket.readyState !== WebSocket.CONNECTING;
      socket.onclose = null; // a close frame would wait for an answer
      socket.close(4000);
      this.#lose(opened);
    }
  }

  /** Forget the audio that nobody will need again. */
  #settle(settled, acknowledged) {
    this.#acknowledged = this.#base + acknowledged;
    this.#settled = Math.max(this.#settled, Math.min(settled, this.#acknowledged));
    this.#outbox.forget(Math.max(this.#settled, this.#acknowledged - KEPT_SECONDS * this.#rate));
    this.#listener.onProgress(this.#acknowledged / this.#rate);
  }

  #offset(seconds) {
    return this.#base + Math.round(seconds * this.#rate);
  }

  #seconds(seconds) {
    return this.#base / this.#rate + seconds;
  }

  #say(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #fail(message, kind = "error") {
    if (this.#over) return;
    this.#end();
    this.#listener.onFail(message, kind);
  }

  #end() {
    this.#over = true;
    this.#ready = false;
    this.#timers.forEach(clearInterval);
    removeEventListener("online", this.reconnect);
    this.#socket?.close(1000);
  }
}

/** Find out why a connection did not open, which a WebSocket does not say. */
async function findReason(search) {
  try {
    const { status } = await fetch("readyz");
    if (status === 503) return "busy"; // the server, or a load balancer that has none at the moment
    const answer = await fetch(`onebest${search}`); // what the connection was answered, but for a missing upgrade
    if (answer.status === 401) return "token";
    if (answer.status === 403) return "origin";
  } catch {
    // the server is not there at all
  }
  return "lost";
}
