// The microphone: blocks of samples as they are recorded.

/** A microphone that cannot be used; the message is for the person. */
export class MicrophoneError extends Error {}

const NONE = "No microphone was found. Connect one and try again, or open a recording.";
const REASONS = {
  NotAllowedError:
    "The microphone is not allowed for this page. Allow it in the browser's site settings, then try again.",
  NotFoundError: NONE,
  OverconstrainedError: NONE, // as WebKit has it
  NotReadableError: "The microphone cannot be used now. Another program may have it.",
};
// The recogniser was trained on sound as it is.
const SOUND = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

/** Browsers that find nothing to play sound on, as Firefox, may begin no recording either, and do not say so. */
const MOST_START_SECONDS = 10;
const NO_START = "The browser's sound does not start. Connect something that plays sound, or open a recording.";

/**
 * Open the microphone. To be called from a click, which browsers ask for.
 * `onSamples` gets each block, `onLost` is called when the microphone goes away.
 */
export async function openMicrophone(onSamples, onLost) {
  if (!navigator.mediaDevices) {
    throw new MicrophoneError(
      "Browsers give the microphone only to pages that come over HTTPS or from this machine. Recordings work here.",
    );
  }
  const context = new AudioContext();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: SOUND });
    await context.audioWorklet.addModule("recorder.js");
    await within(MOST_START_SECONDS, context.resume());
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    await context.close();
    if (error instanceof MicrophoneError) throw error;
    throw new MicrophoneError(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
  }
  const recorder = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
  const ended = new Promise((resolve) => {
    recorder.port.onmessage = ({ data }) => (data ? onSamples(data) : resolve());
  });
  const [track] = stream.getTracks();
  track.onended = onLost;
  context.createMediaStreamSource(stream).connect(recorder).connect(context.destination);

  return {
    sampleRate: context.sampleRate,
    /** Stop; all that was recorded has been given when this is done. */
    async stop() {
      track.onended = null;
      if (context.state === "running") {
        recorder.port.postMessage("stop");
        await ended;
      }
      track.stop();
      await context.close();
    },
  };
}

function within(seconds, started) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new MicrophoneError(NO_START)), seconds * 1000));
  return Promise.race([started, late]);
}
