// The text on the page: what is settled, and the words that may still change.

export class Transcript {
  #finals = document.getElementById("finals");
  #partial = document.getElementById("partial");
  #welcome = document.getElementById("welcome");
  #removed = null;
  #start = 0; // of the running words

  /** Show a settled segment; an empty text shows nothing. */
  addFinal(text, seconds) {
    this.setPartial("", 0);
    if (!text) return;
    const segment = document.createElement("p");
    segment.className = "segment";
    segment.append(makeTime(seconds), " ", makeSpan(text, "final"));
    this.#append(segment);
  }

  /** Show the running words. */
  setPartial(text, seconds) {
    this.#start = seconds;
    const [time, span] = this.#partial.children;
    time.textContent = formatTime(seconds);
    span.textContent = text;
    this.#partial.hidden = !text;
    if (text) this.show();
  }

  /** Settle the running words as they are: nothing will change them any more. */
  keepPartial() {
    this.addFinal(this.#partial.children[1].textContent, this.#start);
  }

  /** Settle the running words at the end of a recording; say of one without words that it has none. */
  end() {
    this.keepPartial();
    if (this.#finals.lastChild?.nodeName !== "H2") return;
    const note = document.createElement("p");
    note.className = "quiet";
    note.textContent = "No words were heard.";
    this.#append(note);
  }

  /** Begin a recording; the second and later ones get a title. */
  begin(title) {
    this.#welcome.hidden = true;
    const heading = document.createElement("h2");
    heading.textContent = title;
    this.#append(heading);
  }

  /** The settled text, a line a segment. */
  get text() {
    return [...this.#finals.querySelectorAll(".final")].map((span) => span.textContent).join("\n");
  }

  /** Whether there is nothing to clear. */
  get isEmpty() {
    return !this.#finals.hasChildNodes();
  }

  /** Remove all; `restore` brings it back until there is new text. */
  clear() {
    this.#removed = [...this.#finals.childNodes];
    this.#finals.replaceChildren();
  }

  get canRestore() {
    return this.#removed !== null;
  }

  restore() {
    this.#finals.replaceChildren(...this.#removed);
    this.#removed = null;
  }

  #append(node) {
    this.#removed = null;
    this.#finals.append(node);
    this.show();
  }

  /** Keep the end in view for who is reading there; leave alone who has scrolled back, or reads the welcome. */
  show() {
    if (!this.#welcome.hidden) return;
    const root = document.scrollingElement;
    const behind = root.scrollHeight - root.scrollTop - root.clientHeight;
    if (behind < root.clientHeight / 2) root.scrollTop = root.scrollHeight;
  }
}

/** Return seconds as 1:05 or 1:00:05. */
export function formatTime(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (!parts[0]) parts.shift();
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

function makeTime(seconds) {
  const time = document.createElement("time");
  time.textContent = formatTime(seconds);
  time.ariaHidden = "true";
  return time;
}

function makeSpan(text, name) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  return span;
}
