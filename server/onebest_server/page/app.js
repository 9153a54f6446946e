// The page: buttons and messages on one side, the microphone or a file and a session on the other.

import { AUDIBLE, Meter, levelOf } from "./meter.js";
import { MicrophoneError, openMicrophone } from "./microphone.js";
import { Session } from "./session.js";
import { Transcript, formatTime } from "./transcript.js";

/** Files are decoded to the rate that the model hears. */
const FILE_RATE = 16000;
/** Of the microphone's sound, so much is kept while the server is away. */
const MOST_WAITING_SECONDS = 300;
const QUIET_SECONDS = 10;

const find = (id) => document.getElementById(id);
const transcript = new Transcript();
const meter = new Meter(find("level"));
/** What is going on: "ready", "starting", "listening", "reading" or "finishing". */
let state = "ready";
let session = null;
let microphone = null;
let token = takeToken();
let pending = null; // what to do again once there is a token
let wakeLock = null;
let reading = null; // the file whose text is wanted
let waiting = []; // files whose turn comes

const LABELS = {
  ready: "Ready",
  starting: "Starting",
  listening: "Listening",
  reading: "Transcribing",
  finishing: "Finishing",
};

/** What the round button does. */
const ACTIONS = {
  ready: "Start listening",
  starting: "Start listening",
  listening: "Stop listening",
  reading: "Stop transcribing",
  finishing: "Do not wait for the rest",
};

function setState(next) {
  state = next;
  const active = next !== "ready";
  find("state").textContent = LABELS[next];
  find("state").dataset.state = next;
  find("activity").hidden = !active;
  find("level").hidden = next === "reading";
  find("progress").hidden = next !== "reading";
  // Not disabled, which would take the focus away from who works with the keyboard.
  find("open").ariaDisabled = active;
  const record = find("record");
  record.dataset.active = active;
  record.ariaDisabled = next === "starting";
  record.querySelector(".unseen").textContent = ACTIONS[next];
  showTools();
}

function showTools() {
  const text = transcript.text;
  for (const id of ["copy", "download"]) find(id).disabled = !text;
  find("clear").disabled = state !== "ready" || (transcript.isEmpty && !transcript.canRestore);
  find("clear").lastElementChild.textContent = transcript.canRestore ? "Undo" : "Clear";
  find("clear").dataset.undo = transcript.canRestore;
}

function notice(text) {
  if (find("notice").textContent !== text) find("notice").textContent = text;
}

function problem(text) {
  find("problem").textContent = text;
}

/** Open a session whose text goes to the page; `again` starts over what failed for want of a token. */
function openSession({ title, sampleRate, mostWaitingSeconds, again, onProgress = () => {} }) {
  let begun = false;
  return new Session({
    token,
    sampleRate,
    mostWaitingSeconds,
    listener: {
      onPartial: (text, start) => transcript.setPartial(text, start),
      onFinal(text, start) {
        transcript.addFinal(text, start);
        showTools();
      },
      onProgress,
      onState(connection) {
        if (connection === "live" && !begun) {
          begun = true;
          transcript.begin(title);
        }
        showConnection(connection);
      },
      onBehind: (seconds) => notice(seconds ? `The server is busy; the text is ${seconds} s late.` : ""),
      onDone() {
        transcript.end();
        endSession().then(readNext);
      },
      onFail(message, kind) {
        endSession();
        if (kind === "token") return void askForToken(again);
        waiting = [];
        problem(message);
      },
    },
  });
}

function showConnection(connection) {
  find("state").dataset.connection = connection;
  if (connection === "live") {
    find("state").textContent = LABELS[state];
    notice("");
    return;
  }
  find("state").textContent = connection === "busy" ? "Waiting" : "Reconnecting";
  const isFile = reading !== null;
  notice(
    connection === "busy"
      ? `The server takes nobody now, as it is full or about to restart. Your turn comes${isFile ? "" : "; what you say meanwhile is kept"}.`
      : `The connection to the server is lost. ${isFile ? "The recording" : "Nothing you say is; it"} goes on when the server is back.`,
  );
}

async function endSession() {
  session = reading = null;
  transcript.keepPartial();
  notice("");
  delete find("state").dataset.connection;
  await closeMicrophone();
  setState("ready");
}

async function closeMicrophone() {
  const closing = microphone;
  microphone = null;
  letSleep();
  await closing?.stop();
}

async function listen() {
  problem("");
  setState("starting");
  meter.clear();
  let [rate, seconds, quietSince, isQuiet] = [0, 0, 0, false];
  const early = []; // recorded before there is a session
  const take = (samples) => {
    if (!session) return void early.push(samples);
    session.send(samples);
    const level = levelOf(samples);
    meter.push(level);
    find("record").style.setProperty("--level", Math.min(1, level * 6));
    seconds += samples.length / rate;
    find("clock").textContent = formatTime(seconds);
    if (level >= AUDIBLE) quietSince = seconds;
    if (isQuiet !== seconds - quietSince > QUIET_SECONDS) {
      isQuiet = !isQuiet;
      notice(isQuiet ? "Nothing is heard. Is the microphone muted?" : "");
    }
  };
  try {
    microphone = await openMicrophone(take, () => {
      problem("The microphone was disconnected.");
      stop();
    });
  } catch (error) {
    setState("ready");
    if (!(error instanceof MicrophoneError)) throw error;
    problem(error.message);
    return;
  }
  rate = microphone.sampleRate;
  find("clock").textContent = formatTime(0);
  session = openSession({
    title: new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }),
    sampleRate: rate,
    mostWaitingSeconds: MOST_WAITING_SECONDS,
    again: listen,
  });
  setState("listening");
  early.splice(0).forEach(take);
  await keepAwake();
}

/** Keep the screen on while there is a microphone. */
async function keepAwake() {
  const lock = await navigator.wakeLock?.request("screen").catch(() => null);
  wakeLock?.release();
  wakeLock = lock;
  if (!microphone) letSleep(); // it was closed meanwhile
}

function letSleep() {
  wakeLock?.release();
  wakeLock = null;
}

/** Stop listening and wait for the rest of the text; called again, or for a file, do without the rest. */
async function stop() {
  if (state === "listening") {
    setState("finishing");
    await closeMicrophone();
    session?.finish();
  } else {
    waiting = [];
    session?.cancel();
    await endSession();
  }
}

/** Transcribe files one after another, as soon as nothing else goes on. */
function readAll(files) {
  waiting.push(...files);
  if (state === "ready") problem("");
  else if (files.length) notice(`${waiting.length === 1 ? "One recording waits" : `${waiting.length} recordings wait`}.`);
  readNext();
}

function readNext() {
  if (state === "ready" && waiting.length) read(waiting.shift());
}

async function read(file) {
  reading = file;
  setState("reading");
  notice(`Decoding ${file.name}`);
  find("progress").removeAttribute("value");
  let samples;
  try {
    samples = await decode(await file.arrayBuffer());
  } catch {
    if (reading !== file) return;
    await endSession();
    const others = find("problem").textContent; // of files before it
    problem(`${others} ${file.name} is no recording that this browser can decode.`.trim());
    readNext();
    return;
  }
  if (reading !== file) return; // given up meanwhile
  const seconds = samples.length / FILE_RATE;
  notice("");
  find("clock").textContent = formatTime(seconds);
  session = openSession({
    title: file.name,
    sampleRate: FILE_RATE,
    again: () => read(file),
    onProgress: (done) => {
      find("progress").value = done / seconds;
    },
  });
  session.send(samples);
  session.finish();
}

/** Return the samples of an encoded recording, all channels mixed. */
async function decode(data) {
  const buffer = await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(data);
  const mixed = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((sample, index) => {
      mixed[index] += sample / buffer.numberOfChannels;
    });
  }
  return mixed;
}

/** Return the token in the address, #token=..., or the one used before; it leaves the address. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem("token") ?? "";
}

function askForToken(again) {
  pending = again;
  if (token) problem("The server does not know this token.");
  find("token-title").textContent = token ? "The server does not know this token" : "This server needs a token";
  find("token").value = "";
  find("token-dialog").returnValue = "";
  find("token-dialog").showModal();
}

// A dialog's "close" comes a little after it; a file may have been dropped in between.
find("cancel").addEventListener("click", () => {
  waiting = [];
  find("token-dialog").close();
});
find("token-dialog").addEventListener("cancel", () => (waiting = [])); // the Escape key

find("token-dialog").addEventListener("close", () => {
  if (find("token-dialog").returnValue !== "use") return;
  problem("");
  token = find("token").value.trim();
  sessionStorage.setItem("token", token);
  pending();
});

find("record").addEventListener("click", () => {
  if (state === "ready") listen();
  else if (state !== "starting") stop();
});
find("open").addEventListener("click", () => state === "ready" && find("file").click());
find("file").addEventListener("change", () => {
  const files = [...find("file").files];
  find("file").value = "";
  readAll(files);
});

find("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(transcript.text);
    notice("Copied.");
  } catch {
    problem("The browser does not let this page copy. Use Download, or select the text.");
  }
});

find("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${transcript.text}\n`], { type: "text/plain" }));
  link.download = `transcript-${new Date().toISOString().slice(0, 16).replace(/[T:]/g, "-")}.txt`;
  link.click();
  URL.revokeObjectURL(link.href);
});

find("clear").addEventListener("click", () => {
  if (transcript.canRestore) transcript.restore();
  else transcript.clear();
  notice(transcript.canRestore ? "Cleared." : "");
  showTools();
});

let dragged = 0; // elements under the dragged file
const hasFile = (event) => event.dataTransfer?.types.includes("Files");
const showDrop = () => find("drop").classList.toggle("shown", dragged > 0);
addEventListener("dragenter", (event) => {
  dragged += hasFile(event);
  showDrop();
});
addEventListener("dragleave", (event) => {
  dragged -= hasFile(event);
  showDrop();
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  showDrop();
  readAll(event.dataTransfer.files);
});

// Browsers let the screen sleep again once the page was hidden.
document.addEventListener("visibilitychange", () => microphone && !document.hidden && keepAwake());
addEventListener("beforeunload", (event) => state !== "ready" && event.preventDefault());
new ResizeObserver(() => transcript.show()).observe(document.querySelector("footer"));
find("host").textContent = location.hostname;
setState("ready");
